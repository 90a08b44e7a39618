//! A whole cluster, and the verbs that scenarios are written in.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};

use crate::control_plane::{CLUSTER_CIDR, ControlPlane, User};
use crate::kubelet::Kubelet;
use crate::netns::{self, Namespace, output};
use crate::process::Supervised;
use crate::{sweep, wait};

mod certificates;
mod metal;
mod parts;

pub use parts::{NODES, NodeProxy, Provider, host_address, node_address};

/// Long enough for a loaded machine; a scenario that needs it has a reason to say so.
pub const LIMIT: Duration = Duration::from_secs(30);

static NEXT: AtomicU32 = AtomicU32::new(0);

/// A running cluster. Dropping it removes everything.
pub struct Lab {
    // Dropped from top to bottom: programs before the namespaces they run in.
    kubelet: Option<Kubelet>,
    pub controller: Option<Supervised>,
    pub balancers: Vec<Supervised>,
    pub agents: Vec<Supervised>,
    pub plane: ControlPlane,
    pub client: Namespace,
    pub nodes: Vec<Namespace>,
    pub hosts: Vec<Namespace>,
    pub control: Namespace,
    pub switch: Namespace,
    pub folder: PathBuf,
    bpf: PathBuf,
    pub kube: kube::Client,
}

/// How a lab is put together.
#[derive(Debug, Clone)]
pub struct Builder {
    node_proxy: NodeProxy,
    provider: Provider,
    progress: fn(&str),
}

impl Builder {
    #[must_use]
    pub fn node_proxy(self, node_proxy: NodeProxy) -> Self {
        Self { node_proxy, ..self }
    }

    #[must_use]
    pub fn provider(self, provider: Provider) -> Self {
        Self { provider, ..self }
    }

    /// Called with what is done next.
    #[must_use]
    pub fn progress(self, progress: fn(&str)) -> Self {
        Self { progress, ..self }
    }

    /// # Errors
    /// When a part does not start; the message names its log.
    pub async fn start(self) -> anyhow::Result<Lab> {
        Lab::start(self).await
    }
}

impl Lab {
    /// A cluster with our node agent and no provider of load balancers.
    pub fn builder() -> Builder {
        Builder { node_proxy: NodeProxy::NodeAgent, provider: Provider::None, progress: |_| {} }
    }

