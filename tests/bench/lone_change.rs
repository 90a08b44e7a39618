//! How long one change of endpoints takes to be served.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::netns::Netns;
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, endpoint, reached};
use crate::figures::Samples;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(1);
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(180);

/// From the API server's answer to a patch until a connection reaches a new endpoint.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoneChanges {
    /// Both endpoints are replaced by two others.
    pub(crate) same_count: Samples,
    /// Both are replaced by one.
    pub(crate) other_count: Samples,
}

impl LoneChanges {
    /// The two kinds by turns, each with a Service of its own; the next one finds two endpoints again.
    pub(crate) async fn measure(&mut self, cluster: &Cluster, netns: &Netns, count: usize) -> Result<()> {
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
