//! Who is a pod of this node (kube-proxy's `--detect-local-mode`). Traffic to a ClusterIP that comes
//! from nobody such is masqueraded; for pods, externalTrafficPolicy Local does not hold.
//!
//! | mode | a pod's packet |
//! |---|---|
//! | ClusterCIDR | comes from the pods' network |
//! | NodeCIDR | comes from the network that the Node object gives to its pods |
//! | BridgeInterface | came in by that interface |
//! | InterfaceNamePrefix | came in by an interface whose name begins so |
//!
//! What this host sends itself came in by no interface, so it is never a pod's in the latter two.

use std::fmt;
use std::str::FromStr;

use ipnet::IpNet;
use service_model::IpFamily;

use crate::config::{ClusterCidrs, Config};

/// The modes by their names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LocalMode {
    #[default]
    ClusterCidr,
    NodeCidr,
    BridgeInterface,
    InterfaceNamePrefix,
}

/// A mode with what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DetectLocal {
    /// Nobody is known as a pod in a family without a network.
    ClusterCidr(ClusterCidrs),
    NodeCidr,
    BridgeInterface(InterfaceName),
    /// The beginning of a name.
    InterfaceNamePrefix(InterfaceName),
}

/// How the rules of one family know a pod's packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pods {
    Within(IpNet),
    Behind(Interfaces),
}

/// One interface, or all whose names begin so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interfaces {
    Named(InterfaceName),
    Beginning(InterfaceName),
}

/// A name, or its beginning, that the kernel can have: 1 to 15 bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct InterfaceName {
    /// Padded with NUL.
    bytes: [u8; InterfaceName::SIZE],
    length: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidLocal {
    #[error("{0:?} is no mode: write ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix")]
    Mode(String),
    #[error("--detect-local-mode={0} needs {1}: {2}")]
    Interface(&'static str, &'static str, InvalidInterface),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidInterface {
    #[error("the name is missing")]
    Empty,
    #[error("{0:?} is longer than the 15 bytes that an interface's name can have")]
    Long(String),
    #[error("{0:?} is no interface's name: leave out blanks, '/', ':' and '*' (a prefix needs no wildcard)")]
    Characters(String),
}

impl DetectLocal {
    /// Only what the mode needs is looked at, as kube-proxy does (`validateDetectLocalConfiguration`,
    /// pkg/proxy/apis/config/validation).
    ///
    /// # Errors
    /// When that is missing, or no name.
    pub fn new(
        mode: LocalMode,
        cluster_cidrs: ClusterCidrs,
        bridge: &str,
        prefix: &str,
    ) -> Result<Self, InvalidLocal> {
        let named = |flag, name: &str| {
            name.parse().map_err(|error| InvalidLocal::Interface(mode.name(), flag, error))
        };
        Ok(match mode {
            LocalMode::ClusterCidr => Self::ClusterCidr(cluster_cidrs),
            LocalMode::NodeCidr => Self::NodeCidr,
            LocalMode::BridgeInterface => Self::BridgeInterface(named("--pod-bridge-interface", bridge)?),
            LocalMode::InterfaceNamePrefix => {
                Self::InterfaceNamePrefix(named("--pod-interface-name-prefix", prefix)?)
            }
        })
    }
}

impl Config {
    /// `None` where nobody is known as a pod.
    pub fn pods(&self, family: IpFamily) -> Option<Pods> {
        match self.detect_local {
            DetectLocal::ClusterCidr(cidrs) => cidrs.of(family).map(Pods::Within),
            DetectLocal::NodeCidr => self.node.pod_cidrs.of(family).map(Pods::Within),
            DetectLocal::BridgeInterface(name) => Some(Pods::Behind(Interfaces::Named(name))),
            DetectLocal::InterfaceNamePrefix(prefix) => Some(Pods::Behind(Interfaces::Beginning(prefix))),
        }
    }
}

impl Interfaces {
    /// `None` is what this host sends itself: for the kernel, it came in by an interface without name.
    pub fn contain(self, came_in_by: Option<InterfaceName>) -> bool {
        came_in_by.is_some_and(|other| match self {
            Interfaces::Named(name) => name == other,
            Interfaces::Beginning(prefix) => other.as_bytes().starts_with(prefix.as_bytes()),
        })
    }
}

impl InterfaceName {
    /// `IFNAMSIZ` (linux/if.h): the name's bytes and at least one NUL.
    pub const SIZE: usize = 16;

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("it was made of a str")
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }

    /// As the kernel compares it.
    pub fn padded(&self) -> &[u8; Self::SIZE] {
        &self.bytes
    }
}

