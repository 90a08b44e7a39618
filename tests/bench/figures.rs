//! Samples, and the rows that they become.

use std::fmt;
use std::time::Duration;

/// From so many samples on, the 99th percentile is told too.
const TAIL: usize = 50;

/// What was measured several times over, in one unit.
#[derive(Debug, Clone, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    pub(crate) const fn new() -> Self {
        Self(Vec::new())
    }

    pub(crate) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(crate) fn add_time(&mut self, time: Duration) {
        self.add(time.as_secs_f64());
    }

    /// What was measured most recently.
    pub(crate) fn last(&self) -> Option<f64> {
        self.0.last().copied()
    }

    pub(crate) fn median(&self) -> Option<f64> {
        self.at(0.5)
    }

    /// The value that this part of the samples does not exceed; the nearest rank.
    pub(crate) fn at(&self, part: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a few samples, a part between 0 and 1"
        )]
        let rank = (part * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.saturating_sub(1)).copied()
    }
}

/// How a row's figures are written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    Seconds,
    Milliseconds,
    Microseconds,
    Mebibytes,
    /// Of one core.
    Percent,
}

impl Unit {
    /// Samples of time are in seconds, of memory in bytes, of a core in parts of it.
    fn of(self, value: f64) -> f64 {
        match self {
            Self::Seconds => value,
            Self::Milliseconds => value * 1e3,
            Self::Microseconds => value * 1e6,
            Self::Percent => value * 1e2,
            Self::Mebibytes => value / f64::from(1 << 20),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Milliseconds => "ms",
            Self::Microseconds => "µs",
            Self::Percent => "% of a core",
            Self::Mebibytes => "MiB",
        }
    }
}

/// One line of the table: ours, and the peer's where there is one.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    pub(crate) unit: Unit,
    pub(crate) ours: Samples,
    pub(crate) peer: Option<Samples>,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cell = |samples: &Samples| match (samples.median(), samples.at(0.0), samples.at(1.0)) {
            (Some(median), Some(least), Some(most)) => {
                let [median, least, most] = [median, least, most].map(|value| three(self.unit.of(value)));
                let tail = (TAIL <= samples.0.len()).then(|| samples.at(0.99)).flatten();
                let tail = tail.map_or_else(String::new, |p99| format!("; p99 {}", three(self.unit.of(p99))));
                format!("{median} ({least} – {most}{tail})")
            }
            _ => "—".to_owned(),
        };
        let peer = self.peer.as_ref();
        let factor = peer
            .and_then(Samples::median)
            .zip(self.ours.median().filter(|ours| *ours > 0.0))
            .map_or_else(|| "—".to_owned(), |(peer, ours)| format!("{}×", three(peer / ours)));
        let peer = peer.map_or_else(|| "—".to_owned(), cell);
        write!(f, "| {}, {} | {} | {peer} | {factor} |", self.what, self.unit.name(), cell(&self.ours))
    }
}

/// Three significant digits.
fn three(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        small if small >= 1.0 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_has_medians_spreads_and_the_factor() {
        let samples = |values: &[f64]| Samples(values.to_vec());
        let row = Row {
            what: "cold start".into(),
            unit: Unit::Milliseconds,
            ours: samples(&[0.3, 0.1, 0.2]),
            peer: Some(samples(&[4.0, 2.0])),
        };
        assert_eq!(row.to_string(), "| cold start, ms | 200 (100 – 300) | 2000 (2000 – 4000) | 10.0× |");
        let many = Row { ours: Samples((1..=100).map(|n| f64::from(n) / 1e3).collect()), peer: None, ..row };
        assert_eq!(many.to_string(), "| cold start, ms | 50.0 (1.00 – 100; p99 99.0) | — | — |");
        let alone = Row { ours: Samples::default(), peer: None, ..many };
        assert_eq!(alone.to_string(), "| cold start, ms | — | — | — |");
        let nothing = Row { ours: samples(&[0.0]), peer: Some(samples(&[0.0])), ..alone };
        assert!(nothing.to_string().ends_with("| — |"), "nothing has no factor");
    }

    #[test]
    fn ranks_are_the_nearest() {
        let samples = Samples((1..=100).map(f64::from).collect());
        assert_eq!(
            (samples.median(), samples.at(0.99), samples.at(1.0)),
            (Some(50.0), Some(99.0), Some(100.0))
        );
    }
}
