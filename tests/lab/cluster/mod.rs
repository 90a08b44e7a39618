//! The whole system on one machine.

mod build;
mod kube_proxy;
mod metal;
mod verbs;

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio::sync::OwnedSemaphorePermit;

pub use build::Builder;
pub use metal::{Balancer, POOL, Tier};
pub use verbs::ServiceView;

use crate::aws::Aws;
use crate::control_plane::ControlPlane;
use crate::kubelet::Kubelet;
use crate::network::{Host, Switch};
use crate::process::Program;
use crate::spawn::Spawner;
use crate::sweep::Ground;
use crate::traffic::Client;

/// What makes Services work on the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeProxy {
    /// Ours.
    NodeAgent,
    /// The real one, in nftables mode: the oracle for what ours must do.
    KubeProxy,
    /// The real one, in iptables mode.
    KubeProxyWithIptables,
}

/// Who gives Services of type LoadBalancer their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Nobody.
    None,
    /// Two hosts with metal-lb, and cloud-controller with the metal class as its default.
    Metal,
    /// moto, and cloud-controller with the NLB class as its default.
    Aws,
}

/// A node of the cluster.
#[derive(Debug)]
pub struct Node {
    pub host: Host,
    /// What programs this node's Services.
    pub proxy: Program,
}

/// A running laboratory. Dropping it removes everything from the machine.
///
/// The order of the fields is the order of the end: first what starts processes, last the ground.
#[derive(Debug)]
pub struct Lab {
    kubelet: Kubelet,
    /// Absent without a provider.
    pub controller: Option<Program>,
    /// The balancer hosts, with the metal provider.
    pub tier: Option<Tier>,
    /// The cloud, with the AWS provider.
    pub aws: Option<Aws>,
    pub nodes: Vec<Node>,
    pub control_plane: ControlPlane,
    pub client_host: Host,
    pub switch: Switch,
    spawner: Spawner,
    ground: Ground,
    _turn: OwnedSemaphorePermit,
}

impl Lab {
    /// A lab to be built; `name` appears in the names of its namespaces.
    pub fn builder(name: &str) -> Builder {
        Builder::new(name)
    }

    pub fn id(&self) -> &str {
        self.ground.id()
    }

    /// Where every program and every pod writes its log.
    pub fn logs(&self) -> PathBuf {
        self.ground.path().join("logs")
    }

    /// The person outside the cluster.
    pub fn client(&self) -> Client {
        Client::in_netns(self.client_host.netns.clone())
    }

    /// A client on a node.
    ///
    /// # Errors
    /// When there is no such node.
    pub fn client_on(&self, node: &str) -> Result<Client> {
        Ok(Client::in_netns(self.node(node)?.host.netns.clone()))
    }

    /// The balancer host of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn balancer(&self, name: &str) -> Result<&Balancer> {
        let balancers = self.tier.iter().flat_map(|tier| &tier.balancers);
        balancers
            .into_iter()
            .find(|balancer| balancer.host.name == name)
            .with_context(|| format!("the lab has no {name}"))
    }

    /// The one controller.
    ///
    /// # Errors
    /// Without a provider.
    pub fn controller(&self) -> Result<&Program> {
        self.controller.as_ref().context("the lab has no provider, and so no cloud-controller")
    }

    /// Everything of ours that runs: the controller, the balancers, the nodes' agents.
    pub fn programs(&self) -> impl Iterator<Item = &Program> {
        let balancers = self.tier.iter().flat_map(|tier| &tier.balancers).map(|balancer| &balancer.program);
        self.controller.iter().chain(balancers).chain(self.nodes.iter().map(|node| &node.proxy))
    }

    /// The node of that name.
    ///
    /// # Errors
    /// When there is none.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes
            .iter()
            .find(|node| node.host.name == name)
            .with_context(|| format!("the lab has no {name}"))
    }
}
