use super::*;
use nfnetlink::conntrack::Tuple;
use proptest::prelude::*;
use service_model::{
    Change, Endpoint, EndpointPort, EndpointSlice, Ingress, Object, ObjectName, Service, ServicePort,
    ServiceType,
};
use std::net::SocketAddr;

fn name(number: u8) -> ServiceName {
    ObjectName::new("ns", &format!("svc-{number}"))
}

fn target(last: u8) -> Target {
    Target { ip: [10, 244, 1, last].into(), port: 5353 }
}

fn flow(to: &str, answered_by: &str) -> Flow {
    let client = "172.30.0.9:40000".parse().unwrap();
    let to: SocketAddr = to.parse().unwrap();
    let by = if answered_by == "nobody" { to } else { answered_by.parse().unwrap() };
    Flow { original: Tuple::udp(client, to), reply: Tuple::udp(by, client), zone: Zone::Usual, id: 1 }
}

/// `1`: 10.244.1.1 is ready. Further letters: `t` terminating, still serving; `d` terminating, dead;
/// `n` not ready; `p` not ready, but to be published.
fn endpoint(text: &str) -> Endpoint {
    let (number, state) = text.split_at(1);
    let mut endpoint = Endpoint::ready([10, 244, 1, number.parse().unwrap()].into());
    let (ready, serving, terminating) = match state {
        "" => (true, true, false),
        "t" => (false, true, true),
        "d" => (false, false, true),
        "n" => (false, false, false),
        "p" => (true, false, false),
        _ => panic!("{text}"),
    };
    (endpoint.ready, endpoint.serving, endpoint.terminating) = (ready, serving, terminating);
    endpoint
}

/// The Service `ns/svc-1`: UDP and TCP port 53 of 10.96.0.1, an external IP, a load balancer's, a
/// balancer that only proxies, NodePort 30053; the node has 172.30.0.11.
fn served(endpoints: &str) -> Served {
    let mut service = Service::new(name(1));
    service.service_type = ServiceType::LoadBalancer;
    service.cluster_ips = vec!["10.96.0.1".parse().unwrap()];
    service.external_ips = vec!["172.30.0.200".parse().unwrap()];
    let ingress = Ingress { ip: Some("172.30.0.201".parse().unwrap()), ..Ingress::default() };
    service.ingress.push(ingress);
    let port = |protocol| ServicePort { name: "dns".into(), protocol, port: 53, node_port: Some(30053) };
    service.ports = [Protocol::Udp, Protocol::Tcp].map(port).to_vec();
    let slice = EndpointSlice {
        name: ObjectName::new("ns", "slice"),
        service: name(1),
        family: IpFamily::V4,
        ports: vec![EndpointPort { name: "dns".into(), protocol: Protocol::Udp, port: 5353 }],
        endpoints: endpoints.split_ascii_whitespace().map(endpoint).collect(),
        triggered: None,
    };
    let mut world = World::default();
    world.apply(Change::Apply(Object::Service(service)));
    world.apply(Change::Apply(Object::EndpointSlice(slice)));
    let mut served = Served::default();
    served.learn(name(1), UdpService::of(&name(1), &world));
    served.learn_node_addresses(["172.30.0.11".parse().unwrap()].into());
    served
}

#[test]
fn an_address_asks_for_a_look_if_it_answers_node_ports_and_was_forwarded_to_before() {
    let mut served = served("1");
    let known: BTreeSet<IpAddr> = ["172.30.0.11".parse().unwrap()].into();
    for (what, address, looks) in [
        ("another of the host's", "172.30.0.12", true),
        ("a new interface's own", "fe80::1234:56ff:fe78:9abc", false),
        ("the same of IPv4", "169.254.7.7", false),
        ("one of the family in which there is no NodePort", "fd00:172:30::12", false),
    ] {
        let with = known.iter().copied().chain([address.parse().unwrap()]).collect();
        assert_eq!(served.learn_node_addresses(with), looks, "{what}");
        assert!(!served.learn_node_addresses(known.clone()), "{what} goes");
    }
}

#[test]
fn entries_are_stale_that_lead_to_no_endpoint_that_serves() {
    const ENDPOINTS: &str = "1 2t 3d 4n 5p";
    let frontends = ["10.96.0.1:53", "172.30.0.200:53", "172.30.0.201:53", "172.30.0.11:30053"];
    // where the entry leads; whether it is stale
    let cases = [
        ("10.244.1.1:5353", false),
        ("10.244.1.1:53", true),
        ("10.244.1.2:5353", false),
        ("10.244.1.3:5353", true),
        ("10.244.1.4:5353", true),
        ("10.244.1.5:5353", false),
        ("10.244.1.9:5353", true),
        ("nobody", true),
    ];
    for frontend in frontends {
        for (answered_by, stale) in cases {
            let flow = flow(frontend, answered_by);
            assert_eq!(served(ENDPOINTS).index().is_stale(&flow), stale, "{frontend} to {answered_by}");
            assert!(served("").index().is_stale(&flow), "{frontend} without endpoints, to {answered_by}");
        }
    }
}

