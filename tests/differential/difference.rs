//! A flow that not everybody says the same of.

use std::fmt;

use crate::flows::Flow;
use crate::foretold::Opinion;
use crate::verdict::Verdict;

#[derive(Debug, Clone)]
pub(crate) struct Difference {
    pub flow: Flow,
    /// Who, and what that one says.
    said: Vec<(&'static str, String)>,
}

impl Difference {
    pub(crate) fn of_twins(flow: Flow, [theirs, ours]: [&Verdict; 2]) -> Self {
        Self { flow, said: vec![("kube-proxy", theirs.to_string()), ("node-agent", ours.to_string())] }
    }

    /// From what node-agent's evaluator makes of it.
    pub(crate) fn of_opinion(flow: Flow, opinion: &Opinion<'_>, ours: &Verdict) -> Self {
        Self { flow, said: vec![("node-agent", ours.to_string())] }.beside(opinion)
    }

    /// The same with the evaluator's opinion.
    #[must_use]
    pub(crate) fn beside(mut self, opinion: &Opinion<'_>) -> Self {
        self.said.push(("foretold", opinion.to_string()));
        self
    }
}

/// As comments of a fixture: no line of it can be taken for a document.
impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# {}", self.flow)?;
        self.said.iter().try_for_each(|(who, what)| writeln!(f, "#   {who}: {what}"))
    }
}
