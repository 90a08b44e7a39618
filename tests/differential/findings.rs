//! What was found, for a person and as a fixture.

use std::fs;
use std::path::Path;

use anyhow::Result;

use crate::cases::Case;
use crate::difference::Difference;

/// A case may differ in many flows for one reason.
const SHOWN: usize = 12;

/// The case as a fixture, with what differs as comments.
pub(crate) fn describe(case: &Case, differences: &[Difference]) -> String {
    let mut text: String = differences.iter().take(SHOWN).map(ToString::to_string).collect();
    if let Some(more) = differences.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text += &format!("# and {more} flows more\n");
    }
    text + &case.to_yaml().expect("objects of Kubernetes have a YAML form")
}

/// The same, which also stays beside the logs: move the file into fixtures/ to replay it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn keep(folder: &Path, number: usize, case: &Case, differences: &[Difference]) -> Result<String> {
    let text = describe(case, differences);
    fs::write(folder.join(format!("found-{number}.yaml")), &text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;
    use crate::features::Settings;
    use crate::flows;
    use crate::generate::Generator;
    use crate::verdict::{Outcome, Verdict};

    /// More than are shown, and words that could be taken for a document of their own.
    fn differences() -> Vec<Difference> {
        let verdict = |outcome: Outcome| Verdict([outcome].into());
        let flows = flows::of_nobody(0, &["10.96.0.9".parse().unwrap(), "fd00:10:96::9".parse().unwrap()]);
        let [theirs, ours] =
            [Outcome::Silent, Outcome::Broken("no answer\n---\nkind: Service".to_owned())].map(verdict);
        let difference = |flow| Difference::of_twins(flow, [&theirs, &ours]);
        flows.into_iter().map(difference).collect()
    }

    #[test]
    fn what_is_kept_is_replayed_as_it_was() {
        let mut generator = Generator::new(&Settings::seeded(7));
        let folder = tempfile::tempdir().unwrap();
        let differences = differences();
        assert!(differences.len() > SHOWN);
        let mut with_a_past = 0;
        for (nth, tree) in generator.trees(200).unwrap().iter().enumerate() {
            let case = generator.case(tree);
            keep(folder.path(), nth, &case, &differences).unwrap();
            let (replayed, needs) = cases::fixture(&folder.path().join(format!("found-{nth}.yaml"))).unwrap();
            assert!(needs.is_empty());
            assert_eq!(replayed.to_yaml().unwrap(), case.to_yaml().unwrap());
            assert_eq!(replayed.before.is_some(), case.before.is_some());
            with_a_past += usize::from(case.before.is_some());
        }
        assert!(with_a_past > 0);
    }
}
