//! How many calls we allow ourselves: a token bucket for each category of operations, so that a
//! listing does not starve a deletion, and a pause after AWS said "too many".
//!
//! AWS publishes one figure for ELBv2: `Describe*` has a bucket of 40 that refills with 10 a second
//! (Elastic Load Balancing user guide, "API throttling"). Ours stay at or below that; where AWS
//! publishes none they are AWS Load Balancer Controller's, or as careful.

use std::collections::BTreeMap;
use std::num::NonZeroU32;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use governor::{DefaultDirectRateLimiter, Quota, RateLimiter};

use super::operation::{Category, Operation};

/// Calls a second, and how many may be made at once after a pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    pub per_second: NonZeroU32,
    pub burst: NonZeroU32,
}

#[derive(Debug)]
pub struct Budget {
    buckets: BTreeMap<Category, Bucket>,
}

#[derive(Debug)]
struct Bucket {
    limiter: DefaultDirectRateLimiter,
    pause: Mutex<Pause>,
}

/// Doubles with every refusal, and halves with every success. A success ends no pause: it may have
/// been on its way before the refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Pause {
    until: Option<Instant>,
    next: Duration,
}

const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

const ALL: [Category; 5] = [
    Category::ElbDescribe,
    Category::ElbTargets,
    Category::ElbMutate,
    Category::Ec2Describe,
    Category::Ec2Mutate,
];

impl Limit {
    /// For our part of the account's bucket.
    pub fn of(category: Category) -> Self {
        let (per_second, burst) = match category {
            Category::ElbDescribe => (10, 40),
            Category::ElbTargets => (4, 20),
            Category::ElbMutate => (5, 20),
            Category::Ec2Describe => (10, 40),
            Category::Ec2Mutate => (5, 20),
        };
        let number = |n| NonZeroU32::new(n).expect("the table holds no zero");
        Self { per_second: number(per_second), burst: number(burst) }
    }
}

impl Budget {
    pub fn new(limit: impl Fn(Category) -> Limit) -> Self {
        let bucket = |category| {
            let Limit { per_second, burst } = limit(category);
            let limiter = RateLimiter::direct(Quota::per_second(per_second).allow_burst(burst));
            (category, Bucket { limiter, pause: Mutex::new(Pause::default()) })
        };
        Self { buckets: ALL.into_iter().map(bucket).collect() }
    }

    /// Waits until the operation may be called.
    pub async fn take(&self, operation: Operation) {
        let bucket = self.bucket(operation);
        bucket.limiter.until_ready().await;
        // Another refusal may come in while we wait.
        while let Some(until) = bucket.paused_until() {
            tokio::time::sleep_until(until.into()).await;
        }
    }

    /// AWS refused it as one call too many.
    pub fn throttled(&self, operation: Operation) {
        let pause = &mut *self.bucket(operation).pause();
        *pause = pause.after_refusal(Instant::now());
        tracing::warn!(%operation, "AWS throttles us; next try in {:?}", pause.next / 2);
    }

    pub fn succeeded(&self, operation: Operation) {
        let pause = &mut *self.bucket(operation).pause();
        *pause = pause.after_success();
    }

    fn bucket(&self, operation: Operation) -> &Bucket {
        self.buckets.get(&operation.category()).expect("every category has its bucket")
    }
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(Limit::of)
    }
}

impl Bucket {
    fn pause(&self) -> std::sync::MutexGuard<'_, Pause> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn paused_until(&self) -> Option<Instant> {
        self.pause().until.filter(|until| *until > Instant::now())
    }
}

impl Pause {
    fn after_refusal(self, now: Instant) -> Self {
        Self { until: Some(now + self.next), next: (self.next * 2).min(LONGEST_PAUSE) }
    }

    fn after_success(self) -> Self {
        Self { next: (self.next / 2).max(FIRST_PAUSE), ..self }
    }
}

impl Default for Pause {
    fn default() -> Self {
        Self { until: None, next: FIRST_PAUSE }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn refusals_double_the_pause_up_to_a_bound_and_successes_take_it_back() {
        let now = Instant::now();
        let mut pause = Pause::default();
        let mut pauses = Vec::new();
        for _ in 0..8 {
            pause = pause.after_refusal(now);
            pauses.push((pause.until.unwrap() - now).as_millis());
        }
        assert_eq!(pauses, [500, 1000, 2000, 4000, 8000, 16000, 30000, 30000]);
        let until = pause.until;
        pause = pause.after_success();
        assert_eq!((pause.until, pause.next), (until, LONGEST_PAUSE / 2));
    }

    #[tokio::test]
    async fn a_refusal_holds_back_its_own_category_only() {
        let budget = Budget::default();
        budget.throttled(Operation::CreateLoadBalancer);
        assert!(budget.take(Operation::DeleteTargetGroup).now_or_never().is_none());
        assert!(budget.take(Operation::DescribeLoadBalancers).now_or_never().is_some());
        // Of a call that was made before.
        budget.succeeded(Operation::CreateTargetGroup);
        assert!(budget.take(Operation::DeleteTargetGroup).now_or_never().is_none());
        let waits = tokio::time::timeout(LONGEST_PAUSE, budget.take(Operation::DeleteTargetGroup));
        assert!(waits.await.is_ok());
    }
}
