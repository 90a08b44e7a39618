use std::net::IpAddr;

use daemon::Readiness;

use super::*;
use crate::desired::Mac;
use crate::health::Verdict;
use crate::neighbours::NextHop;
use crate::plan::fake::Fake;

const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 200);

fn node(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + n)
}

/// Two nodes, two hosts (or only `lb-1`), one VIP.
fn document(counter: u64, hosts: u8) -> Arc<Config> {
    let host = |n: u8| serde_json::json!({"name": format!("lb-{n}"), "address": format!("172.30.0.2{n}:7947"), "slot": n});
    let node = |n: u8| serde_json::json!({"name": format!("node-{n}"), "addresses": [node(n)]});
    let json = serde_json::json!({
        "schema": 1, "owner": "lab", "generation": {"term": 1, "counter": counter}, "member_key": "00".repeat(32),
        "hosts": (1..=hosts).map(host).collect::<Vec<_>>(), "nodes": [node(1), node(2)],
        "node_sets": [{"name": "all", "nodes": ["node-1", "node-2"]}],
        "listeners": [{
            "service": "shop/web", "vip": VIP, "protocol": "TCP", "port": 80, "node_set": "all",
            "node_port": 30080, "health": {"port": 10256, "path": "/healthz"}
        }]
    });
    Arc::new(Config::parse(json.to_string().as_bytes()).unwrap())
}

fn neighbours() -> Neighbours {
    let hop = |n| (node(n), NextHop::Mac(Mac([2, 0, 0, 0, 0, n])));
    Neighbours { next_hops: [hop(1), hop(2)].into(), carrier: true }
}

fn health(n: u8, verdict: Verdict) -> Input {
    let check = metal_lb_api::HealthCheck { port: 10256, path: "/healthz".into() };
    Input::Health(HealthReport { check: (IpAddr::V4(node(n)), check), verdict, why: "test".into() })
}

struct Stage {
    engine: Engine<Fake>,
    now: Duration,
    readiness: Readiness,
    programmed: watch::Receiver<Arc<Programmed>>,
    standing: watch::Receiver<Standing>,
    checks: watch::Receiver<BTreeSet<Check>>,
}

impl Stage {
    fn new(backend: Fake) -> Self {
        let (programmed_tx, programmed) = watch::channel(Arc::new(crate::run::nothing_programmed("lb-1")));
        let (standing_tx, standing) = watch::channel(Standing::default());
        let (checks_tx, checks) = watch::channel(BTreeSet::new());
        let readiness = Readiness::default();
        let outputs = Outputs {
            programmed: programmed_tx,
            standing: standing_tx,
            tier: watch::channel(None).0,
            nodes: watch::channel(BTreeSet::new()).0,
            checks: checks_tx,
            events: Events::default(),
            ready: Some(readiness.task("first document")),
        };
        let now = Duration::from_secs(1000);
        let engine = Engine::new("lb-1", backend, outputs, now).unwrap();
        Self { engine, now, readiness, programmed, standing, checks }
    }

    /// A single host that serves.
    fn serving() -> Self {
        let mut stage = Self::new(Fake::default());
        stage.take([Input::Document(document(1, 1)), Input::Neighbours(neighbours())]);
        stage.take([health(1, Verdict::Healthy), health(2, Verdict::Healthy)]);
        assert_eq!(stage.table(), ["node-1", "node-2"]);
        stage
    }

    fn take(&mut self, inputs: impl IntoIterator<Item = Input>) {
        self.now += Duration::from_millis(1);
        inputs.into_iter().for_each(|input| self.engine.take(input, self.now));
        self.engine.settle(self.now);
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.engine.settle(self.now);
    }

    /// The nodes that get new connections, as the packet path has it.
    fn table(&self) -> Vec<String> {
        let targets = self.engine.backend.state.targets.values().filter(|t| t.in_table);
        let mut nodes: Vec<String> =
            targets.map(|t| format!("node-{}", t.address.ip().octets()[3] - 10)).collect();
        nodes.sort();
        nodes
    }

    fn backend(&mut self) -> &mut Fake {
        &mut self.engine.backend
    }

