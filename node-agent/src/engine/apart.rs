//! One bad Service never blocks the others: what the kernel refuses is found, left out and tried again.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use nfnetlink::Error;
use service_model::{ServiceName, World};

use super::{Engine, leaves_gaps};
use crate::nft::layout::FAMILIES;
use crate::nft::step::Step;

/// A Service that the kernel refuses is tried again after this long.
const QUARANTINE: Duration = Duration::from_secs(30);
/// So many refused Services are looked at in one sync; further ones in the next, so that a kernel that refuses all of
/// them does not keep the agent from everything else.
const MOST_REFUSALS: usize = 64;

impl Engine {
    /// The refused Services that are tried again now: those that changed, which are taken away from there, and those
    /// whose time has come.
    pub(super) fn suspects(&mut self, changed: &mut BTreeSet<ServiceName>, now: Instant) -> Vec<ServiceName> {
        for (name, at) in &mut self.refused {
            if changed.remove(name) {
                *at = now.min(*at);
            }
        }
        let due = self.refused.iter().filter(|(_, at)| **at <= now);
        due.map(|(name, _)| name.clone()).take(MOST_REFUSALS).collect()
    }

    /// All but those that the kernel refuses. What is surplus waits for the next sync.
    pub(super) fn commit_apart(&mut self, world: &World, now: Instant) -> anyhow::Result<usize> {
        let mut structure = self.prepare_anew();
        let mut done = 0;
        if !structure.iter().any(leaves_gaps) {
            done += self.commit(&std::mem::take(&mut structure))?;
        }
        let all = std::mem::take(&mut self.dirty);
        self.foresee(&all, world);
        let mut parts = vec![all.into_iter().collect::<Vec<_>>()];
        let before = self.refusals.len();
        while let Some(mut services) = parts.pop() {
            let found = self.refusals.len() - before;
            anyhow::ensure!(found < MOST_REFUSALS, "the kernel refuses {found} Services and perhaps more");
            if let [name] = services.as_slice() {
                done += self.commit_alone(name, &mut structure, world, now)?;
                continue;
            }
            let plan = self.plan(&services.iter().cloned().collect(), world);
            match self.commit_with(&mut structure, plan.now) {
                Ok(steps) => {
                    done += steps;
                    self.put_off(plan.later, now);
                }
                Err(error) if is_refusal(&error) => {
                    let second = services.split_off(services.len() / 2);
                    parts.extend([second, services]);
                }
                Err(error) => return Err(error),
            }
        }
        done += self.commit(&structure)?;
        if std::mem::take(&mut self.sweep) {
            let plan = self.leftovers();
            self.put_off(plan.later, now);
            // It is nobody's fault, and would be refused again with every sync.
            done += self.commit(&plan.now).inspect_err(|error| self.remake = is_refusal(error))?;
        }
        Ok(done)
    }

    /// Commits one Service; if the kernel refuses it, it is left as it is for a while.
    pub(super) fn commit_alone(
        &mut self,
        name: &ServiceName,
        structure: &mut Vec<Step>,
        world: &World,
        now: Instant,
    ) -> anyhow::Result<usize> {
        let plan = self.plan(&BTreeSet::from([name.clone()]), world);
        match self.commit_with(structure, plan.now) {
            Ok(steps) => {
                self.put_off(plan.later, now);
                self.refused.remove(name);
                Ok(steps)
            }
            Err(error) if is_refusal(&error) => {
                let (service, error) = (name.as_str(), format!("{error:#}"));
                tracing::error!(service, error, "the kernel refuses this Service; it is left out for now");
                self.refusals.push((name.clone(), error));
                self.refused.insert(name.clone(), now + QUARANTINE);
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// As [`Engine::prepare`], but a table in which others left chains or sets is made anew: they may be what the kernel
    /// refuses to delete.
    fn prepare_anew(&mut self) -> Vec<Step> {
        if let Some(mirror) = &mut self.mirror {
            for family in FAMILIES {
                let structure = mirror.structure_mut(family);
                structure.unusable |= !structure.other_chains.is_empty() || !structure.other_sets.is_empty();
            }
        }
        self.prepare()
    }

    /// Commits the steps after those of the structure, which are done then.
    fn commit_with(&mut self, structure: &mut Vec<Step>, steps: Vec<Step>) -> anyhow::Result<usize> {
        let mut all = structure.clone();
        all.extend(steps);
        let done = self.commit(&all)?;
        structure.clear();
        Ok(done)
    }
}

/// Whether reading the kernel again may help at once.
pub(super) fn retries(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Rejected(_) | Error::StaleGeneration))
}

/// Whether somebody else committed first.
pub(super) fn is_overtaken(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::StaleGeneration))
}

/// Whether what was asked for cannot be done: by the kernel, or already on the way to it. A kernel that has no memory or
/// grants no permission refuses no Service: then the sync has failed, and is tried again.
pub(super) fn is_refusal(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(Error::Rejected(rejection)) => !rejection.is_of_the_host(),
        Some(Error::Invalid { .. }) => true,
        _ => false,
    }
}
