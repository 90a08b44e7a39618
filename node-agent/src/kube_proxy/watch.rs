//! A changed file ends the program, as it ends kube-proxy: what starts it again starts it with the new
//! one. Its rules stay meanwhile, and it writes only what the new file changes. A file that would not
//! be understood ends nothing: it is named in the log, and what runs goes on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;

/// A look is one small read. Followed by content, so that files behind links count: those of a
/// mounted ConfigMap.
const PERIOD: Duration = Duration::from_secs(5);

/// A configuration file, with what it said when the program read it.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    seen: Seen,
}

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

impl Watched {
    /// To be called before the file is read for use: what changes after this counts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let first = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Self { path: path.to_owned(), seen: Seen { last: first.clone(), first } })
    }

    /// Works until cancelled. `usable` reads the file as a start would.
    ///
    /// # Errors
    /// When the file says something else than at first, and that is usable.
    pub async fn ends_when_changed(
        mut self,
        usable: impl Fn() -> anyhow::Result<()>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let path = self.path.display();
        while cancel.run_until_cancelled(tokio::time::sleep(PERIOD)).await.is_some() {
            // Gone or half written: the next look tells.
            let Ok(now) = std::fs::read_to_string(&self.path) else { continue };
            match self.seen.look(now, &usable) {
                Look::AsBefore => {}
                Look::AsAtFirst => tracing::info!(%path, "the configuration file is as it was at first"),
                Look::Unusable(error) => {
                    tracing::error!(%path, error, "the changed configuration file is not used");
                }
                Look::Changed => {
                    bail!("the configuration file {path} has changed: ending, to be started again with it")
                }
            }
        }
        Ok(())
    }
}

impl Seen {
    fn look(&mut self, now: String, usable: impl Fn() -> anyhow::Result<()>) -> Look {
        if now == self.last {
            return Look::AsBefore;
        }
        self.last = now;
        if self.last == self.first {
            return Look::AsAtFirst;
        }
        match usable() {
            Ok(()) => Look::Changed,
            Err(error) => Look::Unusable(format!("{error:#}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_says_something_else_counts_and_one_that_cannot_be_used_does_not() {
        let mut seen = Seen { first: "first".to_owned(), last: "first".to_owned() };
        let mut look = |text: &str, usable: bool| {
            seen.look(text.to_owned(), || {
                anyhow::ensure!(usable, "not so");
                Ok(())
            })
        };
        assert_eq!(look("first", false), Look::AsBefore);
        assert_eq!(look("nonsense", false), Look::Unusable("not so".to_owned()));
        assert_eq!(look("nonsense", false), Look::AsBefore, "it is said once");
        assert_eq!(look("first", true), Look::AsAtFirst);
        assert_eq!(look("other", true), Look::Changed);
    }
}
