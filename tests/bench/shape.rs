//! What kind of Services a cluster is filled with, and how many.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};

use crate::contender::{BOTH, Contender};

/// Endpoints of one Service at most; addresses are dealt out in these steps.
pub(crate) const MOST_ENDPOINTS: usize = 60;

/// What every Service of a cluster is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) endpoints: usize,
    /// A NodePort and a load balancer's address besides the ClusterIP.
    pub(crate) exposed: bool,
}

/// `SERVICESxENDPOINTS[+exposed]:ROUNDS[/PEER_ROUNDS]`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) services: usize,
    pub(crate) shape: Shape,
    pub(crate) rounds: Rounds,
}

/// `ROUNDS[/PEER_ROUNDS]`: how many starts of ours, and of the peer, which may take minutes each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rounds {
    pub(crate) ours: usize,
    pub(crate) peer: usize,
}

impl Rounds {
    pub(crate) fn of(self, contender: Contender) -> usize {
        contender.of([self.ours, self.peer])
    }

    /// By turns: in which round who starts.
    pub(crate) fn turns(self) -> impl Iterator<Item = (usize, Contender)> {
        let turns = (0..self.ours.max(self.peer)).flat_map(|round| BOTH.map(|contender| (round, contender)));
        turns.filter(move |(round, contender)| *round < self.of(*contender))
    }
}

impl FromStr for Rounds {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (ours, peer) = text.split_once('/').unwrap_or((text, text));
        let number = |text: &str| text.parse().with_context(|| format!("{text:?} is no number of rounds"));
        Ok(Self { ours: number(ours)?, peer: number(peer)? })
    }
}

impl fmt::Display for Rounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (the peer: {})", self.ours, self.peer)
    }
}

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (what, rounds) =
            text.split_once(':').context("give SERVICESxENDPOINTS:ROUNDS, such as 1000x2:5")?;
        let (what, exposed) = match what.split_once('+') {
            None => (what, false),
            Some((what, "exposed")) => (what, true),
            Some((_, other)) => anyhow::bail!("{other:?} is no kind of Service; there is exposed"),
        };
        let (services, endpoints) = what.split_once('x').context("give SERVICESxENDPOINTS")?;
        let shape = Shape { endpoints: endpoints.parse()?, exposed };
        ensure!((1..=MOST_ENDPOINTS).contains(&shape.endpoints), "1 to {MOST_ENDPOINTS} endpoints");
        Ok(Self { services: services.parse()?, shape, rounds: rounds.parse()? })
    }
}

impl Size {
    /// Whether changes, restarts and a replay are measured too: for the usual Service alone.
    pub(crate) fn is_changed(&self) -> bool {
        !self.shape.exposed && self.shape.endpoints == 2 && (1_000..=10_000).contains(&self.services)
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exposed = if self.shape.exposed { ", each with NodePort and LB IP" } else { "" };
        write!(f, "{} × {}{exposed}", self.services, self.shape.endpoints)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_says_services_endpoints_kind_and_rounds() {
        let size = |services, endpoints, exposed, ours, peer| {
            Some(Size { services, shape: Shape { endpoints, exposed }, rounds: Rounds { ours, peer } })
        };
        for (text, expected) in [
            ("1000x2:5", size(1000, 2, false, 5, 5)),
            ("5000x50:5/2", size(5000, 50, false, 5, 2)),
            ("10000x2+exposed:1", size(10_000, 2, true, 1, 1)),
            ("1000:5", None),
            ("1000x2", None),
            ("1000x2:5/", None),
            ("1000x61:1", None),
            ("1000x2+headless:1", None),
        ] {
            assert_eq!(text.parse::<Size>().ok(), expected, "{text}");
        }
    }

    #[test]
    fn starts_are_by_turns_as_long_as_both_have_some() {
        let turns: Vec<_> = Rounds { ours: 2, peer: 1 }.turns().collect();
        assert_eq!(turns, [(0, Contender::NodeAgent), (0, Contender::KubeProxy), (1, Contender::NodeAgent)]);
    }
}
