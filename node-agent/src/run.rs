//! The program: who watches, who works, who answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use daemon::http::{serve, text};
use daemon::routes::standard_routes;
use daemon::{Readiness, Shutdown, Tasks};
use hyper::StatusCode;
use kube_watch::{Options, Source, WatchMetrics, watch_with};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::args::{Cli, RunArgs, Verb};
use crate::config::Listen;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::nft::kernel;
use crate::verbs::print_plan;
use crate::{dump, explain};

/// Changes that wait in the channel before the watch is held back.
const QUEUE: usize = 1024;
const DRAIN: Duration = Duration::from_secs(2);

/// # Errors
/// What ended the program.
pub async fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Run(args) => run(args).await,
        Verb::Plan(args) => print_plan(&args),
        Verb::Dump(args) => dump::print(&args),
        Verb::Explain(args) => explain::print(&args),
        Verb::Cleanup => kernel::cleanup().context("removing our tables needs CAP_NET_ADMIN"),
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    args.check()?;
    daemon::log::init(args.log_format);
    let shutdown = Shutdown::listen()?;
    let cancel = shutdown.token();
    let config = args.node.config()?;
    let readiness = Readiness::default();
    let registry = Arc::new(Mutex::new(Registry::default()));
    let (metrics, watch_metrics) = {
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        daemon::metrics::register_process(&mut registry);
        let watch_metrics = WatchMetrics::default();
        watch_metrics.register(registry.sub_registry_with_prefix("fairlead_node_agent"));
        (Metrics::register(&mut registry), watch_metrics)
    };
    let health = Health::new(args.sync_period);
    let first_sync = readiness.task("first sync");
    let agent =
        Agent::new(config.clone(), args.min_sync_period, health.clone(), metrics.clone(), first_sync)?;
    let client = kube_watch::client(args.kubeconfig.as_deref()).await?;
    let (tx, rx) = mpsc::channel(QUEUE);
    tracing::info!(node = %config.node_name, "starting");

    let mut tasks = Tasks::new(cancel.clone());
    let own_routes =
        standard_routes(readiness, registry).get("/proxyMode", |_| text(StatusCode::OK, "nftables"));
    let servers = [
        ("health server", args.healthz_bind_address, health.routes(&metrics)),
        ("metrics server", args.metrics_bind_address, own_routes),
    ];
    for (name, Listen(address), routes) in servers {
        if let Some(address) = address {
            tasks.spawn(name, serve(address, routes, cancel.clone()));
        }
    }
    let options = Options { metrics: watch_metrics, ..Options::default() };
    let watching = watch_with(Source::Kube(client), config.watches(), options, tx);
    let stop = cancel.clone();
    tasks.spawn("watch", async move { stop.run_until_cancelled(watching).await.unwrap_or(Ok(())) });
    tasks.spawn("agent", agent.run(rx, cancel));
    tokio::select! {
        ended = tasks.join_all(DRAIN) => ended,
        () = shutdown.forced() => Ok(()),
    }
}
