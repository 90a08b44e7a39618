//! Session affinity, as many clients meet it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::Command;
use std::time::{Duration, Instant};

use nfnetlink::{Dumped, Family, Socket, TableRef};
use node_agent::engine::Engine;
use node_agent::nft::evaluate::{Fate, Packet, fates_of_kept};
use node_agent::nft::kernel::Kernel;
use node_agent::nft::ruleset::Ruleset;
use service_model::{AffinityScope, IpFamily, Protocol, TrafficPolicy};

use crate::hosts::{Ground, Host};
use crate::talk::{Server, ask_from};
use crate::worlds::{Shop, config};
use crate::{names, program, reprogram, to};

/// More than the hundred that xt_recent would hold.
const CLIENTS: u8 = 160;
const CONNECTIONS: usize = 20;
const HOUR: Duration = Duration::from_secs(3600);

/// Clients outside, and the frontends of a Service that they ask in turn.
struct Crowd {
    clients: Vec<IpAddr>,
    frontends: Vec<SocketAddr>,
}

impl Crowd {
    fn new(ground: &Ground, shop: &Shop<'_>, family: IpFamily) -> Self {
        let [v4, v6] = shop.cluster_ips();
        let (cluster_ip, network) = match family {
            IpFamily::V4 => (v4, "172.30.1.0/24"),
            IpFamily::V6 => (v6, "fd00:172:30:1::/64"),
        };
        let client = |last: u8| match family {
            IpFamily::V4 => IpAddr::from(Ipv4Addr::new(172, 30, 1, last)),
            IpFamily::V6 => Ipv6Addr::new(0xfd00, 0x172, 0x30, 1, 0, 0, 0, last.into()).into(),
        };
        let clients: Vec<IpAddr> = (1..=CLIENTS).map(client).collect();
        ground.outside.add_addresses(network.parse().unwrap(), &clients, &ground.node);
        let external = shop.external_ips(cluster_ip).map(|ip| to(ip, 80));
        let node_port = to(ground.node.address(cluster_ip), 30080);
        Self { clients, frontends: [to(cluster_ip, 80), node_port].into_iter().chain(external).collect() }
    }

    /// Where each client's connections end, whichever frontend it asks.
    fn connect(&self, ground: &Ground, connections: usize) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let of = |client: &IpAddr| {
            self.frontends.iter().cycle().take(connections).map(|to| (*client, *to)).collect()
        };
        let calls: Vec<(IpAddr, SocketAddr)> =
            self.clients.iter().flat_map(|c| -> Vec<_> { of(c) }).collect();
        let mut reached: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for ((client, _), pod) in calls.iter().zip(ask_from(&ground.outside, Protocol::Tcp, &calls)) {
            reached.entry(*client).or_default().insert(pod);
        }
        reached
    }

    /// As [`Crowd::connect`], where each stays with one.
    fn stay(&self, ground: &Ground) -> BTreeMap<IpAddr, String> {
        let one = |(client, pods): (IpAddr, BTreeSet<String>)| {
            assert_eq!(pods.len(), 1, "{client} was at {pods:?}");
            (client, pods.into_iter().next().unwrap())
        };
        self.connect(ground, CONNECTIONS).into_iter().map(one).collect()
    }
}

/// A Service of pods that serve, with all kinds of frontends.
fn sticky<'a>(endpoints: &[&'a Host]) -> Shop<'a> {
    Shop { endpoints: endpoints.to_vec(), exposed: true, affinity: Some(HOUR), ..Shop::default() }
}

/// The numbers under which the kernel remembers clients.
fn remembered(ground: &Ground, family: Family) -> BTreeMap<IpAddr, BTreeSet<u32>> {
    let mut held: BTreeMap<IpAddr, BTreeSet<u32>> = BTreeMap::new();
    let table = TableRef::new(family, "fairlead");
    let mut note = |dumped: Dumped<'_>| match dumped {
        Dumped::Restart => held.clear(),
        Dumped::Other => panic!("packets write none"),
        Dumped::Element(element) => {
            let (ip, number) = element.key.split_at(element.key.len() - 4);
            let ip = match family {
                Family::Ip => IpAddr::from(<[u8; 4]>::try_from(ip).unwrap()),
                _ => <[u8; 16]>::try_from(ip).unwrap().into(),
            };
            held.entry(ip).or_default().insert(u32::from_ne_bytes(number.try_into().unwrap()));
        }
    };
    ground.node.run(|| Socket::open().unwrap().elements(table, "affinity-clients", &mut note)).unwrap();
    held
}

