//! What the rules take from the Node object and the host, over the real kernel: changes apply in
//! place.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::time::Instant;

use node_agent::config::Config;
use node_agent::engine::Engine;
use node_agent::local::DetectLocal;
use service_model::{Change, Kind, Node, NodeAddress, NodeAddressKind, Object, ServiceCidr};
use support::kernel::{in_namespace, ip, nft};
use support::*;

/// A Service, and the Node with these podCIDRs.
fn world(agent: &mut Agent, pod_cidrs: &[&str]) {
    let mut node = Node::new("here".into());
    node.pod_cidrs = pod_cidrs.iter().map(|cidr| cidr.parse().unwrap()).collect();
    agent.world.apply(Change::Apply(Object::Node(node)));
}

fn sync(engine: &mut Engine, agent: &mut Agent) -> usize {
    let dirty = agent.world.take_dirty();
    if !dirty.nodes.is_empty() {
        engine.mark_node();
    }
    engine.mark(dirty.services);
    engine.sync(&agent.world, Instant::now()).unwrap().steps
}

fn agent_with_a_service() -> Agent {
    let mut agent = Agent::new();
    let endpoints = vec![(1, true), (2, false)];
    let spec = Spec {
        number: 1,
        external: Some(0),
        node_port: Some(0),
        local_policy: true,
        endpoints,
        ..Spec::default()
    };
    agent.happen(&Happening::Apply(spec));
    agent
}

fn chain(family: &str, name: &str) -> String {
    nft(&["list", "chain", family, "fairlead", name])
}

#[test]
fn interfaces_are_listed_as_nft_writes_them() {
    in_namespace(|| {
        for (detect_local, listed) in [
            (DetectLocal::InterfaceNamePrefix("veth".parse().unwrap()), "\"veth*\""),
            (DetectLocal::InterfaceNamePrefix("fifteen-bytes-1".parse().unwrap()), "\"fifteen-bytes-1*\""),
            (DetectLocal::BridgeInterface("cni0".parse().unwrap()), "\"cni0\""),
        ] {
            let config = Config { detect_local, ..config() };
            let mut agent = agent_with_a_service();
            sync(&mut Engine::new(config.clone()).unwrap(), &mut agent);
            for family in ["ip", "ip6"] {
                let (services, local) = (chain(family, "services"), chain(family, "ext-local"));
                assert!(services.contains(&format!("iifname != {listed} meta mark set")), "{services}");
                assert!(local.contains(&format!("iifname {listed} goto spread")), "{local}");
            }
            agent.world.mark_all_services();
            let again = sync(&mut Engine::new(config).unwrap(), &mut agent);
            assert_eq!(again, 0, "a restart reads the rules back as they are");
        }
    });
}

#[test]
fn a_changed_pod_cidr_is_taken_in_place() {
    in_namespace(|| {
        let mut agent = agent_with_a_service();
        let mut engine = Engine::new(Config { detect_local: DetectLocal::NodeCidr, ..config() }).unwrap();
        world(&mut agent, &["10.244.1.0/24"]);
        sync(&mut engine, &mut agent);
        assert!(chain("ip", "services").contains("ip saddr != 10.244.1.0/24 meta mark set"));
        assert!(!chain("ip6", "services").contains("meta mark set"), "{}", chain("ip6", "services"));

        world(&mut agent, &["fd00:10:244:1::/64", "10.244.7.0/24"]);
        assert_eq!(sync(&mut engine, &mut agent), 6, "three chains a family, and no element");
        assert!(chain("ip", "services").contains("ip saddr != 10.244.7.0/24 meta mark set"));
        assert!(chain("ip", "ext-local").contains("ip saddr 10.244.7.0/24 goto spread"));
        assert!(chain("ip6", "services").contains("ip6 saddr != fd00:10:244:1::/64 meta mark set"));

        world(&mut agent, &[]);
        assert_eq!(sync(&mut engine, &mut agent), 0, "those that were known go on");
    });
}

/// The API server has ServiceCIDRs of these networks.
fn service_cidrs(agent: &mut Agent, cidrs: &[(&str, &[&str])]) {
    agent.world.apply(Change::ListStarted(Kind::ServiceCidr));
    for (name, networks) in cidrs {
        let networks = networks.iter().map(|network| network.parse().unwrap()).collect();
        agent.world.apply(Change::Apply(Object::ServiceCidr(ServiceCidr { name: (*name).into(), networks })));
    }
    agent.world.apply(Change::ListEnded(Kind::ServiceCidr));
}

