//! What was found, for a person and as a fixture.

use std::fmt::Write as _;
use std::fs;

use anyhow::Result;

use crate::batch::Difference;
use crate::cases::Case;
use crate::lab_of_two::LabOfTwo;

/// A case may differ in many flows for one reason.
const SHOWN: usize = 12;

/// The case as a fixture, with what differs as comments.
pub(crate) fn describe(case: &Case, differences: &[Difference]) -> String {
    let mut text = String::new();
    for Difference { flow, kube_proxy, node_agent } in differences.iter().take(SHOWN) {
        writeln!(text, "# {flow}\n#   kube-proxy: {kube_proxy}\n#   node-agent: {node_agent}")
            .expect("a String takes everything");
    }
    if let Some(more) = differences.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        writeln!(text, "# and {more} flows more").expect("a String takes everything");
    }
    text + &case.to_yaml().expect("objects of Kubernetes have a YAML form")
}

/// The same, which also stays beside the logs: move the file into fixtures/ to replay it.
///
/// # Errors
/// When it cannot be written.
pub(crate) fn keep(lab: &LabOfTwo, number: usize, case: &Case, differences: &[Difference]) -> Result<String> {
    let text = describe(case, differences);
    fs::write(lab.file_to_keep(&format!("found-{number}.yaml")), &text)?;
    Ok(text)
}
