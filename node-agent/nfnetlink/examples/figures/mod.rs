//! How the examples measure, and how they print it.

use std::time::{Duration, Instant};

use nfnetlink::Result;

pub(crate) fn timed(act: impl FnOnce() -> Result<()>) -> Result<Duration> {
    let start = Instant::now();
    act()?;
    Ok(start.elapsed())
}

pub(crate) fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Smallest, median and largest.
pub(crate) fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let [first, middle, last] = [0, times.len() / 2, times.len() - 1].map(|at| millis(times[at]));
    format!("{first:.3}/{middle:.3}/{last:.3} ms")
}
