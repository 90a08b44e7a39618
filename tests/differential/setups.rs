//! How both programs are configured.

use serde_json::{Value, json};

use crate::fates::{Fate, Floors};
use crate::features::Feature;
use crate::flows::Frontend;
use crate::twin::Source;

/// One for both programs, by the fields of kube-proxy's file.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    /// Of the lab.
    pub name: &'static str,
    /// Beside what every setup has.
    pub fields: Value,
    /// NodePorts are asked on loopback too, over TCP and UDP.
    pub loopback: bool,
    /// What means something else there, or nothing.
    pub without: &'static [Feature],
    /// The same for flows.
    pub asks: fn(Source, Frontend) -> bool,
    /// One in so many of the cases that a run is asked for.
    pub one_in: usize,
    /// Far below what runs have: about a quarter of it.
    pub floors: Floors,
}

/// kube-proxy's defaults.
pub(crate) fn usual() -> Setup {
    let fields = json!({"detectLocalMode": "ClusterCIDR"});
    Setup {
        name: "differential",
        fields,
        loopback: false,
        without: &[],
        asks: everything,
        one_in: 1,
        floors: ALL_FATES,
    }
}

/// Pods are known by their interfaces; NodePorts answer on a range for IPv4, and on loopback; another
/// bit asks for masquerading.
pub(crate) fn interfaces_and_loopback() -> Setup {
    let fields = json!({
        "detectLocalMode": "InterfaceNamePrefix",
        // `pod-1` and its likes: see `twin.rs`.
        "detectLocal": {"interfaceNamePrefix": "pod"},
        "nodePortAddresses": ["172.30.0.0/24", "localhost"],
        "nftables": {"minSyncPeriod": "10ms", "syncPeriod": "30s", "masqueradeBit": 3},
        "featureGates": {"KubeProxyNFTablesLocalhostNodePorts": true},
    });
    Setup {
        name: "differential-2",
        fields,
        loopback: true,
        without: &[],
        asks: everything,
        one_in: 2,
        floors: ALL_FATES,
    }
}

/// Pods are known by the one interface that they come in by, here that of the first alone; whoever comes to a ClusterIP
/// is masqueraded.
pub(crate) fn one_interface_and_all_masqueraded() -> Setup {
    let fields = json!({
        "detectLocalMode": "BridgeInterface",
        "detectLocal": {"bridgeInterface": "pod-1"},
        "nftables": {"minSyncPeriod": "10ms", "syncPeriod": "30s", "masqueradeAll": true},
    });
    Setup {
        name: "differential-4",
        fields,
        loopback: false,
        without: &[],
        asks: everything,
        one_in: 8,
        floors: ALL_BUT_AS_ITSELF,
    }
}

/// Nobody is known as a pod: there is no network of pods to know them by.
pub(crate) fn nobody_is_local() -> Setup {
    let fields = json!({"detectLocalMode": "ClusterCIDR", "clusterCIDR": ""});
    Setup {
        name: "differential-5",
        fields,
        loopback: false,
        without: &[],
        asks: everything,
        one_in: 8,
        floors: ALL_FATES,
    }
}

/// kube-proxy in iptables mode, and the node's own pods by the Node's podCIDRs. NodePorts answer where they do in the
/// other modes: its own default is all addresses.
pub(crate) fn iptables() -> Setup {
    let fields = json!({
        "mode": "iptables",
        "detectLocalMode": "NodeCIDR",
        "nodePortAddresses": ["172.30.0.0/24", "fd00:172:30::/64"],
        "iptables": {"minSyncPeriod": "10ms", "syncPeriod": "30s", "localhostNodePorts": false},
    });
    let without = &[
        // It lets go on what is for a ClusterIP's other ports, or for a ClusterIP that no Service has.
        Feature::UndefinedPorts,
        Feature::UnallocatedAddresses,
        // It masquerades every endpoint's way to itself; nftables mode that of endpoints here.
        Feature::NodeNames,
        // Where there are no endpoints it refuses whoever asks; nftables mode looks at the ranges first.
        Feature::SourceRanges,
    ];
    Setup {
        name: "differential-3",
        fields,
        loopback: false,
        without,
        asks: all_but_the_node_outwards,
        one_in: 4,
        floors: ALL_FATES,
    }
}

const ALL_FATES: Floors = &[
    (Fate::AsItself, 2),
    (Fate::Masqueraded, 3),
    (Fate::FromTheNode, 1),
    (Fate::Refused, 5),
    (Fate::Silent, 1),
    (Fate::Unserved, 3),
];

/// Hardly anybody reaches anything as itself where all are masqueraded.
const ALL_BUT_AS_ITSELF: Floors = &[
    (Fate::Masqueraded, 5),
    (Fate::FromTheNode, 1),
    (Fate::Refused, 5),
    (Fate::Silent, 1),
    (Fate::Unserved, 3),
];

fn everything(_: Source, _: Frontend) -> bool {
    true
}

/// What the node itself sends to an external address is not refused in iptables mode, but goes out,
/// where the Service has no endpoints (KUBE-EXTERNAL-SERVICES is for what comes in or through).
fn all_but_the_node_outwards(source: Source, frontend: Frontend) -> bool {
    source != Source::Node || !matches!(frontend, Frontend::ExternalIp | Frontend::LoadBalancer)
}
