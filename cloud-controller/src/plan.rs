//! The vocabulary that both providers plan in: steps, notes and outcomes.

use std::fmt;
use std::time::Duration;

use service_model::Ingress;

/// What to do, in order. A batch is applied as a whole; planning again after any prefix of
/// batches leads to the same end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<S> {
    pub batches: Vec<Vec<S>>,
    pub notes: Vec<Note>,
}

/// Why something did, or did not, happen. Becomes an Event (and condition) on the Service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    pub severity: Severity,
    /// CamelCase, as an Event's reason.
    pub reason: &'static str,
    /// What happened and what the user can do.
    pub message: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Normal,
    Warning,
}

/// How a reconcile of one Service ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    Converged,
    /// Will be tried again by itself.
    Retry {
        after: Duration,
        why: String,
    },
    /// The user must change something first: no retry before the Service, a node or a pool changes.
    Blocked {
        why: String,
    },
}

/// What a provider answers for one Service: the one status writer turns it into status and Events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    pub outcome: Outcome,
    /// The addresses that the status should show; `None` leaves it as it is.
    pub ingress: Option<Vec<Ingress>>,
    pub notes: Vec<Note>,
    /// Nothing of the Service is left with the provider: its finalizer can go.
    pub released: bool,
}

impl<S> Plan<S> {
    pub fn is_empty(&self) -> bool {
        self.batches.iter().all(Vec::is_empty)
    }
}

impl<S> Default for Plan<S> {
    fn default() -> Self {
        Self { batches: Vec::new(), notes: Vec::new() }
    }
}

impl Note {
    pub fn normal(reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Normal, reason, message: message.into() }
    }

    pub fn warning(reason: &'static str, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, reason, message: message.into() }
    }
}

impl<S: fmt::Display> fmt::Display for Plan<S> {
    /// One line a step, a blank line between batches, notes last.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, batch) in self.batches.iter().filter(|b| !b.is_empty()).enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            for step in batch {
                writeln!(f, "{step}")?;
            }
        }
        for note in &self.notes {
            writeln!(f, "{note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Normal => "note",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}: {}", self.reason, self.message)
    }
}
