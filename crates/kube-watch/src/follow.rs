//! One kind, followed for ever: list, watch, resume, list anew.
//!
//! ```text
//!            ┌────────── expired ──────────┐
//!            ▼                             │
//! list (streamed, or in pages) ─▶ watch from its version ─ended, failed─▶ wait ─▶ watch from the last version
//! ```
//!
//! Why not `kube::runtime::watcher` (kube 5.0): it says `Init` before it asks, so an API server that
//! is down makes it list without a growing delay; it opens a watch that ends at once again without
//! any delay (15,000 requests a second on loopback); it holds a page as bytes, as text and as
//! objects at the same time; a streamed list may be older than what is known already (version "0");
//! one object of another shape fails the whole list.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::runtime::watcher;
use kube::runtime::watcher::InitialListStrategy;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::Sender;
use tokio::time::Instant;

use crate::changes::Listing;
use crate::metrics::KindMetrics;
use crate::requests::{Failure, From, Line, Requests, Unreadable};
use crate::retry::{Retry, random_share};

/// The times of a watch.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    pub(crate) first_retry: Duration,
    pub(crate) longest_retry: Duration,
    /// A watch that lasted this long and was ended in good order is opened again at once.
    pub(crate) steady: Duration,
    pub(crate) silence: Duration,
    /// Between two warnings about the same trouble.
    pub(crate) warn_again: Duration,
    /// For a kind that the API server need not have: when it is asked for again.
    pub(crate) optional: Option<Duration>,
}

impl Default for Times {
    fn default() -> Self {
        Self {
            first_retry: Duration::from_millis(200),
            longest_retry: Duration::from_secs(5),
            steady: Duration::from_secs(1),
            silence: Duration::from_secs(120),
            warn_again: Duration::from_secs(60),
            optional: None,
        }
    }
}

impl Times {
    /// Of a kind that the API server need not have or show.
    pub(crate) fn of_optional() -> Self {
        Self { optional: Some(Duration::from_secs(300)), ..Self::default() }
    }
}

/// Sends what `convert` makes of each event, until the receiver is gone.
pub(crate) async fn follow<W, T>(
    api: Api<W>,
    config: watcher::Config,
    times: Times,
    metrics: KindMetrics,
    convert: impl FnMut(Listing<W>) -> Option<T>,
    tx: Sender<T>,
) where
    W: Resource<DynamicType: Default> + DeserializeOwned,
{
    let kind = W::kind(&W::DynamicType::default()).into_owned();
    let feed = Feed {
        streaming: config.initial_list_strategy == InitialListStrategy::StreamingList,
        requests: Requests::new(api, config, times.silence),
        kind,
        version: None,
        heard: false,
        caught_up: None,
        without: false,
        told: BTreeSet::new(),
        metrics,
        convert,
        tx: tx.clone(),
    };
    tokio::select! {
        () = tx.closed() => {}
        () = feed.run(times) => {}
    }
}

struct Feed<W, T, F> {
    requests: Requests<W>,
    kind: String,
    streaming: bool,
    /// What the receiver knows; `None` until a list is complete.
    version: Option<String>,
    /// Whether this attempt brought anything beyond a list.
    heard: bool,
    /// Since when this attempt has nothing to list any more.
    caught_up: Option<Instant>,
    /// It was said that the API server does not have the kind.
    without: bool,
    /// Unreadable objects that were warned about.
    told: BTreeSet<Unreadable>,
    metrics: KindMetrics,
    convert: F,
    tx: Sender<T>,
}

enum Stop {
    ReceiverGone,
    Failed(Failure),
}

