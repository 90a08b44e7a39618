//! Events: what an operator must know and would not look for in a log. Told to a task of their
//! own, so that the API server never holds up a sync. Where it cannot keep up, they are dropped; those of which there may
//! be very many wait for room.

pub use kube_events::Event;
use kube_events::{Severity, Writer};
use service_model::Service;
use tokio::sync::mpsc;

/// Who writes them.
pub const CONTROLLER: &str = "fairlead.dev/node-agent";
/// Events that wait to be written.
const QUEUE: usize = 64;

/// A place to tell Events, which never blocks.
#[derive(Debug, Clone)]
pub struct Events {
    queue: mpsc::Sender<Event>,
}

/// The one warning or note of a kind. Each has a row in docs/operations/node-agent.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reason {
    pub name: &'static str,
    pub severity: Severity,
}

pub const STARTING: Reason = Reason { name: "Starting", severity: Severity::Normal };
pub const FAMILY_NOT_SERVED: Reason = Reason { name: "AddressFamilyNotServed", severity: Severity::Warning };
pub const REFUSED: Reason = Reason { name: "ServiceRefusedByKernel", severity: Severity::Warning };
pub const ADDRESS_TAKEN: Reason = Reason { name: "AddressTaken", severity: Severity::Warning };
pub const TOO_MANY_ENDPOINTS: Reason = Reason { name: "TooManyEndpoints", severity: Severity::Warning };
pub const EXTERNAL_IPS_NOT_ALLOWED: Reason =
    Reason { name: "ExternalIPsNotAllowed", severity: Severity::Warning };
/// kube-proxy's (`pkg/proxy/healthcheck/service_health.go`).
pub const NO_HEALTH_CHECK: Reason =
    Reason { name: "FailedToStartServiceHealthcheck", severity: Severity::Warning };

impl Events {
    /// What is told comes out of the other end.
    pub fn channel() -> (Self, mpsc::Receiver<Event>) {
        let (queue, told) = mpsc::channel(QUEUE);
        (Self { queue }, told)
    }

    /// Whether what can wait may be told: the last places are for what cannot.
    pub fn has_room(&self) -> bool {
        self.queue.capacity() > QUEUE / 2
    }

    pub fn of_node(&self, node: &str, reason: Reason, message: String) {
        self.tell(Event::of_node(node), reason, message);
    }

    pub fn of_service(&self, service: &Service, reason: Reason, message: String) {
        let name = &service.name;
        self.tell(Event::of_service(name.namespace(), name.name(), &service.uid), reason, message);
    }

    fn tell(&self, regarding: kube_events::ObjectReference, reason: Reason, message: String) {
        let Reason { name, severity } = reason;
        let event = Event { regarding, severity, reason: name.to_owned(), action: "Sync", message };
        if self.queue.try_send(event).is_err() {
            tracing::debug!(reason = name, "an Event is left out: too many wait to be written");
        }
    }
}

/// Writes what is told, until nobody tells any more.
pub async fn write(writer: Writer, mut told: mpsc::Receiver<Event>) {
    while let Some(event) = told.recv().await {
        if let Err(error) = writer.tell(&event).await {
            tracing::debug!(%error, reason = event.reason, "an Event was not written");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn telling_never_waits() {
        let (events, mut told) = Events::channel();
        for number in 0..2 * QUEUE {
            events.of_node("node-1", STARTING, number.to_string());
        }
        let first = told.try_recv().unwrap();
        assert_eq!((first.reason.as_str(), first.message.as_str()), ("Starting", "0"));
        assert_eq!(told.len(), QUEUE - 1, "the rest was left out");
    }

    #[test]
    fn what_can_wait_leaves_room_for_what_cannot() {
        let (events, mut told) = Events::channel();
        while events.has_room() {
            events.of_node("node-1", STARTING, String::new());
        }
        assert_eq!(told.len(), QUEUE / 2);
        told.try_recv().unwrap();
        assert!(events.has_room());
    }
}
