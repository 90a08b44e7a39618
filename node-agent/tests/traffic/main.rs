//! Real packets through what the engine programs, between network namespaces.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod affinity;
mod agents;
mod conntrack;
mod denied;
mod full_table;
mod hosts;
mod local;
mod loopback;
mod others;
mod sctp;
mod talk;
mod worlds;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Instant;

use hosts::{Ground, Host};
use node_agent::config::Config;
use node_agent::engine::Engine;
use node_agent::local::InterfaceName;
use node_agent::nft::evaluate::{Fate, Packet, fates};
use node_agent::nft::kernel::Kernel;
use node_agent::nft::ruleset::Ruleset;
use service_model::{IpFamily, Protocol, TrafficPolicy, World};
use talk::{Reply, Server, ask, ask_in_vain};
use worlds::{Shop, config};

/// Enough tries that a fair choice between two misses one of them once in 2^39.
const TRIES: usize = 40;

/// Programs a fresh node with one Service.
fn program(ground: &Ground, shop: &Shop<'_>) -> Engine {
    program_as(ground, shop, config())
}

fn program_as(ground: &Ground, shop: &Shop<'_>, config: Config) -> Engine {
    let mut engine = ground.node.run(|| Engine::new(config).unwrap());
    reprogram(ground, &mut engine, shop);
    engine
}

fn reprogram(ground: &Ground, engine: &mut Engine, shop: &Shop<'_>) {
    let mut world = World::default();
    for change in shop.changes(&ground.node) {
        world.apply(change);
    }
    engine.mark(world.take_dirty().services);
    ground.node.run(|| engine.sync(&world, Instant::now())).unwrap();
}

fn to(ip: impl Into<IpAddr>, port: u16) -> SocketAddr {
    SocketAddr::new(ip.into(), port)
}

/// What the evaluator says of the kernel's present state: which pods are reached, and whether
/// all, none or some of the connections are masqueraded.
fn foretold(ground: &Ground, client: &Host, protocol: Protocol, to: SocketAddr) -> BTreeSet<Fate> {
    let interface = (client.name != "node").then(|| client.name.parse().unwrap());
    foretold_by(ground, &config(), client, interface, protocol, to)
}

fn foretold_by(
    ground: &Ground,
    config: &Config,
    client: &Host,
    interface: Option<InterfaceName>,
    protocol: Protocol,
    to: SocketAddr,
) -> BTreeSet<Fate> {
    let rulesets = Ruleset::each(config);
    let mirror = ground.node.run(|| Kernel::open().unwrap().observe(&rulesets).unwrap());
    let ruleset = rulesets.iter().find(|r| r.family == IpFamily::of(to.ip())).unwrap();
    let source = client.address(to.ip());
    let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let host = loopback.into_iter().chain([ground.node.v4.into(), ground.node.v6.into()]).collect();
    let packet = Packet { source, destination: to.ip(), protocol, port: to.port(), interface };
    fates(ruleset, &mirror, &host, packet)
}

/// Which pods answer, and as whom they see the client: as the evaluator foretells.
fn answers(
    ground: &Ground,
    client: &Host,
    protocol: Protocol,
    address: SocketAddr,
) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let (pods, seen) = asked(client, protocol, address);
    let (mut there, mut as_itself) = (BTreeSet::new(), BTreeSet::new());
    for fate in foretold(ground, client, protocol, address) {
        let Fate::Endpoint { target, masqueraded } = fate else { panic!("{address}/{protocol}: {fate:?}") };
        let pod = ground.pods.iter().find(|pod| pod.address(target.ip) == target.ip).unwrap();
        there.insert(pod.name.to_owned());
        as_itself.insert(!masqueraded);
    }
    let what = format!("{} to {address}/{protocol}", client.name);
    assert_eq!(pods, there, "{what}");
    if client.name != "node" {
        let own = client.address(address.ip());
        assert_eq!(
            seen.iter().map(|ip| *ip == own).collect::<BTreeSet<_>>(),
            as_itself,
            "{what} as {seen:?}"
        );
    }
    (pods, seen)
}

fn asked(client: &Host, protocol: Protocol, address: SocketAddr) -> (BTreeSet<String>, BTreeSet<IpAddr>) {
    let (mut pods, mut seen) = (BTreeSet::new(), BTreeSet::new());
    for _ in 0..TRIES {
        match ask(client, protocol, address) {
            Reply::From { pod, seen: client } => {
                pods.insert(pod);
                seen.insert(client);
            }
            other => panic!("{} to {address}/{protocol}: {other:?}", client.name),
        }
    }
    (pods, seen)
}

fn names(hosts: &[&Host]) -> BTreeSet<String> {
    hosts.iter().map(|host| host.name.to_owned()).collect()
}

const BOTH: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[test]
fn a_cluster_ip_reaches_every_endpoint_over_either_protocol_and_family() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let shop = Shop { endpoints: vec![a, b], ..Shop::default() };
    let _engine = program(&ground, &shop);
    for protocol in BOTH {
        for vip in shop.cluster_ips() {
            let (pods, seen) = answers(&ground, c, protocol, to(vip, 80));
            assert_eq!(pods, names(&[a, b]), "{vip}/{protocol}");
            assert_eq!(seen, BTreeSet::from([c.address(vip)]), "a pod's address is kept: {vip}/{protocol}");

            assert_eq!(
                answers(&ground, &ground.node, protocol, to(vip, 80)).0,
                names(&[a, b]),
                "from the node itself"
            );

            let (pods, seen) = answers(&ground, &ground.outside, protocol, to(vip, 80));
            assert_eq!(pods, names(&[a, b]), "from outside");
            assert!(!seen.contains(&ground.outside.address(vip)), "from outside it is masqueraded: {seen:?}");
        }
    }
}