    fn claims(&self) -> Vec<Ipv4Addr> {
        self.standing.borrow().claims.keys().copied().collect()
    }
}

#[test]
fn a_host_is_ready_once_its_first_document_is_programmed_and_announces_only_then() {
    let mut stage = Stage::new(Fake::default());
    stage.wait(Duration::from_secs(5));
    assert!(!stage.readiness.missing().is_empty());
    stage.take([Input::Document(document(1, 1))]);
    assert!(stage.claims().is_empty(), "nothing is known of the nodes yet");
    assert_eq!(stage.checks.borrow().len(), 2);
    stage.take([Input::Neighbours(neighbours())]);
    assert_eq!(stage.claims(), [VIP]);
    assert_eq!(stage.backend().state.vips, [(VIP, true)].into());
    assert!(stage.readiness.missing().is_empty());
    let state = stage.programmed.borrow().state.clone();
    assert!(
        state.listeners[0].programmed && state.generation == Some(document(1, 1).generation),
        "{state:?}"
    );
}

#[test]
fn health_moves_nodes_in_and_out_of_the_table() {
    let mut stage = Stage::serving();
    stage.take([health(2, Verdict::Unhealthy)]);
    assert_eq!(stage.table(), ["node-1"]);
    stage.take([health(2, Verdict::Healthy)]);
    assert_eq!(stage.table(), ["node-1", "node-2"]);
}

#[test]
fn a_node_that_fails_is_taken_out_of_many_listeners_in_a_few_batches() {
    let mut config = Config::clone(&document(1, 1));
    let listener = config.listeners[0].clone();
    let vips = (1..=100).map(|n| IpAddr::V4(Ipv4Addr::new(10, 0, 0, n)));
    config.listeners = vips.map(|vip| metal_lb_api::Listener { vip, ..listener.clone() }).collect();
    let mut stage = Stage::new(Fake::default());
    stage.take([Input::Document(Arc::new(config)), Input::Neighbours(neighbours())]);
    stage.take([health(1, Verdict::Healthy), health(2, Verdict::Healthy)]);
    assert_eq!(stage.table().len(), 200);
    let before = stage.backend().batches;
    stage.take([health(2, Verdict::Unhealthy)]);
    assert_eq!(stage.table().len(), 100);
    let batches = stage.backend().batches - before;
    assert!(batches <= 2, "the kernel waits for each: {batches}");
}

#[test]
fn a_new_process_leaves_the_table_alone_until_it_knows_as_much_as_the_last_one() {
    let mut before = Stage::serving();
    before.take([health(2, Verdict::Unhealthy)]);
    let mut stage = Stage::new(before.backend().clone());
    let untouched = stage.backend().clone();
    stage.take([Input::Document(document(1, 1))]);
    stage.take([Input::Neighbours(Neighbours { carrier: true, ..Neighbours::default() })]);
    stage.take([Input::Neighbours(neighbours()), health(1, Verdict::Healthy)]);
    assert_eq!(stage.backend().state, untouched.state);
    stage.take([health(2, Verdict::Unhealthy)]);
    assert_eq!(stage.backend().state, untouched.state, "nothing had changed meanwhile");
    assert!(stage.readiness.missing().is_empty());
    assert_eq!(stage.claims(), [VIP]);
}

#[test]
fn a_node_that_is_never_asked_does_not_hold_a_new_process_up_for_ever() {
    let mut before = Stage::serving();
    let mut stage = Stage::new(before.backend().clone());
    stage.take([
        Input::Document(document(1, 1)),
        Input::Neighbours(neighbours()),
        health(1, Verdict::Healthy),
    ]);
    assert!(!stage.readiness.missing().is_empty());
    stage.wait(INFORMED_BY);
    assert!(stage.readiness.missing().is_empty());
    assert_eq!(stage.table(), ["node-1"]);
}

