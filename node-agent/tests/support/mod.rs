//! Worlds to plan, small enough to collide.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries; each uses its own part"
)]

pub mod kernel;
pub mod many;
pub mod running;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use node_agent::config::Config;
use node_agent::local::DetectLocal;
use node_agent::nft::affinity::{AffinityChain, AffinityKey};
use node_agent::nft::desired::DesiredService;
use node_agent::nft::fake::Fake;
use node_agent::nft::layout::{Frontend, Pool, Target};
use node_agent::nft::mirror::Mirror;
use node_agent::nft::plan::{Plan, Planner, plan_node_addresses, plan_structure};
use node_agent::nft::ruleset::Ruleset;
use node_agent::select::Place;
use proptest::prelude::*;
use service_model::{
    AffinityScope, Change, Endpoint, EndpointPort, EndpointSlice, Ingress, IpFamily, Key, Object, ObjectName,
    Protocol, Service, ServiceName, ServicePort, ServiceType, SessionAffinity, TrafficPolicy, World,
};

pub const PLACE: Place<'static> = Place { node: "here", zone: None };

pub fn config() -> Config {
    let detect_local = DetectLocal::ClusterCidr("10.244.0.0/16,fd00:10:244::/56".parse().unwrap());
    let service_networks = ["10.96.0.0/16", "fd00:96::/112"].map(|network| network.parse().unwrap()).into();
    Config { service_networks, ..Config::new("here", detect_local) }
}

pub fn name(number: u8) -> ServiceName {
    ObjectName::new("ns", &format!("svc-{number}"))
}

/// Networks that overlap, and others.
pub const SOURCES: [&str; 4] = ["172.30.0.0/24", "172.30.0.0/30", "10.244.0.0/16", "fd00::/8"];

/// One Service with its endpoints, as numbers that shrink well.
#[derive(Debug, Clone, Default)]
pub struct Spec {
    pub number: u8,
    /// Shared by Services with the same value, so that they contend for frontends.
    pub external: Option<u8>,
    pub node_port: Option<u8>,
    pub local_policy: bool,
    /// Which of [`SOURCES`] its load balancer's address is reached from, a bit for each; none for all.
    pub sources: u8,
    /// Seconds of session affinity.
    pub affinity: Option<u8>,
    /// Affinity is of the Service, and not of each port.
    pub whole: bool,
    /// Those of a second port, if it has one.
    pub https: Option<Vec<(u8, bool)>>,
    pub endpoints: Vec<(u8, bool)>,
}

prop_compose! {
    pub fn spec()(
        number in 0u8..4,
        external in proptest::option::of(0u8..2),
        node_port in proptest::option::of(0u8..2),
        local_policy: bool,
        sources in 0u8..1 << SOURCES.len(),
        affinity in proptest::option::of(1u8..3),
        whole: bool,
        https in proptest::option::of(proptest::collection::vec((0u8..30, any::<bool>()), 0..20)),
        endpoints in proptest::collection::vec((0u8..30, any::<bool>()), 0..20),
    ) -> Spec {
        Spec { number, external, node_port, local_policy, sources, affinity, whole, https, endpoints }
    }
}

impl Spec {
    pub fn source_ranges(&self) -> impl Iterator<Item = IpNet> {
        let chosen = SOURCES.iter().enumerate().filter(|(bit, _)| self.sources & (1 << bit) != 0);
        chosen.map(|(_, network)| network.parse().unwrap())
    }

