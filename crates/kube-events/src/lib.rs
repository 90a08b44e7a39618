//! Events, as `kubectl describe` shows them. The same one is told once, and again only after ten
//! minutes; its name follows from its text, so that a restart adds to a series instead of starting
//! another.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::events::v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use sha2::{Digest, Sha256};

pub use k8s_openapi::api::core::v1::ObjectReference;

const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// The API server keeps Events for an hour by default.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// `events.k8s.io` limits a note to 1 kB.
const LONGEST_NOTE: usize = 1024;
/// The API server answers within milliseconds, or the connection hangs.
const PATIENCE: Duration = Duration::from_secs(15);
/// Where Events of objects without a namespace are.
const DEFAULT_NAMESPACE: &str = "default";

/// What happened to an object, in words.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// With `name` and, of a Service, `namespace` and `uid`.
    pub regarding: ObjectReference,
    pub severity: Severity,
    /// In CamelCase, for machines.
    pub reason: String,
    /// What its author was about to do, in CamelCase.
    pub action: &'static str,
    /// For people. Longer ones than 1 kB are cut.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Normal,
    Warning,
}

/// Writes Events under one author's name.
#[derive(Clone)]
pub struct Writer {
    client: Client,
    controller: &'static str,
    instance: String,
    ledger: Arc<Mutex<Ledger>>,
}

/// Why an Event was not written; the next occasion to tell it will do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API server did not answer in time")]
    Silence,
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// What was told, and when.
#[derive(Debug, Default)]
struct Ledger {
    told: BTreeMap<String, (Instant, i32)>,
}

impl Writer {
    /// `instance` tells those who write as the same `controller` apart.
    pub fn new(client: Client, controller: &'static str, instance: &str) -> Self {
        Self { client, controller, instance: instance.to_owned(), ledger: Arc::default() }
    }

    /// Tells it, unless it was told a short while ago: then the answer is false.
    ///
    /// # Errors
    /// [`Error`]
    pub async fn tell(&self, event: &Event) -> Result<bool, Error> {
        let name = name_of(event);
        let count = self.ledger().admit(&name, Instant::now());
        let Some(count) = count else { return Ok(false) };
        let written = self.write(event, &name, count).await;
        if written.is_err() {
            self.ledger().take_back(&name);
        }
        written.map(|()| true)
    }

    async fn write(&self, event: &Event, name: &str, count: i32) -> Result<(), Error> {
        let namespace = event.regarding.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE);
        let api = Api::<v1::Event>::namespaced(self.client.clone(), namespace);
        let now = MicroTime(Timestamp::now());
        if count == 1 {
            let object = self.object(event, name, namespace, now.clone());
            match answer(api.create(&PostParams::default(), &object)).await {
                Err(Error::Api(kube::Error::Api(status))) if status.code == 409 => {}
                other => return other.map(drop),
            }
        }
        let series = json!({ "series": { "count": count.max(2), "lastObservedTime": now } });
        answer(api.patch(name, &PatchParams::default(), &Patch::Merge(series))).await.map(drop)
    }

    fn object(&self, event: &Event, name: &str, namespace: &str, now: MicroTime) -> v1::Event {
        let severity = match event.severity {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        };
        v1::Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            event_time: Some(now),
            reporting_controller: Some(self.controller.to_owned()),
            reporting_instance: Some(self.instance.chars().take(128).collect()),
            action: Some(event.action.to_owned()),
            reason: Some(event.reason.clone()),
            note: Some(shorten(&event.message)),
            type_: Some(severity.to_owned()),
            regarding: Some(event.regarding.clone()),
            ..v1::Event::default()
        }
    }

    fn ledger(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Event {
    /// Of a Service.
    pub fn of_service(namespace: &str, name: &str, uid: &str) -> ObjectReference {
        ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(namespace.to_owned()),
            name: Some(name.to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }
    }

    /// Of a Node. As kubelets and kube-proxy do, its name stands for its UID.
    pub fn of_node(name: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        }
    }
}

impl Ledger {
    /// How often this was told, now included; `None` when it was told a short while ago.
    fn admit(&mut self, name: &str, now: Instant) -> Option<i32> {
        self.told.retain(|_, (at, _)| now.saturating_duration_since(*at) < FORGET_AFTER);
        let (at, count) = self.told.get(name).copied().map_or((None, 0), |(at, n)| (Some(at), n));
        if at.is_some_and(|at| now.saturating_duration_since(at) < AGAIN_AFTER) {
            return None;
        }
        self.told.insert(name.to_owned(), (now, count + 1));
        Some(count + 1)
    }

    /// It could not be told: the next occasion is as good as this one.
    fn take_back(&mut self, name: &str) {
        self.told.remove(name);
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("instance", &self.instance).finish_non_exhaustive()
    }
}

async fn answer<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, Error> {
    Ok(tokio::time::timeout(PATIENCE, call).await.map_err(|_| Error::Silence)??)
}

fn name_of(event: &Event) -> String {
    let mut hash = Sha256::new();
    let uid = event.regarding.uid.as_deref().unwrap_or_default();
    for part in [uid, &event.reason, &event.message] {
        hash.update(part);
        hash.update([0]);
    }
    let digits: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("{}.{digits}", event.regarding.name.as_deref().unwrap_or_default())
}

fn shorten(text: &str) -> String {
    if text.len() <= LONGEST_NOTE {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(LONGEST_NOTE - '…'.len_utf8());
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_once_and_again_after_ten_minutes() {
        let (mut ledger, start) = (Ledger::default(), Instant::now());
        let at = |s: u64| start + Duration::from_secs(s);
        assert_eq!(ledger.admit("a", at(0)), Some(1));
        assert_eq!(ledger.admit("a", at(599)), None);
        assert_eq!(ledger.admit("b", at(599)), Some(1));
        assert_eq!(ledger.admit("a", at(600)), Some(2));
        assert_eq!(ledger.admit("a", at(5000)), Some(1), "long forgotten");
        ledger.take_back("a");
        assert_eq!(ledger.admit("a", at(5001)), Some(1), "it could not be written");
    }

    #[test]
    fn an_events_name_follows_from_its_object_and_text() {
        let mut event = Event {
            regarding: Event::of_service("shop", "web", "u-1"),
            severity: Severity::Warning,
            reason: "NoAddressPool".to_owned(),
            action: "Reconcile",
            message: "none".to_owned(),
        };
        let name = name_of(&event);
        assert_eq!(name, name_of(&event));
        assert!(name.starts_with("web.") && name.len() == 4 + 16);
        event.regarding.uid = Some("another".to_owned());
        assert_ne!(name, name_of(&event));
    }

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        let text = shorten(&"ä".repeat(600));
        assert!(text.len() <= LONGEST_NOTE && text.ends_with('…'));
        assert_eq!(shorten("short"), "short");
    }
}
