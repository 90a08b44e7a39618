//! What became of a flow.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

/// What one try met with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// An endpoint answered, and this is who it thought was asking.
    Reached { endpoint: SocketAddr, client: IpAddr },
    /// An ICMP port unreachable, or a reset.
    Refused,
    /// Nothing, until the deadline.
    Silent,
    /// No rule took it: it went on to the router, which refuses such addresses in its own words.
    Unserved,
    /// What should not happen at all.
    Broken(String),
}

/// Everything that repeated tries met with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Verdict(pub BTreeSet<Outcome>);

impl Verdict {
    /// Without what may have been chance.
    pub(crate) fn certain(&self) -> Self {
        let by_chance = |outcome: &Outcome| matches!(outcome, Outcome::Silent | Outcome::Broken(_));
        Self(self.0.iter().filter(|outcome| !by_chance(outcome)).cloned().collect())
    }

    pub(crate) fn reached(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().filter_map(|outcome| match outcome {
            Outcome::Reached { endpoint, .. } => Some(*endpoint),
            _ => None,
        })
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached { endpoint, client } => write!(f, "{endpoint} (asked by {client})"),
            Self::Refused => f.write_str("refused"),
            Self::Silent => f.write_str("silent"),
            Self::Unserved => f.write_str("unserved"),
            Self::Broken(what) => write!(f, "broken: {}", what.escape_debug()),
        }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.0.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(", "))
    }
}
