//! Wire structs to the model.
//!
//! Tolerant where kube-proxy is: what an older API server let in (addresses with leading zeros,
//! white space in source ranges) is read as it was meant; an entry that cannot be read is left
//! out with a warning, and the rest of the object counts.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use service_model::{
    Endpoint, EndpointPort, EndpointSlice, Ingress, IngressPort, IpFamily, IpFamilyPolicy, IpMode, Node,
    NodeAddress, NodeAddressKind, NodeReadiness, ObjectName, Protocol, Service, ServicePort, ServiceType,
    Taint, TaintEffect, TrafficPolicy,
};

use crate::wire;

/// How much of an object is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What packets are routed by: no labels (but a node's), annotations or finalizers.
    Dataplane,
    Full,
}

/// kube-proxy's default for ClientIP affinity without a timeout (`v1.DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY: Duration = Duration::from_secs(10_800);

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// `None` when the object has no name.
pub fn service(wire: wire::Service, detail: Detail) -> Option<Service> {
    let wire::Service { metadata, spec, status } = wire;
    let name = object_name(&metadata)?;
    let mut service = Service::new(name);
    let context = service.name.clone();

    service.service_type = service_type(spec.service_type.as_deref());
    service.deleting = metadata.deletion_timestamp.is_some();
    service.uid = metadata.uid.unwrap_or_default().into();
    if detail == Detail::Full {
        service.labels = boxed_map(metadata.labels);
        service.annotations = boxed_map(metadata.annotations);
        service.finalizers = metadata.finalizers.unwrap_or_default().into_iter().map(Into::into).collect();
        service.load_balancer_ip = spec.load_balancer_ip.filter(|ip| !ip.is_empty()).map(Into::into);
    }
    service.load_balancer_class = spec.load_balancer_class.map(Into::into);
    // An ExternalName can carry a stale clusterIP; it has none to serve.
    if service.service_type != ServiceType::ExternalName {
        let written = if spec.cluster_ips.is_empty() {
            spec.cluster_ip.into_iter().collect()
        } else {
            spec.cluster_ips
        };
        service.cluster_ips = parse_list(
            &context,
            "clusterIP",
            written.iter().filter(|ip| *ip != "None" && !ip.is_empty()),
            parse_ip,
        );
    }
    service.external_ips = parse_list(&context, "externalIP", &spec.external_ips, parse_ip);
    service.ip_families = spec.ip_families.iter().filter_map(|f| family(f)).collect();
    service.ip_family_policy = match spec.ip_family_policy.as_deref() {
        Some("PreferDualStack") => IpFamilyPolicy::PreferDualStack,
        Some("RequireDualStack") => IpFamilyPolicy::RequireDualStack,
        _ => IpFamilyPolicy::SingleStack,
    };
    service.ports = spec.ports.into_iter().filter_map(|p| service_port(&context, p)).collect();
    service.internal_traffic_policy = traffic_policy(spec.internal_traffic_policy.as_deref());
    service.external_traffic_policy = traffic_policy(spec.external_traffic_policy.as_deref());
    service.session_affinity = (spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
        let seconds = spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
        seconds.and_then(|s| u64::try_from(s).ok()).map_or(DEFAULT_AFFINITY, Duration::from_secs)
    });
    service.health_check_node_port = spec.health_check_node_port.and_then(port_number);
    service.source_ranges =
        parse_list(&context, "loadBalancerSourceRange", &spec.load_balancer_source_ranges, parse_cidr);
    service.allocate_node_ports = spec.allocate_load_balancer_node_ports.unwrap_or(true);
    service.ingress = status.load_balancer.ingress.into_iter().map(|i| ingress(&context, i)).collect();
    Some(service)
}

