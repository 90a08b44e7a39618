//! The Node object and its heartbeats.

use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::{MissedTickBehavior, interval};

use super::Machine;

/// Between two heartbeats. A node is given up after 50 s without one.
const HEARTBEAT: Duration = Duration::from_secs(10);

const MANAGER: &str = "lab-kubelet";

/// Creates the Node object, or takes it over from an earlier life, and reports it ready.
pub(super) async fn register(machine: &Machine) -> Result<()> {
    let nodes: Api<Node> = Api::all(machine.client.clone());
    let name = &machine.host.name;
    let parameters = PatchParams::apply(MANAGER).force();
    nodes
        .patch(name, &parameters, &Patch::Apply(object(machine)))
        .await
        .with_context(|| format!("registering {name}"))?;
    report(machine).await
}

/// Reports readiness and renews the Lease, for ever. A failed heartbeat is made up for by the next.
pub(super) async fn beat(machine: &Machine) {
    let mut pace = interval(HEARTBEAT);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        if let Err(error) = tokio::try_join!(report(machine), renew(machine)) {
            tracing::debug!(node = machine.host.name, "heartbeat missed: {error:#}");
        }
    }
}

fn object(machine: &Machine) -> Value {
    let name = &machine.host.name;
    let cidrs = machine.pods.cidrs();
    let mut spec = json!({"podCIDR": cidrs[0], "podCIDRs": cidrs});
    if let Some(id) = &machine.provider_id {
        spec["providerID"] = json!(id);
    }
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": std::env::consts::ARCH.replace("x86_64", "amd64").replace("aarch64", "arm64"),
                "topology.kubernetes.io/region": "lab",
                "topology.kubernetes.io/zone": machine.zone,
            },
        },
        "spec": spec,
    })
}

async fn report(machine: &Machine) -> Result<()> {
    let nodes: Api<Node> = Api::all(machine.client.clone());
    let now = Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let addresses = machine
        .host
        .addresses()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .into_iter()
        .chain([json!({"type": "Hostname", "address": machine.host.name})]);
    let room = json!({"cpu": "8", "memory": "16Gi", "pods": "110", "ephemeral-storage": "10Gi"});
    let condition = |kind: &str, holds: bool, reason: &str| {
        json!({
            "type": kind,
            "status": if holds { "True" } else { "False" },
            "reason": reason,
            "message": "as the lab's kubelet sees it",
            "lastHeartbeatTime": now,
            "lastTransitionTime": machine.since,
        })
    };
    let status = json!({
        "addresses": addresses.collect::<Vec<_>>(),
        "capacity": room,
        "allocatable": room,
        "conditions": [
            condition("Ready", true, "KubeletReady"),
            condition("MemoryPressure", false, "KubeletHasSufficientMemory"),
            condition("DiskPressure", false, "KubeletHasNoDiskPressure"),
            condition("PIDPressure", false, "KubeletHasSufficientPID"),
        ],
        "nodeInfo": {
            "architecture": "amd64", "bootID": "", "containerRuntimeVersion": "process://1",
            "kernelVersion": "", "kubeProxyVersion": "", "kubeletVersion": "v1.37.2", "machineID": "",
            "operatingSystem": "linux", "osImage": "a network namespace", "systemUUID": "",
        },
    });
    nodes
        .patch_status(&machine.host.name, &PatchParams::default(), &Patch::Merge(json!({"status": status})))
        .await
        .with_context(|| format!("reporting {}", machine.host.name))?;
    Ok(())
}

async fn renew(machine: &Machine) -> Result<()> {
    let leases: Api<Lease> = Api::namespaced(machine.client.clone(), "kube-node-lease");
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {"name": machine.host.name},
        "spec": {
            "holderIdentity": machine.host.name,
            "leaseDurationSeconds": 40,
            "renewTime": Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string(),
        },
    });
    leases
        .patch(&machine.host.name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(lease))
        .await
        .with_context(|| format!("renewing the lease of {}", machine.host.name))?;
    Ok(())
}
