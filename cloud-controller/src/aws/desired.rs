//! A Service and the nodes, turned into the load balancer that is wanted. Pure; what depends on the
//! account (subnets, the scheme of a load balancer that exists) is left to the plan.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use service_model::{
    IpFamily, Node, Protocol as ServiceProtocol, Service, ServicePort, TrafficPolicy, World,
};

use super::annotations::{self, Annotations, PortRef};
use super::names::{Identity, TargetGroupKey};
use super::resources::{Attributes, HealthCheck, HealthPort, HealthProtocol, Protocol, Scheme, Tags, Target};
use crate::plan::Note;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Desired {
    pub id: Identity,
    /// Of the load balancer, if the user chose one.
    pub name: Option<String>,
    /// `None`: as it is, else internal.
    pub scheme: Option<Scheme>,
    pub subnets: Option<Vec<String>>,
    /// The user's, for every resource.
    pub tags: Tags,
    pub attributes: Attributes,
    pub source_ranges: BTreeSet<IpNet>,
    /// By the Service's port.
    pub listeners: BTreeMap<u16, DesiredListener>,
    /// `i-…`
    pub instances: BTreeSet<String>,
}

/// A listener with its target group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredListener {
    pub port: u16,
    pub protocol: Protocol,
    pub node_port: u16,
    pub health_check: HealthCheck,
    pub attributes: Attributes,
}

/// What is wanted, with remarks that stand in nobody's way.
///
/// # Errors
/// Every mistake: nothing may be done before the user has corrected it.
pub fn desired(service: &Service, world: &World, cluster: &str) -> Result<(Desired, Vec<Note>), Vec<Note>> {
    let annotations = annotations::parse(service)?;
    let mut mistakes = Vec::new();
    if !service.ip_families.is_empty() && !service.ip_families.contains(&IpFamily::V4) {
        mistakes.push(Note::warning(
            "UnsupportedIpFamily",
            "spec.ipFamilies has no IPv4, and this version makes IPv4 load balancers only: add IPv4",
        ));
    }
    let source_ranges = source_ranges(service, &annotations).unwrap_or_else(|note| {
        mistakes.push(note);
        BTreeSet::new()
    });
    let listeners = listeners(service, &annotations, &mut mistakes);
    if !mistakes.is_empty() {
        return Err(mistakes);
    }
    let instances: BTreeSet<String> = targets(world, &annotations).collect();
    let notes = remarks(&listeners, &instances, &annotations);
    let id = identity(service, cluster);
    let Annotations { name, scheme, subnets, tags, attributes, .. } = annotations;
    let desired =
        Desired { id, name, scheme, subnets, tags, attributes, source_ranges, listeners, instances };
    Ok((desired, notes))
}

pub fn identity(service: &Service, cluster: &str) -> Identity {
    Identity { cluster: cluster.to_owned(), service: service.name.clone(), uid: service.uid.to_string() }
}

impl Desired {
    /// The targets of a listener.
    pub fn targets(&self, listener: &DesiredListener) -> BTreeSet<Target> {
        let target = |instance: &String| Target { instance: instance.clone(), port: listener.node_port };
        self.instances.iter().map(target).collect()
    }
}

impl DesiredListener {
    /// What a new target group is named after.
    pub fn key(&self) -> TargetGroupKey {
        TargetGroupKey {
            target_port: self.node_port,
            service_port: self.port,
            protocol: self.protocol,
            health_protocol: self.health_check.protocol,
            health_interval: self.health_check.interval,
        }
    }
}

/// `spec.loadBalancerSourceRanges`, else the annotation, else everyone.
fn source_ranges(service: &Service, annotations: &Annotations) -> Result<BTreeSet<IpNet>, Note> {
    let given = if service.source_ranges.is_empty() {
        annotations.source_ranges.as_deref().unwrap_or_default()
    } else {
        &service.source_ranges
    };
    if let Some(v6) = given.iter().find(|range| matches!(range, IpNet::V6(_))) {
        return Err(Note::warning(
            "InvalidSourceRange",
            format!(
                "the source range {v6} is IPv6 and the load balancer is IPv4: remove it. Until then the load \
                 balancer stays as it is"
            ),
        ));
    }
    if given.is_empty() {
        return Ok(BTreeSet::from([IpNet::from(ipnet::Ipv4Net::default())]));
    }
    Ok(given.iter().map(IpNet::trunc).collect())
}

