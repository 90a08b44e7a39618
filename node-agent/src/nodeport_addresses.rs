//! Which of the host's addresses answer NodePorts (kube-proxy's `--nodeport-addresses`, KEP-6032).
//!
//! Keywords stand for ranges: `primary` for the Node's own addresses, `localhost` for loopback,
//! `all` for everything. A family without a range answers on all of its addresses, as for kube-proxy
//! (`NewNodePortAddresses`, pkg/proxy/util/nodeport_addresses.go). Rules never answer on loopback,
//! which would need `route_localnet` (CVE-2020-8558); a list that names it gets a proxy there.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use service_model::IpFamily;

use crate::config::{Config, InvalidFlag, parse_cidr};
use crate::nft::layout::FAMILIES;

/// Not empty; each keyword at most once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePortAddresses(Vec<NodePortAddress>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodePortAddress {
    Primary,
    Localhost,
    All,
    Within(IpNet),
}

/// The Node's own addresses, at most one a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PrimaryIps {
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
}

impl NodePortAddresses {
    /// # Errors
    /// A keyword that comes twice.
    pub fn new(addresses: impl IntoIterator<Item = NodePortAddress>) -> Result<Self, InvalidFlag> {
        let mut known = Vec::new();
        for address in addresses {
            if !matches!(address, NodePortAddress::Within(_)) && known.contains(&address) {
                return Err(InvalidFlag::Twice(address.to_string()));
            }
            known.push(address);
        }
        match known.is_empty() {
            true => Ok(Self::default()),
            false => Ok(Self(known)),
        }
    }

    fn ranges(&self, family: IpFamily, primary: PrimaryIps) -> Vec<IpNet> {
        let ranges = self.0.iter().filter_map(|address| match address {
            NodePortAddress::Primary => primary.of(family).filter(|ip| !ip.is_loopback()).map(IpNet::from),
            NodePortAddress::Localhost => Some(loopback(family)),
            NodePortAddress::All => Some(everything(family)),
            NodePortAddress::Within(range) => (IpFamily::of(range.addr()) == family).then_some(*range),
        });
        ranges.collect()
    }
}

impl Config {
    /// Whether the answer waits for the Node object.
    pub fn awaits_addresses(&self) -> bool {
        let asks = self.nodeport_addresses.0.contains(&NodePortAddress::Primary);
        asks && self.node.primary_ips == PrimaryIps::default() && !self.node.unaddressed
    }

    /// Whether every address of the host but loopback answers, so that no list of them is needed.
    pub fn answers_everywhere(&self, family: IpFamily) -> bool {
        let ranges = self.nodeport_addresses.ranges(family, self.node.primary_ips);
        let none = ranges.is_empty() && !self.awaits_addresses();
        none || ranges.iter().any(|range| range.prefix_len() == 0)
    }

    /// Whether loopback is named, not just contained in a range, in a family that this kernel serves.
    pub fn answers_on_loopback(&self, family: IpFamily) -> bool {
        let ranges = self.nodeport_addresses.ranges(family, self.node.primary_ips);
        self.families.contains(family) && ranges.iter().any(|range| range.network().is_loopback())
    }

    /// Those of the host's addresses that answer, in families where not all do. `None` while the Node
    /// object has to be waited for.
    pub fn answering(&self, host: &BTreeSet<IpAddr>) -> Option<BTreeSet<IpAddr>> {
        if self.awaits_addresses() {
            return None;
        }
        let ranges: Vec<IpNet> = FAMILIES
            .into_iter()
            .filter(|family| !self.answers_everywhere(*family))
            .flat_map(|family| self.nodeport_addresses.ranges(family, self.node.primary_ips))
            .collect();
        let answers = |ip: &&IpAddr| !ip.is_loopback() && ranges.iter().any(|range| range.contains(*ip));
        Some(host.iter().filter(answers).copied().collect())
    }
}

impl PrimaryIps {
    pub fn of(self, family: IpFamily) -> Option<IpAddr> {
        match family {
            IpFamily::V4 => self.v4.map(Into::into),
            IpFamily::V6 => self.v6.map(Into::into),
        }
    }

    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        FAMILIES.into_iter().filter_map(move |family| self.of(family))
    }
}

/// The addresses that never leave a host.
pub fn loopback(family: IpFamily) -> IpNet {
    let (address, length) = match family {
        IpFamily::V4 => (IpAddr::from(Ipv4Addr::LOCALHOST), 8),
        IpFamily::V6 => (IpAddr::from(Ipv6Addr::LOCALHOST), 128),
    };
    IpNet::new(address, length).expect("a valid length").trunc()
}

