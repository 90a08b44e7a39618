//! When to try again.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// Doubling delays, each spread over half to one and a half of itself, so that the agents of a
/// cluster do not come back in step.
#[derive(Debug)]
pub(crate) struct Retry {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Retry {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// The delay before the next attempt; `share` is a random number of 0.0 to 1.0.
    pub(crate) fn delay(&mut self, share: f64) -> Duration {
        let delay = self.next.mul_f64(0.5 + share);
        self.next = (self.next * 2).min(self.longest);
        delay
    }

    /// Something worked: the next delay is the first one again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// A moment between the two, by a random number of 0.0 to 1.0.
pub(crate) fn between((earliest, latest): (Duration, Duration), share: f64) -> Duration {
    earliest + latest.saturating_sub(earliest).mul_f64(share)
}

/// 0.0 to 1.0, from the seed that the standard library draws for its hash tables.
pub(crate) fn random_share() -> f64 {
    let random = RandomState::new().build_hasher().finish();
    (random >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest_and_begin_again_after_a_success() {
        let mut retry = Retry::new(Duration::from_millis(200), Duration::from_secs(1));
        let seconds: Vec<f64> = (0..5).map(|_| retry.delay(0.5).as_secs_f64()).collect();
        assert_eq!(seconds, [0.2, 0.4, 0.8, 1.0, 1.0]);
        assert_eq!(retry.delay(0.0), Duration::from_millis(500));
        retry.reset();
        assert_eq!(retry.delay(1.0), Duration::from_millis(300));
    }

    #[test]
    fn a_moment_between_two_is_as_far_as_the_share_says() {
        let hours = |h: f64| Duration::from_secs_f64(h * 3600.0);
        for (share, expected) in [(0.0, 2.0), (0.25, 2.5), (1.0, 4.0)] {
            assert_eq!(between((hours(2.0), hours(4.0)), share), hours(expected));
        }
    }

    #[test]
    fn shares_differ_and_stay_between_nothing_and_all() {
        let shares: Vec<f64> = (0..100).map(|_| random_share()).collect();
        assert!(shares.iter().all(|s| (0.0..1.0).contains(s)));
        assert!(shares.iter().any(|s| *s < 0.5) && shares.iter().any(|s| *s >= 0.5), "{shares:?}");
    }
}