/// `None` when the slice belongs to no Service, or holds names instead of addresses.
pub fn endpoint_slice(wire: wire::EndpointSlice) -> Option<EndpointSlice> {
    let name = object_name(&wire.metadata)?;
    let owner = wire.metadata.labels.as_ref()?.get(SERVICE_NAME_LABEL)?;
    let service = ObjectName::new(name.namespace(), owner);
    let family = family(&wire.address_type)?;
    let ports = wire.ports.into_iter().filter_map(endpoint_port).collect();
    let endpoints = wire.endpoints.into_iter().filter_map(|e| endpoint(&name, family, e)).collect();
    Some(EndpointSlice { name, service, family, ports, endpoints })
}

/// `None` when the object has no name.
pub fn node(wire: wire::Node) -> Option<Node> {
    let mut node = Node::new(wire.metadata.name?.into());
    let cidrs = if wire.spec.pod_cidrs.is_empty() {
        wire.spec.pod_cidr.into_iter().collect()
    } else {
        wire.spec.pod_cidrs
    };
    node.pod_cidrs = parse_list(&node.name, "podCIDR", &cidrs, parse_cidr);
    node.labels = boxed_map(wire.metadata.labels);
    node.deleting = wire.metadata.deletion_timestamp.is_some();
    node.provider_id = wire.spec.provider_id.map(Into::into);
    node.addresses = wire.status.addresses.iter().filter_map(node_address).collect();
    node.readiness =
        match wire.status.conditions.iter().find(|c| c.kind == "Ready").map(|c| c.status.as_str()) {
            Some("True") => NodeReadiness::Ready,
            Some("False") => NodeReadiness::NotReady,
            _ => NodeReadiness::Unknown,
        };
    node.taints = wire.spec.taints.into_iter().filter_map(taint).collect();
    Some(node)
}

/// An address as Kubernetes has ever accepted it: decimal with leading zeros (`172.30.0.041`, read
/// as decimal, as Go did before 1.17), and IPv4 mapped into IPv6.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    match text.parse::<IpAddr>() {
        Ok(ip) => Some(ip.to_canonical()),
        Err(_) => legacy_ipv4(text).map(IpAddr::V4),
    }
}

fn legacy_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next().filter(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))?;
        *octet = part.trim_start_matches('0').parse().or_else(|_| part.parse()).ok()?;
    }
    parts.next().is_none().then(|| octets.into())
}

/// A network; a length with leading zeros counts, host bits are cut.
fn parse_cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    Some(IpNet::new(parse_ip(address)?, length.parse().ok()?).ok()?.trunc())
}

fn parse_list<'a, T>(
    owner: &dyn Display,
    what: &str,
    texts: impl IntoIterator<Item = &'a String>,
    parse: impl Fn(&str) -> Option<T>,
) -> Vec<T> {
    let read = |text: &'a String| {
        let value = parse(text);
        if value.is_none() {
            tracing::warn!(object = %owner, "{what} {text:?} cannot be read and is left out");
        }
        value
    };
    texts.into_iter().filter_map(read).collect()
}

fn object_name(meta: &ObjectMeta) -> Option<ObjectName> {
    Some(ObjectName::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref()?))
}

fn boxed_map(map: Option<BTreeMap<String, String>>) -> BTreeMap<Box<str>, Box<str>> {
    map.unwrap_or_default().into_iter().map(|(k, v)| (k.into(), v.into())).collect()
}

fn service_type(text: Option<&str>) -> ServiceType {
    match text {
        Some("NodePort") => ServiceType::NodePort,
        Some("LoadBalancer") => ServiceType::LoadBalancer,
        Some("ExternalName") => ServiceType::ExternalName,
        _ => ServiceType::ClusterIp,
    }
}

fn traffic_policy(text: Option<&str>) -> TrafficPolicy {
    if text == Some("Local") { TrafficPolicy::Local } else { TrafficPolicy::Cluster }
}

fn family(text: &str) -> Option<IpFamily> {
    match text {
        "IPv4" => Some(IpFamily::V4),
        "IPv6" => Some(IpFamily::V6),
        _ => None,
    }
}

fn protocol(text: Option<&str>) -> Option<Protocol> {
    text.unwrap_or("TCP").parse().ok()
}

fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|p| *p != 0)
}

