//! The mirror of what is in the kernel: read back at start and on doubt, kept by our own commits.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use service_model::IpFamily;

use super::affinity::Affinities;
use super::groups::Groups;
use super::layout::{FAMILIES, Frontend, Group, Pool, SetName, Target};
use super::ruleset::{ChainName, Ruleset};
use super::source_ranges::SourceNetwork;
use super::step::{Element, Hairpin, Step};

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirror {
    pub v4: Structure,
    pub v6: Structure,
    pub frontends: BTreeMap<Frontend, FrontendState>,
    pub node_addresses: BTreeSet<IpAddr>,
    pub cluster_ips: BTreeSet<IpAddr>,
    /// From where frontends are reached that are not reached from everywhere.
    pub source_ranges: BTreeMap<Frontend, BTreeSet<SourceNetwork>>,
    pub hairpins: BTreeSet<Hairpin>,
    pub affinities: Affinities,
}

/// The table's chains and sets, compared with the ruleset that we want when they were read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Structure {
    /// The table is there.
    pub exists: bool,
    /// Something differs that cannot be changed in place: the table's flags, a base chain's hook, a
    /// set's types, an element that we never write.
    pub unusable: bool,
    /// Chains that exist and have just the rules we want.
    pub chains: BTreeSet<ChainName>,
    /// Sets of ours that exist.
    pub sets: BTreeSet<SetName>,
    /// Chains of other names.
    pub other_chains: BTreeSet<String>,
    /// Sets of other names.
    pub other_sets: BTreeSet<String>,
}

/// All elements of one frontend. Compact: there is one for each VIP and NodePort.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FrontendState {
    /// The comment of the element in [`Group::Served`].
    pub label: Box<str>,
    pub groups: Groups,
    /// By index; the last is never `None`.
    pub cluster: Box<[Option<Target>]>,
    pub local: Box<[Option<Target>]>,
}

impl Mirror {
    pub fn structure(&self, family: IpFamily) -> &Structure {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }

    pub fn structure_mut(&mut self, family: IpFamily) -> &mut Structure {
        match family {
            IpFamily::V4 => &mut self.v4,
            IpFamily::V6 => &mut self.v6,
        }
    }

    /// Whether nothing of ours is in the kernel.
    pub fn is_empty(&self) -> bool {
        FAMILIES.iter().all(|family| !self.structure(*family).exists)
    }

    /// Follows a step that was committed.
    pub fn follow(&mut self, step: &Step) {
        let family = step.family();
        match step {
            Step::CreateTable(ruleset) => {
                *self.structure_mut(family) = Structure {
                    exists: true,
                    chains: ruleset.chains.iter().map(|chain| chain.name).collect(),
                    sets: SetName::all(family).collect(),
                    ..Structure::default()
                };
            }
            Step::DeleteTable(_) => self.forget(family),
            Step::CreateSet(_, set) => {
                self.structure_mut(family).sets.insert(*set);
            }
            Step::RewriteChain(chain, _) => {
                self.structure_mut(family).chains.insert(*chain);
            }
            Step::FlushChain(..) => {}
            Step::DeleteChain(_, name) => {
                self.structure_mut(family).other_chains.remove(name);
            }
            Step::DeleteSet(_, name) => {
                self.structure_mut(family).other_sets.remove(name);
            }
            Step::WriteAffinity(key, chain) => self.affinities.write(key, chain),
            Step::DeleteAffinity(key) => self.affinities.delete(key),
            Step::Add(element) => self.add(element),
            Step::Delete(element) => self.delete(element),
        }
    }

