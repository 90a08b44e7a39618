//! Document, health, neighbours and ownership in; what to program, and why, out. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use metal_lb_api::{
    CURRENT_SCHEMA, Config, HostState, Listener, ListenerState, Node, TargetHealth, TargetState, VipState,
};
use sha2::{Digest, Sha256};

use crate::desired::{Desired, DesiredListener, DesiredTarget, ListenerId};
use crate::health::{Check, Checks, Verdict};
use crate::members::Ownership;
use crate::neighbours::{Neighbours, NextHop};
use crate::observed::ObservedListener;

const NO_IPV6: &str =
    "IPv6 addresses are not served by this release's packet path: give the Service an IPv4 address";

/// Everything that decides, at one moment.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    pub host: &'a str,
    pub config: &'a Config,
    pub checks: &'a Checks,
    pub neighbours: &'a Neighbours,
    pub owners: &'a BTreeMap<Ipv4Addr, Ownership>,
}

/// What to program, and what to say about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolved {
    pub desired: Desired,
    pub state: HostState,
}

/// The health checks that a document asks for.
pub fn checks_of(config: &Config) -> BTreeSet<Check> {
    let nodes = nodes_by_name(config);
    let mut checks = BTreeSet::new();
    for listener in &config.listeners {
        for node in members(config, &nodes, listener) {
            checks.extend(ipv4_of(node).map(|ip| (IpAddr::V4(ip), listener.health.clone())));
        }
    }
    checks
}

/// The addresses whose link-layer address is needed.
pub fn node_addresses(config: &Config) -> BTreeSet<Ipv4Addr> {
    config.nodes.iter().filter_map(ipv4_of).collect()
}

/// The VIPs that the packet path can serve.
pub fn vips_of(config: &Config) -> BTreeSet<Ipv4Addr> {
    config.listeners.iter().filter_map(|l| as_ipv4(l.vip)).collect()
}

/// Decides everything anew. What the packet path then takes of it, [`Resolved::reflect`] says.
pub fn resolve(inputs: &Inputs<'_>) -> Resolved {
    let nodes = nodes_by_name(inputs.config);
    let (mut desired, mut listeners) = (host_part(inputs), Vec::new());
    for vip in vips_of(inputs.config) {
        let owner = inputs.owners.get(&vip).and_then(|o| o.owner.as_deref());
        desired.vips.insert(vip, owner == Some(inputs.host));
    }
    for listener in &inputs.config.listeners {
        let targets = targets_of(inputs, listener, &nodes);
        let mut why = NO_IPV6.to_owned();
        if let Some(id) = listener_id(listener) {
            let in_table: BTreeMap<String, DesiredTarget> =
                targets.iter().filter_map(|t| Some((t.state.node.clone(), t.desired?))).collect();
            why = match in_table.len() {
                0 => "no target can take connections: new ones are dropped".to_owned(),
                n => format!("{n} of {} targets take connections", targets.len()),
            };
            let service = listener.service.clone();
            desired
                .listeners
                .insert(id, DesiredListener { service, targets: in_table, ..Default::default() });
        }
        listeners.push(ListenerState {
            service: listener.service.clone(),
            vip: listener.vip,
            protocol: listener.protocol,
            port: listener.port,
            programmed: listener.vip.is_ipv4(),
            why,
            targets: targets.into_iter().map(|t| t.state).collect(),
        });
    }
    let state = HostState {
        host: inputs.host.to_owned(),
        schemas: vec![CURRENT_SCHEMA],
        generation: Some(inputs.config.generation),
        owner: Some(inputs.config.owner.clone()),
        vips: vip_states(inputs),
        listeners,
    };
    Resolved { desired, state }
}

impl Resolved {
    /// Corrects the state to what is programmed. `notes`: what plans left out, and why.
    pub fn reflect(&mut self, programmed: &BTreeMap<ListenerId, ObservedListener>, notes: &[String]) {
        for listener in self.state.listeners.iter_mut().filter(|l| l.programmed) {
            let Some(vip) = as_ipv4(listener.vip) else { continue };
            let id = ListenerId { vip, protocol: listener.protocol, port: listener.port };
            let name = id.to_string();
            let said =
                notes.iter().filter(|n| n.strip_prefix(&*name).is_some_and(|rest| rest.starts_with(' ')));
            let said: Vec<&str> = said.map(String::as_str).collect();
            listener.programmed = programmed.contains_key(&id);
            if !said.is_empty() {
                listener.why = said.join("; ");
            }
        }
    }
}

fn vip_states(inputs: &Inputs<'_>) -> Vec<VipState> {
    let addresses: BTreeSet<IpAddr> = inputs.config.listeners.iter().map(|l| l.vip).collect();
    let state = |vip: IpAddr| {
        let Some(address) = as_ipv4(vip) else {
            return VipState { vip, owner: None, why: NO_IPV6.to_owned() };
        };
        match inputs.owners.get(&address) {
            Some(Ownership { owner, why }) => VipState { vip, owner: owner.clone(), why: why.clone() },
            None => {
                let why = format!("{} is not among the document's hosts: check --name", inputs.host);
                VipState { vip, owner: None, why }
            }
        }
    };
    addresses.into_iter().map(state).collect()
}

