//! One node with node-agent, a client that reaches Services over it, and all endpoints elsewhere.
//!
//! ```text
//! client .100 ── node-1 .11 (node-agent) ── node-2 .12: 10.244.128.0/17, every address of it
//! ```

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use lab::control_plane::{ControlPlane, Identity};
use lab::network::{self, CLUSTER_CIDR, Host, Switch};
use lab::process::Program;
use lab::programs;
use lab::spawn::{Spawner, Spec};
use lab::sweep::Ground;
use serde_json::json;

use crate::fleet::{self, Fleet};

const NODE: &str = "node-1";

/// The order of the fields is the order of the end.
#[derive(Debug)]
pub(crate) struct Stage {
    pub agent: Program,
    pub fleet: Fleet,
    pub client: Host,
    pub control_plane: ControlPlane,
    _node: Host,
    _switch: Switch,
    _spawner: Spawner,
    _ground: Ground,
}

impl Stage {
    pub(crate) async fn set() -> Result<Self> {
        let ground = Ground::claim("roll")?;
        let spawner = Spawner::new(ground.id())?;
        let switch = Switch::create(ground.id())?;
        let host = switch.attach("control-plane", network::CONTROL_PLANE)?;
        let control_plane = ControlPlane::start(host, &ground, &spawner).await?;
        // Endpoints are written by the test alone.
        control_plane.scheduler.stop().await?;
        control_plane.controller_manager.stop().await?;

        let node = switch.attach(NODE, network::FIRST_NODE)?;
        let elsewhere = switch.attach("node-2", network::FIRST_NODE + 1)?;
        let client = switch.attach("client", network::CLIENT)?;
        network::make_node(&node, std::slice::from_ref(&node))?;
        network::make_client(&client)?;
        node.netns.ip(&format!("route add {} via {}", fleet::ADDRESSES, elsewhere.v4()))?;
        elsewhere.netns.ip(&format!("route add local {} dev lo", fleet::ADDRESSES))?;
        client.netns.ip(&format!("route add 10.96.0.0/12 via {}", node.v4()))?;
        let fleet = Fleet::start(&elsewhere).await?;

        create_node(&control_plane, &node).await?;
        let manifests = [
            include_str!("../../../deploy/namespace.yaml"),
            include_str!("../../../deploy/rbac/node-agent.yaml"),
        ];
        control_plane.kubectl.apply(&manifests.join("\n---\n")).await?;
        let arguments = [
            "run".to_owned(),
            format!("--kubeconfig={}", control_plane.kubeconfig(Identity::NodeAgent).display()),
            format!("--hostname-override={NODE}"),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
        ];
        let spec = Spec {
            program: programs::ours("node-agent")?,
            arguments: arguments.map(Into::into).to_vec(),
            environment: BTreeMap::new(),
            netns: node.netns.clone(),
            hostname: Some(NODE.into()),
            log: ground.log("node-agent"),
        };
        let agent = Program::start("node-agent", &spawner, spec).await?;
        Ok(Self {
            agent,
            fleet,
            client,
            control_plane,
            _node: node,
            _switch: switch,
            _spawner: spawner,
            _ground: ground,
        })
    }
}

async fn create_node(control_plane: &ControlPlane, node: &Host) -> Result<()> {
    let nodes: Api<Node> = Api::all(control_plane.client.clone());
    let object = serde_json::from_value(json!({"metadata": {"name": NODE}}))?;
    nodes.create(&PostParams::default(), &object).await.context("creating the Node")?;
    let status = json!({"status": {"addresses": [{"type": "InternalIP", "address": node.v4()}]}});
    nodes.patch_status(NODE, &PatchParams::default(), &Patch::Merge(status)).await?;
    Ok(())
}
