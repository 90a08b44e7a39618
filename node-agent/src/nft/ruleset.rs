//! The chains of our table, as data. They depend on the configuration alone, never on Services.
//!
//! ```text
//! filter prerouting, output -110:      new connections to firewall-vips ▶ source-ranges ─ from none of them ▶ drop
//! nat   prerouting -100, output -100:  service-vips ──▶ services ─┬─ ext-local-vips ▶ ext-local ─┬─ pod, node ▶ spread
//!                                                                ├─ external-vips  ▶ external   └─ other     ▶ local-spread
//!                                                                └─ ClusterIPs ────▶ spread ──▶ n-K ▶ lb-K ▶ dnat
//!                                      node address, service-nodeports ──▶ nodeports, alike
//! nat   postrouting 100:               marked ▶ masquerade; hairpin ▶ masquerade
//! filter input, forward, output 0:     new connections to reject-vips ▶ reject, to drop-vips ▶ drop;
//!                                      to other ports of cluster-ips ▶ reject;
//!                                      forward, output: to the rest of the Service networks ▶ drop
//! ```
//!
//! Each reason to reject or drop is a chain with a counter ([`Denial`]).
//!
//! Hooks and priorities are kube-proxy's (README of its nftables mode): translation at dstnat and
//! srcnat, verdicts at filter, so that CNIs and NetworkPolicies see the same packets as before.

use std::fmt;

use ipnet::IpNet;
use service_model::{IpFamily, Protocol};

use super::denial::{Denial, UNSERVED_ON_LOOPBACK};
use super::layout::{FAMILIES, Group, MasqueradeMark, Pool, Shape, SizeClass};
use super::source_ranges::PrefixLength;
use crate::config::Config;
use crate::local::{Interfaces, Pods};

/// The rules of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ruleset {
    pub family: IpFamily,
    /// Each before those that it leads to.
    pub chains: Vec<Chain>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    pub name: ChainName,
    pub rules: Vec<Rule>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChainName {
    FirewallPrerouting,
    FirewallOutput,
    NatPrerouting,
    NatOutput,
    NatPostrouting,
    FilterInput,
    FilterForward,
    FilterOutput,
    /// Who reaches a frontend that is reached from some networks only.
    SourceRanges,
    /// All traffic to frontends of the shape.
    Services(Shape),
    External(Shape),
    ExternalLocal(Shape),
    /// Picks the chain for the number of endpoints.
    Spread(Shape, Pool),
    /// Picks one of so many endpoints.
    Balance(Shape, Pool, SizeClass),
    /// Counts and ends what is not let through.
    Denied(Denial),
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    pub point: HookPoint,
    pub nat: bool,
    pub priority: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// All matches must hold for the action to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The packet starts a connection.
    New,
    /// What the packet is addressed to is in the group.
    To(Shape, Group),
    /// The destination is in `cluster-ips`.
    ToClusterIp,
    ToNetwork(IpNet),
    /// The destination is in `nodeport-ips`.
    ToNodeAddress,
    /// The destination is an address of this host, other than loopback.
    ToThisHost,
    ToLoopback,
    Over(Protocol),
    From(IpNet),
    NotFrom(IpNet),
    /// It came in by one of them.
    FromInterface(Interfaces),
    NotFromInterface(Interfaces),
    /// The source is in one of the networks of that length from which the frontend is reached.
    FromItsRanges(PrefixLength),
    /// The source is an address of this host.
    FromThisHost,
    Marked(MasqueradeMark),
    /// The connection came back to its own source.
    Hairpin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Goto(ChainName),
    /// Nothing more is asked of this base chain.
    Accept,
    /// Ask for masquerading, and go on.
    Mark(MasqueradeMark),
    /// Count the packet, and go on.
    Count,
    /// Draw an index below `modulus`; if it is taken, go to its endpoint.
    Dnat {
        shape: Shape,
        pool: Pool,
        modulus: u32,
    },
    /// Where the frontend has session affinity, go to the endpoint that keeps the client; to any of
    /// them, which keeps it from now on, if none does. Else go on.
    Keep {
        shape: Shape,
        pool: Pool,
    },
    Masquerade,
    /// Clear the mark and masquerade.
    UnmarkAndMasquerade(MasqueradeMark),
    /// A reset, of TCP. An ICMP error for it would be lost now and then: a kernel sends few of them a
    /// second, and a client's one drops what arrives while its `connect` is still under way.
    Reset,
    /// Port unreachable.
    Reject,
    Drop,
}

