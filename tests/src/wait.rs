//! Waiting for a condition, with a deadline and an account of what was seen instead.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
const POLL: Duration = Duration::from_millis(20);

/// Looks until `check` answers `Ok`; after `limit`, fails with what it last answered.
///
/// # Errors
/// The deadline passed.
pub async fn until<T, W, F>(what: &str, limit: Duration, mut check: impl FnMut() -> F) -> anyhow::Result<T>
where
    F: Future<Output = Result<T, W>>,
    W: Display,
{
    let start = Instant::now();
    loop {
        match check().await {
            Ok(value) => return Ok(value),
            Err(seen) if start.elapsed() > limit => {
                anyhow::bail!("{what}: not within {} s; last seen: {seen}", limit.as_secs_f32())
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}
