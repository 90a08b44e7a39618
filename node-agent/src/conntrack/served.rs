//! Which UDP entries of the connection table are stale. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use nfnetlink::conntrack::{Flow, Zone};
use service_model::{IpFamily, Protocol, ServiceName, World};

use crate::nft::desired::frontends_of;
use crate::nft::layout::{FAMILIES, Frontend, Target};
use crate::select::serving;

/// The UDP ports of one Service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UdpService(pub Vec<UdpPort>);

/// One port, in one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UdpPort {
    pub frontends: Vec<Frontend>,
    /// Every endpoint that serves, sorted, whatever traffic policies and topology say, and whether it
    /// terminates: a change of those leaves flows where they are, as it does for TCP.
    pub serving: Vec<Target>,
}

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Served {
    services: BTreeMap<ServiceName, UdpService>,
    node_addresses: BTreeSet<IpAddr>,
}

/// The same, to look entries up in. Two Services may claim one address: the endpoints of both count.
#[derive(Debug)]
pub struct Index<'a> {
    vips: BTreeMap<(IpAddr, u16), Vec<&'a [Target]>>,
    node_ports: BTreeMap<(IpFamily, u16), Vec<&'a [Target]>>,
    node_addresses: &'a BTreeSet<IpAddr>,
}

impl UdpService {
    /// Nothing for a Service that has none or does not exist.
    pub fn of(name: &ServiceName, world: &World) -> Self {
        let Some(service) = world.service(name) else { return Self::default() };
        let mut ports = Vec::new();
        for port in service.ports.iter().filter(|port| port.protocol == Protocol::Udp) {
            for family in FAMILIES {
                let frontends: Vec<Frontend> = frontends_of(service, port, family).collect();
                if !frontends.is_empty() {
                    let serving = serving(world.slices_of(name), port, family);
                    ports.push(UdpPort { frontends, serving });
                }
            }
        }
        Self(ports)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether what was served `before` may have left entries that are stale now: an endpoint stopped
    /// serving, a frontend is new, to which datagrams may have been sent in vain, or one is gone, which
    /// another Service may have claimed too. More endpoints leave none.
    fn leaves_stale(&self, before: &Self) -> bool {
        let goes_on = |frontend: &Frontend, before: &UdpPort| {
            let now = self.port_at(frontend);
            now.is_some_and(|now| before.serving.iter().all(|target| now.serves(*target)))
        };
        let mut gone = before.0.iter().flat_map(|b| b.frontends.iter().map(move |f| (f, b)));
        let mut new = self.0.iter().flat_map(|port| &port.frontends);
        gone.any(|(frontend, port)| !goes_on(frontend, port)) || new.any(|f| before.port_at(f).is_none())
    }

    fn port_at(&self, frontend: &Frontend) -> Option<&UdpPort> {
        self.0.iter().find(|port| port.frontends.contains(frontend))
    }
}

impl UdpPort {
    fn serves(&self, target: Target) -> bool {
        self.serving.binary_search(&target).is_ok()
    }
}

impl Served {
    /// What a Service serves from now on; whether entries may have become stale by that.
    pub fn learn(&mut self, name: ServiceName, service: UdpService) -> bool {
        let before = self.services.remove(&name).unwrap_or_default();
        let stale = service.leaves_stale(&before);
        if !service.is_empty() {
            self.services.insert(name, service);
        }
        stale
    }

    /// The addresses on which NodePorts answer from now on; whether entries may have been made for one of
    /// them before it was ours. For a link-local address there are none, since nothing to it is ever
    /// forwarded: each new interface (a pod's) brings one.
    pub fn learn_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> bool {
        let forwarded = |ip: &IpAddr| match ip {
            IpAddr::V4(ip) => !ip.is_link_local(),
            IpAddr::V6(ip) => !ip.is_unicast_link_local(),
        };
        let served = |ip: &IpAddr| self.has_node_port(IpFamily::of(*ip));
        let fresh = addresses.difference(&self.node_addresses).any(|ip| forwarded(ip) && served(ip));
        self.node_addresses = addresses;
        fresh
    }

    fn has_node_port(&self, of: IpFamily) -> bool {
        let frontends = self.services.values().flat_map(|s| &s.0).flat_map(|port| &port.frontends);
        frontends.into_iter().any(|f| matches!(f, Frontend::NodePort { family, .. } if *family == of))
    }

    pub fn index(&self) -> Index<'_> {
        let mut index = Index {
            vips: BTreeMap::new(),
            node_ports: BTreeMap::new(),
            node_addresses: &self.node_addresses,
        };
        for port in self.services.values().flat_map(|service| &service.0) {
            for frontend in &port.frontends {
                let holders = match *frontend {
                    Frontend::Vip { ip, port, .. } => index.vips.entry((ip, port)).or_default(),
                    Frontend::NodePort { family, port, .. } => {
                        index.node_ports.entry((family, port)).or_default()
                    }
                };
                holders.push(&port.serving);
            }
        }
        index
    }
}

impl Index<'_> {
    /// Whether there is anything in that family to look for.
    pub fn has(&self, family: IpFamily) -> bool {
        self.vips.keys().any(|(ip, _)| IpFamily::of(*ip) == family)
            || self.node_ports.keys().any(|(of, _)| *of == family)
    }

    /// Whether a UDP entry was made for a frontend of ours, and does not lead to one of its endpoints
    /// that serve; so too if it leads nowhere else than to the frontend's address, because it was made
    /// before that was served. kube-proxy's rule (pkg/proxy/conntrack/cleanup.go), but that
    ///
    /// * NodePorts count on the node's own addresses alone. kube-proxy ends whoever's flow to such a
    ///   port of any host, and therefore leaves NodePorts without endpoints as they are;
    /// * in a zone that is not the usual one, only translated entries are ours: a CNI's switch may see
    ///   the same packet in its own zone before us.
    pub fn is_stale(&self, flow: &Flow) -> bool {
        let (to, leads_to) = (flow.original.destination, flow.reply.source);
        let vip = self.vips.get(&(to.ip(), to.port()));
        let holders = vip.or_else(|| {
            let ours = self.node_addresses.contains(&to.ip());
            ours.then(|| self.node_ports.get(&(IpFamily::of(to.ip()), to.port())))?
        });
        let target = Target { ip: leads_to.ip(), port: leads_to.port() };
        let ours = flow.zone == Zone::Usual || flow.has_dnat();
        ours && holders.is_some_and(|holders| holders.iter().all(|t| t.binary_search(&target).is_err()))
    }
}

#[cfg(test)]
mod tests;
