//! Durations as Go writes them, in files.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::config::parse_duration;

/// Reads what [`parse_duration`] reads, and prints what Go prints: `0s`, `100ms`, `1m30s`, `24h0m0s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, PartialOrd, Ord)]
pub struct GoDuration(pub Duration);

impl GoDuration {
    pub fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    pub fn is_zero(self) -> bool {
        self.0.is_zero()
    }
}

impl fmt::Display for GoDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = self.0.as_nanos();
        let decimal = |unit: u32| {
            let text = format!("{:.9}", nanos as f64 / f64::from(unit));
            text.trim_end_matches('0').trim_end_matches('.').to_owned()
        };
        match nanos {
            0 => f.write_str("0s"),
            1..1_000 => write!(f, "{nanos}ns"),
            1_000..1_000_000 => write!(f, "{}µs", decimal(1_000)),
            1_000_000..1_000_000_000 => write!(f, "{}ms", decimal(1_000_000)),
            _ => {
                let (minutes, seconds) = (self.0.as_secs() / 60, self.0.as_secs() % 60);
                match (minutes / 60, minutes % 60) {
                    (0, 0) => {}
                    (0, minutes) => write!(f, "{minutes}m")?,
                    (hours, minutes) => write!(f, "{hours}h{minutes}m")?,
                }
                let fraction = format!("{:09}", self.0.subsec_nanos());
                match fraction.trim_end_matches('0') {
                    "" => write!(f, "{seconds}s"),
                    fraction => write!(f, "{seconds}.{fraction}s"),
                }
            }
        }
    }
}

impl Serialize for GoDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for GoDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text).map(Self).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_printed_as_go_does_and_read_back() {
        for text in ["0s", "5ns", "1.5µs", "100ms", "1.5s", "30s", "1m30s", "15m0s", "1h0m0s", "24h0m0s"] {
            assert_eq!(GoDuration(parse_duration(text).unwrap()).to_string(), text);
        }
    }
}
