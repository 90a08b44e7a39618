//! What the flags mean, parsed: nothing later validates again.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use ipnet::IpNet;
use kube_watch::{Detail, Nodes, WatchConfig};
use service_model::{IpFamily, Node, NodeName};

use crate::local::DetectLocal;
use crate::nft::layout::MasqueradeMark;
use crate::nodeport_addresses::{NodePortAddresses, PrimaryIps};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The Node object's name; endpoints on it are local.
    pub node_name: NodeName,
    /// Who is a pod of this node. Traffic from others to a ClusterIP is masqueraded.
    pub detect_local: DetectLocal,
    /// Masquerade all traffic to ClusterIPs.
    pub masquerade_all: bool,
    /// By which packets to be masqueraded are known on their way through the kernel.
    pub masquerade_mark: MasqueradeMark,
    pub nodeport_addresses: NodePortAddresses,
    pub families: Families,
    /// The networks from which ClusterIPs are given; nothing until they are known.
    pub service_networks: BTreeSet<IpNet>,
    /// What some of the above leave to the Node object; nothing until it is known.
    pub node: NodeFacts,
}

/// The families that are served: both, unless the kernel lacks what one needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    pub v4: bool,
    pub v6: bool,
}

/// What the rules take from the Node object, as it was last said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NodeFacts {
    /// The first a family, as for kube-proxy (`getLocalDetectors`, cmd/kube-proxy/app/server_linux.go).
    pub pod_cidrs: ClusterCidrs,
    pub primary_ips: PrimaryIps,
    /// Primary addresses are not waited for any more.
    pub unaddressed: bool,
}

/// At most one range a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ClusterCidrs {
    v4: Option<IpNet>,
    v6: Option<IpNet>,
}

/// Where a server listens, if at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidFlag {
    #[error("{0:?} is no address to listen on: write IP or IP:PORT, or nothing for no server")]
    Listen(String),
    #[error("{0:?} is not a CIDR such as 10.244.0.0/16")]
    Cidr(String),
    #[error("two {0} cluster CIDRs are given: give at most one a family")]
    SecondCidr(IpFamily),
    #[error("{0:?} is not a duration such as 10ms, 30s or 1m30s")]
    Duration(String),
    #[error("{0:?} is neither a CIDR such as 10.0.0.0/8 nor primary, localhost or all")]
    NodePorts(String),
    #[error("{0:?} comes twice")]
    Twice(String),
}

impl Families {
    pub fn contains(self, family: IpFamily) -> bool {
        match family {
            IpFamily::V4 => self.v4,
            IpFamily::V6 => self.v6,
        }
    }
}

impl Default for Families {
    fn default() -> Self {
        Self { v4: true, v6: true }
    }
}

impl Config {
    /// All else is as it is where nobody says otherwise.
    pub fn new(node_name: impl Into<NodeName>, detect_local: DetectLocal) -> Self {
        Self {
            node_name: node_name.into(),
            detect_local,
            masquerade_all: false,
            masquerade_mark: MasqueradeMark::default(),
            nodeport_addresses: NodePortAddresses::default(),
            families: Families::default(),
            service_networks: BTreeSet::new(),
            node: NodeFacts::default(),
        }
    }

    /// What the agent needs to know of the cluster.
    pub fn watches(&self) -> WatchConfig {
        let nodes = Nodes::One(self.node_name.clone());
        WatchConfig { services: true, slices: true, nodes, service_cidrs: true, detail: Detail::Dataplane }
    }
}

impl NodeFacts {
    /// What the Node does not say, or while there is none, stays as it was.
    #[must_use]
    pub fn after(self, node: Option<&Node>) -> Self {
        let Some(node) = node else { return self };
        let mut facts = self;
        if !node.pod_cidrs.is_empty() {
            facts.pod_cidrs = ClusterCidrs::first_of(&node.pod_cidrs);
        }
        let primary_ips: PrimaryIps = node.primary_ips().collect();
        if primary_ips != PrimaryIps::default() {
            facts.primary_ips = primary_ips;
            facts.unaddressed = false;
        }
        facts
    }
}

impl ClusterCidrs {
    pub fn of(&self, family: IpFamily) -> Option<IpNet> {
        match family {
            IpFamily::V4 => self.v4,
            IpFamily::V6 => self.v6,
        }
    }

    /// The first of each family.
    pub fn first_of(cidrs: &[IpNet]) -> Self {
        let first = |family| cidrs.iter().copied().find(|cidr| IpFamily::of(cidr.addr()) == family);
        Self { v4: first(IpFamily::V4), v6: first(IpFamily::V6) }
    }
}

impl FromStr for ClusterCidrs {
    type Err = InvalidFlag;

    /// A comma-separated list; empty for none.
    fn from_str(text: &str) -> Result<Self, InvalidFlag> {
        let mut cidrs = Self::default();
        for cidr in parse_cidrs(text)? {
            let family = IpFamily::of(cidr.addr());
            let place = match family {
                IpFamily::V4 => &mut cidrs.v4,
                IpFamily::V6 => &mut cidrs.v6,
            };
            if place.replace(cidr).is_some() {
                return Err(InvalidFlag::SecondCidr(family));
            }
        }
        Ok(cidrs)
    }
}