fn listeners(
    service: &Service,
    annotations: &Annotations,
    mistakes: &mut Vec<Note>,
) -> BTreeMap<u16, DesiredListener> {
    let mut by_port: BTreeMap<u16, DesiredListener> = BTreeMap::new();
    for port in &service.ports {
        let (protocol, node_port) = match parse_port(port) {
            Ok(parsed) => parsed,
            Err(note) => {
                mistakes.push(note);
                continue;
            }
        };
        if let Some(twin) = by_port.get_mut(&port.port) {
            // An NLB has one listener a port number, and a target group one port.
            if twin.node_port != node_port {
                mistakes.push(Note::warning(
                    "PortConflict",
                    format!(
                        "port {} is TCP and UDP, which share one target group, but their NodePorts are {} and \
                         {node_port}: give both ports the same nodePort",
                        port.port, twin.node_port
                    ),
                ));
            }
            twin.protocol = Protocol::TcpUdp;
            continue;
        }
        let mut attributes = annotations.target_group_attributes.clone();
        attributes
            .extend(annotations.target_group_attributes_of.get(&port.port).cloned().unwrap_or_default());
        let health_check = health_check(service, annotations);
        let listener = DesiredListener { port: port.port, protocol, node_port, health_check, attributes };
        by_port.insert(port.port, listener);
    }
    by_port
}

fn parse_port(port: &ServicePort) -> Result<(Protocol, u16), Note> {
    let protocol = match port.protocol {
        ServiceProtocol::Tcp => Protocol::Tcp,
        ServiceProtocol::Udp => Protocol::Udp,
        ServiceProtocol::Sctp => {
            let message = format!("port {} is SCTP, which network load balancers do not carry", port.port);
            return Err(Note::warning("UnsupportedProtocol", message));
        }
    };
    let node_port = port.node_port.ok_or_else(|| {
        Note::warning(
            "NoNodePort",
            format!(
                "port {} has no NodePort, and targets are instances, which are reached through NodePorts: set \
                 spec.allocateLoadBalancerNodePorts to true",
                port.port
            ),
        )
    })?;
    Ok((protocol, node_port))
}

/// AWS Load Balancer Controller's defaults: the port itself; with externalTrafficPolicy Local the
/// nodes' own answer whether they have an endpoint.
fn health_check(service: &Service, annotations: &Annotations) -> HealthCheck {
    let asked = &annotations.health;
    let local = (service.external_traffic_policy == TrafficPolicy::Local)
        .then_some(service.health_check_node_port)
        .flatten();
    let protocol =
        asked.protocol.unwrap_or(if local.is_some() { HealthProtocol::Http } else { HealthProtocol::Tcp });
    let port = match (asked.port, local) {
        (Some(PortRef::Traffic), _) | (None, None) => HealthPort::Traffic,
        (Some(PortRef::Number(port)), _) | (None, Some(port)) => HealthPort::Number(port),
        (Some(PortRef::NodePortOf(named)), _) => {
            let node_port = service.ports.iter().find(|p| p.port == named).and_then(|p| p.node_port);
            node_port.map_or(HealthPort::Traffic, HealthPort::Number)
        }
    };
    let http = protocol != HealthProtocol::Tcp;
    let path = if local.is_some() { "/healthz" } else { "/" };
    let (timeout, threshold) = if local.is_some() { (6, 2) } else { (10, 3) };
    HealthCheck {
        protocol,
        port,
        path: http.then(|| asked.path.clone().unwrap_or_else(|| path.to_owned())),
        success_codes: http.then(|| asked.success_codes.clone().unwrap_or_else(|| "200-399".to_owned())),
        interval: asked.interval.unwrap_or(10),
        timeout: asked.timeout.unwrap_or(timeout),
        healthy: asked.healthy.unwrap_or(threshold),
        unhealthy: asked.unhealthy.unwrap_or(threshold),
    }
}

/// The instances behind nodes. Whether a node is ready is not asked: the health check decides
/// (KEP-3458).
fn targets<'a>(world: &'a World, annotations: &'a Annotations) -> impl Iterator<Item = String> + 'a {
    let wanted = |node: &&Node| {
        let labels = &annotations.node_labels;
        labels.iter().all(|(key, value)| node.labels.get(&**key).is_some_and(|v| **v == **value))
    };
    world.nodes().filter(|n| n.is_load_balancer_target()).filter(wanted).filter_map(instance)
}

/// `aws:///us-east-1a/i-0123` is `i-0123`. Fargate nodes have none.
fn instance(node: &Node) -> Option<String> {
    let id = node.provider_id.as_deref()?.strip_prefix("aws://")?.rsplit('/').next()?;
    id.starts_with("i-").then(|| id.to_owned())
}

