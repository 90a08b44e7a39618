//! Nodes: where targets live, and which of them a load balancer should use.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use crate::{IpFamily, NodeName};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NodeAddressKind {
    Internal,
    External,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeAddress {
    pub kind: NodeAddressKind,
    pub ip: IpAddr,
}

/// The Node's Ready condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeReadiness {
    Ready,
    NotReady,
    #[default]
    Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TaintEffect {
    NoSchedule,
    PreferNoSchedule,
    NoExecute,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taint {
    pub key: Box<str>,
    pub effect: TaintEffect,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub name: NodeName,
    pub labels: BTreeMap<Box<str>, Box<str>>,
    /// In the order of `status.addresses`; host names are left out.
    pub addresses: Vec<NodeAddress>,
    pub pod_cidrs: Vec<IpNet>,
    /// E.g. `aws:///us-east-1a/i-0123456789abcdef0`
    pub provider_id: Option<Box<str>>,
    pub readiness: NodeReadiness,
    pub taints: Vec<Taint>,
    pub deleting: bool,
}

const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
const CLUSTER_AUTOSCALER_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl Node {
    pub fn new(name: NodeName) -> Self {
        Self {
            name,
            labels: BTreeMap::new(),
            addresses: Vec::new(),
            pod_cidrs: Vec::new(),
            provider_id: None,
            readiness: NodeReadiness::default(),
            taints: Vec::new(),
            deleting: false,
        }
    }

    pub fn internal_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.iter().filter(|a| a.kind == NodeAddressKind::Internal).map(|a| a.ip)
    }

    /// The address by which the node is known, one a family: the first InternalIP, or the first
    /// ExternalIP of a node that has none (kubernetes `GetNodeHostIPs`, pkg/util/node).
    pub fn primary_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        [IpFamily::V4, IpFamily::V6].into_iter().filter_map(|family| {
            let first = |kind| {
                let mut of_kind = self.addresses.iter().filter(move |a| a.kind == kind);
                of_kind.find(|a| IpFamily::of(a.ip) == family).map(|a| a.ip)
            };
            first(NodeAddressKind::Internal).or_else(|| first(NodeAddressKind::External))
        })
    }

    pub fn zone(&self) -> Option<&str> {
        self.labels.get(ZONE_LABEL).map(|z| &**z)
    }

    /// Whether load balancers should send traffic here. Readiness is not asked: the health check
    /// decides (KEP-3458). The exclude label counts unless its value is a false boolean
    /// (kubernetes/cloud-provider, service controller's node predicates).
    pub fn is_load_balancer_target(&self) -> bool {
        let excluded = self.labels.get(EXCLUDE_LABEL).is_some_and(|v| !is_false(v));
        !excluded && !self.is_being_removed()
    }

    /// Deleted, or tainted by the cluster autoscaler for removal.
    pub fn is_being_removed(&self) -> bool {
        self.deleting || self.taints.iter().any(|t| &*t.key == CLUSTER_AUTOSCALER_TAINT)
    }
}

/// The spellings that Go's `strconv.ParseBool` takes for false.
fn is_false(text: &str) -> bool {
    matches!(text, "0" | "f" | "F" | "false" | "FALSE" | "False")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_known_by_one_address_a_family_and_by_an_external_one_at_need() {
        use NodeAddressKind::{External, Internal};
        type Addresses<'a> = &'a [(NodeAddressKind, &'a str)];
        let cases: [(Addresses<'_>, &[&str]); 4] = [
            (&[], &[]),
            (&[(External, "192.0.2.1"), (Internal, "10.0.0.1"), (Internal, "10.0.0.2")], &["10.0.0.1"]),
            (&[(External, "192.0.2.1"), (External, "192.0.2.2")], &["192.0.2.1"]),
            (&[(Internal, "fd00::1"), (External, "192.0.2.1")], &["192.0.2.1", "fd00::1"]),
        ];
        for (addresses, primary) in cases {
            let mut node = Node::new("n".into());
            let address = |(kind, ip): &(_, &str)| NodeAddress { kind: *kind, ip: ip.parse().unwrap() };
            node.addresses = addresses.iter().map(address).collect();
            let found: Vec<String> = node.primary_ips().map(|ip| ip.to_string()).collect();
            assert_eq!(found, primary, "{addresses:?}");
        }
    }

    #[test]
    fn a_node_leaves_load_balancers_by_label_or_removal_but_not_by_readiness() {
        let mut node = Node::new("n".into());
        node.readiness = NodeReadiness::NotReady;
        assert!(node.is_load_balancer_target());
        for (value, target) in
            [("", false), ("true", false), ("nonsense", false), ("false", true), ("0", true)]
        {
            node.labels = BTreeMap::from([(EXCLUDE_LABEL.into(), value.into())]);
            assert_eq!(node.is_load_balancer_target(), target, "label value {value:?}");
        }
        node.labels.clear();
        node.taints = vec![Taint { key: CLUSTER_AUTOSCALER_TAINT.into(), effect: TaintEffect::NoSchedule }];
        assert!(!node.is_load_balancer_target());
    }
}
