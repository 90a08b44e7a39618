//! What the packet path does: a mirror of the pinned maps, read at start and kept by our own steps.
//!
//! [`Observed::apply`] obeys the rules that the program relies on, so the mirror is also the heart
//! of the tests' [`fake`](crate::plan::fake).

mod follow;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use crate::desired::{ListenerId, Mac};

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

    fn unindex(&mut self, listener: ListenerId, remove: impl FnOnce(&mut Numbers) -> bool) {
        let Some(numbers) = self.index.get_mut(&listener) else { return };
        remove(numbers);
        if *numbers == Numbers::default() {
            self.index.remove(&listener);
        }
    }

    /// Every address that has something programmed, to find what nobody wants any more.
    pub fn addresses(&self) -> BTreeSet<Ipv4Addr> {
        let named = self.listeners.keys().chain(self.index.keys()).map(|l| l.vip);
        self.vips.keys().copied().chain(named).collect()
    }
}
