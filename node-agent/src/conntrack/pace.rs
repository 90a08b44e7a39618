//! When the connection table is looked through. Pure: the clock is an argument.

use std::time::{Duration, Instant};

/// From the end of a run to the beginning of the next.
const PAUSE: Duration = Duration::from_secs(1);
/// After a run that failed, which will be so again if the kernel lacks what it takes.
const RETRY: Duration = Duration::from_secs(30);

/// At most one run a second; whoever asks meanwhile has one afterwards.
#[derive(Debug, Default)]
pub(super) struct Pace {
    asked: bool,
    not_before: Option<Instant>,
}

impl Pace {
    pub(super) fn ask(&mut self) {
        self.asked = true;
    }

    /// When to begin; `None` while nobody asks.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        self.asked.then(|| self.not_before.map_or(now, |at| at.max(now)))
    }

    /// A run begins; what is asked from now on is for another.
    pub(super) fn begin(&mut self) {
        self.asked = false;
    }

    pub(super) fn end(&mut self, now: Instant, succeeded: bool) {
        self.asked |= !succeeded;
        self.not_before = Some(now + if succeeded { PAUSE } else { RETRY });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_at_most_one_run_a_second_and_one_for_what_came_meanwhile() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pace = Pace::default();
        assert_eq!(pace.due(at(0)), None, "nobody asked");
        pace.ask();
        assert_eq!(pace.due(at(5)), Some(at(5)), "at once");
        pace.begin();
        for _ in 0..1000 {
            pace.ask();
        }
        pace.end(at(100), true);
        assert_eq!(pace.due(at(200)), Some(at(1100)));
        assert_eq!(pace.due(at(1500)), Some(at(1500)));
        pace.begin();
        pace.end(at(1600), true);
        assert_eq!(pace.due(at(9000)), None, "all of them had one together");
        pace.ask();
        pace.begin();
        pace.end(at(10_000), false);
        assert_eq!(pace.due(at(10_001)), Some(at(40_000)), "a failure is tried again, not at once");
    }
}
