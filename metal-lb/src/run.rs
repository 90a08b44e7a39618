//! The program: inputs mark VIPs dirty, dirty VIPs are planned, plans are applied.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::http::standard_routes;
use daemon::{Readiness, ReadyToken, Shutdown, Tasks};
use metal_lb_api::{CURRENT_SCHEMA, Config, Generation, HostState};
use prometheus_client::registry::Registry;
use tokio::sync::{mpsc, watch};

use crate::args::{Cli, PathArgs, RunArgs, Verb};
use crate::desired::Desired;
use crate::health::{Checks, HealthReport, Probers};
use crate::members::transport::{self, Heard, Tier};
use crate::members::{Members, Ownership};
use crate::neighbours::{self, Neighbours};
use crate::observed::Observed;
use crate::plan::{Backend, Plan, plan, plan_host};
use crate::resolve::{Inputs, checks_of, node_addresses, resolve, vips_of};
use crate::server::Control;
use crate::store::Store;
use crate::tls::TlsFiles;
use crate::xdp::XdpBackend;
use crate::xdp::maps::Maps;
use crate::xdp::object::{self, Settings};
use crate::{l2, server};

const HEARTBEAT: Duration = Duration::from_millis(100);
/// Ownership is decided this often even if nothing is heard: silence is an event too.
const TICK: Duration = Duration::from_millis(50);
/// Everything is planned anew, in case the maps are not what the mirror says.
const RESYNC: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(2);

/// # Errors
/// What ended the program.
pub async fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Run(args) => run(args).await,
        Verb::Check { config } => check(&config),
        Verb::Cleanup(path) => object::cleanup(&settings(&path)),
        Verb::LabXdpPass { interface } => crate::xdp::pass::attach(&interface),
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
fn check(path: &Path) -> anyhow::Result<()> {
    let config = read_config(path)?;
    println!("{}: generation {}, {} listeners", path.display(), config.generation, config.listeners.len());
    Ok(())
}

fn read_config(path: &Path) -> anyhow::Result<Config> {
    let json = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    Config::parse(&json).with_context(|| format!("{} is not a valid document", path.display()))
}

fn settings(path: &PathArgs) -> Settings {
    Settings {
        interface: path.interface.clone(),
        bpf_dir: path.bpf_dir.clone(),
        max_connections: path.max_connections,
        mode: path.xdp_mode.into(),
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    daemon::log::init(args.log_format);
    let shutdown = Shutdown::listen()?;
    let cancel = shutdown.token();
    let readiness = Readiness::default();
    let programmed = readiness.task("first document programmed");

    let store = Store::open(&args.state_dir)?;
    let settings = settings(&args.path);
    let (mut backend, attachment) = XdpBackend::open(&settings)?;
    let observed = backend.observe()?;
    tracing::info!(interface = %settings.interface, ?attachment, vips = observed.vips.len(), "packet path attached");
    let mac = backend.mac();

    let (accepted, documents) = watch::channel(store.current());
    let (state_tx, state) = watch::channel(Arc::new(empty_state(&args.name)));
    let (owned_tx, owned) = watch::channel(BTreeSet::new());
    let (tier_tx, tier) = watch::channel(None);
    let (nodes_tx, nodes) = watch::channel(BTreeSet::new());
    let (generation_tx, generation) = watch::channel(None);
    let (heard_tx, heard) = mpsc::channel(256);
    let (neighbours_tx, neighbours) = mpsc::channel(16);
    let (reports_tx, reports) = mpsc::channel(256);

    let control = Arc::new(Control {
        store: Mutex::new(store),
        file: args.config.as_ref().map(|p| p.display().to_string()),
        controller_name: args.controller_name.clone(),
        accepted: accepted.clone(),
        state,
    });
    let tls = TlsFiles::open(args.tls_cert.clone(), args.tls_key.clone(), args.tls_client_ca.clone())?;
    let listener = tokio::net::TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}: is another metal-lb running here?", args.listen))?;

    let registry = Arc::new(Mutex::new(Registry::default()));
    let resumed = observed.vips.iter().filter(|(_, owned)| **owned).map(|(vip, _)| *vip).collect();
    let engine = Engine {
        name: args.name.clone(),
        start: Instant::now(),
        members: Members::new(&args.name, resumed, Duration::ZERO),
        config: None,
        checks: Checks::new(),
        neighbours: Neighbours { carrier: true, ..Neighbours::default() },
        owners: BTreeMap::new(),
        planned: Desired::default(),
        observed,
        backend,
        probers: Probers::new(reports_tx),
        outputs: Outputs {
            state: state_tx,
            owned: owned_tx,
            tier: tier_tx,
            nodes: nodes_tx,
            generation: generation_tx,
        },
        programmed: Some(programmed),
    };

    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn(
        "metrics server",
        daemon::http::serve(args.metrics_listen, standard_routes(readiness, registry), cancel.clone()),
    );
    tasks.spawn("control API", server::serve(listener, tls, control, cancel.clone()));
    tasks.spawn("members", transport::run(args.name.clone(), tier, owned.clone(), heard_tx));
    tasks.spawn("neighbours", neighbours::run(settings.interface.clone(), nodes, neighbours_tx));
    tasks.spawn("announcements", l2::run(settings.interface.clone(), mac, owned));
    tasks.spawn("heartbeat", heartbeat(Maps::pinned(&settings.pins())?, generation));
    if let Some(path) = args.config.clone() {
        tasks.spawn("document file", follow_file(path, accepted));
    }
    tasks.spawn("engine", engine.run(documents, heard, neighbours, reports, cancel));
    tokio::select! {
        ended = tasks.join_all(DRAIN) => ended,
        () = shutdown.forced() => Ok(()),
    }
}

