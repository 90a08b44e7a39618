//! What the packet path does: a mirror of the pinned maps, read at start and kept by our own steps.
//!
//! It is also the tests' fake: [`Observed::apply`] obeys the rules that the program relies on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::desired::{ListenerId, Mac};
use crate::plan::Step;

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Observed {
    pub vips: BTreeMap<Ipv4Addr, bool>,
    pub listeners: BTreeMap<ListenerId, ObservedListener>,
    /// By id; retired ones included, because connections may still name them.
    pub targets: BTreeMap<u32, ObservedTarget>,
    /// The slots of `tables` that hold a table.
    pub tables: BTreeSet<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedListener {
    pub table: u32,
    /// Of the table's content; see [`crate::plan::fingerprint`].
    pub fingerprint: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedTarget {
    pub table: u32,
    pub address: SocketAddrV4,
    pub mac: Mac,
    pub active: bool,
}

/// A step that the program could not honour.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{step}: {why}")]
pub struct Refused {
    pub step: String,
    pub why: &'static str,
}

impl Observed {
    /// Applies one step, or says which rule it breaks.
    ///
    /// # Errors
    /// [`Refused`]: the order of exposure (targets, table, listener, VIP) is broken.
    pub fn apply(&mut self, step: &Step) -> Result<(), Refused> {
        let refuse = |why| Err(Refused { step: step.to_string(), why });
        match step {
            Step::SetTarget { id, target, .. } => {
                if *id == 0 {
                    return refuse("0 means no target");
                }
                self.targets.insert(*id, *target);
            }
            Step::RetireTarget { id } => match self.targets.get_mut(id) {
                Some(target) => target.active = false,
                None => return refuse("no such target"),
            },
            Step::ForgetTarget { id } => {
                if self.targets.remove(id).is_none() {
                    return refuse("no such target");
                }
            }
            Step::BuildTable { table, targets, .. } => {
                if targets.iter().any(|t| !self.targets.contains_key(&t.id)) {
                    return refuse("the table names a target that does not exist");
                }
                self.tables.insert(*table);
            }
            Step::ClearTable { table } => {
                if self.listeners.values().any(|l| l.table == *table) {
                    return refuse("a listener still uses the table");
                }
                self.tables.remove(table);
            }
            Step::SetListener { listener, table, fingerprint } => {
                if !self.tables.contains(table) {
                    return refuse("the listener names a table that does not exist");
                }
                self.listeners
                    .insert(*listener, ObservedListener { table: *table, fingerprint: *fingerprint });
            }
            Step::RemoveListener { listener } => {
                if self.listeners.remove(listener).is_none() {
                    return refuse("no such listener");
                }
            }
            Step::SetVip { vip, owned } => {
                self.vips.insert(*vip, *owned);
            }
            Step::RemoveVip { vip } => {
                if self.listeners.keys().any(|l| l.vip == *vip) {
                    return refuse("the address still has listeners");
                }
                if self.vips.remove(vip).is_none() {
                    return refuse("no such address");
                }
            }
        }
        Ok(())
    }

    /// Every address that has something programmed, to find what nobody wants any more.
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        self.vips.keys().copied().chain(self.listeners.keys().map(|l| l.vip)).collect()
    }
}
