//! Which subnets a load balancer stands in: those of the annotation, else those it has, else those
//! tagged for the role, else those that can be reached as the scheme wants; one a zone.

use std::collections::{BTreeMap, BTreeSet};

use super::annotations::{key, mistake};
use super::resources::{Scheme, Subnet};
use crate::plan::Note;

/// AWS wants this many free addresses to create a load balancer.
const FREE_ADDRESSES: u32 = 8;

/// # Errors
/// Why there is none, and what to do.
pub fn choose(
    subnets: &BTreeMap<String, Subnet>,
    (wanted, existing): (Option<&[String]>, Option<&BTreeSet<String>>),
    scheme: Scheme,
    cluster: &str,
) -> Result<BTreeSet<String>, Note> {
    match (wanted, existing) {
        (Some(wanted), _) => named(subnets, wanted),
        (None, Some(existing)) => Ok(existing.clone()),
        (None, None) => discovered(subnets, scheme, cluster),
    }
}

fn named(subnets: &BTreeMap<String, Subnet>, wanted: &[String]) -> Result<BTreeSet<String>, Note> {
    let wrong = |why: &str| mistake(&key("subnets"), &wanted.join(","), why);
    let mut by_zone = BTreeMap::new();
    for text in wanted {
        let mut found =
            subnets.values().filter(|s| s.id == *text || s.tags.get("Name").is_some_and(|name| name == text));
        let subnet = found.next().ok_or_else(|| {
            let known: Vec<&str> = subnets.keys().map(String::as_str).collect();
            wrong(&format!("subnets of the VPC ({}); there is no {text}", known.join(", ")))
        })?;
        if let Some(other) = by_zone.insert(&subnet.zone, &subnet.id)
            && *other != subnet.id
        {
            let zone = &subnet.zone;
            return Err(wrong(&format!("one subnet a zone; {other} and {} are both in {zone}", subnet.id)));
        }
    }
    Ok(by_zone.into_values().cloned().collect())
}

