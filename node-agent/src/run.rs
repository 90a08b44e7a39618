//! The program: who watches, who works, who answers.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use daemon::http::{self, json, text};
use daemon::routes::standard_routes;
use daemon::{Readiness, Shutdown, Tasks};
use hyper::StatusCode;
use kube_events::Writer;
use kube_watch::{Options, Source, WatchMetrics, watch_with};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::agent::Agent;
use crate::args::{Cli, RunArgs, Verb};
use crate::config::{Config, Families, Listen};
use crate::conntrack::Reconciler;
use crate::conntrack::sysctls::{self, Unset};
use crate::events::{self, Events};
use crate::health::{Health, without_sniffing};
use crate::kube_proxy::{file, watch::Watched};
use crate::leftovers::{self, Connections, Report, take_over::take_over};
use crate::metrics::{self, Metrics};
use crate::nft::kernel;
use crate::settings::Settings;
use crate::verbs::print_plan;
use crate::{dump, explain, preflight};

/// Changes that wait in the channel before the watch is held back.
const QUEUE: usize = 1024;
/// The name under which kube-proxy shows its configuration.
const CONFIGZ: &str = "kubeproxy.config.k8s.io";
const DRAIN: Duration = Duration::from_secs(2);

/// # Errors
/// What ended the program.
pub async fn main(cli: Cli) -> anyhow::Result<()> {
    match cli.verb {
        Verb::Run(args) => run(args).await,
        Verb::Plan(args) => print_plan(&args),
        Verb::Dump(args) => dump::print(&args),
        Verb::Explain(args) => explain::print(&args),
        Verb::Preflight(args) => preflight::print(&args),
        Verb::Cleanup(args) => clean_up(args.kube_proxy),
    }
}

async fn run(args: RunArgs) -> anyhow::Result<()> {
    let file = args.configured.config.as_deref().map(Watched::new).transpose()?;
    let settings = Settings::new(&args.configured)?;
    daemon::log::init_with(settings.log_format, settings.verbose);
    for warning in &settings.warnings {
        tracing::warn!("{warning}");
    }
    if let Some(path) = &args.write_config_to {
        return file::write(path, &settings.source);
    }
    if args.cleanup {
        return clean_up(true);
    }
    // First, since it makes the kernel load the connection table: before there is nothing to be set.
    let kernel = preflight::check()?;
    let unset = sysctls::apply(&settings.source.conntrack);
    if args.init_only {
        return all_set(&unset);
    }
    for unset in unset {
        tracing::warn!("{unset}; set it on the host, run --init-only with more rights, or do not ask for it");
    }
    adjust_oom_score(settings.oom_score_adj);
    if let Err(error) = raise_descriptor_limit() {
        tracing::debug!(%error, "the limit of descriptors stays as it is");
    }
    serve(settings, &kernel, file, &args).await
}

