//! Watches as one ordered stream of [`Change`]s a kind.

use std::fmt::Debug;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use service_model::{Change, Key, Kind, NodeName, Object, ObjectName};
use tokio::sync::mpsc::Sender;

use crate::{Detail, convert, dir, wire};

/// Where objects come from.
#[derive(Clone)]
pub enum Source {
    Kube(Client),
    /// A folder of YAML files, read again when one changes.
    Dir(PathBuf),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a source: write dir:PATH for a folder of YAML files")]
pub struct ParseSourceError(pub String);

/// Which Nodes are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nodes {
    None,
    All,
    One(NodeName),
}

#[derive(Debug, Clone)]
pub struct WatchConfig {
    pub services: bool,
    pub slices: bool,
    pub nodes: Nodes,
    pub detail: Detail,
}

/// One event of a watch of `W`, before it is converted.
#[derive(Debug, Clone)]
pub enum Listing<W> {
    Started,
    Apply(W),
    Delete(W),
    Ended,
}

/// A Service with this label belongs to another proxy (kube-proxy's informer selector).
const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// EndpointSlices with this label serve DNS only; there is nothing to route.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

impl WatchConfig {
    /// The kinds that must have been listed before anything may be decided.
    pub fn kinds(&self) -> Vec<Kind> {
        let nodes = self.nodes != Nodes::None;
        [(self.services, Kind::Service), (self.slices, Kind::EndpointSlice), (nodes, Kind::Node)]
            .into_iter()
            .filter_map(|(wanted, kind)| wanted.then_some(kind))
            .collect()
    }
}

/// Sends every change until the receiver is gone. Lost connections are resumed, with a back-off of
/// at most five seconds; an expired watch lists anew.
///
/// # Errors
/// A folder that cannot be read. An API server that cannot be reached is retried for ever.
pub async fn watch(source: Source, config: WatchConfig, tx: Sender<Change>) -> anyhow::Result<()> {
    match source {
        Source::Dir(path) => dir::watch_dir(&path, &config, &tx).await,
        Source::Kube(client) => {
            watch_kube(client, config, tx).await;
            Ok(())
        }
    }
}

async fn watch_kube(client: Client, config: WatchConfig, tx: Sender<Change>) {
    let detail = config.detail;
    let selector = |label: &'static str| match detail {
        Detail::Dataplane => watcher::Config::default().labels(&format!("!{OTHER_PROXY_LABEL},!{label}")),
        Detail::Full => watcher::Config::default(),
    };
    let services = async {
        if config.services {
            let api = Api::<wire::Service>::all(client.clone());
            watch_kind(api, selector(HEADLESS_LABEL), |l| Some(service_change(l, detail)), tx.clone()).await;
        }
    };
    let slices = async {
        if config.slices {
            let api = Api::<wire::EndpointSlice>::all(client.clone());
            watch_kind(api, selector(HEADLESS_LABEL), |l| Some(slice_change(l)), tx.clone()).await;
        }
    };
    let nodes = async {
        let selector = match &config.nodes {
            Nodes::None => return,
            Nodes::All => watcher::Config::default(),
            Nodes::One(name) => watcher::Config::default().fields(&format!("metadata.name={name}")),
        };
        let api = Api::<wire::Node>::all(client.clone());
        watch_kind(api, selector, |l| Some(node_change(l)), tx.clone()).await;
    };
    futures::join!(services, slices, nodes);
}

/// Watches one kind and sends what `convert` makes of each event, until the receiver is gone. For
/// kinds that the model does not know; `convert` may drop an event by answering `None`.
pub async fn watch_kind<W, T>(
    api: Api<W>,
    config: watcher::Config,
    mut convert: impl FnMut(Listing<W>) -> Option<T>,
    tx: Sender<T>,
) where
    W: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    W::DynamicType: Default,
{
    let kind = W::kind(&W::DynamicType::default()).into_owned();
    let mut events = watcher(api, config).backoff(RetryDelays { next: FIRST_RETRY }).boxed();
    let mut failing = false;
    while let Some(event) = events.next().await {
        let listing = match event {
            Ok(event) => {
                if std::mem::take(&mut failing) {
                    tracing::info!(%kind, "the watch goes on");
                }
                listing(event)
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%kind, %error, "the watch was interrupted; trying again, state is kept meanwhile");
                }
                continue;
            }
        };
        let Some(change) = convert(listing) else { continue };
        if tx.send(change).await.is_err() {
            return;
        }
    }
}

