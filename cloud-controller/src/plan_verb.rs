//! `cloud-controller plan`: reads the world once, prints what would be done, does nothing.

use std::fmt::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use kube::{Api, Client};
use kube_watch::{Detail, Listing, Nodes, Source, WatchConfig, watch, watch_kind};
use metal_lb_api::MemberKey;
use serde::Deserialize;
use service_model::{Kind, Service, World};
use tokio::sync::mpsc;

use crate::args::{ClusterArgs, PlanArgs};
use crate::aws;
use crate::desired::{Classes, Provider};
use crate::metal::crds::IPAddressPool;
use crate::metal::plan::Step;
use crate::metal::pools::Pools;
use crate::metal::provider::adopt;
use crate::metal::tier::Tier;
use crate::plan::Plan;
use crate::providers::Work;

/// How long the lists of a large cluster may take.
const READ_CLUSTER: Duration = Duration::from_secs(60);

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
    let mut planner = Planner::new(&cluster, &world, &pools).await?;
    let mut text = String::new();
    for candidate in world.services() {
        let wanted = service.as_ref().is_none_or(|name| candidate.name == *name);
        text += &planner.plan(candidate, &world, wanted).await;
    }
    if text.is_empty() {
        text = "no Service here is ours\n".to_owned();
    }
    #[expect(clippy::print_stdout, reason = "the plan is this verb's output")]
    {
        print!("{text}");
    }
    Ok(())
}

/// Plans one Service after the other. Addresses are handed out on paper, so that no two plans
/// promise the same one.
struct Planner {
    classes: Classes,
    tier: Tier,
    aws: Option<aws::Provider>,
}

impl Planner {
    async fn new(cluster: &ClusterArgs, world: &World, pools: &Pools) -> anyhow::Result<Self> {
        let (classes, hosts) = (cluster.classes()?, cluster.metal.hosts()?);
        let mut tier = Tier::new(&cluster.cluster_name, MemberKey::new([0; 32]), hosts, 0, Instant::now());
        tier.set_pools(pools.parsed());
        adopt(&mut tier, world, &classes);
        let aws = match cluster.aws.setup(&cluster.cluster_name)? {
            Some(setup) => Some(aws::Provider::new(&setup).await),
            None => None,
        };
        Ok(Self { classes, tier, aws })
    }

    /// Nothing for a Service that is none of our business, or that is not `wanted`: such a one only
    /// takes its address.
    async fn plan(&mut self, service: &Service, world: &World, wanted: bool) -> String {
        let verdict = self.classes.judge(service);
        let mut text = String::new();
        for note in &verdict.notes {
            push_lines(&mut text, &note.to_string());
        }
        let serve = verdict.serve.map(|p| (p, Work::Reconcile));
        let release = verdict.release.iter().map(|p| (*p, Work::Release));
        for (provider, work) in serve.into_iter().chain(release) {
            match provider {
                Provider::Metal => push_plan(&mut text, &self.plan_metal(service, work)),
                Provider::Aws if wanted => self.plan_aws(service, world, work, &mut text).await,
                Provider::Aws => {}
            }
        }
        if wanted && !text.is_empty() { format!("{}\n{text}", service.name) } else { String::new() }
    }

    fn plan_metal(&mut self, service: &Service, work: Work) -> Plan<Step> {
        let now = Instant::now();
        let plan = match work {
            Work::Reconcile => self.tier.plan_serve(service, now),
            Work::Release => self.tier.plan_release(service),
        };
        for step in plan.batches.iter().flatten().filter(|s| matches!(s, Step::Allocate { .. })) {
            let taken = self.tier.apply(step, now);
            debug_assert!(taken.is_ok(), "the plan was made from this very state: {taken:?}");
        }
        plan
    }

    async fn plan_aws(&self, service: &Service, world: &World, work: Work, text: &mut String) {
        let Some(aws) = &self.aws else { return };
        let plan = match work {
            Work::Reconcile => aws.plan(service, world).await,
            Work::Release => aws.plan_release(service).await,
        };
        match plan {
            Ok(plan) => push_plan(text, &plan),
            Err(error) => push_lines(text, &format!("cannot be planned: {error}")),
        }
    }
}

fn push_plan<S: std::fmt::Display>(text: &mut String, plan: &Plan<S>) {
    push_lines(text, &plan.to_string());
    if plan.is_empty() && plan.notes.is_empty() {
        push_lines(text, "nothing to do");
    }
}

fn push_lines(text: &mut String, lines: &str) {
    for line in lines.lines().filter(|l| !l.is_empty()) {
        writeln!(text, "  {line}").expect("writing to a String cannot fail");
    }
}

fn config() -> WatchConfig {
    WatchConfig {
        services: true,
        slices: false,
        nodes: Nodes::All,
        service_cidrs: false,
        detail: Detail::Full,
    }
}

/// Watches try again for ever; a person who waits for a plan wants to know.
async fn read_cluster(client: Client, with_pools: bool) -> anyhow::Result<(World, Pools)> {
    client.apiserver_version().await.context("the API server does not answer: is --kubeconfig right?")?;
    let reading = tokio::time::timeout(READ_CLUSTER, list_cluster(client, with_pools));
    let seconds = READ_CLUSTER.as_secs();
    reading.await.with_context(|| format!("the cluster could not be read within {seconds} s; see above"))?
}

async fn list_cluster(client: Client, with_pools: bool) -> anyhow::Result<(World, Pools)> {
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
