//! The few words that a case is drawn in.
//!
//! Where an endpoint appears twice, the copies agree in all that matters, or one is terminating and
//! the other not: of other contradictions kube-proxy takes either copy, as its map happens to be
//! ordered.

use std::collections::BTreeMap;

use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::features::{Feature, Settings};
use crate::twin::{LOCAL, REMOTE};

#[derive(Debug, Clone)]
pub(crate) struct Sketch {
    pub kind: Kind,
    pub families: Families,
    pub ports: Vec<Port>,
    pub slices: [Slice; SLICES],
    pub endpoints: Endpoints,
    pub policies: Policies,
    pub external_ips: bool,
    pub ingress: Ingress,
    pub source_ranges: Vec<&'static str>,
    pub affinity: Option<Timeout>,
    /// Has the load balancer's address of a Service before it, with other ports.
    pub shares: bool,
    pub label: Label,
    pub odd: bool,
    pub legacy: bool,
    pub before: Option<Before>,
}

/// Slices a family, of which some stay empty.
pub(crate) const SLICES: usize = 3;

/// By number: see `twin::endpoint`.
pub(crate) type Endpoints = BTreeMap<u8, Endpoint>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    ClusterIp,
    /// `clusterIP: None`
    Headless,
    NodePort,
    LoadBalancer,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Families {
    V4,
    V6,
    V4V6,
    V6V4,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Port {
    pub udp: bool,
    /// Which of the endpoints' ports.
    pub target: usize,
    /// Has the number of the port before it, if that has another protocol.
    pub same_number: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    /// Added to every target: slices may name different ports.
    pub shift: usize,
    /// The last of the Service's ports is not in it.
    pub lacks_port: bool,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Endpoint {
    pub state: Condition,
    /// A bit for each of the slices it is in.
    pub slices: u8,
    pub node: NodeName,
    pub hints: Hints,
    /// An older pod of the same address is in a slice too.
    pub ghost: Option<Ghost>,
}

/// A pod that is terminating, whose address another has already.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ghost {
    pub slice: usize,
    pub node: NodeName,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    Ready,
    /// No condition is given.
    Unsaid,
    /// `ready: true` alone, beside `terminating: true`: publishNotReadyAddresses.
    ReadyAnyway,
    NotReady,
    /// Serves, but is not ready, and does not terminate.
    ServesUnready,
    Terminating,
    /// Terminates, and does not serve any more.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NodeName {
    Own,
    Other,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hints {
    None,
    /// The zone it is in.
    Zone,
    /// The zone it is in, and its node.
    Node,
    /// Zones that are not this node's.
    ElsewhereZone,
    BothZones,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Policies {
    pub external_local: bool,
    pub internal_local: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ingress {
    Ip,
    Proxy,
    /// An address of each mode, and a name.
    Mixed,
    HostName,
    Pending,
}

/// Seconds for which a client stays; `None` leaves it to the API server. Nobody waits so long here.
pub(crate) type Timeout = Option<i32>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Label {
    None,
    OtherProxy,
    OtherProxyOnSlices,
    Headless,
    HeadlessOnSlices,
}

/// What was different a moment ago.
#[derive(Debug, Clone)]
pub(crate) struct Before {
    pub endpoints: Endpoints,
    pub policies: Policies,
    /// The last port was not there yet.
    pub lacks_port: bool,
}

const RANGES: &[&str] = &[
    "172.30.0.100/32",
    "172.30.0.0/24",
    "172.30.0.11/32",
    "10.244.1.0/24",
    "192.0.2.0/24",
    "fd00:172:30::/64",
    "fd00:10:244:1::/64",
    "2001:db8::/32",
];

pub(crate) fn sketches(settings: &Settings) -> impl Strategy<Value = Sketch> + use<> {
    let shape = (kinds(settings), families(settings), vec(ports(settings), 1..=3), slices(settings));
    let rest = (
        endpoints(settings),
        policies(settings),
        settings.maybe(Feature::ExternalIps, prop::bool::weighted(0.3), false),
        settings.maybe(Feature::IpModes, ingress(), Ingress::Ip),
        settings.maybe(Feature::SourceRanges, subsequence(RANGES, 0..=3), Vec::new()),
        settings.maybe(Feature::Affinity, option::weighted(0.4, timeouts()), None),
        settings.maybe(Feature::Labels, labels(), Label::None),
        (
            settings.maybe(Feature::Oddities, prop::bool::weighted(0.2), false),
            settings.maybe(Feature::LegacyAddresses, prop::bool::weighted(0.1), false),
            settings.maybe(Feature::SharedAddresses, prop::bool::weighted(0.3), false),
        ),
        settings.maybe(Feature::Changes, option::weighted(0.4, before(settings)), None),
    );
    (shape, rest).prop_map(|((kind, families, ports, slices), rest)| {
        let (endpoints, policies, external_ips, ingress, source_ranges, affinity, label, odds, before) = rest;
        let (odd, legacy, shares) = odds;
        Sketch {
            kind,
            families,
            ports,
            slices,
            endpoints,
            policies,
            external_ips,
            ingress,
            source_ranges,
            affinity,
            shares,
            label,
            odd,
            legacy,
            before,
        }
    })
}

fn kinds(settings: &Settings) -> impl Strategy<Value = Kind> + use<> {
    let mut kinds = vec![Kind::ClusterIp];
    for (kind, feature) in [
        (Kind::NodePort, Feature::NodePorts),
        (Kind::LoadBalancer, Feature::LoadBalancers),
        (Kind::LoadBalancer, Feature::LoadBalancers),
    ] {
        kinds.extend(settings.has(feature).then_some(kind));
    }
    prop_oneof![19 => select(kinds), 1 => settings.maybe(Feature::Oddities, Just(Kind::Headless), Kind::ClusterIp)]
}

fn families(settings: &Settings) -> BoxedStrategy<Families> {
    let all = vec![Families::V4, Families::V6, Families::V4V6, Families::V6V4];
    settings.maybe(Feature::Ipv6, select(all), Families::V4)
}

fn ports(settings: &Settings) -> impl Strategy<Value = Port> + use<> {
    let udp = settings.maybe(Feature::Udp, any::<bool>(), false);
    (udp, 0..3_usize, any::<bool>()).prop_map(|(udp, target, same_number)| Port { udp, target, same_number })
}

fn slices(settings: &Settings) -> BoxedStrategy<[Slice; SLICES]> {
    let plain = Slice { shift: 0, lacks_port: false };
    let slice = (prop_oneof![3 => Just(0), 1 => 0..3_usize], prop::bool::weighted(0.1))
        .prop_map(|(shift, lacks_port)| Slice { shift, lacks_port });
    settings.maybe(Feature::ManySlices, [slice.clone(), slice.clone(), slice], [plain; SLICES])
}

/// Mostly few: a verdict of few endpoints is known after few tries.
fn endpoints(settings: &Settings) -> BoxedStrategy<Endpoints> {
    let number = prop_oneof![2 => 0..LOCAL, 2 => LOCAL..LOCAL + REMOTE];
    let slices = settings.maybe(Feature::ManySlices, prop_oneof![Just(1), Just(2), 1..8_u8], 1);
    let nodes = prop_oneof![8 => Just(NodeName::Own), 1 => Just(NodeName::Other), 1 => Just(NodeName::None)];
    let ghost = (0..SLICES, nodes.clone()).prop_map(|(slice, node)| Ghost { slice, node });
    let node = settings.maybe(Feature::NodeNames, nodes, NodeName::Own);
    let ghost = settings.maybe(Feature::Ghosts, option::weighted(0.2, ghost), None);
    let traits = (conditions(settings), slices, node, hints(settings), ghost)
        .prop_map(|(state, slices, node, hints, ghost)| Endpoint { state, slices, node, hints, ghost })
        .boxed();
    let free = btree_map(number.clone(), traits.clone(), 0..=4);
    // Hints count only where all endpoints have them.
    let hinted = btree_map(number, traits, 1..=4).prop_map(|mut endpoints| {
        let hints = endpoints.values().next().map_or(Hints::None, |first| first.hints);
        endpoints.values_mut().for_each(|endpoint| endpoint.hints = hints);
        endpoints
    });
    prop_oneof![free, hinted].boxed()
}

fn conditions(settings: &Settings) -> impl Strategy<Value = Condition> + use<> {
    let mut conditions = vec![Condition::Ready; 3];
    if settings.has(Feature::Readiness) {
        conditions.extend([Condition::Unsaid, Condition::NotReady, Condition::ServesUnready]);
    }
    if settings.has(Feature::Terminating) {
        conditions.extend([
            Condition::Terminating,
            Condition::Terminating,
            Condition::Gone,
            Condition::ReadyAnyway,
        ]);
    }
    select(conditions)
}

fn hints(settings: &Settings) -> BoxedStrategy<Hints> {
    let all = vec![Hints::None, Hints::Zone, Hints::Node, Hints::ElsewhereZone, Hints::BothZones];
    settings.maybe(Feature::Topology, prop_oneof![Just(Hints::None), select(all)], Hints::None)
}

fn policies(settings: &Settings) -> impl Strategy<Value = Policies> + use<> {
    (
        settings.maybe(Feature::ExternalLocal, any::<bool>(), false),
        settings.maybe(Feature::InternalLocal, prop::bool::weighted(0.3), false),
    )
        .prop_map(|(external_local, internal_local)| Policies { external_local, internal_local })
}

fn ingress() -> impl Strategy<Value = Ingress> {
    prop_oneof![
        6 => Just(Ingress::Ip),
        2 => Just(Ingress::Proxy),
        2 => Just(Ingress::Mixed),
        1 => Just(Ingress::HostName),
        1 => Just(Ingress::Pending),
    ]
}

/// The shortest is longer than a batch takes, the longest is a day.
fn timeouts() -> impl Strategy<Value = Timeout> {
    prop_oneof![2 => Just(None), 1 => select(vec![Some(900), Some(7777), Some(86400)])]
}

fn labels() -> impl Strategy<Value = Label> {
    let labels = vec![Label::OtherProxy, Label::OtherProxyOnSlices, Label::Headless, Label::HeadlessOnSlices];
    prop_oneof![8 => Just(Label::None), 2 => select(labels)]
}

fn before(settings: &Settings) -> impl Strategy<Value = Before> + use<> {
    (endpoints(settings), policies(settings), any::<bool>())
        .prop_map(|(endpoints, policies, lacks_port)| Before { endpoints, policies, lacks_port })
}

impl Settings {
    /// What is drawn with the feature, and what there is without.
    fn maybe<T: Clone + std::fmt::Debug + 'static>(
        &self,
        feature: Feature,
        with: impl Strategy<Value = T> + 'static,
        without: T,
    ) -> BoxedStrategy<T> {
        if self.has(feature) { with.boxed() } else { Just(without).boxed() }
    }
}
