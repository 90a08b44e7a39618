//! A whole agent on the node, fed by hand.

use std::time::Duration;

use daemon::Readiness;
use node_agent::agent::Agent;
use node_agent::conntrack::Reconciler;
use node_agent::health::Health;
use node_agent::metrics::Metrics;
use prometheus_client::registry::Registry;
use service_model::{Change, Kind};
use tokio::sync::mpsc::{Sender, channel};
use tokio_util::sync::CancellationToken;

use crate::hosts::Ground;
use crate::worlds::{Shop, config};

pub(crate) const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

/// Runs an agent on the node while the test feeds it.
pub(crate) fn with_agent<R>(ground: &Ground, test: impl FnOnce(&Sender<Change>) -> R) -> R {
    with_counted_agent(ground, |tx, _| test(tx))
}

/// As [`with_agent`]; the test reads what is counted.
pub(crate) fn with_counted_agent<R>(
    ground: &Ground,
    test: impl FnOnce(&Sender<Change>, &Registry) -> R,
) -> R {
    let mut registry = Registry::default();
    let metrics = Metrics::register(&mut registry);
    let ((tx, rx), cancel) = (channel(64), CancellationToken::new());
    let stop = cancel.clone();
    let agent = async move || {
        let health = Health::new(Duration::from_secs(30));
        let token = Readiness::default().task("first sync");
        let (feed, reconciler) = Reconciler::new(metrics.clone()).unwrap();
        let agent = Agent::new(config(), Duration::ZERO, health, metrics, token).unwrap();
        let agent = agent.feeding(feed).run(rx, stop.clone());
        let (agent, reconciler) = tokio::join!(agent, reconciler.run(stop.clone()));
        agent.and(reconciler).unwrap();
    };
    std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            ground.node.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(agent());
            });
        });
        // Also when the test panics.
        let guard = cancel.drop_guard();
        let outcome = test(&tx, &registry);
        drop(guard);
        running.join().unwrap();
        outcome
    })
}

pub(crate) fn list(tx: &Sender<Change>, ground: &Ground, shop: &Shop<'_>) {
    let (begin, end) = (KINDS.map(Change::ListStarted), KINDS.map(Change::ListEnded));
    let changes = begin.into_iter().chain(shop.changes(&ground.node)).chain(end);
    changes.for_each(|change| tx.blocking_send(change).unwrap());
}

pub(crate) fn apply(tx: &Sender<Change>, ground: &Ground, shop: &Shop<'_>) {
    shop.changes(&ground.node).into_iter().for_each(|change| tx.blocking_send(change).unwrap());
}