/// Doubling delays with jitter, so that the agents of a cluster do not come back in step.
struct RetryDelays {
    next: Duration,
}

impl Iterator for RetryDelays {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let random = RandomState::new().build_hasher().finish();
        let share = (random % 1000) as f64 / 1000.0;
        let delay = self.next.mul_f64(0.5 + share);
        self.next = (self.next * 2).min(LONGEST_RETRY);
        Some(delay)
    }
}

impl Backoff for RetryDelays {
    fn reset(&mut self) {
        self.next = FIRST_RETRY;
    }
}

fn listing<W>(event: watcher::Event<W>) -> Listing<W> {
    match event {
        watcher::Event::Init => Listing::Started,
        watcher::Event::InitApply(object) | watcher::Event::Apply(object) => Listing::Apply(object),
        watcher::Event::Delete(object) => Listing::Delete(object),
        watcher::Event::InitDone => Listing::Ended,
    }
}

/// An object that cannot be used counts as gone: it may have been usable before.
pub(crate) fn service_change(listing: Listing<wire::Service>, detail: Detail) -> Change {
    match listing {
        Listing::Started => Change::ListStarted(Kind::Service),
        Listing::Ended => Change::ListEnded(Kind::Service),
        Listing::Delete(wire) => Change::Delete(Key::Service(name_of(&wire))),
        Listing::Apply(wire) => {
            let name = name_of(&wire);
            convert::service(wire, detail)
                .map_or(Change::Delete(Key::Service(name)), |s| Change::Apply(Object::Service(s)))
        }
    }
}

pub(crate) fn slice_change(listing: Listing<wire::EndpointSlice>) -> Change {
    match listing {
        Listing::Started => Change::ListStarted(Kind::EndpointSlice),
        Listing::Ended => Change::ListEnded(Kind::EndpointSlice),
        Listing::Delete(wire) => Change::Delete(Key::EndpointSlice(name_of(&wire))),
        Listing::Apply(wire) => {
            let name = name_of(&wire);
            convert::endpoint_slice(wire)
                .map_or(Change::Delete(Key::EndpointSlice(name)), |s| Change::Apply(Object::EndpointSlice(s)))
        }
    }
}

pub(crate) fn node_change(listing: Listing<wire::Node>) -> Change {
    match listing {
        Listing::Started => Change::ListStarted(Kind::Node),
        Listing::Ended => Change::ListEnded(Kind::Node),
        Listing::Delete(wire) => Change::Delete(Key::Node(wire.metadata.name.unwrap_or_default().into())),
        Listing::Apply(wire) => {
            let name = wire.metadata.name.clone().unwrap_or_default();
            convert::node(wire)
                .map_or(Change::Delete(Key::Node(name.into())), |n| Change::Apply(Object::Node(n)))
        }
    }
}

fn name_of(object: &impl Resource) -> ObjectName {
    let meta = object.meta();
    ObjectName::new(meta.namespace.as_deref().unwrap_or("default"), meta.name.as_deref().unwrap_or_default())
}

impl FromStr for Source {
    type Err = ParseSourceError;

    fn from_str(text: &str) -> Result<Self, ParseSourceError> {
        match text.strip_prefix("dir:") {
            Some(path) if !path.is_empty() => Ok(Source::Dir(path.into())),
            _ => Err(ParseSourceError(text.to_owned())),
        }
    }
}

impl Debug for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Source::Kube(_) => f.write_str("Kube"),
            Source::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}
