//! One kind, followed for ever: list, watch, resume, list anew.
//!
//! ```text
//!            ┌────────── expired ──────────┐
//!            ▼                             │
//! list (streamed, or in pages) ─▶ watch from its version ─ended, failed─▶ wait ─▶ watch from the last version
//!            ▲                             │
//!            └────── hours have passed ────┘
//! ```
//!
//! The list after hours is made to be sure: watches that kept silent about a change have been seen
//! where nothing had failed, and what relies on one would be wrong until it is started again. The
//! watch ends before the list is asked for, so that nothing that was told is newer than the list. If
//! that fails before anything of it was passed on, the watch goes on from where it was. What changes
//! during a list comes behind what is listed already, late by what is left of that.
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
use crate::requests::{Failure, From, Line, Lines, Requests, Unreadable};
use crate::retry::{Retry, between, random_share};

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
    /// A kind is listed anew at a random moment between these after its last complete list. Rarely,
    /// since 5,000 nodes that read 10,000 Services each in three hours are a list of some 15 MB every
    /// two seconds for the API servers, and as many again of EndpointSlices. At random, since
    /// nodes that were started together would all come together.
    pub(crate) anew: (Duration, Duration),
    /// The first and the longest delay after a list that was due and could not begin: what is known
    /// is followed meanwhile, so that nothing hurries.
    pub(crate) anew_retry: (Duration, Duration),
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
            anew: (Duration::from_secs(2 * 3600), Duration::from_secs(4 * 3600)),
            anew_retry: (Duration::from_secs(10), Duration::from_secs(600)),
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
        due: Instant::now(),
        anew_retry: Retry::new(times.anew_retry.0, times.anew_retry.1),
        times,
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
        () = feed.run() => {}
    }
}

struct Feed<W, T, F> {
    requests: Requests<W>,
    kind: String,
    streaming: bool,
    times: Times,
    /// What the receiver knows; `None` until a list is complete.
    version: Option<String>,
    /// When what is known is listed anew.
    due: Instant,
    anew_retry: Retry,
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

/// An attempt in good order.
enum Ended {
    ByServer,
    ListIsDue,
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
    async fn run(mut self) {
        let times = self.times;
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
                Ok(Ended::ListIsDue) => continue,
                Ok(Ended::ByServer) if started.elapsed() >= times.steady => continue,
                Ok(Ended::ByServer) => tracing::debug!(kind = %self.kind, "the watch was ended early"),
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
        self.metrics.heard();
        if self.without {
            return Ok(());
        }
        tracing::warn!(kind = %self.kind, "going on without, and asking again from time to time: {failure}");
        self.send(Listing::Started).await?;
        self.send(Listing::Ended).await?;
        self.without = true;
        Ok(())
    }

    /// Lists if nothing is known or a list is due, and watches until the server ends it or the next
    /// list is due.
    async fn attempt(&mut self, warned: &mut Option<Instant>) -> Result<Ended, Stop> {
        let mut lines = self.open().await?;
        loop {
            let line = tokio::select! {
                line = lines.next() => line?,
                () = tokio::time::sleep_until(self.due), if self.version.is_some() => {
                    tracing::debug!(kind = %self.kind, "listing anew, to be sure");
                    return Ok(Ended::ListIsDue);
                }
            };
            let Some(line) = line else { return Ok(Ended::ByServer) };
            self.metrics.heard();
            self.heard |= self.version.is_some();
            if warned.take().is_some() {
                tracing::info!(kind = %self.kind, "the watch goes on");
            }
            self.take(line).await?;
        }
    }

    /// A watch, behind a list if nothing is known or one is due.
    async fn open(&mut self) -> Result<Lines<W>, Stop> {
        if self.version.is_none() || self.due <= Instant::now() {
            match self.list().await {
                Ok(Some(streamed)) => return Ok(streamed),
                Ok(None) => {}
                // Nothing of the list was passed on: the watch can go on from where it was.
                Err(Stop::Failed(failure))
                    if self.version.is_some() && !matches!(failure, Failure::CannotStream) =>
                {
                    self.put_off(&failure);
                }
                Err(stop) => return Err(stop),
            }
        }
        let Some(version) = &self.version else { return Err(Failure::NoVersion.into()) };
        let lines = self.requests.watch(From::Version(version)).await?;
        self.caught_up = Some(Instant::now());
        Ok(lines)
    }

    /// Nothing is known to be wrong, so a list that failed can wait.
    fn put_off(&mut self, failure: &Failure) {
        self.metrics.interruptions.inc();
        let delay = self.anew_retry.delay(random_share());
        self.due = Instant::now() + delay;
        let seconds = delay.as_secs();
        tracing::warn!(kind = %self.kind, "the list that was due fails and is tried again in {seconds} s, the watch goes on meanwhile: {failure}");
    }

    /// A whole list in pages, or the watch that begins with one.
    async fn list(&mut self) -> Result<Option<Lines<W>>, Stop> {
        if !self.streaming {
            self.list_pages().await?;
            return Ok(None);
        }
        let lines = self.requests.watch(From::List).await?;
        self.send(Listing::Started).await?;
        Ok(Some(lines))
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
            // Until the list is complete, there is no version to go on from.
            Listing::Started => (self.version, self.without) = (None, false),
            Listing::Apply(_) | Listing::Delete(_) => _ = self.metrics.events.inc(),
            Listing::Ended => self.listed(),
        }
        let Some(change) = (self.convert)(listing) else { return Ok(()) };
        self.tx.send(change).await.map_err(|_| Stop::ReceiverGone)
    }

    fn listed(&mut self) {
        self.metrics.lists.inc();
        self.due = Instant::now() + between(self.times.anew, random_share());
        self.anew_retry.reset();
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
