//! Node objects and their leases.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::Shared;

/// The kubelet's default lease renewal.
const RENEW: Duration = Duration::from_secs(10);

/// A node of the lab: a namespace with a bridge for pods.
#[derive(Debug, Clone)]
pub struct HostNode {
    pub name: String,
    pub namespace: String,
    pub address: Ipv4Addr,
    pub address6: Ipv6Addr,
    /// 1 for the first node: its pods live in 10.244.1.0/24 and fd00:10:244:1::/64.
    pub number: u8,
    pub provider_id: Option<String>,
    pub zone: String,
}

impl HostNode {
    pub(crate) fn path(&self) -> PathBuf {
        format!("/run/netns/{}", self.namespace).into()
    }
}

pub(super) async fn register(client: &kube::Client, node: &HostNode) -> anyhow::Result<()> {
    let api: Api<Node> = Api::all(client.clone());
    let (n, name) = (node.number, &node.name);
    let cidrs = [format!("10.244.{n}.0/24"), format!("fd00:10:244:{n}::/64")];
    let object = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux",
            "topology.kubernetes.io/zone": node.zone, "topology.kubernetes.io/region": "lab"
        }},
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs, "providerID": node.provider_id}
    });
    let apply = PatchParams::apply("lab-kubelet").force();
    api.patch(name, &apply, &Patch::Apply(&object)).await?;
    let now = k8s_openapi::jiff::Timestamp::now().to_string();
    let capacity = json!({"cpu": "64", "memory": "64Gi", "pods": "250"});
    // Not applied on the server's side: it takes the two InternalIPs of a dual-stack node for one.
    let status = json!({
        "status": {
            "capacity": capacity, "allocatable": capacity,
            "addresses": [
                {"type": "InternalIP", "address": node.address.to_string()},
                {"type": "InternalIP", "address": node.address6.to_string()},
                {"type": "Hostname", "address": name}
            ],
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "LabKubelet", "message": "the lab's kubelet is running",
                "lastHeartbeatTime": now, "lastTransitionTime": now
            }]
        }
    });
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(&status)).await?;
    renew(client, name).await?;
    Ok(())
}

/// Renews every node's lease, so that the node controller keeps calling them ready.
pub(super) async fn heartbeats(shared: &Arc<Shared>) {
    loop {
        tokio::time::sleep(RENEW).await;
        for name in shared.nodes.keys() {
            if let Err(error) = renew(&shared.client, name).await {
                tracing::debug!(%error, node = %name, "renewing a node's lease failed");
            }
        }
    }
}

async fn renew(client: &kube::Client, name: &str) -> anyhow::Result<()> {
    let api: Api<Lease> = Api::namespaced(client.clone(), "kube-node-lease");
    let now = k8s_openapi::jiff::Timestamp::now();
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
        "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}")}
    });
    api.patch(name, &PatchParams::apply("lab-kubelet").force(), &Patch::Apply(&lease)).await?;
    Ok(())
}
