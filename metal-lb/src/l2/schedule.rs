//! When an owned VIP is announced: at once, every 1.1 s for 5 s (some switches drop a burst closer
//! than a second; MetalLB #172), then once a minute, for switches that forget.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::members::{Claims, RESUMED};

const BURST: u32 = 5;
const BURST_PAUSE: Duration = Duration::from_millis(1100);
const REFRESH: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Schedule {
    owned: BTreeMap<Ipv4Addr, Next>,
}

#[derive(Debug)]
struct Next {
    claim: u64,
    at: Duration,
    sent: u32,
}

impl Schedule {
    /// A VIP with a new claim number begins anew; one that was only resumed is not announced.
    pub(super) fn set_owned(&mut self, claims: &Claims, now: Duration) {
        self.owned.retain(|vip, next| claims.get(vip) == Some(&next.claim));
        for (vip, claim) in claims.iter().filter(|(_, claim)| **claim != RESUMED) {
            self.owned.entry(*vip).or_insert(Next { claim: *claim, at: now, sent: 0 });
        }
    }

    /// What to announce now.
    pub(super) fn due(&mut self, now: Duration) -> Vec<Ipv4Addr> {
        let due = self.owned.iter_mut().filter(|(_, next)| next.at <= now);
        due.map(|(vip, next)| {
            next.sent += 1;
            next.at = now + if next.sent < BURST { BURST_PAUSE } else { REFRESH };
            *vip
        })
        .collect()
    }

    pub(super) fn next(&self) -> Option<Duration> {
        self.owned.values().map(|next| next.at).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);

    /// When the next announcements of the VIP are due, in milliseconds.
    fn next_times(schedule: &mut Schedule, count: usize) -> Vec<u128> {
        let mut next = || {
            let at = schedule.next().unwrap();
            assert_eq!(schedule.due(at), [VIP]);
            at.as_millis()
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn a_new_vip_is_announced_at_once_then_in_a_burst_then_each_minute() {
        let mut schedule = Schedule::default();
        schedule.set_owned(&[(VIP, 1)].into(), Duration::ZERO);
        assert_eq!(next_times(&mut schedule, 7), [0, 1100, 2200, 3300, 4400, 64_400, 124_400]);
        schedule.set_owned(&Claims::new(), Duration::from_secs(200));
        assert_eq!(schedule.next(), None);
    }

    #[test]
    fn a_resumed_vip_is_not_announced_before_peers_were_heard() {
        let mut schedule = Schedule::default();
        schedule.set_owned(&[(VIP, RESUMED)].into(), Duration::ZERO);
        assert_eq!(schedule.next(), None);
        schedule.set_owned(&[(VIP, 1)].into(), Duration::from_secs(1));
        assert_eq!(next_times(&mut schedule, 1), [1000]);
    }

    #[test]
    fn a_new_claim_to_the_same_vip_is_a_new_burst_and_the_same_claim_is_not() {
        let mut schedule = Schedule::default();
        schedule.set_owned(&[(VIP, 1)].into(), Duration::ZERO);
        assert_eq!(next_times(&mut schedule, 5).last(), Some(&4400));
        schedule.set_owned(&[(VIP, 1)].into(), Duration::from_secs(10));
        assert!(schedule.due(Duration::from_secs(10)).is_empty());
        schedule.set_owned(&[(VIP, 2)].into(), Duration::from_secs(10));
        assert_eq!(next_times(&mut schedule, 2), [10_000, 11_100]);
    }
}
