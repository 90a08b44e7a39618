//! kube-proxy's verdict matrix in nftables mode, a row each, in either family: what the rules in the
//! real nf_tables, read back, do with a packet. That the evaluator which says so and the kernel agree
//! is shown by tests/differential.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use node_agent::config::Config;
use node_agent::engine::Engine;
use node_agent::host;
use node_agent::local::DetectLocal;
use node_agent::nft::evaluate::{Fate, Packet, fates};
use node_agent::nft::kernel::Kernel;
use node_agent::nft::reading::Reading;
use service_model::{
    Change, Endpoint, EndpointPort, EndpointSlice, Ingress, IpFamily, IpMode, Node, NodeAddress,
    NodeAddressKind, Object, ObjectName, Protocol, Service, ServiceCidr, ServicePort, ServiceType,
    TrafficPolicy, World,
};
use support::config;
use support::kernel::{in_namespace, ip};

/// Who sends, and what is sent to; the addresses of a family.
struct Place {
    pod: IpAddr,
    node: IpAddr,
    outside: IpAddr,
    vip: IpAddr,
    external: IpAddr,
    balancer: IpAddr,
    unallocated: IpAddr,
    /// On this node, and elsewhere.
    endpoints: [IpAddr; 2],
    /// One that holds `outside`, and one that holds the node.
    ranges: [&'static str; 2],
}

fn place(family: IpFamily) -> Place {
    let addresses = match family {
        IpFamily::V4 => [
            "10.244.9.9",
            "172.30.0.11",
            "203.0.113.5",
            "10.96.0.1",
            "192.0.2.1",
            "192.0.2.2",
            "10.96.7.7",
            "10.244.1.1",
            "10.244.2.1",
        ],
        IpFamily::V6 => [
            "fd00:10:244:9::9",
            "fd00:172:30::11",
            "2001:db8::5",
            "fd00:96::1",
            "2001:db8:1::1",
            "2001:db8:1::2",
            "fd00:96::77",
            "fd00:10:244:1::1",
            "fd00:10:244:2::1",
        ],
    };
    let [pod, node, outside, vip, external, balancer, unallocated, here, there] =
        addresses.map(|text| text.parse().unwrap());
    let ranges = match family {
        IpFamily::V4 => ["203.0.113.0/24", "172.30.0.0/24"],
        IpFamily::V6 => ["2001:db8::/48", "fd00:172:30::/64"],
    };
    Place { pod, node, outside, vip, external, balancer, unallocated, endpoints: [here, there], ranges }
}

/// A Service of every kind of address, with one endpoint here and one elsewhere, unless the row says
/// otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Traits {
    here: bool,
    there: bool,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    ranges: Option<usize>,
    mode: Option<IpMode>,
    named_only: bool,
    masquerade_all: bool,
    detector: bool,
}

const USUAL: Traits = Traits {
    here: true,
    there: true,
    internal: TrafficPolicy::Cluster,
    external: TrafficPolicy::Cluster,
    ranges: None,
    mode: None,
    named_only: false,
    masquerade_all: false,
    detector: true,
};

const LOCAL: Traits = Traits { external: TrafficPolicy::Local, ..USUAL };

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// Any endpoint, masqueraded or not.
    All(bool),
    /// The one here, with the client's own address.
    Here,
    Refused,
    Dropped,
    Untouched,
}

use Verdict::{All, Dropped, Here, Refused, Untouched};

fn expected(verdict: Verdict, place: &Place, traits: &Traits, source: IpAddr) -> BTreeSet<Fate> {
    let to = |ip: IpAddr, masqueraded| {
        let target = node_agent::nft::layout::Target { ip, port: 8080 };
        // An endpoint that draws itself must see another address than its own.
        Fate::Endpoint { target, masqueraded: masqueraded || ip == source }
    };
    let [here, there] = place.endpoints;
    let all = [(here, traits.here), (there, traits.there)].into_iter().filter(|(_, is)| *is);
    match verdict {
        All(masqueraded) => all.map(|(ip, _)| to(ip, masqueraded)).collect(),
        Here => [to(here, false)].into(),
        Refused => [Fate::Refused].into(),
        Dropped => [Fate::Dropped].into(),
        Untouched => [Fate::Untouched].into(),
    }
}

