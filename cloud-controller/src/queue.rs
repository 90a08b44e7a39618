//! Which Service is reconciled next, and when one is tried again. Sans-IO: time comes in.
//!
//! Each provider has a lane with its own limit, so that a slow cloud API never holds up the other.
//! A Service is in one job at a time; what happens to it meanwhile makes it dirty once more.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use service_model::ServiceName;

use crate::desired::Provider;
use crate::plan::Outcome;

/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);

#[derive(Debug, Default)]
pub struct Queue {
    lanes: BTreeMap<Provider, Lane>,
}

#[derive(Debug)]
struct Lane {
    limit: usize,
    ready: BTreeSet<ServiceName>,
    running: BTreeSet<ServiceName>,
    retries: BTreeMap<ServiceName, Retry>,
    /// Not yet reconciled since the start.
    first_pass: BTreeSet<ServiceName>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Retry {
    tries: u32,
    /// `None` while it is being tried again.
    at: Option<Instant>,
}

impl Queue {
    /// `limits` is how many jobs each lane runs at once.
    pub fn new(limits: impl IntoIterator<Item = (Provider, usize)>) -> Self {
        let lane = |(provider, limit)| {
            let (ready, running) = (BTreeSet::new(), BTreeSet::new());
            let (retries, first_pass) = (BTreeMap::new(), BTreeSet::new());
            (provider, Lane { limit, ready, running, retries, first_pass })
        };
        Self { lanes: limits.into_iter().map(lane).collect() }
    }

    /// Something about the Service changed: it is reconciled at once, and its retries count anew.
    pub fn mark(&mut self, provider: Provider, service: &ServiceName) {
        if let Some(lane) = self.lanes.get_mut(&provider) {
            lane.retries.remove(service);
            lane.ready.insert(service.clone());
        }
    }

    /// As [`Queue::mark`], and the first pass is complete only after it.
    pub fn mark_first(&mut self, provider: Provider, service: &ServiceName) {
        self.mark(provider, service);
        if let Some(lane) = self.lanes.get_mut(&provider) {
            lane.first_pass.insert(service.clone());
        }
    }

    /// Nothing is left to do for the Service.
    pub fn drop_service(&mut self, service: &ServiceName) {
        for lane in self.lanes.values_mut() {
            lane.ready.remove(service);
            lane.retries.remove(service);
            if !lane.running.contains(service) {
                lane.first_pass.remove(service);
            }
        }
    }

    /// The next job that may start now. It counts as running until [`Queue::finished`].
    pub fn next(&mut self, now: Instant) -> Option<(Provider, ServiceName)> {
        for (provider, lane) in &mut self.lanes {
            lane.wake(now);
            if lane.running.len() >= lane.limit {
                continue;
            }
            let free = lane.ready.iter().find(|s| !lane.running.contains(*s)).cloned();
            if let Some(service) = free {
                lane.ready.remove(&service);
                lane.running.insert(service.clone());
                return Some((*provider, service));
            }
        }
        None
    }

    /// The job ended.
    pub fn finished(&mut self, provider: Provider, service: &ServiceName, outcome: &Outcome, now: Instant) {
        let Some(lane) = self.lanes.get_mut(&provider) else { return };
        lane.running.remove(service);
        lane.first_pass.remove(service);
        // Marked meanwhile: it runs again at once, and a pause would only be in its way.
        if lane.ready.contains(service) {
            return;
        }
        match outcome {
            Outcome::Converged | Outcome::Blocked { .. } => _ = lane.retries.remove(service),
            Outcome::Retry { after, .. } => {
                let tries = lane.retries.get(service).map_or(0, |r| r.tries);
                let at = now + pause(*after, tries);
                lane.retries.insert(service.clone(), Retry { tries: tries + 1, at: Some(at) });
            }
        }
    }

    pub fn is_running(&self, service: &ServiceName) -> bool {
        self.lanes.values().any(|l| l.running.contains(service))
    }

    /// When the next retry is due.
    pub fn next_retry(&self) -> Option<Instant> {
        self.lanes.values().flat_map(|l| l.retries.values()).filter_map(|r| r.at).min()
    }

