//! The indexed state of the cluster, and what changed since it was last looked at.
//!
//! A relist is mark-and-sweep: [`Change::ListStarted`] opens a new epoch for its kind, every
//! applied object carries the epoch of its last sighting, and [`Change::ListEnded`] removes what
//! the list did not mention. Nothing is held twice meanwhile.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ipnet::IpNet;

use crate::{EndpointSlice, Node, NodeName, ObjectName, Service, ServiceCidr, ServiceName};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    Service(Service),
    EndpointSlice(EndpointSlice),
    Node(Node),
    ServiceCidr(ServiceCidr),
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Key {
    Service(ServiceName),
    EndpointSlice(ObjectName),
    Node(NodeName),
    ServiceCidr(Arc<str>),
}

/// One event of a source, in the order in which the source saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(clippy::large_enum_variant, reason = "moved once, from the source into the World; never stored")]
pub enum Change {
    Apply(Object),
    Delete(Key),
    /// A full list of a kind begins (a first list, after a watch expired, or to be sure).
    ListStarted(Kind),
    /// The list is complete: what it did not mention is gone.
    ListEnded(Kind),
}

/// The keys to plan anew. Ordered, so that plans and logs are reproducible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dirty {
    pub services: BTreeSet<ServiceName>,
    pub nodes: BTreeSet<NodeName>,
    /// The networks of ClusterIPs may be others.
    pub service_networks: bool,
}

#[derive(Debug, Clone, Default)]
pub struct World {
    services: Index<ServiceName, Service>,
    slices: Index<ObjectName, EndpointSlice>,
    nodes: Index<NodeName, Node>,
    service_cidrs: Index<Arc<str>, ServiceCidr>,
    /// Which slices belong to a Service.
    slices_of: BTreeSet<(ServiceName, ObjectName)>,
    dirty: Dirty,
}

