//! A client that never stops asking.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{MissedTickBehavior, interval};

use super::{Client, PATIENCE};

/// Between two new connections.
const PACE: Duration = Duration::from_millis(10);

/// Asks every 10 ms on a new connection, whether or not the earlier ones are answered.
#[derive(Debug)]
pub struct Curler {
    story: Arc<Mutex<Story>>,
    task: JoinHandle<()>,
    stop: tokio_util::sync::CancellationToken,
}

/// What the client lived through.
#[derive(Debug, Clone, Default)]
pub struct Story {
    pub requests: usize,
    pub failures: Vec<Failure>,
    pub by_pod: BTreeMap<String, usize>,
    /// From the connection's first packet to the last byte of the answer.
    pub slowest: Duration,
    /// The longest time between two good answers.
    pub longest_gap: Duration,
    last_good: Option<Instant>,
}

#[derive(Debug, Clone)]
pub struct Failure {
    /// Since the client began.
    pub at: Duration,
    pub why: String,
}

impl Curler {
    pub(super) fn start(client: Client, target: SocketAddr) -> Self {
        let story = Arc::new(Mutex::new(Story::default()));
        let stop = tokio_util::sync::CancellationToken::new();
        let task = tokio::spawn(ask_along(client, target, Arc::clone(&story), stop.clone()));
        Self { story, task, stop }
    }

    /// The story so far.
    pub fn so_far(&self) -> Story {
        self.story.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until that many more requests were answered.
    ///
    /// # Errors
    /// When they are not answered; with the story so far.
    pub async fn more(&self, count: usize) -> anyhow::Result<()> {
        let enough = self.so_far().good() + count;
        crate::wait::until(&format!("{count} more requests are answered"), PATIENCE * 4, async || {
            let story = self.so_far();
            anyhow::ensure!(story.good() >= enough, "{story}");
            Ok(())
        })
        .await
    }

    /// Lets the requests under way end, and tells the whole story.
    pub async fn stop(mut self) -> Story {
        self.stop.cancel();
        // The task only ends early if it panicked, which has been printed.
        let _ = (&mut self.task).await;
        self.so_far()
    }
}

impl Drop for Curler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Story {
    /// How many requests were answered.
    pub fn good(&self) -> usize {
        self.by_pod.values().sum()
    }

    /// The story, if nothing failed in it.
    ///
    /// # Errors
    /// With the whole story, failures first.
    pub fn without_failure(self) -> anyhow::Result<Self> {
        anyhow::ensure!(self.failures.is_empty() && self.requests > 0, "{self}");
        Ok(self)
    }

    fn note(&mut self, start: Instant, asked: Instant, result: anyhow::Result<String>) {
        let now = Instant::now();
        self.requests += 1;
        match result {
            Ok(pod) => {
                *self.by_pod.entry(pod).or_default() += 1;
                self.slowest = self.slowest.max(now - asked);
                self.longest_gap = self.longest_gap.max(now - self.last_good.unwrap_or(start));
                self.last_good = Some(now);
            }
            Err(error) => {
                self.failures.push(Failure { at: asked - start, why: format!("{error:#}") });
            }
        }
    }
}

impl fmt::Display for Story {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} requests, {} failed, slowest {} ms, longest gap {} ms, answered by",
            self.requests,
            self.failures.len(),
            self.slowest.as_millis(),
            self.longest_gap.as_millis()
        )?;
        self.by_pod.iter().try_for_each(|(pod, count)| write!(f, " {pod}: {count}"))?;
        self.failures
            .iter()
            .take(3)
            .chain(self.failures.last())
            .try_for_each(|failure| write!(f, "; after {:.2} s: {}", failure.at.as_secs_f32(), failure.why))
    }
}

async fn ask_along(
    client: Client,
    target: SocketAddr,
    story: Arc<Mutex<Story>>,
    stop: tokio_util::sync::CancellationToken,
) {
    let start = Instant::now();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut under_way = JoinSet::new();
    while tokio::select! { _ = pace.tick() => true, () = stop.cancelled() => false } {
        let (client, story) = (client.clone(), Arc::clone(&story));
        under_way.spawn(async move {
            let asked = Instant::now();
            let result = client.get(target).await.map(|answer| answer.pod);
            story.lock().unwrap_or_else(PoisonError::into_inner).note(start, asked, result);
        });
        while under_way.try_join_next().is_some() {}
    }
    under_way.join_all().await;
}
