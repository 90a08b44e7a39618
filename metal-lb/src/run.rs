//! `metal-lb run`: makes the parts and joins them by channels.
//!
//! ```text
//! control API, store, file ─ documents ─┐          ┌─ standing ─▶ heartbeat, hellos, announcements
//! health ─ reports ─────────────────────┤          ├─ programmed ─▶ GET /v1/state, metrics
//! neighbours ───────────────────────────┼▶ engine ─┤
//! members ─ heard ──────────────────────┘          └─ checks, nodes, tier ─▶ back to the sources
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use daemon::routes::standard_routes;
use daemon::{Readiness, Shutdown, Tasks};
use metal_lb_api::{CURRENT_SCHEMA, Config, HostState};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::args::{PathArgs, RunArgs};
use crate::document_file::DocumentFile;
use crate::engine::{Engine, Input, Outputs};
use crate::health::HealthReport;
use crate::members::transport::Heard;
use crate::members::{Standing, transport};
use crate::metrics::{Events, Traffic};
use crate::neighbours::Neighbours;
use crate::observed::Observed;
use crate::programmed::Programmed;
use crate::server::Control;
use crate::store::Store;
use crate::tls::TlsFiles;
use crate::xdp::maps::Maps;
use crate::xdp::object::Settings;
use crate::xdp::{Mode, XdpBackend};
use crate::{health, l2, neighbours, server};

const HEARTBEAT: Duration = Duration::from_millis(100);
/// Ownership is decided this often even if nothing is heard: silence is an event too.
const TICK: Duration = Duration::from_millis(50);
const RESYNC: Duration = Duration::from_secs(60);
const DRAIN: Duration = Duration::from_secs(2);

/// Where the packet path of these arguments lives.
pub fn settings(path: &PathArgs, max_connections: u32, mode: Mode) -> Settings {
    Settings { interface: path.interface.clone(), bpf_dir: path.bpf_dir.clone(), max_connections, mode }
}

/// Runs until a signal. What is programmed stays, and goes on.
///
/// # Errors
/// What ended the program.
pub async fn run(args: RunArgs) -> anyhow::Result<()> {
    daemon::log::init(args.log_format);
    let shutdown = Shutdown::listen()?;
    let cancel = shutdown.token();
    let readiness = Readiness::default();

    let store = Store::open(&args.state_dir)?;
    let tls = TlsFiles::open(args.tls_cert, args.tls_key, args.tls_client_ca)?;
    let listener = TcpListener::bind(args.listen)
        .await
        .with_context(|| format!("cannot listen on {}: is another metal-lb running here?", args.listen))?;
    let settings = settings(&args.path, args.max_connections, args.xdp_mode.into());
    let (backend, attachment) = XdpBackend::open(&settings)?;
    tracing::info!(interface = %settings.interface, ?attachment, "packet path attached");
    let mac = backend.mac();
    let pinned = || Maps::pinned(&settings.pins());

    // A file in force leaves what a controller once sent alone.
    let stored = if args.config.is_some() { None } else { store.current() };
    let (accepted, documents) = watch::channel(stored);
    let (programmed_tx, programmed) = watch::channel(Arc::new(nothing_programmed(&args.name)));
    let (standing_tx, standing) = watch::channel(Standing::default());
    let (tier_tx, tier) = watch::channel(None);
    let (nodes_tx, nodes) = watch::channel(BTreeSet::new());
    let (checks_tx, checks) = watch::channel(BTreeSet::new());
    let (heard_tx, heard) = mpsc::channel(256);
    let (neighbours_tx, neighbour_changes) = mpsc::channel(16);
    let (reports_tx, reports) = mpsc::channel(256);

    let mut registry = Registry::default();
    let events = Events::default();
    events.register(&mut registry);
    daemon::metrics::register_process(&mut registry);
    let counters = XdpBackend::new(pinned()?, mac)?;
    registry.register_collector(Box::new(Traffic::new(counters, args.name.clone(), programmed.clone())));

    let outputs = Outputs {
        programmed: programmed_tx,
        standing: standing_tx,
        tier: tier_tx,
        nodes: nodes_tx,
        checks: checks_tx,
        events: events.clone(),
        ready: Some(readiness.task("first document programmed")),
    };
    let start = Instant::now();
    let engine = Engine::new(&args.name, backend, outputs, start.elapsed())?;
    let known = link_layer_addresses(engine.observed());
    let inputs = Inputs { documents, heard, neighbours: neighbour_changes, reports };

    let control = Arc::new(Control {
        store: Mutex::new(store),
        file: args.config.as_ref().map(|p| p.display().to_string()),
        controller_name: args.controller_name,
        accepted: accepted.clone(),
        programmed,
    });
    let routes = standard_routes(readiness, Arc::new(Mutex::new(registry)));
    let interface = settings.interface.clone();

    let mut tasks = Tasks::new(cancel.clone());
    tasks.spawn("metrics server", daemon::http::serve(args.metrics_listen, routes, cancel.clone()));
    tasks.spawn("control API", server::serve(listener, tls, control, cancel.clone()));
    tasks.spawn("members", transport::run(args.name, tier, standing.clone(), heard_tx));
    tasks.spawn("neighbours", neighbours::run(interface.clone(), nodes, known, neighbours_tx));
    tasks.spawn("health", health::run(checks, reports_tx));
    tasks.spawn("heartbeat", heartbeat(pinned()?, standing.clone()));
    tasks.spawn("announcements", l2::run(interface, mac, standing, events));
    if let Some(path) = args.config {
        tasks.spawn("document file", DocumentFile::new(path).follow(accepted));
    }
    tasks.spawn("engine", drive(engine, inputs, start, cancel));
    tokio::select! {
        ended = tasks.join_all(DRAIN) => ended,
        () = shutdown.forced() => Ok(()),
    }
}

