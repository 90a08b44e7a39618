//! How the watches fare.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Counters by kind; clones share them. Usable unregistered.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    lists: Family<Of, Counter>,
    events: Family<Of, Counter>,
    interruptions: Family<Of, Counter>,
    last_heard: Family<Of, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    kind: String,
}

/// One kind's share of [`WatchMetrics`].
#[derive(Debug, Clone)]
pub(crate) struct KindMetrics {
    pub(crate) lists: Counter,
    pub(crate) events: Counter,
    pub(crate) interruptions: Counter,
    pub(crate) last_heard: Gauge,
}

impl WatchMetrics {
    /// Adds `watch_lists_total`, `watch_events_total`, `watch_interruptions_total` and
    /// `watch_last_heard_timestamp_seconds`, each with a label `kind`.
    pub fn register(&self, registry: &mut Registry) {
        let watch = registry.sub_registry_with_prefix("watch");
        watch.register("lists", "Full lists received, the first one included", self.lists.clone());
        watch.register("events", "Objects received, in lists and one by one", self.events.clone());
        watch.register(
            "interruptions",
            "Watches or lists that failed and were tried again",
            self.interruptions.clone(),
        );
        watch.register(
            "last_heard_timestamp_seconds",
            "When the API server last said something, bookmarks included; Unix time",
            self.last_heard.clone(),
        );
    }

    pub(crate) fn of(&self, kind: &str) -> KindMetrics {
        let of = Of { kind: kind.to_owned() };
        KindMetrics {
            lists: self.lists.get_or_create_owned(&of),
            events: self.events.get_or_create_owned(&of),
            interruptions: self.interruptions.get_or_create_owned(&of),
            last_heard: self.last_heard.get_or_create_owned(&of),
        }
    }
}

impl KindMetrics {
    /// The API server said something just now.
    pub(crate) fn heard(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.last_heard.set(i64::try_from(now).unwrap_or(i64::MAX));
    }
}
