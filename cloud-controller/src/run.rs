//! `cloud-controller run`: watches always, works while it leads.
//!
//! ```text
//! kube-watch ──Change──▶ World (kept warm by a standby too)
//!                          │ dirty keys        election ──▶ Role
//!                          ▼                       │
//!                        Lead: queue ─▶ jobs ─▶ providers ─▶ status, marks, Events
//! ```

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context;
use daemon::{Readiness, Shutdown, Tasks};
use kube::{Api, Client};
use kube_watch::{Detail, Nodes, Options, Source, WatchConfig, WatchMetrics, watch_kind, watch_with};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch as watch_channel};
use tokio_util::sync::CancellationToken;

use crate::args::RunArgs;
use crate::election::{Election, Role};
use crate::lead::Lead;
use crate::metal::crds::IPAddressPool;
use crate::metal::pools::Pools;
use crate::metrics::Metrics;
use crate::providers::Writers;
use crate::state::{Changes, State};

/// How long everything together may take after the first signal.
const DRAIN: Duration = Duration::from_secs(12);
/// How long a leader that cannot begin waits before it tries again.
const BEGIN_AGAIN: Duration = Duration::from_secs(2);
const A_LIFETIME: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
/// Changes on their way from the watch; more than a burst of kubectl makes.
const CHANGES: usize = 1024;

/// What every replica watches. EndpointSlices are not among it: targets are NodePorts.
fn watch_config() -> WatchConfig {
    WatchConfig {
        services: true,
        slices: false,
        nodes: Nodes::All,
        service_cidrs: false,
        detail: Detail::Full,
    }
}

/// # Errors
/// What keeps the program from starting, or a task that failed.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen()?;
    let cancel = shutdown.token();
    let RunArgs { cluster, election, metrics_listen, log_format: _ } = args;
    let (metal, aws) = (cluster.metal_setup()?, cluster.aws.setup(&cluster.cluster_name)?);
    let (classes, timing) = (cluster.classes()?, election.timing()?);
    let identity = identity(election.identity)?;
    let client = kube_watch::client(cluster.kubeconfig.as_deref()).await?;

    let (readiness, mut registry) = (Readiness::default(), Registry::default());
    let (metrics, watch_metrics) = (Metrics::register(&mut registry), WatchMetrics::default());
    watch_metrics.register(registry.sub_registry_with_prefix("fairlead_cloud_controller"));
    daemon::metrics::register_process(&mut registry);
    let routes = daemon::routes::standard_routes(readiness.clone(), Arc::new(Mutex::new(registry)));
    let server = daemon::http::Server::bind(metrics_listen, routes)?;

    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn("probes and metrics", server.run(cancel.clone()));
    let (world_tx, world_rx) = mpsc::channel(CHANGES);
    let source = Source::Kube(client.clone());
    let options = Options { metrics: watch_metrics, ..Options::default() };
    let watching = watch_with(source, watch_config(), options, world_tx);
    tasks.spawn("watch", until(cancel.clone(), watching));
    let (pools_tx, pools_rx) = mpsc::channel(CHANGES);
    if metal.is_some() {
        let pools = Api::<IPAddressPool>::all(client.clone());
        let watching = async move {
            watch_kind(pools, kube::runtime::watcher::Config::default(), Some, pools_tx).await;
            Ok(())
        };
        tasks.spawn("watch of pools", until(cancel.clone(), watching));
    }
    // The Lease goes last: the controller cancels this when it writes no more.
    let stop_election = CancellationToken::new();
    let (role_tx, role) = watch_channel::channel(Role::Unknown);
    if election.leader_elect {
        let namespace = &cluster.leader_election_namespace;
        let contend = Election::new(client.clone(), namespace, &identity, timing);
        tasks.spawn("leader election", contend.run(role_tx, stop_election.clone()));
    } else {
        // The only replica there is: its leadership needs no confirmation.
        let always = std::time::Instant::now() + A_LIFETIME;
        role_tx.send_replace(Role::Leading { term: 0, renewed: always });
        let stop = stop_election.clone();
        tasks.spawn("no election", async move {
            stop.cancelled().await;
            drop(role_tx);
            Ok(())
        });
    }
    let state = State {
        world: Arc::default(),
        pools: Pools::default(),
        classes,
        metal,
        aws,
        writers: Writers::new(&client, &identity),
        metrics,
        changes: Changes { world: world_rx, pools: pools_rx },
        ready: Some(readiness.task("first-pass")),
        world_changed: false,
        pools_changed: false,
    };
    if state.classes.enabled.is_empty() {
        tracing::warn!("neither --metal-endpoint nor --aws-region is given: no Service will be served");
    }
    tasks.spawn("controller", control(state, client, (role, stop_election), cancel));
    tokio::select! {
        ended = tasks.join_all(DRAIN) => ended,
        () = shutdown.forced() => anyhow::bail!("ended by a second signal"),
    }
}

