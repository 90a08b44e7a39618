//! From desired to programmed, one VIP at a time.
//!
//! Exposure goes upwards (targets, table, listener, address) and is taken back downwards, so that
//! a packet never meets a table with holes or an address without listeners. A table is built aside
//! and swapped as a whole: one batch a swap.

use std::collections::BTreeMap;
use std::fmt;
use std::hash::Hasher;
use std::net::Ipv4Addr;

use siphasher::sip::SipHasher13;

use crate::desired::{Desired, DesiredListener, ListenerId};
use crate::observed::{Observed, ObservedTarget};

/// How many targets the program's array holds; id 0 is never one.
pub const MAX_TARGETS: u32 = 65_536;
/// How many tables, and so listeners.
pub const MAX_TABLES: u32 = 4_096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    SetTarget {
        id: u32,
        node: String,
        target: ObservedTarget,
    },
    /// Gets no new connections; existing ones go on.
    RetireTarget {
        id: u32,
    },
    ForgetTarget {
        id: u32,
    },
    BuildTable {
        table: u32,
        service: String,
        listener: ListenerId,
        targets: Vec<TableTarget>,
    },
    ClearTable {
        table: u32,
    },
    SetListener {
        listener: ListenerId,
        table: u32,
        fingerprint: u64,
    },
    RemoveListener {
        listener: ListenerId,
    },
    SetVip {
        vip: Ipv4Addr,
        owned: bool,
    },
    RemoveVip {
        vip: Ipv4Addr,
    },
}

/// A backend of a Maglev table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TableTarget {
    pub node: String,
    pub weight: u32,
    pub id: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// A batch is applied as a whole; after any prefix of batches, planning again settles.
    pub batches: Vec<Vec<Step>>,
    /// Why something cannot be programmed.
    pub notes: Vec<String>,
}

/// The steps for one VIP. Its cost is the VIP's listeners and their targets.
pub fn plan(vip: Ipv4Addr, desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let mut ids = Ids::new(observed);
    let wanted = desired.vips.get(&vip);

    if wanted.is_none() && observed.vips.get(&vip) == Some(&true) {
        // Withdraw before anything under the address goes away.
        plan.batches.push(vec![Step::SetVip { vip, owned: false }]);
    }
    for (listener, state) in observed.listeners.iter().filter(|(l, _)| l.vip == vip) {
        if wanted.is_none() || !desired.listeners.contains_key(listener) {
            plan.batches.push(remove_listener(*listener, state.table, observed));
        }
    }
    if let Some(owned) = wanted {
        for (listener, target) in desired.listeners_of(vip) {
            program_listener(*listener, target, observed, &mut ids, &mut plan);
        }
        if observed.vips.get(&vip) != Some(owned) {
            plan.batches.push(vec![Step::SetVip { vip, owned: *owned }]);
        }
    } else if observed.vips.contains_key(&vip) {
        plan.batches.push(vec![Step::RemoveVip { vip }]);
    }
    plan
}

/// What a crash between batches can leave behind and no listener names: tables and their targets.
pub fn sweep(observed: &Observed) -> Plan {
    let used = |table: u32| observed.listeners.values().any(|l| l.table == table);
    let mut steps: Vec<Step> = observed
        .tables
        .iter()
        .filter(|t| !used(**t))
        .map(|table| Step::ClearTable { table: *table })
        .collect();
    let orphans = observed.targets.iter().filter(|(_, t)| !used(t.table));
    steps.extend(orphans.map(|(id, _)| Step::ForgetTarget { id: *id }));
    let batches = if steps.is_empty() { Vec::new() } else { vec![steps] };
    Plan { batches, notes: Vec::new() }
}

/// Names a table's content: equal exactly when the table would come out equal.
pub fn fingerprint(targets: &[TableTarget]) -> u64 {
    let mut hasher = SipHasher13::new();
    for target in targets {
        hasher.write(target.node.as_bytes());
        hasher.write_u8(0);
        hasher.write_u32(target.weight);
        hasher.write_u32(target.id);
    }
    hasher.finish()
}

fn remove_listener(listener: ListenerId, table: u32, observed: &Observed) -> Vec<Step> {
    let mut steps = vec![Step::RemoveListener { listener }, Step::ClearTable { table }];
    let targets = observed.targets.iter().filter(|(_, t)| t.table == table);
    steps.extend(targets.map(|(id, _)| Step::ForgetTarget { id: *id }));
    steps
}

