//! From desired to programmed affinity: what its chains hold, under which numbers.

use std::collections::{BTreeMap, BTreeSet};

use super::affinity::{AffinityChain, AffinityKey, DesiredAffinity, NumberedTarget};
use super::layout::{Pool, Target};
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

/// The numbers that one plan gives: an endpoint has the same in either pool of its Service port.
#[derive(Debug)]
pub struct Numbering<'a> {
    numbers: &'a mut Numbers,
    given: BTreeMap<(AffinityKey, Target), u32>,
    /// All of those: the mirror does not have them yet.
    taken: BTreeSet<u32>,
}

impl<'a> Numbering<'a> {
    pub fn new(numbers: &'a mut Numbers) -> Self {
        Self { numbers, given: BTreeMap::new(), taken: BTreeSet::new() }
    }

    /// The chain that should be there. Endpoints that have a number keep it.
    fn chain(&mut self, key: &AffinityKey, want: &DesiredAffinity, mirror: &Mirror) -> AffinityChain {
        let has = |pool| mirror.affinities.chains().get(&key.of(pool)).into_iter().flat_map(|c| &c.endpoints);
        // Where the pools do not agree, which only somebody else can have done, the first wins.
        let known: BTreeMap<Target, u32> =
            has(Pool::Local).chain(has(Pool::Cluster)).map(|e| (e.target, e.number)).collect();
        let mut number = |target: Target| {
            let fresh = || loop {
                let number = self.numbers.draw();
                if !mirror.affinities.has_number(number) && self.taken.insert(number) {
                    return number;
                }
            };
            match known.get(&target) {
                Some(number) => *number,
                None => *self.given.entry((key.of(Pool::Cluster), target)).or_insert_with(fresh),
            }
        };
        let numbered = |target: &Target| NumberedTarget { target: *target, number: number(*target) };
        let endpoints = want.targets.iter().map(numbered).collect();
        AffinityChain { protocol: want.protocol, timeout: want.timeout, endpoints }
    }
}

/// What is done to a chain now, and what later. One that is not wanted keeps nobody from now on, and
/// goes when nothing leads to it any more.
pub fn plan_chain(
    key: &AffinityKey,
    want: Option<&DesiredAffinity>,
    mirror: &Mirror,
    numbering: &mut Numbering<'_>,
) -> (Option<Step>, Option<Step>) {
    let have = mirror.affinities.chains().get(key);
    let write = |chain| Step::WriteAffinity(key.clone(), Box::new(chain));
    match (want, have) {
        (Some(want), have) => {
            let chain = numbering.chain(key, want, mirror);
            ((have != Some(&chain)).then(|| write(chain)), None)
        }
        (None, Some(have)) => {
            let empty = AffinityChain::empty();
            ((*have != empty).then(|| write(empty)), Some(Step::DeleteAffinity(key.clone())))
        }
        (None, None) => (None, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::{IpFamily, Protocol};

    /// The third and the seventh number that it yields are the same: one in some ten millions does so early.
    const UNLUCKY: u64 = 191_291_920;

    #[test]
    fn no_two_endpoints_of_one_plan_have_the_same_number() {
        let mut numbers = Numbers::new(UNLUCKY);
        let drawn: Vec<u32> = (0..7).map(|_| numbers.draw()).collect();
        assert_eq!(drawn[2], drawn[6], "what the seed was looked for");
        let target = |last| Target { ip: [10, 244, 0, last].into(), port: 80 };
        let want = |lasts: std::ops::Range<u8>| DesiredAffinity {
            protocol: Protocol::Tcp,
            timeout: 60,
            targets: lasts.map(target).collect(),
        };
        for services in [vec![want(0..10)], vec![want(0..5), want(5..10)]] {
            let (mut numbers, mirror) = (Numbers::new(UNLUCKY), Mirror::default());
            let mut numbering = Numbering::new(&mut numbers);
            let mut given = Vec::new();
            for (service, want) in services.iter().enumerate() {
                let name = format!("ns/svc-{service}//tcp").into();
                let key = AffinityKey { family: IpFamily::V4, pool: Pool::Cluster, name };
                given.extend(numbering.chain(&key, want, &mirror).endpoints.iter().map(|e| e.number));
                let again = numbering.chain(&key.of(Pool::Local), want, &mirror).endpoints;
                assert!(again.iter().all(|e| given.contains(&e.number)), "either pool has the same");
            }
            assert_eq!(given.iter().collect::<BTreeSet<_>>().len(), 10, "{given:?}");
        }
    }
}
