use metal_lb_api::HealthCheck;

use super::*;

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

struct Case {
    config: Config,
    checks: Checks,
    neighbours: Neighbours,
}

impl Case {
    fn new() -> Self {
        let mac = |n| (Ipv4Addr::new(172, 30, 0, 10 + n), Mac([2, 0, 0, 0, 0, n]));
        let neighbours = Neighbours { macs: [mac(1), mac(2)].into(), carrier: true };
        Self { config: config(), checks: Checks::new(), neighbours }
    }

    fn set(&mut self, node: u8, verdict: Verdict) {
        let address = IpAddr::V4(Ipv4Addr::new(172, 30, 0, 10 + node));
        let check = HealthCheck { port: 10256, path: "/healthz".into() };
        self.checks.insert((address, check), (verdict, "answered".into()));
    }

    /// The nodes in the IPv4 listener's table, and why each is there or not.
    fn table(&self) -> (Vec<String>, Vec<String>) {
        let owners = [(VIP, Ownership { owner: Some("lb-1".into()), why: "test".into() })].into();
        let inputs = Inputs {
            host: "lb-1",
            config: &self.config,
            checks: &self.checks,
            neighbours: &self.neighbours,
            owners: &owners,
        };
        let resolved = resolve(&inputs);
        assert_eq!(resolved.desired.vips, [(VIP, true)].into());
        let table = resolved.desired.listeners.values().next().unwrap();
        let whys = resolved.state.listeners[0].targets.iter().map(|t| t.why.clone()).collect();
        (table.targets.keys().cloned().collect(), whys)
    }
}

#[test]
fn a_node_that_nobody_has_asked_yet_takes_connections() {
    assert_eq!(Case::new().table().0, ["node-1", "node-2"]);
}

#[test]
fn an_unhealthy_node_leaves_the_table_unless_all_are() {
    let mut case = Case::new();
    case.set(1, Verdict::Unhealthy);
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
}

#[test]
fn a_node_without_a_link_layer_address_waits_and_says_so() {
    let mut case = Case::new();
    case.neighbours.macs.remove(&Ipv4Addr::new(172, 30, 0, 11));
    let (table, whys) = case.table();
    assert_eq!(table, ["node-2"]);
    assert!(whys[0].contains("172.30.0.11 has no link-layer address"), "{whys:?}");
}

#[test]
fn an_ipv6_listener_is_reported_not_programmed() {
    let case = Case::new();
    let owners = BTreeMap::new();
    let inputs = Inputs {
        host: "lb-1",
        config: &case.config,
        checks: &case.checks,
        neighbours: &case.neighbours,
        owners: &owners,
    };
    let resolved = resolve(&inputs);
    assert_eq!(resolved.desired.listeners.len(), 1);
    let state = &resolved.state.listeners[1];
    assert!(!state.programmed && state.why.contains("IPv4"), "{state:?}");
    assert_eq!(
        resolved.desired.vips,
        [(VIP, false)].into(),
        "without an owner it is known, not answered for"
    );
}