impl<W, T, F> Feed<W, T, F>
where
    W: Resource + DeserializeOwned,
    F: FnMut(Listing<W>) -> Option<T>,
{
    async fn run(mut self, times: Times) {
        let mut retry = Retry::new(times.first_retry, times.longest_retry);
        let mut warned: Option<Instant> = None;
        loop {
            let started = Instant::now();
            (self.heard, self.caught_up) = (false, None);
            let ended = self.attempt(&mut warned).await;
            let lasted = self.caught_up.is_some_and(|at| at.elapsed() >= times.steady);
            let lists_anew = matches!(&ended, Err(Stop::Failed(failure)) if failure.lists_anew());
            // A list proves nothing about the watch behind it, and one after the other would be a
            // load for everybody.
            if lasted || self.heard && !lists_anew {
                retry.reset();
            }
            match ended {
                Ok(()) if started.elapsed() >= times.steady => continue,
                Ok(()) => tracing::debug!(kind = %self.kind, "the watch was ended early"),
                Err(Stop::ReceiverGone) => return,
                Err(Stop::Failed(Failure::CannotStream)) => {
                    tracing::debug!(kind = %self.kind, "the API server does not stream lists; reading pages");
                    self.streaming = false;
                    continue;
                }
                Err(Stop::Failed(failure)) if failure.lists_anew() => {
                    tracing::info!(kind = %self.kind, "{failure}; listing anew");
                    self.version = None;
                }
                Err(Stop::Failed(failure)) if times.optional.is_some() && failure.is_for_want_of_it() => {
                    if self.go_without(&failure).await.is_err() {
                        return;
                    }
                    tokio::time::sleep(times.optional.unwrap_or_default()).await;
                    continue;
                }
                Err(Stop::Failed(failure)) => {
                    self.metrics.interruptions.inc();
                    if warned.is_none_or(|at| at.elapsed() >= times.warn_again) {
                        tracing::warn!(kind = %self.kind, "the watch is interrupted, what is known stays in force; trying again: {failure}");
                        warned = Some(Instant::now());
                    } else {
                        tracing::debug!(kind = %self.kind, "still interrupted: {failure}");
                    }
                }
            }
            tokio::time::sleep(retry.delay(random_share())).await;
        }
    }

    /// Nothing is known of the kind and nothing will be: that counts as an empty list.
    async fn go_without(&mut self, failure: &Failure) -> Result<(), Stop> {
        if self.without {
            return Ok(());
        }
        self.without = true;
        self.version = None;
        tracing::warn!(kind = %self.kind, "going on without, and asking again from time to time: {failure}");
        self.send(Listing::Started).await?;
        self.send(Listing::Ended).await
    }

    /// Lists if nothing is known, and watches until the server ends it.
    async fn attempt(&mut self, warned: &mut Option<Instant>) -> Result<(), Stop> {
        if self.version.is_none() && !self.streaming {
            self.list_pages().await?;
        }
        let from = self.version.as_deref().map_or(From::List, From::Version);
        let mut lines = self.requests.watch(from).await?;
        match self.version {
            None => self.send(Listing::Started).await?,
            Some(_) => self.caught_up = Some(Instant::now()),
        }
        while let Some(line) = lines.next().await? {
            self.metrics.heard();
            self.heard |= self.version.is_some();
            if warned.take().is_some() {
                tracing::info!(kind = %self.kind, "the watch goes on");
            }
            self.take(line).await?;
        }
        Ok(())
    }

    async fn list_pages(&mut self) -> Result<(), Stop> {
        let mut page = self.requests.page(None).await?;
        self.send(Listing::Started).await?;
        loop {
            self.metrics.heard();
            for object in page.objects {
                self.send(Listing::Apply(object)).await?;
            }
            for object in page.unreadable {
                self.tell(object);
            }
            let Some(token) = page.next else { break };
            page = self.requests.page(Some(token)).await?;
        }
        self.version = Some(page.version.ok_or(Failure::NoVersion)?);
        self.send(Listing::Ended).await
    }

    async fn take(&mut self, line: Line<W>) -> Result<(), Stop> {
        let (listing, version) = match line {
            Line::Apply(object) => {
                let version = object.meta().resource_version.clone();
                (Some(Listing::Apply(object)), version)
            }
            Line::Delete(object) => {
                let version = object.meta().resource_version.clone();
                (Some(Listing::Delete(object)), version)
            }
            Line::Bookmark { version, list_complete } => {
                let completes = list_complete && self.version.is_none();
                if completes {
                    self.version = Some(version.clone());
                    self.caught_up = Some(Instant::now());
                }
                (completes.then_some(Listing::Ended), Some(version))
            }
            Line::Unreadable { object, version } => {
                self.tell(object);
                (None, version)
            }
            Line::DeletedUnread => return Err(Failure::DeletedUnread.into()),
        };
        if let Some(listing) = listing {
            self.send(listing).await?;
        }
        // Inside a streamed list versions come in any order; they count from its end.
        if self.version.is_some() && version.is_some() {
            self.version = version;
        }
        Ok(())
    }

    async fn send(&mut self, listing: Listing<W>) -> Result<(), Stop> {
        match listing {
            Listing::Apply(_) | Listing::Delete(_) => _ = self.metrics.events.inc(),
            Listing::Ended => _ = self.metrics.lists.inc(),
            Listing::Started => {}
        }
        let Some(change) = (self.convert)(listing) else { return Ok(()) };
        self.tx.send(change).await.map_err(|_| Stop::ReceiverGone)
    }

    fn tell(&mut self, object: Unreadable) {
        if !self.told.contains(&object) {
            tracing::warn!(kind = %self.kind, name = %object.name, "cannot be read and is passed over: {}", object.why);
            self.told.insert(object);
        }
    }
}

impl<E: Into<Failure>> std::convert::From<E> for Stop {
    fn from(failure: E) -> Self {
        Stop::Failed(failure.into())
    }
}