/// Reads the file again whenever it changes. A mistake in it leaves the last good document in force.
async fn follow_file(
    path: std::path::PathBuf,
    accepted: watch::Sender<Option<Arc<Config>>>,
) -> anyhow::Result<()> {
    accepted.send_replace(Some(Arc::new(read_config(&path)?)));
    let mut seen = std::fs::metadata(&path).and_then(|m| m.modified()).ok();
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = std::fs::metadata(&path).and_then(|m| m.modified()).ok();
        if now == seen {
            continue;
        }
        seen = now;
        match read_config(&path) {
            Ok(config) => drop(accepted.send_replace(Some(Arc::new(config)))),
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the last good document stays in force")
            }
        }
    }
}

/// Writes the sign of life that peers see in the answers to their probes.
async fn heartbeat(maps: Maps, generation: watch::Receiver<Option<Generation>>) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(HEARTBEAT);
    loop {
        ticks.tick().await;
        // Before the first document there is nothing to be alive for.
        let Some(generation) = *generation.borrow() else { continue };
        maps.beat(generation)?;
    }
}

fn empty_state(host: &str) -> HostState {
    HostState {
        host: host.to_owned(),
        schemas: vec![CURRENT_SCHEMA],
        generation: None,
        owner: None,
        vips: Vec::new(),
        listeners: Vec::new(),
    }
}

/// Where decisions go.
struct Outputs {
    state: watch::Sender<Arc<HostState>>,
    owned: watch::Sender<BTreeSet<Ipv4Addr>>,
    tier: watch::Sender<Option<Tier>>,
    nodes: watch::Sender<BTreeSet<Ipv4Addr>>,
    /// Of the document that is programmed; the heartbeat carries it.
    generation: watch::Sender<Option<Generation>>,
}

/// The one owner of everything that decides.
struct Engine {
    name: String,
    start: Instant,
    members: Members,
    config: Option<Arc<Config>>,
    checks: Checks,
    neighbours: Neighbours,
    owners: BTreeMap<Ipv4Addr, Ownership>,
    /// What the mirror was last brought to.
    planned: Desired,
    observed: Observed,
    backend: XdpBackend,
    probers: Probers,
    outputs: Outputs,
    programmed: Option<ReadyToken>,
}

