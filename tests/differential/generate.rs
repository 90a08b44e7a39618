//! Cases at random. What is drawn is a sketch, which shrinks well; objects are made from it.

mod objects;
mod sketch;

use anyhow::{Result, anyhow};
use proptest::strategy::{BoxedStrategy, Strategy, ValueTree};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::cases::Case;
use crate::features::Settings;
use sketch::Sketch;

/// A case that can be made simpler.
pub(crate) type Tree = Box<dyn ValueTree<Value = Sketch>>;

#[derive(Debug)]
pub(crate) struct Generator {
    runner: TestRunner,
    sketches: BoxedStrategy<Sketch>,
}

impl Generator {
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut seed = [0; 32];
        seed[..8].copy_from_slice(&settings.seed.to_le_bytes());
        let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed);
        let runner = TestRunner::new_with_rng(Config::default(), rng);
        Self { runner, sketches: sketch::sketches(settings).boxed() }
    }

    /// # Errors
    /// Never, as no strategy here rejects anything.
    pub(crate) fn trees(&mut self, count: usize) -> Result<Vec<Tree>> {
        let mut tree = || self.sketches.new_tree(&mut self.runner).map_err(|reason| anyhow!("{reason}"));
        (0..count).map(|_| tree()).collect()
    }

    pub(crate) fn case(&self, tree: &Tree) -> Case {
        objects::case(&tree.current())
    }
}