    pub fn changes(&self) -> Vec<Change> {
        let mut service = Service::new(name(self.number));
        service.service_type = ServiceType::LoadBalancer;
        service.cluster_ips = vec![
            IpAddr::from([10, 96, 0, self.number]),
            format!("fd00:96::{}", self.number).parse().unwrap(),
        ];
        let port = |name: &str, port, node_port| ServicePort {
            name: name.into(),
            protocol: Protocol::Tcp,
            port,
            node_port,
        };
        let https = self.https.iter().map(|_| port("https", 443, None));
        let http = port("http", 80, self.node_port.map(|n| 30_000 + u16::from(n)));
        service.ports = [http].into_iter().chain(https).collect();
        service.ingress = self
            .external
            .map(|n| Ingress { ip: Some(IpAddr::from([192, 0, 2, n])), ..Ingress::default() })
            .into_iter()
            .collect();
        if self.local_policy {
            service.external_traffic_policy = TrafficPolicy::Local;
        }
        service.source_ranges = self.source_ranges().collect();
        service.session_affinity = self.affinity.map(|seconds| SessionAffinity {
            timeout: seconds.into(),
            scope: if self.whole { AffinityScope::Service } else { AffinityScope::Port },
        });
        let slice = |port: &str, target, endpoints: &[(u8, bool)]| EndpointSlice {
            name: ObjectName::new("ns", &format!("{port}-{}", self.number)),
            service: name(self.number),
            family: IpFamily::V4,
            ports: vec![EndpointPort { name: port.into(), protocol: Protocol::Tcp, port: target }],
            endpoints: endpoints.iter().map(|(last, here)| endpoint(*last, *here)).collect(),
            triggered: None,
        };
        let http = slice("http", 8080, &self.endpoints);
        let https = slice("https", 8443, self.https.as_deref().unwrap_or_default());
        let objects = [Object::Service(service), Object::EndpointSlice(http), Object::EndpointSlice(https)];
        objects.map(Change::Apply).into()
    }
}

pub fn endpoint(last: u8, here: bool) -> Endpoint {
    let mut endpoint = Endpoint::ready(IpAddr::from([10, 244, u8::from(here), last]));
    endpoint.node = Some(if here { "here" } else { "there" }.into());
    endpoint
}

/// What happens to a cluster.
#[derive(Debug, Clone)]
pub enum Happening {
    Apply(Spec),
    Delete(u8),
    /// The agent restarts: all but the kernel is forgotten.
    Restart,
}

pub fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![6 => spec().prop_map(Happening::Apply), 2 => (0u8..4).prop_map(Happening::Delete), 1 => Just(Happening::Restart)]
}

/// An agent over the fake, which plans all that is dirty in one commit.
pub struct Agent {
    pub world: World,
    pub planner: Planner,
    pub fake: Fake,
    /// Services that were deleted in this life: they stay dirty until nothing of them is left.
    gone: BTreeSet<ServiceName>,
    lives: u64,
}

impl Agent {
    pub fn new() -> Self {
        Self {
            world: World::default(),
            planner: Planner::default(),
            fake: Fake::default(),
            gone: BTreeSet::new(),
            lives: 0,
        }
    }

    pub fn happen(&mut self, happening: &Happening) {
        match happening {
            Happening::Apply(spec) => spec.changes().into_iter().for_each(|change| self.world.apply(change)),
            Happening::Delete(number) => {
                self.gone.insert(name(*number));
                self.world.apply(Change::Delete(Key::Service(name(*number))));
            }
            Happening::Restart => {
                self.lives += 1;
                self.planner = Planner::new(self.lives);
                self.gone.clear();
                self.world.mark_all_services();
            }
        }
    }

    /// The plan for everything, as at a start or a resync.
    pub fn plan(&mut self) -> Plan {
        self.world.take_dirty();
        let mut mirror = self.fake.observe();
        let structure = plan_structure(&Ruleset::each(&config()), &mirror);
        structure.now.iter().for_each(|step| mirror.follow(step));
        let mut plan = structure;
        let addresses: BTreeSet<IpAddr> = [IpAddr::from([172, 30, 0, 11])].into();
        plan.append(plan_node_addresses(&addresses, &mirror));
        let names: BTreeSet<ServiceName> =
            self.world.services().map(|s| s.name.clone()).chain(self.gone.iter().cloned()).collect();
        let world = &self.world;
        let desired = |name: &ServiceName| {
            world.service(name).map(|s| DesiredService::of(s, world, PLACE)).unwrap_or_default()
        };
        plan.append(self.planner.plan(&names, desired, &mirror));
        plan.append(self.planner.leftovers(&mirror));
        plan
    }
}

/// What keeps clients: the chains but for the numbers in them, and what leads there.
pub fn keepers(mirror: &Mirror) -> (BTreeMap<AffinityKey, (u32, Vec<Target>)>, Leads) {
    let chain = |(key, chain): (&AffinityKey, &AffinityChain)| {
        let targets = chain.endpoints.iter().map(|endpoint| endpoint.target).collect();
        (key.clone(), (chain.timeout, targets))
    };
    (mirror.affinities.chains().iter().map(chain).collect(), mirror.affinities.leads().clone())
}

type Leads = BTreeMap<(Frontend, Pool), AffinityKey>;
