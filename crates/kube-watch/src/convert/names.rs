//! One copy of every node and zone name, however many endpoints mention it.

use std::collections::BTreeSet;
use std::sync::Arc;

/// Names that are in use, and at times some that no longer are: they are dropped when the set has
/// doubled since they were last looked for.
#[derive(Debug, Default)]
pub(crate) struct Names {
    known: BTreeSet<Arc<str>>,
    swept: usize,
}

/// Not worth sweeping below this.
const SMALL: usize = 64;

impl Names {
    pub(crate) fn shared(&mut self, name: String) -> Arc<str> {
        if let Some(known) = self.known.get(name.as_str()) {
            return Arc::clone(known);
        }
        if self.known.len() >= 2 * self.swept.max(SMALL) {
            self.known.retain(|n| Arc::strong_count(n) > 1);
            self.swept = self.known.len();
        }
        let shared: Arc<str> = name.into();
        self.known.insert(Arc::clone(&shared));
        shared
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_names_are_one_and_names_out_of_use_are_forgotten() {
        let mut names = Names::default();
        let kept = names.shared("kept".to_owned());
        for i in 0..10_000 {
            names.shared(format!("gone-{i}"));
        }
        assert!(names.known.len() <= 2 * SMALL + 1, "{}", names.known.len());
        assert!(Arc::ptr_eq(&kept, &names.shared("kept".to_owned())));
    }
}
