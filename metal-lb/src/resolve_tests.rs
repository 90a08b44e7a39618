use metal_lb_api::HealthCheck;

use super::*;
use crate::desired::Mac;

const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 200);

fn config() -> Config {
    let node =
        |n: u8| serde_json::json!({"name": format!("node-{n}"), "addresses": [format!("172.30.0.1{n}")]});
    let listener = |vip: &str| {
        serde_json::json!({
            "service": "shop/web", "vip": vip, "protocol": "TCP", "port": 80, "node_set": "all", "node_port": 30080,
            "health": {"port": 10256, "path": "/healthz"}
        })
    };
    let json = serde_json::json!({
        "schema": 1, "owner": "lab", "generation": {"term": 1, "counter": 1}, "member_key": "00".repeat(32),
        "hosts": [], "nodes": [node(1), node(2)],
        "node_sets": [{"name": "all", "nodes": ["node-1", "node-2"]}],
        "listeners": [listener("172.30.0.200"), listener("fd00::200")]
    });
    Config::parse(json.to_string().as_bytes()).unwrap()
}

fn node(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + n)
}

struct Case {
    config: Config,
    checks: Checks,
    neighbours: Neighbours,
}

impl Case {
    fn new() -> Self {
        let hop = |n| (node(n), NextHop::Mac(Mac([2, 0, 0, 0, 0, n])));
        let neighbours = Neighbours { next_hops: [hop(1), hop(2)].into(), carrier: true };
        Self { config: config(), checks: Checks::new(), neighbours }
    }

    fn set(&mut self, node: u8, verdict: Verdict) {
        let address = IpAddr::V4(self::node(node));
        let check = HealthCheck { port: 10256, path: "/healthz".into() };
        self.checks.insert((address, check), (verdict, "answered".into()));
    }

    fn resolved(&self) -> Resolved {
        let owners = [(VIP, Ownership { owner: Some("lb-1".into()), why: "test".into() })].into();
        resolve(&self.inputs(&owners))
    }

    fn inputs<'a>(&'a self, owners: &'a BTreeMap<Ipv4Addr, Ownership>) -> Inputs<'a> {
        Inputs {
            host: "lb-1",
            config: &self.config,
            checks: &self.checks,
            neighbours: &self.neighbours,
            owners,
        }
    }

    /// The nodes in the IPv4 listener's table, and why each is there or not.
    fn table(&self) -> (Vec<String>, Vec<String>) {
        let resolved = self.resolved();
        assert_eq!(resolved.desired.vips, [(VIP, true)].into());
        let table = resolved.desired.listeners.values().next().unwrap();
        let targets = &resolved.state.listeners[0].targets;
        let in_table: Vec<&String> = targets.iter().filter(|t| t.in_table).map(|t| &t.node).collect();
        assert_eq!(in_table, table.targets.keys().collect::<Vec<_>>(), "the state says what is done");
        (table.targets.keys().cloned().collect(), targets.iter().map(|t| t.why.clone()).collect())
    }
}

#[test]
fn nodes_that_nobody_has_asked_yet_take_connections_until_one_is_known_to_be_healthy() {
    let mut case = Case::new();
    assert_eq!(case.table().0, ["node-1", "node-2"]);
    case.set(1, Verdict::Unhealthy);
    assert_eq!(case.table().0, ["node-2"]);
    case.set(1, Verdict::Healthy);
    assert_eq!(case.table().0, ["node-1"]);
}

#[test]
fn an_unhealthy_node_leaves_the_table_unless_all_are() {
    let mut case = Case::new();
    case.set(1, Verdict::Unhealthy);
    case.set(2, Verdict::Healthy);
    assert_eq!(case.table().0, ["node-2"]);
    case.set(2, Verdict::Unhealthy);
    let (table, whys) = case.table();
    assert_eq!(table, ["node-1", "node-2"]);
    assert!(whys.iter().all(|w| w.contains("no target is healthy")), "{whys:?}");
}

#[test]
fn a_draining_node_is_out_even_when_it_is_the_last() {
    let mut case = Case::new();
    case.config.nodes[0].draining = true;
    assert_eq!(case.table().0, ["node-2"]);
    case.config.nodes[1].draining = true;
    assert!(case.table().0.is_empty());
    let state = case.resolved().state;
    assert!(state.listeners[0].why.contains("no target"), "{state:?}");
}

#[test]
fn a_node_that_frames_cannot_reach_is_out_and_says_why() {
    let table = [
        (NextHop::Unresolved, "172.30.0.11 has no link-layer address"),
        (NextHop::Elsewhere, "another interface"),
        (NextHop::Local, "is this host itself"),
        (NextHop::NoRoute, "no route"),
    ];
    for (hop, expected) in table {
        let mut case = Case::new();
        case.set(1, Verdict::Healthy);
        case.neighbours.next_hops.insert(node(1), hop);
        let (table, whys) = case.table();
        assert_eq!(table, ["node-2"], "{hop:?}");
        assert!(whys[0].contains(expected), "{whys:?}");
    }
}

#[test]
fn an_ipv6_listener_is_reported_not_programmed() {
    let case = Case::new();
    let resolved = case.resolved();
    assert_eq!(resolved.desired.listeners.len(), 1);
    let state = &resolved.state.listeners[1];
    assert!(!state.programmed && state.why.contains("IPv4"), "{state:?}");
    let vip = &resolved.state.vips[1];
    assert!(vip.vip.is_ipv6() && vip.owner.is_none() && vip.why.contains("IPv4"), "{vip:?}");
}

#[test]
fn a_host_that_is_not_in_the_document_owns_nothing_and_says_so() {
    let (case, owners) = (Case::new(), BTreeMap::new());
    let resolved = resolve(&case.inputs(&owners));
    assert_eq!(resolved.desired.vips, [(VIP, false)].into(), "it is known, not answered for");
    assert!(resolved.state.vips[0].why.contains("--name"), "{:?}", resolved.state.vips);
}

#[test]
fn what_a_plan_left_out_is_reported_where_it_belongs() {
    let mut resolved = Case::new().resolved();
    let id = *resolved.desired.listeners.keys().next().unwrap();
    let notes = [format!("{id} is not programmed: no room"), format!("{id}80 is another one")];
    resolved.reflect(&BTreeMap::new(), &notes);
    let state = &resolved.state.listeners[0];
    assert!(!state.programmed && state.why == notes[0], "{state:?}");

    let mut resolved = Case::new().resolved();
    resolved.reflect(&[(id, ObservedListener { table: 0, idle: 350 })].into(), &[]);
    assert!(resolved.state.listeners[0].programmed);
}
