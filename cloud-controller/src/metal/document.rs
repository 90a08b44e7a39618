//! The whole desired state of the tier, kept ready to be sent, and its generation.
//!
//! Each change of content is a new generation. A document before the first [`Document::issue`] is
//! only being collected: nothing is sent until every recorded Service is in it.

use std::collections::BTreeMap;

use metal_lb_api::{CURRENT_SCHEMA, Config, Generation, Host, Listener, MemberKey, Node, NodeSet};
use service_model::{ServiceName, World};

use super::listeners::ALL_NODES;

#[derive(Debug, Clone)]
pub struct Document {
    owner: String,
    member_key: MemberKey,
    hosts: Vec<Host>,
    nodes: Vec<Node>,
    listeners: BTreeMap<ServiceName, Entry>,
    term: u64,
    generation: Generation,
    issued: bool,
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
            nodes: Vec::new(),
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
        !self.nodes.is_empty()
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

    pub fn set_nodes(&mut self, nodes: Vec<Node>) {
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
            nodes: self.nodes.clone(),
            node_sets: vec![NodeSet {
                name: ALL_NODES.to_owned(),
                nodes: self.nodes.iter().map(|n| n.name.clone()).collect(),
            }],
            listeners: self.listeners.values().flat_map(|e| &e.listeners).cloned().collect(),
        }
    }

    /// The Service that a JSON path such as `listeners[3].vip` speaks of.
    pub fn service_at(&self, path: &str) -> Option<&ServiceName> {
        let index: usize = path.strip_prefix("listeners[")?.split_once(']')?.0.parse().ok()?;
        let mut seen = 0;
        self.listeners.iter().find_map(|(service, entry)| {
            seen += entry.listeners.len();
            (index < seen).then_some(service)
        })
    }

    fn bump(&mut self) -> Generation {
        if self.issued {
            self.generation = self.generation.after(self.term);
        }
        self.generation
    }
}

/// The nodes that may get traffic, by name, with one address per family. A node that is being
/// removed drains; one that is excluded by label is left out; readiness is the health check's
/// business (KEP-3458).
pub fn nodes(world: &World) -> Vec<Node> {
    let node = |node: &service_model::Node| {
        let draining = node.is_being_removed();
        if !draining && !node.is_load_balancer_target() {
            return None;
        }
        let v4 = node.internal_ips().find(std::net::IpAddr::is_ipv4);
        let v6 = node.internal_ips().find(std::net::IpAddr::is_ipv6);
        let addresses: Vec<_> = v4.into_iter().chain(v6).collect();
        (!addresses.is_empty()).then(|| Node {
            name: node.name.to_string(),
            addresses,
            zone: node.zone().map(str::to_owned),
            draining,
        })
    };
    world.nodes().filter_map(node).collect()
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
        document.set_nodes(vec![Node {
            name: "node-1".into(),
            addresses: vec!["10.0.0.11".parse().unwrap()],
            zone: None,
            draining: false,
        }]);
        document.issue(Generation::default());
        let config = document.config();
        assert_eq!(Config::parse(config.to_json().as_bytes()), Ok(config));
        assert_eq!(document.service_at("listeners[1].vip").unwrap().name(), "web");
        assert_eq!(document.service_at("listeners[2].vip"), None);
        assert_eq!(document.service_at("hosts[0].slot"), None);
    }

    #[test]
    fn removed_nodes_drain_and_excluded_ones_are_left_out() {
        let mut world = World::default();
        for (name, label, deleting, ip) in [
            ("a", None, false, Some("10.0.0.11")),
            ("b", Some("node.kubernetes.io/exclude-from-external-load-balancers"), false, Some("10.0.0.12")),
            ("c", None, true, Some("10.0.0.13")),
            ("d", None, false, None),
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
        let nodes: Vec<(String, bool)> = nodes(&world).into_iter().map(|n| (n.name, n.draining)).collect();
        assert_eq!(nodes, [("a".to_owned(), false), ("c".to_owned(), true)]);
    }
}
