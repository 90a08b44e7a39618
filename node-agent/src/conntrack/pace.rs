//! When the connection table is looked through. Pure: the clock is an argument.

use std::time::{Duration, Instant};

use crate::nft::plan::GRACE;

/// From the end of a run to the beginning of the next.
const PAUSE: Duration = Duration::from_secs(1);
/// After a run that failed, which will be so again if the kernel lacks what it takes.
const RETRY: Duration = Duration::from_secs(30);

/// At most one run a second; whoever asks meanwhile has one afterwards.
#[derive(Debug, Default)]
pub(super) struct Pace {
    asked: bool,
    not_before: Option<Instant>,
    /// A run that failed is repeated, if none is asked for before.
    retry_at: Option<Instant>,
    /// Each commit is looked after, up to the first that comes then.
    settles_at: Option<Instant>,
}

impl Pace {
    /// A commit left entries that are stale, or may have. What it took out of use goes with a later one, no sooner than
    /// [`GRACE`]: until then packets that are under way make entries that lead there.
    pub(super) fn ask(&mut self, now: Instant) {
        self.asked = true;
        self.settles_at = Some(now + GRACE);
    }

    /// A commit left none by itself; it may be the one that takes away what an earlier one took out of
    /// use.
    pub(super) fn committed(&mut self, now: Instant) {
        if let Some(at) = self.settles_at {
            self.asked = true;
            self.settles_at = (now < at).then_some(at);
        }
    }

    /// When to begin; `None` while nobody asks.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let asked = self.asked.then(|| self.not_before.unwrap_or(now));
        let due = [asked, self.retry_at].into_iter().flatten().min();
        due.map(|at| at.max(now))
    }

    /// A run begins; what is asked from now on is for another.
    pub(super) fn begin(&mut self) {
        (self.asked, self.retry_at) = (false, None);
    }

    pub(super) fn end(&mut self, now: Instant, succeeded: bool) {
        self.not_before = Some(now + PAUSE);
        self.retry_at = (!succeeded).then(|| now + RETRY);
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
        pace.ask(at(0));
        assert_eq!(pace.due(at(5)), Some(at(5)), "at once");
        pace.begin();
        for _ in 0..1000 {
            pace.ask(at(50));
        }
        pace.end(at(100), true);
        assert_eq!(pace.due(at(200)), Some(at(1100)));
        assert_eq!(pace.due(at(1500)), Some(at(1500)));
        pace.begin();
        pace.end(at(1600), true);
        assert_eq!(pace.due(at(9000)), None, "all of them had one together");
    }

    #[test]
    fn a_run_that_failed_is_tried_again_and_whoever_asks_meanwhile_does_not_wait_for_that() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pace = Pace::default();
        pace.ask(at(0));
        pace.begin();
        pace.end(at(10_000), false);
        assert_eq!(pace.due(at(10_001)), Some(at(40_000)), "not at once");
        pace.ask(at(10_500));
        assert_eq!(pace.due(at(10_501)), Some(at(11_000)), "at the usual pace");
        pace.begin();
        pace.end(at(11_100), false);
        assert_eq!(pace.due(at(11_200)), Some(at(41_100)));
        pace.begin();
        pace.end(at(41_200), true);
        assert_eq!(pace.due(at(99_000)), None);
    }

    #[test]
    fn the_table_is_looked_through_again_after_the_commit_that_takes_away_what_is_out_of_use() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let mut pace = Pace::default();
        let mut runs = |news: &dyn Fn(&mut Pace), now| {
            news(&mut pace);
            let runs = pace.due(at(now)) == Some(at(now));
            if runs {
                pace.begin();
                pace.end(at(now), true);
            }
            runs
        };
        assert!(!runs(&|pace| pace.committed(at(0)), 0), "nothing was stale");
        assert!(runs(&|pace| pace.ask(at(5000)), 5000));
        assert!(runs(&|pace| pace.committed(at(5900)), 6000), "it may be that one");
        assert!(runs(&|pace| pace.committed(at(7000)), 7000), "or that one");
        assert!(!runs(&|pace| pace.committed(at(9000)), 9000), "it has been taken away by now");
    }
}
