//! Session affinity (`sessionAffinity: ClientIP`): a client stays with the endpoint that it was
//! given, whichever address of the Service port it asks, until it has been away for the timeout.
//!
//! ```text
//! map affinity                10.96.7.7 . tcp . 80 : jump affinity/shop/web/http/tcp
//! affinity/shop/web/http/tcp  is (client, 71) in affinity-clients?  ▶ renew it, dnat to 10.244.1.5:8080
//!                             is (client, 86) in affinity-clients?  ▶ renew it, dnat to 10.244.2.7:8080
//!                             one in two                            ▶ add (client, 71), dnat to 10.244.1.5:8080
//!                             else                                  ▶ add (client, 86), dnat to 10.244.2.7:8080
//! ```
//!
//! The one thing that has chains of its own, since a rule must name what a client is kept at. What
//! falls through them goes on to the ordinary spread. Where affinity is of a whole Service, the chains
//! of its ports know a pod by the same number. Packets fill the set of clients: it is never
//! read, and nothing is ever deleted from it. An endpoint's number is new whenever it joins its
//! Service port (or its Service), so those that it had before are nobody's, and expire.
//! See docs/design/0005-session-affinity.md.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use service_model::{IpFamily, Protocol, ServiceName, ServicePort};

use super::layout::{FAMILIES, Frontend, Pool, Target};

/// The chain of a Service port, for the endpoints of one family and pool.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AffinityKey {
    pub family: IpFamily,
    pub pool: Pool,
    /// `namespace/name/port/protocol`; the port's name may be empty.
    pub name: Box<str>,
}

/// What such a chain does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AffinityChain {
    pub protocol: Protocol,
    /// Seconds after its last connection that a client is remembered; at least one.
    pub timeout: u32,
    /// Sorted by target.
    pub endpoints: Vec<NumberedTarget>,
}

/// An endpoint under the number by which its clients are remembered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct NumberedTarget {
    pub target: Target,
    pub number: u32,
}

/// What a Service port asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredAffinity {
    pub protocol: Protocol,
    pub timeout: u32,
    /// Sorted.
    pub targets: Vec<Target>,
}

/// The part of the mirror that is about affinity: all but the clients.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Affinities {
    chains: BTreeMap<AffinityKey, AffinityChain>,
    /// Which chain a frontend asks before it spreads.
    leads: BTreeMap<(Frontend, Pool), AffinityKey>,
    /// In how many chains a number is.
    numbers: BTreeMap<u32, u32>,
}

impl AffinityKey {
    pub fn new(family: IpFamily, pool: Pool, service: &ServiceName, port: &ServicePort) -> Self {
        let protocol = port.protocol.to_string().to_lowercase();
        Self { family, pool, name: format!("{service}/{}/{protocol}", port.name).into() }
    }

    /// The opposite of its `Display`.
    pub fn parse(family: IpFamily, chain: &str) -> Option<Self> {
        let (pool, name) = match (chain.strip_prefix(PREFIX), chain.strip_prefix(LOCAL_PREFIX)) {
            (Some(name), _) => (Pool::Cluster, name),
            (_, Some(name)) => (Pool::Local, name),
            _ => return None,
        };
        Some(Self { family, pool, name: name.into() })
    }

    /// The chain for the same Service port's endpoints of the pool.
    #[must_use]
    pub fn of(&self, pool: Pool) -> Self {
        Self { pool, ..self.clone() }
    }
}

const PREFIX: &str = "affinity/";
const LOCAL_PREFIX: &str = "local-affinity/";

/// The kernel's name of the chain.
impl fmt::Display for AffinityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.pool == Pool::Local { LOCAL_PREFIX } else { PREFIX })?;
        f.write_str(&self.name)
    }
}

impl AffinityChain {
    /// One that keeps nobody.
    pub fn empty() -> Self {
        Self { protocol: Protocol::Tcp, timeout: 0, endpoints: Vec::new() }
    }

    /// One whose rules are not ours: nothing that is wanted is equal to it.
    pub fn edited() -> Self {
        Self { timeout: u32::MAX, ..Self::empty() }
    }

    /// Where a client goes that is in the set under these numbers. Without any: all that chance may
    /// choose.
    pub fn choices(&self, held: &BTreeSet<u32>) -> Vec<Target> {
        let all = || self.endpoints.iter();
        match all().find(|endpoint| held.contains(&endpoint.number)) {
            Some(kept) => vec![kept.target],
            None => all().map(|endpoint| endpoint.target).collect(),
        }
    }
}

impl Affinities {
    pub fn chains(&self) -> &BTreeMap<AffinityKey, AffinityChain> {
        &self.chains
    }

