//! The program: changes mark Services dirty, one commit a sync.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use daemon::http::{standard_routes, text};
use daemon::{Readiness, ReadyToken, Shutdown, Tasks};
use hyper::StatusCode;
use kube_watch::{Detail, Nodes, Source, WatchConfig, read_dir, watch};
use nfnetlink::{Event, Monitor};
use prometheus_client::registry::Registry;
use service_model::{Change, World};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::args::{Cli, NodeArgs, PlanArgs, RunArgs, Verb};
use crate::config::Config;
use crate::engine::Engine;
use crate::health::Health;
use crate::nft::desired::DesiredService;
use crate::nft::kernel::{self, Kernel};
use crate::nft::layout::TABLE;
use crate::nft::mirror::Mirror;
use crate::nft::plan::{Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::select::Place;

/// Changes that wait in the channel before the watch is held back.
const QUEUE: usize = 1024;
/// The kernel is compared with what we think of it, in case a notification was missed.
const RECHECK: Duration = Duration::from_secs(300);
/// After a failed sync.
const RETRY: Duration = Duration::from_secs(1);
const DRAIN: Duration = Duration::from_secs(2);

/// # Errors
/// What ended the program.
pub async fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Run(args) => run(args).await,
        Verb::Plan(args) => print_plan(&args),
        Verb::Dump(args) => print_dump(&args),
        Verb::Cleanup => kernel::cleanup().context("removing our tables"),
    }
}

fn watch_config(config: &Config) -> WatchConfig {
    let nodes = Nodes::One(config.node_name.clone());
    WatchConfig { services: true, slices: true, nodes, detail: Detail::Dataplane }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    daemon::log::init(args.log_format);
    let shutdown = Shutdown::listen()?;
    let cancel = shutdown.token();
    let config = args.node.config()?;
    let readiness = Readiness::default();
    let first_sync = readiness.task("first sync");
    let (health, registry) = (Health::default(), Arc::new(Mutex::new(Registry::default())));
    let engine = Engine::new(config.clone())?;
    let client = kube_watch::client(args.kubeconfig.as_deref()).await?;
    let (tx, rx) = mpsc::channel(QUEUE);
    tracing::info!(node = %config.node_name, "starting");

    let mut tasks = Tasks::new(cancel.clone());
    let metrics =
        standard_routes(readiness, registry).get("/proxyMode", |_| text(StatusCode::OK, "nftables"));
    tasks.spawn(
        "health server",
        daemon::http::serve(args.healthz_bind_address, health.routes(), cancel.clone()),
    );
    tasks.spawn("metrics server", daemon::http::serve(args.metrics_bind_address, metrics, cancel.clone()));
    let watching = watch(Source::Kube(client), watch_config(&config), tx);
    let stop = cancel.clone();
    tasks.spawn("watch", async move {
        tokio::select! {
            ended = watching => ended,
            () = stop.cancelled() => Ok(()),
        }
    });
    let agent = Agent { world: World::default(), engine, health, config, first_sync: Some(first_sync) };
    tasks.spawn("engine", agent.run(rx, cancel));
    tokio::select! {
        ended = tasks.join_all(DRAIN) => ended,
        () = shutdown.forced() => Ok(()),
    }
}

/// The World, and what is made of it.
struct Agent {
    world: World,
    engine: Engine,
    health: Health,
    config: Config,
    first_sync: Option<ReadyToken>,
}

