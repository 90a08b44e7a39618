//! A Service, as far as Fairlead's programs decide from it.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;

use crate::ServiceName;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol {0:?}: expected TCP, UDP or SCTP")]
pub struct ParseProtocolError(pub String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum IpFamily {
    V4,
    V6,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpFamilyPolicy {
    #[default]
    SingleStack,
    PreferDualStack,
    RequireDualStack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ServiceType {
    #[default]
    ClusterIp,
    NodePort,
    LoadBalancer,
    ExternalName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TrafficPolicy {
    #[default]
    Cluster,
    Local,
}

/// Whether a node short-circuits traffic to a load balancer's IP (KEP-1860).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum IpMode {
    /// Nodes deliver traffic for the address themselves.
    #[default]
    Vip,
    /// The load balancer must see the traffic: nodes install no rule for the address.
    Proxy,
}

/// ClientIP affinity. Compact: a Service without it has no more bytes for it than one with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionAffinity {
    /// After its last connection a client is remembered for so many seconds.
    pub timeout: u32,
    pub scope: AffinityScope,
}

const _: () = assert!(size_of::<Option<SessionAffinity>>() == 8);

/// What a client stays with its endpoint for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AffinityScope {
    /// Each port of a Service by itself, as for kube-proxy.
    #[default]
    Port,
    /// All ports of a Service: who has reached a pod through one reaches it through the others.
    Service,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown scope {0:?}: expected port or service")]
pub struct ParseAffinityScopeError(pub String);

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServicePort {
    /// Empty for the one unnamed port that a Service may have.
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
    /// `None` where none is allocated (yet, or by `allocateLoadBalancerNodePorts: false`).
    pub node_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IngressPort {
    pub port: u16,
    pub protocol: Protocol,
}

/// One entry of `status.loadBalancer.ingress`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ingress {
    pub ip: Option<IpAddr>,
    pub hostname: Option<Box<str>>,
    /// As written; `None` where the field is absent, which means [`IpMode::Vip`] for an IP.
    pub ip_mode: Option<IpMode>,
    pub ports: Vec<IngressPort>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: ServiceName,
    pub uid: Box<str>,
    pub labels: BTreeMap<Box<str>, Box<str>>,
    pub annotations: BTreeMap<Box<str>, Box<str>>,
    pub finalizers: Vec<Box<str>>,
    /// `metadata.deletionTimestamp` is set.
    pub deleting: bool,
    pub service_type: ServiceType,
    pub load_balancer_class: Option<Box<str>>,
    /// Empty for headless Services and for those that have none yet.
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub ip_families: Vec<IpFamily>,
    pub ip_family_policy: IpFamilyPolicy,
    pub ports: Vec<ServicePort>,
    pub internal_traffic_policy: TrafficPolicy,
    pub external_traffic_policy: TrafficPolicy,
    pub session_affinity: Option<SessionAffinity>,
    pub health_check_node_port: Option<u16>,
    pub source_ranges: Vec<IpNet>,
    /// `spec.loadBalancerIP`, verbatim: it is a user's text until a program has parsed it.
    pub load_balancer_ip: Option<Box<str>>,
    pub allocate_node_ports: bool,
    /// `status.loadBalancer.ingress`
    pub ingress: Vec<Ingress>,
}

impl Service {
    /// An empty ClusterIP Service; the fields that matter are set by the caller.
    pub fn new(name: ServiceName) -> Self {
        Self {
            name,
            uid: "".into(),
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            finalizers: Vec::new(),
            deleting: false,
            service_type: ServiceType::default(),
            load_balancer_class: None,
            cluster_ips: Vec::new(),
            external_ips: Vec::new(),
            ip_families: Vec::new(),
            ip_family_policy: IpFamilyPolicy::default(),
            ports: Vec::new(),
            internal_traffic_policy: TrafficPolicy::default(),
            external_traffic_policy: TrafficPolicy::default(),
            session_affinity: None,
            health_check_node_port: None,
            source_ranges: Vec::new(),
            load_balancer_ip: None,
            allocate_node_ports: true,
            ingress: Vec::new(),
        }
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(|v| &**v)
    }

    pub fn has_finalizer(&self, finalizer: &str) -> bool {
        self.finalizers.iter().any(|f| &**f == finalizer)
    }

    /// Load balancer addresses that nodes serve themselves (KEP-1860: not those in Proxy mode).
    pub fn vip_mode_ips(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.ingress.iter().filter(|i| i.ip_mode.unwrap_or_default() == IpMode::Vip).filter_map(|i| i.ip)
    }
}

impl SessionAffinity {
    /// By port.
    pub fn of_seconds(timeout: u32) -> Self {
        Self { timeout, scope: AffinityScope::Port }
    }

    pub fn timeout(self) -> Duration {
        Duration::from_secs(self.timeout.into())
    }
}

impl FromStr for AffinityScope {
    type Err = ParseAffinityScopeError;

    fn from_str(text: &str) -> Result<Self, ParseAffinityScopeError> {
        match text {
            "port" => Ok(AffinityScope::Port),
            "service" => Ok(AffinityScope::Service),
            other => Err(ParseAffinityScopeError(other.to_owned())),
        }
    }
}

impl Protocol {
    /// The IP protocol number (IANA).
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
            Protocol::Sctp => "SCTP",
        })
    }
}

impl FromStr for Protocol {
    type Err = ParseProtocolError;

    fn from_str(text: &str) -> Result<Self, ParseProtocolError> {
        match text {
            "TCP" => Ok(Protocol::Tcp),
            "UDP" => Ok(Protocol::Udp),
            "SCTP" => Ok(Protocol::Sctp),
            other => Err(ParseProtocolError(other.to_owned())),
        }
    }
}

impl IpFamily {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { IpFamily::V4 } else { IpFamily::V6 }
    }
}

impl fmt::Display for IpFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            IpFamily::V4 => "IPv4",
            IpFamily::V6 => "IPv6",
        })
    }
}
