//! The whole desired state of the tier, kept ready to be sent, and its generation.
//!
//! Each change of content is a new generation. A document before the first [`Document::issue`] is
//! only being collected: nothing is sent until every recorded Service is in it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use metal_lb_api::{CURRENT_SCHEMA, Config, Generation, Host, Listener, MemberKey, Node, NodeSet};
use service_model::{ServiceName, World};

use super::listeners::ALL_NODES;
use super::ranges::is_unicast;

#[derive(Debug, Clone)]
pub struct Document {
    owner: String,
    member_key: MemberKey,
    hosts: Vec<Host>,
    nodes: Nodes,
    listeners: BTreeMap<ServiceName, Entry>,
    term: u64,
    generation: Generation,
    issued: bool,
}

/// What the tier knows of the cluster's nodes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Nodes {
    /// Those that may get traffic, by name, with one address per family.
    pub targets: Vec<Node>,
    /// Every address of every node, and its name.
    pub addresses: BTreeMap<IpAddr, String>,
}

/// A Service's listeners, and the generation since which they are as they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub listeners: Vec<Listener>,
    pub since: Generation,
}

impl Document {
    /// Of the leader in `term`; nothing is issued yet. `hosts` in the order of their slots.
    pub fn new(owner: &str, member_key: MemberKey, hosts: Vec<Host>, term: u64) -> Self {
        Self {
            owner: owner.to_owned(),
            member_key,
            hosts,
            nodes: Nodes::default(),
            listeners: BTreeMap::new(),
            term,
            generation: Generation::default(),
            issued: false,
        }
    }

    /// Begins to send, with a generation above everything that a host has `reported`.
    pub fn issue(&mut self, reported: Generation) {
        self.issued = true;
        self.generation = reported.max(self.generation).after(self.term);
        let generation = self.generation;
        for entry in self.listeners.values_mut() {
            entry.since = generation;
        }
    }

    /// A host runs a document of a higher generation: send this one above it. The content is the
    /// same, so what is programmed stays programmed.
    pub fn raise(&mut self, reported: Generation) {
        if self.issued && reported >= self.generation {
            self.generation = reported.after(self.term);
        }
    }

    /// The generation that hosts should run; `None` before the first document is complete.
    pub fn generation(&self) -> Option<Generation> {
        self.issued.then_some(self.generation)
    }

    /// What the next change will be numbered.
    pub fn next_generation(&self) -> Option<Generation> {
        self.issued.then(|| self.generation.after(self.term))
    }

    pub fn entry(&self, service: &ServiceName) -> Option<&Entry> {
        self.listeners.get(service)
    }

    pub fn has_nodes(&self) -> bool {
        !self.nodes.targets.is_empty()
    }

    /// Puts the Service's listeners in; no change, no generation.
    pub fn put(&mut self, service: &ServiceName, listeners: Vec<Listener>) {
        if self.listeners.get(service).is_some_and(|e| e.listeners == listeners) {
            return;
        }
        let since = self.bump();
        self.listeners.insert(service.clone(), Entry { listeners, since });
    }

    /// Takes the Service out. Answers the generation that is without it.
    pub fn remove(&mut self, service: &ServiceName) -> Generation {
        if self.listeners.remove(service).is_some() { self.bump() } else { self.generation }
    }

    /// The addresses that machines have themselves, and whose they are. As a VIP such a one would
    /// cut its machine off, and hosts refuse the whole document for it.
    pub fn machines(&self) -> BTreeMap<IpAddr, String> {
        let nodes = self.nodes.addresses.iter().map(|(ip, name)| (*ip, format!("node {name}")));
        let hosts = self.hosts.iter().map(|h| (h.address.ip(), format!("balancer host {}", h.name)));
        nodes.chain(hosts).collect()
    }

    pub fn set_nodes(&mut self, nodes: Nodes) {
        if self.nodes != nodes {
            self.nodes = nodes;
            self.bump();
        }
    }

    /// The document as a host reads it.
    pub fn config(&self) -> Config {
        Config {
            schema: CURRENT_SCHEMA,
            owner: self.owner.clone(),
            generation: self.generation,
            member_key: self.member_key.clone(),
            hosts: self.hosts.clone(),
            nodes: self.nodes.targets.clone(),
            node_sets: vec![NodeSet {
                name: ALL_NODES.to_owned(),
                nodes: self.nodes.targets.iter().map(|n| n.name.clone()).collect(),
            }],
            listeners: self.sent().map(|(_, listener)| listener.clone()).collect(),
        }
    }

    /// The Service that a JSON path such as `listeners[3].vip` speaks of.
    pub fn service_at(&self, path: &str) -> Option<&ServiceName> {
        let index: usize = path.strip_prefix("listeners[")?.split_once(']')?.0.parse().ok()?;
        self.sent().nth(index).map(|(service, _)| service)
    }

    /// The listeners that hosts are told of. One on a machine's address stays out, so that it costs
    /// nobody else anything.
    fn sent(&self) -> impl Iterator<Item = (&ServiceName, &Listener)> {
        let machines = self.machines();
        let all = self.listeners.iter().flat_map(|(name, e)| e.listeners.iter().map(move |l| (name, l)));
        all.filter(move |(_, listener)| !machines.contains_key(&listener.vip))
    }

    fn bump(&mut self) -> Generation {
        if self.issued {
            self.generation = self.generation.after(self.term);
        }
        self.generation
    }
}

