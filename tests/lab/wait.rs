//! Waiting for a condition, never for a time.

use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

/// Between two looks. Short beside every deadline, long enough to leave the machine alone.
const PAUSE: Duration = Duration::from_millis(20);

/// Looks again and again until `look` answers. An error means "not yet" and says what was seen.
///
/// # Errors
/// After `deadline`, with `what` was waited for and what the last look saw.
pub async fn until<T>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    let mut seen = anyhow!("the first look did not come back");
    while let Some(left) = deadline.checked_sub(start.elapsed()) {
        match tokio::time::timeout(left.max(PAUSE), look()).await {
            Ok(Ok(found)) => return Ok(found),
            Ok(Err(error)) => seen = error,
            Err(_) => break,
        }
        tokio::time::sleep(PAUSE).await;
    }
    Err(anyhow!("waited {:.1} s until {what}; seen instead: {seen:#}", start.elapsed().as_secs_f32()))
}
