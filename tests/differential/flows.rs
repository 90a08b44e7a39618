//! What can be asked of a Service: who asks, and where.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use kube::ResourceExt;
use service_model::Protocol;

use crate::features::{Feature, Settings};
use crate::legacy;
use crate::probe::Call;
use crate::twin::{self, Source};

/// The label that leaves a Service to another proxy.
pub(crate) const OTHER_PROXY: &str = "service.kubernetes.io/service-proxy-name";

/// No case has it.
const UNDEFINED_PORT: u16 = 4444;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Flow {
    /// The number of the case in its batch.
    pub case: usize,
    pub source: Source,
    pub frontend: Frontend,
    pub destination: SocketAddr,
    pub protocol: Protocol,
}

/// What the destination is to the Service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Frontend {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
    Loopback,
    UndefinedPort,
    Unallocated,
}

impl Flow {
    pub(crate) fn call(&self) -> Call {
        Call {
            source: twin::own_address(self.source, self.destination.ip()),
            destination: self.destination,
            protocol: self.protocol,
        }
    }
}

/// Every flow of a Service, as the API server has it.
///
/// # Errors
/// When an address or a port of it is none.
pub(crate) fn of_service(
    case: usize,
    service: &Service,
    node: [IpAddr; 2],
    settings: &Settings,
) -> Result<Vec<Flow>> {
    let spec = service.spec.as_ref().context("a Service has a spec")?;
    let cluster_ips = parsed(spec.cluster_ips.iter().flatten().filter(|ip| *ip != "None"))?;
    let external_ips = parsed(spec.external_ips.iter().flatten())?;
    let ingress = load_balancer_ips(service)?;

    let mut targets = Vec::new();
    for port in spec.ports.iter().flatten() {
        let protocol = protocol(port)?;
        let number = u16::try_from(port.port)?;
        let mut add = |frontend, ips: &[IpAddr], port| {
            for ip in ips {
                let target = (frontend, SocketAddr::new(*ip, port), protocol);
                // An undefined port is the same to all that are defined.
                if !targets.contains(&target) {
                    targets.push(target);
                }
            }
        };
        add(Frontend::ClusterIp, &cluster_ips, number);
        add(Frontend::ExternalIp, &external_ips, number);
        add(Frontend::LoadBalancer, &ingress, number);
        if let Some(node_port) = port.node_port {
            add(Frontend::NodePort, &node, u16::try_from(node_port)?);
        }
        // In every mode of kube-proxy, unlike those of ClusterIPs.
        add(Frontend::UndefinedPort, &external_ips, UNDEFINED_PORT);
        add(Frontend::UndefinedPort, &ingress, UNDEFINED_PORT);
        if settings.has(Feature::UndefinedPorts) {
            add(Frontend::UndefinedPort, &cluster_ips, UNDEFINED_PORT);
        }
    }
    // The address of a Service that is another proxy's belongs to nobody, as far as ours knows.
    if service.labels().contains_key(OTHER_PROXY) && !settings.has(Feature::UnallocatedAddresses) {
        targets.retain(|(frontend, ..)| *frontend != Frontend::ClusterIp);
    }
    Ok(from_everywhere(case, &targets))
}

/// # Errors
/// When one is none.
pub(crate) fn load_balancer_ips(service: &Service) -> Result<Vec<IpAddr>> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.into_iter().flat_map(|balancer| balancer.ingress.iter().flatten());
    parsed(ingress.filter_map(|ingress| ingress.ip.as_ref()))
}

/// What the node asks of NodePorts on its own loopback.
///
/// # Errors
/// When a port of the Service is none.
pub(crate) fn on_loopback(case: usize, service: &Service) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for port in service.spec.iter().flat_map(|spec| spec.ports.iter().flatten()) {
        let Some(number) = port.node_port else { continue };
        let (number, protocol) = (u16::try_from(number)?, protocol(port)?);
        flows.extend([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()].map(|ip: IpAddr| Flow {
            case,
            source: Source::Node,
            frontend: Frontend::Loopback,
            destination: SocketAddr::new(ip, number),
            protocol,
        }));
    }
    Ok(flows)
}

/// What is asked of addresses that belong to nobody.
pub(crate) fn of_nobody(case: usize, addresses: &[IpAddr]) -> Vec<Flow> {
    let targets = addresses.iter().flat_map(|ip| {
        [Protocol::Tcp, Protocol::Udp]
            .map(|protocol| (Frontend::Unallocated, SocketAddr::new(*ip, 80), protocol))
    });
    from_everywhere(case, &targets.collect::<Vec<_>>())
}

fn from_everywhere(case: usize, targets: &[(Frontend, SocketAddr, Protocol)]) -> Vec<Flow> {
    let flows = targets.iter().flat_map(|(frontend, destination, protocol)| {
        Source::ALL.map(|source| Flow {
            case,
            source,
            frontend: *frontend,
            destination: *destination,
            protocol: *protocol,
        })
    });
    flows.collect()
}

pub(crate) fn protocol(port: &ServicePort) -> Result<Protocol> {
    port.protocol.as_deref().unwrap_or("TCP").parse().context("reading a port's protocol")
}

fn parsed<'a>(texts: impl Iterator<Item = &'a String>) -> Result<Vec<IpAddr>> {
    texts.map(|text| legacy::parse(text)).collect()
}

impl fmt::Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let frontend = match self.frontend {
            Frontend::ClusterIp => "ClusterIP",
            Frontend::ExternalIp => "external IP",
            Frontend::LoadBalancer => "load balancer",
            Frontend::NodePort => "NodePort",
            Frontend::Loopback => "NodePort on loopback",
            Frontend::UndefinedPort => "undefined port",
            Frontend::Unallocated => "unallocated",
        };
        write!(f, "{} to {}/{} ({frontend})", self.source, self.destination, self.protocol)
    }
}
