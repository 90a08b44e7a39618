//! An agent over the real kernel, fed by a test: changes come through the channel.

use std::time::Duration;

use daemon::Readiness;
use node_agent::agent::Agent;
use node_agent::config::Config;
use node_agent::events::{self, Events};
use node_agent::health::Health;
use node_agent::metrics::Metrics;
use node_agent::overrides::Overrides;
use prometheus_client::registry::Registry;
use service_model::{Change, Kind, Node, NodeAddress, NodeAddressKind, Object};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;

use super::kernel::{in_namespace, nft};
use super::{Spec, config};

pub const PATIENCE: Duration = Duration::from_secs(10);
pub const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

/// Waits, with the runtime running, until the condition holds.
pub async fn until(what: &str, deadline: Duration, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(deadline, waiting).await.is_ok(), "{what}\n{}", nft(&["list", "ruleset"]));
}

pub fn listed(text: &str) -> bool {
    nft(&["list", "ruleset"]).contains(text)
}

pub fn spec(endpoints: &[u8]) -> Spec {
    Spec {
        number: 1,
        node_port: Some(0),
        endpoints: endpoints.iter().map(|last| (*last, true)).collect(),
        ..Spec::default()
    }
}

/// Runs an agent in a namespace of its own beside the test, which feeds it.
pub fn with_agent(test: impl AsyncFnOnce(&Sender<Change>, &Health) + Send) {
    with_agent_of(config(), Duration::from_secs(30), Duration::ZERO, test);
}

/// As [`with_agent`], with its configuration, its sync period and the least time between syncs.
pub fn with_agent_of(
    config: Config,
    sync_period: Duration,
    min_sync_period: Duration,
    test: impl AsyncFnOnce(&Sender<Change>, &Health) + Send,
) {
    let health = Health::new(sync_period);
    run_agent(config, min_sync_period, &health, |agent| agent, async |tx| test(tx, &health).await);
}

/// As [`with_agent`], with what it is told in place of the API server, and the Events that it tells.
pub fn with_agent_that_tells(
    overrides: Overrides,
    test: impl AsyncFnOnce(&Sender<Change>, Receiver<events::Event>) + Send,
) {
    let (events, told) = Events::channel();
    let prepare = |agent: Agent| agent.telling(events).overriding(overrides);
    let health = Health::new(Duration::from_secs(30));
    run_agent(config(), Duration::ZERO, &health, prepare, async |tx| test(tx, told).await);
}

pub fn run_agent(
    config: Config,
    min_sync_period: Duration,
    health: &Health,
    prepare: impl FnOnce(Agent) -> Agent + Send,
    test: impl AsyncFnOnce(&Sender<Change>) + Send,
) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let readiness = Readiness::default();
            let metrics = Metrics::register(&mut Registry::default());
            let token = readiness.task("first sync");
            let agent = Agent::new(config, min_sync_period, health.clone(), metrics, token).unwrap();
            let ((tx, rx), cancel) = (channel(16), CancellationToken::new());
            let running = tokio::spawn(prepare(agent).run(rx, cancel.clone()));
            test(&tx).await;
            cancel.cancel();
            running.await.unwrap().unwrap();
        });
    });
}

pub async fn send(tx: &Sender<Change>, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        tx.send(change).await.unwrap();
    }
}

pub fn node() -> Node {
    let mut node = Node::new("here".into());
    node.addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, ip: [172, 30, 0, 11].into() }];
    node
}

pub async fn list(tx: &Sender<Change>, spec: &Spec) {
    send(tx, KINDS.map(Change::ListStarted)).await;
    send(tx, spec.changes()).await;
    send(tx, [Change::Apply(Object::Node(node()))]).await;
    send(tx, KINDS.map(Change::ListEnded)).await;
}
