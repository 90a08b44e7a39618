//! A changed file ends the program, as it ends kube-proxy: what starts it again starts it with the new
//! one. Its rules stay meanwhile, and it writes only what the new file changes. A file that would not
//! be understood ends nothing: it is named in the log, and what runs goes on.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use tokio_util::sync::CancellationToken;

use super::file;

/// A look is one small read. Followed by content, so that files behind links count: those of a
/// mounted ConfigMap.
const PERIOD: Duration = Duration::from_secs(5);

/// What the file said at first and at the last look.
#[derive(Debug)]
struct Seen {
    first: String,
    last: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Look {
    AsBefore,
    /// What changed meanwhile is undone.
    AsAtFirst,
    Unusable(String),
    Changed,
}

/// Works until cancelled.
///
/// # Errors
/// When the file says something else than at first.
pub async fn ends_when_changed(path: &Path, cancel: CancellationToken) -> anyhow::Result<()> {
    let first = std::fs::read_to_string(path).unwrap_or_default();
    let mut seen = Seen { last: first.clone(), first };
    while cancel.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
        // Gone or half written: the next look tells.
        let Ok(now) = std::fs::read_to_string(path) else { continue };
        match seen.look(now) {
            Look::AsBefore => {}
            Look::AsAtFirst => {
                tracing::info!(path = %path.display(), "the configuration file is as it was at first");
            }
            Look::Unusable(error) => {
                tracing::error!(path = %path.display(), error, "the changed configuration file is not used");
            }
            Look::Changed => {
                bail!(
                    "the configuration file {} has changed: ending, to be started again with it",
                    path.display()
                )
            }
        }
    }
    Ok(())
}

impl Seen {
    fn look(&mut self, now: String) -> Look {
        if now == self.last {
            return Look::AsBefore;
        }
        self.last = now;
        if self.last == self.first {
            return Look::AsAtFirst;
        }
        match file::parse(&self.last) {
            Ok(_) => Look::Changed,
            Err(error) => Look::Unusable(format!("{error:#}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    #[test]
    fn a_file_that_says_something_else_counts_and_one_that_says_nothing_sensible_does_not() {
        let mut seen = Seen { first: FILE.to_owned(), last: FILE.to_owned() };
        assert_eq!(seen.look(FILE.to_owned()), Look::AsBefore);
        assert!(matches!(seen.look("mode: nonsense".to_owned()), Look::Unusable(_)));
        assert_eq!(seen.look("mode: nonsense".to_owned()), Look::AsBefore, "it is said once");
        assert_eq!(seen.look(FILE.to_owned()), Look::AsAtFirst);
        assert_eq!(seen.look(format!("{FILE}mode: iptables\n")), Look::Changed);
    }
}
