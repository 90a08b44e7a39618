//! Which of two documents is newer.

use std::fmt;

use serde::{Deserialize, Serialize};

/// `term` counts the leader changes of the controller's Lease, `counter` the documents of one
/// leader. Compared in that order; a host refuses an older one with 409, so a leader that has
/// been replaced can no longer steer it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Generation {
    pub term: u64,
    pub counter: u64,
}

impl Generation {
    /// The next document of the leader in `term`, above everything a host has reported.
    pub fn after(self, term: u64) -> Self {
        if term > self.term {
            Self { term, counter: 1 }
        } else {
            Self { term: self.term, counter: self.counter + 1 }
        }
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.term, self.counter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_leader_always_beats_the_old_ones_counter() {
        let seen = Generation { term: 2, counter: 900 };
        assert_eq!(seen.after(3), Generation { term: 3, counter: 1 });
        assert_eq!(seen.after(2), Generation { term: 2, counter: 901 });
        assert!(seen.after(1) > seen, "a Lease that was deleted and counts anew must not block the leader");
    }
}
