//! A cluster on paper: an API server and balancer hosts that keep state and obey the real rules,
//! around the real [`Tier`]. What the provider does with I/O happens here without.

#![allow(clippy::unwrap_used, reason = "a panic is how a test helper reports")]
#![allow(dead_code, reason = "each test file uses its own part")]

pub(crate) mod tls_host;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use cloud_controller::desired::{Classes, Provider};
use cloud_controller::metal::crds::IPAddressPoolSpec;
use cloud_controller::metal::document::Nodes;
use cloud_controller::metal::hosts::{Action, PutAnswer};
use cloud_controller::metal::plan::{ALLOCATED_IPS, Step};
use cloud_controller::metal::pool::Pool;
use cloud_controller::metal::provider::adopt;
use cloud_controller::metal::tier::{Applied, Tier};
use cloud_controller::plan::{Note, Plan};
use metal_lb_api::{Config, Generation, Host, HostState, ListenerState, MemberKey, VipState};
use service_model::{
    Change, Key, Node, NodeAddress, NodeAddressKind, Object, ObjectName, Protocol, Service, ServiceName,
    ServicePort, ServiceType, World,
};

pub(crate) struct Cluster {
    pub(crate) api: World,
    pub(crate) pools: BTreeMap<String, IPAddressPoolSpec>,
    pub(crate) hosts: BTreeMap<String, FakeHost>,
    pub(crate) tier: Tier,
    pub(crate) now: Instant,
    pub(crate) writes: usize,
    /// What was told of each Service at its last plan.
    pub(crate) notes: BTreeMap<ServiceName, Vec<Note>>,
    /// UIDs of Services whose finalizer somebody else took off.
    torn: BTreeSet<String>,
    classes: Classes,
    term: u64,
    next_uid: u32,
}

/// A metal-lb host: parses what it is sent as the real one does, refuses what is older, and
/// programs at once unless it is `slow`.
#[derive(Debug, Default)]
pub(crate) struct FakeHost {
    pub(crate) document: Option<Config>,
    pub(crate) down: bool,
    pub(crate) slow: bool,
    /// It was down since it took its document. Heartbeats tell such a host that its document is
    /// old, and it owns nothing before it has a newer one.
    pub(crate) stale: bool,
}

/// How far a plan is carried out before the controller dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Until {
    End,
    /// After this many batches.
    Batches(usize),
}

pub(crate) fn name(name: &str) -> ServiceName {
    ObjectName::new("ns", name)
}

pub(crate) fn pool(addresses: &str) -> IPAddressPoolSpec {
    IPAddressPoolSpec { addresses: vec![addresses.to_owned()], auto_assign: true, ..Default::default() }
}

/// A metal Service with one TCP port.
pub(crate) fn web(service: &str) -> Service {
    let mut object = Service::new(name(service));
    object.service_type = ServiceType::LoadBalancer;
    object.load_balancer_class = Some(Provider::Metal.class().into());
    object.ports =
        vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: Some(30080) }];
    object
}

fn node(name: &str, ip: IpAddr) -> Node {
    let mut node = Node::new(name.into());
    node.addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, ip }];
    node
}

impl Cluster {
    /// Two hosts, a node, one pool.
    pub(crate) fn new(addresses: &str) -> Self {
        let mut api = World::default();
        api.apply(Change::Apply(Object::Node(node("node-1", "172.30.0.11".parse().unwrap()))));
        let classes = Classes { enabled: [Provider::Metal].into(), default: None };
        let hosts: BTreeMap<String, FakeHost> =
            ["lb-1", "lb-2"].map(|n| (n.to_owned(), FakeHost::default())).into();
        let now = Instant::now();
        let mut cluster = Self {
            tier: Tier::new("lab", MemberKey::new([0; 32]), Vec::new(), 0, now),
            api,
            pools: [("default".to_owned(), pool(addresses))].into(),
            hosts,
            now,
            writes: 0,
            notes: BTreeMap::new(),
            torn: BTreeSet::new(),
            classes,
            term: 0,
            next_uid: 0,
        };
        cluster.restart();
        cluster
    }

