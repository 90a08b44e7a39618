//! Tasks with an owner that joins them.

use std::future::Future;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// The tasks of a program. When one fails, panics or ends early, the others are told to stop.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<(&'static str, anyhow::Result<()>)>,
    cancel: CancellationToken,
}

impl Tasks {
    /// `cancel` is what the tasks watch, and what a failing one cancels.
    pub fn new(cancel: CancellationToken) -> Self {
        Self { set: JoinSet::new(), cancel }
    }

    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.set.spawn(async move { (name, task.await) });
    }

    /// Waits until the token is cancelled, or a task ends, and then at most `drain` for the rest.
    ///
    /// # Errors
    /// The first failure of a task.
    pub async fn join_all(mut self, drain: Duration) -> anyhow::Result<()> {
        let mut failure = None;
        tokio::select! {
            () = self.cancel.cancelled() => {}
            Some(ended) = self.set.join_next() => {
                let stopping = self.cancel.is_cancelled();
                failure = failure_of(ended);
                if failure.is_none() && !stopping {
                    tracing::debug!("a task ended by itself; stopping the others");
                }
                self.cancel.cancel();
            }
        }
        let rest = async {
            while let Some(ended) = self.set.join_next().await {
                failure = failure.take().or(failure_of(ended));
            }
        };
        if tokio::time::timeout(drain, rest).await.is_err() {
            tracing::warn!(seconds = drain.as_secs_f32(), "some tasks did not stop in time and were ended");
        }
        self.set.shutdown().await;
        failure.map_or(Ok(()), Err)
    }
}

type Ended = Result<(&'static str, anyhow::Result<()>), tokio::task::JoinError>;

fn failure_of(ended: Ended) -> Option<anyhow::Error> {
    match ended {
        Ok((_, Ok(()))) => None,
        Ok((name, Err(error))) => Some(error.context(name)),
        Err(panic) => Some(anyhow::anyhow!("a task panicked: {panic}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_failing_task_stops_the_others_and_its_error_names_it() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        tasks.spawn("steady", async move {
            cancel.cancelled().await;
            Ok(())
        });
        tasks.spawn("broken", async { anyhow::bail!("no such table") });
        let error = tasks.join_all(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "broken: no such table");
    }
}