/// How often a free index is drawn again, before an index that is always taken is drawn. At worst
/// a third of the indexes is free: one connection in 729 takes the last resort.
const DRAWS: usize = 6;

impl Ruleset {
    pub fn new(family: IpFamily, config: &Config) -> Self {
        let mut chains = vec![
            Chain::new(ChainName::FirewallPrerouting, firewall()),
            Chain::new(ChainName::FirewallOutput, firewall()),
            Chain::new(ChainName::SourceRanges, source_ranges(family)),
            Chain::new(ChainName::NatPrerouting, dispatch(family, config)),
            Chain::new(ChainName::NatOutput, dispatch(family, config)),
            Chain::new(ChainName::NatPostrouting, postrouting(config.masquerade_mark)),
            Chain::new(ChainName::FilterInput, input(family, config)),
            Chain::new(ChainName::FilterForward, elsewhere(family, config)),
            Chain::new(ChainName::FilterOutput, elsewhere(family, config)),
        ];
        for shape in [Shape::Vip, Shape::NodePort] {
            chains.push(Chain::new(ChainName::Services(shape), services(shape, family, config)));
            if shape == Shape::Vip {
                chains.push(Chain::new(ChainName::External(shape), external(shape, config)));
            }
            chains.push(Chain::new(ChainName::ExternalLocal(shape), external_local(shape, family, config)));
            for pool in [Pool::Cluster, Pool::Local] {
                chains.push(Chain::new(ChainName::Spread(shape, pool), spread(shape, pool)));
                chains.extend(SizeClass::all().map(|class| {
                    Chain::new(ChainName::Balance(shape, pool, class), balance(shape, pool, class))
                }));
            }
        }
        let on_loopback = UNSERVED_ON_LOOPBACK
            .into_iter()
            .filter(|_| config.answers_on_loopback(family))
            .map(Denial::OnLoopback);
        for denial in Denial::ALWAYS.into_iter().chain(on_loopback) {
            chains.push(Chain::new(ChainName::Denied(denial), denial.rules()));
        }
        Self { family, chains }
    }

    /// One for each family that is served.
    pub fn each(config: &Config) -> Vec<Self> {
        let served = FAMILIES.into_iter().filter(|family| config.families.contains(*family));
        served.map(|family| Self::new(family, config)).collect()
    }

    pub fn chain(&self, name: ChainName) -> Option<&Chain> {
        self.chains.iter().find(|chain| chain.name == name)
    }
}

/// Before the translation: a NodePort that leads to the same endpoints is not concerned.
fn firewall() -> Vec<Rule> {
    let firewalled = Match::To(Shape::Vip, Group::Firewalled);
    let action = Action::Goto(ChainName::SourceRanges);
    vec![Rule { matches: vec![Match::New, firewalled], action }]
}

fn source_ranges(family: IpFamily) -> Vec<Rule> {
    let allowed = |length| Rule { matches: vec![Match::FromItsRanges(length)], action: Action::Accept };
    let mut rules = twice(PrefixLength::all(family).map(allowed));
    rules.push(Rule::denying(Vec::new(), Denial::OutsideSourceRanges));
    rules
}

/// A batch is atomic per lookup, not per packet: what moves from one set to another is in neither for a packet that asks
/// the one after and the other before. Whoever finds nothing asks once more, when both are as they are after the batch.
fn twice(rules: impl Iterator<Item = Rule>) -> Vec<Rule> {
    let rules: Vec<Rule> = rules.collect();
    [&*rules, &*rules].concat()
}