/// What the engine is told.
struct Inputs {
    documents: watch::Receiver<Option<Arc<Config>>>,
    heard: mpsc::Receiver<Heard>,
    neighbours: mpsc::Receiver<Neighbours>,
    reports: mpsc::Receiver<HealthReport>,
}

async fn drive(
    mut engine: Engine<XdpBackend>,
    mut inputs: Inputs,
    start: Instant,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut ticks = interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut resync = interval(RESYNC);
    resync.tick().await;
    inputs.documents.mark_changed();
    loop {
        let input = tokio::select! {
            () = cancel.cancelled() => return Ok(()),
            Ok(()) = inputs.documents.changed() => {
                inputs.documents.borrow_and_update().clone().map(Input::Document)
            }
            Some(heard) = inputs.heard.recv() => Some(Input::Heard(heard)),
            Some(now) = inputs.neighbours.recv() => Some(Input::Neighbours(now)),
            Some(report) = inputs.reports.recv() => Some(Input::Health(report)),
            _ = ticks.tick() => None,
            _ = resync.tick() => Some(Input::Resync),
        };
        tokio::task::block_in_place(|| {
            let now = start.elapsed();
            input.into_iter().for_each(|input| engine.take(input, now));
            // What came at the same time is decided together.
            while let Ok(heard) = inputs.heard.try_recv() {
                engine.take(Input::Heard(heard), now);
            }
            while let Ok(report) = inputs.reports.try_recv() {
                engine.take(Input::Health(report), now);
            }
            engine.settle(now);
        });
    }
}

/// Writes the sign of life that peers see in the answers to their probes.
async fn heartbeat(maps: Maps, standing: watch::Receiver<Standing>) -> anyhow::Result<()> {
    let mut ticks = interval(HEARTBEAT);
    loop {
        ticks.tick().await;
        // Before the first document there is nothing to be alive for.
        let Some(generation) = standing.borrow().generation else { continue };
        maps.beat(generation)?;
    }
}

pub(crate) fn nothing_programmed(host: &str) -> Programmed {
    let state = HostState {
        host: host.to_owned(),
        schemas: vec![CURRENT_SCHEMA],
        generation: None,
        owner: None,
        vips: Vec::new(),
        listeners: Vec::new(),
    };
    Programmed { state, listeners: BTreeMap::new(), targets: BTreeMap::new(), peers: BTreeMap::new() }
}

/// What an earlier process had learned.
fn link_layer_addresses(observed: &Observed) -> BTreeMap<std::net::Ipv4Addr, crate::desired::Mac> {
    observed.targets.values().filter(|t| t.in_table).filter_map(|t| Some((*t.address.ip(), t.mac?))).collect()
}
