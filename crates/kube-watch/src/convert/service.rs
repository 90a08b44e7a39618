//! `v1.Service` to [`Service`].

use std::collections::BTreeMap;

use service_model::{
    AffinityScope, Ingress, IngressPort, IpFamilyPolicy, IpMode, Service, ServicePort, ServiceType,
    SessionAffinity, TrafficPolicy,
};

use super::parse::{
    Problems, boxed_map, cidr, exact, family, has_label, list, object_name, parse_ip, port_number, protocol,
};
use super::{Detail, OTHER_PROXY_LABEL};
use crate::wire;

/// kube-proxy's default for ClientIP affinity without a timeout, in seconds
/// (`v1.DefaultClientIPServiceAffinitySeconds`).
const DEFAULT_AFFINITY: u32 = 10_800;

/// The one annotation that packets are routed by: `service`, or `port` as without it.
const AFFINITY_SCOPE: &str = "fairlead.dev/session-affinity-scope";

/// How Go writes "this Service is headless" (`v1.ClusterIPNone`).
const HEADLESS: &str = "None";

/// `None` when it has no name, or when nothing is routed by it and only routing matters.
pub(crate) fn service(wire: wire::Service, detail: Detail, problems: &mut Problems) -> Option<Service> {
    let wire::Service { metadata, spec, status } = wire;
    let foreign = has_label(&metadata, OTHER_PROXY_LABEL) || spec.cluster_ip.as_deref() == Some(HEADLESS);
    if foreign && detail == Detail::Dataplane {
        return None;
    }
    let mut service = Service::new(object_name(&metadata, problems)?);

    if spec.session_affinity.as_deref() == Some("ClientIP") {
        let seconds = spec.session_affinity_config.and_then(|c| c.client_ip).and_then(|c| c.timeout_seconds);
        let timeout = seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(DEFAULT_AFFINITY);
        let scope = affinity_scope(metadata.annotations.as_ref(), problems);
        service.session_affinity = Some(SessionAffinity { timeout, scope });
    }
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
        let set = written.iter().filter(|ip| *ip != HEADLESS && !ip.is_empty());
        service.cluster_ips = list(problems, "clusterIP", set, parse_ip);
    }
    service.external_ips = list(problems, "externalIP", &spec.external_ips, parse_ip);
    service.ip_families = exact(spec.ip_families.iter().filter_map(|f| family(f)));
    service.ip_family_policy = match spec.ip_family_policy.as_deref() {
        Some("PreferDualStack") => IpFamilyPolicy::PreferDualStack,
        Some("RequireDualStack") => IpFamilyPolicy::RequireDualStack,
        _ => IpFamilyPolicy::SingleStack,
    };
    service.ports = exact(spec.ports.into_iter().filter_map(|p| service_port(p, problems)));
    service.internal_traffic_policy = traffic_policy(spec.internal_traffic_policy.as_deref());
    service.external_traffic_policy = traffic_policy(spec.external_traffic_policy.as_deref());
    service.health_check_node_port = spec.health_check_node_port.and_then(port_number);
    service.source_ranges =
        list(problems, "loadBalancerSourceRange", &spec.load_balancer_source_ranges, cidr);
    service.allocate_node_ports = spec.allocate_load_balancer_node_ports.unwrap_or(true);
    service.ingress = exact(status.load_balancer.ingress.into_iter().map(|i| ingress(i, problems)));
    Some(service)
}

