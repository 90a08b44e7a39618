//! From nothing to a cluster whose nodes are ready.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::Node as NodeObject;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio::sync::Semaphore;

use super::{Lab, Node, NodeProxy};
use crate::control_plane::{ControlPlane, Identity};
use crate::kubelet::{Kubelet, Member};
use crate::network::{self, Host, PodNetwork, Switch};
use crate::process::Program;
use crate::spawn::{Spawner, Spec};
use crate::sweep::Ground;
use crate::{programs, wait};

/// Two labs at once would share two cores, and each other's deadlines: one at a time in a process.
static TURN: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(1)));

/// Pods' traffic to the world leaves with the node's address, as network plugins have it.
const MASQUERADE: &str = "
table inet lab-cni {
    chain postrouting {
        type nat hook postrouting priority srcnat + 10;
        ip saddr 10.244.0.0/16 ip daddr != 10.244.0.0/16 oifname eth0 masquerade
        ip6 saddr fd00:10:244::/56 ip6 daddr != fd00:10:244::/56 oifname eth0 masquerade
    }
}";

/// What the lab shall have.
#[derive(Debug, Clone)]
pub struct Builder {
    name: String,
    nodes: u8,
    proxy: NodeProxy,
}

impl Builder {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.to_owned(), nodes: 3, proxy: NodeProxy::NodeAgent }
    }

    #[must_use]
    pub fn nodes(self, nodes: u8) -> Self {
        Self { nodes, ..self }
    }

    #[must_use]
    pub fn node_proxy(self, proxy: NodeProxy) -> Self {
        Self { proxy, ..self }
    }

    /// Builds it; returns when all nodes are ready.
    ///
    /// # Errors
    /// When something is missing on this machine, or does not come up in time; with what it said.
    pub async fn start(self) -> Result<Lab> {
        let turn = Arc::clone(&TURN).acquire_owned().await.context("nobody closes the semaphore")?;
        let ground = Ground::claim(&self.name)?;
        let spawner = Spawner::new(ground.id())?;

        let switch = Switch::create(ground.id())?;
        let control_host = switch.attach("control-plane", network::CONTROL_PLANE)?;
        let (control_plane, network) =
            tokio::join!(ControlPlane::start(control_host, &ground, &spawner), self.hosts(&switch));
        let (control_plane, (node_hosts, client_host)) = (control_plane?, network?);

        let kubelet = self.join(&ground, &spawner, &control_plane, &node_hosts).await?;
        let mut nodes = Vec::new();
        for host in node_hosts {
            let proxy = self.start_proxy(&ground, &spawner, &control_plane, &host).await?;
            nodes.push(Node { host, proxy });
        }
        let lab = Lab {
            _kubelet: kubelet,
            nodes,
            control_plane,
            client_host,
            switch,
            _spawner: spawner,
            ground,
            _turn: turn,
        };
        lab.await_nodes().await?;
        Ok(lab)
    }

    async fn hosts(&self, switch: &Switch) -> Result<(Vec<Host>, Host)> {
        let nodes = (0..self.nodes)
            .map(|nth| switch.attach(&format!("node-{}", nth + 1), network::FIRST_NODE + nth))
            .collect::<Result<Vec<_>>>()?;
        for node in &nodes {
            network::make_node(node, &nodes)?;
            node.netns.tool("nft", &[MASQUERADE])?;
        }
        switch.route_pods(&nodes)?;
        let client = switch.attach("client", network::CLIENT)?;
        network::make_client(&client)?;
        Ok((nodes, client))
    }

    async fn join(
        &self,
        ground: &Ground,
        spawner: &Spawner,
        control_plane: &ControlPlane,
        hosts: &[Host],
    ) -> Result<Kubelet> {
        let members = (1..)
            .zip(hosts)
            .map(|(nth, host)| Member {
                host: host.clone(),
                pods: PodNetwork(nth),
                zone: format!("lab-{}", char::from(b'a' + (nth - 1) % 3)),
                provider_id: None,
            })
            .collect();
        let client = control_plane.client_of(Identity::Kubelet).await?;
        Kubelet::start(ground.id(), client, spawner, ground.path().join("logs"), members).await
    }

    async fn start_proxy(
        &self,
        ground: &Ground,
        spawner: &Spawner,
        control_plane: &ControlPlane,
        host: &Host,
    ) -> Result<Program> {
        let (program, identity, own_flags): (_, _, &[&str]) = match self.proxy {
            NodeProxy::NodeAgent => (programs::ours("node-agent")?, Identity::NodeAgent, &["run"]),
            NodeProxy::KubeProxy => (
                programs::kubernetes("kube-proxy")?,
                Identity::KubeProxy,
                &["--proxy-mode=nftables", "--conntrack-max-per-core=0"],
            ),
        };
        let mut arguments: Vec<String> = own_flags.iter().map(|flag| (*flag).to_owned()).collect();
        arguments.extend([
            format!("--kubeconfig={}", control_plane.kubeconfig(identity).display()),
            format!("--hostname-override={}", host.name),
            format!("--cluster-cidr={}", network::CLUSTER_CIDR),
        ]);
        let name = format!("{}-{}", identity.file_name(), host.name);
        let spec = Spec {
            program,
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: BTreeMap::new(),
            netns: host.netns.clone(),
            hostname: Some(host.name.clone()),
            log: ground.log(&name),
        };
        Program::start(&name, spawner, spec).await
    }
}

impl Lab {
    async fn await_nodes(&self) -> Result<()> {
        let api: Api<NodeObject> = Api::all(self.control_plane.client.clone());
        wait::until("every node is ready and takes pods", Duration::from_secs(30), async || {
            let nodes = api.list(&ListParams::default()).await?;
            ensure!(nodes.items.len() == self.nodes.len(), "{} nodes", nodes.items.len());
            for node in nodes {
                let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
                ensure!(taints.is_empty(), "{} has the taints {taints:?}", node.name_any());
            }
            Ok(())
        })
        .await
    }
}
