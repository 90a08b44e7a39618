//! After the first sync our rules stand: what kube-proxy left goes, and no connection with it.
//!
//! While kube-proxy runs, its ports are taken, and so ours are not ready: it is left alone. Where it
//! is told to listen nowhere, its rules come back: it is not fought, but asked for ever more rarely.

use std::time::Duration;

use daemon::Readiness;
use tokio_util::sync::CancellationToken;

use super::{Connections, Report, remove};

/// Between two looks at whether we are ready.
const POLL: Duration = Duration::from_millis(250);
/// Between two looks at what is left, while nothing is.
const USUAL: Duration = Duration::from_secs(300);
/// After rules were removed: do they come back?
const SOON: Duration = Duration::from_secs(60);
const RAREST: Duration = Duration::from_secs(3600);

/// When to look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Looks {
    /// How often something was there.
    found: u32,
}

impl Looks {
    /// After a look that found something, or did not.
    fn next(&mut self, found: bool) -> Duration {
        if !found {
            return USUAL;
        }
        self.found += 1;
        RAREST.min(SOON * 2_u32.saturating_pow(self.found - 1))
    }

    fn is_back(self) -> bool {
        self.found > 1
    }
}

/// Works until cancelled.
///
/// # Errors
/// None: what cannot be removed is said.
pub async fn take_over(readiness: Readiness, cancel: CancellationToken) -> anyhow::Result<()> {
    let work = async {
        while !readiness.missing().is_empty() {
            tokio::time::sleep(POLL).await;
        }
        let mut looks = Looks::default();
        let mut said = Vec::new();
        loop {
            let report = tokio::task::spawn_blocking(|| remove(Connections::Keep))
                .await
                .unwrap_or_else(|panic| Err(panic.into()));
            let found = report.as_ref().is_ok_and(|report| !report.removed.is_empty());
            let pause = looks.next(found);
            match report {
                Ok(report) => say(&report, looks, &mut said),
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "what kube-proxy may have left is still there");
                }
            }
            tokio::time::sleep(pause).await;
        }
    };
    cancel.run_until_cancelled(work).await;
    Ok(())
}

fn say(report: &Report, looks: Looks, said: &mut Vec<String>) {
    let removed = report.removed.join(", ");
    if looks.is_back() && !removed.is_empty() {
        tracing::warn!(removed, "kube-proxy's rules were there again: it still runs on this node; stop it");
    } else if !removed.is_empty() {
        tracing::info!(removed, "took over from kube-proxy");
    }
    if *said != report.left {
        said.clone_from(&report.left);
        for left in said {
            tracing::warn!(left, "not removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_come_back_are_removed_ever_more_rarely() {
        let mut looks = Looks::default();
        let minutes: Vec<u64> = [true, true, false, true, true, true, true, true, true]
            .into_iter()
            .map(|found| looks.next(found).as_secs() / 60)
            .collect();
        assert_eq!(minutes, [1, 2, 5, 4, 8, 16, 32, 60, 60]);
        assert!(looks.is_back());
    }
}