fn affinity_scope(annotations: Option<&BTreeMap<String, String>>, problems: &mut Problems) -> AffinityScope {
    let Some(text) = annotations.and_then(|annotations| annotations.get(AFFINITY_SCOPE)) else {
        return AffinityScope::default();
    };
    text.parse().unwrap_or_else(|error| {
        problems.push(format!("annotation {AFFINITY_SCOPE}: {error}; it counts as port"));
        AffinityScope::default()
    })
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

fn service_port(wire: wire::ServicePort, problems: &mut Problems) -> Option<ServicePort> {
    let Some((protocol, port)) = protocol(wire.protocol.as_deref()).zip(port_number(wire.port)) else {
        let protocol = wire.protocol.as_deref().unwrap_or("TCP");
        problems.push(format!("port {}/{protocol} cannot be read and is left out", wire.port));
        return None;
    };
    let node_port = wire.node_port.and_then(port_number);
    Some(ServicePort { name: wire.name.unwrap_or_default().into(), protocol, port, node_port })
}

fn ingress(wire: wire::LoadBalancerIngress, problems: &mut Problems) -> Ingress {
    let ip_mode = match wire.ip_mode.as_deref() {
        Some("Proxy") => Some(IpMode::Proxy),
        Some("VIP") => Some(IpMode::Vip),
        _ => None,
    };
    let ports = wire.ports.iter().filter_map(|p| {
        Some(IngressPort { port: port_number(p.port)?, protocol: protocol(p.protocol.as_deref())? })
    });
    Ingress {
        ip: list(problems, "ingress IP", wire.ip.iter().filter(|ip| !ip.is_empty()), parse_ip).pop(),
        hostname: wire.hostname.filter(|h| !h.is_empty()).map(Into::into),
        ip_mode,
        ports: ports.collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use serde_json::{Value, json};
    use service_model::Protocol;

    use super::*;

    fn read(object: Value, detail: Detail) -> (Option<Service>, Problems) {
        let mut problems = Vec::new();
        (service(serde_json::from_value(object).unwrap(), detail, &mut problems), problems)
    }

    /// Read in full and without problems.
    fn convert(object: Value) -> Service {
        let (service, problems) = read(object, Detail::Full);
        assert_eq!(problems, Problems::new());
        service.unwrap()
    }

    #[test]
    fn a_service_is_read_with_its_defaults() {
        let svc = convert(json!({
            "metadata": {"name": "web", "namespace": "shop", "managedFields": [{"manager": "x"}]},
            "spec": {"ports": [{"port": 80}], "clusterIP": "10.96.0.7", "clusterIPs": null}
        }));
        assert_eq!(svc.name.as_str(), "shop/web");
        assert_eq!(svc.cluster_ips, ["10.96.0.7".parse::<IpAddr>().unwrap()]);
        let port = &svc.ports[0];
        assert_eq!((port.protocol, &*port.name, port.node_port), (Protocol::Tcp, "", None));
        assert!(svc.allocate_node_ports && svc.session_affinity.is_none());
    }

    #[test]
    fn every_field_that_somebody_decides_from_is_read() {
        let svc = convert(json!({
            "metadata": {
                "name": "web", "namespace": "shop", "uid": "u-1", "labels": {"app": "web"},
                "annotations": {"note": "x"}, "finalizers": ["fairlead.dev/metal"],
                "deletionTimestamp": "2026-01-01T00:00:00Z"
            },
            "spec": {
                "type": "LoadBalancer", "loadBalancerClass": "fairlead.dev/metal",
                "clusterIPs": ["10.96.0.7", "fd00::7"], "externalIPs": ["192.0.2.1"],
                "ipFamilies": ["IPv4", "IPv6"], "ipFamilyPolicy": "RequireDualStack",
                "ports": [{"name": "dns", "protocol": "UDP", "port": 53, "nodePort": 30053}],
                "internalTrafficPolicy": "Local", "externalTrafficPolicy": "Local",
                "sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": 60}},
                "healthCheckNodePort": 30999, "loadBalancerSourceRanges": [" 203.0.113.000/025 "],
                "loadBalancerIP": "198.51.100.7", "allocateLoadBalancerNodePorts": false
            },
            "status": {"loadBalancer": {"ingress": [
                {"ip": "198.51.100.7", "ipMode": "Proxy", "ports": [{"port": 53, "protocol": "UDP"}]},
                {"hostname": "lb.example", "ip": ""}
            ]}}
        }));
        let mut expected = Service::new("shop/web".parse().unwrap());
        expected.uid = "u-1".into();
        expected.labels = [("app".into(), "web".into())].into();
        expected.annotations = [("note".into(), "x".into())].into();
        expected.finalizers = vec!["fairlead.dev/metal".into()];
        expected.deleting = true;
        expected.service_type = ServiceType::LoadBalancer;
        expected.load_balancer_class = Some("fairlead.dev/metal".into());
        expected.cluster_ips = vec!["10.96.0.7".parse().unwrap(), "fd00::7".parse().unwrap()];
        expected.external_ips = vec!["192.0.2.1".parse().unwrap()];
        expected.ip_families = vec![service_model::IpFamily::V4, service_model::IpFamily::V6];
        expected.ip_family_policy = IpFamilyPolicy::RequireDualStack;
        expected.ports = vec![ServicePort {
            name: "dns".into(),
            protocol: Protocol::Udp,
            port: 53,
            node_port: Some(30053),
        }];
        expected.internal_traffic_policy = TrafficPolicy::Local;
        expected.external_traffic_policy = TrafficPolicy::Local;
        expected.session_affinity = Some(SessionAffinity::of_seconds(60));
        expected.health_check_node_port = Some(30999);
        expected.source_ranges = vec!["203.0.113.0/25".parse().unwrap()];
        expected.load_balancer_ip = Some("198.51.100.7".into());
        expected.allocate_node_ports = false;
        expected.ingress = vec![
            Ingress {
                ip: Some("198.51.100.7".parse().unwrap()),
                hostname: None,
                ip_mode: Some(IpMode::Proxy),
                ports: vec![IngressPort { port: 53, protocol: Protocol::Udp }],
            },
            Ingress { hostname: Some("lb.example".into()), ..Ingress::default() },
        ];
        assert_eq!(svc, expected);
    }

    #[test]
    fn affinity_without_a_timeout_lasts_three_hours() {
        let svc = convert(json!({"metadata": {"name": "a"}, "spec": {"sessionAffinity": "ClientIP"}}));
        assert_eq!(svc.session_affinity, Some(SessionAffinity::of_seconds(3 * 3600)));
    }

    #[test]
    fn affinity_is_of_the_whole_service_where_the_annotation_says_so() {
        for (annotation, affinity, scope, told) in [
            (json!({AFFINITY_SCOPE: "service"}), "ClientIP", Some(AffinityScope::Service), false),
            (json!({AFFINITY_SCOPE: "port"}), "ClientIP", Some(AffinityScope::Port), false),
            (json!({AFFINITY_SCOPE: "Service"}), "ClientIP", Some(AffinityScope::Port), true),
            (json!({AFFINITY_SCOPE: ""}), "ClientIP", Some(AffinityScope::Port), true),
            (json!({"note": "service"}), "ClientIP", Some(AffinityScope::Port), false),
            (json!({AFFINITY_SCOPE: "nonsense"}), "None", None, false),
        ] {
            let metadata = json!({"name": "a", "annotations": annotation});
            let object = json!({"metadata": metadata, "spec": {"sessionAffinity": affinity}});
            for detail in [Detail::Dataplane, Detail::Full] {
                let (service, problems) = read(object.clone(), detail);
                let read = service.unwrap().session_affinity.map(|affinity| affinity.scope);
                assert_eq!((read, !problems.is_empty()), (scope, told), "{object} {problems:?}");
            }
        }
    }

    #[test]
    fn a_bad_entry_costs_itself_only_and_is_reported() {
        let (svc, problems) = read(
            json!({
                "metadata": {"name": "web"},
                "spec": {
                    "clusterIPs": ["nonsense", "10.96.0.8"], "externalIPs": ["1.2.3.4.5", "192.0.2.1"],
                    "ports": [
                        {"port": 0}, {"port": 70000}, {"port": 53, "protocol": "QUIC"},
                        {"port": 53, "protocol": "UDP"}, {"protocol": "TCP"}
                    ],
                    "loadBalancerSourceRanges": [" 10.0.0.0/8 ", "x/8"]
                },
                "status": {"loadBalancer": {"ingress": [{"ip": "pending"}]}}
            }),
            Detail::Full,
        );
        let svc = svc.unwrap();
        assert_eq!(svc.cluster_ips.len(), 1);
        assert_eq!(svc.external_ips.len(), 1);
        assert_eq!(svc.ports.len(), 1);
        assert_eq!(svc.source_ranges, ["10.0.0.0/8".parse().unwrap()]);
        assert_eq!(svc.ingress, [Ingress::default()]);
        assert_eq!(
            problems,
            [
                "clusterIP \"nonsense\" cannot be read and is left out",
                "externalIP \"1.2.3.4.5\" cannot be read and is left out",
                "port 0/TCP cannot be read and is left out",
                "port 70000/TCP cannot be read and is left out",
                "port 53/QUIC cannot be read and is left out",
                "port 0/TCP cannot be read and is left out",
                "loadBalancerSourceRange \"x/8\" cannot be read and is left out",
                "ingress IP \"pending\" cannot be read and is left out",
            ]
        );
    }

    #[test]
    fn headless_and_external_name_services_have_no_cluster_ip() {
        for spec in [
            json!({"clusterIP": "None", "clusterIPs": ["None"]}),
            json!({"type": "ExternalName", "clusterIP": "10.96.0.9", "clusterIPs": ["10.96.0.9"]}),
            json!({"clusterIP": ""}),
            json!(null),
        ] {
            assert!(convert(json!({"metadata": {"name": "web"}, "spec": spec})).cluster_ips.is_empty());
        }
    }

    #[test]
    fn the_data_plane_keeps_no_annotations_and_nothing_that_it_does_not_route() {
        let object = json!({"metadata": {"name": "a", "annotations": {"k": "v"}, "labels": {"k": "v"}}});
        let svc = read(object, Detail::Dataplane).0.unwrap();
        assert!(svc.annotations.is_empty() && svc.labels.is_empty());
        for object in [
            json!({"metadata": {"name": "a", "labels": {OTHER_PROXY_LABEL: "istio"}}}),
            json!({"metadata": {"name": "a"}, "spec": {"clusterIP": "None"}}),
        ] {
            assert_eq!(read(object.clone(), Detail::Dataplane), (None, Problems::new()), "{object}");
            assert!(read(object.clone(), Detail::Full).0.is_some(), "{object}");
        }
    }

    #[test]
    fn an_object_without_a_name_is_reported() {
        let (svc, problems) = read(json!({"metadata": {}}), Detail::Full);
        assert_eq!((svc, problems.len()), (None, 1));
    }
}