/// The evaluator knows from what the kernel remembers where each client goes.
fn assert_foretold(ground: &Ground, crowd: &Crowd, at: &BTreeMap<IpAddr, String>) {
    let rulesets = Ruleset::each(&config());
    let mirror = ground.node.run(|| Kernel::open().unwrap().observe(&rulesets).unwrap());
    let family = IpFamily::of(crowd.clients[0]);
    let [v4, v6] = <[Ruleset; 2]>::try_from(rulesets).expect("both families are served");
    let (ruleset, held) = match family {
        IpFamily::V4 => (v4, remembered(ground, Family::Ip)),
        IpFamily::V6 => (v6, remembered(ground, Family::Ip6)),
    };
    let host = BTreeSet::from([ground.node.v4.into(), ground.node.v6.into()]);
    for (client, pod) in at {
        for frontend in &crowd.frontends {
            let packet = Packet {
                source: *client,
                destination: frontend.ip(),
                protocol: Protocol::Tcp,
                port: frontend.port(),
                interface: None,
            };
            let fates = fates_of_kept(&ruleset, &mirror, &host, packet, &held[client]);
            let ips = fates.iter().map(|fate| match fate {
                Fate::Endpoint { target, .. } => target.ip,
                other => panic!("{packet:?}: {other:?}"),
            });
            let pod = ground.pods.iter().find(|host| host.name == pod).unwrap().address(*client);
            assert_eq!(ips.collect::<Vec<_>>(), [pod], "{packet:?}");
        }
    }
}

fn pods_of(at: &BTreeMap<IpAddr, String>) -> BTreeSet<String> {
    at.values().cloned().collect()
}

const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

#[test]
fn clients_stay_with_their_endpoint_whichever_address_they_ask() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b, c].map(Server::start);
    let mut engine = program(&ground, &sticky(&[a, b, c]));
    let crowds = FAMILIES.map(|family| Crowd::new(&ground, &sticky(&[]), family));
    let first = crowds.each_ref().map(|crowd| crowd.stay(&ground));
    for (crowd, at) in crowds.iter().zip(&first) {
        assert_eq!(pods_of(at), names(&[a, b, c]), "all of them have clients");
        assert_foretold(&ground, crowd, at);
    }

    reprogram(&ground, &mut engine, &sticky(&[a, c]));
    let second = crowds.each_ref().map(|crowd| crowd.stay(&ground));
    for (before, after) in first.iter().zip(&second) {
        let stayed = |(client, pod): &(&IpAddr, &String)| *pod == "pod-b" || after[*client] == **pod;
        assert!(before.iter().all(|at| stayed(&at)), "who was not at pod-b stays");
        let new: BTreeSet<&String> =
            before.iter().filter(|(_, pod)| *pod == "pod-b").map(|(client, _)| &after[client]).collect();
        assert_eq!(new.len(), 2, "its clients are spread over the others: {new:?}");
    }

    // It serves again: those that it had before have gone elsewhere.
    reprogram(&ground, &mut engine, &sticky(&[a, b, c]));
    let third = crowds.each_ref().map(|crowd| crowd.stay(&ground));
    assert_eq!(third, second);

    drop(engine);
    let mut engine = ground.node.run(|| Engine::new(config()).unwrap());
    reprogram(&ground, &mut engine, &sticky(&[a, b, c]));
    let longer = Shop { affinity: Some(2 * HOUR), ..sticky(&[a, b, c]) };
    assert_eq!(crowds.each_ref().map(|crowd| crowd.stay(&ground)), second, "after a restart");
    reprogram(&ground, &mut engine, &longer);
    assert_eq!(crowds.each_ref().map(|crowd| crowd.stay(&ground)), second, "for twice as long");
}

