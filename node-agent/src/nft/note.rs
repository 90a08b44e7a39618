//! What a user should know of a Service and would not find out: told when it begins to be so, and again from time to
//! time, as long as it is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use service_model::ServiceName;

use super::layout::{Frontend, MAX_TARGETS};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// Another Service has the better title to what this one asks for.
    Taken { frontend: Frontend, by: ServiceName },
    /// More than can be used.
    TooManyEndpoints { frontend: Frontend },
}

/// What was told and is still so.
#[derive(Debug, Default)]
pub(super) struct Notes {
    told: BTreeMap<Frontend, BTreeSet<(ServiceName, Note)>>,
}

impl Notes {
    /// All that is so of a frontend now. Returns what was not before.
    pub(super) fn update(
        &mut self,
        frontend: Frontend,
        now: BTreeSet<(ServiceName, Note)>,
    ) -> Vec<(ServiceName, Note)> {
        if now.is_empty() {
            self.told.remove(&frontend);
            return Vec::new();
        }
        let before = self.told.insert(frontend, now.clone()).unwrap_or_default();
        now.into_iter().filter(|note| !before.contains(note)).collect()
    }

    /// These are so too. Returns what was not before.
    pub(super) fn add(
        &mut self,
        frontend: Frontend,
        more: Vec<(ServiceName, Note)>,
    ) -> Vec<(ServiceName, Note)> {
        let told = self.told.entry(frontend).or_default();
        more.into_iter().filter(|note| told.insert(note.clone())).collect()
    }

    /// The Service asks for the frontend no more: should it again, it is told again.
    pub(super) fn forget(&mut self, frontend: Frontend, service: &ServiceName) {
        if let Some(told) = self.told.get_mut(&frontend) {
            told.retain(|(of, _)| of != service);
            if told.is_empty() {
                self.told.remove(&frontend);
            }
        }
    }

    pub(super) fn has(&self, note: &(ServiceName, Note)) -> bool {
        let (Note::Taken { frontend, .. } | Note::TooManyEndpoints { frontend }) = note.1;
        self.told.get(&frontend).is_some_and(|told| told.contains(note))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &(ServiceName, Note)> {
        self.told.values().flatten()
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Note::Taken { frontend, by } => write!(
                f,
                "{frontend} is {by}'s, and not served for this Service: a ClusterIP comes before a load balancer's \
                 address, that before an external IP, then the name that sorts first"
            ),
            Note::TooManyEndpoints { frontend } => write!(
                f,
                "{frontend} has more than {MAX_TARGETS} endpoints: the first {MAX_TARGETS} by address are used. Spread \
                 them over several Services"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use service_model::Protocol;

    use super::*;

    #[test]
    fn what_is_so_is_told_once_until_it_is_so_again() {
        let frontend = Frontend::Vip { ip: [10, 96, 0, 1].into(), protocol: Protocol::Tcp, port: 80 };
        let name = |name: &str| ServiceName::new("ns", name);
        let taken = |loser: &str, by: &str| (name(loser), Note::Taken { frontend, by: name(by) });
        let mut notes = Notes::default();
        let mut told = |now: &[(ServiceName, Note)]| notes.update(frontend, now.iter().cloned().collect());
        assert_eq!(told(&[taken("b", "a")]), [taken("b", "a")]);
        assert_eq!(told(&[taken("b", "a"), taken("c", "a")]), [taken("c", "a")]);
        assert_eq!(told(&[taken("b", "a"), taken("c", "a")]), []);
        assert_eq!(told(&[]), []);
        assert_eq!(told(&[taken("b", "a")]), [taken("b", "a")]);
        assert_eq!(
            taken("b", "a").1.to_string(),
            "10.96.0.1:80/TCP is ns/a's, and not served for this Service: a ClusterIP comes before a load balancer's \
             address, that before an external IP, then the name that sorts first"
        );
    }
}