#[test]
fn a_refused_step_is_tried_again_and_the_state_is_not_changed_before_it_worked() {
    let mut stage = Stage::serving();
    stage.backend().dies_after = Some(0);
    stage.take([health(2, Verdict::Unhealthy)]);
    assert_eq!(stage.table(), ["node-1", "node-2"]);
    let serving = |stage: &Stage| {
        let targets = &stage.programmed.borrow().state.listeners[0].targets;
        targets.iter().filter(|t| t.in_table).count()
    };
    assert_eq!(serving(&stage), 2);
    stage.backend().dies_after = None;
    stage.take([health(1, Verdict::Healthy)]);
    assert_eq!(stage.table(), ["node-1", "node-2"], "no hot retry");
    stage.wait(RETRY);
    assert_eq!((stage.table(), serving(&stage)), (vec!["node-1".to_owned()], 1));
}

#[test]
fn what_somebody_else_changed_is_put_right_by_a_resync() {
    let mut stage = Stage::serving();
    let good = stage.backend().state.clone();
    stage.backend().state.listeners.clear();
    stage.backend().state.vips.clear();
    stage.take([Input::Resync]);
    assert_eq!(stage.backend().state, good);
}

#[test]
fn what_the_packet_path_gave_up_while_the_process_slept_is_noticed() {
    let mut stage = Stage::serving();
    stage.backend().state.vips.insert(VIP, false);
    stage.wait(Duration::from_secs(30));
    assert_eq!(stage.backend().state.vips, [(VIP, true)].into());
}

#[test]
fn targets_that_no_packet_can_name_any_more_are_forgotten_by_a_resync() {
    let mut stage = Stage::serving();
    stage.take([health(2, Verdict::Unhealthy)]);
    for target in stage.backend().state.targets.values_mut().filter(|t| !t.in_table) {
        target.idle = true;
    }
    assert_eq!(stage.backend().state.targets.len(), 2);
    stage.take([Input::Resync]);
    assert_eq!(stage.backend().state.targets.len(), 1);
}

#[test]
fn a_listener_that_left_the_document_is_withdrawn_and_forgotten() {
    let mut stage = Stage::serving();
    let mut config = Config::clone(&document(2, 1));
    config.listeners.clear();
    stage.take([Input::Document(Arc::new(config))]);
    let state = &stage.backend().state;
    assert!(state.vips.is_empty() && state.listeners.is_empty(), "{state:?}");
    assert!(state.tables.is_empty() && state.targets.is_empty(), "{state:?}");
    assert!(stage.claims().is_empty() && stage.checks.borrow().is_empty());
}

#[test]
fn a_host_without_a_link_owns_nothing_and_claims_again_when_it_is_back() {
    let mut stage = Stage::serving();
    let first = stage.standing.borrow().claims[&VIP];
    stage.take([Input::Neighbours(Neighbours { carrier: false, ..neighbours() })]);
    assert!(stage.claims().is_empty());
    assert_eq!(stage.backend().state.vips, [(VIP, false)].into());
    stage.take([Input::Neighbours(neighbours())]);
    assert!(stage.standing.borrow().claims[&VIP] > first, "a new claim is announced anew");
}

#[test]
fn a_standby_has_everything_programmed_and_takes_over_in_one_step() {
    let mut stage = Stage::new(Fake::default());
    stage.take([Input::Document(document(1, 2)), Input::Neighbours(neighbours())]);
    let hear = |stage: &mut Stage| {
        let generation = document(1, 2).generation;
        let answer = Heard::Answer { peer: "lb-2".into(), age: Duration::ZERO, serves: generation };
        let hello = Heard::Hello { peer: "lb-2".into(), generation, owned: [(VIP, 1)].into() };
        stage.take([Input::Heard(answer), Input::Heard(hello)]);
    };
    for _ in 0..20 {
        hear(&mut stage);
        stage.wait(Duration::from_millis(100));
    }
    assert_eq!(stage.backend().state.vips, [(VIP, false)].into());
    assert_eq!(stage.table(), ["node-1", "node-2"]);
    assert_eq!(stage.programmed.borrow().state.vips[0].owner.as_deref(), Some("lb-2"));
    stage.backend().dies_after = Some(1);
    (0..8).for_each(|_| stage.wait(Duration::from_millis(50)));
    assert_eq!(stage.backend().state.vips, [(VIP, true)].into());
    assert_eq!(stage.claims(), [VIP]);
}