    /// The controller dies and another takes over: everything it knew is gone.
    pub(crate) fn restart(&mut self) {
        self.term += 1;
        let host = |(slot, name): (usize, &String)| Host {
            name: name.clone(),
            address: format!("172.30.0.2{slot}:7947").parse().unwrap(),
            slot: u8::try_from(slot).unwrap(),
        };
        let hosts = self.hosts.keys().enumerate().map(host).collect();
        self.tier = Tier::new("lab", MemberKey::new([0; 32]), hosts, self.term, self.now);
        self.tier.set_pools(self.parsed_pools());
        self.talk_to_hosts();
        assert!(self.tier.all_hosts_heard());
        adopt(&mut self.tier, &self.api, &self.classes);
        self.tier.issue();
    }

    /// As kubectl apply: what is not ours to set stays.
    pub(crate) fn apply(&mut self, mut service: Service) {
        match self.api.service(&service.name) {
            Some(before) => {
                service.uid = before.uid.clone();
                service.finalizers = before.finalizers.clone();
                service.ingress = before.ingress.clone();
                service.deleting = before.deleting;
                if let Some(ip) = before.annotation(ALLOCATED_IPS) {
                    service.annotations.insert(ALLOCATED_IPS.into(), ip.into());
                }
            }
            None => {
                self.next_uid += 1;
                service.uid = format!("uid-{}", self.next_uid).into();
            }
        }
        self.api.apply(Change::Apply(Object::Service(service)));
    }

    /// As kubectl delete: the object stays while it has finalizers.
    pub(crate) fn delete(&mut self, service: &ServiceName) {
        if let Some(mut object) = self.api.service(service).cloned() {
            object.deleting = true;
            self.store(object);
        }
    }

    /// As `kubectl patch` of the finalizers by a person in a hurry.
    pub(crate) fn tear_off(&mut self, service: &ServiceName, delete: bool) {
        if let Some(mut object) = self.api.service(service).cloned() {
            self.torn.insert(object.uid.to_string());
            object.finalizers.clear();
            object.deleting |= delete;
            self.store(object);
        }
    }

    pub(crate) fn set_pool(&mut self, name: &str, spec: Option<IPAddressPoolSpec>) {
        match spec {
            Some(spec) => _ = self.pools.insert(name.to_owned(), spec),
            None => _ = self.pools.remove(name),
        }
        self.tier.set_pools(self.parsed_pools());
    }

    /// A node comes with an address, or goes.
    pub(crate) fn set_node(&mut self, name: &str, ip: Option<IpAddr>) {
        self.api.apply(match ip {
            Some(ip) => Change::Apply(Object::Node(node(name, ip))),
            None => Change::Delete(Key::Node(name.into())),
        });
        self.tier.set_nodes(Nodes::of(&self.api));
    }

    pub(crate) fn service(&self, service: &ServiceName) -> &Service {
        self.api.service(service).unwrap()
    }

    /// The address that the status shows.
    pub(crate) fn shown(&self, service: &ServiceName) -> Option<IpAddr> {
        self.api.service(service)?.ingress.first()?.ip
    }

    pub(crate) fn recorded(&self, service: &ServiceName) -> Option<IpAddr> {
        self.api.service(service)?.annotation(ALLOCATED_IPS)?.parse().ok()
    }

    pub(crate) fn plan(&mut self, service: &ServiceName) -> Option<Plan<Step>> {
        let Some(object) = self.api.service(service).cloned() else {
            self.tier.forget(service, self.now);
            return None;
        };
        let verdict = self.classes.judge(&object);
        if verdict.serve == Some(Provider::Metal) {
            return Some(self.tier.plan_serve(&object, self.now));
        }
        if verdict.release.contains(&Provider::Metal) {
            return Some(self.tier.plan_release(&object));
        }
        self.tier.forget(service, self.now);
        None
    }

