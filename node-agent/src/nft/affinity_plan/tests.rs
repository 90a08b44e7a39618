use super::*;
use crate::nft::layout::Pool;
use crate::nft::plan::{Plan, Planner};
use service_model::{AffinityScope::Port, AffinityScope::Service, IpFamily, ObjectName, Protocol};

/// The third and the seventh number that it yields are the same: one in some ten millions does so early.
const UNLUCKY: u64 = 191_291_920;

/// A Service's ports, each with its endpoints: the last part of the address, and the port.
type Ports<'a> = &'a [(&'a str, &'a [(u8, u16)])];

/// Its endpoints of the last kind are on this node too, which the second pool is for.
fn desired(name: &str, scope: AffinityScope, ports: Ports<'_>) -> DesiredService {
    let mut desired = DesiredService { affinity_scope: scope, ..DesiredService::default() };
    for (port, endpoints) in ports {
        let target = |(last, port): &(u8, u16)| Target { ip: [10, 244, 0, *last].into(), port: *port };
        let mut targets: Vec<Target> = endpoints.iter().map(target).collect();
        targets.sort_unstable();
        for (pool, targets) in [(Pool::Cluster, targets.clone()), (Pool::Local, targets.split_off(1))] {
            let key = AffinityKey { family: IpFamily::V4, pool, name: format!("ns/{name}/{port}").into() };
            let protocol = if port.ends_with("udp") { Protocol::Udp } else { Protocol::Tcp };
            if !targets.is_empty() {
                desired.affinities.insert(key, DesiredAffinity { protocol, timeout: 60, targets });
            }
        }
    }
    desired
}

/// The agent and what it has programmed.
struct Programmed {
    planner: Planner,
    mirror: Mirror,
}

impl Programmed {
    fn new() -> Self {
        Self { planner: Planner::new(1), mirror: Mirror::default() }
    }

    fn plan(&mut self, scope: AffinityScope, ports: Ports<'_>) -> Plan {
        let names = BTreeSet::from([ObjectName::new("ns", "web")]);
        self.planner.plan(&names, |_| desired("web", scope, ports), &self.mirror)
    }

    /// The number of an endpoint in a port, once these are programmed.
    fn program(&mut self, scope: AffinityScope, ports: Ports<'_>) -> impl Fn(&str, u8, u16) -> u32 + use<> {
        let plan = self.plan(scope, ports);
        plan.now.iter().chain(&plan.all_later()).for_each(|step| self.mirror.follow(step));
        assert!(self.plan(scope, ports).is_empty(), "it settles");
        self.planner = Planner::new(2);
        assert!(self.plan(scope, ports).is_empty(), "a restart reads what is there");
        let mut numbers = BTreeMap::new();
        for (key, chain) in self.mirror.affinities.chains() {
            let of_chain: BTreeSet<u32> = chain.endpoints.iter().map(|e| e.number).collect();
            assert_eq!(of_chain.len(), chain.endpoints.len(), "{key} has a number twice");
            for NumberedTarget { target, number } in &chain.endpoints {
                let before = numbers.insert((key.name.to_string(), *target), *number);
                assert!(before.is_none_or(|before| before == *number), "the pools of {key} differ");
            }
        }
        move |port, last, number| {
            let target = Target { ip: [10, 244, 0, last].into(), port: number };
            numbers[&(format!("ns/web/{port}"), target)]
        }
    }
}

const TWO_PORTS: Ports<'_> =
    &[("http/tcp", &[(1, 8080), (2, 8080), (3, 8080)]), ("https/tcp", &[(1, 8443), (2, 8443), (3, 8443)])];