/// Stands by, leads, stands by again, until cancelled.
async fn control(
    mut state: State,
    client: Client,
    role: (watch_channel::Receiver<Role>, CancellationToken),
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let (mut role, stop_election) = role;
    let _release = stop_election.drop_guard();
    while !cancel.is_cancelled() {
        let now = *role.borrow_and_update();
        let term = match now {
            Role::Leading { term, .. } if state.has_synced() => term,
            _ => {
                if state.has_synced() && now == Role::Standby {
                    state.ready();
                }
                tokio::select! {
                    () = cancel.cancelled() => {}
                    received = state.changes.receive() => received?.apply(&mut state),
                    changed = role.changed() => if changed.is_err() { cancel.cancelled().await },
                }
                continue;
            }
        };
        // What has arrived may hold records of the leader before: nothing is decided without it.
        if let Some(received) = state.changes.try_receive() {
            received.apply(&mut state);
        }
        let (mut lost, watching) = (role.clone(), role.clone());
        state.metrics.leads(true);
        let led = tokio::select! {
            ended = lead(&mut state, client.clone(), term, watching, &cancel) => Some(ended),
            () = not_leading(&mut lost, term, &cancel) => None,
        };
        state.metrics.leads(false);
        match led {
            None => tracing::warn!(term, "lost the Lease: not writing any more"),
            Some(Ok(())) => {}
            Some(Err(error)) => {
                tracing::error!("{error:#}; trying again in {} s", BEGIN_AGAIN.as_secs());
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = tokio::time::sleep(BEGIN_AGAIN) => {}
                }
            }
        }
    }
    Ok(())
}

async fn lead(
    state: &mut State,
    client: Client,
    term: u64,
    role: watch_channel::Receiver<Role>,
    cancel: &CancellationToken,
) -> anyhow::Result<()> {
    Lead::begin(state, client, term, role).await.context("beginning to lead")?.run(cancel).await
}

/// Resolves when the leadership of `term` is over. Without an election it never is.
async fn not_leading(role: &mut watch_channel::Receiver<Role>, term: u64, cancel: &CancellationToken) {
    let over = |role: &Role| !matches!(role, Role::Leading { term: t, .. } if *t == term);
    if role.wait_for(over).await.is_err() {
        cancel.cancelled().await;
        std::future::pending::<()>().await;
    }
}

fn identity(given: Option<String>) -> anyhow::Result<String> {
    match given.filter(|name| !name.is_empty()) {
        Some(name) => Ok(name),
        None => {
            let name = std::fs::read_to_string("/proc/sys/kernel/hostname")
                .context("reading the host name: pass --identity")?;
            Ok(name.trim().to_owned())
        }
    }
}

async fn until(
    cancel: CancellationToken,
    task: impl Future<Output = anyhow::Result<()>>,
) -> anyhow::Result<()> {
    tokio::select! {
        () = cancel.cancelled() => Ok(()),
        ended = task => ended,
    }
}
