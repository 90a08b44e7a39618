//! How the watches fare.

use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::known::Corrections;

/// Counters by kind; clones share them. Usable unregistered.
#[derive(Debug, Clone, Default)]
pub struct WatchMetrics {
    lists: Family<Of, Counter>,
    events: Family<Of, Counter>,
    interruptions: Family<Of, Counter>,
    corrections: Family<Corrected, Counter>,
    last_heard: Family<Of, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    kind: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Corrected {
    kind: String,
    /// `changed` or `gone`.
    what: &'static str,
}

/// One kind's share of [`WatchMetrics`].
#[derive(Debug, Clone)]
pub(crate) struct KindMetrics {
    pub(crate) lists: Counter,
    pub(crate) events: Counter,
    pub(crate) interruptions: Counter,
    corrected_changed: Counter,
    corrected_gone: Counter,
    last_heard: Gauge,
}

impl WatchMetrics {
    /// Adds `watch_lists_total`, `watch_events_total`, `watch_interruptions_total`,
    /// `watch_corrections_total` and `watch_last_heard_timestamp_seconds`, each with a label `kind`,
    /// and corrections with a label `what`.
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
            "corrections",
            "Objects that a list, made to be sure, found changed before the version that the watch had reached, or gone; \
             gone counts also what was deleted in the moment between the watch and the list",
            self.corrections.clone(),
        );
        watch.register(
            "last_heard_timestamp_seconds",
            "When the API server last said something, bookmarks included; Unix time",
            self.last_heard.clone(),
        );
    }

    pub(crate) fn of(&self, kind: &str) -> KindMetrics {
        let of = Of { kind: kind.to_owned() };
        let corrected =
            |what| self.corrections.get_or_create_owned(&Corrected { kind: kind.to_owned(), what });
        KindMetrics {
            lists: self.lists.get_or_create_owned(&of),
            events: self.events.get_or_create_owned(&of),
            interruptions: self.interruptions.get_or_create_owned(&of),
            corrected_changed: corrected("changed"),
            corrected_gone: corrected("gone"),
            last_heard: self.last_heard.get_or_create_owned(&of),
        }
    }
}

impl KindMetrics {
    pub(crate) fn corrected(&self, found: Corrections) {
        self.corrected_changed.inc_by(found.changed);
        self.corrected_gone.inc_by(found.gone);
    }

    /// What [`KindMetrics::corrected`] has counted.
    #[cfg(test)]
    pub(crate) fn corrections(&self) -> Corrections {
        Corrections { changed: self.corrected_changed.get(), gone: self.corrected_gone.get() }
    }

    /// The API server said something just now.
    pub(crate) fn heard(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        self.last_heard.set(i64::try_from(now).unwrap_or(i64::MAX));
    }
}
