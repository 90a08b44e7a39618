//! What to do for one Service on metal, from what is wanted and what is there.
//!
//! ```text
//! serve:    allocate ▶ record on the Service ▶ tell the hosts ▶ await one ▶ publish in the status
//! release:  clear the status ▶ tell the hosts ▶ await all ▶ let the Service go
//! ```
//!
//! An address is on the Service before a host hears of it, and programmed on a host before the
//! status shows it. Each batch is a good place to die: the next plan takes up from what is recorded.

use std::fmt;
use std::net::IpAddr;

use metal_lb_api::{Generation, Listener};
use service_model::{Ingress, IngressPort, IpMode, Protocol, Service, ServiceName};

use super::document::Entry;
use super::ipam::{Choice, Held, IpamError};
use super::listeners::listeners;
use super::request::{Request, RequestError};
use crate::desired::Provider;
use crate::plan::{Note, Plan};

/// The address that the controller gave to the Service.
pub const ALLOCATED_IPS: &str = "fairlead.dev/allocated-ips";

/// What is there for one Service.
#[derive(Debug, Clone, Default)]
pub struct Observed<'a> {
    pub held: Option<&'a Held>,
    /// A pool that offers the held address; `None` when every pool has dropped it.
    pub pool: Option<&'a str>,
    /// The node or balancer host that has the held address itself.
    pub machine: Option<&'a str>,
    /// Whether any node can take traffic.
    pub has_nodes: bool,
    /// Its part of the newest document.
    pub entry: Option<&'a Entry>,
    /// The number of the next document, once there is a first.
    pub next: Option<Generation>,
    /// Whether a host has programmed that part.
    pub programmed: bool,
}

/// What a Service that holds no address would get.
pub type Offer = Result<Choice, IpamError>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    Allocate {
        service: ServiceName,
        uid: Box<str>,
        ip: IpAddr,
        pool: Box<str>,
    },
    /// Annotation and finalizer in one patch.
    Record {
        service: ServiceName,
        uid: Box<str>,
        ip: IpAddr,
    },
    /// The Service's part of the document.
    Configure {
        service: ServiceName,
        listeners: Vec<Listener>,
        generation: Option<Generation>,
    },
    AwaitProgrammed {
        service: ServiceName,
        ip: IpAddr,
    },
    Publish {
        service: ServiceName,
        ingress: Ingress,
    },
    ClearStatus {
        service: ServiceName,
    },
    /// The document without the Service.
    Withdraw {
        service: ServiceName,
        ip: Option<IpAddr>,
        generation: Option<Generation>,
    },
    AwaitWithdrawn {
        service: ServiceName,
    },
    /// Annotation and finalizer off; the address is free once the Service is seen without them.
    LetGo {
        service: ServiceName,
        ip: Option<IpAddr>,
    },
}

