//! Where does this packet go? The rules as the kernel would walk them, over what is in the sets.
//!
//! A choice by chance has several outcomes: the answer is all of them. One packet starts a
//! connection here; those that follow take the same way. [`fates`] is what tests ask, [`trace`]
//! what `node-agent explain` prints: one walk serves both.

use std::collections::BTreeSet;
use std::net::IpAddr;

use service_model::{IpFamily, Protocol};

use super::layout::{Frontend, Group, Pool, Shape, Target};
use super::mirror::{FrontendState, Mirror};
use super::ruleset::{Action, ChainName, Match, Rule, Ruleset};
use super::step::Hairpin;
use crate::local::InterfaceName;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
    /// By which it came in; `None` if this host sent it.
    pub interface: Option<InterfaceName>,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fate {
    /// Goes to an endpoint, which sees the client's own address unless it is masqueraded.
    Endpoint {
        target: Target,
        masqueraded: bool,
    },
    /// The client is told at once.
    Refused,
    Dropped,
    /// Not ours: it goes where it was going.
    Untouched,
}

/// The way of a packet, with every rule that was asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trace<'a> {
    /// Up to the choice of an endpoint, if there is one.
    pub hops: Vec<Hop<'a>>,
    /// All that may come of it, in the order of the rules.
    pub outcomes: Vec<Outcome<'a>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome<'a> {
    pub fate: Fate,
    /// From the choice of the endpoint on: the filter hooks, and masquerading.
    pub hops: Vec<Hop<'a>>,
}

/// A rule that the packet met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop<'a> {
    pub chain: ChainName,
    pub rule: &'a Rule,
    /// The first match that did not hold; `None` where the rule applied.
    pub failed: Option<&'a Match>,
}

/// All fates that the packet can have on a host with these addresses. It was sent by the host if
/// its source is one of them.
pub fn fates(ruleset: &Ruleset, mirror: &Mirror, host: &BTreeSet<IpAddr>, packet: Packet) -> BTreeSet<Fate> {
    fates_of_kept(ruleset, mirror, host, packet, &NONE)
}

static NONE: BTreeSet<u32> = BTreeSet::new();

/// As [`fates`], for a source that endpoints of these numbers keep
/// ([`super::affinity::NumberedTarget`]).
pub fn fates_of_kept(
    ruleset: &Ruleset,
    mirror: &Mirror,
    host: &BTreeSet<IpAddr>,
    packet: Packet,
    held: &BTreeSet<u32>,
) -> BTreeSet<Fate> {
    let walk = Walk { ruleset, mirror, host, sent: host.contains(&packet.source), held };
    let ways = walk.arrive(packet, &mut |_| {});
    ways.into_iter().map(|way| walk.leave(way, &mut |_| {})).collect()
}

/// As [`fates_of_kept`], with the reasons.
pub fn trace<'a>(
    ruleset: &'a Ruleset,
    mirror: &'a Mirror,
    host: &'a BTreeSet<IpAddr>,
    packet: Packet,
    held: &'a BTreeSet<u32>,
) -> Trace<'a> {
    let walk = Walk { ruleset, mirror, host, sent: host.contains(&packet.source), held };
    let mut hops = Vec::new();
    let ways = walk.arrive(packet, &mut |hop| hops.push(hop));
    let outcome = |way| {
        let mut hops = Vec::new();
        let fate = walk.leave(way, &mut |hop| hops.push(hop));
        Outcome { fate, hops }
    };
    Trace { hops, outcomes: ways.into_iter().map(outcome).collect() }
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    mirror: &'a Mirror,
    host: &'a BTreeSet<IpAddr>,
    /// By this host.
    sent: bool,
    /// The numbers of the endpoints that keep the source.
    held: &'a BTreeSet<u32>,
}

/// The packet as it is under way: its destination changes when it is translated.
#[derive(Debug, Clone, Copy)]
struct Traveller {
    packet: Packet,
    marked: bool,
    translated: bool,
}

/// How a chain was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// Also after a translation.
    Through,
    Refused,
    Dropped,
    Masqueraded,
}

type Way = (End, Traveller);

