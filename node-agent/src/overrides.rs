//! What the configuration says in place of the API server. Everything behind sees a cluster where it
//! is so.

use std::net::IpAddr;

use service_model::{Change, IpFamily, NodeAddress, NodeAddressKind, NodeName, Object};

use crate::external_ips::ExternalIps;

/// Nothing, by default.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub external_ips: ExternalIps,
    /// The Node's primary address in its family (kube-proxy's `bindAddress`).
    pub node_address: Option<(NodeName, IpAddr)>,
}

impl Overrides {
    /// Returns the external IPs that a Service names and does not have.
    pub fn apply(&self, change: &mut Change) -> Vec<IpAddr> {
        match (change, &self.node_address) {
            (Change::Apply(Object::Service(service)), _) => return self.external_ips.restrict(service),
            (Change::Apply(Object::Node(node)), Some((name, ip))) if node.name == *name => {
                node.addresses.retain(|address| IpFamily::of(address.ip) != IpFamily::of(*ip));
                node.addresses.push(NodeAddress { kind: NodeAddressKind::Internal, ip: *ip });
            }
            _ => {}
        }
        Vec::new()
    }
}

#[cfg(test)]
mod tests {
    use service_model::{Node, ObjectName, Service};

    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn overridden(overrides: &Overrides, object: Object) -> Object {
        let mut change = Change::Apply(object);
        overrides.apply(&mut change);
        let Change::Apply(object) = change else { unreachable!("it was one") };
        object
    }

    #[test]
    fn external_ips_are_left_out_where_they_are_not_allowed() {
        let mut service = Service::new(ObjectName::new("ns", "web"));
        service.cluster_ips = vec![ip("10.96.0.1")];
        service.external_ips = vec![ip("192.0.2.1")];
        let usual = overridden(&Overrides::default(), Object::Service(service.clone()));
        assert_eq!(usual, Object::Service(service.clone()));
        let none = Overrides { external_ips: ExternalIps::None, ..Overrides::default() };
        let mut change = Change::Apply(Object::Service(service.clone()));
        assert_eq!(none.apply(&mut change), service.external_ips);
        service.external_ips.clear();
        assert_eq!(change, Change::Apply(Object::Service(service)));
    }

    #[test]
    fn an_address_of_ones_own_stands_for_those_of_its_family_alone() {
        let overrides =
            Overrides { node_address: Some(("here".into(), ip("198.51.100.7"))), ..Overrides::default() };
        let primary_ips = |name: &str| {
            let mut node = Node::new(name.into());
            let addresses = ["fd00:172:30::11", "172.30.0.11"].map(ip);
            node.addresses = addresses.map(|ip| NodeAddress { kind: NodeAddressKind::Internal, ip }).into();
            let Object::Node(node) = overridden(&overrides, Object::Node(node)) else { unreachable!() };
            node.primary_ips().collect::<Vec<_>>()
        };
        assert_eq!(primary_ips("here"), [ip("198.51.100.7"), ip("fd00:172:30::11")]);
        assert_eq!(primary_ips("there"), [ip("172.30.0.11"), ip("fd00:172:30::11")]);
    }
}
