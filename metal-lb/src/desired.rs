//! What the packet path should do: the pure input of [`crate::plan`].

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb_api::NatProtocol;

/// A link-layer address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Mac(pub [u8; 6]);

/// A listener of the packet path: IPv4 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId {
    pub vip: Ipv4Addr,
    pub protocol: NatProtocol,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Every VIP of the document, and whether this host owns it now.
    pub vips: BTreeMap<Ipv4Addr, bool>,
    pub listeners: BTreeMap<ListenerId, DesiredListener>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredListener {
    /// `namespace/name`, for the plan's text.
    pub service: String,
    /// By node name, which is what the Maglev table hashes. Only targets that get new connections:
    /// health and draining are decided before. None at all drops what arrives, and counts it.
    pub targets: BTreeMap<String, DesiredTarget>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredTarget {
    pub address: SocketAddrV4,
    pub mac: Mac,
    pub weight: u32,
}

impl Desired {
    /// The VIP's listeners.
    pub fn listeners_of(&self, vip: Ipv4Addr) -> impl Iterator<Item = (&ListenerId, &DesiredListener)> {
        self.listeners.iter().filter(move |(id, _)| id.vip == vip)
    }
}

impl fmt::Display for ListenerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}:{}", self.protocol, self.vip, self.port)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