impl World {
    /// Applies one event and marks the keys whose plan may change. An object that is equal to the
    /// one held marks nothing.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Apply(Object::Service(service)) => self.apply_service(service),
            Change::Apply(Object::EndpointSlice(slice)) => self.apply_slice(slice),
            Change::Apply(Object::Node(node)) => self.apply_node(node),
            Change::Apply(Object::ServiceCidr(cidr)) => self.apply_service_cidr(cidr),
            Change::Delete(key) => self.delete(&key),
            Change::ListStarted(kind) => self.start_list(kind),
            Change::ListEnded(kind) => self.end_list(kind),
        }
    }

    /// Whether every one of `kinds` has been listed in full once. Before that nothing may be
    /// decided: an empty index means "not known", not "none".
    pub fn has_synced(&self, kinds: &[Kind]) -> bool {
        kinds.iter().all(|kind| match kind {
            Kind::Service => self.services.listed,
            Kind::EndpointSlice => self.slices.listed,
            Kind::Node => self.nodes.listed,
            Kind::ServiceCidr => self.service_cidrs.listed,
        })
    }

    /// Hands over the keys that changed since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        std::mem::take(&mut self.dirty)
    }

    /// Marks every Service: for a resync.
    pub fn mark_all_services(&mut self) {
        self.dirty.services.extend(self.services.entries.keys().cloned());
    }

    pub fn service(&self, name: &ServiceName) -> Option<&Service> {
        self.services.entry(name)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values()
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.entry(name)
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// The Service's EndpointSlices, by name. There can be some without the Service, and none with it.
    pub fn slices_of<'a>(&'a self, service: &'a ServiceName) -> impl Iterator<Item = &'a EndpointSlice> {
        // No name sorts before the empty one.
        let from = (service.clone(), ObjectName::new("", ""));
        let names = self.slices_of.range(from..).take_while(move |(owner, _)| owner == service);
        names.filter_map(|(_, name)| self.slices.entry(name))
    }

    /// The networks from which ClusterIPs are given.
    pub fn service_networks(&self) -> BTreeSet<IpNet> {
        self.service_cidrs.values().flat_map(|cidr| &cidr.networks).copied().collect()
    }

    fn apply_service(&mut self, service: Service) {
        let name = service.name.clone();
        if self.services.insert(name.clone(), service).changed {
            self.dirty.services.insert(name);
        }
    }

    fn apply_node(&mut self, node: Node) {
        let name = node.name.clone();
        if self.nodes.insert(name.clone(), node).changed {
            self.dirty.nodes.insert(name);
        }
    }

    fn apply_service_cidr(&mut self, cidr: ServiceCidr) {
        self.dirty.service_networks |= self.service_cidrs.insert(cidr.name.clone(), cidr).changed;
    }

    fn apply_slice(&mut self, mut slice: EndpointSlice) {
        if let Some((name, _)) = self.services.entries.get_key_value(&slice.service) {
            // One copy of the name.
            slice.service = name.clone();
        }
        let (name, service) = (slice.name.clone(), slice.service.clone());
        let inserted = self.slices.insert(name.clone(), slice);
        if !inserted.changed {
            return;
        }
        if let Some(before) = inserted.before.filter(|b| b.service != service) {
            self.unlink_slice(&name, &before.service);
        }
        self.slices_of.insert((service.clone(), name));
        self.dirty.services.insert(service);
    }

    fn delete(&mut self, key: &Key) {
        match key {
            Key::Service(name) => {
                if self.services.remove(name).is_some() {
                    self.dirty.services.insert(name.clone());
                }
            }
            Key::Node(name) => {
                if self.nodes.remove(name).is_some() {
                    self.dirty.nodes.insert(name.clone());
                }
            }
            Key::ServiceCidr(name) => {
                self.dirty.service_networks |= self.service_cidrs.remove(name).is_some();
            }
            Key::EndpointSlice(name) => {
                if let Some(slice) = self.slices.remove(name) {
                    self.unlink_slice(name, &slice.service);
                }
            }
        }
    }

    fn unlink_slice(&mut self, slice: &ObjectName, service: &ServiceName) {
        self.slices_of.remove(&(service.clone(), slice.clone()));
        self.dirty.services.insert(service.clone());
    }

    fn start_list(&mut self, kind: Kind) {
        match kind {
            Kind::Service => self.services.epoch += 1,
            Kind::EndpointSlice => self.slices.epoch += 1,
            Kind::Node => self.nodes.epoch += 1,
            Kind::ServiceCidr => self.service_cidrs.epoch += 1,
        }
    }

    fn end_list(&mut self, kind: Kind) {
        let gone: Vec<Key> = match kind {
            Kind::Service => self.services.end_list().map(Key::Service).collect(),
            Kind::EndpointSlice => self.slices.end_list().map(Key::EndpointSlice).collect(),
            Kind::Node => self.nodes.end_list().map(Key::Node).collect(),
            Kind::ServiceCidr => self.service_cidrs.end_list().map(Key::ServiceCidr).collect(),
        };
        for key in &gone {
            self.delete(key);
        }
    }
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.nodes.is_empty() && !self.service_networks
    }
}

/// One kind's objects with the epoch of their last sighting.
#[derive(Debug, Clone)]
struct Index<K, V> {
    entries: BTreeMap<K, Entry<V>>,
    epoch: u32,
    listed: bool,
}

/// The value is apart, since a `BTreeMap` is half empty when its keys came in order.
#[derive(Debug, Clone)]
struct Entry<V> {
    value: Box<V>,
    epoch: u32,
}

struct Inserted<V> {
    changed: bool,
    before: Option<V>,
}

impl<K: Ord + Clone, V: PartialEq> Index<K, V> {
    fn entry<Q: Ord + ?Sized>(&self, key: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.entries.get(key).map(|e| &*e.value)
    }

    fn values(&self) -> impl Iterator<Item = &V> {
        self.entries.values().map(|e| &*e.value)
    }

    fn insert(&mut self, key: K, value: V) -> Inserted<V> {
        if let Some(entry) = self.entries.get_mut(&key) {
            entry.epoch = self.epoch;
            if *entry.value == value {
                return Inserted { changed: false, before: None };
            }
            return Inserted { changed: true, before: Some(std::mem::replace(&mut *entry.value, value)) };
        }
        self.entries.insert(key, Entry { value: Box::new(value), epoch: self.epoch });
        Inserted { changed: true, before: None }
    }

    fn remove(&mut self, key: &K) -> Option<V> {
        self.entries.remove(key).map(|e| *e.value)
    }

