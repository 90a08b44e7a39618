//! The desired state of a balancer tier.
//!
//! Nodes stand in the document once; node sets name them; listeners name a set and a NodePort.
//! A node change is therefore one line, however many Services there are.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{ConfigError, Generation};

/// The version of this document's shape. A host answers which ones it takes in its state.
pub const CURRENT_SCHEMA: u32 = 1;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub schema: u32,
    /// The cluster that speaks. A host obeys one document, and so one cluster so far.
    pub owner: String,
    pub generation: Generation,
    /// Authenticates the hosts to one another. Never shown in state, logs or errors.
    pub member_key: MemberKey,
    /// All hosts of the tier, the reader included. Sorted by name.
    pub hosts: Vec<Host>,
    pub nodes: Vec<Node>,
    pub node_sets: Vec<NodeSet>,
    pub listeners: Vec<Listener>,
}

/// A member of the tier.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Host {
    pub name: String,
    /// Where its peers probe it.
    pub address: SocketAddr,
    /// Which slice of the SNAT source ports it allocates from; unique in the tier, sticky for the
    /// host's life, so that a new owner of a VIP never collides with flows it has not heard of.
    pub slot: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Node {
    pub name: String,
    /// One per family at most.
    pub addresses: Vec<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zone: Option<String>,
    /// No new connections; existing ones until they end.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub draining: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeSet {
    pub name: String,
    pub nodes: Vec<String>,
}

/// What the packet path balances (SCTP is not among it).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum NatProtocol {
    Tcp,
    Udp,
}

/// An HTTP GET that answers 200 when the node takes new connections. Asked once per node and
/// check, however many listeners share it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    pub port: u16,
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Listener {
    /// `namespace/name`: for people, metrics and state.
    pub service: String,
    /// The Service port's name; empty for the unnamed one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub port_name: String,
    pub vip: IpAddr,
    pub protocol: NatProtocol,
    pub port: u16,
    pub node_set: String,
    pub node_port: u16,
    pub health: HealthCheck,
}

/// What makes a listener unique on a tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ListenerKey {
    pub vip: IpAddr,
    pub protocol: NatProtocol,
    pub port: u16,
}

/// 32 secret bytes, written as 64 hexadecimal digits. Its `Debug` hides them.
#[derive(Clone, PartialEq, Eq)]
pub struct MemberKey([u8; 32]);

impl Config {
    /// Reads and checks a document.
    ///
    /// # Errors
    /// The JSON path of the first mistake and what is expected there.
    pub fn parse(json: &[u8]) -> Result<Self, ConfigError> {
        let mut reader = serde_json::Deserializer::from_slice(json);
        let config: Self = serde_path_to_error::deserialize(&mut reader).map_err(|e| {
            let path = e.path().to_string();
            ConfigError::at(path, e.into_inner().to_string())
        })?;
        reader.end().map_err(|e| ConfigError::at(".", e.to_string()))?;
        config.check()?;
        Ok(config)
    }