    pub fn add(&mut self, element: &Element) {
        match element {
            Element::Served { frontend, label } => {
                let state = self.frontends.entry(*frontend).or_default();
                state.groups.insert(Group::Served);
                state.label.clone_from(label);
            }
            Element::Member { frontend, group } => {
                self.frontends.entry(*frontend).or_default().groups.insert(*group);
            }
            Element::Endpoint { frontend, pool, index, target } => {
                self.frontends.entry(*frontend).or_default().put(*pool, *index, Some(*target));
            }
            Element::Affinity { frontend, pool, chain } => {
                self.affinities.lead(*frontend, *pool, Some(chain));
            }
            Element::NodeAddress(ip) => {
                self.node_addresses.insert(*ip);
            }
            Element::ClusterIp(ip) => {
                self.cluster_ips.insert(*ip);
            }
            Element::SourceRange { frontend, network } => {
                self.source_ranges.entry(*frontend).or_default().insert(*network);
            }
            Element::Hairpin(hairpin) => {
                self.hairpins.insert(*hairpin);
            }
        }
    }

    pub fn delete(&mut self, element: &Element) {
        match element {
            Element::Affinity { frontend, pool, .. } => self.affinities.lead(*frontend, *pool, None),
            Element::NodeAddress(ip) => {
                self.node_addresses.remove(ip);
            }
            Element::ClusterIp(ip) => {
                self.cluster_ips.remove(ip);
            }
            Element::SourceRange { frontend, network } => {
                if let Some(networks) = self.source_ranges.get_mut(frontend) {
                    networks.remove(network);
                    if networks.is_empty() {
                        self.source_ranges.remove(frontend);
                    }
                }
            }
            Element::Hairpin(hairpin) => {
                self.hairpins.remove(hairpin);
            }
            Element::Served { frontend, .. } => {
                self.change(*frontend, |state| {
                    state.groups.remove(Group::Served);
                    state.label = Box::default();
                });
            }
            Element::Member { frontend, group } => {
                self.change(*frontend, |state| state.groups.remove(*group));
            }
            Element::Endpoint { frontend, pool, index, .. } => {
                self.change(*frontend, |state| state.put(*pool, *index, None));
            }
        }
    }

    /// Drops what is known of a family's table.
    pub fn forget(&mut self, family: IpFamily) {
        *self.structure_mut(family) = Structure::default();
        self.frontends.retain(|frontend, _| frontend.family() != family);
        self.node_addresses.retain(|ip| IpFamily::of(*ip) != family);
        self.cluster_ips.retain(|ip| IpFamily::of(*ip) != family);
        self.affinities.forget(family);
        self.source_ranges.retain(|frontend, _| frontend.family() != family);
        self.hairpins.retain(|hairpin| IpFamily::of(hairpin.target.ip) != family);
    }

    fn change(&mut self, frontend: Frontend, change: impl FnOnce(&mut FrontendState)) {
        if let Some(state) = self.frontends.get_mut(&frontend) {
            change(state);
            if state.is_empty() {
                self.frontends.remove(&frontend);
            }
        }
    }
}

impl Structure {
    /// Whether it is just what the ruleset wants.
    pub fn fits(&self, ruleset: &Ruleset) -> bool {
        self.exists
            && !self.unusable
            && self.other_chains.is_empty()
            && self.other_sets.is_empty()
            && ruleset.chains.iter().all(|chain| self.chains.contains(&chain.name))
            && SetName::all(ruleset.family).all(|set| self.sets.contains(&set))
    }
}

impl FrontendState {
    pub fn pool(&self, pool: Pool) -> &[Option<Target>] {
        match pool {
            Pool::Cluster => &self.cluster,
            Pool::Local => &self.local,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.groups.is_empty() && self.cluster.is_empty() && self.local.is_empty()
    }

    fn put(&mut self, pool: Pool, index: u32, target: Option<Target>) {
        let slots = match pool {
            Pool::Cluster => &mut self.cluster,
            Pool::Local => &mut self.local,
        };
        let mut targets = std::mem::take(slots).into_vec();
        let index = index as usize;
        if targets.len() <= index {
            targets.resize(index + 1, None);
        }
        targets[index] = target;
        let end = targets.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
        targets.truncate(end);
        *slots = targets.into_boxed_slice();
    }
}