impl<'a> Walk<'a> {
    /// Up to the translation of the destination: every way that chance may choose.
    fn arrive(&self, packet: Packet, note: &mut impl FnMut(Hop<'a>)) -> Vec<Way> {
        let [firewall, nat] = if self.sent {
            [ChainName::FirewallOutput, ChainName::NatOutput]
        } else {
            [ChainName::FirewallPrerouting, ChainName::NatPrerouting]
        };
        let at = Traveller { packet, marked: false, translated: false };
        let mut ways = Vec::new();
        self.follow(firewall, at, &mut ways, note);
        if ways.iter().any(|(end, _)| *end == End::Dropped) {
            return ways;
        }
        ways.clear();
        self.follow(nat, at, &mut ways, note);
        ways
    }

    /// From there to the wire, or to a socket of this host.
    fn leave(&self, (end, mut at): Way, note: &mut impl FnMut(Hop<'a>)) -> Fate {
        match end {
            End::Dropped => return Fate::Dropped,
            End::Refused => return Fate::Refused,
            End::Through | End::Masqueraded => {}
        }
        let received = self.is_ours(at.packet.destination);
        let hooks = [
            (self.sent, ChainName::FilterOutput),
            (received, ChainName::FilterInput),
            (!self.sent && !received, ChainName::FilterForward),
            // What came from elsewhere for a socket of this host does not pass it.
            (self.sent || !received, ChainName::NatPostrouting),
        ];
        let mut masqueraded = false;
        for (_, hook) in hooks.into_iter().filter(|(passes, _)| *passes) {
            let mut ways = Vec::new();
            self.follow(hook, at, &mut ways, note);
            match ways.pop() {
                Some((End::Refused, _)) => return Fate::Refused,
                Some((End::Dropped, _)) => return Fate::Dropped,
                Some((End::Masqueraded, _)) => masqueraded = true,
                Some((End::Through, on)) => at = on,
                None => {}
            }
        }
        let Packet { destination: ip, port, .. } = at.packet;
        match at.translated {
            true => Fate::Endpoint { target: Target { ip, port }, masqueraded },
            false => Fate::Untouched,
        }
    }

    /// Follows a chain and those that it leads to; adds every way out.
    fn follow(
        &self,
        chain: ChainName,
        mut at: Traveller,
        ways: &mut Vec<Way>,
        note: &mut impl FnMut(Hop<'a>),
    ) {
        for rule in self.ruleset.chain(chain).map_or(&[][..], |chain| &chain.rules) {
            let kept = match rule.action {
                Action::Keep { shape, pool } => self.choices(shape, pool, at.packet),
                _ => Vec::new(),
            };
            if matches!(rule.action, Action::Keep { .. }) && kept.is_empty() {
                continue;
            }
            let failed = rule.matches.iter().find(|matched| !self.holds(matched, &at));
            note(Hop { chain, rule, failed });
            if failed.is_some() {
                continue;
            }
            match rule.action {
                Action::Goto(next) => return self.follow(next, at, ways, note),
                Action::Mark(_) => at.marked = true,
                Action::Count => {}
                Action::Accept => return ways.push((End::Through, at)),
                Action::Drop => return ways.push((End::Dropped, at)),
                Action::Reset | Action::Reject => return ways.push((End::Refused, at)),
                Action::Masquerade | Action::UnmarkAndMasquerade(_) => {
                    return ways.push((End::Masqueraded, at));
                }
                Action::Keep { .. } => {
                    ways.extend(kept.into_iter().map(|target| (End::Through, at.translated_to(target))));
                    return;
                }
                Action::Dnat { shape, pool, modulus } => {
                    let slots = self.state(shape, at.packet).map_or(&[][..], |state| state.pool(pool));
                    let drawn = || slots.iter().take(modulus as usize).flatten();
                    ways.extend(drawn().map(|target| (End::Through, at.translated_to(*target))));
                    if drawn().count() == modulus as usize {
                        return;
                    }
                }
            }
        }
        ways.push((End::Through, at));
    }

    /// Where session affinity may send the packet; nowhere, if the frontend has none.
    fn choices(&self, shape: Shape, pool: Pool, packet: Packet) -> Vec<Target> {
        let chain = self.mirror.affinities.chain_of(packet.frontend(shape), pool);
        chain.map(|chain| chain.choices(self.held)).unwrap_or_default()
    }

    fn holds(&self, matched: &Match, at: &Traveller) -> bool {
        let Packet { source, destination, protocol, port, interface } = at.packet;
        match matched {
            Match::New => true,
            Match::To(shape, group) => {
                self.state(*shape, at.packet).is_some_and(|s| s.groups.contains(*group))
            }
            Match::ToClusterIp => self.mirror.cluster_ips.contains(&destination),
            Match::ToNetwork(network) => network.contains(&destination),
            Match::ToNodeAddress => self.mirror.node_addresses.contains(&destination),
            Match::ToThisHost => self.is_ours(destination) && !destination.is_loopback(),
            Match::From(network) => network.contains(&source),
            Match::NotFrom(network) => !network.contains(&source),
            Match::ToLoopback => destination.is_loopback(),
            Match::Over(other) => protocol == *other,
            Match::FromInterface(interfaces) => interfaces.contain(interface),
            Match::NotFromInterface(interfaces) => !interfaces.contain(interface),
            Match::FromItsRanges(length) => {
                let networks = self.mirror.source_ranges.get(&at.packet.frontend(Shape::Vip));
                networks.is_some_and(|networks| networks.contains(&length.network_of(source)))
            }
            Match::FromThisHost => self.sent,
            Match::Marked(_) => at.marked,
            Match::Hairpin => {
                let hairpin = Hairpin { target: Target { ip: destination, port }, protocol };
                at.translated && source == destination && self.mirror.hairpins.contains(&hairpin)
            }
        }
    }

    fn state(&self, shape: Shape, packet: Packet) -> Option<&'a FrontendState> {
        self.mirror.frontends.get(&packet.frontend(shape))
    }

    fn is_ours(&self, ip: IpAddr) -> bool {
        self.host.contains(&ip)
    }
}

impl Packet {
    /// What it is addressed to, as a key of sets.
    pub fn frontend(self, shape: Shape) -> Frontend {
        let Packet { destination: ip, protocol, port, .. } = self;
        match shape {
            Shape::Vip => Frontend::Vip { ip, protocol, port },
            Shape::NodePort => Frontend::NodePort { family: IpFamily::of(ip), protocol, port },
        }
    }
}

impl Traveller {
    fn translated_to(self, target: Target) -> Self {
        let packet = Packet { destination: target.ip, port: target.port, ..self.packet };
        Self { packet, translated: true, ..self }
    }
}

/// What would be wrong whatever the packet: a frontend in a class of counts that lacks an index
/// which the class promises.
pub fn holes(state: &Mirror) -> Vec<String> {
    let mut holes = Vec::new();
    for (frontend, at) in &state.frontends {
        for group in at.groups.iter() {
            let Group::Count(pool, class) = group else { continue };
            let filled = |index: u32| matches!(at.pool(pool).get(index as usize), Some(Some(_)));
            if let Some(index) = (0..class.least()).find(|i| !filled(*i)) {
                let pool = if pool == Pool::Local { "local " } else { "" };
                holes.push(format!(
                    "{frontend} has {} {pool}endpoints or more, but no #{index}",
                    class.least()
                ));
            }
        }
    }
    holes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::local::DetectLocal;
    use crate::nft::layout::{Pool, SizeClass};
    use crate::nft::step::Element;

    #[test]
    fn a_trace_names_each_rule_that_was_asked_and_why_it_did_not_apply() {
        let config = Config::new("here", DetectLocal::ClusterCidr("10.244.0.0/16".parse().unwrap()));
        let ruleset = Ruleset::new(IpFamily::V4, &config);
        let ip = |ip: &str| -> IpAddr { ip.parse().unwrap() };
        let frontend = Frontend::Vip { ip: ip("10.96.0.1"), protocol: Protocol::Tcp, port: 80 };
        let mut mirror = Mirror::default();
        let one = Group::Count(Pool::Cluster, SizeClass::of(1).unwrap());
        for group in [Group::Served, one] {
            mirror.add(&Element::Member { frontend, group });
        }
        let target = Target { ip: ip("10.244.1.5"), port: 8080 };
        mirror.add(&Element::Endpoint { frontend, pool: Pool::Cluster, index: 0, target });
        let host = BTreeSet::from([ip("172.30.0.11")]);
        let of = |source| {
            let packet = Packet {
                source: ip(source),
                destination: ip("10.96.0.1"),
                protocol: Protocol::Tcp,
                port: 80,
                interface: None,
            };
            trace(&ruleset, &mirror, &host, packet, &NONE)
        };
        let marks = |trace: &Trace<'_>| {
            let mark = trace.hops.iter().find(|hop| matches!(hop.rule.action, Action::Mark(_))).unwrap();
            mark.failed.cloned()
        };
        let (pod, outside) = (of("10.244.1.9"), of("203.0.113.5"));
        assert_eq!(marks(&pod), Some(Match::NotFrom("10.244.0.0/16".parse().unwrap())));
        assert_eq!(pod.outcomes[0].fate, Fate::Endpoint { target, masqueraded: false });
        assert_eq!(marks(&outside), None);
        assert_eq!(outside.outcomes[0].fate, Fate::Endpoint { target, masqueraded: true });
        let last = outside.outcomes[0].hops.last().unwrap();
        let unmark = Action::UnmarkAndMasquerade(config.masquerade_mark);
        assert_eq!((last.chain, last.rule.action), (ChainName::NatPostrouting, unmark));
    }
}
