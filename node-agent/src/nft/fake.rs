//! The kernel's rules without a kernel: what it refuses, this refuses.

use super::layout::Group;
use super::mirror::Mirror;
use super::step::{Element, Step};

/// A stateful stand-in for nf_tables. A batch is applied as a whole or not at all.
#[derive(Debug, Clone, Default)]
pub struct Fake {
    state: Mirror,
}

/// Why a batch was refused, as the kernel would.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {why}")]
pub struct Refused {
    pub step: String,
    pub why: &'static str,
}

impl Fake {
    pub fn observe(&self) -> Mirror {
        self.state.clone()
    }

    /// # Errors
    /// The first step that the kernel would refuse; then nothing is changed.
    pub fn commit(&mut self, steps: &[Step]) -> Result<(), Refused> {
        let mut next = self.state.clone();
        for step in steps {
            if let Some(why) = refusal(step, &next) {
                return Err(Refused { step: step.to_string(), why });
            }
            next.follow(step);
        }
        self.state = next;
        Ok(())
    }
}

fn refusal(step: &Step, state: &Mirror) -> Option<&'static str> {
    let structure = state.structure(step.family());
    match step {
        Step::CreateTable(_) => structure.exists.then_some("EEXIST: the table is there"),
        _ if !structure.exists => Some("ENOENT: there is no table"),
        Step::Add(element) => {
            if !structure.sets.contains(&element.set()) {
                return Some("ENOENT: there is no such set");
            }
            if let Element::Affinity { chain, .. } = element
                && !state.affinities.chains().contains_key(chain)
            {
                return Some("ENOENT: there is no such chain");
            }
            holds(state, element).then_some("EEXIST: the element is there")
        }
        Step::Delete(element) => (!holds(state, element)).then_some("ENOENT: there is no such element"),
        Step::DeleteAffinity(key) => {
            let affinities = &state.affinities;
            match affinities.chains().contains_key(key) {
                false => Some("ENOENT: there is no such chain"),
                true => {
                    affinities.leads().values().any(|to| to == key).then_some("EBUSY: an element leads there")
                }
            }
        }
        Step::CreateSet(_, set) => structure.sets.contains(set).then_some("EEXIST: the set is there"),
        Step::DeleteTable(_)
        | Step::RewriteChain(..)
        | Step::FlushChain(..)
        | Step::DeleteChain(..)
        | Step::WriteAffinity(..)
        | Step::DeleteSet(..) => None,
    }
}

/// Whether an element with the same key is there.
fn holds(state: &Mirror, element: &Element) -> bool {
    let of = |frontend| state.frontends.get(frontend);
    match element {
        Element::Served { frontend, .. } => of(frontend).is_some_and(|f| f.groups.contains(Group::Served)),
        Element::Member { frontend, group } => of(frontend).is_some_and(|f| f.groups.contains(*group)),
        Element::Endpoint { frontend, pool, index, .. } => {
            of(frontend).is_some_and(|f| matches!(f.pool(*pool).get(*index as usize), Some(Some(_))))
        }
        Element::Affinity { frontend, pool, .. } => {
            state.affinities.leads().contains_key(&(*frontend, *pool))
        }
        Element::ClusterIp(ip) => state.cluster_ips.contains(ip),
        Element::NodeAddress(ip) => state.node_addresses.contains(ip),
        Element::SourceRange { frontend, network } => {
            state.source_ranges.get(frontend).is_some_and(|networks| networks.contains(network))
        }
        Element::Hairpin(hairpin) => state.hairpins.contains(hairpin),
    }
}
