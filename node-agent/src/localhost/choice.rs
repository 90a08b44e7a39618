//! Which endpoint a connection goes to. Pure: time and chance are arguments.

use std::time::{Duration, Instant};

use crate::nft::layout::Target;

/// What a listener serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoints {
    /// Not empty.
    pub(super) targets: Vec<Target>,
    /// How long a client that is idle stays with its endpoint.
    pub(super) affinity: Option<Duration>,
}

/// With session affinity, all clients of a listener stay with one endpoint: they have one address.
/// Each connection renews it, as for kube-proxy.
#[derive(Debug)]
pub(super) struct Choice {
    endpoints: Endpoints,
    kept: Option<(Target, Instant)>,
}

impl Choice {
    pub(super) fn new(endpoints: Endpoints) -> Self {
        Self { endpoints, kept: None }
    }

    /// From the next connection on.
    pub(super) fn set(&mut self, endpoints: Endpoints) {
        if endpoints.affinity != self.endpoints.affinity {
            self.kept = None;
        }
        self.endpoints = endpoints;
    }

    /// For a connection that comes now; `drawn` is any number.
    pub(super) fn pick(&mut self, now: Instant, drawn: u64) -> Option<Target> {
        let Endpoints { targets, affinity } = &self.endpoints;
        let kept = self.kept.filter(|(target, last)| {
            affinity.is_some_and(|timeout| now.duration_since(*last) <= timeout) && targets.contains(target)
        });
        let target = match kept {
            Some((target, _)) => target,
            None => *targets.get((drawn % targets.len().max(1) as u64) as usize)?,
        };
        self.kept = affinity.is_some().then_some((target, now));
        Some(target)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(numbers: &[u8]) -> Vec<Target> {
        numbers.iter().map(|last| Target { ip: [10, 244, 0, *last].into(), port: 8080 }).collect()
    }

    fn with(numbers: &[u8], affinity: Option<u64>) -> Endpoints {
        Endpoints { targets: targets(numbers), affinity: affinity.map(Duration::from_secs) }
    }

    #[test]
    fn every_endpoint_is_drawn() {
        let mut choice = Choice::new(with(&[1, 2, 3], None));
        let now = Instant::now();
        let picked: Vec<Target> = (0..3).filter_map(|drawn| choice.pick(now, drawn)).collect();
        assert_eq!(picked, targets(&[1, 2, 3]));
        assert_eq!(Choice::new(with(&[], None)).pick(now, 7), None);
    }

    #[test]
    fn affinity_keeps_the_endpoint_while_it_is_there_and_connections_come_in_time() {
        let mut choice = Choice::new(with(&[1, 2, 3], Some(10)));
        let start = Instant::now();
        let at = |choice: &mut Choice, second: u64, drawn: u64| {
            choice.pick(start + Duration::from_secs(second), drawn).unwrap()
        };
        let [one, two, three] = targets(&[1, 2, 3])[..] else { unreachable!() };
        assert_eq!(at(&mut choice, 0, 1), two);
        assert_eq!(at(&mut choice, 10, 0), two);
        assert_eq!(at(&mut choice, 20, 0), two, "each connection renews it");
        assert_eq!(at(&mut choice, 31, 0), one, "too late");
        choice.set(with(&[2, 3], Some(10)));
        assert_eq!(at(&mut choice, 32, 1), three, "its endpoint is gone");
        choice.set(with(&[2, 3], Some(20)));
        assert_eq!(at(&mut choice, 33, 0), two, "another timeout begins anew");
        choice.set(with(&[2, 3], None));
        assert_eq!(at(&mut choice, 34, 1), three);
    }
}