fn dispatch(family: IpFamily, config: &Config) -> Vec<Rule> {
    [Shape::Vip, Shape::NodePort]
        .into_iter()
        .map(|shape| Rule {
            matches: to_served(shape, Group::Served, family, config),
            action: Action::Goto(ChainName::Services(shape)),
        })
        .collect()
}

/// The packet is addressed to the group, and for NodePorts to an address that answers them.
fn to_served(shape: Shape, group: Group, family: IpFamily, config: &Config) -> Vec<Match> {
    let to = Match::To(shape, group);
    match shape {
        Shape::Vip => vec![to],
        Shape::NodePort if config.answers_everywhere(family) => vec![Match::ToThisHost, to],
        Shape::NodePort => vec![Match::ToNodeAddress, to],
    }
}

fn services(shape: Shape, family: IpFamily, config: &Config) -> Vec<Rule> {
    let mut rules = vec![Rule {
        matches: vec![Match::To(shape, Group::ExternalLocal)],
        action: Action::Goto(ChainName::ExternalLocal(shape)),
    }];
    match shape {
        Shape::Vip => {
            rules.push(Rule {
                matches: vec![Match::To(shape, Group::External)],
                action: Action::Goto(ChainName::External(shape)),
            });
            if config.masquerade_all {
                rules.push(Rule::always(Action::Mark(config.masquerade_mark)));
            } else if let Some(pods) = config.pods(family) {
                rules.push(Rule {
                    matches: vec![Match::not_from_pods(pods)],
                    action: Action::Mark(config.masquerade_mark),
                });
            }
        }
        Shape::NodePort => rules.push(Rule::always(Action::Mark(config.masquerade_mark))),
    }
    rules.push(Rule::always(Action::Goto(ChainName::Spread(shape, Pool::Cluster))));
    rules
}

fn external(shape: Shape, config: &Config) -> Vec<Rule> {
    vec![
        Rule::always(Action::Mark(config.masquerade_mark)),
        Rule::always(Action::Goto(ChainName::Spread(shape, Pool::Cluster))),
    ]
}

/// Pods and the node itself reach every endpoint: for them the load balancer was never involved,
/// so there is no client address to keep (kube-proxy's short circuit).
fn external_local(shape: Shape, family: IpFamily, config: &Config) -> Vec<Rule> {
    let cluster = Action::Goto(ChainName::Spread(shape, Pool::Cluster));
    let mut rules = Vec::new();
    if let Some(pods) = config.pods(family) {
        rules.push(Rule { matches: vec![Match::from_pods(pods)], action: cluster });
    }
    rules.push(Rule { matches: vec![Match::FromThisHost], action: Action::Mark(config.masquerade_mark) });
    rules.push(Rule { matches: vec![Match::FromThisHost], action: cluster });
    rules.push(Rule::always(Action::Goto(ChainName::Spread(shape, Pool::Local))));
    rules
}

fn spread(shape: Shape, pool: Pool) -> Vec<Rule> {
    let classes = SizeClass::all().map(|class| Rule {
        matches: vec![Match::To(shape, Group::Count(pool, class))],
        action: Action::Goto(ChainName::Balance(shape, pool, class)),
    });
    let mut rules = twice(classes);
    rules.insert(0, Rule::always(Action::Keep { shape, pool }));
    rules
}

/// A batch is atomic per lookup, not per packet: a packet that is already here may find its index
/// gone. Index 0 is the last to go; after it nothing may fall through untranslated.
fn balance(shape: Shape, pool: Pool, class: SizeClass) -> Vec<Rule> {
    let dnat = |modulus| Rule::always(Action::Dnat { shape, pool, modulus });
    let draws = if class.least() == class.slots() { 1 } else { DRAWS };
    let mut rules = vec![dnat(class.slots()); draws];
    for modulus in [class.least(), 1] {
        if rules.last() != Some(&dnat(modulus)) {
            rules.push(dnat(modulus));
        }
    }
    rules.push(Rule::always(Action::Drop));
    rules
}

