//! How many flows met which kind of fate. Twins that agree because their lab is broken (everything
//! refused, on both) would see few kinds: a run has to see enough of each.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::twin::Source;
use crate::verdict::Outcome;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fate {
    /// The endpoint saw the client's own address.
    AsItself,
    /// It saw one of the node's.
    Masqueraded,
    /// The node asked: all that is seen of it is its own.
    FromTheNode,
    Refused,
    Silent,
    /// Nothing was heard in time, of what is no silence: a refusal of IPv6 often comes with the second try
    /// of a connection.
    Slow,
    Unserved,
    Broken,
}

/// Percents of all flows that have to meet a fate.
pub(crate) type Floors = &'static [(Fate, usize)];

#[derive(Debug, Clone, Default)]
pub(crate) struct Fates(BTreeMap<Fate, usize>);

/// Of about sixty cases. Fewer may happen to be much alike.
const ENOUGH: usize = 3000;

impl Fate {
    /// `own` is the address that the source speaks from.
    pub(crate) fn of(source: Source, own: IpAddr, outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Reached { .. } if source == Source::Node => Self::FromTheNode,
            Outcome::Reached { client, .. } if *client == own => Self::AsItself,
            Outcome::Reached { .. } => Self::Masqueraded,
            Outcome::Refused => Self::Refused,
            Outcome::Silent => Self::Silent,
            Outcome::Unserved => Self::Unserved,
            Outcome::Broken(_) => Self::Broken,
        }
    }
}

impl Fates {
    pub(crate) fn add(&mut self, fate: Fate) {
        *self.0.entry(fate).or_default() += 1;
    }

    pub(crate) fn extend(&mut self, more: &Self) {
        for (fate, count) in &more.0 {
            *self.0.entry(*fate).or_default() += count;
        }
    }

    /// The fates that were met too seldom for the run to mean anything; a sentence each.
    pub(crate) fn missing(&self, floors: Floors) -> Vec<String> {
        let all: usize = self.0.values().sum();
        let count = |fate| self.0.get(&fate).copied().unwrap_or_default();
        let missing = floors.iter().filter(|(fate, percent)| count(*fate) * 100 < all * percent);
        let sentence = |(fate, percent): &(Fate, usize)| {
            format!("{} of {all} flows {fate}, not {percent} %", count(*fate))
        };
        if all < ENOUGH { Vec::new() } else { missing.map(sentence).collect() }
    }
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsItself => "reached as itself",
            Self::Masqueraded => "reached masqueraded",
            Self::FromTheNode => "reached from the node",
            Self::Refused => "refused",
            Self::Silent => "silent",
            Self::Slow => "slow",
            Self::Unserved => "unserved",
            Self::Broken => "broken",
        })
    }
}

impl fmt::Display for Fates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(|(fate, count)| format!("{count} {fate}")).collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::setups;

    #[test]
    fn a_run_in_which_everything_is_refused_has_seen_too_little() {
        let refused = Fates([(Fate::Refused, 10_000)].into());
        for setup in [setups::usual(), setups::interfaces_and_loopback(), setups::iptables()] {
            let missing = refused.missing(setup.floors);
            assert_eq!(missing.len(), setup.floors.len() - 1, "{missing:?}");
            assert!(!setup.floors.is_empty());
        }
    }

    #[test]
    fn a_handful_of_flows_proves_nothing() {
        let refused = Fates([(Fate::Refused, ENOUGH - 1)].into());
        assert!(refused.missing(setups::usual().floors).is_empty());
    }
}