impl Listen {
    /// Reads what kube-proxy's flags take: `IP:PORT`, `IP` for the port that is usual, or nothing.
    pub fn parser(usual: u16) -> impl Fn(&str) -> Result<Self, InvalidFlag> + Clone {
        move |text| match (text.parse::<SocketAddr>(), text.parse::<IpAddr>()) {
            (Ok(address), _) => Ok(Self(Some(address))),
            (_, Ok(ip)) => Ok(Self(Some((ip, usual).into()))),
            _ if text.is_empty() => Ok(Self(None)),
            _ => Err(InvalidFlag::Listen(text.to_owned())),
        }
    }
}

/// A duration as Go writes it, which kube-proxy's flags take: `0`, `10ms`, `1m30s`, `1.5h`.
///
/// # Errors
/// When it is none, or negative.
pub fn parse_duration(text: &str) -> Result<Duration, InvalidFlag> {
    let invalid = || InvalidFlag::Duration(text.to_owned());
    let mut rest = text.trim();
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let number: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        let unit_end = rest[digits..].find(|c: char| c.is_ascii_digit()).map_or(rest.len(), |at| digits + at);
        seconds += number
            * match &rest[digits..unit_end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(invalid()),
            };
        rest = &rest[unit_end..];
    }
    if text.trim().is_empty() {
        return Err(invalid());
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| invalid())
}

fn parse_cidrs(text: &str) -> Result<Vec<IpNet>, InvalidFlag> {
    let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
    parts.map(parse_cidr).collect()
}

/// A network; bits behind its length are cleared.
///
/// # Errors
/// When it is none.
pub fn parse_cidr(text: &str) -> Result<IpNet, InvalidFlag> {
    text.parse::<IpNet>().map(|cidr| cidr.trunc()).map_err(|_| InvalidFlag::Cidr(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cluster_cidrs_are_at_most_one_a_family() {
        let cidrs: ClusterCidrs = "10.244.0.0/16, fd00:10:244::/56".parse().unwrap();
        assert_eq!(cidrs.of(IpFamily::V4), Some("10.244.0.0/16".parse().unwrap()));
        assert_eq!(cidrs.of(IpFamily::V6), Some("fd00:10:244::/56".parse().unwrap()));
        assert_eq!("".parse(), Ok(ClusterCidrs::default()));
        let two = "10.0.0.0/8,11.0.0.0/8".parse::<ClusterCidrs>();
        assert_eq!(two, Err(InvalidFlag::SecondCidr(IpFamily::V4)));
        assert_eq!("10.0.0.0".parse::<ClusterCidrs>(), Err(InvalidFlag::Cidr("10.0.0.0".to_owned())));
    }

    #[test]
    fn what_the_node_does_not_say_stays_as_it_was() {
        let mut node = Node::new("here".into());
        let unknown = NodeFacts::default().after(Some(&node));
        assert_eq!(unknown, NodeFacts::default());
        node.pod_cidrs =
            ["10.244.1.0/24", "10.244.7.0/24", "fd00:1::/64"].map(|c| c.parse().unwrap()).to_vec();
        let known = unknown.after(Some(&node));
        assert_eq!(known.pod_cidrs, "10.244.1.0/24,fd00:1::/64".parse().unwrap());
        node.pod_cidrs.clear();
        assert_eq!(known.after(Some(&node)), known);
        assert_eq!(known.after(None), known);
    }

    #[test]
    fn a_server_listens_on_an_address_and_port_or_the_usual_one_or_not_at_all() {
        let listen =
            |text: &str| Listen::parser(10256)(text).ok().map(|Listen(at)| at.map(|at| at.to_string()));
        let cases = [
            ("127.0.0.1:9", Some(Some("127.0.0.1:9"))),
            ("[::]:9", Some(Some("[::]:9"))),
            ("::", Some(Some("[::]:10256"))),
            ("0.0.0.0", Some(Some("0.0.0.0:10256"))),
            ("", Some(None)),
            (":10256", None),
            ("localhost:9", None),
        ];
        for (text, expected) in cases {
            assert_eq!(listen(text), expected.map(|at| at.map(str::to_owned)), "{text:?}");
        }
    }

    #[test]
    fn durations_are_gos() {
        let cases = [
            ("0", Some(0)),
            ("10ms", Some(10)),
            ("30s", Some(30_000)),
            ("1m30s", Some(90_000)),
            ("1.5h", Some(5_400_000)),
        ];
        for (text, millis) in
            cases.into_iter().chain(["", "5", "s", "-1s", "1x", "1s1"].map(|text| (text, None)))
        {
            assert_eq!(parse_duration(text).ok(), millis.map(Duration::from_millis), "{text:?}");
        }
    }
}