#[test]
fn a_service_that_asks_for_it_keeps_a_client_at_one_pod_over_all_its_ports() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b, c].map(Server::start);
    let by_port = Shop { https: true, ..sticky(&[a, b, c]) };
    let whole = Shop { affinity_scope: AffinityScope::Service, ..by_port.clone() };
    let mut engine = program(&ground, &whole);
    for (family, ip) in FAMILIES.into_iter().zip(whole.cluster_ips()) {
        let crowd = Crowd::new(&ground, &whole, family);
        let at_port =
            |port| Crowd { frontends: vec![to(ip, port)], clients: crowd.clients.clone() }.stay(&ground);
        let over_udp = || {
            // A port that a client had before may be drawn again, and its flow of then would go on.
            ground.node.run(forget_flows);
            let calls: Vec<_> = crowd.clients.iter().map(|client| (*client, to(ip, 80))).collect();
            let pods = ask_from(&ground.outside, Protocol::Udp, &calls);
            crowd.clients.iter().copied().zip(pods).collect::<BTreeMap<IpAddr, String>>()
        };
        // The first connection is over TCP for one family, over UDP for the other.
        let first = if family == IpFamily::V4 { at_port(443) } else { over_udp() };
        assert_eq!(pods_of(&first), names(&[a, b, c]), "all of them have clients");
        let http = crowd.stay(&ground);
        assert_eq!((&http, &at_port(443), &over_udp()), (&first, &first, &first));
        assert_foretold(&ground, &crowd, &first);

        drop(engine);
        engine = ground.node.run(|| Engine::new(config()).unwrap());
        reprogram(&ground, &mut engine, &whole);
        assert_eq!((&at_port(80), &at_port(443), &over_udp()), (&first, &first, &first), "a restart");

        // The port whose name sorts first keeps its clients, on either way.
        reprogram(&ground, &mut engine, &by_port);
        assert_eq!(at_port(443), first);
        for (port, others) in [("http", at_port(80)), ("UDP", over_udp())] {
            let moved = others.iter().filter(|(client, pod)| first[*client] != **pod).count();
            assert!(moved > 60, "{port} has a choice of its own: {moved} of {CLIENTS}");
        }
        reprogram(&ground, &mut engine, &whole);
        assert_eq!((&at_port(80), &at_port(443), &over_udp()), (&first, &first, &first));
    }
}

#[test]
fn affinity_is_switched_on_and_off_in_place() {
    let ground = Ground::new();
    let [a, b, _] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let without = Shop { affinity: None, ..sticky(&[a, b]) };
    let mut engine = program(&ground, &without);
    let crowd = Crowd::new(&ground, &without, IpFamily::V4);
    let wander = || crowd.connect(&ground, CONNECTIONS).values().filter(|pods| pods.len() == 2).count();
    assert!(wander() > 150);
    reprogram(&ground, &mut engine, &sticky(&[a, b]));
    let at = crowd.stay(&ground);
    reprogram(&ground, &mut engine, &without);
    assert!(wander() > 150);
    reprogram(&ground, &mut engine, &sticky(&[a, b]));
    assert!(crowd.stay(&ground) != at, "who was kept before is not remembered");
}

#[test]
fn a_client_that_was_away_for_the_timeout_chooses_anew() {
    let ground = Ground::new();
    let [a, b, _] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let shop = Shop { affinity: Some(Duration::from_secs(2)), ..sticky(&[a, b]) };
    let _engine = program(&ground, &shop);
    let crowd = Crowd::new(&ground, &shop, IpFamily::V4);
    let at = crowd.stay(&ground);
    let deadline = Instant::now() + Duration::from_secs(60);
    while !remembered(&ground, Family::Ip).is_empty() {
        assert!(Instant::now() < deadline, "clients are remembered for too long");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(crowd.stay(&ground) != at);
}

#[test]
fn external_policy_local_keeps_clients_at_local_endpoints_and_pods_at_any() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let external_policy = TrafficPolicy::Local;
    let shop = Shop { elsewhere: vec![b], external_policy, ..sticky(&[a, b]) };
    let _engine = program(&ground, &shop);
    for ip in shop.cluster_ips() {
        for frontend in [to(shop.external_ips(ip)[0], 80), to(ground.node.address(ip), 30080)] {
            let from = |host: &Host| -> BTreeSet<String> {
                ask_from(host, Protocol::Tcp, &[(host.address(ip), frontend); CONNECTIONS])
                    .into_iter()
                    .collect()
            };
            assert_eq!(from(&ground.outside), names(&[a]), "{frontend}");
            assert_eq!(from(c).len(), 1, "a pod stays with one of both: {frontend}");
            assert_eq!(from(&ground.node).len(), 1, "so does the node: {frontend}");
            assert_eq!(from(a).len(), 1, "and an endpoint, perhaps with itself: {frontend}");
        }
        // Kept at the pod elsewhere through the ClusterIP, an outside client is here all the same.
        let crowd = Crowd { frontends: vec![to(ip, 80)], ..Crowd::new(&ground, &shop, IpFamily::of(ip)) };
        assert_eq!(pods_of(&crowd.stay(&ground)), names(&[a, b]));
        let crowd = Crowd { frontends: vec![to(shop.external_ips(ip)[0], 80)], ..crowd };
        assert_eq!(pods_of(&crowd.stay(&ground)), names(&[a]));
    }
}

fn forget_flows() {
    let done = Command::new("conntrack").arg("-F").output().expect("conntrack is installed: scripts/setup");
    assert!(done.status.success(), "{done:?}");
}
