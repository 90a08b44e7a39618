//! Whatever Services there are, a packet goes where they say: kube-proxy's verdict matrix, asked of
//! the evaluator over what was planned into the fake.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use node_agent::nft::evaluate::{Fate, Packet, fates};
use node_agent::nft::layout::Target;
use node_agent::nft::ruleset::Ruleset;
use proptest::prelude::*;
use service_model::{IpFamily, Protocol};
use support::*;

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 30, 0, 11));
const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 9, 9));
const OUTSIDE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(203, 0, 113, 5));

/// The targets of the endpoints that `wanted` likes.
fn targets(spec: &Spec, wanted: impl Fn(bool) -> bool) -> BTreeSet<Target> {
    let ip = |(last, here): &(u8, bool)| IpAddr::from([10, 244, u8::from(*here), *last]);
    spec.endpoints
        .iter()
        .filter(|(_, here)| wanted(*here))
        .map(|e| Target { ip: ip(e), port: 8080 })
        .collect()
}

fn spread(targets: &BTreeSet<Target>, source: IpAddr, masqueraded: bool) -> BTreeSet<Fate> {
    let fate = |target: &Target| {
        // An endpoint that reaches itself is here: its address names this node's network.
        let hairpin = target.ip == source;
        Fate::Endpoint { target: *target, masqueraded: masqueraded || hairpin }
    };
    targets.iter().map(fate).collect()
}

/// The matrix: what a ClusterIP (or an external address, or a NodePort) does to a client.
fn expected(spec: &Spec, external: bool, source: IpAddr) -> BTreeSet<Fate> {
    let (all, here) = (targets(spec, |_| true), targets(spec, |here| here));
    let (of_pod, of_node) = (source != OUTSIDE && source != NODE, source == NODE);
    match () {
        () if all.is_empty() => BTreeSet::from([Fate::Refused]),
        () if !external => spread(&all, source, !of_pod),
        () if !spec.local_policy => spread(&all, source, true),
        () if of_pod => spread(&all, source, false),
        () if of_node => spread(&all, source, true),
        () if here.is_empty() => BTreeSet::from([Fate::Dropped]),
        () => spread(&here, source, false),
    }
}

/// What a load balancer's address does to a client, who must be in one of its networks, if there are any.
fn expected_of_balancer(spec: &Spec, source: IpAddr) -> BTreeSet<Fate> {
    let networks: Vec<IpNet> = spec.source_ranges().filter(|network| network.addr().is_ipv4()).collect();
    match networks.is_empty() || networks.iter().any(|network| network.contains(&source)) {
        true => expected(spec, true, source),
        false => BTreeSet::from([Fate::Dropped]),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_packet_goes_where_the_services_say(happenings in proptest::collection::vec(happening(), 1..8)) {
        let mut agent = Agent::new();
        let mut specs: BTreeMap<u8, Spec> = BTreeMap::new();
        for happening in &happenings {
            agent.happen(happening);
            match happening {
                Happening::Apply(spec) => drop(specs.insert(spec.number, spec.clone())),
                Happening::Delete(number) => drop(specs.remove(number)),
                Happening::Restart => {}
            }
            let plan = agent.plan();
            prop_assert!(agent.fake.commit(&plan.now).is_ok());
        }
        let ruleset = Ruleset::new(IpFamily::V4, &config());
        let (mirror, host) = (agent.fake.observe(), BTreeSet::from([NODE]));
        let go = |source, destination, port| {
            fates(&ruleset, &mirror, &host, Packet { source, destination, protocol: Protocol::Tcp, port, interface: None })
        };
        for spec in specs.values() {
            let endpoint = targets(spec, |_| true).first().map(|target| target.ip);
            for source in [POD, NODE, OUTSIDE].into_iter().chain(endpoint) {
                // An endpoint elsewhere is no pod of this node: its packets to itself never come here.
                if endpoint == Some(source) && !targets(spec, |here| here).iter().any(|t| t.ip == source) {
                    continue;
                }
                let own = IpAddr::from([10, 96, 0, spec.number]);
                prop_assert_eq!(go(source, own, 80), expected(spec, false, source), "ClusterIP from {}", source);
                prop_assert_eq!(go(source, own, 81), BTreeSet::from([Fate::Refused]), "another port");
            }
        }
        let unallocated = IpAddr::from([10, 96, 1, 1]);
        prop_assert_eq!(go(OUTSIDE, unallocated, 80), BTreeSet::from([Fate::Dropped]));
        // Addresses that several want belong to the first by name.
        for number in 0..2 {
            let owner = |wants: &dyn Fn(&Spec) -> Option<u8>| specs.values().find(|s| wants(s) == Some(number));
            let vip = IpAddr::from([192, 0, 2, number]);
            for source in [POD, NODE, OUTSIDE] {
                let untouched = BTreeSet::from([Fate::Untouched]);
                let of_vip = owner(&|s| s.external).map(|spec| expected_of_balancer(spec, source));
                let of_port = owner(&|s| s.node_port).map(|spec| expected(spec, true, source));
                let port = 30_000 + u16::from(number);
                prop_assert_eq!(&go(source, vip, 80), of_vip.as_ref().unwrap_or(&untouched), "{} from {}", vip, source);
                prop_assert_eq!(&go(source, NODE, port), of_port.as_ref().unwrap_or(&untouched), "{} from {}", port, source);
            }
        }
    }
}
