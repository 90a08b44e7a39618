//! What the packet path does: a mirror of the pinned maps, read at start and kept by our own steps.
//!
//! [`Observed::apply`] obeys the rules that the program relies on, so the mirror is also the heart
//! of the tests' [`fake`](crate::plan::fake).

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::desired::{ListenerId, Mac};
use crate::plan::{MAX_VIPS, Step};

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    /// `None` before the first document.
    pub host: Option<HostSettings>,
    pub vips: BTreeMap<Ipv4Addr, bool>,
    pub listeners: BTreeMap<ListenerId, ObservedListener>,
    /// By id; those that left their table included, because connections may still name them.
    pub targets: BTreeMap<u32, ObservedTarget>,
    /// By number.
    pub tables: BTreeMap<u32, ObservedTable>,
    /// What belongs to a listener, so that a plan costs its VIP alone.
    index: BTreeMap<ListenerId, Numbers>,
}

/// The tables and targets of a listener.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Numbers {
    tables: BTreeSet<u32>,
    targets: BTreeSet<u32>,
}

/// What belongs to the host and not to a VIP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostSettings {
    pub slot: u8,
    pub seed: u64,
    pub probe_address: Option<SocketAddrV4>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedListener {
    pub table: u32,
    /// Seconds.
    pub idle: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedTable {
    pub listener: ListenerId,
    /// Of its content; see [`crate::plan::fingerprint`].
    pub fingerprint: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedTarget {
    pub listener: ListenerId,
    pub address: SocketAddrV4,
    pub mac: Option<Mac>,
    /// Gets new connections.
    pub in_table: bool,
    /// Out of its table, and silent for longer than any connection to it can live: no packet can
    /// name it any more.
    pub idle: bool,
}

/// A step that the program could not honour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {why}")]
pub struct Refused {
    pub step: String,
    pub why: &'static str,
}

impl Observed {
    pub fn new(
        host: Option<HostSettings>,
        vips: BTreeMap<Ipv4Addr, bool>,
        listeners: BTreeMap<ListenerId, ObservedListener>,
        targets: BTreeMap<u32, ObservedTarget>,
        tables: BTreeMap<u32, ObservedTable>,
    ) -> Self {
        let mut index: BTreeMap<ListenerId, Numbers> = BTreeMap::new();
        for (id, target) in &targets {
            index.entry(target.listener).or_default().targets.insert(*id);
        }
        for (number, table) in &tables {
            index.entry(table.listener).or_default().tables.insert(*number);
        }
        Self { host, vips, listeners, targets, tables, index }
    }

    /// The targets of a VIP's listeners.
    pub fn targets_of(&self, vip: Ipv4Addr) -> impl Iterator<Item = (u32, &ObservedTarget)> {
        let numbers = self.index.range(ListenerId::all_of(vip)).flat_map(|(_, n)| &n.targets);
        numbers.filter_map(|id| Some((*id, self.targets.get(id)?)))
    }

    /// The tables of a VIP's listeners.
    pub fn tables_of(&self, vip: Ipv4Addr) -> impl Iterator<Item = (u32, &ObservedTable)> {
        let numbers = self.index.range(ListenerId::all_of(vip)).flat_map(|(_, n)| &n.tables);
        numbers.filter_map(|number| Some((*number, self.tables.get(number)?)))
    }

    /// Takes one step, or says which rule it breaks.
    ///
    /// # Errors
    /// [`Refused`]: the order of exposure (targets, table, listener, VIP) is broken.
    pub fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        self.check(step).map_err(|why| Refused { step: step.to_string(), why })?;
        match step {
            Step::SetHost(host) => self.host = Some(*host),
            Step::SetTarget { id, target, .. } => {
                self.targets.insert(*id, *target);
                self.index.entry(target.listener).or_default().targets.insert(*id);
            }
            Step::RetireTarget { id } => {
                self.targets.entry(*id).and_modify(|t| t.in_table = false);
            }
            Step::ForgetTarget { id } => {
                if let Some(target) = self.targets.remove(id) {
                    self.unindex(target.listener, |numbers| numbers.targets.remove(id));
                }
            }
            Step::SwapTable { table, listener, fingerprint, .. } => {
                let state = ObservedTable { listener: *listener, fingerprint: *fingerprint };
                self.tables.insert(*table, state);
                self.index.entry(*listener).or_default().tables.insert(*table);
            }
            Step::ClearTable { table } => {
                if let Some(state) = self.tables.remove(table) {
                    self.unindex(state.listener, |numbers| numbers.tables.remove(table));
                }
            }
            Step::SetListener { listener, table, idle } => {
                self.listeners.insert(*listener, ObservedListener { table: *table, idle: *idle });
            }
            Step::RemoveListener { listener } => {
                self.listeners.remove(listener);
            }
            Step::SetVip { vip, owned } => {
                self.vips.insert(*vip, *owned);
            }
            Step::RemoveVip { vip } => {
                self.vips.remove(vip);
            }
        }
        Ok(())
    }

    fn unindex(&mut self, listener: ListenerId, remove: impl FnOnce(&mut Numbers) -> bool) {
        let Some(numbers) = self.index.get_mut(&listener) else { return };
        remove(numbers);
        if *numbers == Numbers::default() {
            self.index.remove(&listener);
        }
    }

    fn check(&self, step: &Step) -> Result<(), &'static str> {
        let rule = |holds: bool, why| if holds { Ok(()) } else { Err(why) };
        match step {
            Step::SetTarget { id, target, .. } => {
                rule(*id != 0, "0 means no target")?;
                let same = |t: &ObservedTarget| t.listener == target.listener && t.address == target.address;
                rule(self.targets.get(id).is_none_or(same), "the id is another target's")
            }
            Step::RetireTarget { id } => rule(self.targets.contains_key(id), "no such target"),
            Step::ForgetTarget { id } => {
                let target = self.targets.get(id).ok_or("no such target")?;
                let listens = self.listeners.contains_key(&target.listener);
                rule(target.idle || !listens, "connections may still name it")
            }
            Step::SwapTable { table, listener, members, .. } => {
                let ours = |t: &ObservedTable| t.listener == *listener;
                rule(self.tables.get(table).is_none_or(ours), "the table is another listener's")?;
                let known = members.iter().all(|m| self.targets.get(&m.id).is_some_and(|t| t.in_table));
                rule(known, "the table would name a target that does not exist")
            }
            Step::ClearTable { table } => {
                rule(self.listeners.values().all(|l| l.table != *table), "a listener still uses the table")
            }
            Step::SetListener { listener, table, .. } => {
                let ours = self.tables.get(table).is_some_and(|t| t.listener == *listener);
                rule(ours, "the listener has no table of that number")
            }
            Step::RemoveListener { listener } => {
                rule(self.listeners.contains_key(listener), "no such listener")
            }
            Step::RemoveVip { vip } => {
                let empty = self.listeners.range(ListenerId::all_of(*vip)).next().is_none();
                rule(empty, "the address still has listeners")
            }
            Step::SetVip { vip, .. } => {
                let fits = self.vips.len() < MAX_VIPS as usize || self.vips.contains_key(vip);
                rule(fits, "there are as many addresses as fit")
            }
            Step::SetHost(_) => Ok(()),
        }
    }

    /// Every address that has something programmed, to find what nobody wants any more.
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        let named = self.listeners.keys().chain(self.index.keys()).map(|l| l.vip);
        self.vips.keys().copied().chain(named).collect()
    }
}
