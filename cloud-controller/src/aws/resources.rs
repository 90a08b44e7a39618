//! The AWS resources that plans are made of, as far as they matter here: values without behaviour.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnet::IpNet;
use service_model::Protocol as ServiceProtocol;

pub type Tags = BTreeMap<String, String>;
/// Attributes of a load balancer or target group, by AWS's keys.
pub type Attributes = BTreeMap<String, String>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    Internal,
    InternetFacing,
}

/// Of a listener and of its target group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    TcpUdp,
    /// What only other people's load balancers have.
    Other,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthProtocol {
    Tcp,
    Http,
    Https,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HealthPort {
    /// The port of the target.
    Traffic,
    Number(u16),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub protocol: HealthProtocol,
    pub port: HealthPort,
    /// HTTP and HTTPS only.
    pub path: Option<String>,
    /// HTTP and HTTPS only, such as `200-399`.
    pub success_codes: Option<String>,
    /// Seconds.
    pub interval: u16,
    /// Seconds.
    pub timeout: u16,
    /// Successes in a row.
    pub healthy: u16,
    /// Failures in a row.
    pub unhealthy: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// `i-…`
    pub instance: String,
    pub port: u16,
}

/// One ingress rule of a security group.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rule {
    /// `tcp`, `udp`, …, or `-1` for all.
    pub protocol: String,
    pub from: i32,
    pub to: i32,
    pub source: Source,
    pub description: String,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    Cidr(IpNet),
    /// Members of another security group, by its id.
    Group(String),
    PrefixList(String),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subnet {
    pub id: String,
    pub zone: String,
    pub free_addresses: u32,
    /// Its route table has a route to an internet gateway.
    pub public: bool,
    pub tags: Tags,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SecurityGroup {
    pub id: String,
    pub name: String,
    pub tags: Tags,
    pub rules: BTreeSet<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadBalancer {
    pub arn: String,
    pub name: String,
    /// As AWS writes it, which can hold capitals.
    pub dns_name: String,
    pub scheme: Scheme,
    pub subnets: BTreeSet<String>,
    /// Ids.
    pub security_groups: BTreeSet<String>,
    pub tags: Tags,
    /// `None` until it was read: AWS has no bulk call for it.
    pub detail: Option<LoadBalancerDetail>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadBalancerDetail {
    /// Those that are known; of a load balancer just made, those that were set.
    pub attributes: Attributes,
    pub listeners: BTreeMap<u16, Listener>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listener {
    pub arn: String,
    pub port: u16,
    pub protocol: Protocol,
    /// ARNs that it forwards to.
    pub target_groups: Vec<String>,
    pub tags: Tags,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetGroup {
    pub arn: String,
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    /// Targets are instances, not addresses.
    pub of_instances: bool,
    pub health_check: HealthCheck,
    pub tags: Tags,
    /// `None` until it was read.
    pub detail: Option<TargetGroupDetail>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TargetGroupDetail {
    pub attributes: Attributes,
    /// Those that are not being drained.
    pub targets: BTreeSet<Target>,
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Internal => "internal",
            Self::InternetFacing => "internet-facing",
        }
    }
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::TcpUdp => "TCP_UDP",
            Self::Other => "other",
        }
    }

    pub fn of_aws(text: &str) -> Self {
        match text {
            "TCP" => Self::Tcp,
            "UDP" => Self::Udp,
            "TCP_UDP" => Self::TcpUdp,
            _ => Self::Other,
        }
    }

    /// What the Service's ports behind it are.
    pub fn of_service(self) -> &'static [ServiceProtocol] {
        match self {
            Self::Tcp => &[ServiceProtocol::Tcp],
            Self::Udp => &[ServiceProtocol::Udp],
            Self::TcpUdp => &[ServiceProtocol::Tcp, ServiceProtocol::Udp],
            Self::Other => &[],
        }
    }
}

impl HealthProtocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Http => "HTTP",
            Self::Https => "HTTPS",
        }
    }

    pub fn of_aws(text: &str) -> Option<Self> {
        [Self::Tcp, Self::Http, Self::Https].into_iter().find(|p| p.as_str() == text)
    }
}

impl HealthPort {
    /// `traffic-port` or a number.
    pub fn of_aws(text: &str) -> Option<Self> {
        if text == "traffic-port" { Some(Self::Traffic) } else { text.parse().ok().map(Self::Number) }
    }
}

impl HealthCheck {
    /// Whether what is observed is what is wanted. Fields that the protocol does not use are not
    /// looked at: AWS fills in its own.
    pub fn is_met_by(&self, observed: &Self) -> bool {
        let http = self.protocol != HealthProtocol::Tcp;
        let same = (self.protocol, self.port, self.interval, self.timeout, self.healthy, self.unhealthy)
            == (
                observed.protocol,
                observed.port,
                observed.interval,
                observed.timeout,
                observed.healthy,
                observed.unhealthy,
            );
        same && (!http || (&self.path, &self.success_codes) == (&observed.path, &observed.success_codes))
    }
}

impl Rule {
    pub fn new(protocol: &str, ports: (u16, u16), source: Source) -> Self {
        Self {
            protocol: protocol.to_owned(),
            from: i32::from(ports.0),
            to: i32::from(ports.1),
            source,
            description: String::new(),
        }
    }

    /// AWS tells rules apart by everything but their description.
    pub fn allows_same(&self, other: &Self) -> bool {
        (&self.protocol, self.from, self.to, &self.source)
            == (&other.protocol, other.from, other.to, &other.source)
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Display for HealthPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Traffic => f.write_str("traffic-port"),
            Self::Number(port) => port.fmt(f),
        }
    }
}

impl fmt::Display for HealthCheck {
    /// `HTTP 32000 /healthz 200-399 every 10 s, timeout 6 s, 2 up, 2 down`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol.as_str(), self.port)?;
        for text in [&self.path, &self.success_codes].into_iter().flatten() {
            write!(f, " {text}")?;
        }
        let Self { interval, timeout, healthy, unhealthy, .. } = self;
        write!(f, " every {interval} s, timeout {timeout} s, {healthy} up, {unhealthy} down")
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.instance, self.port)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cidr(cidr) => cidr.fmt(f),
            Self::Group(text) | Self::PrefixList(text) => f.write_str(text),
        }
    }
}

impl fmt::Display for Rule {
    /// `tcp 80 from 0.0.0.0/0`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { protocol, from, to, source, .. } = self;
        if protocol == "-1" {
            write!(f, "everything from {source}")
        } else if from == to {
            write!(f, "{protocol} {from} from {source}")
        } else {
            write!(f, "{protocol} {from}-{to} from {source}")
        }
    }
}