    /// The document as JSON, as [`Config::parse`] reads it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).expect("a document of strings and numbers always serializes")
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.schema != CURRENT_SCHEMA {
            return Err(ConfigError::at(
                "schema",
                format!("{} is not served here: this host takes {CURRENT_SCHEMA}", self.schema),
            ));
        }
        if self.owner.is_empty() {
            return Err(ConfigError::at("owner", "must name the cluster"));
        }
        self.check_hosts()?;
        self.check_nodes()?;
        self.check_listeners()
    }

    fn check_hosts(&self) -> Result<(), ConfigError> {
        let (mut names, mut slots) = (BTreeSet::new(), BTreeMap::new());
        for (i, host) in self.hosts.iter().enumerate() {
            let at = |field: &str| format!("hosts[{i}].{field}");
            if host.name.is_empty() || !names.insert(&host.name) {
                return Err(ConfigError::at(at("name"), format!("{:?} is empty or stands twice", host.name)));
            }
            let ip = host.address.ip();
            if host.address.port() == 0 || !(is_unicast(ip) || ip.is_loopback()) {
                return Err(ConfigError::at(
                    at("address"),
                    format!("{} is not an address and port at which a host can be reached", host.address),
                ));
            }
            if host.slot >= Host::SLOTS {
                return Err(ConfigError::at(
                    at("slot"),
                    format!("{} is not below {}", host.slot, Host::SLOTS),
                ));
            }
            if let Some(other) = slots.insert(host.slot, &host.name) {
                return Err(ConfigError::at(
                    at("slot"),
                    format!("{} belongs to host {other:?} already", host.slot),
                ));
            }
        }
        Ok(())
    }

    fn check_nodes(&self) -> Result<(), ConfigError> {
        let mut names = BTreeSet::new();
        for (i, node) in self.nodes.iter().enumerate() {
            if node.name.is_empty() || !names.insert(node.name.as_str()) {
                return Err(ConfigError::at(
                    format!("nodes[{i}].name"),
                    format!("{:?} is empty or stands twice", node.name),
                ));
            }
            let families: BTreeSet<bool> = node.addresses.iter().map(IpAddr::is_ipv4).collect();
            if node.addresses.is_empty() || families.len() != node.addresses.len() {
                return Err(ConfigError::at(
                    format!("nodes[{i}].addresses"),
                    "needs one address per family, at least one",
                ));
            }
            if let Some(j) = node.addresses.iter().position(|a| !is_unicast(*a)) {
                return Err(ConfigError::at(
                    format!("nodes[{i}].addresses[{j}]"),
                    format!("{} is not a unicast address", node.addresses[j]),
                ));
            }
        }
        let mut sets = BTreeSet::new();
        for (i, set) in self.node_sets.iter().enumerate() {
            if !sets.insert(&set.name) {
                return Err(ConfigError::at(
                    format!("node_sets[{i}].name"),
                    format!("{:?} stands twice", set.name),
                ));
            }
            for (j, node) in set.nodes.iter().enumerate() {
                if !names.contains(node.as_str()) {
                    return Err(ConfigError::at(
                        format!("node_sets[{i}].nodes[{j}]"),
                        format!("no node is named {node:?}"),
                    ));
                }
            }
        }
        Ok(())
    }

    fn check_listeners(&self) -> Result<(), ConfigError> {
        let sets: BTreeSet<&str> = self.node_sets.iter().map(|s| s.name.as_str()).collect();
        let (mut keys, taken) = (BTreeMap::new(), self.addresses_of_machines());
        for (i, listener) in self.listeners.iter().enumerate() {
            let at = |field: &str| format!("listeners[{i}].{field}");
            if !is_unicast(listener.vip) {
                return Err(ConfigError::at(at("vip"), format!("{} is not a unicast address", listener.vip)));
            }
            if let Some(machine) = taken.get(&listener.vip) {
                return Err(ConfigError::at(
                    at("vip"),
                    format!("{} is the address of {machine}, which would be cut off", listener.vip),
                ));
            }
            for (field, port) in [
                ("port", listener.port),
                ("node_port", listener.node_port),
                ("health.port", listener.health.port),
            ] {
                if port == 0 {
                    return Err(ConfigError::at(at(field), "0 is not a port"));
                }
            }
            let path = &listener.health.path;
            if !path.starts_with('/') || !path.bytes().all(|b| b.is_ascii_graphic()) {
                return Err(ConfigError::at(
                    at("health.path"),
                    format!("{path:?} must begin with / and have no spaces; percent-encode others"),
                ));
            }
            if !sets.contains(listener.node_set.as_str()) {
                return Err(ConfigError::at(
                    at("node_set"),
                    format!("no node set is named {:?}", listener.node_set),
                ));
            }
            if let Some(other) = keys.insert(listener.key(), &listener.service) {
                return Err(ConfigError::at(
                    at("port"),
                    format!("{} is taken by Service {other}", listener.key()),
                ));
            }
        }
        Ok(())
    }

    /// Where hosts and nodes are themselves.
    fn addresses_of_machines(&self) -> BTreeMap<IpAddr, String> {
        let hosts = self.hosts.iter().map(|h| (h.address.ip(), format!("host {:?}", h.name)));
        let nodes = self.nodes.iter();
        let nodes = nodes.flat_map(|n| n.addresses.iter().map(|a| (*a, format!("node {:?}", n.name))));
        hosts.chain(nodes).collect()
    }
}

fn is_unicast(address: IpAddr) -> bool {
    let is_broadcast = matches!(address, IpAddr::V4(ip) if ip.is_broadcast());
    !(address.is_unspecified() || address.is_multicast() || address.is_loopback() || is_broadcast)
}

impl Host {
    /// How many slices the SNAT source ports are cut into: the largest tier.
    pub const SLOTS: u8 = 8;
}

impl Listener {
    pub fn key(&self) -> ListenerKey {
        ListenerKey { vip: self.vip, protocol: self.protocol, port: self.port }
    }
}

impl NatProtocol {
    /// The IP protocol number (IANA).
    pub fn number(self) -> u8 {
        match self {
            NatProtocol::Tcp => 6,
            NatProtocol::Udp => 17,
        }
    }
}

impl fmt::Display for NatProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            NatProtocol::Tcp => "TCP",
            NatProtocol::Udp => "UDP",
        })
    }
}

impl fmt::Display for ListenerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.protocol, SocketAddr::new(self.vip, self.port))
    }
}