fn program_listener(
    listener: ListenerId,
    want: &DesiredListener,
    observed: &Observed,
    ids: &mut Ids<'_>,
    plan: &mut Plan,
) {
    let have = observed.listeners.get(&listener);
    let Some(table) = have.map(|l| l.table).or_else(|| ids.free_table()) else {
        plan.notes.push(format!("{listener} is not programmed: all {MAX_TABLES} tables are in use"));
        return;
    };
    let known: BTreeMap<_, u32> =
        observed.targets.iter().filter(|(_, t)| t.table == table).map(|(id, t)| (t.address, *id)).collect();

    let (mut steps, mut members) = (Vec::new(), Vec::new());
    for (node, target) in &want.targets {
        let Some(id) = known.get(&target.address).copied().or_else(|| ids.free_target()) else {
            plan.notes.push(format!("{listener} leaves out {node}: all {MAX_TARGETS} targets are in use"));
            continue;
        };
        let entry = ObservedTarget { table, address: target.address, mac: target.mac, active: true };
        if observed.targets.get(&id) != Some(&entry) {
            steps.push(Step::SetTarget { id, node: node.clone(), target: entry });
        }
        members.push(TableTarget { node: node.clone(), weight: target.weight, id });
    }
    let fingerprint = fingerprint(&members);
    let retired: Vec<u32> =
        known.values().copied().filter(|id| members.iter().all(|m| m.id != *id)).collect();
    if have.is_none_or(|l| l.fingerprint != fingerprint) {
        steps.push(Step::BuildTable { table, service: want.service.clone(), listener, targets: members });
        steps.push(Step::SetListener { listener, table, fingerprint });
    }
    let still_active = retired.into_iter().filter(|id| observed.targets[id].active);
    steps.extend(still_active.map(|id| Step::RetireTarget { id }));
    if !steps.is_empty() {
        plan.batches.push(steps);
    }
}

/// Hands out numbers that nothing uses; within one plan, each once.
struct Ids<'a> {
    observed: &'a Observed,
    next_target: u32,
    next_table: u32,
}

impl<'a> Ids<'a> {
    fn new(observed: &'a Observed) -> Self {
        Self { observed, next_target: 1, next_table: 0 }
    }

    fn free_target(&mut self) -> Option<u32> {
        let id = (self.next_target..MAX_TARGETS).find(|id| !self.observed.targets.contains_key(id))?;
        self.next_target = id + 1;
        Some(id)
    }

    fn free_table(&mut self) -> Option<u32> {
        let used = |table: &u32| {
            self.observed.tables.contains(table) || self.observed.targets.values().any(|t| t.table == *table)
        };
        let table = (self.next_table..MAX_TABLES).find(|t| !used(t))?;
        self.next_table = table + 1;
        Some(table)
    }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.batches.iter().flatten()
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, batch) in self.batches.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            for step in batch {
                writeln!(f, "{step}")?;
            }
        }
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SetTarget { id, node, target } => {
                write!(f, "target {id} is {node} at {} via {}", target.address, target.mac)
            }
            Step::RetireTarget { id } => write!(f, "target {id} gets no new connections"),
            Step::ForgetTarget { id } => write!(f, "forget target {id}"),
            Step::BuildTable { table, service, listener, targets } => {
                write!(f, "swap in table {table} for {listener} ({service}): ")?;
                if targets.is_empty() {
                    return f.write_str("no target, arriving connections are dropped");
                }
                for (i, target) in targets.iter().enumerate() {
                    write!(f, "{}{}={}", if i > 0 { ", " } else { "" }, target.node, target.id)?;
                    if target.weight != 1 {
                        write!(f, " (weight {})", target.weight)?;
                    }
                }
                Ok(())
            }
            Step::ClearTable { table } => write!(f, "clear table {table}"),
            Step::SetListener { listener, table, fingerprint } => {
                write!(f, "listen on {listener} with table {table} ({fingerprint:016x})")
            }
            Step::RemoveListener { listener } => write!(f, "stop listening on {listener}"),
            Step::SetVip { vip, owned: true } => write!(f, "answer for {vip}"),
            Step::SetVip { vip, owned: false } => write!(f, "know {vip}, but leave it to its owner"),
            Step::RemoveVip { vip } => write!(f, "forget {vip}"),
        }
    }
}
