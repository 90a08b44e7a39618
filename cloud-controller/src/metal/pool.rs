//! An `IPAddressPool`, parsed: which addresses it offers, and to whom.

use service_model::Service;
use std::net::IpAddr;

use super::crds::{IPAddressPoolSpec, LabelSelector, ServiceAllocation};
use super::ranges::{Range, is_buggy};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    pub name: Box<str>,
    /// Ascending, disjoint.
    ranges: Vec<Range>,
    pub auto_assign: bool,
    avoid_buggy: bool,
    allocation: Option<ServiceAllocation>,
    /// What the pool's author should correct. The rest of the pool works.
    pub problem: Option<String>,
}

/// The only label of a namespace that is known without watching namespaces: its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

impl Pool {
    /// Total: what cannot be read is left out and named in `problem`.
    pub fn parse(name: &str, spec: &IPAddressPoolSpec) -> Self {
        let mut problems = Vec::new();
        let mut ranges: Vec<Range> = Vec::new();
        for (i, text) in spec.addresses.iter().enumerate() {
            match text.parse::<Range>() {
                Err(error) => problems.push(format!("spec.addresses[{i}]: {error}")),
                Ok(range) => match ranges.iter().find(|r| r.overlaps(&range)) {
                    Some(other) => problems.push(format!("spec.addresses[{i}]: {range} overlaps {other}")),
                    None => ranges.push(range),
                },
            }
        }
        ranges.sort();
        let allocation = spec.service_allocation.clone().filter(ServiceAllocation::restricts);
        let unknown = allocation.iter().flat_map(|a| &a.namespace_selectors).flat_map(LabelSelector::keys);
        for key in unknown.filter(|k| *k != NAMESPACE_NAME) {
            problems.push(format!(
                "spec.serviceAllocation.namespaceSelectors: label {key} is not known here, only \
                 {NAMESPACE_NAME} is; use namespaces instead"
            ));
        }
        Self {
            name: name.into(),
            ranges,
            auto_assign: spec.auto_assign,
            avoid_buggy: spec.avoid_buggy_ips,
            allocation,
            problem: (!problems.is_empty()).then(|| problems.join("; ")),
        }
    }

    /// Adds to the problems which addresses others of `pools` offer too. Nobody gets one twice, but
    /// which pool it came from is anybody's guess.
    #[must_use]
    pub fn telling_of_overlaps(mut self, pools: &[Self]) -> Self {
        let others = pools.iter().filter(|other| other.name != self.name);
        let shared = others.flat_map(|other| {
            let pairs = self.ranges.iter().flat_map(|mine| other.ranges.iter().map(move |r| (mine, r)));
            pairs.filter(|(mine, theirs)| mine.overlaps(theirs)).map(|(mine, theirs)| {
                let name = &other.name;
                format!("{mine} overlaps {theirs} of IPAddressPool {name}: addresses in both count twice")
            })
        });
        let problems: Vec<String> = self.problem.iter().cloned().chain(shared).collect();
        self.problem = (!problems.is_empty()).then(|| problems.join("; "));
        self
    }

    /// Whether the pool hands this address out.
    pub fn offers(&self, ip: IpAddr) -> bool {
        self.ranges.iter().any(|r| r.contains(ip)) && !(self.avoid_buggy && is_buggy(ip))
    }

    /// How many addresses of the family it hands out.
    pub fn size(&self, v4: bool) -> u128 {
        let of_range = |r: &Range| r.size() - if self.avoid_buggy { r.buggy() } else { 0 };
        self.ranges.iter().filter(|r| r.is_ipv4() == v4).map(of_range).fold(0, u128::saturating_add)
    }

    /// The IPv4 addresses that it hands out, ascending.
    pub fn ipv4(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ranges
            .iter()
            .filter(|r| r.is_ipv4())
            .flat_map(Range::iter)
            .filter(|ip| !(self.avoid_buggy && is_buggy(*ip)))
    }

    /// Whether the Service may have an address from here: every restriction that is set must match.
    pub fn serves(&self, service: &Service) -> bool {
        let Some(allocation) = &self.allocation else { return true };
        let namespace = service.name.namespace();
        let namespace_label = |key: &str| (key == NAMESPACE_NAME).then(|| namespace.to_owned());
        let service_label = |key: &str| service.labels.get(key).map(std::string::ToString::to_string);
        let names = &allocation.namespaces;
        let by_namespace = &allocation.namespace_selectors;
        let by_service = &allocation.service_selectors;
        let in_namespace = (names.is_empty() && by_namespace.is_empty())
            || names.iter().any(|n| n == namespace)
            || by_namespace.iter().filter(|s| known(s)).any(|s| s.matches(namespace_label));
        in_namespace && (by_service.is_empty() || by_service.iter().any(|s| s.matches(service_label)))
    }