    async fn start(builder: Builder) -> anyhow::Result<Self> {
        sweep::dead_labs();
        let (pid, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let prefix = format!("{}{number}-", sweep::prefix(pid));
        let folder = sweep::folder(pid).join(number.to_string());
        std::fs::create_dir_all(&folder)?;

        (builder.progress)("making hosts: a switch, a client, 3 nodes, 2 balancer hosts");
        let network = parts::network(&prefix)?;
        (builder.progress)("starting etcd, kube-apiserver, kube-controller-manager, kube-scheduler");
        let plane = ControlPlane::start(&network.control, parts::CONTROL, &folder.join("kube")).await?;
        let kube = plane.client(User::Admin).await?;
        let mut lab = Self {
            kubelet: None,
            controller: None,
            balancers: Vec::new(),
            agents: Vec::new(),
            plane,
            client: network.client,
            nodes: network.nodes,
            hosts: network.hosts,
            control: network.control,
            switch: network.switch,
            bpf: sweep::bpf_folder(pid).join(number.to_string()),
            folder,
            kube,
        };
        (builder.progress)("applying deploy/crds and deploy/rbac");
        lab.apply_deploy().await?;
        (builder.progress)("registering nodes and starting their agents");
        let nodes =
            (1..=NODES).map(|n| parts::host_node(n, &lab.nodes[usize::from(n) - 1], builder.provider));
        let kubelet = Kubelet::start(
            lab.kube.clone(),
            nodes.collect(),
            parts::program("lab-pod")?,
            lab.folder.clone(),
            prefix.clone(),
        );
        lab.kubelet = Some(kubelet.await?);
        lab.start_agents(builder.node_proxy)?;
        if builder.provider == Provider::Metal {
            (builder.progress)("starting two metal-lb hosts and the cloud-controller");
            lab.start_metal().await?;
        }
        Ok(lab)
    }

    fn start_agents(&mut self, proxy: NodeProxy) -> anyhow::Result<()> {
        let user = if proxy == NodeProxy::KubeProxy { User::KubeProxy } else { User::NodeAgent };
        let kubeconfig = self.plane.kubeconfig(user)?;
        let program = match proxy {
            NodeProxy::KubeProxy => self.plane.programs().join("kube-proxy"),
            NodeProxy::NodeAgent => parts::program("node-agent")?,
        };
        for (i, node) in self.nodes.iter().enumerate() {
            let (name, path) = (format!("node-{}", i + 1), node.path());
            let (program, kubeconfig, host) = (program.clone(), kubeconfig.clone(), name.clone());
            let log = self.folder.join(format!("node-agent-{name}.log"));
            self.agents.push(Supervised::start(&name, log, move || {
                let mut command = inside(&path, &program);
                if proxy == NodeProxy::KubeProxy {
                    command.args(["--proxy-mode", "nftables", "--conntrack-max-per-core", "0"]);
                } else {
                    command.arg("run");
                }
                command.arg("--kubeconfig").arg(&kubeconfig).args(["--hostname-override", &host]);
                command.args(["--cluster-cidr", CLUSTER_CIDR]);
                command
            }));
        }
        Ok(())
    }

    /// Every manifest that the product ships for a cluster's API.
    async fn apply_deploy(&self) -> anyhow::Result<()> {
        let deploy = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
        let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: fairlead-system}}";
        self.apply(namespace).await?;
        for folder in ["crds", "rbac"] {
            let mut files: Vec<PathBuf> = std::fs::read_dir(deploy.join(folder))
                .into_iter()
                .flatten()
                .flatten()
                .map(|e| e.path())
                .collect();
            files.sort();
            for file in files.iter().filter(|f| f.extension().is_some_and(|e| e == "yaml")) {
                self.kubectl(&["apply", "--server-side", "-f", &file.display().to_string()])?;
            }
        }
        Ok(())
    }

    /// Runs `kubectl` as the administrator; what it printed.
    ///
    /// # Errors
    /// What it complained about.
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        output(self.plane.kubectl()?.args(args))
    }

    /// `kubectl apply` of a manifest's text.
    ///
    /// # Errors
    /// What the API server refused.
    pub async fn apply(&self, yaml: &str) -> anyhow::Result<String> {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let file = self.folder.join(format!("manifest-{number}.yaml"));
        tokio::fs::write(&file, yaml).await?;
        self.kubectl(&["apply", "-f", &file.display().to_string()])
    }

    /// # Errors
    /// When the Deployment does not exist.
    pub async fn scale(&self, deployment: &str, replicas: u32) -> anyhow::Result<()> {
        let api: Api<Deployment> = Api::default_namespaced(self.kube.clone());
        let patch = serde_json::json!({"spec": {"replicas": replicas}});
        api.patch(deployment, &PatchParams::default(), &Patch::Merge(&patch)).await?;
        Ok(())
    }

    /// Waits until exactly `count` pods carry the label `app` and all of them are ready.
    ///
    /// # Errors
    /// The deadline; with the pods seen.
    pub async fn pods_ready(&self, app: &str, count: usize) -> anyhow::Result<Vec<Pod>> {
        let api: Api<Pod> = Api::default_namespaced(self.kube.clone());
        let selector = ListParams::default().labels(&format!("app={app}"));
        wait::until(&format!("{count} ready pods of {app}"), LIMIT, || async {
            let pods = api.list(&selector).await.map_err(|e| e.to_string())?.items;
            let ready = pods.iter().filter(|p| is_ready(p)).count();
            match (pods.len(), ready) {
                (all, ready) if all == count && ready == count => Ok(pods),
                (all, ready) => Err(format!("{all} pods, {ready} ready")),
            }
        })
        .await
    }

    /// # Errors
    /// When it does not exist.
    pub async fn service(&self, name: &str) -> anyhow::Result<Service> {
        Ok(Api::default_namespaced(self.kube.clone()).get(name).await?)
    }

    /// Waits for the first entry of `status.loadBalancer.ingress`: an IP or a hostname.
    ///
    /// # Errors
    /// The deadline; with the Service's Events.
    pub async fn external_address(&self, name: &str) -> anyhow::Result<String> {
        let api: Api<Service> = Api::default_namespaced(self.kube.clone());
        wait::until(&format!("an external address for {name}"), LIMIT, || async {
            let service = api.get(name).await.map_err(|e| e.to_string())?;
            match external_address(&service) {
                Some(address) => Ok(address),
                None => Err(format!("events: {:?}", self.events_of(name).await.unwrap_or_default())),
            }
        })
        .await
    }

    /// The reasons and messages of a Service's Events, oldest first.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub async fn events_of(&self, service: &str) -> anyhow::Result<Vec<String>> {
        let api: Api<k8s_openapi::api::core::v1::Event> = Api::default_namespaced(self.kube.clone());
        let selector = ListParams::default()
            .fields(&format!("involvedObject.name={service},involvedObject.kind=Service"));
        let mut events = api.list(&selector).await?.items;
        events.sort_by_key(|e| e.metadata.creation_timestamp.clone().map(|t| t.0));
        let text = |e: k8s_openapi::api::core::v1::Event| {
            format!(
                "{} {}: {}",
                e.type_.unwrap_or_default(),
                e.reason.unwrap_or_default(),
                e.message.unwrap_or_default()
            )
        };
        Ok(events.into_iter().map(text).collect())
    }

    /// The namespace of the pod with this name.
    ///
    /// # Errors
    /// When the pod has no address yet.
    pub fn pod_namespace(&self, pod: &Pod) -> anyhow::Result<PathBuf> {
        let ip: Ipv4Addr =
            pod.status.as_ref().and_then(|s| s.pod_ip.as_ref()).context("no pod IP")?.parse()?;
        let prefix = self.client.name().strip_suffix("client").context("an unexpected namespace name")?;
        Ok(format!("/run/netns/{prefix}p{}", ip.octets()[3]).into())
    }

    /// The Service's cluster IP and port.
    ///
    /// # Errors
    /// When it has none.
    pub async fn cluster_address(&self, name: &str) -> anyhow::Result<SocketAddr> {
        let service = self.service(name).await?;
        let spec = service.spec.context("a Service without a spec")?;
        let port = spec.ports.iter().flatten().next().context("a Service without a port")?.port;
        Ok(SocketAddr::new(spec.cluster_ip.context("no cluster IP")?.parse()?, u16::try_from(port)?))
    }

    /// The first port's NodePort.
    ///
    /// # Errors
    /// When it has none.
    pub async fn node_port(&self, name: &str) -> anyhow::Result<u16> {
        let service = self.service(name).await?;
        let ports = service.spec.and_then(|s| s.ports).unwrap_or_default();
        let port =
            ports.first().and_then(|p| p.node_port).with_context(|| format!("{name} has no NodePort"))?;
        Ok(u16::try_from(port)?)
    }
}

impl std::fmt::Debug for Lab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lab").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.bpf));
        // A failed scenario's logs are worth keeping; the next sweep removes them.
        if !std::thread::panicking() {
            drop(std::fs::remove_dir_all(&self.folder));
            // Empty once the last lab of this process is gone.
            drop(self.folder.parent().map(std::fs::remove_dir));
        }
    }
}

/// The first entry of a Service's `status.loadBalancer.ingress`.
pub fn external_address(service: &Service) -> Option<String> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?.first()?;
    ingress.ip.clone().or_else(|| ingress.hostname.clone())
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
}

/// The node that a pod runs on.
pub fn node_of(pod: &Pod) -> &str {
    pod.spec.as_ref().and_then(|s| s.node_name.as_deref()).unwrap_or_default()
}

/// The pods' names, sorted.
pub fn names(pods: &[Pod]) -> Vec<String> {
    let mut names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
    names.sort();
    names
}

pub(crate) fn inside(namespace: &Path, program: &Path) -> Command {
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={}", namespace.display())).arg("--").arg(program);
    command
}

pub(crate) use netns::link;