fn remarks(
    listeners: &BTreeMap<u16, DesiredListener>,
    instances: &BTreeSet<String>,
    annotations: &Annotations,
) -> Vec<Note> {
    let mut notes = Vec::new();
    if instances.is_empty() {
        let with = if annotations.node_labels.is_empty() { "" } else { ", the labels asked for" };
        notes.push(Note::warning(
            "UnAvailableLoadBalancer",
            format!(
                "there are no available nodes for the load balancer: none has a providerID of an EC2 instance{with} \
                 and no label or taint that excludes it"
            ),
        ));
    }
    let unanswered =
        |l: &&DesiredListener| l.protocol == Protocol::Udp && l.health_check.port == HealthPort::Traffic;
    if let Some(listener) = listeners.values().find(unanswered) {
        notes.push(Note::normal(
            "HealthCheckCannotSucceed",
            format!(
                "port {} is UDP and its health check is {} to the same NodePort, where nothing answers: set {} to \
                 a port that does, such as 10256 with healthcheck-protocol http and healthcheck-path /healthz \
                 for kube-proxy's own answer",
                listener.port,
                listener.health_check.protocol.as_str(),
                annotations::key("healthcheck-port")
            ),
        ));
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use service_model::{Change, Object};

    fn port(protocol: ServiceProtocol, port: u16, node_port: u16) -> ServicePort {
        ServicePort { name: "".into(), protocol, port, node_port: (node_port != 0).then_some(node_port) }
    }

    fn service(ports: Vec<ServicePort>) -> Service {
        let mut service = Service::new("shop/web".parse().unwrap());
        service.uid = "uid-1".into();
        service.ports = ports;
        service
    }

    fn reasons(service: &Service) -> Vec<&'static str> {
        let notes = desired(service, &World::default(), "c").unwrap_err();
        notes.iter().map(|n| n.reason).collect()
    }

    #[test]
    fn tcp_and_udp_on_one_number_become_one_listener_if_their_node_ports_agree() {
        use ServiceProtocol::{Tcp, Udp};
        let dns = service(vec![port(Tcp, 53, 30053), port(Udp, 53, 30053), port(Tcp, 80, 30080)]);
        let (desired, _) = desired(&dns, &World::default(), "c").unwrap();
        let listeners: Vec<String> = desired
            .listeners
            .values()
            .map(|l| format!("{} {} {}", l.port, l.protocol, l.node_port))
            .collect();
        assert_eq!(listeners, ["53 TCP_UDP 30053", "80 TCP 30080"]);
        let apart = service(vec![port(Tcp, 53, 30053), port(Udp, 53, 30054)]);
        assert_eq!(reasons(&apart), ["PortConflict"]);
    }

    #[test]
    fn what_an_nlb_cannot_do_is_said_and_nothing_is_wanted() {
        let mut odd = service(vec![port(ServiceProtocol::Sctp, 1, 30001), port(ServiceProtocol::Tcp, 2, 0)]);
        odd.source_ranges = vec!["fd00::/8".parse().unwrap()];
        odd.ip_families = vec![IpFamily::V6];
        assert_eq!(
            reasons(&odd),
            ["UnsupportedIpFamily", "InvalidSourceRange", "UnsupportedProtocol", "NoNodePort"]
        );
    }

    #[test]
    fn local_traffic_policy_is_checked_where_nodes_tell_about_endpoints() {
        let mut local = service(vec![port(ServiceProtocol::Tcp, 80, 30080)]);
        local.external_traffic_policy = TrafficPolicy::Local;
        local.health_check_node_port = Some(32000);
        let check = |s: &Service| {
            desired(s, &World::default(), "c").unwrap().0.listeners[&80].health_check.to_string()
        };
        assert_eq!(check(&local), "HTTP 32000 /healthz 200-399 every 10 s, timeout 6 s, 2 up, 2 down");
        local.external_traffic_policy = TrafficPolicy::Cluster;
        assert_eq!(check(&local), "TCP traffic-port every 10 s, timeout 10 s, 3 up, 3 down");
    }

    #[test]
    fn targets_are_nodes_with_an_instance_ready_or_not() {
        let mut world = World::default();
        for (name, provider_id, excluded) in [
            ("ready", "aws:///us-east-1a/i-1", false),
            ("fargate", "aws:///us-east-1a/fargate-10-0-0-1", false),
            ("elsewhere", "kind://x/i-2", false),
            ("excluded", "aws:///us-east-1a/i-3", true),
        ] {
            let mut node = Node::new(name.into());
            node.provider_id = Some(provider_id.into());
            if excluded {
                let label = "node.kubernetes.io/exclude-from-external-load-balancers";
                node.labels.insert(label.into(), "".into());
            }
            world.apply(Change::Apply(Object::Node(node)));
        }
        let service = service(vec![port(ServiceProtocol::Tcp, 80, 30080)]);
        let (desired, notes) = desired(&service, &world, "c").unwrap();
        assert_eq!(desired.instances, BTreeSet::from(["i-1".to_owned()]));
        assert!(notes.is_empty());
    }
}
