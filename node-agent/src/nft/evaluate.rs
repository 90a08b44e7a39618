//! Where does this packet go? The rules as the kernel would walk them, over what is in the sets.
//!
//! A choice by chance has several outcomes: the answer is all of them. One packet starts a
//! connection here; those that follow take the same way.

use std::collections::BTreeSet;
use std::net::IpAddr;

use service_model::{IpFamily, Protocol};

use super::layout::{Frontend, Group, Pool, Shape, Target};
use super::mirror::{FrontendState, Mirror};
use super::ruleset::{Action, ChainName, Match, Rule, Ruleset};
use super::step::Hairpin;

/// The first packet of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
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

/// One way through the translation hooks.
#[derive(Debug, Clone, Copy)]
enum Translated {
    To(Target),
    Dropped,
    Not,
}

/// The state of the walk: the mark that asks for masquerading.
type Marked = bool;

/// All fates that the packet can have on a host with these addresses. It was sent by the host if
/// its source is one of them.
pub fn fates(ruleset: &Ruleset, mirror: &Mirror, host: &BTreeSet<IpAddr>, packet: Packet) -> BTreeSet<Fate> {
    let walk = Walk { ruleset, mirror, host, packet };
    let first = if walk.is_ours(packet.source) { ChainName::NatOutput } else { ChainName::NatPrerouting };
    let mut ways = Vec::new();
    walk.translate(first, false, &mut ways);
    ways.into_iter()
        .map(|(translated, marked)| match translated {
            Translated::Dropped => Fate::Dropped,
            Translated::To(target) => {
                Fate::Endpoint { target, masqueraded: marked || walk.comes_back(target) }
            }
            Translated::Not => walk.filter(),
        })
        .collect()
}

struct Walk<'a> {
    ruleset: &'a Ruleset,
    mirror: &'a Mirror,
    host: &'a BTreeSet<IpAddr>,
    packet: Packet,
}

impl Walk<'_> {
    fn rules(&self, chain: ChainName) -> &[Rule] {
        self.ruleset.chain(chain).map_or(&[], |chain| &chain.rules)
    }

    /// Follows a chain of the nat hooks; adds every way out of it.
    fn translate(&self, chain: ChainName, mut marked: Marked, ways: &mut Vec<(Translated, Marked)>) {
        for rule in self.rules(chain) {
            if !rule.matches.iter().all(|matched| self.holds(matched, marked)) {
                continue;
            }
            match rule.action {
                Action::Goto(next) => return self.translate(next, marked, ways),
                Action::Mark => marked = true,
                Action::Drop => return ways.push((Translated::Dropped, marked)),
                Action::Dnat { shape, pool, modulus } => {
                    let slots = self.state(shape).map_or(&[][..], |state| state.pool(pool));
                    let drawn = slots.iter().take(modulus as usize);
                    ways.extend(drawn.flatten().map(|target| (Translated::To(*target), marked)));
                    let taken = slots.iter().take(modulus as usize).flatten().count();
                    if taken == modulus as usize {
                        return;
                    }
                }
                Action::Reject | Action::Masquerade | Action::UnmarkAndMasquerade => {}
            }
        }
        ways.push((Translated::Not, marked));
    }

    /// The filter hooks that an untranslated packet passes.
    fn filter(&self) -> Fate {
        let (sent, received) = (self.is_ours(self.packet.source), self.is_ours(self.packet.destination));
        let hooks = [
            (sent, ChainName::FilterOutput),
            (received, ChainName::FilterInput),
            (!sent && !received, ChainName::FilterForward),
        ];
        for (_, chain) in hooks.into_iter().filter(|(passes, _)| *passes) {
            for rule in self.rules(chain) {
                if rule.matches.iter().all(|matched| self.holds(matched, false)) {
                    match rule.action {
                        Action::Reject => return Fate::Refused,
                        Action::Drop => return Fate::Dropped,
                        _ => {}
                    }
                }
            }
        }
        Fate::Untouched
    }

    fn holds(&self, matched: &Match, marked: Marked) -> bool {
        let Packet { source, destination, .. } = self.packet;
        match matched {
            Match::New => true,
            Match::To(shape, group) => self.state(*shape).is_some_and(|s| s.groups.contains(*group)),
            Match::ToNodeAddress => self.mirror.node_addresses.contains(&destination),
            Match::ToThisHost => self.is_ours(destination) && !destination.is_loopback(),
            Match::From(network) => network.contains(&source),
            Match::NotFrom(network) => !network.contains(&source),
            Match::FromThisHost => self.is_ours(source),
            Match::Marked => marked,
            // Asked after the translation: see `comes_back`.
            Match::Hairpin => false,
        }
    }

    fn comes_back(&self, target: Target) -> bool {
        let hairpin = Hairpin { target, protocol: self.packet.protocol };
        self.packet.source == target.ip && self.mirror.hairpins.contains(&hairpin)
    }

    fn state(&self, shape: Shape) -> Option<&FrontendState> {
        let Packet { destination: ip, protocol, port, .. } = self.packet;
        let frontend = match shape {
            Shape::Vip => Frontend::Vip { ip, protocol, port },
            Shape::NodePort => Frontend::NodePort { family: IpFamily::of(ip), protocol, port },
        };
        self.mirror.frontends.get(&frontend)
    }

    fn is_ours(&self, ip: IpAddr) -> bool {
        self.host.contains(&ip)
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
