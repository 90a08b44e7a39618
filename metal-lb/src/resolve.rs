//! Document, health, neighbours and ownership in; what to program, and why, out. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

use metal_lb_api::{
    CURRENT_SCHEMA, Config, HostState, Listener, ListenerState, Node, TargetHealth, TargetState, VipState,
};
use sha2::{Digest, Sha256};

use crate::desired::{Desired, DesiredListener, DesiredTarget, ListenerId, Mac};
use crate::health::{Checks, Verdict};
use crate::members::Ownership;
use crate::neighbours::Neighbours;

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
pub fn checks_of(config: &Config) -> BTreeSet<(IpAddr, metal_lb_api::HealthCheck)> {
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

pub fn resolve(inputs: &Inputs<'_>) -> Resolved {
    let nodes = nodes_by_name(inputs.config);
    let (mut desired, mut listeners) = (host_part(inputs), Vec::new());
    for vip in vips_of(inputs.config) {
        desired
            .vips
            .insert(vip, inputs.owners.get(&vip).is_some_and(|o| o.owner.as_deref() == Some(inputs.host)));
    }
    for listener in &inputs.config.listeners {
        let targets = targets_of(inputs, listener, &nodes);
        let Some(vip) = as_ipv4(listener.vip) else {
            let why = "IPv6 addresses are not served by this release's packet path; give the Service an IPv4 address";
            listeners.push(listener_state(
                listener,
                false,
                why.into(),
                targets.into_iter().map(|t| t.state).collect(),
            ));
            continue;
        };
        let in_table: BTreeMap<String, DesiredTarget> =
            targets.iter().filter_map(|t| Some((t.state.node.clone(), t.desired.clone()?))).collect();
        let why = match in_table.len() {
            0 => "no target can take connections: they are dropped".to_owned(),
            n => format!("{n} of {} targets take connections", targets.len()),
        };
        let id = ListenerId { vip, protocol: listener.protocol, port: listener.port };
        let service = listener.service.clone();
        desired.listeners.insert(id, DesiredListener { service, targets: in_table, ..Default::default() });
        listeners.push(listener_state(listener, true, why, targets.into_iter().map(|t| t.state).collect()));
    }
    let vips = inputs.owners.iter().map(|(vip, o)| VipState {
        vip: IpAddr::V4(*vip),
        owner: o.owner.clone(),
        why: o.why.clone(),
    });
    let state = HostState {
        host: inputs.host.to_owned(),
        schemas: vec![CURRENT_SCHEMA],
        generation: Some(inputs.config.generation),
        owner: Some(inputs.config.owner.clone()),
        vips: vips.collect(),
        listeners,
    };
    Resolved { desired, state }
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
        probe_address: own.and_then(|h| as_ipv4(h.address.ip())),
        ..Desired::default()
    }
}

struct Target {
    state: TargetState,
    /// Present when it is in the table.
    desired: Option<DesiredTarget>,
}

/// A listener's targets. When every one that could take connections is unhealthy, all of them do:
/// the check may be what is broken (fail open, as an NLB does).
fn targets_of(inputs: &Inputs<'_>, listener: &Listener, nodes: &BTreeMap<&str, &Node>) -> Vec<Target> {
    let mut targets: Vec<Target> = Vec::new();
    for node in members(inputs.config, nodes, listener) {
        let Some(address) = ipv4_of(node) else { continue };
        let check = inputs.checks.get(&(IpAddr::V4(address), listener.health.clone()));
        let (verdict, reason) = check.cloned().unwrap_or((Verdict::Initial, Arc::from("not asked yet")));
        let mac = inputs.neighbours.macs.get(&address).copied();
        targets.push(target(node, address, listener.node_port, verdict, &reason, mac));
    }
    let could = |t: &&mut Target| t.state.health != TargetHealth::Draining && t.desired.is_some();
    let healthy = |t: &Target| t.desired.is_some() && t.state.in_table;
    if !targets.iter().any(healthy) {
        for target in targets.iter_mut().filter(could) {
            target.state.in_table = true;
            target.state.why =
                format!("{}; used all the same, because no target is healthy", target.state.why);
        }
    }
    for target in targets.iter_mut().filter(|t| !t.state.in_table) {
        target.desired = None;
    }
    targets
}

fn target(
    node: &Node,
    address: Ipv4Addr,
    port: u16,
    verdict: Verdict,
    reason: &str,
    mac: Option<Mac>,
) -> Target {
    let health = match verdict {
        _ if node.draining => TargetHealth::Draining,
        Verdict::Initial => TargetHealth::Initial,
        Verdict::Healthy => TargetHealth::Healthy,
        Verdict::Unhealthy => TargetHealth::Unhealthy,
    };
    let (in_table, why) = match mac {
        _ if node.draining => (false, "draining: existing connections go on".to_owned()),
        None => {
            (false, format!("{address} has no link-layer address yet: is the node up and on this network?"))
        }
        Some(_) => (verdict.takes_connections(), reason.to_owned()),
    };
    let desired = mac.filter(|_| !node.draining).map(|mac| DesiredTarget {
        address: SocketAddrV4::new(address, port),
        mac: Some(mac),
        weight: 1,
    });
    let state =
        TargetState { node: node.name.clone(), address: IpAddr::V4(address), port, health, in_table, why };
    Target { state, desired }
}

fn listener_state(
    listener: &Listener,
    programmed: bool,
    why: String,
    targets: Vec<TargetState>,
) -> ListenerState {
    ListenerState {
        service: listener.service.clone(),
        vip: listener.vip,
        protocol: listener.protocol,
        port: listener.port,
        programmed,
        why,
        targets,
    }
}

fn nodes_by_name(config: &Config) -> BTreeMap<&str, &Node> {
    config.nodes.iter().map(|n| (n.name.as_str(), n)).collect()
}

fn members<'a>(config: &'a Config, nodes: &BTreeMap<&str, &'a Node>, listener: &Listener) -> Vec<&'a Node> {
    let set = config.node_sets.iter().find(|s| s.name == listener.node_set);
    set.into_iter().flat_map(|s| &s.nodes).filter_map(|name| nodes.get(name.as_str()).copied()).collect()
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