    /// The order in which pools are tried: those that restrict themselves first, by ascending
    /// priority (0 is last), ties by name (MetalLB leaves ties to chance).
    pub fn rank(&self) -> (bool, u32, &str) {
        let priority = self.allocation.as_ref().map_or(0, |a| a.priority);
        let priority = u32::try_from(priority).ok().filter(|p| *p > 0).unwrap_or(u32::MAX);
        (self.allocation.is_none(), priority, &self.name)
    }
}

/// A selector over labels that are not known matches nothing, rather than everything.
fn known(selector: &LabelSelector) -> bool {
    selector.keys().all(|k| k == NAMESPACE_NAME)
}

impl ServiceAllocation {
    fn restricts(&self) -> bool {
        !(self.namespaces.is_empty()
            && self.namespace_selectors.is_empty()
            && self.service_selectors.is_empty())
            || self.priority != 0
    }
}

#[cfg(test)]
mod tests {
    use service_model::ObjectName;

    use super::*;

    fn pool(yaml: &str) -> Pool {
        Pool::parse("p", &serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn a_pool_leaves_out_buggy_addresses_on_request() {
        let all = pool("addresses: [10.0.0.254-10.0.1.1]");
        assert_eq!((all.size(true), all.ipv4().count()), (4, 4));
        let safe = pool("{addresses: [10.0.0.254-10.0.1.1], avoidBuggyIPs: true}");
        assert_eq!((safe.size(true), safe.ipv4().count()), (2, 2));
        assert!(!safe.offers("10.0.1.0".parse().unwrap()) && safe.offers("10.0.1.1".parse().unwrap()));
    }

    #[test]
    fn a_mistake_in_a_pool_is_named_and_the_rest_works() {
        let pool = pool("addresses: [10.0.0.1-10.0.0.9, nonsense, 10.0.0.5/32]");
        assert_eq!(pool.size(true), 9);
        let problem = pool.problem.unwrap();
        assert!(problem.contains("spec.addresses[1]") && problem.contains("spec.addresses[2]"), "{problem}");
    }

    #[test]
    fn service_allocation_restricts_by_namespace_and_labels() {
        let mut service = Service::new(ObjectName::new("shop", "web"));
        service.labels.insert("tier".into(), "front".into());
        let table = [
            ("{namespaces: [shop]}", true),
            ("{namespaces: [bank]}", false),
            (
                "{namespaces: [bank], namespaceSelectors: [{matchLabels: {kubernetes.io/metadata.name: shop}}]}",
                true,
            ),
            ("{namespaceSelectors: [{matchLabels: {team: red}}]}", false),
            ("{serviceSelectors: [{matchLabels: {tier: front}}]}", true),
            (
                "{serviceSelectors: [{matchExpressions: [{key: tier, operator: NotIn, values: [front]}]}]}",
                false,
            ),
            ("{namespaces: [shop], serviceSelectors: [{matchLabels: {tier: back}}]}", false),
        ];
        for (allocation, serves) in table {
            let pool = pool(&format!("{{addresses: [10.0.0.0/24], serviceAllocation: {allocation}}}"));
            assert_eq!(pool.serves(&service), serves, "{allocation}");
        }
    }

    #[test]
    fn restricted_pools_come_first_by_priority_and_zero_is_last() {
        let ranked = |name: &str, allocation: &str| {
            let spec = format!("{{addresses: [10.0.0.0/24]{allocation}}}");
            Pool::parse(name, &serde_yaml_ng::from_str(&spec).unwrap())
        };
        let mut pools = [
            ranked("plain", ""),
            ranked("zero", ", serviceAllocation: {namespaces: [a], priority: 0}"),
            ranked("b", ", serviceAllocation: {namespaces: [a], priority: 10}"),
            ranked("a", ", serviceAllocation: {namespaces: [a], priority: 10}"),
            ranked("first", ", serviceAllocation: {namespaces: [a], priority: 1}"),
        ];
        pools.sort_by(|x, y| x.rank().cmp(&y.rank()));
        assert_eq!(pools.map(|p| p.name.to_string()), ["first", "a", "b", "zero", "plain"]);
    }
}