#[test]
fn entries_of_others_are_never_stale() {
    for (to, answered_by) in [
        ("10.96.0.1:54", "10.244.1.9:5353"),
        ("10.96.0.2:53", "10.244.1.9:5353"),
        ("10.244.1.9:5353", "nobody"),
        // A NodePort's number, at an address that is not the node's or with another number.
        ("192.0.2.1:30053", "nobody"),
        ("172.30.0.11:30054", "nobody"),
        ("[fd00::1]:53", "nobody"),
    ] {
        for endpoints in ["1", ""] {
            assert!(!served(endpoints).index().is_stale(&flow(to, answered_by)), "{to} to {answered_by}");
        }
    }
}

#[test]
fn in_another_zone_only_translated_entries_count() {
    let served = served("1");
    for (answered_by, stale) in [("nobody", false), ("10.244.1.9:5353", true), ("10.244.1.1:5353", false)] {
        for zone in [Zone::Both(5), Zone::Original(5)] {
            let flow = Flow { zone, ..flow("10.96.0.1:53", answered_by) };
            assert_eq!(served.index().is_stale(&flow), stale, "{zone:?} to {answered_by}");
        }
    }
}

/// A Service of up to two ports, as small numbers: (where it answers, endpoints).
type Sketch = Vec<(Vec<u8>, BTreeSet<u8>)>;

fn sketch() -> impl Strategy<Value = Sketch> {
    let endpoints = proptest::collection::btree_set(0_u8..4, 0..3);
    proptest::collection::vec((proptest::collection::vec(0_u8..4, 1..3), endpoints), 0..3)
}

/// Two addresses and two NodePorts.
fn frontend(number: u8) -> Frontend {
    match number {
        0 | 1 => Frontend::Vip { ip: [10, 96, 0, number].into(), protocol: Protocol::Udp, port: 53 },
        _ => Frontend::NodePort {
            family: IpFamily::V4,
            protocol: Protocol::Udp,
            port: 30000 + u16::from(number),
        },
    }
}

fn built(sketch: &Sketch) -> UdpService {
    let port = |(frontends, endpoints): &(Vec<u8>, BTreeSet<u8>)| UdpPort {
        frontends: frontends.iter().map(|number| frontend(*number)).collect(),
        serving: endpoints.iter().map(|last| target(*last)).collect(),
    };
    UdpService(sketch.iter().map(port).collect())
}

/// Every entry there can be: to each frontend, and a stranger; answered by each endpoint, and nobody.
fn flows() -> Vec<(Option<u8>, Option<u8>, Flow)> {
    let mut flows = Vec::new();
    for (number, to) in [
        (Some(0), "10.96.0.0:53"),
        (Some(1), "10.96.0.1:53"),
        (Some(2), "172.30.0.11:30002"),
        (Some(3), "172.30.0.11:30003"),
        (None, "172.30.0.12:30003"),
    ] {
        flows.push((number, None, flow(to, "nobody")));
        flows.extend((0..4).map(|last| (number, Some(last), flow(to, &target(last).to_string()))));
    }
    flows
}

/// The rule, said in the plainest way.
fn is_stale(all: &BTreeMap<u8, Sketch>, to: Option<u8>, by: Option<u8>) -> bool {
    let Some(to) = to else { return false };
    let ports: Vec<_> = all.values().flatten().filter(|(frontends, _)| frontends.contains(&to)).collect();
    !ports.is_empty() && !ports.iter().any(|(_, endpoints)| by.is_some_and(|by| endpoints.contains(&by)))
}

proptest! {
    /// What may need a look through the table is asked for, whatever comes in whatever order.
    #[test]
    fn an_entry_is_stale_as_the_rule_says_and_never_without_a_look(
        updates in proptest::collection::vec((0_u8..3, sketch()), 1..8),
    ) {
        let mut served = Served::default();
        served.learn_node_addresses(["172.30.0.11".parse().unwrap()].into());
        let mut model = BTreeMap::new();
        for (number, sketch) in updates {
            let before = model.clone();
            let look = served.learn(name(number), built(&sketch));
            model.insert(number, sketch);
            let index = served.index();
            for (to, by, flow) in flows() {
                let stale = is_stale(&model, to, by);
                prop_assert_eq!(index.is_stale(&flow), stale, "{:?}", flow);
                prop_assert!(look || !stale || is_stale(&before, to, by), "{:?} without a look", flow);
            }
        }
    }

    #[test]
    fn more_endpoints_alone_need_no_look(one in proptest::collection::btree_set(0_u8..9, 0..5), more in proptest::collection::btree_set(0_u8..9, 0..5)) {
        let mut served = Served::default();
        prop_assert!(served.learn(name(1), built(&vec![(vec![0], one.clone())])), "it is new");
        let all = one.union(&more).copied().collect();
        prop_assert!(!served.learn(name(1), built(&vec![(vec![0], all)])));
    }
}