    /// One reconcile, cut short after `until`.
    pub(crate) fn reconcile(&mut self, service: &ServiceName, until: Until) {
        let Some(plan) = self.plan(service) else { return };
        self.notes.insert(service.clone(), plan.notes.clone());
        for (i, batch) in plan.batches.iter().enumerate() {
            if until == Until::Batches(i) {
                return;
            }
            for step in batch {
                if let Applied::Waiting(_) = self.tier.apply(step, self.now).unwrap() {
                    return;
                }
                self.write(step);
            }
        }
    }

    /// Lets every host do what is next for it, until each has to wait.
    pub(crate) fn talk_to_hosts(&mut self) {
        for name in self.hosts.keys().cloned().collect::<Vec<_>>() {
            for _ in 0..20 {
                let wanted = self.tier.document().generation();
                let host = self.hosts.get_mut(&name).unwrap();
                match self.tier.hosts().host(&name).unwrap().next(wanted, self.now) {
                    Action::Wait(_) => break,
                    Action::Get => {
                        let state = host.state(&name);
                        self.tier.state_answered(&name, state, self.now);
                    }
                    Action::Put(generation) => {
                        let document = self.tier.document().config().to_json();
                        let answer = host.put(document.as_bytes());
                        self.tier.put_answered(&name, generation, answer, self.now);
                    }
                }
                if let Some(theirs) = self.tier.ahead(&name) {
                    self.tier.raise(theirs);
                }
            }
        }
    }

    /// Time goes by, all that is due is done, until nothing changes any more.
    pub(crate) fn settle(&mut self) {
        for _ in 0..12 {
            self.now += Duration::from_secs(3);
            self.talk_to_hosts();
            let mut names = self.api.take_dirty().services;
            names.extend(self.api.services().map(|s| s.name.clone()));
            names.extend(self.tier.take_due());
            for name in names {
                self.reconcile(&name, Until::End);
            }
        }
        self.talk_to_hosts();
    }

    /// What must hold at every moment, whatever happened.
    pub(crate) fn check_safety(&self) {
        let mut owners: BTreeMap<IpAddr, &ServiceName> = BTreeMap::new();
        // An annotation without our finalizer is a leftover of somebody who took that off.
        for service in self.api.services().filter(|s| s.has_finalizer(Provider::Metal.finalizer())) {
            let Some(ip) = self.recorded(&service.name) else { continue };
            if let Some(other) = owners.insert(ip, &service.name) {
                panic!("{ip} is recorded on {other} and on {}", service.name);
            }
            for (host, fake) in self.hosts.iter().filter(|(_, h)| !h.down && !h.stale) {
                for listener in fake.document.iter().flat_map(|d| &d.listeners) {
                    let same = listener.service == service.name.as_str();
                    assert!(
                        listener.vip != ip || same,
                        "{host} serves {ip} for {} while it is recorded on {}",
                        listener.service,
                        service.name
                    );
                }
            }
            if let Some(shown) = self.shown(&service.name) {
                assert_eq!(shown, ip, "the status of {} shows what is not recorded", service.name);
            }
        }
    }

    /// What must hold once everything has settled and every host is up.
    pub(crate) fn check_settled(&mut self) {
        let names: Vec<ServiceName> = self.api.services().map(|s| s.name.clone()).collect();
        let mut served = BTreeSet::new();
        for name in &names {
            let plan = self.plan(name).unwrap_or_default();
            assert!(plan.is_empty(), "{name} is not settled:\n{plan}");
            let service = self.service(name);
            if self.classes.judge(service).serve.is_none() {
                assert!(service.finalizers.is_empty(), "{name} keeps our finalizer");
                let torn = self.torn.contains(&*service.uid);
                assert!(torn || self.recorded(name).is_none(), "{name} keeps our annotation");
            } else if service.has_finalizer(Provider::Metal.finalizer()) {
                assert!(self.recorded(name).is_some(), "{name}");
                assert_eq!(self.shown(name), self.recorded(name), "{name}");
                served.insert(name.to_string());
            }
        }
        for (host, fake) in &self.hosts {
            let document = fake.document.as_ref().unwrap();
            let told: BTreeSet<String> = document.listeners.iter().map(|l| l.service.clone()).collect();
            assert_eq!(told, served, "the listeners of {host}");
            assert_eq!(document.nodes.len(), 1);
        }
        assert!(self.tier.ipam().quarantined().is_empty());
        assert_eq!(self.tier.ipam().holders().count(), served.len());
    }

