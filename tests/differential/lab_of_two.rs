//! The API server, the two twins, and the program on each.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::AtomicU32;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use lab::control_plane::{ControlPlane, Identity};
use lab::network::{self, CLUSTER_CIDR, PodNetwork, Switch};
use lab::process::Program;
use lab::programs;
use lab::spawn::{Spawner, Spec};
use lab::sweep::Ground;
use serde_json::json;

use crate::setups::Setup;
use crate::twin::{NODE, Twin};
use crate::zone::ZONE_BEFORE;

#[derive(Debug)]
pub(crate) struct LabOfTwo {
    pub setup: Setup,
    pub control_plane: ControlPlane,
    pub kube_proxy: Twin,
    pub node_agent: Twin,
    /// Batches so far: each has a namespace of its own.
    pub batches: AtomicU32,
    /// External addresses given out so far: each is used once.
    pub addresses: AtomicU32,
    _programs: [Program; 2],
    _switch: Switch,
    _spawner: Spawner,
    ground: Ground,
}

/// As clusters are that were created before addresses were looked at closely.
const LENIENT: &str = "--feature-gates=StrictIPCIDRValidation=false";

impl LabOfTwo {
    /// # Errors
    /// When something is missing on this machine, or does not come up; with what it said.
    pub(crate) async fn start(setup: Setup) -> Result<Self> {
        let ground = Ground::claim(setup.name)?;
        let spawner = Spawner::new(ground.id())?;
        let switch = Switch::create(ground.id())?;
        let host = switch.attach("control-plane", network::CONTROL_PLANE)?;
        let control_plane = ControlPlane::start_with(host, &ground, &spawner, &[LENIENT]).await?;
        // Nobody but this test makes Services and endpoints.
        control_plane.scheduler.stop().await?;
        control_plane.controller_manager.stop().await?;

        let kube_proxy = Twin::create(ground.id(), "theirs", 1, &control_plane).await?;
        let node_agent = Twin::create(ground.id(), "ours", 2, &control_plane).await?;
        create_node(&control_plane, &kube_proxy).await?;
        let rights = include_str!("../../deploy/rbac/node-agent.yaml");
        let manifests = format!(
            "{{apiVersion: v1, kind: Namespace, metadata: {{name: fairlead-system}}}}\n---\n{rights}"
        );
        control_plane.kubectl.apply(&manifests).await?;
        let programs = [
            start_kube_proxy(&setup, &kube_proxy, &control_plane, &ground, &spawner).await?,
            start_node_agent(&setup, &node_agent, &control_plane, &ground, &spawner).await?,
        ];
        let lab = Self {
            setup,
            control_plane,
            kube_proxy,
            node_agent,
            batches: AtomicU32::new(0),
            addresses: AtomicU32::new(0),
            _programs: programs,
            _switch: switch,
            _spawner: spawner,
            ground,
        };
        lab.enter_zone().await?;
        Ok(lab)
    }

    pub(crate) fn twins(&self) -> [&Twin; 2] {
        [&self.kube_proxy, &self.node_agent]
    }

    /// The folder that stays when the lab is gone.
    pub(crate) fn logs(&self) -> PathBuf {
        self.ground.path().join("logs")
    }
}

/// One object for both: they are told the same name.
async fn create_node(control_plane: &ControlPlane, twin: &Twin) -> Result<()> {
    let nodes: Api<Node> = Api::all(control_plane.client.clone());
    let node = serde_json::from_value(json!({
        "metadata": {"name": NODE, "labels": {"topology.kubernetes.io/zone": ZONE_BEFORE, "kubernetes.io/hostname": NODE}},
        "spec": {"podCIDR": PodNetwork(1).cidrs()[0], "podCIDRs": PodNetwork(1).cidrs()},
    }))?;
    nodes.create(&PostParams::default(), &node).await.context("creating the Node")?;
    let addresses = twin.node.addresses().map(|ip| json!({"type": "InternalIP", "address": ip.to_string()}));
    let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
    nodes
        .patch_status(NODE, &PatchParams::default(), &status)
        .await
        .context("giving the Node its addresses")?;
    Ok(())
}

async fn start_kube_proxy(
    setup: &Setup,
    twin: &Twin,
    control_plane: &ControlPlane,
    ground: &Ground,
    spawner: &Spawner,
) -> Result<Program> {
    let config = write_config("kube-proxy", setup, Identity::KubeProxy, control_plane, ground)?;
    let arguments = vec![format!("--config={}", config.display())];
    start("kube-proxy", programs::kubernetes("kube-proxy")?, arguments, twin, ground, spawner).await
}

/// The same for both, but for who they are.
fn write_config(
    program: &str,
    setup: &Setup,
    identity: Identity,
    control_plane: &ControlPlane,
    ground: &Ground,
) -> Result<PathBuf> {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": "nftables",
        "clientConnection": {"kubeconfig": control_plane.kubeconfig(identity)},
        "hostnameOverride": NODE,
        "clusterCIDR": CLUSTER_CIDR,
        "nftables": {"minSyncPeriod": "10ms", "syncPeriod": "30s"},
        // The machine's own limit is not the namespace's to set.
        "conntrack": {"maxPerCore": 0},
    });
    let all = config.as_object_mut().context("it is an object")?;
    all.extend(setup.fields.as_object().cloned().unwrap_or_default());
    let path = ground.path().join(format!("{program}.yaml"));
    std::fs::write(&path, serde_json::to_vec(&config)?)?;
    Ok(path)
}

async fn start_node_agent(
    setup: &Setup,
    twin: &Twin,
    control_plane: &ControlPlane,
    ground: &Ground,
    spawner: &Spawner,
) -> Result<Program> {
    let config = write_config("node-agent", setup, Identity::NodeAgent, control_plane, ground)?;
    let arguments = vec!["run".to_owned(), format!("--config={}", config.display())];
    start("node-agent", programs::ours("node-agent")?, arguments, twin, ground, spawner).await
}

async fn start(
    name: &str,
    program: PathBuf,
    arguments: Vec<String>,
    twin: &Twin,
    ground: &Ground,
    spawner: &Spawner,
) -> Result<Program> {
    let spec = Spec {
        program,
        arguments: arguments.into_iter().map(Into::into).collect(),
        environment: BTreeMap::new(),
        netns: twin.node.netns.clone(),
        hostname: Some(NODE.into()),
        log: ground.log(name),
    };
    Program::start(name, spawner, spec).await
}