    /// Whether everything that was there at the start has been reconciled once.
    pub fn first_pass_done(&self) -> bool {
        self.lanes.values().all(|l| l.first_pass.is_empty())
    }
}

impl Lane {
    fn wake(&mut self, now: Instant) {
        for (service, retry) in &mut self.retries {
            if retry.at.is_some_and(|at| at <= now) {
                retry.at = None;
                self.ready.insert(service.clone());
            }
        }
    }
}

/// Doubles with each try.
fn pause(first: Duration, tries: u32) -> Duration {
    first.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE.max(first))
}

#[cfg(test)]
mod tests {
    use service_model::ObjectName;

    use super::*;
    use Provider::{Aws, Metal};

    fn name(name: &str) -> ServiceName {
        ObjectName::new("ns", name)
    }

    fn retry() -> Outcome {
        Outcome::Retry { after: Duration::from_secs(1), why: String::new() }
    }

    fn queue() -> Queue {
        Queue::new([(Metal, 2), (Aws, 1)])
    }

    #[test]
    fn a_full_lane_does_not_hold_up_the_other() {
        let (mut queue, now) = (queue(), Instant::now());
        for service in ["a", "b"] {
            queue.mark(Aws, &name(service));
            queue.mark(Metal, &name(service));
        }
        let started: Vec<String> =
            std::iter::from_fn(|| queue.next(now)).map(|(p, s)| format!("{p} {}", s.name())).collect();
        assert_eq!(started, ["aws a", "metal a", "metal b"]);
        queue.finished(Aws, &name("a"), &Outcome::Converged, now);
        assert_eq!(queue.next(now), Some((Aws, name("b"))));
    }

    #[test]
    fn a_service_runs_once_at_a_time_and_again_when_it_changed_meanwhile() {
        let (mut queue, now) = (queue(), Instant::now());
        queue.mark(Metal, &name("a"));
        assert_eq!(queue.next(now), Some((Metal, name("a"))));
        queue.mark(Metal, &name("a"));
        assert_eq!(queue.next(now), None);
        queue.finished(Metal, &name("a"), &retry(), now);
        assert_eq!(queue.next(now), Some((Metal, name("a"))), "without a pause");
    }

    #[test]
    fn retries_back_off_from_one_second_to_five_minutes_and_start_over_at_a_change() {
        let (mut queue, start) = (queue(), Instant::now());
        let mut now = start;
        let mut pauses = Vec::new();
        queue.mark(Metal, &name("a"));
        for _ in 0..11 {
            assert_eq!(queue.next(now), Some((Metal, name("a"))));
            queue.finished(Metal, &name("a"), &retry(), now);
            assert_eq!(queue.next(now), None);
            let at = queue.next_retry().unwrap();
            pauses.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        queue.mark(Metal, &name("a"));
        assert_eq!(queue.next_retry(), None);
        assert_eq!(queue.next(now), Some((Metal, name("a"))));
        queue.finished(Metal, &name("a"), &retry(), now);
        assert_eq!(queue.next_retry(), Some(now + Duration::from_secs(1)));
    }

    #[test]
    fn a_blocked_service_waits_for_a_change() {
        let (mut queue, now) = (queue(), Instant::now());
        queue.mark(Metal, &name("a"));
        queue.next(now);
        queue.finished(Metal, &name("a"), &Outcome::Blocked { why: String::new() }, now);
        assert_eq!((queue.next_retry(), queue.next(now + LONGEST_PAUSE)), (None, None));
    }

    #[test]
    fn the_first_pass_ends_when_each_service_was_reconciled_or_dropped() {
        let (mut queue, now) = (queue(), Instant::now());
        queue.mark_first(Metal, &name("a"));
        queue.mark_first(Metal, &name("b"));
        queue.drop_service(&name("b"));
        assert!(!queue.first_pass_done());
        queue.next(now);
        queue.finished(Metal, &name("a"), &retry(), now);
        assert!(queue.first_pass_done());
    }
}