fn world(place: &Place, family: IpFamily, traits: &Traits) -> World {
    let name = ObjectName::new("ns", "web");
    let mut service = Service::new(name.clone());
    service.service_type = ServiceType::LoadBalancer;
    service.cluster_ips = vec![place.vip];
    service.external_ips = vec![place.external];
    service.internal_traffic_policy = traits.internal;
    service.external_traffic_policy = traits.external;
    service.ports =
        vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30_080) }];
    service.source_ranges = traits.ranges.map(|nth| place.ranges[nth].parse().unwrap()).into_iter().collect();
    service.ingress = vec![Ingress {
        ip: (!traits.named_only).then_some(place.balancer),
        hostname: traits.named_only.then(|| "lb.example.com".into()),
        ip_mode: traits.mode,
        ports: Vec::new(),
    }];
    let endpoint = |(nth, node): (usize, &str)| {
        let mut endpoint = Endpoint::ready(place.endpoints[nth]);
        endpoint.node = Some(node.into());
        endpoint
    };
    let endpoints = [(traits.here, (0, "here")), (traits.there, (1, "there"))];
    let slice = EndpointSlice {
        name: ObjectName::new("ns", "web-1"),
        service: name,
        family,
        ports: vec![EndpointPort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: endpoints.into_iter().filter(|(is, _)| *is).map(|(_, e)| endpoint(e)).collect(),
        triggered: None,
    };
    let mut node = Node::new("here".into());
    node.addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, ip: place.node }];
    let networks = ["10.96.0.0/16", "fd00:96::/112"].map(|network| network.parse().unwrap()).into();
    let cidr = ServiceCidr { name: "kubernetes".into(), networks };
    let mut world = World::default();
    let objects = [
        Object::ServiceCidr(cidr),
        Object::Node(node),
        Object::Service(service),
        Object::EndpointSlice(slice),
    ];
    for object in objects {
        world.apply(Change::Apply(object));
    }
    world
}

