//! `cloud-controller plan`: reads the world once, prints what would be done, does nothing.

use std::fmt::Write;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, bail};
use kube::{Api, Client};
use kube_watch::{Detail, Listing, Nodes, Source, WatchConfig, watch, watch_kind};
use metal_lb_api::{Host, MemberKey};
use serde::Deserialize;
use service_model::{Kind, Service, World};
use tokio::sync::mpsc;

use crate::args::{ClusterArgs, PlanArgs};
use crate::desired::{Classes, Provider};
use crate::metal::crds::IPAddressPool;
use crate::metal::plan::Step;
use crate::metal::pools::Pools;
use crate::metal::provider::adopt;
use crate::metal::tier::Tier;

/// # Errors
/// What cannot be read, and a Service that is not there.
pub async fn run(args: PlanArgs) -> anyhow::Result<()> {
    let PlanArgs { service, source, cluster } = args;
    let (world, pools) = match source {
        Some(Source::Dir(path)) => (world_of_dir(&path)?, pools_of_dir(&path)?),
        Some(Source::Kube(_)) | None => {
            let client = kube_watch::client(cluster.kubeconfig.as_deref()).await?;
            read_cluster(client, !cluster.metal.endpoints.is_empty()).await?
        }
    };
    if let Some(name) = &service
        && world.service(name).is_none()
    {
        bail!("there is no Service {name}");
    }
    let hosts = cluster.metal.hosts()?;
    let text =
        plan_all(&world, &pools, (&cluster, hosts), |s| service.as_ref().is_none_or(|name| s.name == *name));
    #[expect(clippy::print_stdout, reason = "the plan is this verb's output")]
    {
        print!("{text}");
    }
    Ok(())
}

/// The plans of the Services of ours that `wanted` chooses. Addresses are handed out on paper, so
/// that no two plans promise the same one.
pub fn plan_all(
    world: &World,
    pools: &Pools,
    (cluster, hosts): (&ClusterArgs, Vec<Host>),
    wanted: impl Fn(&Service) -> bool,
) -> String {
    let classes = cluster.classes();
    let mut tier = Tier::new(&cluster.cluster_name, MemberKey::new([0; 32]), hosts, 0, Instant::now());
    tier.set_pools(pools.parsed());
    adopt(&mut tier, world, &classes);
    let mut text = String::new();
    for service in world.services() {
        let plan = plan_one(service, &classes, &mut tier);
        if let Some(plan) = plan.filter(|_| wanted(service)) {
            text += &plan;
        }
    }
    if text.is_empty() {
        text = "no Service here is ours\n".to_owned();
    }
    text
}

fn plan_one(service: &Service, classes: &Classes, tier: &mut Tier) -> Option<String> {
    let verdict = classes.judge(service);
    if verdict == crate::desired::Verdict::default() {
        return None;
    }
    let mut text = String::new();
    for note in &verdict.notes {
        push_lines(&mut text, &note.to_string());
    }
    for (provider, serve) in
        verdict.serve.map(|p| (p, true)).into_iter().chain(verdict.release.iter().map(|p| (*p, false)))
    {
        match provider {
            Provider::Metal => {
                let now = Instant::now();
                let plan = if serve { tier.plan_serve(service, now) } else { tier.plan_release(service) };
                for step in plan.batches.iter().flatten().filter(|s| matches!(s, Step::Allocate { .. })) {
                    // Cannot fail: the plan was made from this very state.
                    let _ = tier.apply(step, now);
                }
                push_lines(&mut text, &plan.to_string());
                if plan.is_empty() && plan.notes.is_empty() {
                    push_lines(&mut text, "nothing to do");
                }
            }
            Provider::Aws => push_lines(&mut text, "planned by the aws provider"),
        }
    }
    Some(format!("{}\n{text}", service.name))
}

fn push_lines(text: &mut String, lines: &str) {
    for line in lines.lines().filter(|l| !l.is_empty()) {
        writeln!(text, "  {line}").expect("writing to a String cannot fail");
    }
}

fn config() -> WatchConfig {
    WatchConfig { services: true, slices: false, nodes: Nodes::All, detail: Detail::Full }
}

async fn read_cluster(client: Client, with_pools: bool) -> anyhow::Result<(World, Pools)> {
    let (tx, mut changes) = mpsc::channel(256);
    let watching = tokio::spawn(watch(Source::Kube(client.clone()), config(), tx));
    let mut world = World::default();
    while !world.has_synced(&[Kind::Service, Kind::Node]) {
        world.apply(changes.recv().await.context("the watch ended")?);
    }
    watching.abort();
    let mut pools = Pools::default();
    if with_pools {
        let (tx, mut events) = mpsc::channel(256);
        let api = Api::<IPAddressPool>::all(client);
        let watching = tokio::spawn(watch_kind(api, kube::runtime::watcher::Config::default(), Some, tx));
        while !pools.has_synced() {
            pools.apply(events.recv().await.context("the watch of pools ended")?);
        }
        watching.abort();
    }
    Ok((world, pools))
}

fn world_of_dir(path: &Path) -> anyhow::Result<World> {
    let mut world = World::default();
    for change in kube_watch::read_dir(path, &config())? {
        world.apply(change);
    }
    Ok(world)
}

fn pools_of_dir(path: &Path) -> anyhow::Result<Pools> {
    let mut pools = Pools::default();
    pools.apply(Listing::Started);
    let entries = std::fs::read_dir(path).with_context(|| format!("reading {}", path.display()))?;
    for entry in entries {
        let file = entry?.path();
        if !file.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json") {
            continue;
        }
        let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let value = serde_yaml_ng::Value::deserialize(document)
                .with_context(|| format!("{} is not YAML", file.display()))?;
            if value.get("kind").and_then(|k| k.as_str()) == Some("IPAddressPool") {
                let pool = serde_yaml_ng::from_value(value).with_context(|| {
                    format!("an IPAddressPool in {} is not of the expected shape", file.display())
                })?;
                pools.apply(Listing::Apply(pool));
            }
        }
    }
    pools.apply(Listing::Ended);
    Ok(pools)
}