fn service_port(owner: &ObjectName, wire: wire::ServicePort) -> Option<ServicePort> {
    let Some((protocol, port)) = protocol(wire.protocol.as_deref()).zip(port_number(wire.port)) else {
        tracing::warn!(object = %owner, "port {} {:?} cannot be read and is left out", wire.port, wire.protocol);
        return None;
    };
    let node_port = wire.node_port.and_then(port_number);
    Some(ServicePort { name: wire.name.unwrap_or_default().into(), protocol, port, node_port })
}

fn ingress(owner: &ObjectName, wire: wire::LoadBalancerIngress) -> Ingress {
    let ip_mode = match wire.ip_mode.as_deref() {
        Some("Proxy") => Some(IpMode::Proxy),
        Some("VIP") => Some(IpMode::Vip),
        _ => None,
    };
    let ports = wire.ports.iter().filter_map(|p| {
        Some(IngressPort { port: port_number(p.port)?, protocol: protocol(p.protocol.as_deref())? })
    });
    Ingress {
        ip: parse_list(owner, "ingress IP", wire.ip.iter().filter(|ip| !ip.is_empty()), parse_ip).pop(),
        hostname: wire.hostname.filter(|h| !h.is_empty()).map(Into::into),
        ip_mode,
        ports: ports.collect(),
    }
}

/// kube-proxy skips ports without a number, and reads a missing name as the empty one.
fn endpoint_port(wire: wire::EndpointPort) -> Option<EndpointPort> {
    Some(EndpointPort {
        name: wire.name.unwrap_or_default().into(),
        protocol: protocol(wire.protocol.as_deref())?,
        port: wire.port.and_then(port_number)?,
    })
}

fn endpoint(slice: &ObjectName, family: IpFamily, wire: wire::Endpoint) -> Option<Endpoint> {
    let address = parse_list(slice, "endpoint address", wire.addresses.first(), parse_ip).pop()?;
    if IpFamily::of(address) != family {
        tracing::warn!(object = %slice, "endpoint address {address} is not {family} and is left out");
        return None;
    }
    let ready = wire.conditions.ready.unwrap_or(true);
    Some(Endpoint {
        address,
        node: wire.node_name.map(Into::into),
        ready,
        serving: wire.conditions.serving.unwrap_or(true),
        terminating: wire.conditions.terminating.unwrap_or(false),
        zone_hints: wire.hints.for_zones.into_iter().map(|h| h.name.into()).collect(),
        node_hints: wire.hints.for_nodes.into_iter().map(|h| h.name.into()).collect(),
    })
}

