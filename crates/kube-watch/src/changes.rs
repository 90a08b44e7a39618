//! Events of one kind to [`Change`]s, and to one warning for each object that has a mistake.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

use kube::Resource;
use service_model::{Change, Key, Kind, Object, ObjectName};

use crate::convert::{self, Detail, Names, Problems};
use crate::wire;

/// One event of a watch of `W`, before it is converted.
#[derive(Debug, Clone)]
pub enum Listing<W> {
    Started,
    Apply(W),
    Delete(W),
    Ended,
}

/// A kind that the model knows.
pub(crate) trait Convert {
    type Wire: Resource;
    const KIND: Kind;

    fn key(wire: &Self::Wire) -> Key;
    /// `None` when the object is of no use.
    fn object(&mut self, wire: Self::Wire, problems: &mut Problems) -> Option<Object>;
}

#[derive(Debug)]
pub(crate) struct Services(pub(crate) Detail);

#[derive(Debug)]
pub(crate) struct Slices {
    detail: Detail,
    names: Names,
}

#[derive(Debug)]
pub(crate) struct Nodes;

#[derive(Debug)]
pub(crate) struct ServiceCidrs;

/// Converts one kind's events.
#[derive(Debug)]
pub(crate) struct Changes<C> {
    convert: C,
    /// What was said about an object, so that it is said once.
    told: BTreeMap<Key, Problems>,
}

impl<C: Convert> Changes<C> {
    pub(crate) fn new(convert: C) -> Self {
        Self { convert, told: BTreeMap::new() }
    }

    /// The change, after a warning about what is new in the object's problems.
    pub(crate) fn of(&mut self, listing: Listing<C::Wire>) -> Change {
        let (change, news) = self.convert(listing);
        if let Some((key, problems)) = news {
            let (kind, name) = (C::KIND, Name(key));
            tracing::warn!(?kind, %name, "{}", problems.join("; "));
        }
        change
    }

    /// The change, and the object's problems where they are not those told before. An object that
    /// cannot be used counts as gone: it may have been usable before.
    fn convert(&mut self, listing: Listing<C::Wire>) -> (Change, Option<(&Key, &Problems)>) {
        let wire = match listing {
            Listing::Started => return (Change::ListStarted(C::KIND), None),
            Listing::Ended => return (Change::ListEnded(C::KIND), None),
            Listing::Delete(wire) => {
                let key = C::key(&wire);
                self.told.remove(&key);
                return (Change::Delete(key), None);
            }
            Listing::Apply(wire) => wire,
        };
        let (key, mut problems) = (C::key(&wire), Problems::new());
        let change = match self.convert.object(wire, &mut problems) {
            Some(object) => Change::Apply(object),
            None => Change::Delete(key.clone()),
        };
        if problems.is_empty() {
            self.told.remove(&key);
        } else if self.told.get(&key) != Some(&problems) {
            self.told.insert(key.clone(), problems);
            return (change, self.told.get_key_value(&key));
        }
        (change, None)
    }
}

impl Slices {
    pub(crate) fn new(detail: Detail) -> Self {
        Self { detail, names: Names::default() }
    }
}

impl Convert for Services {
    type Wire = wire::Service;
    const KIND: Kind = Kind::Service;

    fn key(wire: &wire::Service) -> Key {
        Key::Service(name_of(wire))
    }

    fn object(&mut self, wire: wire::Service, problems: &mut Problems) -> Option<Object> {
        convert::service(wire, self.0, problems).map(Object::Service)
    }
}

impl Convert for Slices {
    type Wire = wire::EndpointSlice;
    const KIND: Kind = Kind::EndpointSlice;

    fn key(wire: &wire::EndpointSlice) -> Key {
        Key::EndpointSlice(name_of(wire))
    }

    fn object(&mut self, wire: wire::EndpointSlice, problems: &mut Problems) -> Option<Object> {
        convert::endpoint_slice(wire, self.detail, &mut self.names, problems).map(Object::EndpointSlice)
    }
}

impl Convert for Nodes {
    type Wire = wire::Node;
    const KIND: Kind = Kind::Node;

    fn key(wire: &wire::Node) -> Key {
        Key::Node(wire.metadata.name.as_deref().unwrap_or_default().into())
    }

    fn object(&mut self, wire: wire::Node, problems: &mut Problems) -> Option<Object> {
        convert::node(wire, problems).map(Object::Node)
    }
}

impl Convert for ServiceCidrs {
    type Wire = wire::ServiceCidr;
    const KIND: Kind = Kind::ServiceCidr;

    fn key(wire: &wire::ServiceCidr) -> Key {
        Key::ServiceCidr(wire.metadata.name.as_deref().unwrap_or_default().into())
    }

    fn object(&mut self, wire: wire::ServiceCidr, problems: &mut Problems) -> Option<Object> {
        convert::service_cidr(&wire, problems).map(Object::ServiceCidr)
    }
}

fn name_of(object: &impl Resource) -> ObjectName {
    let meta = object.meta();
    ObjectName::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default())
}

/// A key without its kind.
struct Name<'a>(&'a Key);

impl Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Key::Service(name) | Key::EndpointSlice(name) => f.write_str(name.as_str()),
            Key::Node(name) | Key::ServiceCidr(name) => f.write_str(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn apply(spec: &Value) -> Listing<wire::Service> {
        let object = json!({"metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
        Listing::Apply(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn a_mistake_is_told_once_until_it_changes_or_goes() {
        let mut changes = Changes::new(Services(Detail::Dataplane));
        let (bad, worse) = (json!({"externalIPs": ["x"]}), json!({"externalIPs": ["x", "y"]}));
        let good = json!({});
        for (spec, told) in [(&bad, 1), (&bad, 0), (&worse, 2), (&worse, 0), (&good, 0), (&bad, 1)] {
            let news = changes.convert(apply(spec)).1.map(|(key, problems)| (key.clone(), problems.len()));
            let key = Key::Service(ObjectName::new("shop", "web"));
            assert_eq!(news, (told > 0).then_some((key, told)), "{spec}");
        }
        let Listing::Apply(wire) = apply(&bad) else { unreachable!() };
        changes.convert(Listing::Delete(wire));
        assert!(changes.convert(apply(&bad)).1.is_some(), "a new object of the same name");
    }

    #[test]
    fn an_object_that_became_useless_counts_as_gone() {
        let mut changes = Changes::new(Services(Detail::Dataplane));
        let gone = Change::Delete(Key::Service(ObjectName::new("shop", "web")));
        assert_eq!(changes.of(apply(&json!({"clusterIP": "None"}))), gone);
    }
}
