//! The lab's kubelet: pods as processes in namespaces, for all nodes at once.
//!
//! ```text
//! API server ─watch pods, services─▶ Kubelet ─one worker a pod─▶ sandbox (namespace, address)
//!      ▲                                                          └▶ containers ─▶ probes
//!      └────────────── status, heartbeats, removal ◀──────────────────────┘
//! ```

mod container;
mod environment;
mod node;
mod probe;
mod sandbox;
mod status;
mod worker;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::jiff::Timestamp;
use kube::runtime::reflector::{self, Store};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::network::{Host, PodNetwork};
use crate::spawn::Spawner;

/// A node, as its kubelet knows it.
struct Machine {
    lab_id: String,
    host: Host,
    pods: PodNetwork,
    zone: String,
    provider_id: Option<String>,
    /// When it joined.
    since: String,
    addresses: sandbox::Addresses,
    client: kube::Client,
    services: Store<Service>,
    spawner: Spawner,
    logs: PathBuf,
}

/// A node that joins the cluster.
#[derive(Debug, Clone)]
pub struct Member {
    pub host: Host,
    pub pods: PodNetwork,
    pub zone: String,
    pub provider_id: Option<String>,
}

/// The kubelets of all nodes. Dropping it ends every pod at once.
#[derive(Debug)]
pub struct Kubelet {
    services: Store<Service>,
    _tasks: JoinSet<()>,
}

impl Kubelet {
    /// Registers the nodes, and runs the pods that are bound to them from then on.
    ///
    /// # Errors
    /// When a node cannot be registered.
    pub async fn start(
        lab_id: &str,
        client: kube::Client,
        spawner: &Spawner,
        logs: PathBuf,
        members: Vec<Member>,
    ) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let (services, writer) = reflector::store::<Service>();
        let listing = watcher(Api::all(client.clone()), watcher::Config::default()).backoff(Soon);
        tasks.spawn(reflector::reflector(writer, listing).for_each(async |_| {}));
        services.wait_until_ready().await.context("listing Services")?;

        let since = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let machines: BTreeMap<String, Arc<Machine>> = members
            .into_iter()
            .map(|member| {
                let machine = Machine {
                    lab_id: lab_id.to_owned(),
                    host: member.host,
                    pods: member.pods,
                    zone: member.zone,
                    provider_id: member.provider_id,
                    since: since.clone(),
                    addresses: sandbox::Addresses::new(),
                    client: client.clone(),
                    services: services.clone(),
                    spawner: spawner.clone(),
                    logs: logs.clone(),
                };
                (machine.host.name.clone(), Arc::new(machine))
            })
            .collect();
        futures::future::try_join_all(machines.values().map(|machine| node::register(machine))).await?;
        for machine in machines.values().map(Arc::clone) {
            tasks.spawn(async move { node::beat(&machine).await });
        }
        tasks.spawn(run_pods(client, machines));
        Ok(Self { services, _tasks: tasks })
    }

    /// Whether the environment of a pod that starts now names the Service.
    pub fn tells_of(&self, service: &str) -> bool {
        self.services.state().iter().any(|known| known.name_any() == service)
    }
}

/// Between two tries to watch: kube's default grows to half a minute, which a scenario would wait for.
struct Soon;

impl Iterator for Soon {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_millis(500))
    }
}

impl Backoff for Soon {
    fn reset(&mut self) {}
}

/// One worker for every pod that is bound to one of our nodes.
async fn run_pods(client: kube::Client, machines: BTreeMap<String, Arc<Machine>>) {
    let mut workers = Workers { machines, known: BTreeMap::new(), listed: None, tasks: JoinSet::new() };
    let config = watcher::Config::default().fields("spec.nodeName!=");
    let mut events = watcher(Api::<Pod>::all(client), config).backoff(Soon).boxed();
    loop {
        match events.try_next().await {
            Ok(Some(event)) => workers.handle(event),
            Ok(None) => return,
            Err(error) => tracing::debug!("watching pods: {error}"),
        }
    }
}

struct Workers {
    machines: BTreeMap<String, Arc<Machine>>,
    /// By uid.
    known: BTreeMap<String, watch::Sender<Option<Arc<Pod>>>>,
    /// The uids seen in the list that is being received.
    listed: Option<Vec<String>>,
    tasks: JoinSet<()>,
}

impl Workers {
    fn handle(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Init => self.listed = Some(Vec::new()),
            watcher::Event::InitApply(pod) => {
                self.listed.get_or_insert_default().push(pod.uid().unwrap_or_default());
                self.apply(pod);
            }
            watcher::Event::InitDone => {
                let listed = self.listed.take().unwrap_or_default();
                let gone: Vec<String> =
                    self.known.keys().filter(|uid| !listed.contains(uid)).cloned().collect();
                gone.iter().for_each(|uid| self.forget(uid));
            }
            watcher::Event::Apply(pod) => self.apply(pod),
            watcher::Event::Delete(pod) => self.forget(&pod.uid().unwrap_or_default()),
        }
        while self.tasks.try_join_next().is_some() {}
    }

    fn apply(&mut self, pod: Pod) {
        let Some(machine) = pod.spec.as_ref().and_then(|spec| self.machines.get(spec.node_name.as_ref()?))
        else {
            return;
        };
        let uid = pod.uid().unwrap_or_default();
        let pod = Arc::new(pod);
        if let Some(worker) = self.known.get(&uid) {
            worker.send_replace(Some(pod));
            return;
        }
        let ended = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(ended, Some("Succeeded" | "Failed")) {
            return;
        }
        let (sender, receiver) = watch::channel(Some(Arc::clone(&pod)));
        self.tasks.spawn(worker::Worker::new(Arc::clone(machine), receiver, pod).run());
        self.known.insert(uid, sender);
    }

    fn forget(&mut self, uid: &str) {
        if let Some(worker) = self.known.remove(uid) {
            worker.send_replace(None);
        }
    }
}
