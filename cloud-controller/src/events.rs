//! Notes as Events on their Service. The same note is told once, and again only after ten
//! minutes; an Event's name follows from its text, so that a restart adds to a series instead of
//! starting another.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use service_model::Service;
use sha2::{Digest, Sha256};

use crate::marks::{MarkError, answer};
use crate::plan::{Note, Severity};

const CONTROLLER: &str = "fairlead.dev/cloud-controller";
const AGAIN_AFTER: Duration = Duration::from_secs(600);
/// The API server keeps Events for an hour by default.
const FORGET_AFTER: Duration = Duration::from_secs(3600);
/// `events.k8s.io` limits a note to 1 kB.
const LONGEST_NOTE: usize = 1024;

#[derive(Clone)]
pub struct Events {
    client: Client,
    instance: String,
    ledger: Arc<Mutex<Ledger>>,
}

/// What was told, and when.
#[derive(Debug, Default)]
struct Ledger {
    told: BTreeMap<String, (Instant, i32)>,
}

impl Events {
    /// `instance` tells the replicas apart.
    pub fn new(client: Client, instance: &str) -> Self {
        Self { client, instance: instance.to_owned(), ledger: Arc::default() }
    }

    /// Tells each note that is not already known. Failures cost the Event, never the Service.
    pub async fn tell(&self, service: &Service, notes: &[Note]) {
        for note in notes {
            let name = event_name(service, note);
            let count =
                self.ledger.lock().unwrap_or_else(PoisonError::into_inner).admit(&name, Instant::now());
            let Some(count) = count else { continue };
            match note.severity {
                Severity::Normal => tracing::info!(service = %service.name, "{note}"),
                Severity::Warning => tracing::warn!(service = %service.name, "{note}"),
            }
            if let Err(error) = self.write(service, note, name.clone(), count).await {
                tracing::warn!(service = %service.name, "writing an Event: {error}");
                self.ledger.lock().unwrap_or_else(PoisonError::into_inner).take_back(&name);
            }
        }
    }

    async fn write(&self, service: &Service, note: &Note, name: String, count: i32) -> Result<(), MarkError> {
        let api = Api::<Event>::namespaced(self.client.clone(), service.name.namespace());
        let now = MicroTime(Timestamp::now());
        if count == 1 {
            let event = self.event(service, note, &name, now.clone());
            match answer(api.create(&PostParams::default(), &event)).await {
                Err(MarkError::Conflict) => {}
                other => return other.map(drop),
            }
        }
        let series = json!({ "series": { "count": count.max(2), "lastObservedTime": now } });
        answer(api.patch(&name, &PatchParams::default(), &Patch::Merge(series))).await.map(drop)
    }

    fn event(&self, service: &Service, note: &Note, name: &str, now: MicroTime) -> Event {
        let namespace = Some(service.name.namespace().to_owned());
        Event {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: namespace.clone(),
                ..ObjectMeta::default()
            },
            event_time: Some(now),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(self.instance.chars().take(128).collect()),
            action: Some("Reconcile".to_owned()),
            reason: Some(note.reason.to_owned()),
            note: Some(shorten(&note.message)),
            type_: Some(
                match note.severity {
                    Severity::Normal => "Normal",
                    Severity::Warning => "Warning",
                }
                .to_owned(),
            ),
            regarding: Some(ObjectReference {
                api_version: Some("v1".to_owned()),
                kind: Some("Service".to_owned()),
                namespace,
                name: Some(service.name.name().to_owned()),
                uid: Some(service.uid.to_string()),
                ..ObjectReference::default()
            }),
            ..Event::default()
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

fn event_name(service: &Service, note: &Note) -> String {
    let mut hash = Sha256::new();
    for part in [&*service.uid, note.reason, &note.message] {
        hash.update(part);
        hash.update([0]);
    }
    let digits: String = hash.finalize().iter().take(8).map(|b| format!("{b:02x}")).collect();
    format!("{}.{digits}", service.name.name())
}

fn shorten(text: &str) -> String {
    if text.len() <= LONGEST_NOTE {
        return text.to_owned();
    }
    let end = (0..=LONGEST_NOTE - '…'.len_utf8()).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}…", &text[..end])
}

impl std::fmt::Debug for Events {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Events").field("instance", &self.instance).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use service_model::ObjectName;

    use super::*;

    #[test]
    fn a_note_is_told_once_and_again_after_ten_minutes() {
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
    fn an_events_name_follows_from_its_service_and_text() {
        let mut service = Service::new(ObjectName::new("shop", "web"));
        let note = Note::warning("NoAddressPool", "none");
        let name = event_name(&service, &note);
        assert_eq!(name, event_name(&service, &note));
        assert!(name.starts_with("web.") && name.len() == 4 + 16);
        service.uid = "another".into();
        assert_ne!(name, event_name(&service, &note));
    }

    #[test]
    fn a_long_note_is_cut_at_a_character() {
        let text = shorten(&"ä".repeat(600));
        assert!(text.len() <= LONGEST_NOTE && text.ends_with('…'));
        assert_eq!(shorten("short"), "short");
    }
}
