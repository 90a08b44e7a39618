//! What a Service should look like in the kernel, on this node. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use service_model::{
    AffinityScope, IpFamily, Node, Protocol, Service, ServicePort, ServiceType, SessionAffinity,
    TrafficPolicy, World,
};

use super::affinity::{AffinityKey, DesiredAffinity};
use super::claims::Title;
use super::groups::Groups;
use super::layout::{FAMILIES, Frontend, Group, MAX_TARGETS, Pool, SizeClass, Target};
use super::source_ranges::SourceNetwork;
use super::step::Hairpin;
use crate::config::Families;
use crate::select::{Place, Selection, select};

/// All that one Service asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredService {
    pub frontends: BTreeMap<Frontend, DesiredFrontend>,
    pub hairpins: BTreeSet<Hairpin>,
    pub cluster_ips: BTreeSet<IpAddr>,
    /// None of them is without a target.
    pub affinities: BTreeMap<AffinityKey, DesiredAffinity>,
    /// Whether those keep clients together.
    pub affinity_scope: AffinityScope,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DesiredFrontend {
    /// `namespace/name:port`, for people.
    pub label: Box<str>,
    pub groups: Groups,
    /// Sorted.
    pub cluster: Vec<Target>,
    pub local: Vec<Target>,
    /// The networks from which it is reached; none for everywhere.
    pub sources: BTreeSet<SourceNetwork>,
    /// What decides if another Service wants it too.
    pub title: Title,
    /// The chains that it asks before it spreads over a pool.
    pub affinities: Vec<(Pool, AffinityKey)>,
}

/// Who reaches a frontend, which decides what its traffic policy means.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    Internal,
    External,
}

impl DesiredService {
    /// Nothing, for a Service that has nothing to serve here or does not exist.
    pub fn of(service: &Service, world: &World, place: Place<'_>) -> Self {
        let mut desired = Self::default();
        if !is_served(service) {
            return desired;
        }
        if !service.ports.is_empty() {
            desired.cluster_ips = service.cluster_ips.iter().copied().collect();
        }
        desired.affinity_scope = service.session_affinity.map(|a| a.scope).unwrap_or_default();
        for port in &service.ports {
            for family in FAMILIES {
                desired.add_port(service, port, family, world, place);
            }
        }
        desired
    }

    /// Without what is of a family that is not served.
    #[must_use]
    pub fn within(mut self, families: Families) -> Self {
        if families != Families::default() {
            self.frontends.retain(|frontend, _| families.contains(frontend.family()));
            self.cluster_ips.retain(|ip| families.contains(IpFamily::of(*ip)));
            self.hairpins.retain(|hairpin| families.contains(IpFamily::of(hairpin.target.ip)));
            self.affinities.retain(|key, _| families.contains(key.family));
        }
        self
    }

    fn add_port(
        &mut self,
        service: &Service,
        port: &ServicePort,
        family: IpFamily,
        world: &World,
        place: Place<'_>,
    ) {
        let mut frontends = frontends(service, port, family).peekable();
        if frontends.peek().is_none() {
            return;
        }
        let selection = select(world.slices_of(&service.name), port, family, place);
        let label = label(service, port);
        let allowed = allowed_sources(service, family, world.node(place.node));
        for (frontend, reach, title) in frontends {
            if self.frontends.get(&frontend).is_some_and(|before| before.title < title) {
                continue;
            }
            let policy = match reach {
                Reach::Internal => service.internal_traffic_policy,
                Reach::External => service.external_traffic_policy,
            };
            let mut desired = desired(frontend, reach, policy, &selection, label.clone());
            desired.title = title;
            if let Some(SessionAffinity { timeout, .. }) = service.session_affinity {
                let whole = if (reach, policy) == (Reach::Internal, TrafficPolicy::Local) {
                    Pool::Local
                } else {
                    Pool::Cluster
                };
                let key = AffinityKey::new(family, whole, &service.name, port);
                self.add_affinity(&mut desired, &key, port.protocol, timeout);
            }
            if let Frontend::Vip { ip, .. } = frontend
                && !allowed.is_empty()
                && service.vip_mode_ips().any(|vip| vip == ip)
            {
                desired.groups.insert(Group::Firewalled);
                desired.sources.clone_from(&allowed);
            }
            self.frontends.insert(frontend, desired);
        }
        let hairpin = |target: &Target| Hairpin { target: *target, protocol: port.protocol };
        self.hairpins.extend(selection.local.iter().map(hairpin));
    }

