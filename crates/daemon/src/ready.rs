//! Readiness as a set of named things that have to happen first.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// Shared by the program, which takes tokens, and `/readyz`, which lists the missing ones.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    /// How many tokens of each name are not done.
    missing: Arc<Mutex<BTreeMap<&'static str, usize>>>,
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
        *self.lock().entry(name).or_default() += 1;
        ReadyToken { name, readiness: self.clone() }
    }

    /// What has not happened yet, by name.
    pub fn missing(&self) -> Vec<&'static str> {
        self.lock().keys().copied().collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, usize>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadyToken {
    /// It happened. A token that is dropped without this keeps the program unready: whoever held
    /// it died first.
    pub fn done(self) {
        let mut missing = self.readiness.lock();
        if let Some(left) = missing.get_mut(self.name) {
            *left -= 1;
            if *left == 0 {
                missing.remove(self.name);
                tracing::info!(subsystem = self.name, "ready");
            }
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

    #[test]
    fn tokens_of_one_name_must_all_be_done() {
        let readiness = Readiness::default();
        let (first, second) = (readiness.task("listener"), readiness.task("listener"));
        first.done();
        assert_eq!(readiness.missing(), ["listener"]);
        second.done();
        assert!(readiness.missing().is_empty());
    }
}