#[test]
fn a_pod_reaches_itself_through_its_own_service() {
    let ground = Ground::new();
    let [a, ..] = &ground.pods;
    let _server = Server::start(a);
    let shop = Shop { endpoints: vec![a], ..Shop::default() };
    let _engine = program(&ground, &shop);
    for protocol in BOTH {
        for vip in shop.cluster_ips() {
            let (pods, seen) = answers(&ground, a, protocol, to(vip, 80));
            assert_eq!(pods, names(&[a]));
            assert!(!seen.contains(&a.address(vip)), "{vip}/{protocol} sees {seen:?}");
        }
    }
}

#[test]
fn node_ports_external_and_load_balancer_addresses_serve_clients_outside() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let shop = Shop { endpoints: vec![a, b], exposed: true, ..Shop::default() };
    let _engine = program(&ground, &shop);
    for protocol in BOTH {
        for ip in shop.cluster_ips() {
            let node = ground.node.address(ip);
            let frontends = shop.external_ips(ip).into_iter().map(|vip| to(vip, 80)).chain([to(node, 30080)]);
            for frontend in frontends {
                for client in [&ground.outside, c, &ground.node] {
                    let (pods, seen) = answers(&ground, client, protocol, frontend);
                    assert_eq!(pods, names(&[a, b]), "{} to {frontend}/{protocol}", client.name);
                    if client.name == "outside" {
                        assert!(!seen.contains(&client.address(ip)), "{frontend}/{protocol} is masqueraded");
                    }
                }
            }
        }
    }
}

#[test]
fn without_endpoints_a_connection_is_refused_at_once() {
    let ground = Ground::new();
    let [a, _, c] = &ground.pods;
    let shop = Shop { exposed: true, ..Shop::default() };
    let mut engine = program(&ground, &shop);
    for protocol in BOTH {
        for ip in shop.cluster_ips() {
            let node = ground.node.address(ip);
            for client in [c, &ground.outside, &ground.node] {
                for frontend in [to(ip, 80), to(shop.external_ips(ip)[0], 80), to(node, 30080)] {
                    let reply = ask(client, protocol, frontend);
                    assert_eq!(reply, Reply::Refused, "{} to {frontend}/{protocol}", client.name);
                    assert_eq!(
                        foretold(&ground, client, protocol, frontend),
                        BTreeSet::from([Fate::Refused])
                    );
                }
            }
        }
    }
    let _server = Server::start(a);
    reprogram(&ground, &mut engine, &Shop { endpoints: vec![a], exposed: true, ..Shop::default() });
    assert_eq!(
        answers(&ground, c, Protocol::Tcp, to(shop.cluster_ips()[0], 80)).0,
        names(&[a]),
        "once there is one"
    );
}

#[test]
fn external_policy_local_keeps_the_client_and_stays_on_the_node() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let external_policy = TrafficPolicy::Local;
    // b's Node is another one, as far as the EndpointSlice says.
    let shop =
        Shop { endpoints: vec![a, b], elsewhere: vec![b], exposed: true, external_policy, ..Shop::default() };
    let mut engine = program(&ground, &shop);
    for protocol in BOTH {
        for ip in shop.cluster_ips() {
            for frontend in [to(shop.external_ips(ip)[0], 80), to(ground.node.address(ip), 30080)] {
                let (pods, seen) = answers(&ground, &ground.outside, protocol, frontend);
                assert_eq!(pods, names(&[a]), "outside to {frontend}/{protocol}");
                assert_eq!(seen, BTreeSet::from([ground.outside.address(ip)]), "{frontend}/{protocol}");
                for inside in [c, &ground.node] {
                    let pods = answers(&ground, inside, protocol, frontend).0;
                    assert_eq!(pods, names(&[a, b]), "{} to {frontend}/{protocol}", inside.name);
                }
            }
        }
    }
    reprogram(&ground, &mut engine, &Shop { endpoints: vec![b], ..shop.clone() });
    for frontend in [to(shop.external_ips(shop.cluster_ips()[0])[0], 80), to(ground.node.v4, 30080)] {
        let reply = ask_in_vain(&ground.outside, Protocol::Tcp, frontend);
        assert_eq!(reply, Reply::Silence, "no endpoint here, but elsewhere: {frontend}");
        let fates = foretold(&ground, &ground.outside, Protocol::Tcp, frontend);
        assert_eq!(fates, BTreeSet::from([Fate::Dropped]));
        assert_eq!(
            answers(&ground, c, Protocol::Tcp, frontend).0,
            names(&[b]),
            "a pod goes where there is one"
        );
    }
}

#[test]
fn a_removed_endpoint_gets_no_new_connection_and_established_ones_go_on() {
    use std::io::{Read, Write};
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let echo = a.run(|| std::net::TcpListener::bind((a.v4, 9090)).unwrap());
    let shop = Shop { endpoints: vec![a, b], ..Shop::default() };
    let mut engine = program(&ground, &shop);
    let vip = shop.cluster_ips()[0];
    let echoing = Shop { endpoints: vec![a], target_port: 9090, ..Shop::default() };
    reprogram(&ground, &mut engine, &echoing);
    let mut client = c.run(|| std::net::TcpStream::connect(to(vip, 80)).unwrap());
    let (mut server, _) = echo.accept().unwrap();

    reprogram(&ground, &mut engine, &Shop { endpoints: vec![b], ..Shop::default() });
    client.write_all(b"still there?").unwrap();
    let mut heard = [0; 12];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still there?");
    assert_eq!(answers(&ground, c, Protocol::Tcp, to(vip, 80)).0, names(&[b]));
}