async fn serve(
    settings: Settings,
    kernel: &preflight::Report,
    file: Option<Watched>,
    args: &RunArgs,
) -> anyhow::Result<()> {
    let shutdown = Shutdown::listen()?;
    let cancel = shutdown.token();
    let (events, told) = Events::channel();
    let families = served_families(kernel, &settings.config.node_name, &events)?;
    let config = Config { families, ..settings.config };
    let readiness = Readiness::default();
    let registry = Arc::new(Mutex::new(Registry::default()));
    let (metrics, watch_metrics) = {
        let mut registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
        daemon::metrics::register_process(&mut registry);
        let watch_metrics = WatchMetrics::default();
        watch_metrics.register(registry.sub_registry_with_prefix("fairlead_node_agent"));
        metrics::denied::register(&config, &mut registry);
        (Metrics::register(&mut registry), watch_metrics)
    };
    let health = Health::new(settings.sync_period).of(families);
    let first_sync = readiness.task("first sync");
    let agent =
        Agent::new(config.clone(), settings.min_sync_period, health.clone(), metrics.clone(), first_sync)?;
    let (feed, reconciler) = Reconciler::new(metrics.clone())?;
    let agent = agent.telling(events.clone()).feeding(feed).overriding(settings.overrides);
    let client = kube_watch::client_to(settings.kubeconfig.as_deref(), args.master.as_deref()).await?;
    let writer = Writer::new(client.clone(), events::CONTROLLER, &config.node_name);
    events.of_node(&config.node_name, events::STARTING, String::new());
    let (tx, rx) = mpsc::channel(QUEUE);
    tracing::info!(node = %config.node_name, "starting");

    let mut tasks = Tasks::new(cancel.clone());
    let configz = serde_json::json!({ CONFIGZ: settings.source.written() }).to_string();
    let own_routes = standard_routes(readiness.clone(), registry)
        .get("/proxyMode", |_| without_sniffing(text(StatusCode::OK, "nftables")))
        // kube-proxy's says that the process runs, and no more.
        .get("/healthz", |_| without_sniffing(text(StatusCode::OK, "ok")))
        .get("/configz", move |_| json(StatusCode::OK, configz.clone()));
    let servers = [
        ("health server", settings.healthz, health.routes(&metrics)),
        ("metrics server", settings.metrics, own_routes),
    ];
    for (name, Listen(address), routes) in servers {
        if let Some(address) = address {
            let cancel = cancel.clone();
            if settings.hard_fail {
                tasks.spawn(name, http::serve(address, routes, cancel));
            } else {
                tasks.spawn(name, http::serve_once_free(address, routes, readiness.task(name), cancel));
            }
        }
    }
    let options = Options { metrics: watch_metrics, ..Options::default() };
    let watching = watch_with(Source::Kube(client), config.watches(), options, tx);
    let stop = cancel.clone();
    tasks.spawn("watch", async move { stop.run_until_cancelled(watching).await.unwrap_or(Ok(())) });
    tasks.spawn("conntrack", reconciler.run(cancel.clone()));
    if let Some(file) = file {
        let configured = args.configured.clone();
        let usable = move || Settings::new(&configured).map(drop);
        tasks.spawn("configuration file", file.ends_when_changed(usable, cancel.clone()));
    }
    tasks.spawn("take-over", take_over(readiness, cancel.clone()));
    let stop = cancel.clone();
    let writing = events::write(writer, told);
    tasks.spawn("events", async move {
        // They end together: what is not written by then is not written.
        stop.run_until_cancelled(writing).await;
        Ok(())
    });
    tasks.spawn("agent", agent.run(rx, cancel));
    tokio::select! {
        ended = tasks.join_all(DRAIN) => ended,
        () = shutdown.forced() => Ok(()),
    }
}

#[expect(clippy::print_stdout, reason = "the answer of a command line verb")]
fn clean_up(kube_proxys_too: bool) -> anyhow::Result<()> {
    kernel::cleanup().context("removing our tables needs CAP_NET_ADMIN")?;
    if kube_proxys_too {
        let report = leftovers::remove(Connections::End)?;
        let none = "nothing of kube-proxy's is here".to_owned();
        println!("{}", if report == Report::default() { none } else { report.to_string() });
        anyhow::ensure!(report.left.is_empty(), "not all of kube-proxy's could be removed");
    }
    Ok(())
}

/// For an init container this is all there is to do; who goes on serves with what there is.
fn all_set(unset: &[Unset]) -> anyhow::Result<()> {
    let unset: Vec<String> = unset.iter().map(Unset::to_string).collect();
    anyhow::ensure!(
        unset.is_empty(),
        "{}; set it on the host, run this with more rights, or do not ask for it (--conntrack-*)",
        unset.join("; ")
    );
    Ok(())
}

/// To what whoever started the program allows, as Go's runtime does: the lower limit that it begins with is for programs
/// that use select(2).
///
/// # Errors
/// Where it may not: then it stays as it is.
pub fn raise_descriptor_limit() -> std::io::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?)
}

/// As kube-proxy: where it may not, it goes on.
fn adjust_oom_score(score: i32) {
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::debug!(score, %error, "the OOM score stays as it is");
    }
}

/// What this kernel lacks is told, and switches off the family that needs it.
fn served_families(report: &preflight::Report, node: &str, events: &Events) -> anyhow::Result<Families> {
    for warning in &report.warnings {
        tracing::warn!("{warning}");
    }
    let families = report.families()?;
    if families != Families::default() {
        tracing::error!(
            lacks = report.lacks(),
            "this kernel cannot serve one of the address families; it is left out"
        );
        let message =
            format!("One address family is left out on this node, as its kernel lacks {}", report.lacks());
        events.of_node(node, events::FAMILY_NOT_SERVED, message);
    }
    Ok(families)
}