/// Total and pure. A plan without batches has nothing (more) to do: its notes say why where that
/// is not success.
pub fn serve(
    service: &Service,
    request: &Result<Request, RequestError>,
    offer: impl FnOnce(&Request) -> Offer,
    observed: &Observed<'_>,
) -> Plan<Step> {
    let mut plan = Plan::default();
    let request = match request {
        Ok(request) => request,
        Err(error) if observed.held.is_none() => {
            plan.notes.push(Note::warning("InvalidRequest", error.to_string()));
            return plan;
        }
        // What is served stays served as it is.
        Err(error) => {
            plan.notes.push(Note::warning("InvalidRequest", format!("{error}; the address stays as it is")));
            &Request::default()
        }
    };
    plan.notes.extend(request.notes.iter().cloned());

    // Without a listener there is nothing to hold an address for.
    let (probe, _) = listeners(service, IpAddr::from([0, 0, 0, 0]));
    if probe.is_empty() && observed.held.is_none() {
        plan.notes.extend(listeners(service, IpAddr::from([0, 0, 0, 0])).1);
        return plan;
    }
    let ip = match observed.held {
        Some(held) => {
            plan.notes.extend(complaints(held.ip, request, observed.pool));
            if let Some(machine) = observed.machine {
                let error = IpamError::OfMachine { ip: held.ip, machine: machine.to_owned() };
                let message = format!("{error}, and create the Service again");
                plan.notes.push(Note::warning(error.reason(), message));
                return plan;
            }
            held.ip
        }
        None => match offer(request) {
            Ok(choice) => {
                plan.notes.push(Note::normal(
                    "Allocated",
                    format!("{} from IPAddressPool {}", choice.ip, choice.pool),
                ));
                plan.batches.push(vec![Step::Allocate {
                    service: service.name.clone(),
                    uid: service.uid.clone(),
                    ip: choice.ip,
                    pool: choice.pool,
                }]);
                choice.ip
            }
            Err(error) => {
                plan.notes.push(Note::warning(error.reason(), error.to_string()));
                return plan;
            }
        },
    };
    // Left there by somebody else, or by an earlier life of the Service.
    let stale = !service.ingress.is_empty() && service.ingress.iter().all(|i| i.ip != Some(ip));
    if stale {
        plan.batches.push(vec![Step::ClearStatus { service: service.name.clone() }]);
    }
    if !(is_recorded(service) && recorded(service) == Some(ip)) {
        plan.batches.push(vec![Step::Record { service: service.name.clone(), uid: service.uid.clone(), ip }]);
    }
    let (listeners, notes) = listeners(service, ip);
    plan.notes.extend(notes);
    if !observed.has_nodes {
        plan.notes.push(Note::warning(
            "NoNode",
            "no node can take traffic: none has an InternalIP, or all are excluded by the label \
             node.kubernetes.io/exclude-from-external-load-balancers",
        ));
    }
    let ingress = ingress(ip, &listeners);
    let configured = observed.entry.is_some_and(|e| e.listeners == listeners);
    if !configured {
        plan.batches.push(vec![Step::Configure {
            service: service.name.clone(),
            listeners,
            generation: observed.next,
        }]);
    }
    if service.ingress != [ingress.clone()] {
        if !(configured && observed.programmed) {
            plan.batches.push(vec![Step::AwaitProgrammed { service: service.name.clone(), ip }]);
        }
        plan.batches.push(vec![Step::Publish { service: service.name.clone(), ingress }]);
    }
    plan
}

/// For a Service that is being deleted or is no longer ours, and carries our finalizer.
pub fn release(service: &Service, observed: &Observed<'_>) -> Plan<Step> {
    let mut plan = Plan::default();
    let ip = observed.held.map(|h| h.ip);
    let ours = [ip, recorded(service)];
    if service.ingress.iter().any(|i| i.ip.is_some() && ours.contains(&i.ip)) {
        plan.batches.push(vec![Step::ClearStatus { service: service.name.clone() }]);
    }
    if observed.entry.is_some() {
        plan.batches.push(vec![Step::Withdraw {
            service: service.name.clone(),
            ip,
            generation: observed.next,
        }]);
    }
    plan.batches.push(vec![Step::AwaitWithdrawn { service: service.name.clone() }]);
    plan.batches.push(vec![Step::LetGo { service: service.name.clone(), ip }]);
    plan
}

/// The address that is recorded on the Service.
pub fn recorded(service: &Service) -> Option<IpAddr> {
    let text = service.annotation(ALLOCATED_IPS)?;
    text.split(',').filter_map(|t| t.trim().parse::<IpAddr>().ok()).find(IpAddr::is_ipv4)
}

/// Whether the Service carries both marks: address and finalizer.
pub fn is_recorded(service: &Service) -> bool {
    service.has_finalizer(Provider::Metal.finalizer()) && recorded(service).is_some()
}

