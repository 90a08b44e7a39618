//! Tasks with an owner that joins them.

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

/// The tasks of a program. When one fails, panics or ends early, the others are told to stop.
#[derive(Debug)]
pub struct Tasks {
    set: JoinSet<anyhow::Result<()>>,
    names: Vec<(Id, &'static str)>,
    cancel: CancellationToken,
}

impl Tasks {
    /// `cancel` is what the tasks watch, and what a failing one cancels.
    pub fn new(cancel: CancellationToken) -> Self {
        Self { set: JoinSet::new(), names: Vec::new(), cancel }
    }

    pub fn spawn<F>(&mut self, name: &'static str, task: F)
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let id = self.set.spawn(task).id();
        self.names.push((id, name));
    }

    /// Waits until the token is cancelled, or a task ends, and then at most `drain` for the rest.
    /// Every failure is logged with the name of its task.
    ///
    /// # Errors
    /// The first failure of a task.
    pub async fn join_all(mut self, drain: Duration) -> anyhow::Result<()> {
        let mut failure = None;
        tokio::select! {
            () = self.cancel.cancelled() => {}
            Some(ended) = self.set.join_next_with_id() => {
                let stopping = self.cancel.is_cancelled();
                let (name, result) = self.result_of(ended);
                if result.is_ok() && !stopping {
                    tracing::info!(task = name, "the task ended by itself; stopping the others");
                }
                failure = result.err();
                self.cancel.cancel();
            }
        }
        let stopped = tokio::time::timeout(drain, async {
            while let Some(ended) = self.set.join_next_with_id().await {
                let error = self.result_of(ended).1.err();
                failure = failure.take().or(error);
            }
        });
        if stopped.await.is_err() {
            tracing::warn!(
                tasks = self.names.iter().map(|(_, name)| *name).collect::<Vec<_>>().join(", "),
                seconds = drain.as_secs_f32(),
                "these did not stop in time and are ended"
            );
        }
        self.set.shutdown().await;
        failure.map_or(Ok(()), Err)
    }

    /// The name and result of a task that ended; it is no longer among the running ones.
    fn result_of(&mut self, ended: Ended) -> (&'static str, anyhow::Result<()>) {
        let (id, result) = match ended {
            Ok((id, result)) => (id, result),
            Err(error) => (error.id(), Err(anyhow::anyhow!("{}", what_ended(error)))),
        };
        let at =
            self.names.iter().position(|(known, _)| *known == id).expect("every task was named at spawn");
        let (_, name) = self.names.swap_remove(at);
        let result = result.with_context(|| name);
        if let Err(error) = &result {
            tracing::error!("{error:#}");
        }
        (name, result)
    }
}

type Ended = Result<(Id, anyhow::Result<()>), JoinError>;

fn what_ended(error: JoinError) -> String {
    match error.try_into_panic() {
        Ok(payload) => {
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            format!("panicked: {}", text.unwrap_or("no message"))
        }
        Err(cancelled) => cancelled.to_string(),
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

    #[tokio::test]
    async fn a_panic_is_a_failure_of_the_task_that_it_happened_in() {
        let mut tasks = Tasks::new(CancellationToken::new());
        tasks.spawn("fragile", async { panic!("index {} out of range", 3) });
        let error = tasks.join_all(Duration::from_secs(5)).await.unwrap_err();
        assert_eq!(format!("{error:#}"), "fragile: panicked: index 3 out of range");
    }

    #[tokio::test]
    async fn a_task_that_ends_early_without_a_failure_stops_the_others_too() {
        let cancel = CancellationToken::new();
        let mut tasks = Tasks::new(cancel.clone());
        let told = cancel.clone();
        tasks.spawn("steady", async move {
            told.cancelled().await;
            Ok(())
        });
        tasks.spawn("short", async { Ok(()) });
        tasks.join_all(Duration::from_secs(5)).await.unwrap();
        assert!(cancel.is_cancelled());
    }

    #[tokio::test]
    async fn a_task_that_does_not_stop_is_ended_after_the_drain_time() {
        struct Held(CancellationToken);
        impl Drop for Held {
            fn drop(&mut self) {
                self.0.cancel();
            }
        }
        let (cancel, ended) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = Tasks::new(cancel.clone());
        let held = Held(ended.clone());
        tasks.spawn("stubborn", async move {
            let _held = held;
            std::future::pending().await
        });
        cancel.cancel();
        tasks.join_all(Duration::from_millis(20)).await.unwrap();
        assert!(ended.is_cancelled(), "its future was dropped");
    }
}
