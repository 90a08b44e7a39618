//! Session affinity over whatever happens to Services: who keeps which clients, by the numbers under
//! which the kernel remembers them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use node_agent::nft::affinity::AffinityKey;
use node_agent::nft::evaluate::{Fate, Packet, fates, fates_of_kept};
use node_agent::nft::layout::{Frontend, Pool, Target};
use node_agent::nft::mirror::Mirror;
use node_agent::nft::ruleset::Ruleset;
use proptest::prelude::*;
use service_model::{IpFamily, Protocol};
use support::*;

/// The numbers of each Service port's endpoints.
type Numbers = BTreeMap<(Box<str>, Target), u32>;

/// Whom a number stands for.
#[derive(Debug, PartialEq, Eq)]
struct Bearer {
    service: u8,
    pod: IpAddr,
    endpoints: BTreeSet<(Box<str>, Target)>,
}

/// Both pools of a Service port must agree.
fn numbers(mirror: &Mirror) -> Numbers {
    let mut numbers = Numbers::new();
    for (key, chain) in mirror.affinities.chains() {
        for endpoint in &chain.endpoints {
            let before = numbers.insert((key.name.clone(), endpoint.target), endpoint.number);
            assert!(before.is_none_or(|number| number == endpoint.number), "{key} and its other pool differ");
        }
    }
    numbers
}

/// No number is of two pods, nor of two endpoints where affinity is of ports; where it is of the
/// Service, no pod has two.
fn bearers(numbers: &Numbers, specs: &BTreeMap<u8, Spec>) -> BTreeMap<u32, Bearer> {
    let mut bearers: BTreeMap<u32, Bearer> = BTreeMap::new();
    for (endpoint, number) in numbers {
        let of_port = |service: &u8| endpoint.0.starts_with(&format!("{}/", name(*service)));
        let (service, pod) = (*specs.keys().find(|service| of_port(service)).unwrap(), endpoint.1.ip);
        let bearer = bearers.entry(*number);
        let bearer = bearer.or_insert_with(|| Bearer { service, pod, endpoints: BTreeSet::new() });
        assert_eq!((bearer.service, bearer.pod), (service, pod), "{number} is of two");
        bearer.endpoints.insert(endpoint.clone());
        assert!(specs[&service].whole || bearer.endpoints.len() == 1, "{number} is of two ports");
    }
    let of_whole = bearers.values().filter(|bearer| specs[&bearer.service].whole);
    let (count, pods) = (of_whole.clone().count(), of_whole.map(|bearer| (bearer.service, bearer.pod)));
    assert_eq!(count, pods.collect::<BTreeSet<_>>().len(), "a pod has two");
    bearers
}

