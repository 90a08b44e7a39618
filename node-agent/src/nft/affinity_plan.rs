//! From desired to programmed affinity: what its chains hold, under which numbers.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use service_model::{AffinityScope, ServiceName};

use super::affinity::{AffinityChain, AffinityKey, DesiredAffinity, NumberedTarget};
use super::desired::DesiredService;
use super::layout::Target;
use super::mirror::Mirror;
use super::step::Step;

/// Draws numbers for endpoints. A number that was an endpoint's in another life of this program may
/// still have clients in the kernel, whom the next one must not inherit: so the numbers of each life
/// come from a seed of its own.
#[derive(Debug, Default)]
pub struct Numbers {
    seed: u64,
    drawn: u64,
}

impl Numbers {
    pub fn new(seed: u64) -> Self {
        Self { seed, drawn: 0 }
    }

    fn draw(&mut self) -> u32 {
        self.drawn += 1;
        // SplitMix64 (Steele, Lea, Flood 2014).
        let mut mixed = self.seed.wrapping_add(self.drawn.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 32) as u32
    }
}

/// The numbers that one plan gives.
#[derive(Debug)]
pub struct Numbering<'a> {
    numbers: &'a mut Numbers,
    /// Those that were drawn: the mirror does not have them yet.
    taken: BTreeSet<u32>,
}

/// An endpoint, and of which Service port: the name of that one's chains. It has one number in both.
type OfPort<'a> = (&'a str, Target);

impl<'a> Numbering<'a> {
    pub fn new(numbers: &'a mut Numbers) -> Self {
        Self { numbers, taken: BTreeSet::new() }
    }

    /// The chains that should be there for a Service. Endpoints that have a number keep it, unless
    /// another of the Service's ports is to know the pod by the same one, or no longer.
    pub fn chains(
        &mut self,
        service: &ServiceName,
        want: &DesiredService,
        mirror: &Mirror,
    ) -> BTreeMap<AffinityKey, AffinityChain> {
        if want.affinities.is_empty() {
            return BTreeMap::new();
        }
        let wanted: BTreeSet<OfPort<'_>> = want
            .affinities
            .iter()
            .flat_map(|(key, chain)| chain.targets.iter().map(|target| (&*key.name, *target)))
            .collect();
        let numbers = self.numbers_of(&wanted, &known(service, mirror), want.affinity_scope, mirror);
        let numbered = |key: &AffinityKey, target: Target| NumberedTarget {
            target,
            number: numbers[&(&*key.name, target)],
        };
        let chain = |(key, want): (&AffinityKey, &DesiredAffinity)| {
            let endpoints = want.targets.iter().map(|target| numbered(key, *target)).collect();
            (key.clone(), AffinityChain { protocol: want.protocol, timeout: want.timeout, endpoints })
        };
        want.affinities.iter().map(chain).collect()
    }

    fn numbers_of<'n>(
        &mut self,
        wanted: &BTreeSet<OfPort<'n>>,
        known: &BTreeMap<OfPort<'_>, u32>,
        scope: AffinityScope,
        mirror: &Mirror,
    ) -> BTreeMap<OfPort<'n>, u32> {
        let pods = match scope {
            AffinityScope::Port => BTreeMap::new(),
            AffinityScope::Service => self.numbers_of_pods(wanted, known, mirror),
        };
        let mut used: BTreeSet<u32> = pods.values().copied().collect();
        let mut given = BTreeMap::new();
        let wanted: Vec<OfPort<'_>> = wanted.iter().copied().collect();
        for of_pod in wanted.chunk_by(|one, next| (one.0, one.1.ip) == (next.0, next.1.ip)) {
            let number = pods.get(&of_pod[0].1.ip);
            // One of a pod's endpoints in a port: who has it, or the first.
            let has_it = |endpoint: &&OfPort<'_>| number.is_some() && known.get(*endpoint) == number;
            let bearer = number.map(|_| of_pod.iter().find(has_it).unwrap_or(&of_pod[0]));
            for endpoint in of_pod {
                let mut own = || known.get(endpoint).copied().filter(|number| used.insert(*number));
                let number = match number.filter(|_| bearer == Some(endpoint)) {
                    Some(number) => *number,
                    None => own().unwrap_or_else(|| self.draw(mirror)),
                };
                given.insert(*endpoint, number);
            }
        }
        given
    }

    /// By which all ports of a Service know its pods: a pod's number is the one that most of them have,
    /// then one whose endpoint stays, then the first port's. So ports that agree go on to, whichever of
    /// them the pod leaves; and of ports that do not yet, the first keeps its clients.
    fn numbers_of_pods(
        &mut self,
        wanted: &BTreeSet<OfPort<'_>>,
        known: &BTreeMap<OfPort<'_>, u32>,
        mirror: &Mirror,
    ) -> BTreeMap<IpAddr, u32> {
        struct Candidate {
            number: u32,
            ports: usize,
            stays: bool,
        }
        let mut candidates: BTreeMap<IpAddr, Vec<Candidate>> = BTreeMap::new();
        for (endpoint, &number) in known {
            let of_pod = candidates.entry(endpoint.1.ip).or_default();
            let nth = of_pod.iter().position(|candidate| candidate.number == number);
            let nth = nth.unwrap_or_else(|| {
                of_pod.push(Candidate { number, ports: 0, stays: false });
                of_pod.len() - 1
            });
            of_pod[nth].ports += 1;
            of_pod[nth].stays |= wanted.contains(endpoint);
        }
        let mut used = BTreeSet::new();
        let mut pods = BTreeMap::new();
        for ip in wanted.iter().map(|(_, target)| target.ip).collect::<BTreeSet<_>>() {
            // Of equals, the last is the greatest.
            let best = candidates.remove(&ip).into_iter().flatten().rev().max_by_key(|c| (c.ports, c.stays));
            // Two pods have the same only if somebody else wrote it.
            let number = best.map(|candidate| candidate.number).filter(|number| used.insert(*number));
            pods.insert(ip, number.unwrap_or_else(|| self.draw(mirror)));
        }
        pods
    }

    fn draw(&mut self, mirror: &Mirror) -> u32 {
        loop {
            let number = self.numbers.draw();
            if !mirror.affinities.has_number(number) && self.taken.insert(number) {
                return number;
            }
        }
    }
}

/// What is programmed of a Service. Where the pools do not agree, which only somebody else can have
/// done, the first wins.
fn known<'m>(service: &ServiceName, mirror: &'m Mirror) -> BTreeMap<OfPort<'m>, u32> {
    let mut known = BTreeMap::new();
    for (key, chain) in mirror.affinities.of_service(service) {
        for endpoint in &chain.endpoints {
            known.entry((&*key.name, endpoint.target)).or_insert(endpoint.number);
        }
    }
    known
}

/// What is done to a chain now, and what later. One that is not wanted keeps nobody from now on, and
/// goes when nothing leads to it any more.
pub fn plan_chain(
    key: &AffinityKey,
    want: Option<AffinityChain>,
    mirror: &Mirror,
) -> (Option<Step>, Option<Step>) {
    let have = mirror.affinities.chains().get(key);
    let write = |chain| Step::WriteAffinity(key.clone(), Box::new(chain));
    match (want, have) {
        (Some(want), have) => ((have != Some(&want)).then(|| write(want)), None),
        (None, Some(have)) => {
            let empty = AffinityChain::empty();
            ((*have != empty).then(|| write(empty)), Some(Step::DeleteAffinity(key.clone())))
        }
        (None, None) => (None, None),
    }
}

#[cfg(test)]
mod tests;
