//! Which version of each object was passed on: what a list finds that the watch before it had kept
//! to itself.
//!
//! ```text
//! watch: a@7, b@9, bookmark 12      list: a@8   the watch was past 8 and had not told: changed
//!                                         c@15  came since
//!                                         no b  gone, untold or in the moment between the two
//! ```
//!
//! Versions of one kind are numbers that grow (KEP-5504). One that is no number is compared with nothing.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// The versions by name: 64 bits of a hash tell the objects of a cluster apart, in some 30 bytes each.
#[derive(Debug, Default)]
pub(crate) struct Known {
    versions: BTreeMap<u64, u64>,
    names: RandomState,
    list: Option<List>,
}

#[derive(Debug)]
struct List {
    /// How far the watch had come; `None` where nothing can be asked of it.
    watched: Option<u64>,
    versions: BTreeMap<u64, u64>,
    changed: u64,
}

/// What a list made right.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Corrections {
    /// Objects of a version that the watch had gone past without a word.
    pub(crate) changed: u64,
    /// Objects that are not listed. Those deleted between watch and list are among them.
    pub(crate) gone: u64,
}

impl Known {
    /// A list begins. `watched` is the version to which a watch had come that it follows at once.
    pub(crate) fn begin_list(&mut self, watched: Option<&str>) {
        let versions = BTreeMap::new();
        self.list = Some(List { watched: watched.and_then(|v| v.parse().ok()), versions, changed: 0 });
    }

    pub(crate) fn apply(&mut self, meta: &ObjectMeta) {
        let name = self.hash(meta);
        // No object has the version 0.
        let version = meta.resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0);
        let Some(list) = &mut self.list else {
            self.versions.insert(name, version);
            return;
        };
        list.versions.insert(name, version);
        let told = self.versions.get(&name) == Some(&version);
        list.changed += u64::from(!told && version > 0 && list.watched.is_some_and(|to| version <= to));
    }

    pub(crate) fn delete(&mut self, meta: &ObjectMeta) {
        let name = self.hash(meta);
        self.versions.remove(&name);
        if let Some(list) = &mut self.list {
            list.versions.remove(&name);
        }
    }

    /// The list is complete. Nothing counts as made right but behind a watch.
    pub(crate) fn end_list(&mut self) -> Corrections {
        let Some(list) = self.list.take() else { return Corrections::default() };
        let before = std::mem::replace(&mut self.versions, list.versions);
        if list.watched.is_none() {
            return Corrections::default();
        }
        let gone = before.keys().filter(|name| !self.versions.contains_key(name)).count();
        Corrections { changed: list.changed, gone: gone as u64 }
    }

    fn hash(&self, meta: &ObjectMeta) -> u64 {
        self.names.hash_one((&meta.namespace, &meta.name))
    }
}

impl Corrections {
    pub(crate) fn is_empty(self) -> bool {
        self == Self::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(name: &str, version: &str) -> ObjectMeta {
        let (name, resource_version) = (Some(name.to_owned()), Some(version.to_owned()));
        ObjectMeta { name, resource_version, ..ObjectMeta::default() }
    }

    /// After a list of `a` and `b` and a watch that told of `c`.
    fn known() -> Known {
        let mut known = Known::default();
        known.begin_list(None);
        known.apply(&object("a", "1"));
        known.apply(&object("b", "2"));
        assert!(known.end_list().is_empty(), "a first list corrects nothing");
        known.apply(&object("c", "11"));
        known
    }

    #[test]
    fn what_the_watch_went_past_is_told_from_what_came_since() {
        type Case = (&'static str, Option<&'static str>, &'static [(&'static str, &'static str)], u64, u64);
        let table: [Case; 8] = [
            ("all as told", Some("15"), &[("a", "1"), ("b", "2"), ("c", "11")], 0, 0),
            ("a changed unseen", Some("15"), &[("a", "12"), ("b", "2"), ("c", "11")], 1, 0),
            ("a changed since", Some("15"), &[("a", "16"), ("b", "2"), ("c", "11")], 0, 0),
            ("d came unseen", Some("15"), &[("a", "1"), ("b", "2"), ("c", "11"), ("d", "15")], 1, 0),
            ("b went unseen", Some("15"), &[("a", "1"), ("c", "11")], 0, 1),
            ("behind no watch", None, &[("a", "12")], 0, 0),
            ("versions of another kind", Some("x"), &[("a", "12")], 0, 0),
            ("an object's version of another kind", Some("15"), &[("a", "y"), ("b", "2"), ("c", "11")], 0, 0),
        ];
        for (case, watched, list, changed, gone) in table {
            let mut known = known();
            known.begin_list(watched);
            for (name, version) in list {
                known.apply(&object(name, version));
            }
            assert_eq!(known.end_list(), Corrections { changed, gone }, "{case}");
        }
    }

    #[test]
    fn what_is_deleted_while_a_list_is_streamed_was_not_missed() {
        let mut known = known();
        known.begin_list(Some("15"));
        for (name, version) in [("a", "1"), ("b", "2"), ("c", "11")] {
            known.apply(&object(name, version));
        }
        known.delete(&object("b", "16"));
        assert!(known.end_list().is_empty());
        known.begin_list(Some("17"));
        known.apply(&object("a", "1"));
        known.apply(&object("c", "11"));
        assert!(known.end_list().is_empty(), "and is forgotten");
    }

    #[test]
    fn a_list_that_breaks_off_leaves_what_was_told_as_it_was() {
        let mut known = known();
        known.begin_list(Some("15"));
        known.apply(&object("a", "12"));
        known.begin_list(Some("15"));
        known.apply(&object("a", "12"));
        assert_eq!(known.end_list(), Corrections { changed: 1, gone: 2 });
    }
}
