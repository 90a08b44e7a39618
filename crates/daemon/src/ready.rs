//! Readiness as a set of named things that have to happen first.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by the program, which takes tokens, and `/readyz`, which lists the missing ones.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    missing: Arc<Mutex<BTreeSet<&'static str>>>,
}

/// One thing that has to happen before the program is ready.
#[derive(Debug)]
#[must_use = "readiness is reported when the token is done"]
pub struct ReadyToken {
    name: &'static str,
    readiness: Readiness,
}

impl Readiness {
    /// Names a thing that readiness waits for until its token is done.
    pub fn task(&self, name: &'static str) -> ReadyToken {
        self.lock().insert(name);
        ReadyToken { name, readiness: self.clone() }
    }

    /// What has not happened yet, by name.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().iter().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeSet<&'static str>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadyToken {
    /// It happened. A token that is dropped without this keeps the program unready: whoever held
    /// it died first.
    pub fn done(self) {
        if self.readiness.lock().remove(self.name) {
            tracing::info!(subsystem = self.name, "ready");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_waits_for_every_token_and_a_dropped_one_counts_as_missing() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.task("first-plan"), readiness.task("watch"));
        first.done();
        assert_eq!(readiness.missing(), ["watch"]);
        drop(second);
        assert_eq!(readiness.missing(), ["watch"]);
    }
}