#[test]
fn a_service_cidr_that_comes_or_goes_is_taken_in_place_and_listed_by_nft() {
    in_namespace(|| {
        let mut agent = agent_with_a_service();
        let mut engine = Engine::new(Config { service_networks: BTreeSet::new(), ..config() }).unwrap();
        let sync = |engine: &mut Engine, agent: &mut Agent| {
            if agent.world.take_dirty().service_networks {
                engine.mark_node();
            }
            agent.world.mark_all_services();
            sync(engine, agent)
        };
        sync(&mut engine, &mut agent);
        let drops = |family: &str| {
            let listed = chain(family, "filter-forward");
            assert_eq!(
                listed,
                chain(family, "filter-output")
                    .replace("filter-output", "filter-forward")
                    .replace("hook output", "hook forward")
            );
            let lines =
                listed.lines().map(str::trim).filter(|line| line.ends_with("goto drop-unallocated-address"));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(drops("ip"), [""; 0], "none is known");
        assert!(chain("ip", "filter-forward").contains("ip daddr @cluster-ips goto reject-undefined-port"));
        let cluster_ips = nft(&["list", "set", "ip", "fairlead", "cluster-ips"]);
        assert!(cluster_ips.contains("10.96.0.1"), "{cluster_ips}");

        let first: (&str, &[&str]) = ("kubernetes", &["10.96.0.0/16", "fd00:96::/112"]);
        service_cidrs(&mut agent, &[first]);
        assert_eq!(sync(&mut engine, &mut agent), 4, "two chains a family, and no element");
        let of = |network: &str| format!("ct state new ip daddr {network} goto drop-unallocated-address");
        assert_eq!(drops("ip"), [of("10.96.0.0/16")]);
        assert_eq!(drops("ip6"), ["ct state new ip6 daddr fd00:96::/112 goto drop-unallocated-address"]);

        service_cidrs(&mut agent, &[first, ("more", &["10.112.0.0/24"])]);
        assert_eq!(sync(&mut engine, &mut agent), 2);
        assert_eq!(drops("ip"), [of("10.96.0.0/16"), of("10.112.0.0/24")]);

        service_cidrs(&mut agent, &[("more", &["10.112.0.0/24"])]);
        sync(&mut engine, &mut agent);
        assert_eq!((drops("ip"), drops("ip6")), (vec![of("10.112.0.0/24")], Vec::new()));
        let again = Engine::new(config()).unwrap().sync(&agent.world, Instant::now()).unwrap();
        assert_eq!(again.steps, 0, "a restart reads the rules back as they are");
    });
}

/// Gives the Node these InternalIPs.
fn node(agent: &mut Agent, addresses: &[&str]) {
    let mut node = Node::new("here".into());
    let internal = |ip: &&str| NodeAddress { kind: NodeAddressKind::Internal, ip: ip.parse().unwrap() };
    node.addresses = addresses.iter().map(internal).collect();
    agent.world.apply(Change::Apply(Object::Node(node)));
}

fn answering(family: &str) -> Vec<String> {
    let listed = nft(&["list", "set", family, "fairlead", "nodeport-ips"]);
    let elements = listed.split_once("elements = {").map(|(_, rest)| rest.split('}').next().unwrap_or(""));
    let mut ips: Vec<String> = elements
        .unwrap_or("")
        .split(',')
        .map(|ip| ip.trim().to_owned())
        .filter(|ip| !ip.is_empty())
        .collect();
    ips.sort_unstable();
    ips
}

#[test]
fn the_nodes_own_addresses_answer_where_the_host_has_them_and_follow_the_node() {
    in_namespace(|| {
        ip("addr add 172.30.0.12/32 dev lo");
        let mut agent = agent_with_a_service();
        let mut engine = Engine::new(config()).unwrap();
        node(&mut agent, &["172.30.0.11", "fd00:172:30::11"]);
        sync(&mut engine, &mut agent);
        assert_eq!(answering("ip"), ["172.30.0.11"]);
        assert_eq!(answering("ip6"), [""; 0], "the host does not have it");
        assert!(!chain("ip6", "nat-prerouting").contains("fib daddr type local"));

        ip("addr add fd00:172:30::11/128 dev lo");
        engine.mark_host();
        assert_eq!(sync(&mut engine, &mut agent), 1);
        assert_eq!(answering("ip6"), ["fd00:172:30::11"]);

        node(&mut agent, &["172.30.0.12"]);
        sync(&mut engine, &mut agent);
        assert_eq!(answering("ip"), ["172.30.0.12"]);
        assert_eq!(answering("ip6"), [""; 0]);
        let all = chain("ip6", "nat-prerouting");
        assert!(all.contains("fib daddr type local"), "a family without an address answers on all: {all}");
    });
}
