//! The names and shapes of what we keep in the kernel: one table per family, sets and maps that
//! all Services share, and the size classes by which Services are dispatched.
//!
//! ```text
//! a VIP        10.96.0.10 . tcp . 80                              is in service-vips (comment: ns/name:port)
//!              … and, having 2 endpoints,                         in n-2
//! cluster-endpoints   10.96.0.10 . tcp . 80 . 0 : 10.244.1.5 . 8080
//!                     10.96.0.10 . tcp . 80 . 1 : 10.244.2.7 . 8080
//! ```
//!
//! Verdicts live in rules only; an element is a key, or a key and an address. So every change of
//! a Service or an endpoint is a few plain set elements, whatever the number of Services.

use std::fmt;
use std::net::IpAddr;

use service_model::{IpFamily, Protocol};

use super::source_ranges::PrefixLength;

/// The table that is ours, in the families `ip` and `ip6`. Nothing outside it is ever touched.
pub const TABLE: &str = "fairlead";

/// The bit of the packet mark that asks for masquerading after NAT (`masqueradeBit`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MasqueradeMark(u32);

impl MasqueradeMark {
    /// `None` for a bit above 31.
    pub fn of_bit(bit: u32) -> Option<Self> {
        1_u32.checked_shl(bit).map(Self)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (0..u32::BITS).filter_map(Self::of_bit)
    }

    /// The mark with this bit alone.
    pub fn value(self) -> u32 {
        self.0
    }
}

/// kube-proxy's: bit 14.
impl Default for MasqueradeMark {
    fn default() -> Self {
        Self(0x4000)
    }
}

pub const FAMILIES: [IpFamily; 2] = [IpFamily::V4, IpFamily::V6];

/// What a client connects to: an address and port, or a port of the node's own addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Frontend {
    Vip { ip: IpAddr, protocol: Protocol, port: u16 },
    NodePort { family: IpFamily, protocol: Protocol, port: u16 },
}

/// The two shapes of keys, hence of sets and maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shape {
    /// `address . protocol . port`
    Vip,
    /// `protocol . port`
    NodePort,
}

/// Which endpoints of a frontend: those for traffic from anywhere, or those on this node for
/// traffic that must stay on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pool {
    Cluster,
    Local,
}

/// Where a connection goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    pub ip: IpAddr,
    pub port: u16,
}

/// A set that frontends are members of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Every frontend that is served here; the element's comment names its Service port.
    Served,
    /// Reached from outside: masqueraded (externalTrafficPolicy Cluster). VIPs only: NodePorts
    /// that are not [`Group::ExternalLocal`] all are.
    External,
    /// Reached from outside with externalTrafficPolicy Local.
    ExternalLocal,
    /// No usable endpoint anywhere.
    Reject,
    /// Usable endpoints, but none that the traffic policy allows.
    Drop,
    /// Reached from some networks only (`loadBalancerSourceRanges`). VIPs only.
    Firewalled,
    /// Has as many endpoints as the class says in that pool.
    Count(Pool, SizeClass),
}

/// A size class of endpoint counts. Counts up to 16 have a class each; above, two classes a
/// doubling. A connection draws a random index below [`SizeClass::slots`]; an index that is not
/// taken is drawn again, so that the split stays even whatever the count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SizeClass(u8);

const SLOTS: [u32; 34] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768,
    1024, 1536, 2048, 3072, 4096, 6144, 8192,
];

/// The most endpoints that one frontend can have.
pub const MAX_TARGETS: usize = 8192;

/// A named set or map of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetName {
    Group(Shape, Group),
    /// `(frontend . index) : (address . port)`
    Endpoints(Shape, Pool),
    /// The node's own addresses that answer NodePorts.
    NodeAddresses,
    /// `frontend : jump` to the chain that keeps a client at its endpoint ([`super::affinity`]).
    Affinity(Shape, Pool),
    /// `(client . number)` of the endpoint that keeps it. Filled by packets.
    AffinityClients,
    /// Every ClusterIP, whatever its ports.
    ClusterIps,
    /// `(frontend . network)`, for the networks of that length from which a [`Group::Firewalled`] one is reached.
    SourceRanges(PrefixLength),
    /// `address . address . protocol . port` of the endpoints on this node: a connection that
    /// comes back to its own source is masqueraded.
    Hairpin,
}

impl SizeClass {
    /// How many classes there are.
    pub const NUMBER: usize = SLOTS.len();

    pub(super) fn number(self) -> usize {
        usize::from(self.0)
    }

    pub fn all() -> impl Iterator<Item = SizeClass> {
        (0..SLOTS.len() as u8).map(SizeClass)
    }

    /// The class for so many endpoints; `None` for none. Counts above [`MAX_TARGETS`] are in the
    /// last class.
    pub fn of(count: usize) -> Option<SizeClass> {
        let class = SLOTS.iter().position(|slots| *slots as usize >= count).unwrap_or(SLOTS.len() - 1);
        (count > 0).then_some(SizeClass(class as u8))
    }

    /// The largest count of the class.
    pub fn slots(self) -> u32 {
        SLOTS[usize::from(self.0)]
    }