fn postrouting(mark: MasqueradeMark) -> Vec<Rule> {
    vec![
        Rule { matches: vec![Match::Marked(mark)], action: Action::UnmarkAndMasquerade(mark) },
        Rule { matches: vec![Match::Hairpin], action: Action::Masquerade },
    ]
}

fn verdicts(family: IpFamily, config: &Config, shapes: &[Shape]) -> Vec<Rule> {
    let mut rules = Vec::new();
    for &shape in shapes {
        for (group, denial) in [(Group::Reject, Denial::NoEndpoints), (Group::Drop, Denial::NoLocalEndpoints)]
        {
            let mut matches = vec![Match::New];
            matches.extend(to_served(shape, group, family, config));
            rules.push(Rule::denying(matches, denial));
        }
    }
    rules
}

/// What is not for this host. A ClusterIP is nobody's: whatever still goes there has no Service, and
/// would wander on by the default route.
fn elsewhere(family: IpFamily, config: &Config) -> Vec<Rule> {
    let mut rules = verdicts(family, config, &[Shape::Vip]);
    rules.push(Rule::denying(vec![Match::New, Match::ToClusterIp], Denial::UndefinedPort));
    let networks = config.service_networks.iter().filter(|network| IpFamily::of(network.addr()) == family);
    let unallocated = |network: &IpNet| {
        Rule::denying(vec![Match::New, Match::ToNetwork(*network)], Denial::UnallocatedAddress)
    };
    rules.extend(networks.map(unallocated));
    rules
}

fn input(family: IpFamily, config: &Config) -> Vec<Rule> {
    let mut rules = verdicts(family, config, &[Shape::NodePort, Shape::Vip]);
    // A ClusterIP is an address of this host where IPVS had it bound (kube-ipvs0): its other ports are not the host's.
    rules.push(Rule::denying(vec![Match::New, Match::ToClusterIp], Denial::UndefinedPort));
    rules.extend(refused_on_loopback(family, config));
    rules
}

/// What no proxy serves on loopback is refused there, and counted, as kube-proxy does.
fn refused_on_loopback(family: IpFamily, config: &Config) -> Vec<Rule> {
    if !config.answers_on_loopback(family) {
        return Vec::new();
    }
    let rule = |protocol| {
        let served = Match::To(Shape::NodePort, Group::Served);
        let matches = vec![Match::New, Match::ToLoopback, Match::Over(protocol), served];
        Rule::denying(matches, Denial::OnLoopback(protocol))
    };
    UNSERVED_ON_LOOPBACK.map(rule).into()
}

impl Chain {
    fn new(name: ChainName, rules: Vec<Rule>) -> Self {
        Self { name, rules }
    }
}

impl Match {
    fn from_pods(pods: Pods) -> Self {
        match pods {
            Pods::Within(network) => Match::From(network),
            Pods::Behind(interfaces) => Match::FromInterface(interfaces),
        }
    }

    fn not_from_pods(pods: Pods) -> Self {
        match pods {
            Pods::Within(network) => Match::NotFrom(network),
            Pods::Behind(interfaces) => Match::NotFromInterface(interfaces),
        }
    }
}

impl Rule {
    pub(super) fn always(action: Action) -> Self {
        Self { matches: Vec::new(), action }
    }

    fn denying(matches: Vec<Match>, denial: Denial) -> Self {
        Self { matches, action: Action::Goto(ChainName::Denied(denial)) }
    }
}