    /// `key`: the chain for all that the frontend may use.
    fn add_affinity(
        &mut self,
        frontend: &mut DesiredFrontend,
        key: &AffinityKey,
        protocol: Protocol,
        timeout: u32,
    ) {
        // Zero would be for ever.
        let timeout = timeout.max(1);
        for (pool, key) in [(Pool::Cluster, key.clone()), (Pool::Local, key.of(Pool::Local))] {
            let targets = frontend.pool(pool);
            if !targets.is_empty() {
                let targets = targets.iter().take(MAX_TARGETS).copied().collect();
                self.affinities.insert(key.clone(), DesiredAffinity { protocol, timeout, targets });
                frontend.affinities.push((pool, key));
            }
        }
    }
}

/// Whether a Service has anything to serve; a headless one has not.
pub fn is_served(service: &Service) -> bool {
    service.service_type != ServiceType::ExternalName && !service.cluster_ips.is_empty()
}

/// Where a Service's port answers, in a family.
pub fn frontends_of(
    service: &Service,
    port: &ServicePort,
    family: IpFamily,
) -> impl Iterator<Item = Frontend> {
    let served = is_served(service);
    frontends(service, port, family).map(|(frontend, ..)| frontend).filter(move |_| served)
}

/// All that a Service asks for, each with its best title.
pub fn titles_of(service: &Service) -> BTreeMap<Frontend, Title> {
    let mut titles = BTreeMap::new();
    let ports = service.ports.iter().filter(|_| is_served(service));
    for (frontend, _, title) in
        ports.flat_map(|port| FAMILIES.map(|family| frontends(service, port, family))).flatten()
    {
        let best = titles.entry(frontend).or_insert(title);
        *best = title.min(*best);
    }
    titles
}

/// None of a family in which the Service has no ClusterIP, whatever other addresses it has: as for
/// kube-proxy, it does not exist there (`serviceToServiceMap`, pkg/proxy/servicechangetracker.go).
fn frontends(
    service: &Service,
    port: &ServicePort,
    family: IpFamily,
) -> impl Iterator<Item = (Frontend, Reach, Title)> {
    let vip = move |ip| Frontend::Vip { ip, protocol: port.protocol, port: port.port };
    let of_family = move |ip: &std::net::IpAddr| IpFamily::of(*ip) == family;
    let internal = service.cluster_ips.iter().map(|ip| (*ip, Reach::Internal, Title::Allocated));
    let balanced = service.vip_mode_ips().map(|ip| (ip, Reach::External, Title::LoadBalancer));
    let external = service.external_ips.iter().map(|ip| (*ip, Reach::External, Title::ExternalIp));
    let vips = internal.chain(balanced).chain(external);
    let vips =
        vips.filter(move |(ip, ..)| of_family(ip)).map(move |(ip, reach, title)| (vip(ip), reach, title));
    let node_port = port.node_port.map(move |number| {
        (
            Frontend::NodePort { family, protocol: port.protocol, port: number },
            Reach::External,
            Title::Allocated,
        )
    });
    let has_family = service.cluster_ips.iter().any(of_family);
    vips.chain(node_port).filter(move |_| has_family)
}

/// Of those that the Service names for the family. The node's own connections to an address that is
/// also one of its own may carry it as their source, so it counts as the node (kube-proxy's
/// `allowFromNode`).
fn allowed_sources(service: &Service, family: IpFamily, node: Option<&Node>) -> BTreeSet<SourceNetwork> {
    let of_family = |network: &&IpNet| IpFamily::of(network.addr()) == family;
    let mut networks: Vec<IpNet> = service.source_ranges.iter().filter(of_family).copied().collect();
    if networks.iter().any(|network| network.prefix_len() == 0) {
        return BTreeSet::new();
    }
    let mut node_ips = node.into_iter().flat_map(Node::primary_ips);
    if node_ips.any(|ip| networks.iter().any(|network| network.contains(&ip))) {
        let own = service.vip_mode_ips().filter(|ip| IpFamily::of(*ip) == family);
        networks.extend(own.map(IpNet::from));
    }
    IpNet::aggregate(&networks).into_iter().flat_map(SourceNetwork::within).collect()
}

