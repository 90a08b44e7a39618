//! Who is told what changed, and who acts on it: the agent's loop hands over what a commit changed
//! for UDP and goes on at once.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use service_model::{IpFamily, ServiceName, World};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::cleaner::Cleaner;
use super::pace::Pace;
use super::served::{Served, UdpService};
use crate::metrics::Metrics;
use crate::nft::layout::FAMILIES;

/// The agent's end: what is served, as far as it is committed.
#[derive(Debug)]
pub struct Feed {
    desk: Arc<Desk>,
    changed: BTreeSet<ServiceName>,
    /// Services that the other end knows.
    known: BTreeSet<ServiceName>,
    node_addresses: BTreeSet<IpAddr>,
}

/// The end that looks entries through.
#[derive(Debug)]
pub struct Reconciler {
    desk: Arc<Desk>,
    work: Work,
    pace: Pace,
    failed: bool,
}

/// Between the two. A Service that changes twice is there once.
#[derive(Debug, Default)]
struct Desk {
    news: Mutex<News>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct News {
    services: BTreeMap<ServiceName, UdpService>,
    node_addresses: Option<BTreeSet<IpAddr>>,
    /// Whatever changed, or did not.
    look: bool,
}

/// What a run takes along into its thread.
#[derive(Debug)]
struct Work {
    served: Served,
    cleaner: Cleaner,
    metrics: Metrics,
}

impl Reconciler {
    /// Both ends, for the network namespace of the calling thread.
    ///
    /// # Errors
    /// When there is no netlink socket to be had.
    pub fn new(metrics: Metrics) -> anyhow::Result<(Feed, Self)> {
        let cleaner = Cleaner::open().context("the connection table needs a netlink socket")?;
        let desk = Arc::<Desk>::default();
        let feed = Feed {
            desk: desk.clone(),
            changed: BTreeSet::new(),
            known: BTreeSet::new(),
            node_addresses: BTreeSet::new(),
        };
        let work = Work { served: Served::default(), cleaner, metrics };
        Ok((feed, Self { desk, work, pace: Pace::default(), failed: false }))
    }

    /// Works until cancelled. A kernel without a connection table is no reason to end.
    ///
    /// # Errors
    /// When a run panics.
    pub async fn run(mut self, cancel: CancellationToken) -> anyhow::Result<()> {
        loop {
            let due = self.pace.due(Instant::now());
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = self.desk.changed.notified() => self.learn(),
                () = sleep_until(due) => self = self.reconcile().await?,
            }
        }
    }

    fn learn(&mut self) {
        let news = std::mem::take(&mut *self.desk.news.lock().unwrap_or_else(PoisonError::into_inner));
        let mut stale = news.look;
        for (name, service) in news.services {
            stale |= self.work.served.learn(name, service);
        }
        if let Some(addresses) = news.node_addresses {
            stale |= self.work.served.learn_node_addresses(addresses);
        }
        let now = Instant::now();
        if stale { self.pace.ask(now) } else { self.pace.committed(now) }
    }

    async fn reconcile(mut self) -> anyhow::Result<Self> {
        self.pace.begin();
        let Self { desk, mut work, mut pace, failed } = self;
        let run = tokio::task::spawn_blocking(move || {
            let outcome = work.run();
            (work, outcome)
        });
        let (work, outcome) = run.await.context("looking through the connection table")?;
        pace.end(Instant::now(), outcome.is_ok());
        if let Err(error) = &outcome {
            if failed {
                tracing::debug!(%error, "the connection table still cannot be cleaned");
            } else {
                tracing::warn!(%error, "stale UDP connections cannot be ended (CAP_NET_ADMIN, CONFIG_NF_CT_NETLINK?)");
            }
        }
        Ok(Self { desk, work, pace, failed: outcome.is_err() })
    }
}

impl Work {
    fn run(&mut self) -> nfnetlink::Result<()> {
        let Self { served, cleaner, metrics } = self;
        let index = served.index();
        in_each_family(|family| {
            if !index.has(family) {
                return Ok(());
            }
            let start = Instant::now();
            let ended = cleaner.clean(&index, family)?;
            metrics.theirs.conntrack_reconciled(family, start.elapsed(), ended);
            if ended > 0 {
                tracing::info!(%family, ended, "ended UDP connections to endpoints that no longer serve");
            }
            Ok(())
        })
    }
}

/// The first error, after both had their turn: a kernel may lack what it takes for one.
fn in_each_family<E>(mut run: impl FnMut(IpFamily) -> Result<(), E>) -> Result<(), E> {
    let [v4, v6] = FAMILIES.map(&mut run);
    v4.and(v6)
}

impl Feed {
    /// These Services, or their endpoints, changed.
    pub fn mark(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        self.changed.extend(services);
    }

    /// All that was marked is in force. `look`: the kernel was not as we thought, so whatever entries
    /// there are may be stale. To be told of every commit: one that changes no Service may be the one that
    /// takes away what an earlier one left for packets under way.
    pub fn committed(&mut self, world: &World, node_addresses: BTreeSet<IpAddr>, look: bool) {
        let mut services = BTreeMap::new();
        for name in std::mem::take(&mut self.changed) {
            let service = UdpService::of(&name, world);
            let known = self.known.contains(&name);
            if service.is_empty() {
                self.known.remove(&name);
            } else if !known {
                self.known.insert(name.clone());
            }
            if known || !service.is_empty() {
                services.insert(name, service);
            }
        }
        let mut news = self.desk.news.lock().unwrap_or_else(PoisonError::into_inner);
        news.services.append(&mut services);
        if node_addresses != self.node_addresses {
            self.node_addresses.clone_from(&node_addresses);
            news.node_addresses = Some(node_addresses);
        }
        news.look |= look;
        drop(news);
        self.desk.changed.notify_one();
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_family_that_fails_does_not_keep_the_other_from_its_turn() {
        for failing in FAMILIES {
            let mut ran = Vec::new();
            let outcome = in_each_family(|family| {
                ran.push(family);
                if family == failing { Err(family) } else { Ok(()) }
            });
            assert_eq!((ran, outcome), (FAMILIES.to_vec(), Err(failing)));
        }
    }
}
