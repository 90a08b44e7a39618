//! What this host should do with packets: the input of [`plan`](crate::plan).
//!
//! Health, drain, ownership and neighbours are decided by the caller; here stands only the
//! outcome. IPv4 for now: an IPv6 listener will have its own key and its own maps.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb_api::NatProtocol;

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Hash)]
pub struct Mac(pub [u8; 6]);

/// The name of a node: what a target's share of the table depends on.
pub type TargetIdentity = String;

/// The whole wish. A listener counts only while `vips` holds its address.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Desired {
    /// Which slice of the source ports new connections take; below [`metal_lb_api::Host::SLOTS`].
    pub host_slot: u8,
    /// Makes tables and flow hashes unpredictable to outsiders. Every host of the tier derives the
    /// same one from the document (for instance from its member key).
    pub seed: u64,
    /// Where liveness probes are answered; none are without it.
    pub probe_address: Option<SocketAddrV4>,
    /// Whether this host owns it: answers ARP and echo requests for it and takes new connections.
    /// Without it only those that exist go on, because a client's neighbour table may name this
    /// host longer than the tier does.
    pub vips: BTreeMap<Ipv4Addr, bool>,
    pub listeners: BTreeMap<ListenerId, DesiredListener>,
}

/// What makes a listener unique on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId {
    pub vip: Ipv4Addr,
    pub protocol: NatProtocol,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DesiredListener {
    /// `namespace/name`, for people.
    pub service: String,
    /// Those that get new connections now. None: what arrives is dropped and counted.
    pub targets: BTreeMap<TargetIdentity, DesiredTarget>,
    pub timeouts: Timeouts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DesiredTarget {
    pub address: SocketAddrV4,
    /// The next hop's; `None` while it does not resolve: what goes there is dropped and counted.
    pub mac: Option<Mac>,
    /// Share of the new connections relative to the listener's other targets. 0 gets none.
    pub weight: u32,
}

/// After how many idle seconds a connection is forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    pub tcp_idle: u16,
    pub udp_idle: u16,
}

impl Desired {
    /// The listeners of one VIP; none unless the VIP itself is wanted.
    pub fn listeners_of(&self, vip: Ipv4Addr) -> impl Iterator<Item = (&ListenerId, &DesiredListener)> {
        let wanted = self.vips.contains_key(&vip);
        self.listeners.range(ListenerId::all_of(vip)).filter(move |_| wanted)
    }
}

impl ListenerId {
    /// The range of a VIP's keys.
    pub fn all_of(vip: Ipv4Addr) -> std::ops::RangeInclusive<Self> {
        let first = Self { vip, protocol: NatProtocol::Tcp, port: 0 };
        let last = Self { vip, protocol: NatProtocol::Udp, port: u16::MAX };
        first..=last
    }
}

impl Timeouts {
    pub fn idle(self, protocol: NatProtocol) -> u16 {
        match protocol {
            NatProtocol::Tcp => self.tcp_idle,
            NatProtocol::Udp => self.udp_idle,
        }
    }
}

impl Default for Timeouts {
    /// NLB's: 350 s for TCP, 120 s for UDP.
    fn default() -> Self {
        Self { tcp_idle: 350, udp_idle: 120 }
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