/// What belongs to this host. The seed comes from the tier's secret: every host derives the same,
/// and nobody outside can foresee where a connection goes.
fn host_part(inputs: &Inputs<'_>) -> Desired {
    let own = inputs.config.hosts.iter().find(|h| h.name == inputs.host);
    let digest =
        Sha256::new().chain_update(b"tables").chain_update(inputs.config.member_key.as_bytes()).finalize();
    let seed = digest.iter().take(8).fold(0, |seed, byte| seed << 8 | u64::from(*byte));
    Desired {
        host_slot: own.map_or(0, |h| h.slot),
        seed,
        probe_address: own.and_then(|h| Some(SocketAddrV4::new(as_ipv4(h.address.ip())?, h.address.port()))),
        ..Desired::default()
    }
}

struct Target {
    state: TargetState,
    /// Present when it is in the table.
    desired: Option<DesiredTarget>,
}

/// A listener's targets. Those that are known to be healthy get the connections; while none is,
/// those that nobody has asked yet; and when all are unhealthy, all of them: the check may be what
/// is broken (fail open, as an NLB does).
fn targets_of(inputs: &Inputs<'_>, listener: &Listener, nodes: &BTreeMap<&str, &Node>) -> Vec<Target> {
    let members = members(inputs.config, nodes, listener);
    let mut targets: Vec<Target> = members.map(|node| target(inputs, listener, node)).collect();
    let usable = targets.iter().filter(|t| t.desired.is_some());
    let best = usable.map(|t| t.state.health).min_by_key(|health| preference(*health));
    for Target { state, desired } in &mut targets {
        state.in_table = desired.is_some() && Some(state.health) == best;
        if !state.in_table {
            *desired = None;
        } else if state.health == TargetHealth::Unhealthy {
            state.why += "; used all the same, because no target is healthy";
        }
    }
    targets
}

fn preference(health: TargetHealth) -> u8 {
    match health {
        TargetHealth::Healthy => 0,
        TargetHealth::Initial => 1,
        TargetHealth::Unhealthy => 2,
        TargetHealth::Draining => 3,
    }
}

/// `desired` is present when connections could go there, healthy or not.
fn target(inputs: &Inputs<'_>, listener: &Listener, node: &Node) -> Target {
    let port = listener.node_port;
    let state = |address, health, why| TargetState {
        node: node.name.clone(),
        address,
        port,
        health,
        in_table: false,
        why,
    };
    let Some(ip) = ipv4_of(node) else {
        let why = "the node has no IPv4 address, and the packet path serves IPv4 alone".to_owned();
        return Target { state: state(node.addresses[0], TargetHealth::Initial, why), desired: None };
    };
    let address = IpAddr::V4(ip);
    let check = inputs.checks.get(&(address, listener.health.clone()));
    let (verdict, reason) =
        check.map_or((Verdict::Initial, "not asked yet"), |(verdict, why)| (*verdict, &**why));
    let health = match verdict {
        _ if node.draining => TargetHealth::Draining,
        Verdict::Initial => TargetHealth::Initial,
        Verdict::Healthy => TargetHealth::Healthy,
        Verdict::Unhealthy => TargetHealth::Unhealthy,
    };
    let next_hop = inputs.neighbours.next_hops.get(&ip).copied().unwrap_or(NextHop::Unresolved);
    let unreachable =
        |why: &str| Target { state: state(address, health, format!("{ip} {why}")), desired: None };
    match next_hop {
        _ if node.draining => {
            let why = "draining: existing connections go on".to_owned();
            Target { state: state(address, health, why), desired: None }
        }
        NextHop::Mac(mac) => {
            let desired = DesiredTarget { address: SocketAddrV4::new(ip, port), mac: Some(mac), weight: 1 };
            Target { state: state(address, health, reason.to_owned()), desired: Some(desired) }
        }
        NextHop::Unresolved => {
            unreachable("has no link-layer address yet: is the node up and on this network?")
        }
        NextHop::Elsewhere => {
            unreachable("is reached by another interface than --interface, which the packet path cannot use")
        }
        NextHop::Local => {
            unreachable("is this host itself, and the packet path serves only other hosts so far")
        }
        NextHop::NoRoute => unreachable("has no route from this host"),
    }
}

fn listener_id(listener: &Listener) -> Option<ListenerId> {
    Some(ListenerId { vip: as_ipv4(listener.vip)?, protocol: listener.protocol, port: listener.port })
}

fn nodes_by_name(config: &Config) -> BTreeMap<&str, &Node> {
    config.nodes.iter().map(|n| (n.name.as_str(), n)).collect()
}

fn members<'a>(
    config: &'a Config,
    nodes: &BTreeMap<&str, &'a Node>,
    listener: &Listener,
) -> impl Iterator<Item = &'a Node> {
    let set = config.node_sets.iter().find(|s| s.name == listener.node_set);
    set.into_iter().flat_map(|s| &s.nodes).filter_map(|name| nodes.get(name.as_str()).copied())
}

fn ipv4_of(node: &Node) -> Option<Ipv4Addr> {
    node.addresses.iter().find_map(|a| as_ipv4(*a))
}

fn as_ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(ip) => Some(ip),
        IpAddr::V6(_) => None,
    }
}

#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