fn discovered(
    subnets: &BTreeMap<String, Subnet>,
    scheme: Scheme,
    cluster: &str,
) -> Result<BTreeSet<String>, Note> {
    let role = match scheme {
        Scheme::Internal => "kubernetes.io/role/internal-elb",
        Scheme::InternetFacing => "kubernetes.io/role/elb",
    };
    let has_role = |s: &&Subnet| s.tags.get(role).is_some_and(|value| value.is_empty() || value == "1");
    let mut candidates: Vec<&Subnet> = subnets.values().filter(has_role).collect();
    if candidates.is_empty() {
        candidates = subnets.values().filter(|s| s.public == (scheme == Scheme::InternetFacing)).collect();
    }
    let own_tag = format!("kubernetes.io/cluster/{cluster}");
    let is_own = |s: &Subnet| s.tags.contains_key(&own_tag);
    let is_foreign =
        |s: &Subnet| !is_own(s) && s.tags.keys().any(|k| k.starts_with("kubernetes.io/cluster/"));
    let (foreign, rest): (Vec<&Subnet>, Vec<&Subnet>) = candidates.iter().partition(|s| is_foreign(s));
    let (full, mut usable): (Vec<&Subnet>, Vec<&Subnet>) =
        rest.into_iter().partition(|s| s.free_addresses < FREE_ADDRESSES);
    usable.sort_by_key(|s| (!is_own(s), s.id.clone()));
    let mut by_zone: BTreeMap<&str, &str> = BTreeMap::new();
    for subnet in usable {
        by_zone.entry(&subnet.zone).or_insert(&subnet.id);
    }
    if by_zone.is_empty() {
        if subnets.is_empty() {
            let message = "the VPC has no subnet that can be seen: is --aws-vpc-id right, and --aws-region?";
            return Err(Note::warning("NoSubnet", message));
        }
        let reach = if scheme == Scheme::Internal { "no route" } else { "a route" };
        return Err(Note::warning(
            "NoSubnet",
            format!(
                "no subnet for an {scheme} load balancer: of {} in the VPC, {} have the tag {role} or, failing \
                 that, {reach} to an internet gateway; of those {} belong to other clusters and {} have fewer \
                 than {FREE_ADDRESSES} free addresses. Tag subnets with {role}, or name them in {}",
                subnets.len(),
                candidates.len(),
                foreign.len(),
                full.len(),
                key("subnets"),
            ),
        ));
    }
    Ok(by_zone.into_values().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `id zone free tags…`; an id that ends in p is public.
    fn vpc(lines: &[&str]) -> BTreeMap<String, Subnet> {
        let subnet = |line: &&str| {
            let words: Vec<&str> = line.split(' ').collect();
            let tag = |word: &&str| {
                let (key, value) = word.split_once('=').unwrap();
                (key.to_owned(), value.to_owned())
            };
            let subnet = Subnet {
                id: words[0].to_owned(),
                zone: words[1].to_owned(),
                free_addresses: words[2].parse().unwrap(),
                public: words[0].ends_with('p'),
                tags: words[3..].iter().map(tag).collect(),
            };
            (subnet.id.clone(), subnet)
        };
        lines.iter().map(subnet).collect()
    }

    fn chosen(lines: &[&str], scheme: Scheme) -> String {
        match choose(&vpc(lines), (None, None), scheme, "c") {
            Ok(ids) => ids.into_iter().collect::<Vec<_>>().join(" "),
            Err(note) => note.message,
        }
    }

    #[test]
    fn role_tags_win_over_reachability_and_each_zone_gets_one() {
        const ROLE: &str = "kubernetes.io/role/internal-elb=1";
        let tagged = [
            format!("s1 a 100 {ROLE}"),
            format!("s2 a 100 {ROLE} kubernetes.io/cluster/c=owned"),
            format!("s3p b 100 {ROLE}"),
        ];
        let mut lines: Vec<&str> = tagged.iter().map(String::as_str).collect();
        lines.push("s4 c 100");
        assert_eq!(chosen(&lines, Scheme::Internal), "s2 s3p");
        assert_eq!(chosen(&["s1 a 100", "s2p a 100", "s3 b 100"], Scheme::Internal), "s1 s3");
        assert_eq!(chosen(&["s1 a 100", "s2p a 100", "s3 b 100"], Scheme::InternetFacing), "s2p");
    }

    #[test]
    fn subnets_of_other_clusters_and_full_ones_are_left_out_and_counted() {
        let lines = ["s1 a 7", "s2 b 100 kubernetes.io/cluster/other=shared", "s3p a 100"];
        let message = chosen(&lines, Scheme::Internal);
        for part in ["of 3 in the VPC, 2 have", "1 belong to other clusters", "1 have fewer than 8"] {
            assert!(message.contains(part), "{message} lacks {part}");
        }
    }

    #[test]
    fn the_annotation_wins_and_an_existing_load_balancer_keeps_its_subnets() {
        let vpc = vpc(&["s1 a 100", "s2 b 100 Name=blue", "s3 b 100"]);
        let choose = |wanted: Option<&[&str]>, existing: Option<&[&str]>| {
            let wanted: Option<Vec<String>> = wanted.map(|w| w.iter().map(|s| (*s).to_owned()).collect());
            let existing = existing.map(|e| e.iter().map(|s| (*s).to_owned()).collect());
            super::choose(&vpc, (wanted.as_deref(), existing.as_ref()), Scheme::Internal, "c")
                .map(|ids| ids.into_iter().collect::<Vec<_>>())
        };
        assert_eq!(choose(Some(&["blue", "s1"]), Some(&["s3"])).unwrap(), ["s1", "s2"]);
        assert_eq!(choose(None, Some(&["s3"])).unwrap(), ["s3"]);
        let same_zone = choose(Some(&["s2", "s3"]), None).unwrap_err().message;
        assert!(same_zone.contains("s2 and s3 are both in b"), "{same_zone}");
        let missing = choose(Some(&["s9"]), None).unwrap_err().message;
        assert!(missing.contains("there is no s9"), "{missing}");
    }
}