impl MemberKey {
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for MemberKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MemberKey(hidden)")
    }
}

impl Serialize for MemberKey {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let digits: String = self.0.iter().map(|b| format!("{b:02x}")).collect();
        serializer.serialize_str(&digits)
    }
}

impl<'de> Deserialize<'de> for MemberKey {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let digits = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let wrong = || D::Error::custom("expected 64 hexadecimal digits");
        if digits.len() != 64 || !digits.is_ascii() {
            return Err(wrong());
        }
        let mut bytes = [0u8; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_bytes().chunks_exact(2)) {
            let pair = std::str::from_utf8(pair).map_err(|_| wrong())?;
            *byte = u8::from_str_radix(pair, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example() -> serde_json::Value {
        serde_json::json!({
            "schema": 1,
            "owner": "lab",
            "generation": {"term": 1, "counter": 7},
            "member_key": "00".repeat(32),
            "hosts": [{"name": "lb-1", "address": "172.30.0.21:7947", "slot": 0}],
            "nodes": [{"name": "node-1", "addresses": ["172.30.0.11"]}],
            "node_sets": [{"name": "all", "nodes": ["node-1"]}],
            "listeners": [{
                "service": "shop/web", "vip": "172.30.0.200", "protocol": "TCP", "port": 80,
                "node_set": "all", "node_port": 30080, "health": {"port": 10256, "path": "/healthz"}
            }]
        })
    }

    fn error_of(change: impl FnOnce(&mut serde_json::Value)) -> ConfigError {
        let mut json = example();
        change(&mut json);
        Config::parse(json.to_string().as_bytes()).unwrap_err()
    }

    #[test]
    fn a_valid_document_survives_the_round_trip() {
        let config = Config::parse(example().to_string().as_bytes()).unwrap();
        assert_eq!(Config::parse(config.to_json().as_bytes()).unwrap(), config);
        assert_eq!(config.listeners[0].key().to_string(), "TCP 172.30.0.200:80");
    }

    #[test]
    fn a_mistake_is_answered_with_its_json_path() {
        type Edit = fn(&mut serde_json::Value);
        let table: &[(Edit, &str)] = &[
            (|j| j["schema"] = 9.into(), "schema"),
            (|j| j["owner"] = "".into(), "owner"),
            (|j| j["member_key"] = "zz".into(), "member_key"),
            (|j| j["hosts"][0]["slot"] = 8.into(), "hosts[0].slot"),
            (|j| j["hosts"][0]["address"] = "0.0.0.0:7947".into(), "hosts[0].address"),
            (|j| j["hosts"][0]["address"] = "172.30.0.21:0".into(), "hosts[0].address"),
            (|j| j["nodes"][0]["addresses"] = serde_json::json!([]), "nodes[0].addresses"),
            (|j| j["nodes"][0]["addresses"][0] = "0.0.0.0".into(), "nodes[0].addresses[0]"),
            (|j| j["node_sets"][0]["nodes"][0] = "node-9".into(), "node_sets[0].nodes[0]"),
            (|j| j["listeners"][0]["vip"] = "300.1.1.1".into(), "listeners[0].vip"),
            (|j| j["listeners"][0]["vip"] = "0.0.0.0".into(), "listeners[0].vip"),
            (|j| j["listeners"][0]["vip"] = "255.255.255.255".into(), "listeners[0].vip"),
            (|j| j["listeners"][0]["vip"] = "172.30.0.11".into(), "listeners[0].vip"),
            (|j| j["listeners"][0]["vip"] = "172.30.0.21".into(), "listeners[0].vip"),
            (|j| j["listeners"][0]["port"] = 0.into(), "listeners[0].port"),
            (|j| j["listeners"][0]["protocol"] = "SCTP".into(), "listeners[0].protocol"),
            (|j| j["listeners"][0]["node_set"] = "none".into(), "listeners[0].node_set"),
            (|j| j["listeners"][0]["health"]["path"] = "healthz".into(), "listeners[0].health.path"),
            (|j| j["listeners"][0]["health"]["path"] = "/a b".into(), "listeners[0].health.path"),
            (|j| j["listeners"][0]["colour"] = "red".into(), "listeners[0].colour"),
            (
                |j| {
                    let twin = j["listeners"][0].clone();
                    j["listeners"].as_array_mut().unwrap().push(twin);
                },
                "listeners[1].port",
            ),
        ];
        for (edit, path) in table {
            let error = error_of(edit);
            assert_eq!(error.path, *path, "{error}");
        }
    }

    #[test]
    fn the_member_key_never_shows_in_debug_output() {
        let config = Config::parse(example().to_string().as_bytes()).unwrap();
        assert!(!format!("{config:?}").contains(&"00".repeat(8)));
    }
}
