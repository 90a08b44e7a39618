//! Notes as Events on their Service.

use kube::Client;
use kube_events::{Event, Writer};
use service_model::Service;

use crate::plan::{Note, Severity};

const CONTROLLER: &str = "fairlead.dev/cloud-controller";

#[derive(Debug, Clone)]
pub struct Events {
    writer: Writer,
}

impl Events {
    /// `instance` tells the replicas apart.
    pub fn new(client: Client, instance: &str) -> Self {
        Self { writer: Writer::new(client, CONTROLLER, instance) }
    }

    /// Tells each note that is not already known. Failures cost the Event, never the Service.
    pub async fn tell(&self, service: &Service, notes: &[Note]) {
        for note in notes {
            match self.writer.tell(&event(service, note)).await {
                Ok(false) => {}
                Ok(true) => match note.severity {
                    Severity::Normal => tracing::info!(service = %service.name, "{note}"),
                    Severity::Warning => tracing::warn!(service = %service.name, "{note}"),
                },
                Err(error) => {
                    tracing::warn!(service = %service.name, "{note}");
                    tracing::warn!(service = %service.name, "writing an Event: {error}");
                }
            }
        }
    }
}

fn event(service: &Service, note: &Note) -> Event {
    Event {
        regarding: Event::of_service(service.name.namespace(), service.name.name(), &service.uid),
        severity: match note.severity {
            Severity::Normal => kube_events::Severity::Normal,
            Severity::Warning => kube_events::Severity::Warning,
        },
        reason: note.reason.to_owned(),
        action: "Reconcile",
        message: note.message.clone(),
    }
}