impl LocalMode {
    const ALL: [Self; 4] =
        [Self::ClusterCidr, Self::NodeCidr, Self::BridgeInterface, Self::InterfaceNamePrefix];

    fn name(self) -> &'static str {
        match self {
            Self::ClusterCidr => "ClusterCIDR",
            Self::NodeCidr => "NodeCIDR",
            Self::BridgeInterface => "BridgeInterface",
            Self::InterfaceNamePrefix => "InterfaceNamePrefix",
        }
    }
}

impl FromStr for LocalMode {
    type Err = InvalidLocal;

    /// Empty is the default, as for kube-proxy.
    fn from_str(text: &str) -> Result<Self, InvalidLocal> {
        let named = Self::ALL.into_iter().find(|mode| mode.name() == text);
        let default = text.is_empty().then(Self::default);
        named.or(default).ok_or_else(|| InvalidLocal::Mode(text.to_owned()))
    }
}

impl FromStr for InterfaceName {
    type Err = InvalidInterface;

    /// What the kernel refuses (`dev_valid_name`, net/core/dev.c) is refused, and `*`, which `nft`
    /// would take for a wildcard.
    fn from_str(text: &str) -> Result<Self, InvalidInterface> {
        let length = text.len();
        if length == 0 {
            return Err(InvalidInterface::Empty);
        }
        if length >= Self::SIZE {
            return Err(InvalidInterface::Long(text.to_owned()));
        }
        let wrong = |c: char| c.is_whitespace() || matches!(c, '/' | ':' | '*' | '\0');
        if text.contains(wrong) || [".", ".."].contains(&text) {
            return Err(InvalidInterface::Characters(text.to_owned()));
        }
        let mut bytes = [0; Self::SIZE];
        bytes[..length].copy_from_slice(text.as_bytes());
        Ok(Self { bytes, length: length as u8 })
    }
}

impl fmt::Display for LocalMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for Interfaces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interfaces::Named(name) => write!(f, "{name}"),
            Interfaces::Beginning(prefix) => write!(f, "{prefix}*"),
        }
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> InterfaceName {
        text.parse().unwrap()
    }

    #[test]
    fn a_mode_needs_what_it_looks_at_and_nothing_else() {
        let cidrs: ClusterCidrs = "10.244.0.0/16".parse().unwrap();
        let of = |mode: &str, bridge, prefix| {
            let mode = mode.parse::<LocalMode>().map_err(|error| error.to_string())?;
            DetectLocal::new(mode, cidrs, bridge, prefix).map_err(|error| error.to_string())
        };
        assert_eq!(of("", "a b", ""), Ok(DetectLocal::ClusterCidr(cidrs)));
        assert_eq!(of("NodeCIDR", "", ""), Ok(DetectLocal::NodeCidr));
        assert_eq!(of("BridgeInterface", "cni0", "a b"), Ok(DetectLocal::BridgeInterface(name("cni0"))));
        assert_eq!(of("InterfaceNamePrefix", "", "veth"), Ok(DetectLocal::InterfaceNamePrefix(name("veth"))));
        for (mode, bridge, prefix, hint) in [
            ("clustercidr", "", "", "write ClusterCIDR, NodeCIDR"),
            ("BridgeInterface", "", "veth", "needs --pod-bridge-interface: the name is missing"),
            ("BridgeInterface", "cni 0", "", "is no interface's name"),
            ("InterfaceNamePrefix", "cni0", "", "needs --pod-interface-name-prefix"),
            ("InterfaceNamePrefix", "", "veth*", "a prefix needs no wildcard"),
            ("InterfaceNamePrefix", "", "sixteen-bytes-16", "longer than the 15 bytes"),
        ] {
            let error = of(mode, bridge, prefix).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
    }

    #[test]
    fn interfaces_are_known_by_their_name_or_its_beginning() {
        let named = |pattern: Interfaces, other: &str| pattern.contain(Some(name(other)));
        let (bridge, prefix) = (Interfaces::Named(name("cni0")), Interfaces::Beginning(name("veth")));
        assert!(named(bridge, "cni0") && !named(bridge, "cni01") && !named(bridge, "cni"));
        assert!(named(prefix, "veth") && named(prefix, "veth12ab") && !named(prefix, "vet"));
        assert!(!bridge.contain(None) && !prefix.contain(None), "what the host sends itself");
    }
}
