//! When an owned VIP is announced: at once, every 1.1 s for 5 s (some switches drop a burst closer
//! than a second; MetalLB #172), then once a minute, for switches that forget.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

const BURST: u32 = 5;
const BURST_PAUSE: Duration = Duration::from_millis(1100);
const REFRESH: Duration = Duration::from_secs(60);

#[derive(Debug, Default)]
pub(super) struct Schedule {
    owned: BTreeMap<Ipv4Addr, Next>,
}

#[derive(Debug)]
struct Next {
    at: Duration,
    sent: u32,
}

impl Schedule {
    pub(super) fn set_owned(&mut self, owned: &BTreeSet<Ipv4Addr>, now: Duration) {
        self.owned.retain(|vip, _| owned.contains(vip));
        for vip in owned {
            self.owned.entry(*vip).or_insert(Next { at: now, sent: 0 });
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

    #[test]
    fn a_new_vip_is_announced_at_once_then_in_a_burst_then_each_minute() {
        let (vip, mut schedule) = (Ipv4Addr::new(10, 0, 0, 1), Schedule::default());
        schedule.set_owned(&[vip].into(), Duration::ZERO);
        let mut times = Vec::new();
        while times.len() < 7 {
            let at = schedule.next().unwrap();
            assert_eq!(schedule.due(at), [vip]);
            times.push(at.as_millis());
        }
        assert_eq!(times, [0, 1100, 2200, 3300, 4400, 64_400, 124_400]);
        schedule.set_owned(&BTreeSet::new(), Duration::from_secs(200));
        assert_eq!(schedule.next(), None);
    }
}
