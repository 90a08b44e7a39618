//! The packet path of tests: the same rules as the maps, and crashes where a test wants them.

use anyhow::bail;

use crate::observed::Observed;
use crate::plan::{Backend, Step};

#[derive(Debug, Clone, Default)]
pub struct Fake {
    pub state: Observed,
    /// How many more steps are taken before everything fails, as if the process had died.
    pub dies_after: Option<usize>,
    /// How many batches it was given.
    pub batches: usize,
}

impl Backend for Fake {
    fn observe(&mut self) -> anyhow::Result<Observed> {
        Ok(self.state.clone())
    }

    fn apply(&mut self, batch: &[Step]) -> anyhow::Result<()> {
        self.batches += 1;
        for step in batch {
            match &mut self.dies_after {
                Some(0) => bail!("died before: {step}"),
                Some(left) => *left -= 1,
                None => {}
            }
            self.state.apply(step)?;
        }
        Ok(())
    }
}