    fn parsed_pools(&self) -> Vec<Pool> {
        self.pools.iter().map(|(name, spec)| Pool::parse(name, spec)).collect()
    }

    fn store(&mut self, service: Service) {
        let gone = service.deleting && service.finalizers.is_empty();
        let change = match gone {
            true => Change::Delete(Key::Service(service.name.clone())),
            false => Change::Apply(Object::Service(service)),
        };
        self.api.apply(change);
    }

    /// The part of a step that happens in the API server.
    fn write(&mut self, step: &Step) {
        type Change<'a> = Box<dyn Fn(&mut Service) + 'a>;
        let (name, change): (&ServiceName, Change<'_>) = match step {
            Step::Record { service, ip, .. } => (
                service,
                Box::new(|s| {
                    s.annotations.insert(ALLOCATED_IPS.into(), ip.to_string().into());
                    if !s.has_finalizer(Provider::Metal.finalizer()) {
                        s.finalizers.push(Provider::Metal.finalizer().into());
                    }
                }),
            ),
            Step::Publish { service, ingress } => (service, Box::new(|s| s.ingress = vec![ingress.clone()])),
            Step::ClearStatus { service } => (service, Box::new(|s| s.ingress.clear())),
            Step::LetGo { service, .. } => (
                service,
                Box::new(|s| {
                    s.annotations.remove(ALLOCATED_IPS);
                    s.finalizers.retain(|f| &**f != Provider::Metal.finalizer());
                }),
            ),
            _ => return,
        };
        if let Some(mut service) = self.api.service(name).cloned() {
            change(&mut service);
            self.writes += 1;
            self.store(service);
        }
    }
}

impl FakeHost {
    pub(crate) fn put(&mut self, document: &[u8]) -> PutAnswer {
        if self.down {
            return PutAnswer::Failed("connection refused".to_owned());
        }
        match Config::parse(document) {
            Err(error) => PutAnswer::Invalid { path: error.path, message: error.message },
            Ok(config) => match self.document.as_ref().map(|d| d.generation) {
                Some(has) if config.generation < has => {
                    PutAnswer::Older { generation: has, message: "older".to_owned() }
                }
                _ => {
                    (self.document, self.stale) = (Some(config), false);
                    PutAnswer::Accepted
                }
            },
        }
    }

    pub(crate) fn state(&self, name: &str) -> Result<HostState, String> {
        if self.down {
            return Err("connection refused".to_owned());
        }
        let listeners = self.document.iter().flat_map(|d| &d.listeners);
        let vips: BTreeSet<IpAddr> = listeners.clone().map(|l| l.vip).collect();
        let programmed = !self.slow;
        let generation: Option<Generation> =
            self.document.as_ref().map(|d| d.generation).filter(|_| programmed);
        Ok(HostState {
            host: name.to_owned(),
            schemas: vec![1],
            generation,
            owner: self.document.as_ref().map(|d| d.owner.clone()),
            vips: vips.into_iter().map(|vip| VipState { vip, owner: None, why: String::new() }).collect(),
            listeners: listeners
                .map(|l| ListenerState {
                    service: l.service.clone(),
                    vip: l.vip,
                    protocol: l.protocol,
                    port: l.port,
                    programmed,
                    why: "still loading".to_owned(),
                    targets: Vec::new(),
                })
                .collect(),
        })
    }
}
