//! A Service's ports as listeners of the balancer tier.

use std::net::IpAddr;

use metal_lb_api::{HealthCheck, Listener, NatProtocol};
use service_model::{Protocol, Service, TrafficPolicy};

use crate::plan::Note;

/// The node set of all nodes that load balancers may use.
pub const ALL_NODES: &str = "all";

/// Where kube-proxy and node-agent say whether their node takes new connections.
const NODE_HEALTH_PORT: u16 = 10256;
const HEALTH_PATH: &str = "/healthz";

/// The listeners for `vip`, and what could not be made into one. No listener at all is a reason
/// to do nothing, and the notes say why.
pub fn listeners(service: &Service, vip: IpAddr) -> (Vec<Listener>, Vec<Note>) {
    let (mut listeners, mut notes) = (Vec::new(), Vec::new());
    let health = health(service);
    if service.ports.is_empty() {
        notes.push(Note::warning("NoPorts", "spec.ports is empty: there is nothing to balance"));
    }
    let unallocated: Vec<String> = service
        .ports
        .iter()
        .filter(|p| p.node_port.is_none())
        .map(|p| format!("{} {}", p.protocol, p.port))
        .collect();
    if !unallocated.is_empty() {
        let hint = if service.allocate_node_ports {
            "the API server will allocate it"
        } else {
            "the NAT path balances to NodePorts: remove spec.allocateLoadBalancerNodePorts: false, \
             or set spec.ports[].nodePort"
        };
        notes.push(Note::warning(
            "NoNodePort",
            format!("no NodePort is allocated for {}: {hint}", unallocated.join(", ")),
        ));
    }
    for port in &service.ports {
        let Some(node_port) = port.node_port else { continue };
        let Some(protocol) = nat_protocol(port.protocol) else {
            notes.push(Note::warning(
                "ProtocolNotServed",
                format!("{} {}: metal-lb balances TCP and UDP only", port.protocol, port.port),
            ));
            continue;
        };
        listeners.push(Listener {
            service: service.name.to_string(),
            port_name: port.name.to_string(),
            vip,
            protocol,
            port: port.port,
            node_set: ALL_NODES.to_owned(),
            node_port,
            health: health.clone(),
        });
    }
    if !listeners.is_empty() {
        notes.extend(limits_of_nat(service));
    }
    (listeners, notes)
}

/// What the Service asks for and full address translation cannot give.
fn limits_of_nat(service: &Service) -> Vec<Note> {
    let mut notes = Vec::new();
    if service.external_traffic_policy == TrafficPolicy::Local {
        notes.push(Note::warning(
            "ClientAddressNotKept",
            "externalTrafficPolicy is Local, and traffic goes only to nodes with a ready pod; the pods see the \
             balancer's address, not the client's: metal-lb translates both. Use externalTrafficPolicy Cluster \
             unless you want the shorter path",
        ));
    }
    if !service.source_ranges.is_empty() {
        notes.push(Note::warning(
            "SourceRangesNotServed",
            "spec.loadBalancerSourceRanges is not enforced by metal-lb yet: every client can connect",
        ));
    }
    if service.session_affinity.is_some() {
        notes.push(Note::warning(
            "AffinityNotKept",
            "spec.sessionAffinity is ClientIP, and nodes see the balancer's address as the client's: each node \
             sends all connections through the balancer to one pod. Use sessionAffinity None",
        ));
    }
    notes
}

fn health(service: &Service) -> HealthCheck {
    let local = service.external_traffic_policy == TrafficPolicy::Local;
    let port = service.health_check_node_port.filter(|_| local).unwrap_or(NODE_HEALTH_PORT);
    HealthCheck { port, path: HEALTH_PATH.to_owned() }
}

fn nat_protocol(protocol: Protocol) -> Option<NatProtocol> {
    match protocol {
        Protocol::Tcp => Some(NatProtocol::Tcp),
        Protocol::Udp => Some(NatProtocol::Udp),
        Protocol::Sctp => None,
    }
}

#[cfg(test)]
mod tests {
    use service_model::{ObjectName, ServicePort, SessionAffinity};

    use super::*;

    fn service(ports: &[(Protocol, u16, Option<u16>)]) -> Service {
        let mut service = Service::new(ObjectName::new("shop", "web"));
        service.ports = ports
            .iter()
            .map(|(protocol, port, node_port)| ServicePort {
                name: format!("p{port}").into(),
                protocol: *protocol,
                port: *port,
                node_port: *node_port,
            })
            .collect();
        service
    }

    fn summary(service: &Service) -> (Vec<String>, Vec<&'static str>) {
        let (listeners, notes) = listeners(service, "10.0.0.1".parse().unwrap());
        let line =
            |l: &Listener| format!("{} -> {} ({}{})", l.key(), l.node_port, l.health.port, l.health.path);
        (listeners.iter().map(line).collect(), notes.iter().map(|n| n.reason).collect())
    }

    #[test]
    fn each_tcp_and_udp_port_with_a_node_port_becomes_a_listener() {
        let service = service(&[
            (Protocol::Tcp, 80, Some(30080)),
            (Protocol::Udp, 53, Some(30053)),
            (Protocol::Sctp, 9, Some(30009)),
            (Protocol::Tcp, 81, None),
        ]);
        let (lines, notes) = summary(&service);
        assert_eq!(
            lines,
            ["TCP 10.0.0.1:80 -> 30080 (10256/healthz)", "UDP 10.0.0.1:53 -> 30053 (10256/healthz)"]
        );
        assert_eq!(notes, ["NoNodePort", "ProtocolNotServed"]);
    }

    #[test]
    fn the_local_policy_asks_the_services_own_health_port_and_warns_of_the_client_address() {
        let mut service = service(&[(Protocol::Tcp, 80, Some(30080))]);
        service.external_traffic_policy = TrafficPolicy::Local;
        service.health_check_node_port = Some(32000);
        let (lines, notes) = summary(&service);
        assert_eq!(lines, ["TCP 10.0.0.1:80 -> 30080 (32000/healthz)"]);
        assert_eq!(notes, ["ClientAddressNotKept"]);
    }

    #[test]
    fn what_translation_cannot_give_is_said() {
        let mut service = service(&[(Protocol::Tcp, 80, Some(30080))]);
        service.source_ranges = vec!["10.0.0.0/8".parse().unwrap()];
        service.session_affinity = Some(SessionAffinity::of_seconds(10));
        assert_eq!(summary(&service).1, ["SourceRangesNotServed", "AffinityNotKept"]);
    }

    #[test]
    fn a_service_that_declines_node_ports_is_told_what_to_change() {
        let mut service = service(&[(Protocol::Tcp, 80, None)]);
        service.allocate_node_ports = false;
        let (_, notes) = listeners(&service, "10.0.0.1".parse().unwrap());
        assert!(notes[0].message.contains("allocateLoadBalancerNodePorts"), "{}", notes[0]);
    }
}
