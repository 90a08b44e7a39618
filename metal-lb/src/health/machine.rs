//! Rise and fall with hysteresis. Results come in, a verdict goes out; no clock, no I/O.

/// This many failures in a row take a node out.
const FALL: u32 = 3;
/// This many successes in a row bring it back.
const RISE: u32 = 2;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Verdict {
    /// Not asked yet: used while nobody is known to be healthy, so that a new Service does not wait.
    #[default]
    Initial,
    Healthy,
    Unhealthy,
}

/// One check's memory.
#[derive(Debug, Clone, Default)]
pub struct Machine {
    verdict: Verdict,
    /// Results in a row that speak against the verdict.
    against: u32,
}

impl Machine {
    /// Takes a result in; the verdict after it. The first result decides at once.
    pub fn result(&mut self, ok: bool) -> Verdict {
        let (agrees, needed, other) = match self.verdict {
            Verdict::Initial => (false, 1, if ok { Verdict::Healthy } else { Verdict::Unhealthy }),
            Verdict::Healthy => (ok, FALL, Verdict::Unhealthy),
            Verdict::Unhealthy => (!ok, RISE, Verdict::Healthy),
        };
        self.against = if agrees { 0 } else { self.against + 1 };
        if self.against >= needed {
            self.verdict = other;
            self.against = 0;
        }
        self.verdict
    }

    pub fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// How many results in a row speak against the verdict, and how many change it; `None` when the
    /// last one agreed.
    pub fn against(&self) -> Option<(u32, u32)> {
        let needed = if self.verdict == Verdict::Healthy { FALL } else { RISE };
        (self.against > 0).then_some((self.against, needed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_changes_only_after_enough_results_in_a_row() {
        let table: &[(&str, Verdict)] = &[
            ("", Verdict::Initial),
            ("+", Verdict::Healthy),
            ("-", Verdict::Unhealthy),
            ("+--", Verdict::Healthy),
            ("+---", Verdict::Unhealthy),
            ("+--+--", Verdict::Healthy),
            ("-+", Verdict::Unhealthy),
            ("-++", Verdict::Healthy),
            ("-+-+", Verdict::Unhealthy),
        ];
        for (results, verdict) in table {
            let mut machine = Machine::default();
            results.chars().for_each(|r| {
                machine.result(r == '+');
            });
            assert_eq!(machine.verdict(), *verdict, "{results:?}");
        }
    }
}
