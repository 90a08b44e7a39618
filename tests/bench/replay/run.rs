//! A tape played at a rate, and how far behind a program is meanwhile.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use bytes::BytesMut;
use lab::netns::Netns;
use tokio::sync::mpsc;
use tokio::time::sleep;

use super::stage::Watch;
use super::tape::{MARKERS, Step, Tape};
use crate::cluster::Cluster;
use crate::contender::Running;
use crate::figures::Samples;
use crate::lone_change::await_endpoint;

/// Between two writes: what is due by then is written at once.
const TICK: Duration = Duration::from_millis(2);
/// One change in so long is looked for.
const MARKER_EVERY: Duration = Duration::from_millis(250);
/// Changes before the last one, a marker, that must be served too before all count as served.
const LAST: usize = 3;
/// Services whose end state is looked at.
const CHECKED: usize = 16;

/// From the moment at which a change was due to be written until it is served.
#[derive(Debug, Clone, Default)]
pub(super) struct Behind {
    pub(super) lag: Samples,
    pub(super) first_quarter: Samples,
    pub(super) last_quarter: Samples,
    /// The last change, and all before it.
    pub(super) all_served: Samples,
    /// Processor seconds of a thousand changes.
    pub(super) processor: Samples,
}

/// One program's watch, from its start on.
pub(super) struct Player<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) tape: &'a Tape,
    pub(super) running: &'a Running,
    pub(super) watch: Watch,
    /// Changes of the churn that were written.
    pub(super) played: usize,
    /// Where the markers go next.
    pub(super) away: bool,
}

/// A change that somebody looks for.
struct Sought {
    vip: SocketAddr,
    wanted: Vec<Ipv4Addr>,
    due: Instant,
}

impl Player<'_> {
    /// Plays for so long; returns when everything is served.
    pub(super) async fn play(&mut self, rate: u32, length: Duration, behind: &mut Behind) -> Result<()> {
        let family = self.running.family()?;
        let before = family.processor_seconds()?;
        let (tell, told) = mpsc::unbounded_channel();
        let seeker = tokio::spawn(seek(Arc::clone(&self.running.host.netns), told));
        let (last, count) = self.write(rate, length, &tell).await?;
        drop(tell);
        let lags = seeker.await??;
        let mut served = Instant::now();
        for step in self.latest(LAST) {
            self.await_step(step).await?;
            served = Instant::now();
        }
        behind.all_served.add_time(served - last);
        behind.processor.add((family.processor_seconds()? - before) * 1e3 / f64::from(count));
        let quarter = lags.len().div_ceil(4);
        lags.iter().for_each(|lag| behind.lag.add_time(*lag));
        lags.iter().take(quarter).for_each(|lag| behind.first_quarter.add_time(*lag));
        lags.iter().rev().take(quarter).for_each(|lag| behind.last_quarter.add_time(*lag));
        // What came last for a Service stays.
        let state: BTreeMap<usize, &Step> =
            self.latest(self.tape.churn.len() / 2).map(|step| (step.service, step)).collect();
        for step in state.values().step_by((state.len() / CHECKED).max(1)) {
            self.await_step(step).await?;
        }
        Ok(())
    }

    /// Returns when the last change was due, which is a marker, and how many there were.
    async fn write(
        &mut self,
        rate: u32,
        length: Duration,
        seeker: &mpsc::UnboundedSender<Sought>,
    ) -> Result<(Instant, u32)> {
        let markers = (length.as_millis() / MARKER_EVERY.as_millis()).clamp(1, MARKERS as u128) as u32;
        let every = (f64::from(rate) * length.as_secs_f64() / f64::from(markers)).max(1.0) as u32;
        let count = every * markers;
        let mut marker = self.tape.markers(self.away).iter();
        self.away = !self.away;
        let start = Instant::now();
        let due = |nth: u32| start + Duration::from_secs_f64(f64::from(nth) / f64::from(rate));
        let mut next = 1;
        while next <= count {
            let mut frames = BytesMut::new();
            while next <= count && due(next) <= Instant::now() {
                let step = if next.is_multiple_of(every) {
                    let step = marker.next().context("there are as many markers")?;
                    seeker.send(self.sought(step, due(next))?).ok().context("the seeker has ended")?;
                    step
                } else {
                    let step = self.tape.churn.get(self.played % self.tape.churn.len());
                    self.played += 1;
                    step.context("the remainder is below the count")?
                };
                frames.extend_from_slice(step.frame(self.watch.encoding));
                next += 1;
            }
            if !frames.is_empty() {
                self.watch.write(frames.freeze()).await?;
            }
            if next <= count {
                sleep(TICK).await;
            }
        }
        Ok((due(count), count))
    }

    /// So many changes of the churn, the last one at the end.
    fn latest(&self, count: usize) -> impl Iterator<Item = &Step> {
        let churn = &self.tape.churn;
        (self.played.saturating_sub(count)..self.played).filter_map(|nth| churn.get(nth % churn.len()))
    }

    async fn await_step(&self, step: &Step) -> Result<()> {
        let sought = self.sought(step, Instant::now())?;
        await_endpoint(&self.running.host.netns, sought.vip, &sought.wanted, sought.due).await.map(drop)
    }

    fn sought(&self, step: &Step, due: Instant) -> Result<Sought> {
        let vip = *self.cluster.vips.get(step.service).context("the tape is this cluster's")?;
        Ok(Sought { vip, wanted: step.leads_to(self.cluster)?, due })
    }
}

/// One after the other, so that looking costs the same however many are open: changes come in order.
async fn seek(netns: Arc<Netns>, mut told: mpsc::UnboundedReceiver<Sought>) -> Result<Vec<Duration>> {
    let mut lags = Vec::new();
    while let Some(sought) = told.recv().await {
        lags.push(await_endpoint(&netns, sought.vip, &sought.wanted, sought.due).await?);
    }
    Ok(lags)
}
