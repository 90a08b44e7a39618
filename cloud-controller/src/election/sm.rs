//! The rules of leader election on a Lease, without I/O: what was read and the time come in, what
//! to write goes out. The timing and the expiry rule are client-go's: a Lease counts as held for
//! its duration from when *we* saw it change last; clocks of other machines are never compared.

use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timing {
    /// How long a leader that does not renew keeps the Lease.
    pub lease: Duration,
    /// How long a leader tries to renew before it stops. Shorter than `lease`.
    pub renew: Duration,
    /// Between tries.
    pub retry: Duration,
}

/// A Lease as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Empty after a release.
    pub holder: String,
    pub transitions: u64,
    /// Only compared for equality.
    pub renewed: String,
    /// As its holder wrote it.
    pub duration: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Write ourselves as the holder, with these transitions.
    Write { transitions: u64 },
    /// Somebody else leads.
    Wait,
}

/// What this process is. `Unknown` until the Lease has been read once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Unknown,
    Standby,
    /// `term` is the Lease's transitions; `renewed` when the leadership was last confirmed.
    Leading {
        term: u64,
        renewed: Instant,
    },
}

#[derive(Debug)]
pub struct Machine {
    identity: String,
    timing: Timing,
    observed: Option<(Seen, Instant)>,
    role: Role,
}

impl Default for Timing {
    fn default() -> Self {
        Self { lease: Duration::from_secs(15), renew: Duration::from_secs(10), retry: Duration::from_secs(2) }
    }
}

impl Timing {
    /// # Errors
    /// When two leaders could be at work at once.
    pub fn check(self) -> Result<Self, String> {
        if self.renew >= self.lease {
            return Err("the renew deadline must be shorter than the lease duration".to_owned());
        }
        if self.retry >= self.renew {
            return Err("the retry period must be shorter than the renew deadline".to_owned());
        }
        Ok(self)
    }
}

impl Machine {
    pub fn new(identity: &str, timing: Timing) -> Self {
        Self { identity: identity.to_owned(), timing, observed: None, role: Role::Unknown }
    }

    /// The Lease was read; `None` when there is none yet.
    pub fn read(&mut self, lease: Option<Seen>, now: Instant) -> Decision {
        self.expire(now);
        let Some(seen) = lease else {
            // Whoever deleted it ended every leadership.
            self.observed = None;
            self.lose();
            return Decision::Write { transitions: 1 };
        };
        if self.observed.as_ref().is_none_or(|(before, _)| *before != seen) {
            self.observed = Some((seen.clone(), now));
        }
        let seen_at = self.observed.as_ref().map_or(now, |(_, at)| *at);
        match self.role {
            Role::Leading { term, .. } if seen.holder == self.identity && seen.transitions == term => {
                Decision::Write { transitions: term }
            }
            // Somebody else took it, or a process under our own name.
            Role::Leading { .. } => {
                self.lose();
                Decision::Wait
            }
            Role::Unknown | Role::Standby => {
                self.role = Role::Standby;
                let expired = now.saturating_duration_since(seen_at) >= seen.duration;
                // Our own name on it is an earlier life of this process: every life is a term.
                if seen.holder.is_empty() || seen.holder == self.identity || expired {
                    Decision::Write { transitions: seen.transitions + 1 }
                } else {
                    Decision::Wait
                }
            }
        }
    }

    /// A write that was begun at `begun` was accepted.
    pub fn written(&mut self, transitions: u64, begun: Instant) {
        self.role = Role::Leading { term: transitions, renewed: begun };
    }

    /// A read or a write failed, or lost against another writer.
    pub fn failed(&mut self, now: Instant) {
        self.expire(now);
    }

    /// What this process is at this time: a leadership that could not be renewed in time is over.
    pub fn role(&mut self, now: Instant) -> Role {
        self.expire(now);
        self.role
    }

