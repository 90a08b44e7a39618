//! Tags of what is there already. Ours come and go with the Service; AWS's own are never touched.

use std::collections::BTreeMap;

use crate::aws::desired::Desired;
use crate::aws::names::Role;
use crate::aws::resources::Tags;
use crate::aws::step::{Resource, Step};

/// What a resource should carry.
pub(super) fn wanted(desired: &Desired, role: Role) -> Tags {
    let mut tags = desired.tags.clone();
    tags.extend(desired.id.tags(role));
    tags
}

/// Collects what ELBv2 resources lack and have too much, a step for each set of them.
#[derive(Default)]
pub(super) struct Retagging {
    missing: BTreeMap<Tags, Vec<Resource>>,
    surplus: BTreeMap<Vec<String>, Vec<Resource>>,
}

impl Retagging {
    pub(super) fn compare(&mut self, resource: Resource, wanted: &Tags, there: &Tags) {
        let (missing, surplus) = difference(wanted, there);
        if !missing.is_empty() {
            self.missing.entry(missing).or_default().push(resource.clone());
        }
        if !surplus.is_empty() {
            self.surplus.entry(surplus).or_default().push(resource);
        }
    }

    pub(super) fn steps(self) -> impl Iterator<Item = Step> {
        let tag = self.missing.into_iter().map(|(tags, resources)| Step::Tag { resources, tags });
        let untag = self.surplus.into_iter().map(|(keys, resources)| Step::Untag { resources, keys });
        tag.chain(untag)
    }
}

pub(super) fn security_group(name: &str, wanted: &Tags, there: &Tags) -> impl Iterator<Item = Step> {
    let (tags, keys) = difference(wanted, there);
    let tag = (!tags.is_empty()).then(|| Step::TagSecurityGroup { name: name.to_owned(), tags });
    let untag = (!keys.is_empty()).then(|| Step::UntagSecurityGroup { name: name.to_owned(), keys });
    tag.into_iter().chain(untag)
}

fn difference(wanted: &Tags, there: &Tags) -> (Tags, Vec<String>) {
    let missing = wanted.iter().filter(|(k, v)| there.get(*k) != Some(v));
    let surplus = there.keys().filter(|k| !wanted.contains_key(*k) && !k.starts_with("aws:"));
    (missing.map(|(k, v)| (k.clone(), v.clone())).collect(), surplus.cloned().collect())
}