impl Agent {
    async fn run(
        mut self,
        mut changes: mpsc::Receiver<Change>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        #[expect(
            deprecated,
            reason = "sound here: a Monitor owns its descriptor; the replacement must be called unsafely"
        )]
        let mut monitor = AsyncFd::new(Monitor::open().context("listening to nf_tables")?)?;
        let mut recheck = tokio::time::interval(RECHECK);
        recheck.tick().await;
        let kinds = watch_config(&self.config).kinds();
        let mut retry_at: Option<Instant> = None;
        loop {
            let due = [self.engine.next_due(), retry_at].into_iter().flatten().min();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                change = changes.recv() => match change {
                    None => return Ok(()),
                    Some(change) => {
                        self.apply(change);
                        // What has come meanwhile goes into the same commit.
                        while let Ok(change) = changes.try_recv() {
                            self.apply(change);
                        }
                    }
                },
                touched = notified(&mut monitor) => self.check_generation(touched?),
                _ = recheck.tick() => self.engine.doubt(),
                () = sleep_until(due) => {}
            }
            if !self.world.has_synced(&kinds) {
                continue;
            }
            retry_at = match self.engine.sync(&self.world, Instant::now()) {
                Ok(_) => {
                    self.health.updated(SystemTime::now());
                    if let Some(token) = self.first_sync.take() {
                        token.done();
                    }
                    None
                }
                Err(error) => {
                    tracing::warn!(
                        error = format!("{error:#}"),
                        "the sync failed; reading the kernel and trying again"
                    );
                    self.engine.doubt();
                    Some(Instant::now() + RETRY)
                }
            };
        }
    }

    fn apply(&mut self, change: Change) {
        self.health.queued(SystemTime::now());
        self.world.apply(change);
        let dirty = self.world.take_dirty();
        if !dirty.nodes.is_empty() {
            // The zone decides which endpoints are preferred.
            self.world.mark_all_services();
            let node = self.world.node(&self.config.node_name);
            self.health.set_eligible(node.is_none_or(|n| !n.is_being_removed()));
        }
        self.engine.mark(dirty.services);
        self.engine.mark(self.world.take_dirty().services);
    }

    /// Our own commits are announced too: then the generation is the mirror's.
    fn check_generation(&mut self, touched: bool) {
        match Kernel::open().and_then(|mut kernel| kernel.generation()) {
            Ok(now) if Some(now) == self.engine.generation() => {}
            Ok(now) if !touched => self.engine.follow_generation(now),
            Ok(_) | Err(_) => {
                tracing::warn!(table = TABLE, "somebody else changed our table; reading it again");
                self.engine.doubt();
            }
        }
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Waits for notifications; whether they may be about our table.
async fn notified(monitor: &mut AsyncFd<Monitor>) -> anyhow::Result<bool> {
    let mut ready = monitor.readable_mut().await?;
    let mut events = Vec::new();
    loop {
        match ready.get_inner_mut().receive(&mut events) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error).context("listening to nf_tables"),
        }
    }
    ready.clear_ready();
    let touches = |event: &Event| match event {
        Event::Object { table, .. } => table == TABLE,
        Event::Generation(_) => false,
        Event::Overrun => true,
    };
    Ok(events.iter().any(touches))
}

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
fn print_plan(args: &PlanArgs) -> anyhow::Result<()> {
    let config = args.node.config()?;
    let Source::Dir(path) = &args.source else { anyhow::bail!("a plan is made from dir:PATH") };
    let mut world = World::default();
    for change in read_dir(path, &watch_config(&config))? {
        world.apply(change);
    }
    let place = Place {
        node: &config.node_name,
        zone: world.node(&config.node_name).and_then(service_model::Node::zone),
    };
    let (mut planner, mut mirror) = (Planner::default(), Mirror::default());
    let structure = plan_structure(&Ruleset::both(&config), &mirror);
    structure.now.iter().for_each(|step| mirror.follow(step));
    print!("{structure}");
    let internal = world.node(&config.node_name).into_iter().flat_map(service_model::Node::internal_ips);
    let addresses = config.nodeport_addresses.select(internal, &[]).into_iter().collect();
    print!("{}", plan_node_addresses(&addresses, &mirror));
    let names = world.services().map(|s| s.name.clone()).collect();
    let desired =
        |name: &_| world.service(name).map(|s| DesiredService::of(s, &world, place)).unwrap_or_default();
    print!("{}", planner.plan(&names, desired, &mirror));
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
fn print_dump(args: &NodeArgs) -> anyhow::Result<()> {
    let mirror = Kernel::open()?.observe(&Ruleset::both(&args.config()?))?;
    for address in &mirror.node_addresses {
        println!("NodePorts are answered on {address}");
    }
    for (frontend, state) in &mirror.frontends {
        println!("{frontend} ({}): {:?}", state.label, state.groups);
        for (pool, targets) in [("", &state.cluster), (" on this node", &state.local)] {
            for (index, target) in targets.iter().enumerate() {
                if let Some(target) = target {
                    println!("    #{index}{pool} {target}");
                }
            }
        }
    }
    Ok(())
}
