//! Watches as one ordered stream of [`Change`]s a kind.

use std::fmt::Debug;
use std::path::PathBuf;
use std::str::FromStr;

use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use service_model::Change;
use tokio::sync::mpsc::Sender;

use crate::changes::{self, Changes, Convert, Listing};
use crate::config::{Nodes, WatchConfig};
use crate::convert::{HEADLESS_LABEL, OTHER_PROXY_LABEL};
use crate::follow::{Times, follow};
use crate::metrics::WatchMetrics;
use crate::{Detail, dir};

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

/// How the API server is watched.
#[derive(Debug, Clone)]
pub struct Options {
    /// First lists come as a stream of objects (KEP-3157) where the API server can, and in pages of
    /// 500 otherwise.
    pub streaming: bool,
    pub metrics: WatchMetrics,
}

/// Sends every change until the receiver is gone. Lost connections are resumed, with a back-off of
/// at most five seconds; an expired watch lists anew, as does every kind from time to time, to be
/// sure.
///
/// # Errors
/// A folder that cannot be read. An API server that cannot be reached is retried for ever.
pub async fn watch(source: Source, config: WatchConfig, tx: Sender<Change>) -> anyhow::Result<()> {
    watch_with(source, config, Options::default(), tx).await
}

/// [`watch`] with a say in how.
///
/// # Errors
/// As [`watch`].
pub async fn watch_with(
    source: Source,
    config: WatchConfig,
    options: Options,
    tx: Sender<Change>,
) -> anyhow::Result<()> {
    match source {
        Source::Dir(path) => dir::watch_dir(&path, &config, &tx).await,
        Source::Kube(client) => {
            watch_kube(client, config, &options, tx).await;
            Ok(())
        }
    }
}

async fn watch_kube(client: Client, config: WatchConfig, options: &Options, tx: Sender<Change>) {
    let (detail, dataplane) = (config.detail, config.detail == Detail::Dataplane);
    let list = if options.streaming { all().streaming_lists() } else { all() };
    // What kube-proxy's informers select (1.37, `cmd/kube-proxy/app/server.go`). Conversion leaves
    // the rest out too: this saves the way.
    let (services, slices) = if dataplane {
        let routed = list.clone().labels(&format!("!{OTHER_PROXY_LABEL}")).fields("spec.clusterIP!=None");
        (routed, list.clone().labels(&format!("!{HEADLESS_LABEL}")))
    } else {
        (list.clone(), list.clone())
    };
    let cidrs = config.service_cidrs.then(|| list.clone());
    let nodes = match &config.nodes {
        Nodes::None => None,
        Nodes::All => Some(list),
        Nodes::One(name) => Some(list.fields(&format!("metadata.name={name}"))),
    };
    let (services, slices) = (config.services.then_some(services), config.slices.then_some(slices));
    futures::join!(
        follow_known(&client, services, changes::Services(detail), Times::default(), options, &tx),
        follow_known(&client, slices, changes::Slices::new(detail), Times::default(), options, &tx),
        follow_known(&client, nodes, changes::Nodes, Times::default(), options, &tx),
        follow_known(&client, cidrs, changes::ServiceCidrs, Times::of_optional(), options, &tx),
    );
}

fn all() -> watcher::Config {
    watcher::Config::default()
}

/// Follows a kind that the model knows, if it is asked for.
async fn follow_known<C: Convert>(
    client: &Client,
    selector: Option<watcher::Config>,
    convert: C,
    times: Times,
    options: &Options,
    tx: &Sender<Change>,
) where
    C::Wire: Resource<DynamicType = ()> + DeserializeOwned,
{
    let Some(selector) = selector else { return };
    let mut changes = Changes::new(convert);
    let metrics = options.metrics.of(&C::Wire::kind(&()));
    let api = Api::<C::Wire>::all(client.clone());
    follow(api, selector, times, metrics, |l| Some(changes.of(l)), tx.clone()).await;
}

/// Watches one kind and sends what `convert` makes of each event, until the receiver is gone. For
/// kinds that the model does not know; `convert` may drop an event by answering `None`. `config`
/// names the selectors, the size of a page and whether the list is streamed.
pub async fn watch_kind<W, T>(
    api: Api<W>,
    config: watcher::Config,
    convert: impl FnMut(Listing<W>) -> Option<T>,
    tx: Sender<T>,
) where
    W: Resource<DynamicType: Default> + DeserializeOwned,
{
    let kind = W::kind(&W::DynamicType::default()).into_owned();
    follow(api, config, Times::default(), WatchMetrics::default().of(&kind), convert, tx).await;
}

impl Default for Options {
    fn default() -> Self {
        Self { streaming: true, metrics: WatchMetrics::default() }
    }
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
