//! One Service, in as many shapes as the tests need.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use node_agent::config::Config;
use node_agent::local::DetectLocal;
use service_model::{
    AffinityScope, Change, Endpoint, EndpointPort, EndpointSlice, Ingress, IpFamily, Node, NodeAddress,
    NodeAddressKind, Object, ObjectName, Protocol, Service, ServiceCidr, ServicePort, ServiceType,
    SessionAffinity, TrafficPolicy,
};

use crate::hosts::Host;

/// The Service `ns/shop`, TCP and UDP port 80, or SCTP too, or TCP port 443.
#[derive(Clone)]
pub(crate) struct Shop<'a> {
    pub(crate) endpoints: Vec<&'a Host>,
    /// Those of the endpoints that are said to be on another node.
    pub(crate) elsewhere: Vec<&'a Host>,
    pub(crate) target_port: u16,
    pub(crate) sctp: bool,
    pub(crate) https: bool,
    /// NodePort 30080, external and load balancer addresses.
    pub(crate) exposed: bool,
    pub(crate) external_policy: TrafficPolicy,
    pub(crate) affinity: Option<Duration>,
    pub(crate) affinity_scope: AffinityScope,
    /// The networks that reach load balancers' addresses; empty for all.
    pub(crate) sources: Vec<IpNet>,
    /// The networks of ClusterIPs, if the API server tells them.
    pub(crate) networks: Vec<IpNet>,
}

impl Default for Shop<'_> {
    fn default() -> Self {
        Self {
            endpoints: Vec::new(),
            elsewhere: Vec::new(),
            target_port: 8080,
            sctp: false,
            https: false,
            exposed: false,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            affinity_scope: AffinityScope::Port,
            sources: Vec::new(),
            networks: Vec::new(),
        }
    }
}

pub(crate) fn config() -> Config {
    let pods = "10.244.0.0/16,fd00:10:244::/56".parse().unwrap();
    Config::new("node", DetectLocal::ClusterCidr(pods))
}

impl Shop<'_> {
    pub(crate) fn cluster_ips(&self) -> [IpAddr; 2] {
        ["10.96.0.10".parse().unwrap(), "fd00:10:96::10".parse().unwrap()]
    }

    /// An external and a load balancer address of the same family.
    pub(crate) fn external_ips(&self, like: IpAddr) -> [IpAddr; 2] {
        match like {
            IpAddr::V4(_) => [Ipv4Addr::new(172, 30, 0, 200), Ipv4Addr::new(172, 30, 0, 201)].map(Into::into),
            IpAddr::V6(_) => {
                ["fd00:172:30::200", "fd00:172:30::201"].map(|ip| ip.parse::<Ipv6Addr>().unwrap().into())
            }
        }
    }

    pub(crate) fn changes(&self, node: &Host) -> Vec<Change> {
        let mut object = Node::new("node".into());
        let addresses = [IpAddr::from(node.v4), IpAddr::from(node.v6)];
        object.addresses = addresses.map(|ip| NodeAddress { kind: NodeAddressKind::Internal, ip }).to_vec();
        let networks = ServiceCidr { name: "kubernetes".into(), networks: self.networks.clone() };
        let objects = [Object::Node(object), Object::Service(self.service()), Object::ServiceCidr(networks)];
        let slices = self.cluster_ips().map(|ip| Object::EndpointSlice(self.slice(ip)));
        objects.into_iter().chain(slices).map(Change::Apply).collect()
    }

    fn ports(&self) -> impl Iterator<Item = (&'static str, Protocol, u16)> {
        let always = [("tcp", Protocol::Tcp, 80), ("udp", Protocol::Udp, 80)];
        let sctp = self.sctp.then_some(("sctp", Protocol::Sctp, 80));
        always.into_iter().chain(sctp).chain(self.https.then_some(("https", Protocol::Tcp, 443)))
    }

    fn service(&self) -> Service {
        let mut service = Service::new(ObjectName::new("ns", "shop"));
        service.service_type = ServiceType::LoadBalancer;
        service.cluster_ips = self.cluster_ips().to_vec();
        service.external_traffic_policy = self.external_policy;
        service.session_affinity = self.affinity.map(|timeout| SessionAffinity {
            timeout: timeout.as_secs().try_into().unwrap(),
            scope: self.affinity_scope,
        });
        service.source_ranges.clone_from(&self.sources);
        if self.exposed {
            for ip in self.cluster_ips() {
                let [external, balancer] = self.external_ips(ip);
                service.external_ips.push(external);
                service.ingress.push(Ingress { ip: Some(balancer), ..Ingress::default() });
            }
        }
        let port = |(name, protocol, port): (&str, Protocol, u16)| ServicePort {
            name: name.into(),
            protocol,
            port,
            node_port: self.exposed.then_some(30_000 + port),
        };
        service.ports = self.ports().map(port).collect();
        service
    }

    fn slice(&self, like: IpAddr) -> EndpointSlice {
        let port = |(name, protocol, _): (&str, Protocol, u16)| EndpointPort {
            name: name.into(),
            protocol,
            port: self.target_port,
        };
        let endpoint = |host: &&Host| {
            let mut endpoint = Endpoint::ready(host.address(like));
            let elsewhere = self.elsewhere.iter().any(|other| other.name == host.name);
            endpoint.node = Some(if elsewhere { "another" } else { "node" }.into());
            endpoint
        };
        EndpointSlice {
            name: ObjectName::new("ns", if like.is_ipv4() { "shop-v4" } else { "shop-v6" }),
            service: ObjectName::new("ns", "shop"),
            family: IpFamily::of(like),
            ports: self.ports().map(port).collect(),
            endpoints: self.endpoints.iter().map(endpoint).collect(),
            triggered: None,
        }
    }
}