fn node_address(wire: &wire::NodeAddress) -> Option<NodeAddress> {
    let kind = match wire.kind.as_str() {
        "InternalIP" => NodeAddressKind::Internal,
        "ExternalIP" => NodeAddressKind::External,
        _ => return None,
    };
    Some(NodeAddress { kind, ip: parse_ip(&wire.address)? })
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
    use super::*;
    use serde_json::json;

    #[test]
    fn addresses_that_older_api_servers_accepted_are_read_as_they_were_meant() {
        let table = [
            ("10.0.0.1", Some("10.0.0.1")),
            ("172.30.0.041", Some("172.30.0.41")),
            ("203.0.113.000", Some("203.0.113.0")),
            (" 10.0.0.1 ", Some("10.0.0.1")),
            ("::ffff:10.0.0.1", Some("10.0.0.1")),
            ("FD00::1", Some("fd00::1")),
            ("10.0.0.256", None),
            ("10.0.0", None),
            ("10.0.0.1.2", None),
            ("10..0.1", None),
            ("", None),
        ];
        for (text, ip) in table {
            assert_eq!(parse_ip(text), ip.map(|ip| ip.parse().unwrap()), "{text:?}");
        }
        assert_eq!(parse_cidr(" 203.0.113.7/025"), Some("203.0.113.0/25".parse().unwrap()));
        assert_eq!(parse_cidr("203.0.113.7/33"), None);
    }

    fn convert(object: serde_json::Value) -> Service {
        service(serde_json::from_value(object).unwrap(), Detail::Full).unwrap()
    }

    #[test]
    fn a_service_is_read_with_its_defaults() {
        let svc = convert(json!({
            "metadata": {"name": "web", "namespace": "shop", "managedFields": [{"manager": "x"}]},
            "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.0.7", "clusterIPs": null}
        }));
        assert_eq!(svc.name.as_str(), "shop/web");
        assert_eq!(svc.cluster_ips, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            (svc.ports[0].protocol, &*svc.ports[0].name, svc.ports[0].node_port),
            (Protocol::Tcp, "", None)
        );
        assert!(svc.allocate_node_ports && svc.session_affinity.is_none());
    }

    #[test]
    fn a_bad_entry_costs_itself_only() {
        let svc = convert(json!({
            "metadata": {"name": "web"},
            "spec": {
                "clusterIPs": ["nonsense", "10.96.0.8"], "externalIPs": ["1.2.3.4.5", "192.0.2.1"],
                "ports": [{"port": 0}, {"port": 70000}, {"port": 53, "protocol": "QUIC"}, {"port": 53, "protocol": "UDP"}],
                "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "x/8"]
            }
        }));
        assert_eq!(svc.cluster_ips.len(), 1);
        assert_eq!(svc.external_ips.len(), 1);
        assert_eq!(svc.ports.len(), 1);
        assert_eq!(svc.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
    }

    #[test]
    fn headless_and_external_name_services_have_no_cluster_ip() {
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"type": "ExternalName", "clusterIP": "10.96.0.1"}),
            json!({"clusterIP": ""}),
        ] {
            assert!(convert(json!({"metadata": {"name": "web"}, "spec": spec})).cluster_ips.is_empty());
        }
    }

    #[test]
    fn unset_endpoint_conditions_mean_ready_serving_and_not_terminating() {
        let slice = endpoint_slice(
            serde_json::from_value(json!({
                "metadata": {"name": "web-1", "namespace": "shop", "labels": {SERVICE_NAME_LABEL: "web"}},
                "addressType": "IPv4",
                "ports": [{"port": 80}, {"name": "none"}],
                "endpoints": [
                    {"addresses": ["10.0.0.1", "10.0.0.2"]},
                    {"addresses": ["10.0.0.3"], "conditions": {"ready": false, "terminating": true}, "nodeName": "n"},
                    {"addresses": ["10.0.0.4"], "conditions": {"ready": false, "serving": false}},
                    {"addresses": ["fd00::1"]}, {"addresses": []}
                ]
            }))
            .unwrap(),
        )
        .unwrap();
        assert_eq!(slice.service.as_str(), "shop/web");
        assert_eq!(slice.ports.len(), 1, "a port without a number is skipped");
        let seen: Vec<_> = slice
            .endpoints
            .iter()
            .map(|e| (e.address.to_string(), e.ready, e.serving, e.terminating))
            .collect();
        assert_eq!(
            seen,
            [
                ("10.0.0.1".to_owned(), true, true, false),
                ("10.0.0.3".to_owned(), false, true, true),
                ("10.0.0.4".to_owned(), false, false, false)
            ]
        );
    }

    #[test]
    fn a_slice_without_a_service_or_with_names_for_addresses_is_not_ours() {
        for object in [
            json!({"metadata": {"name": "a"}, "addressType": "IPv4", "endpoints": null}),
            json!({"metadata": {"name": "a", "labels": {SERVICE_NAME_LABEL: "web"}}, "addressType": "FQDN"}),
        ] {
            assert_eq!(endpoint_slice(serde_json::from_value(object).unwrap()), None);
        }
    }

    #[test]
    fn the_data_plane_keeps_no_annotations() {
        let wire = serde_json::from_value(
            json!({"metadata": {"name": "a", "annotations": {"k": "v"}, "labels": {"k": "v"}}}),
        );
        let svc = service(wire.unwrap(), Detail::Dataplane).unwrap();
        assert!(svc.annotations.is_empty() && svc.labels.is_empty());
    }
}