fn everything(family: IpFamily) -> IpNet {
    let address: IpAddr = match family {
        IpFamily::V4 => Ipv4Addr::UNSPECIFIED.into(),
        IpFamily::V6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    IpNet::new(address, 0).expect("a valid length")
}

/// What the rules answer on where nothing else is said.
impl Default for NodePortAddresses {
    fn default() -> Self {
        Self(vec![NodePortAddress::Primary])
    }
}

impl FromIterator<IpAddr> for PrimaryIps {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(ips: I) -> Self {
        ips.into_iter().fold(Self::default(), |known, ip| match ip {
            IpAddr::V4(ip) => Self { v4: known.v4.or(Some(ip)), ..known },
            IpAddr::V6(ip) => Self { v6: known.v6.or(Some(ip)), ..known },
        })
    }
}

impl FromStr for NodePortAddresses {
    type Err = InvalidFlag;

    /// A comma-separated list; empty for the default.
    fn from_str(text: &str) -> Result<Self, InvalidFlag> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        Self::new(parts.map(str::parse).collect::<Result<Vec<_>, _>>()?)
    }
}

impl FromStr for NodePortAddress {
    type Err = InvalidFlag;

    fn from_str(text: &str) -> Result<Self, InvalidFlag> {
        match text {
            "primary" => Ok(Self::Primary),
            "localhost" => Ok(Self::Localhost),
            "all" => Ok(Self::All),
            cidr => parse_cidr(cidr).map(Self::Within).map_err(|_| InvalidFlag::NodePorts(text.to_owned())),
        }
    }
}

impl fmt::Display for NodePortAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Primary => f.write_str("primary"),
            Self::Localhost => f.write_str("localhost"),
            Self::All => f.write_str("all"),
            Self::Within(range) => write!(f, "{range}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::NodeFacts;
    use crate::local::DetectLocal;

    fn ips(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|ip| ip.parse().unwrap()).collect()
    }

    fn config(text: &str, primary: &[&str]) -> Config {
        let primary_ips = ips(primary).into_iter().collect();
        Config {
            nodeport_addresses: text.parse().unwrap(),
            node: NodeFacts { primary_ips, ..NodeFacts::default() },
            ..Config::new("here", DetectLocal::NodeCidr)
        }
    }

    #[test]
    fn addresses_are_chosen_by_keywords_and_ranges_in_any_combination() {
        let host = ips(&["127.0.0.1", "::1", "172.30.0.11", "10.0.0.1", "192.168.1.1", "fd00::1", "fe80::1"]);
        let both = ["172.30.0.11", "fd00::1"];
        for (text, primary, everywhere, loopback, chosen) in [
            ("", &both[..], [false, false], [false, false], &both[..]),
            ("primary", &both, [false, false], [false, false], &both),
            ("primary", &both[..1], [false, true], [false, false], &both[..1]),
            ("primary", &["203.0.113.9", "fd00::1"], [false, false], [false, false], &both[1..]),
            ("primary", &["127.0.0.1", "fd00::1"], [true, false], [false, false], &both[1..]),
            ("all", &both, [true, true], [false, false], &[]),
            ("localhost", &both, [false, false], [true, true], &[]),
            ("all,localhost", &both, [true, true], [true, true], &[]),
            ("primary,localhost", &both, [false, false], [true, true], &both),
            (
                "primary, 10.0.0.0/8",
                &both,
                [false, false],
                [false, false],
                &["172.30.0.11", "10.0.0.1", "fd00::1"],
            ),
            ("10.0.0.0/8", &both, [false, true], [false, false], &["10.0.0.1"]),
            ("0.0.0.0/0,fd00::/64", &both, [true, false], [false, false], &["fd00::1"]),
            ("127.0.0.1/32,10.0.0.1/8", &both, [false, true], [true, false], &["10.0.0.1"]),
            ("126.0.0.0/7,::1/128", &both, [false, false], [false, true], &[]),
        ] {
            let config = config(text, primary);
            let of = |asked: fn(&Config, IpFamily) -> bool| FAMILIES.map(|family| asked(&config, family));
            assert_eq!(of(Config::answers_everywhere), everywhere, "{text:?} {primary:?}");
            assert_eq!(of(Config::answers_on_loopback), loopback, "{text:?}");
            assert_eq!(config.answering(&host), Some(ips(chosen)), "{text:?} {primary:?}");
        }
    }

    #[test]
    fn the_nodes_own_addresses_are_waited_for() {
        let unknown = config("primary", &[]);
        assert_eq!(unknown.answering(&ips(&["10.0.0.1"])), None);
        assert_eq!(FAMILIES.map(|family| unknown.answers_everywhere(family)), [false, false]);
        assert_eq!(config("10.0.0.0/8", &[]).answering(&ips(&["10.0.0.1"])), Some(ips(&["10.0.0.1"])));
    }

    #[test]
    fn what_is_no_range_and_no_keyword_is_refused() {
        for (text, hint) in [
            ("primary,primary", "\"primary\" comes twice"),
            ("loopback", "\"loopback\" is neither a CIDR such as 10.0.0.0/8 nor primary, localhost or all"),
            ("10.0.0.1", "\"10.0.0.1\" is neither"),
        ] {
            let error = text.parse::<NodePortAddresses>().unwrap_err().to_string();
            assert!(error.contains(hint), "{error}");
        }
    }
}
