//! How long a change of endpoints takes to be served, alone and among others, and what it costs.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::netns::Netns;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, endpoint, reached};
use crate::contender::Running;
use crate::figures::Samples;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(180);

/// From the API server's answer to a patch until a connection reaches a new endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct Changes {
    /// Both endpoints are replaced by two others.
    pub(crate) same_count: Samples,
    /// Both are replaced by one.
    pub(crate) other_count: Samples,
    /// Processor time of a lone change.
    pub(crate) processor: Samples,
    /// Each of many that are made one right after the other.
    pub(crate) back_to_back: Samples,
}

impl Changes {
    pub(crate) async fn measure(&mut self, cluster: &Cluster, running: &Running, count: usize) -> Result<()> {
        let family = running.family()?;
        let before = family.processor_seconds()?;
        self.lone(cluster, &running.host.netns, count).await?;
        #[allow(clippy::cast_precision_loss, reason = "a few dozen")]
        self.processor.add((family.processor_seconds()? - before) / (2 * count) as f64);
        self.back_to_back(cluster, running, count).await
    }

    /// The two kinds by turns, each with a Service of its own; the next one finds two endpoints again.
    async fn lone(&mut self, cluster: &Cluster, netns: &Netns, count: usize) -> Result<()> {
        for nth in 0..count {
            let change = Change::of(cluster, nth * 7919)?;
            let (wanted, samples) = if nth.is_multiple_of(2) {
                (&change.after[..], &mut self.same_count)
            } else {
                (&change.after[..1], &mut self.other_count)
            };
            cluster.move_endpoints(change.service, wanted).await?;
            samples.add_time(await_endpoint(netns, change.vip, wanted, Instant::now()).await?);
            cluster.move_endpoints(change.service, &change.before).await?;
            await_endpoint(netns, change.vip, &change.before, Instant::now()).await?;
        }
        Ok(())
    }

    /// As fast as the API server takes them.
    async fn back_to_back(&mut self, cluster: &Cluster, running: &Running, count: usize) -> Result<()> {
        let changes = (0..count).map(|nth| Change::of(cluster, nth * 7919)).collect::<Result<Vec<_>>>()?;
        let mut waiting = JoinSet::new();
        for Change { service, vip, after, .. } in &changes {
            cluster.move_endpoints(*service, after).await?;
            let (netns, vip, after, start) = (running.host.netns.clone(), *vip, *after, Instant::now());
            waiting.spawn(async move { await_endpoint(&netns, vip, &after, start).await });
        }
        while let Some(served) = waiting.join_next().await {
            self.back_to_back.add_time(served??);
        }
        for change in &changes {
            cluster.move_endpoints(change.service, &change.before).await?;
        }
        for change in &changes {
            await_endpoint(&running.host.netns, change.vip, &change.before, Instant::now()).await?;
        }
        Ok(())
    }
}

/// Other endpoints for one Service.
#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) service: usize,
    pub(crate) vip: SocketAddr,
    pub(crate) before: [Ipv4Addr; 2],
    pub(crate) after: [Ipv4Addr; 2],
}

impl Change {
    pub(crate) fn of(cluster: &Cluster, number: usize) -> Result<Self> {
        ensure!(!cluster.vips.is_empty(), "there are no Services");
        let service = number % cluster.vips.len();
        let vip = *cluster.vips.get(service).context("the remainder is below the count")?;
        let two = |first| [endpoint(service, first), endpoint(service, first + 1)];
        Ok(Self { service, vip, before: two(0), after: two(2) })
    }
}

/// The time from `start` until a connection to the VIP reaches one of these endpoints.
pub(crate) async fn await_endpoint(
    netns: &Netns,
    vip: SocketAddr,
    wanted: &[Ipv4Addr],
    start: Instant,
) -> Result<Duration> {
    loop {
        if let Ok(Ok(endpoint)) = timeout(LOOK, reached(netns, vip)).await
            && wanted.contains(&endpoint)
        {
            return Ok(start.elapsed());
        }
        ensure!(start.elapsed() < PATIENCE, "{vip} never reached {wanted:?}");
        sleep(PAUSE).await;
    }
}