impl Nodes {
    /// A node that is being removed drains; one that is excluded by label gets no traffic; readiness
    /// is the health check's business (KEP-3458).
    pub fn of(world: &World) -> Self {
        let addresses = |node: &service_model::Node| {
            let name = node.name.to_string();
            node.addresses.iter().map(|a| (a.ip, name.clone())).collect::<Vec<_>>()
        };
        Self {
            targets: world.nodes().filter_map(target).collect(),
            addresses: world.nodes().flat_map(addresses).collect(),
        }
    }
}

fn target(node: &service_model::Node) -> Option<Node> {
    let draining = node.is_being_removed();
    if !draining && !node.is_load_balancer_target() {
        return None;
    }
    let v4 = node.internal_ips().find(|ip| ip.is_ipv4() && is_unicast(*ip));
    let v6 = node.internal_ips().find(|ip| ip.is_ipv6() && is_unicast(*ip));
    let addresses: Vec<_> = v4.into_iter().chain(v6).collect();
    (!addresses.is_empty()).then(|| Node {
        name: node.name.to_string(),
        addresses,
        zone: node.zone().map(str::to_owned),
        draining,
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use service_model::{Change, NodeAddress, NodeAddressKind, Object, ObjectName};

    use super::*;
    use crate::metal::listeners::listeners;

    fn document() -> Document {
        let host = Host { name: "lb-1".into(), address: "10.0.0.21:7947".parse().unwrap(), slot: 0 };
        Document::new("lab", MemberKey::new([7; 32]), vec![host], 3)
    }

    fn listener(name: &str, port: u16) -> (ServiceName, Vec<Listener>) {
        let mut service = service_model::Service::new(ObjectName::new("ns", name));
        service.ports = vec![service_model::ServicePort {
            name: "".into(),
            protocol: service_model::Protocol::Tcp,
            port,
            node_port: Some(30000 + port),
        }];
        (service.name.clone(), listeners(&service, "10.0.0.200".parse().unwrap()).0)
    }

    fn generation(term: u64, counter: u64) -> Generation {
        Generation { term, counter }
    }

    #[test]
    fn nothing_is_numbered_before_the_document_is_issued_and_every_change_is_after() {
        let mut document = document();
        let (web, listeners) = listener("web", 80);
        document.put(&web, listeners.clone());
        assert_eq!((document.generation(), document.next_generation()), (None, None));
        document.issue(generation(2, 40));
        assert_eq!(document.generation(), Some(generation(3, 1)));
        assert_eq!(document.entry(&web).unwrap().since, generation(3, 1));
        document.put(&web, listeners);
        assert_eq!(document.generation(), Some(generation(3, 1)), "the same again is no change");
        assert_eq!(document.remove(&web), generation(3, 2));
        assert_eq!(document.remove(&web), generation(3, 2));
    }

    #[test]
    fn a_host_that_is_ahead_raises_the_number_and_leaves_the_entries_as_they_are() {
        let mut document = document();
        let (web, listeners) = listener("web", 80);
        document.put(&web, listeners);
        document.issue(Generation::default());
        document.raise(generation(2, 900));
        assert_eq!(document.generation(), Some(generation(3, 1)));
        document.raise(generation(3, 7));
        assert_eq!(document.generation(), Some(generation(3, 8)));
        assert_eq!(document.entry(&web).unwrap().since, generation(3, 1));
    }

    #[test]
    fn the_document_that_is_sent_is_one_that_a_host_takes() {
        let mut document = document();
        for (name, port) in [("web", 80), ("dns", 53)] {
            let (name, listeners) = listener(name, port);
            document.put(&name, listeners);
        }
        let node = Node {
            name: "node-1".into(),
            addresses: vec!["10.0.0.11".parse().unwrap()],
            zone: None,
            draining: false,
        };
        document.set_nodes(Nodes { targets: vec![node], ..Nodes::default() });
        document.issue(Generation::default());
        let config = document.config();
        assert_eq!(Config::parse(config.to_json().as_bytes()), Ok(config));
        assert_eq!(document.service_at("listeners[1].vip").unwrap().name(), "web");
        assert_eq!(document.service_at("listeners[2].vip"), None);
        assert_eq!(document.service_at("hosts[0].slot"), None);
    }

    #[test]
    fn removed_nodes_drain_and_those_excluded_or_without_an_address_of_use_are_left_out() {
        let mut world = World::default();
        for (name, label, deleting, ip) in [
            ("a", None, false, Some("10.0.0.11")),
            ("b", Some("node.kubernetes.io/exclude-from-external-load-balancers"), false, Some("10.0.0.12")),
            ("c", None, true, Some("10.0.0.13")),
            ("d", None, false, None),
            ("e", None, false, Some("127.0.0.1")),
        ] {
            let mut node = service_model::Node::new(name.into());
            node.labels = label.map(|l| (l.into(), "".into())).into_iter().collect::<BTreeMap<_, _>>();
            node.deleting = deleting;
            node.addresses = ip
                .map(|ip| NodeAddress { kind: NodeAddressKind::Internal, ip: ip.parse().unwrap() })
                .into_iter()
                .collect();
            world.apply(Change::Apply(Object::Node(node)));
        }
        let nodes = Nodes::of(&world);
        let targets: Vec<(&str, bool)> = nodes.targets.iter().map(|n| (&*n.name, n.draining)).collect();
        assert_eq!(targets, [("a", false), ("c", true)]);
        assert_eq!(nodes.addresses.values().map(|n| &**n).collect::<String>(), "abce", "by address");
    }
}