    /// The smallest count of the class: indexes below it are always taken.
    pub fn least(self) -> u32 {
        match self.0 {
            0 => 1,
            class => SLOTS[usize::from(class) - 1] + 1,
        }
    }
}

impl Frontend {
    pub fn family(self) -> IpFamily {
        match self {
            Frontend::Vip { ip, .. } => IpFamily::of(ip),
            Frontend::NodePort { family, .. } => family,
        }
    }

    pub fn shape(self) -> Shape {
        match self {
            Frontend::Vip { .. } => Shape::Vip,
            Frontend::NodePort { .. } => Shape::NodePort,
        }
    }

    pub fn protocol(self) -> Protocol {
        match self {
            Frontend::Vip { protocol, .. } | Frontend::NodePort { protocol, .. } => protocol,
        }
    }
}

impl Group {
    /// All groups that frontends of the shape can be in.
    pub fn all(shape: Shape) -> impl Iterator<Item = Group> {
        let external = if shape == Shape::Vip { &[Group::External, Group::Firewalled][..] } else { &[] };
        [Group::Served, Group::ExternalLocal, Group::Reject, Group::Drop]
            .into_iter()
            .chain(external.iter().copied())
            .chain(SizeClass::all().map(|class| Group::Count(Pool::Cluster, class)))
            .chain(SizeClass::all().map(|class| Group::Count(Pool::Local, class)))
    }
}

impl SetName {
    /// Those of a family's table. The kernel looks a set up by going through them in this order.
    pub fn all(family: IpFamily) -> impl Iterator<Item = SetName> {
        let of_shape = |shape| {
            let pools = [Pool::Cluster, Pool::Local];
            let endpoints = pools.into_iter().map(move |pool| SetName::Endpoints(shape, pool));
            let affinities = pools.into_iter().map(move |pool| SetName::Affinity(shape, pool));
            endpoints
                .chain(affinities)
                .chain(Group::all(shape).map(move |group| SetName::Group(shape, group)))
        };
        let single =
            [SetName::AffinityClients, SetName::NodeAddresses, SetName::ClusterIps, SetName::Hairpin];
        let ranges = PrefixLength::all(family).map(SetName::SourceRanges);
        of_shape(Shape::Vip).chain(of_shape(Shape::NodePort)).chain(single).chain(ranges)
    }
}

/// The kernel's name of the set.
impl fmt::Display for SetName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = |shape| if shape == Shape::NodePort { "nodeport-" } else { "" };
        match *self {
            SetName::Endpoints(shape, Pool::Cluster) => write!(f, "{}cluster-endpoints", prefix(shape)),
            SetName::Endpoints(shape, Pool::Local) => write!(f, "{}local-endpoints", prefix(shape)),
            SetName::Affinity(shape, pool) => {
                let local = if pool == Pool::Local { "local-" } else { "" };
                write!(f, "{}{local}affinity", prefix(shape))
            }
            SetName::AffinityClients => f.write_str("affinity-clients"),
            SetName::NodeAddresses => f.write_str("nodeport-ips"),
            SetName::ClusterIps => f.write_str("cluster-ips"),
            SetName::SourceRanges(length) => write!(f, "source-ranges-{}", length.bits()),
            SetName::Hairpin => f.write_str("hairpin"),
            SetName::Group(shape, group) => {
                let many = if shape == Shape::NodePort { "nodeports" } else { "vips" };
                match group {
                    Group::Served => write!(f, "service-{many}"),
                    Group::External => write!(f, "external-{many}"),
                    Group::ExternalLocal => write!(f, "ext-local-{many}"),
                    Group::Reject => write!(f, "reject-{many}"),
                    Group::Drop => write!(f, "drop-{many}"),
                    Group::Firewalled => write!(f, "firewall-{many}"),
                    Group::Count(Pool::Cluster, class) => write!(f, "{}n-{}", prefix(shape), class.slots()),
                    Group::Count(Pool::Local, class) => {
                        write!(f, "{}local-n-{}", prefix(shape), class.slots())
                    }
                }
            }
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Frontend::Vip { ip: IpAddr::V4(ip), protocol, port } => write!(f, "{ip}:{port}/{protocol}"),
            Frontend::Vip { ip: IpAddr::V6(ip), protocol, port } => write!(f, "[{ip}]:{port}/{protocol}"),
            Frontend::NodePort { family, protocol, port } => {
                write!(f, "NodePort {port}/{protocol} ({family})")
            }
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}", self.port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}", self.port),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_count_is_in_the_class_whose_bounds_hold_it() {
        assert_eq!(SizeClass::of(0), None);
        for count in 1..=MAX_TARGETS {
            let class = SizeClass::of(count).unwrap();
            assert!((class.least()..=class.slots()).contains(&(count as u32)), "{count} in {class:?}");
            if count <= 16 {
                assert_eq!(class.least(), class.slots());
            }
        }
        assert_eq!(SizeClass::of(MAX_TARGETS + 1), SizeClass::of(MAX_TARGETS));
    }

    #[test]
    fn sets_have_different_names_that_the_kernel_takes() {
        for family in FAMILIES {
            let names: Vec<String> = SetName::all(family).map(|set| set.to_string()).collect();
            assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), names.len());
            assert!(names.iter().all(|name| name.len() < 32));
        }
    }
}