fn commit(agent: &mut Agent) -> Result<(), TestCaseError> {
    let plan = agent.plan();
    let committed = agent.fake.commit(&plan.now);
    prop_assert!(committed.is_ok(), "{committed:?}\n{plan}");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// An endpoint keeps its clients while it serves, and has none of another's, nor those of its
    /// own former life. It begins anew where the Service's ports are to agree from now on, or no longer.
    #[test]
    fn a_number_stays_with_its_endpoint_and_is_never_given_again(
        happenings in proptest::collection::vec(happening(), 1..16),
    ) {
        let mut agent = Agent::new();
        let (mut before, mut given) = (Numbers::new(), BTreeSet::new());
        let (mut borne, mut specs) = (BTreeMap::<u32, Bearer>::new(), BTreeMap::new());
        for happening in &happenings {
            agent.happen(happening);
            let mut turned = None;
            match happening {
                Happening::Apply(spec) => {
                    let old = specs.insert(spec.number, spec.clone());
                    turned = old.filter(|old| old.whole != spec.whole).map(|old| name(old.number));
                }
                Happening::Delete(number) => drop(specs.remove(number)),
                Happening::Restart => {}
            }
            commit(&mut agent)?;
            let after = numbers(&agent.fake.observe());
            for (endpoint, number) in &after {
                let turned = turned.as_ref().is_some_and(|name| endpoint.0.starts_with(&format!("{name}/")));
                let first = endpoint.0.contains("/http/");
                if let Some(kept) = before.get(endpoint).filter(|_| !turned || first) {
                    prop_assert_eq!(kept, number, "{:?}", endpoint);
                }
            }
            let bearers = bearers(&after, &specs);
            for (number, bearer) in &bearers {
                let Some(before) = borne.get(number) else {
                    prop_assert!(given.insert(*number), "{:?} has a number that was another's", bearer);
                    continue;
                };
                let Bearer { service, pod, endpoints } = bearer;
                prop_assert_eq!((&before.service, &before.pod), (service, pod), "{} went over", number);
                let stays = specs[service].whole || !before.endpoints.is_disjoint(endpoints);
                prop_assert!(stays, "{} went over to another port: {:?}", number, bearer);
            }
            (before, borne) = (after, bearers);
            let later = agent.plan();
            prop_assert!(agent.fake.commit(&later.all_later()).is_ok());
            prop_assert_eq!(&numbers(&agent.fake.observe()), &before);
        }
    }

    /// Wherever a kept client may go at all, it goes to its endpoint; elsewhere it chooses.
    #[test]
    fn a_kept_client_goes_to_its_endpoint_and_nowhere_else(
        happenings in proptest::collection::vec(happening(), 1..8),
    ) {
        let mut agent = Agent::new();
        for happening in &happenings {
            agent.happen(happening);
            commit(&mut agent)?;
        }
        let ruleset = Ruleset::new(IpFamily::V4, &config());
        let (mirror, host) = (agent.fake.observe(), BTreeSet::from([IpAddr::from([172, 30, 0, 11])]));
        for frontend in mirror.frontends.keys().filter(|frontend| frontend.family() == IpFamily::V4) {
            let lead = mirror.affinities.leads().get(&(*frontend, Pool::Cluster));
            let numbers = numbers(&mirror);
            let endpoint = |number| {
                let in_chain = |key: &AffinityKey| {
                    let of = numbers.iter().find(|((port, _), of)| **port == *key.name && **of == number);
                    of.map(|((_, target), _)| *target)
                };
                lead.and_then(in_chain)
            };
            for source in [[10, 244, 9, 9], [172, 30, 0, 11], [203, 0, 113, 5]].map(IpAddr::from) {
                let packet = towards(*frontend, source);
                let all = fates(&ruleset, &mirror, &host, packet);
                for number in numbers.values().copied() {
                    let kept = fates_of_kept(&ruleset, &mirror, &host, packet, &BTreeSet::from([number]));
                    let at_its = |fate: &Fate| endpoint(number).is_some_and(|own| reaches(fate, own));
                    let allowed: BTreeSet<Fate> = all.iter().copied().filter(at_its).collect();
                    let expected = if allowed.is_empty() { &all } else { &allowed };
                    prop_assert_eq!(&kept, expected, "{} from {}, kept by {}", frontend, source, number);
                }
            }
        }
    }
}

fn reaches(fate: &Fate, wanted: Target) -> bool {
    matches!(fate, Fate::Endpoint { target, .. } if *target == wanted)
}

fn towards(frontend: Frontend, source: IpAddr) -> Packet {
    let (destination, port) = match frontend {
        Frontend::Vip { ip, port, .. } => (ip, port),
        Frontend::NodePort { port, .. } => ([172, 30, 0, 11].into(), port),
    };
    Packet { source, destination, protocol: Protocol::Tcp, port, interface: None }
}

#[test]
fn endpoints_that_come_and_go_move_no_other_ones_clients() {
    let mut agent = Agent::new();
    let mut happen = |affinity, lasts: &[u8]| {
        let endpoints = lasts.iter().map(|last| (*last, false)).collect();
        agent.happen(&Happening::Apply(Spec { number: 1, affinity, endpoints, ..Spec::default() }));
        let plan = agent.plan();
        agent.fake.commit(&plan.now).unwrap();
        let numbers = numbers(&agent.fake.observe());
        [1, 2, 3].map(|last| {
            let target = Target { ip: [10, 244, 0, last].into(), port: 8080 };
            numbers.get(&("ns/svc-1/http/tcp".into(), target)).copied()
        })
    };
    let [one, two, three] = happen(Some(60), &[1, 2, 3]);
    assert!(one.is_some() && two.is_some() && three.is_some());
    assert_eq!(happen(Some(60), &[1, 3]), [one, None, three]);
    let [_, again, _] = happen(Some(60), &[1, 2, 3]);
    assert!(again.is_some() && again != two, "who was at the second before is not there by that");
    assert_eq!(happen(Some(120), &[1, 2, 3]), [one, again, three], "the timeout changes in place");
    assert_eq!(happen(None, &[1, 2, 3]), [None; 3]);
    let anew = happen(Some(60), &[1, 2, 3]);
    assert!(anew.iter().zip([one, again, three]).all(|(new, old)| *new != old), "nobody is remembered");
    assert_eq!(happen(Some(60), &[]), [None; 3]);
}