/// The row's traffic, its traits, who sends, to which address and port, and what must become of it.
type Row = (&'static str, Traits, fn(&Place) -> IpAddr, fn(&Place) -> (IpAddr, u16), Verdict);

const VIP: fn(&Place) -> (IpAddr, u16) = |p| (p.vip, 80);
const EXTERNAL: fn(&Place) -> (IpAddr, u16) = |p| (p.external, 80);
const BALANCER: fn(&Place) -> (IpAddr, u16) = |p| (p.balancer, 80);
const NODE_PORT: fn(&Place) -> (IpAddr, u16) = |p| (p.node, 30_080);
const POD: fn(&Place) -> IpAddr = |p| p.pod;
const NODE: fn(&Place) -> IpAddr = |p| p.node;
const OUTSIDE: fn(&Place) -> IpAddr = |p| p.outside;
const ENDPOINT: fn(&Place) -> IpAddr = |p| p.endpoints[0];

fn rows() -> Vec<Row> {
    let nobody = Traits { here: false, there: false, ..USUAL };
    let elsewhere = Traits { here: false, ..LOCAL };
    let inside = |policy| Traits { internal: policy, ..USUAL };
    let ranged = |nth| Traits { ranges: Some(nth), ..USUAL };
    let mut rows: Vec<Row> = vec![
        ("ClusterIP, a pod", USUAL, POD, VIP, All(false)),
        ("ClusterIP, not a pod", USUAL, OUTSIDE, VIP, All(true)),
        ("ClusterIP, the node", USUAL, NODE, VIP, All(true)),
        ("ClusterIP, masqueradeAll", Traits { masquerade_all: true, ..USUAL }, POD, VIP, All(true)),
        ("ClusterIP, no detector", Traits { detector: false, ..USUAL }, OUTSIDE, VIP, All(false)),
        ("ClusterIP, iTP Local", inside(TrafficPolicy::Local), POD, VIP, Here),
        (
            "ClusterIP, iTP Local, none here",
            Traits { here: false, ..inside(TrafficPolicy::Local) },
            POD,
            VIP,
            Dropped,
        ),
        ("hairpin over the ClusterIP", USUAL, ENDPOINT, VIP, All(false)),
        ("hairpin over an external address, eTP Local", LOCAL, ENDPOINT, EXTERNAL, All(false)),
        ("ClusterIP, undefined port", USUAL, POD, |p| (p.vip, 81), Refused),
        ("unallocated address", USUAL, OUTSIDE, |p| (p.unallocated, 80), Dropped),
        ("outside the ranges", ranged(1), OUTSIDE, BALANCER, Dropped),
        ("a pod outside the ranges", ranged(0), POD, BALANCER, Dropped),
        ("inside the ranges", ranged(0), OUTSIDE, BALANCER, All(true)),
        ("NodePort bypasses the ranges", ranged(1), OUTSIDE, NODE_PORT, All(true)),
        ("externalIP bypasses the ranges", ranged(1), OUTSIDE, EXTERNAL, All(true)),
        ("the address itself where a range has the node", ranged(1), |p| p.balancer, BALANCER, All(true)),
        ("the address itself where none has", ranged(0), |p| p.balancer, BALANCER, Dropped),
        ("ipMode Proxy", Traits { mode: Some(IpMode::Proxy), ..USUAL }, OUTSIDE, BALANCER, Untouched),
        ("ipMode VIP", Traits { mode: Some(IpMode::Vip), ..USUAL }, OUTSIDE, BALANCER, All(true)),
        ("a name only", Traits { named_only: true, ..USUAL }, OUTSIDE, BALANCER, Untouched),
    ];
    rows.extend(
        [VIP, EXTERNAL, BALANCER, NODE_PORT]
            .map(|to| -> Row { ("no endpoint", nobody, OUTSIDE, to, Refused) }),
    );
    for to in [EXTERNAL, BALANCER, NODE_PORT] {
        rows.extend::<[Row; 8]>([
            ("eTP Cluster", USUAL, OUTSIDE, to, All(true)),
            ("eTP Cluster, a pod", USUAL, POD, to, All(true)),
            ("eTP Local, a pod", LOCAL, POD, to, All(false)),
            ("eTP Local, the node", LOCAL, NODE, to, All(true)),
            ("eTP Local, others", LOCAL, OUTSIDE, to, Here),
            ("eTP Local, others, none here", elsewhere, OUTSIDE, to, Dropped),
            ("eTP Local, a pod, none here", elsewhere, POD, to, All(false)),
            ("eTP Local, no detector, a pod", Traits { detector: false, ..LOCAL }, POD, to, Here),
        ]);
    }
    rows
}

/// The rules for the Service, as the kernel has them.
fn program(place: &Place, family: IpFamily, traits: &Traits) -> Reading {
    let detect_local = match traits.detector {
        true => config().detect_local,
        false => DetectLocal::ClusterCidr("".parse().unwrap()),
    };
    let config = Config { masquerade_all: traits.masquerade_all, detect_local, ..config() };
    let mut world = world(place, family, traits);
    let mut engine = Engine::new(config).unwrap();
    engine.mark(world.take_dirty().services);
    engine.sync(&world, Instant::now()).unwrap();
    let reading = Reading::of(&mut Kernel::open().unwrap()).unwrap();
    assert_eq!(reading.oddities, Vec::<String>::new());
    reading
}

#[test]
fn every_row_of_the_verdict_matrix_holds_in_either_family() {
    let mut rows = rows();
    rows.sort_by_cached_key(|(_, traits, ..)| format!("{traits:?}"));
    in_namespace(|| {
        ip("addr add fd00:172:30::11/128 dev lo nodad");
        let host = host::addresses().unwrap();
        for family in [IpFamily::V4, IpFamily::V6] {
            let place = place(family);
            for of_one_service in rows.chunk_by(|(_, one, ..), (_, next, ..)| one == next) {
                let reading = program(&place, family, &of_one_service[0].1);
                for (row, traits, from, to, verdict) in of_one_service {
                    let (source, (destination, port)) = (from(&place), to(&place));
                    let packet =
                        Packet { source, destination, protocol: Protocol::Tcp, port, interface: None };
                    let found = fates(reading.ruleset(family), &reading.mirror, &host, packet);
                    let expected = expected(*verdict, &place, traits, source);
                    assert_eq!(found, expected, "{row}: {source} to {destination}:{port}");
                }
            }
        }
    });
}