    /// Marks the kind as listed; the keys that the list did not mention.
    fn end_list(&mut self) -> impl Iterator<Item = K> + '_ {
        self.listed = true;
        let epoch = self.epoch;
        self.entries.iter().filter(move |(_, e)| e.epoch != epoch).map(|(k, _)| k.clone())
    }
}

impl<K, V> Default for Index<K, V> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), epoch: 0, listed: false }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IpFamily;
    use proptest::prelude::*;

    fn service(name: &str) -> Change {
        Change::Apply(Object::Service(Service::new(ObjectName::new("ns", name))))
    }

    fn slice(name: &str, service: &str) -> Change {
        Change::Apply(Object::EndpointSlice(EndpointSlice {
            name: ObjectName::new("ns", name),
            service: ObjectName::new("ns", service),
            family: IpFamily::V4,
            ports: Vec::new(),
            endpoints: Vec::new(),
            triggered: None,
        }))
    }

    fn dirty(world: &mut World) -> Vec<String> {
        world.take_dirty().services.iter().map(|n| n.name().to_owned()).collect()
    }

    #[test]
    fn an_event_that_changes_nothing_marks_nothing() {
        let mut world = World::default();
        world.apply(service("a"));
        world.apply(slice("a-1", "a"));
        assert_eq!(dirty(&mut world), ["a"]);
        world.apply(service("a"));
        world.apply(slice("a-1", "a"));
        assert!(world.take_dirty().is_empty());
    }

    #[test]
    fn a_relist_removes_what_it_did_not_mention_and_keeps_the_rest_untouched() {
        let mut world = World::default();
        assert!(!world.has_synced(&[Kind::Service]));
        for change in
            [Change::ListStarted(Kind::Service), service("a"), service("b"), Change::ListEnded(Kind::Service)]
        {
            world.apply(change);
        }
        assert!(world.has_synced(&[Kind::Service]) && !world.has_synced(&[Kind::Service, Kind::Node]));
        dirty(&mut world);
        for change in [Change::ListStarted(Kind::Service), service("b"), Change::ListEnded(Kind::Service)] {
            assert!(world.has_synced(&[Kind::Service]), "what is known counts while it is listed anew");
            assert_eq!(world.services().count(), 2);
            world.apply(change);
        }
        assert_eq!(dirty(&mut world), ["a"]);
        assert_eq!(world.services().count(), 1);
    }

    #[test]
    fn a_slice_that_moves_to_another_service_marks_both() {
        let mut world = World::default();
        world.apply(slice("s", "old"));
        dirty(&mut world);
        world.apply(slice("s", "new"));
        assert_eq!(dirty(&mut world), ["new", "old"]);
        assert_eq!(world.slices_of(&ObjectName::new("ns", "old")).count(), 0);
        assert_eq!(world.slices_of(&ObjectName::new("ns", "new")).count(), 1);
    }

    proptest! {
        /// However events interleave, a full relist leaves exactly the listed slices, indexed by Service.
        #[test]
        fn a_full_relist_always_wins(
            noise in proptest::collection::vec((0u8..4, 0u8..3, any::<bool>()), 0..40),
            listed in proptest::collection::btree_map(0u8..4, 0u8..3, 0..4),
        ) {
            let mut world = World::default();
            for (name, owner, present) in noise {
                world.apply(if present {
                    slice(&name.to_string(), &owner.to_string())
                } else {
                    Change::Delete(Key::EndpointSlice(ObjectName::new("ns", &name.to_string())))
                });
            }
            world.apply(Change::ListStarted(Kind::EndpointSlice));
            for (name, owner) in &listed {
                world.apply(slice(&name.to_string(), &owner.to_string()));
            }
            world.apply(Change::ListEnded(Kind::EndpointSlice));
            for owner in 0u8..3 {
                let have: Vec<String> = world
                    .slices_of(&ObjectName::new("ns", &owner.to_string()))
                    .map(|s| s.name.name().to_owned())
                    .collect();
                let want: Vec<String> =
                    listed.iter().filter(|(_, o)| **o == owner).map(|(n, _)| n.to_string()).collect();
                prop_assert_eq!(have, want);
            }
        }
    }
}
