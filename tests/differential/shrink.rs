//! From a case that differs to the least of it that still does.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::batch::{BRISK, Difference};
use crate::cases::Case;
use crate::features::Settings;
use crate::generate::{Generator, Tree};
use crate::lab_of_two::LabOfTwo;

/// More failures are told as they are: they will have the same few reasons.
pub(crate) const MOST: usize = 4;

const DEADLINE: Duration = Duration::from_secs(60);

/// The simplest case found that differs alone; or the given one, if it does so only in company.
///
/// # Errors
/// As `LabOfTwo::judge`.
pub(crate) async fn shrink(
    lab: &LabOfTwo,
    settings: &Settings,
    generator: &Generator,
    tree: &mut Tree,
    whole: (Case, Vec<Difference>),
) -> Result<(Case, Vec<Difference>)> {
    let started = Instant::now();
    let mut least = whole;
    let mut simpler = true;
    // The first look is at the case itself, alone.
    while simpler && started.elapsed() < DEADLINE {
        let case = generator.case(tree);
        let differences = lab.judge(std::slice::from_ref(&case), settings, BRISK).await?.of_case(0);
        simpler = if differences.is_empty() {
            tree.complicate()
        } else {
            least = (case, differences);
            tree.simplify()
        };
    }
    Ok(least)
}
