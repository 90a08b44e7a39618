//! A small kubelet: real Node and Pod status, pods as processes in namespaces.
//!
//! One kubelet serves all nodes of the lab. Images are ignored: every container runs the lab's pod
//! program, which serves on the container's ports.

mod environment;
mod node;
mod pod;
mod probe;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::task::JoinSet;

pub use node::HostNode;

/// What every pod of the lab is started with.
pub(crate) struct Shared {
    pub client: Client,
    pub nodes: BTreeMap<String, Arc<HostNode>>,
    pub program: PathBuf,
    pub folder: PathBuf,
    /// For namespaces and interfaces of pods.
    pub prefix: String,
    pub next: AtomicU32,
}

/// Registers the nodes and runs their pods until dropped.
#[derive(Debug)]
pub struct Kubelet {
    task: tokio::task::JoinHandle<()>,
}

impl Kubelet {
    /// # Errors
    /// When a node cannot be registered.
    pub async fn start(
        client: Client,
        nodes: Vec<HostNode>,
        program: PathBuf,
        folder: PathBuf,
        prefix: String,
    ) -> anyhow::Result<Self> {
        for node in &nodes {
            node::register(&client, node).await.with_context(|| format!("registering {}", node.name))?;
        }
        let nodes = nodes.into_iter().map(|n| (n.name.clone(), Arc::new(n))).collect();
        let shared = Arc::new(Shared { client, nodes, program, folder, prefix, next: AtomicU32::new(2) });
        let task = tokio::spawn(async move {
            tokio::join!(node::heartbeats(&shared), run_pods(&shared));
        });
        Ok(Self { task })
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Gives each pod a task of its own, and tells it of every change.
async fn run_pods(shared: &Arc<Shared>) {
    let api: Api<Pod> = Api::all(shared.client.clone());
    let mut events = watcher(api, watcher::Config::default()).default_backoff().boxed();
    let mut pods: BTreeMap<String, watch::Sender<Option<Pod>>> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    while let Some(event) = events.next().await {
        while tasks.try_join_next().is_some() {}
        match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                let Some(uid) = object.metadata.uid.clone() else { continue };
                if let Some(pod) = pods.get(&uid) {
                    pod.send_replace(Some(object));
                    continue;
                }
                let node =
                    object.spec.as_ref().and_then(|s| s.node_name.as_ref()).and_then(|n| shared.nodes.get(n));
                let Some(node) = node.cloned() else { continue };
                let (tx, rx) = watch::channel(Some(object));
                pods.insert(uid, tx);
                let number = shared.next.fetch_add(1, Ordering::Relaxed);
                tasks.spawn(pod::run(Arc::clone(shared), node, number, rx));
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some(pod) = object.metadata.uid.and_then(|uid| pods.remove(&uid)) {
                    pod.send_replace(None);
                }
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => tracing::debug!(%error, "the lab's kubelet lost its watch"),
        }
    }
}