/// What the status shows: in Proxy mode, because hosts translate addresses and a node must not
/// short-circuit them (KEP-1860).
fn ingress(ip: IpAddr, listeners: &[Listener]) -> Ingress {
    let protocol = |l: &Listener| match l.protocol {
        metal_lb_api::NatProtocol::Tcp => Protocol::Tcp,
        metal_lb_api::NatProtocol::Udp => Protocol::Udp,
    };
    Ingress {
        ip: Some(ip),
        hostname: None,
        ip_mode: Some(IpMode::Proxy),
        ports: listeners.iter().map(|l| IngressPort { port: l.port, protocol: protocol(l) }).collect(),
    }
}

/// What is asked for now and does not agree with the address that the Service has: it keeps that.
fn complaints(ip: IpAddr, request: &Request, pool: Option<&str>) -> Vec<Note> {
    let mut notes = Vec::new();
    if let Some(wanted) = request.ip.filter(|w| *w != ip) {
        notes.push(Note::warning(
            "AddressKept",
            format!(
                "the Service asks for {wanted} and has {ip}, which never changes while it lives: \
                 delete it and create it again to get another"
            ),
        ));
    }
    match (pool, &request.pool) {
        (None, _) => notes.push(Note::warning(
            "AddressOutsidePool",
            format!("{ip} is no longer in any IPAddressPool; the Service keeps it until it is deleted"),
        )),
        (Some(pool), Some(wanted)) if pool != &**wanted => notes.push(Note::warning(
            "AddressKept",
            format!("the Service asks for IPAddressPool {wanted} and keeps {ip} of {pool}"),
        )),
        _ => {}
    }
    notes
}

impl Step {
    /// Whether it changes anything, rather than waits for something.
    pub fn changes(&self) -> bool {
        !matches!(self, Self::AwaitProgrammed { .. } | Self::AwaitWithdrawn { .. })
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allocate { ip, pool, service, .. } => {
                write!(f, "allocate {ip} from pool {pool} for {service}")
            }
            Self::Record { service, ip, .. } => {
                write!(f, "record {ip} on {service}: annotation {ALLOCATED_IPS} and finalizer, in one patch")
            }
            Self::Configure { service, listeners, generation } => {
                write!(f, "configure hosts with {}: {} for {service}", Number(*generation), count(listeners))
            }
            Self::AwaitProgrammed { ip, .. } => write!(f, "wait until a host has programmed {ip}"),
            Self::Publish { service, ingress } => {
                let ip = ingress.ip.map(|ip| ip.to_string()).unwrap_or_default();
                write!(f, "publish {ip} in the status of {service} (ipMode Proxy, {})", ports(ingress))
            }
            Self::ClearStatus { service } => write!(f, "clear the status of {service}"),
            Self::Withdraw { service, ip, generation } => {
                write!(f, "configure hosts with {}: without {service}", Number(*generation))?;
                ip.map_or(Ok(()), |ip| write!(f, " ({ip})"))
            }
            Self::AwaitWithdrawn { .. } => f.write_str("wait until every live host has acknowledged that"),
            Self::LetGo { service, ip } => {
                write!(f, "remove annotation and finalizer from {service}")?;
                ip.map_or(Ok(()), |ip| write!(f, ", free {ip}"))
            }
        }
    }
}

struct Number(Option<Generation>);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(generation) => write!(f, "generation {generation}"),
            None => f.write_str("the next document"),
        }
    }
}

fn count(listeners: &[Listener]) -> String {
    let lines: Vec<String> =
        listeners.iter().map(|l| format!("{} {} -> NodePort {}", l.protocol, l.port, l.node_port)).collect();
    match lines.len() {
        1 => format!("1 listener ({})", lines[0]),
        n => format!("{n} listeners ({})", lines.join(", ")),
    }
}

fn ports(ingress: &Ingress) -> String {
    ingress.ports.iter().map(|p| format!("{} {}", p.protocol, p.port)).collect::<Vec<_>>().join(", ")
}