    /// Chains with rules that are not ours.
    pub fn edited(&self) -> impl Iterator<Item = &AffinityKey> {
        let edited = AffinityChain::edited();
        self.chains.iter().filter(move |(_, chain)| **chain == edited).map(|(key, _)| key)
    }

    pub fn leads(&self) -> &BTreeMap<(Frontend, Pool), AffinityKey> {
        &self.leads
    }

    /// The chains of a Service's ports, in order.
    pub fn of_service(&self, service: &ServiceName) -> impl Iterator<Item = (&AffinityKey, &AffinityChain)> {
        let prefix = format!("{service}/");
        let kinds = FAMILIES.into_iter().flat_map(|of| [(of, Pool::Cluster), (of, Pool::Local)]);
        kinds.flat_map(move |(family, pool)| {
            let before_all = AffinityKey { family, pool, name: prefix.as_str().into() };
            let own = before_all.clone();
            let is_own = move |key: &AffinityKey| {
                (key.family, key.pool) == (own.family, own.pool) && key.name.starts_with(&*own.name)
            };
            self.chains.range(before_all..).take_while(move |(key, _)| is_own(key))
        })
    }

    /// The chain that a frontend asks, if there is one.
    pub fn chain_of(&self, frontend: Frontend, pool: Pool) -> Option<&AffinityChain> {
        self.chains.get(self.leads.get(&(frontend, pool))?)
    }

    /// Whether a chain is asked for clients of the frontend.
    pub fn has_lead(&self, frontend: Frontend) -> bool {
        [Pool::Cluster, Pool::Local].iter().any(|pool| self.leads.contains_key(&(frontend, *pool)))
    }

    pub fn has_number(&self, number: u32) -> bool {
        self.numbers.contains_key(&number)
    }

    pub fn write(&mut self, key: &AffinityKey, chain: &AffinityChain) {
        self.delete(key);
        for endpoint in &chain.endpoints {
            *self.numbers.entry(endpoint.number).or_default() += 1;
        }
        self.chains.insert(key.clone(), chain.clone());
    }

    pub fn delete(&mut self, key: &AffinityKey) {
        let before = self.chains.remove(key).map(|chain| chain.endpoints).unwrap_or_default();
        for NumberedTarget { number, .. } in before {
            if let Some(count) = self.numbers.get_mut(&number) {
                *count -= 1;
                if *count == 0 {
                    self.numbers.remove(&number);
                }
            }
        }
    }

    pub fn lead(&mut self, frontend: Frontend, pool: Pool, to: Option<&AffinityKey>) {
        match to {
            Some(key) => drop(self.leads.insert((frontend, pool), key.clone())),
            None => drop(self.leads.remove(&(frontend, pool))),
        }
    }

    /// Drops what is known of a family's table.
    pub fn forget(&mut self, family: IpFamily) {
        let keys: Vec<AffinityKey> = self.chains.keys().filter(|key| key.family == family).cloned().collect();
        keys.iter().for_each(|key| self.delete(key));
        self.leads.retain(|(frontend, _), _| frontend.family() != family);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::ObjectName;

    #[test]
    fn a_chains_name_says_whose_it_is_and_is_read_back() {
        let port = |name: &str| ServicePort {
            name: name.into(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: None,
        };
        for (pool, port, text) in [
            (Pool::Cluster, port("dns"), "affinity/shop/web/dns/udp"),
            (Pool::Local, port(""), "local-affinity/shop/web//udp"),
        ] {
            let key = AffinityKey::new(IpFamily::V6, pool, &ObjectName::new("shop", "web"), &port);
            assert_eq!(key.to_string(), text);
            assert_eq!(AffinityKey::parse(IpFamily::V6, text), Some(key));
        }
        assert_eq!(AffinityKey::parse(IpFamily::V4, "services"), None);
    }

    #[test]
    fn a_number_is_in_use_while_a_chain_has_it() {
        let key = |pool| AffinityKey { family: IpFamily::V4, pool, name: "shop/web//tcp".into() };
        let target = Target { ip: [10, 244, 0, 1].into(), port: 80 };
        let chain =
            AffinityChain { endpoints: vec![NumberedTarget { target, number: 7 }], ..AffinityChain::empty() };
        let mut affinities = Affinities::default();
        affinities.write(&key(Pool::Cluster), &chain);
        affinities.write(&key(Pool::Local), &chain);
        affinities.write(&key(Pool::Cluster), &AffinityChain::empty());
        assert!(affinities.has_number(7));
        affinities.forget(IpFamily::V4);
        assert_eq!(affinities, Affinities::default());
    }
}