impl ChainName {
    /// Where the chain is hooked in; `None` for those that rules lead to.
    pub fn hook(self) -> Option<Hook> {
        let (point, nat, priority) = match self {
            ChainName::FirewallPrerouting => (HookPoint::Prerouting, false, -110),
            ChainName::FirewallOutput => (HookPoint::Output, false, -110),
            ChainName::NatPrerouting => (HookPoint::Prerouting, true, -100),
            ChainName::NatOutput => (HookPoint::Output, true, -100),
            ChainName::NatPostrouting => (HookPoint::Postrouting, true, 100),
            ChainName::FilterInput => (HookPoint::Input, false, 0),
            ChainName::FilterForward => (HookPoint::Forward, false, 0),
            ChainName::FilterOutput => (HookPoint::Output, false, 0),
            _ => return None,
        };
        Some(Hook { point, nat, priority })
    }
}

/// The kernel's name of the chain.
impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = |shape| if shape == Shape::NodePort { "nodeport-" } else { "" };
        let local = |pool| if pool == Pool::Local { "local-" } else { "" };
        match *self {
            ChainName::FirewallPrerouting => f.write_str("firewall-prerouting"),
            ChainName::FirewallOutput => f.write_str("firewall-output"),
            ChainName::NatPrerouting => f.write_str("nat-prerouting"),
            ChainName::NatOutput => f.write_str("nat-output"),
            ChainName::NatPostrouting => f.write_str("nat-postrouting"),
            ChainName::FilterInput => f.write_str("filter-input"),
            ChainName::FilterForward => f.write_str("filter-forward"),
            ChainName::FilterOutput => f.write_str("filter-output"),
            ChainName::SourceRanges => f.write_str("source-ranges"),
            ChainName::Services(Shape::Vip) => f.write_str("services"),
            ChainName::Services(Shape::NodePort) => f.write_str("nodeports"),
            ChainName::External(shape) => write!(f, "{}external", prefix(shape)),
            ChainName::ExternalLocal(shape) => write!(f, "{}ext-local", prefix(shape)),
            ChainName::Denied(denial) if denial.is_refusal() => write!(f, "reject-{denial}"),
            ChainName::Denied(denial) => write!(f, "drop-{denial}"),
            ChainName::Spread(shape, pool) => write!(f, "{}{}spread", prefix(shape), local(pool)),
            ChainName::Balance(shape, pool, class) => {
                write!(f, "{}{}lb-{}", prefix(shape), local(pool), class.slots())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether some rule takes a packet, if a commit comes between two look-ups: rules before `cut` see what `before`
    /// holds for, the others what `after` holds for.
    fn takes(
        rules: &[Rule],
        cut: usize,
        before: impl Fn(&Match) -> bool,
        after: impl Fn(&Match) -> bool,
    ) -> bool {
        rules.iter().enumerate().any(|(at, rule)| match rule.matches.as_slice() {
            [matched] if at < cut => before(matched),
            [matched] => after(matched),
            _ => false,
        })
    }

    #[test]
    fn a_packet_finds_its_chain_whenever_a_count_or_a_range_changes() {
        let rules = spread(Shape::Vip, Pool::Cluster);
        let has = |count| {
            let group = SizeClass::of(count).map(|class| Group::Count(Pool::Cluster, class));
            move |matched: &Match| matches!(matched, Match::To(_, of) if Some(*of) == group)
        };
        for (before, after) in [(3, 2), (2, 3), (16, 1), (17, 300), (1, 8192)] {
            let missed = (0..=rules.len()).find(|cut| !takes(&rules, *cut, has(before), has(after)));
            assert_eq!(missed, None, "from {before} endpoints to {after}");
        }
        for family in FAMILIES {
            let rules = source_ranges(family);
            let of = |length| move |matched: &Match| *matched == Match::FromItsRanges(length);
            let lengths: Vec<PrefixLength> = PrefixLength::all(family).collect();
            let (longest, shortest) = (lengths[0], lengths[lengths.len() - 1]);
            for (before, after) in [(longest, shortest), (shortest, longest)] {
                let missed = (0..=rules.len()).find(|cut| !takes(&rules, *cut, of(before), of(after)));
                assert_eq!(missed, None, "{family}");
            }
        }
    }
}
