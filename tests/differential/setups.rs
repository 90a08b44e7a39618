//! How both programs are configured.

use serde_json::{Value, json};

/// One for both programs, by the fields of kube-proxy's file.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Of the lab.
    pub name: &'static str,
    /// Beside what every setup has.
    pub fields: Value,
    /// NodePorts are asked on loopback too, over TCP and UDP.
    pub loopback: bool,
    /// One in so many of the cases that a run is asked for.
    pub one_in: usize,
}

/// kube-proxy's defaults.
pub(crate) fn usual() -> Setup {
    let fields = json!({"detectLocalMode": "ClusterCIDR"});
    Setup { name: "differential", fields, loopback: false, one_in: 1 }
}

/// Pods are known by their interfaces; NodePorts answer on a range for IPv4, and on loopback.
pub(crate) fn interfaces_and_loopback() -> Setup {
    let fields = json!({
        "detectLocalMode": "InterfaceNamePrefix",
        // `pod-1` and its likes: see `twin.rs`.
        "detectLocal": {"interfaceNamePrefix": "pod"},
        "nodePortAddresses": ["172.30.0.0/24", "localhost"],
        "featureGates": {"KubeProxyNFTablesLocalhostNodePorts": true},
    });
    Setup { name: "differential-2", fields, loopback: true, one_in: 2 }
}
