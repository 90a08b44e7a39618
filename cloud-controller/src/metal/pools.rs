//! The `IPAddressPool`s as they are watched: listed in full before they count, and what a relist
//! does not mention is gone.

use std::collections::{BTreeMap, BTreeSet};

use kube_watch::Listing;

use super::crds::{IPAddressPool, IPAddressPoolStatus};
use super::pool::Pool;

#[derive(Debug, Default)]
pub struct Pools {
    pools: BTreeMap<String, IPAddressPool>,
    /// What the running list has mentioned so far.
    listing: Option<BTreeSet<String>>,
    synced: bool,
}

impl Pools {
    /// Answers whether the parsed pools may differ now.
    pub fn apply(&mut self, event: Listing<IPAddressPool>) -> bool {
        match event {
            Listing::Started => {
                self.listing = Some(BTreeSet::new());
                false
            }
            Listing::Apply(pool) => {
                let name = pool.metadata.name.clone().unwrap_or_default();
                if let Some(listing) = &mut self.listing {
                    listing.insert(name.clone());
                }
                let before = self.pools.insert(name, pool.clone());
                before.is_none_or(|b| b.spec != pool.spec)
            }
            Listing::Delete(pool) => {
                self.pools.remove(pool.metadata.name.as_deref().unwrap_or_default()).is_some()
            }
            Listing::Ended => {
                let mentioned = self.listing.take().unwrap_or_default();
                let before = self.pools.len();
                self.pools.retain(|name, _| mentioned.contains(name));
                !std::mem::replace(&mut self.synced, true) || self.pools.len() != before
            }
        }
    }

    /// Whether they have been listed in full once.
    pub fn has_synced(&self) -> bool {
        self.synced
    }

    /// By name. Pools that share addresses work, and say so.
    pub fn parsed(&self) -> Vec<Pool> {
        let pools: Vec<Pool> = self.pools.iter().map(|(name, pool)| Pool::parse(name, &pool.spec)).collect();
        let told = |pool: &Pool| pool.clone().telling_of_overlaps(&pools);
        pools.iter().map(told).collect()
    }

    /// The status that a pool shows.
    pub fn status(&self, name: &str) -> Option<&IPAddressPoolStatus> {
        self.pools.get(name)?.status.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metal::crds::IPAddressPoolSpec;

    fn pool(name: &str, addresses: &str) -> IPAddressPool {
        let spec = IPAddressPoolSpec { addresses: vec![addresses.to_owned()], ..Default::default() };
        IPAddressPool::new(name, spec)
    }

    #[test]
    fn a_relist_removes_the_pools_it_does_not_mention() {
        let mut pools = Pools::default();
        pools.apply(Listing::Started);
        pools.apply(Listing::Apply(pool("a", "10.0.0.0/24")));
        pools.apply(Listing::Apply(pool("b", "10.0.1.0/24")));
        assert!(!pools.has_synced());
        assert!(pools.apply(Listing::Ended));
        assert!(pools.has_synced());
        pools.apply(Listing::Started);
        assert!(!pools.apply(Listing::Apply(pool("b", "10.0.1.0/24"))), "the same again");
        assert!(pools.apply(Listing::Ended));
        assert_eq!(pools.parsed().iter().map(|p| p.name.to_string()).collect::<Vec<_>>(), ["b"]);
    }

    #[test]
    fn pools_that_share_addresses_say_so_both() {
        let mut pools = Pools::default();
        for (name, addresses) in [("a", "10.0.0.0/24"), ("b", "10.0.0.200-10.0.1.9"), ("c", "10.0.2.0/24")] {
            pools.apply(Listing::Apply(pool(name, addresses)));
        }
        let problems: Vec<String> = pools.parsed().into_iter().filter_map(|p| p.problem).collect();
        assert_eq!(
            problems,
            [
                "10.0.0.0-10.0.0.255 overlaps 10.0.0.200-10.0.1.9 of IPAddressPool b: addresses in both count twice",
                "10.0.0.200-10.0.1.9 overlaps 10.0.0.0-10.0.0.255 of IPAddressPool a: addresses in both count twice",
            ]
        );
    }

    #[test]
    fn a_change_of_status_alone_is_no_change_of_the_pools() {
        let mut pools = Pools::default();
        assert!(pools.apply(Listing::Apply(pool("a", "10.0.0.0/24"))));
        let mut told = pool("a", "10.0.0.0/24");
        told.status = Some(IPAddressPoolStatus { assigned_ipv4: 1, ..Default::default() });
        assert!(!pools.apply(Listing::Apply(told)));
        assert_eq!(pools.status("a").unwrap().assigned_ipv4, 1);
    }
}