#[test]
fn no_two_endpoints_of_one_plan_have_the_same_number() {
    let mut numbers = Numbers::new(UNLUCKY);
    let drawn: Vec<u32> = (0..7).map(|_| numbers.draw()).collect();
    assert_eq!(drawn[2], drawn[6], "what the seed was looked for");
    let endpoints: Vec<(u8, u16)> = (0..10).map(|last| (last, 80)).collect();
    let (first, second) = endpoints.split_at(5);
    for (scope, services) in [
        (Port, vec![vec![("/tcp", &*endpoints)]]),
        (Port, vec![vec![("/tcp", first)], vec![("/tcp", second)]]),
        (Port, vec![vec![("a/tcp", first), ("b/tcp", first)]]),
        (Service, vec![vec![("a/tcp", first), ("b/tcp", first)], vec![("a/tcp", second)]]),
    ] {
        let (mut numbers, mirror) = (Numbers::new(UNLUCKY), Mirror::default());
        let mut numbering = Numbering::new(&mut numbers);
        let mut given = BTreeSet::new();
        for (nth, ports) in services.iter().enumerate() {
            let name = format!("svc-{nth}");
            let desired = desired(&name, scope, ports);
            let chains = numbering.chains(&ObjectName::new("ns", &name), &desired, &mirror);
            given.extend(chains.values().flat_map(|chain| &chain.endpoints).map(|e| e.number));
        }
        assert_eq!(given.len(), 10, "{given:?}");
    }
}

#[test]
fn each_port_numbers_its_endpoints_by_itself_unless_it_is_asked_for_more() {
    let number = Programmed::new().program(Port, TWO_PORTS);
    for last in 1..=3 {
        assert_ne!(number("http/tcp", last, 8080), number("https/tcp", last, 8443));
    }
    // Which other Services have, is no matter: one has a name that begins as the other's.
    let mut programmed = Programmed::new();
    let names = ["web", "web-2"].map(|name| ObjectName::new("ns", name)).into();
    let of = |name: &ServiceName| desired(name.name(), Service, TWO_PORTS);
    let plan = programmed.planner.plan(&names, of, &programmed.mirror);
    plan.now.iter().for_each(|step| programmed.mirror.follow(step));
    let all = |name| known(&ObjectName::new("ns", name), &programmed.mirror);
    let (web, other) = (all("web"), all("web-2"));
    assert_eq!((web.len(), other.len()), (6, 6));
    assert!(web.values().all(|number| other.values().all(|other| number != other)));
}

#[test]
fn ports_of_all_protocols_know_a_pod_by_one_number_if_affinity_is_the_services() {
    let ports: Ports<'_> = &[
        ("dns-tcp/tcp", &[(1, 53), (2, 53)]),
        ("dns/udp", &[(1, 53), (2, 53)]),
        ("metrics/tcp", &[(1, 9153), (3, 9153)]),
    ];
    let number = Programmed::new().program(Service, ports);
    let [one, two] = [1, 2].map(|last| number("dns/udp", last, 53));
    assert_eq!([number("dns-tcp/tcp", 1, 53), number("metrics/tcp", 1, 9153)], [one; 2]);
    assert_eq!(number("dns-tcp/tcp", 2, 53), two);
    let three = number("metrics/tcp", 3, 9153);
    assert!(one != two && two != three && one != three);
}

#[test]
fn a_pod_has_its_number_while_any_port_has_the_pod_and_another_when_it_comes_back() {
    let mut programmed = Programmed::new();
    let before = programmed.program(Service, TWO_PORTS);
    let one = before("http/tcp", 1, 8080);
    let without: Ports<'_> = &[("http/tcp", &[(2, 8080)]), TWO_PORTS[1]];
    let number = programmed.program(Service, without);
    assert_eq!(number("https/tcp", 1, 8443), one, "it left the other port");
    let number = programmed.program(Service, TWO_PORTS);
    assert_eq!(number("http/tcp", 1, 8080), one, "and came back, while this one had it");
    let moved: Ports<'_> = &[("http/tcp", &[(2, 8080)]), ("quic/udp", &[(1, 8443), (2, 8443)])];
    let number = programmed.program(Service, moved);
    assert_eq!(number("quic/udp", 1, 8443), one, "it was never gone");
    let gone: Ports<'_> = &[("http/tcp", &[(2, 8080)]), ("quic/udp", &[(2, 8443)])];
    let number = programmed.program(Service, gone);
    assert_eq!(number("quic/udp", 2, 8443), before("http/tcp", 2, 8080));
    let number = programmed.program(Service, TWO_PORTS);
    assert_eq!(number("http/tcp", 1, 8080), number("https/tcp", 1, 8443));
    assert_ne!(number("http/tcp", 1, 8080), one);
}