fn desired(
    frontend: Frontend,
    reach: Reach,
    policy: TrafficPolicy,
    selection: &Selection,
    label: Box<str>,
) -> DesiredFrontend {
    let mut groups: Groups = [Group::Served].into_iter().collect();
    let (cluster, local) = match (reach, policy) {
        (Reach::Internal, TrafficPolicy::Cluster) => (selection.cluster.clone(), Vec::new()),
        // Nothing but this node's endpoints is ever used, so they are the whole pool.
        (Reach::Internal, TrafficPolicy::Local) => (selection.local.clone(), Vec::new()),
        (Reach::External, TrafficPolicy::Cluster) => {
            if matches!(frontend, Frontend::Vip { .. }) {
                groups.insert(Group::External);
            }
            (selection.cluster.clone(), Vec::new())
        }
        (Reach::External, TrafficPolicy::Local) => {
            groups.insert(Group::ExternalLocal);
            (selection.cluster.clone(), selection.local.clone())
        }
    };
    let outside = if groups.contains(Group::ExternalLocal) { &local } else { &cluster };
    if !selection.any && selection.local.is_empty() {
        groups.insert(Group::Reject);
    } else if outside.is_empty() {
        groups.insert(Group::Drop);
    }
    for (pool, targets) in [(Pool::Cluster, &cluster), (Pool::Local, &local)] {
        if let Some(class) = SizeClass::of(targets.len()) {
            groups.insert(Group::Count(pool, class));
        }
    }
    let title = Title::Allocated;
    DesiredFrontend { label, groups, cluster, local, sources: BTreeSet::new(), title, affinities: Vec::new() }
}

/// `nft` refuses longer comments on input, and so would lose them on a restore.
const LONGEST_LABEL: usize = 128;

/// The longest are cut, here and not on the way to the kernel: what is read back must be equal.
fn label(service: &Service, port: &ServicePort) -> Box<str> {
    let mut label = match &*port.name {
        "" => service.name.as_str().to_owned(),
        name => format!("{}:{name}", service.name),
    };
    label.truncate(label.floor_char_boundary(LONGEST_LABEL));
    label.into()
}

impl DesiredFrontend {
    pub fn pool(&self, pool: Pool) -> &[Target] {
        match pool {
            Pool::Cluster => &self.cluster,
            Pool::Local => &self.local,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::mirror::Mirror;
    use crate::nft::plan::Planner;
    use crate::nft::step::{Element, Step};
    use service_model::{Change, Ingress, Object, ObjectName};

    #[test]
    fn nothing_is_served_in_a_family_without_a_cluster_ip() {
        let mut service = Service::new(ObjectName::new("ns", "web"));
        service.ports = vec![ServicePort {
            name: "http".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(30_080),
        }];
        service.cluster_ips = vec!["10.96.0.1".parse().unwrap()];
        service.external_ips = ["192.0.2.1", "2001:db8::1"].map(|ip| ip.parse().unwrap()).into();
        let ingress = Ingress { ip: Some("2001:db8::2".parse().unwrap()), ..Ingress::default() };
        service.ingress = vec![ingress];
        let place = Place { node: "here", zone: None };
        let desired = DesiredService::of(&service, &World::default(), place);
        let frontends: Vec<String> = desired.frontends.keys().map(ToString::to_string).collect();
        assert_eq!(frontends, ["10.96.0.1:80/TCP", "192.0.2.1:80/TCP", "NodePort 30080/TCP (IPv4)"]);
    }

    /// Through the planner: what a Service asks for, who has the better title, and what is committed.
    #[test]
    fn an_external_ip_takes_no_cluster_ip() {
        let service = |name: &str, cluster_ip: &str, external_ip: &str| {
            let mut service = Service::new(ObjectName::new("ns", name));
            service.ports =
                vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port: None }];
            service.cluster_ips = vec![cluster_ip.parse().unwrap()];
            service.external_ips = vec![external_ip.parse().unwrap()];
            service
        };
        // The first names the address of the second, the second its own.
        let services = [service("a", "10.96.0.1", "10.96.0.2"), service("z", "10.96.0.2", "10.96.0.2")];
        let names = services.iter().map(|service| service.name.clone()).collect();
        let mut world = World::default();
        services.into_iter().for_each(|service| world.apply(Change::Apply(Object::Service(service))));
        let of = |name: &ObjectName| {
            DesiredService::of(world.service(name).unwrap(), &world, Place { node: "here", zone: None })
        };
        let plan = Planner::default().plan(&names, of, &Mirror::default());
        let served: BTreeSet<String> = plan.now.iter().filter_map(label_of).collect();
        let expected = ["10.96.0.1:80/TCP ns/a:http", "10.96.0.2:80/TCP ns/z:http"];
        assert_eq!(served, expected.map(str::to_owned).into());
        let z = of(&ObjectName::new("ns", "z"));
        let groups = z.frontends.values().map(|frontend| frontend.groups.contains(Group::External));
        assert_eq!(groups.collect::<Vec<_>>(), [false], "its own address stays a ClusterIP");
    }

    fn label_of(step: &Step) -> Option<String> {
        match step {
            Step::Add(Element::Served { frontend, label }) => Some(format!("{frontend} {label}")),
            _ => None,
        }
    }
}
