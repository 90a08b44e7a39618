//! `v1.Node` to [`Node`].

use service_model::{Node, NodeAddress, NodeAddressKind, NodeReadiness, Taint, TaintEffect};

use super::parse::{Problems, boxed_map, cidr, list, object_name, parse_ip};
use crate::wire;

/// `None` when it has no name. Labels are kept in every detail: the zone is one.
pub(crate) fn node(wire: wire::Node, problems: &mut Problems) -> Option<Node> {
    let mut node = Node::new(object_name(&wire.metadata, problems)?.name().into());
    let cidrs = if wire.spec.pod_cidrs.is_empty() {
        wire.spec.pod_cidr.into_iter().collect()
    } else {
        wire.spec.pod_cidrs
    };
    node.pod_cidrs = list(problems, "podCIDR", cidrs.iter().filter(|c| !c.is_empty()), cidr);
    node.labels = boxed_map(wire.metadata.labels);
    node.deleting = wire.metadata.deletion_timestamp.is_some();
    node.provider_id = wire.spec.provider_id.filter(|id| !id.is_empty()).map(Into::into);
    node.addresses = wire.status.addresses.iter().filter_map(|a| address(a, problems)).collect();
    let ready = wire.status.conditions.iter().find(|c| c.kind == "Ready");
    node.readiness = match ready.map(|c| c.status.as_str()) {
        Some("True") => NodeReadiness::Ready,
        Some("False") => NodeReadiness::NotReady,
        _ => NodeReadiness::Unknown,
    };
    node.taints = wire.spec.taints.into_iter().filter_map(taint).collect();
    Some(node)
}

fn address(wire: &wire::NodeAddress, problems: &mut Problems) -> Option<NodeAddress> {
    let (kind, field) = match wire.kind.as_str() {
        "InternalIP" => (NodeAddressKind::Internal, "InternalIP"),
        "ExternalIP" => (NodeAddressKind::External, "ExternalIP"),
        _ => return None,
    };
    list(problems, field, [&wire.address], parse_ip).pop().map(|ip| NodeAddress { kind, ip })
}

fn taint(wire: wire::Taint) -> Option<Taint> {
    let effect = match wire.effect.as_str() {
        "NoSchedule" => TaintEffect::NoSchedule,
        "PreferNoSchedule" => TaintEffect::PreferNoSchedule,
        "NoExecute" => TaintEffect::NoExecute,
        _ => return None,
    };
    Some(Taint { key: wire.key.into(), effect })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(object: Value) -> (Node, Problems) {
        let mut problems = Vec::new();
        (node(serde_json::from_value(object).unwrap(), &mut problems).unwrap(), problems)
    }

    #[test]
    fn a_node_is_read_with_its_addresses_in_order_and_without_its_names() {
        let (seen, problems) = read(json!({
            "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "a"}},
            "spec": {
                "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64"],
                "providerID": "aws:///us-east-1a/i-1",
                "taints": [{"key": "k", "effect": "NoSchedule"}, {"key": "k", "effect": "Someday"}]
            },
            "status": {
                "addresses": [
                    {"type": "Hostname", "address": "n1"},
                    {"type": "InternalIP", "address": "172.30.0.011"},
                    {"type": "ExternalIP", "address": "198.51.100.1"},
                    {"type": "InternalIP", "address": "n1.example"}
                ],
                "conditions": [{"type": "DiskPressure", "status": "True"}, {"type": "Ready", "status": "False"}]
            }
        }));
        let mut expected = Node::new("n1".into());
        expected.labels = [("topology.kubernetes.io/zone".into(), "a".into())].into();
        expected.addresses = vec![
            NodeAddress { kind: NodeAddressKind::Internal, ip: "172.30.0.11".parse().unwrap() },
            NodeAddress { kind: NodeAddressKind::External, ip: "198.51.100.1".parse().unwrap() },
        ];
        expected.pod_cidrs = vec!["10.244.1.0/24".parse().unwrap(), "fd00:10:244:1::/64".parse().unwrap()];
        expected.provider_id = Some("aws:///us-east-1a/i-1".into());
        expected.readiness = NodeReadiness::NotReady;
        expected.taints = vec![Taint { key: "k".into(), effect: TaintEffect::NoSchedule }];
        assert_eq!(seen, expected);
        assert_eq!(problems, ["InternalIP \"n1.example\" cannot be read and is left out"]);
    }

    #[test]
    fn a_node_without_a_ready_condition_is_of_unknown_readiness_and_one_pod_cidr_is_enough() {
        let (seen, problems) = read(json!({
            "metadata": {"name": "n1"}, "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": null}, "status": null
        }));
        assert_eq!(seen.readiness, NodeReadiness::Unknown);
        assert_eq!(seen.pod_cidrs, ["10.244.1.0/24".parse().unwrap()]);
        assert_eq!(problems, Problems::new());
    }
}