#[test]
fn ports_that_are_to_agree_take_the_number_of_the_first_and_part_again_if_they_need_not() {
    let mut programmed = Programmed::new();
    let mixed: Ports<'_> = &[("http/tcp", &[(1, 8080), (2, 8080)]), ("https/tcp", &[(2, 8443), (3, 8443)])];
    let before = programmed.program(Port, mixed);
    let number = programmed.program(Service, mixed);
    assert_eq!(number("http/tcp", 1, 8080), before("http/tcp", 1, 8080));
    assert_eq!(number("http/tcp", 2, 8080), before("http/tcp", 2, 8080));
    assert_eq!(number("https/tcp", 2, 8443), before("http/tcp", 2, 8080), "the first wins");
    assert_eq!(number("https/tcp", 3, 8443), before("https/tcp", 3, 8443), "which does not have this one");
    let after = programmed.program(Port, mixed);
    for (port, last, target) in [("http/tcp", 1, 8080), ("http/tcp", 2, 8080), ("https/tcp", 3, 8443)] {
        assert_eq!(after(port, last, target), number(port, last, target), "{port} {last}");
    }
    let parted = after("https/tcp", 2, 8443);
    assert!(parted != after("http/tcp", 2, 8080) && parted != before("https/tcp", 2, 8443));
    // The pod leaves the first port in the same commit: the clients of the one that stays stay.
    let left: Ports<'_> = &[("http/tcp", &[(1, 8080)]), ("https/tcp", &[(2, 8443), (3, 8443)])];
    assert_eq!(programmed.program(Service, left)("https/tcp", 2, 8443), parted);
}

/// As slices that somebody wrote by hand can have it.
#[test]
fn of_two_endpoints_of_a_pod_in_one_port_one_has_the_pods_number() {
    let mut programmed = Programmed::new();
    let two: Ports<'_> = &[("http/tcp", &[(1, 8080), (1, 8081)]), ("https/tcp", &[(1, 8443)])];
    let number = programmed.program(Service, two);
    let pod = number("https/tcp", 1, 8443);
    assert_eq!(number("http/tcp", 1, 8080), pod, "the first");
    let own = number("http/tcp", 1, 8081);
    assert_ne!(own, pod);
    // It is the only one there now: whoever comes by the other port has to find the pod.
    let second: Ports<'_> = &[("http/tcp", &[(1, 8081)]), ("https/tcp", &[(1, 8443)])];
    let number = programmed.program(Service, second);
    assert_eq!([number("http/tcp", 1, 8081), number("https/tcp", 1, 8443)], [pod; 2]);
    let number = programmed.program(Service, two);
    assert_eq!([number("http/tcp", 1, 8081), number("https/tcp", 1, 8443)], [pod; 2], "it keeps it");
    assert!(![pod, own].contains(&number("http/tcp", 1, 8080)), "who comes inherits nobody");

    // Where no other port has the pod, there is nothing to agree with.
    let mut programmed = Programmed::new();
    let alone = |ports: &'static [(u8, u16)]| [("http/tcp", ports)];
    let before = programmed.program(Service, &alone(&[(1, 8080), (1, 8081)]));
    let number = programmed.program(Service, &alone(&[(1, 8081)]));
    assert_eq!(number("http/tcp", 1, 8081), before("http/tcp", 1, 8081));
}

#[test]
fn families_share_no_number() {
    let mut want = desired("web", Service, TWO_PORTS);
    for (key, chain) in want.affinities.clone() {
        let of_v6 = |target: &Target| Target { ip: "fd00::1".parse().unwrap(), ..*target };
        let targets = chain.targets.iter().take(1).map(of_v6).collect();
        let key = AffinityKey { family: IpFamily::V6, ..key };
        want.affinities.insert(key, DesiredAffinity { targets, ..chain });
    }
    let mut numbers = Numbers::new(1);
    let name = ObjectName::new("ns", "web");
    let chains = Numbering::new(&mut numbers).chains(&name, &want, &Mirror::default());
    let of = |family| -> BTreeSet<u32> {
        let chains = chains.iter().filter(|(key, _)| key.family == family);
        chains.flat_map(|(_, chain)| &chain.endpoints).map(|e| e.number).collect()
    };
    assert_eq!((of(IpFamily::V4).len(), of(IpFamily::V6).len()), (3, 1));
    assert!(of(IpFamily::V4).is_disjoint(&of(IpFamily::V6)));
}