impl Engine {
    async fn run(
        mut self,
        mut documents: watch::Receiver<Option<Arc<Config>>>,
        mut heard: mpsc::Receiver<Heard>,
        mut neighbours: mpsc::Receiver<Neighbours>,
        mut reports: mpsc::Receiver<HealthReport>,
        cancel: tokio_util::sync::CancellationToken,
    ) -> anyhow::Result<()> {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut resync = tokio::time::interval(RESYNC);
        resync.tick().await;
        documents.mark_changed();
        loop {
            let mut changed = true;
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                Ok(()) = documents.changed() => {
                    let config = documents.borrow_and_update().clone();
                    self.set_document(config);
                }
                Some(heard) = heard.recv() => { changed = false; self.hear(heard); }
                Some(now) = neighbours.recv() => self.set_neighbours(now),
                Some(report) = reports.recv() => {
                    tracing::debug!(node = %report.check.0, verdict = ?report.verdict, why = %report.why, "health");
                    self.checks.insert(report.check, (report.verdict, report.why));
                }
                _ = ticks.tick() => changed = false,
                _ = resync.tick() => self.planned = Desired::default(),
            }
            let owners = self.members.decide(self.start.elapsed());
            if owners != self.owners {
                self.owners = owners;
                changed = true;
            }
            if changed {
                self.sync();
            }
        }
    }

    fn set_document(&mut self, config: Option<Arc<Config>>) {
        let Some(config) = config else { return };
        tracing::info!(generation = %config.generation, listeners = config.listeners.len(), "document in force");
        let hosts: BTreeSet<String> = config.hosts.iter().map(|h| h.name.clone()).collect();
        let tier = Tier::of(&config, &self.name);
        if tier.is_none() {
            tracing::error!(name = %self.name, ?hosts, "this host is not in the document: check --name; it owns nothing");
        }
        let vips = if tier.is_some() { vips_of(&config) } else { BTreeSet::new() };
        self.members.set_document(vips, &hosts);
        let wanted = checks_of(&config);
        self.checks.retain(|check, _| wanted.contains(check));
        self.probers.set(&wanted);
        self.outputs.nodes.send_replace(node_addresses(&config));
        self.outputs.tier.send_if_modified(|present| {
            let changed = *present != tier;
            *present = tier;
            changed
        });
        self.config = Some(config);
    }

    fn hear(&mut self, heard: Heard) {
        let now = self.start.elapsed();
        match heard {
            Heard::Answer { peer, age } => self.members.on_answer(&peer, age, now),
            Heard::Hello { peer, owned } => self.members.on_hello(&peer, owned, now),
        }
    }

    fn set_neighbours(&mut self, now: Neighbours) {
        if now.carrier != self.neighbours.carrier {
            tracing::warn!(carrier = now.carrier, "the interface's link changed");
            self.members.set_carrier(now.carrier, self.start.elapsed());
        }
        self.neighbours = now;
    }

    /// Plans and applies what differs from the last time, then says what is.
    fn sync(&mut self) {
        let Some(config) = self.config.clone() else { return };
        let inputs = Inputs {
            host: &self.name,
            config: &config,
            checks: &self.checks,
            neighbours: &self.neighbours,
            owners: &self.owners,
        };
        let resolved = resolve(&inputs);
        // The program must know its ports and addresses before it takes a packet.
        let mut applied = self.apply_plan(&plan_host(&resolved.desired, &self.observed));
        for vip in dirty(&self.planned, &resolved.desired, &self.observed) {
            applied &= self.sync_vip(vip, &resolved.desired);
        }
        if !applied {
            // Whatever the maps hold now, the next tick starts from there.
            self.planned = Desired::default();
            match self.backend.observe() {
                Ok(observed) => self.observed = observed,
                Err(error) => tracing::error!(error = format!("{error:#}"), "the maps cannot be read"),
            }
            return;
        }
        self.planned = resolved.desired;
        self.outputs.generation.send_replace(Some(config.generation));
        let owned: BTreeSet<Ipv4Addr> =
            self.observed.vips.iter().filter(|(_, o)| **o).map(|(v, _)| *v).collect();
        self.outputs.owned.send_if_modified(|present| {
            let changed = *present != owned;
            *present = owned;
            changed
        });
        self.outputs.state.send_replace(Arc::new(resolved.state));
        if let Some(token) = self.programmed.take() {
            token.done();
        }
    }

    fn sync_vip(&mut self, vip: Ipv4Addr, desired: &Desired) -> bool {
        let plan = plan(vip, desired, &self.observed);
        self.apply_plan(&plan)
    }

    fn apply_plan(&mut self, plan: &Plan) -> bool {
        for note in &plan.notes {
            tracing::error!("{note}");
        }
        for batch in &plan.batches {
            for step in batch {
                tracing::info!("{step}");
            }
            if let Err(error) = self.backend.apply(batch) {
                tracing::error!(
                    error = format!("{error:#}"),
                    "a step failed; reading the maps and planning anew"
                );
                return false;
            }
            for step in batch {
                if let Err(error) = self.observed.apply(step) {
                    tracing::error!(%error, "the mirror disagrees with the plan; reading the maps");
                    return false;
                }
            }
        }
        true
    }
}

/// The VIPs whose part of the desired state changed, and those that nobody wants any more.
fn dirty(before: &Desired, after: &Desired, observed: &Observed) -> BTreeSet<Ipv4Addr> {
    let listeners = |d: &Desired, vip| d.listeners_of(vip).map(|(k, v)| (*k, v.clone())).collect::<Vec<_>>();
    let addresses: BTreeSet<Ipv4Addr> =
        before.vips.keys().chain(after.vips.keys()).copied().chain(observed.addresses()).collect();
    let changed = |vip: &Ipv4Addr| {
        before.vips.get(vip) != after.vips.get(vip)
            || listeners(before, *vip) != listeners(after, *vip)
            || !after.vips.contains_key(vip)
    };
    addresses.into_iter().filter(changed).collect()
}

/// A poisoned lock only means that a request panicked; the store itself is written atomically.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