    /// When the leadership ends unless it is renewed.
    pub fn deadline(&self) -> Option<Instant> {
        match self.role {
            Role::Leading { renewed, .. } => Some(renewed + self.timing.renew),
            Role::Unknown | Role::Standby => None,
        }
    }

    fn expire(&mut self, now: Instant) {
        if self.deadline().is_some_and(|d| now >= d) {
            self.lose();
        }
    }

    fn lose(&mut self) {
        if matches!(self.role, Role::Leading { .. }) {
            self.role = Role::Standby;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(holder: &str, transitions: u64, renewed: &str) -> Option<Seen> {
        let duration = Duration::from_secs(15);
        Some(Seen { holder: holder.to_owned(), transitions, renewed: renewed.to_owned(), duration })
    }

    fn leader(term: u64, now: Instant) -> Machine {
        let mut machine = Machine::new("a", Timing::default());
        assert_eq!(machine.read(seen("", term - 1, "0"), now), Decision::Write { transitions: term });
        machine.written(term, now);
        machine
    }

    #[test]
    fn a_lease_that_is_missing_released_or_our_own_is_taken_at_once() {
        let now = Instant::now();
        let table = [
            (None, Decision::Write { transitions: 1 }),
            (seen("", 4, "x"), Decision::Write { transitions: 5 }),
            (seen("a", 4, "x"), Decision::Write { transitions: 5 }),
            (seen("b", 4, "x"), Decision::Wait),
        ];
        for (lease, decision) in table {
            assert_eq!(Machine::new("a", Timing::default()).read(lease.clone(), now), decision, "{lease:?}");
        }
    }

    #[test]
    fn a_silent_leader_is_replaced_after_the_lease_and_a_renewing_one_never() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut machine = Machine::new("a", Timing::default());
        for s in 0..40 {
            assert_eq!(machine.read(seen("b", 4, &s.to_string()), at(s)), Decision::Wait);
        }
        assert_eq!(machine.read(seen("b", 4, "39"), at(53)), Decision::Wait);
        assert_eq!(machine.read(seen("b", 4, "39"), at(54)), Decision::Write { transitions: 5 });
    }

    #[test]
    fn a_leader_that_cannot_renew_stops_before_another_may_begin() {
        let now = Instant::now();
        let mut machine = leader(5, now);
        let timing = Timing::default();
        machine.failed(now + Duration::from_secs(9));
        assert!(matches!(machine.role(now + Duration::from_secs(9)), Role::Leading { term: 5, .. }));
        assert_eq!(machine.role(now + timing.renew), Role::Standby);
        assert!(timing.renew < timing.lease);
    }

    #[test]
    fn a_renewal_keeps_the_term() {
        let now = Instant::now();
        let mut machine = leader(5, now);
        let later = now + Duration::from_secs(2);
        assert_eq!(machine.read(seen("a", 5, "0"), later), Decision::Write { transitions: 5 });
        machine.written(5, later);
        assert_eq!(machine.role(now + Duration::from_secs(11)), Role::Leading { term: 5, renewed: later });
    }

    #[test]
    fn a_lease_in_another_hand_ends_the_leadership_also_under_our_own_name() {
        let now = Instant::now();
        for (holder, transitions) in [("b", 6), ("a", 6)] {
            let mut machine = leader(5, now);
            assert_eq!(machine.read(seen(holder, transitions, "1"), now), Decision::Wait);
            assert_eq!(machine.role(now), Role::Standby);
        }
    }

    #[test]
    fn timing_that_allows_two_leaders_is_refused() {
        let seconds = Duration::from_secs;
        assert!(Timing::default().check().is_ok());
        let two = Timing { lease: seconds(10), renew: seconds(10), retry: seconds(2) };
        assert!(two.check().unwrap_err().contains("renew deadline"));
        let slow = Timing { lease: seconds(15), renew: seconds(10), retry: seconds(10) };
        assert!(slow.check().unwrap_err().contains("retry period"));
    }
}
