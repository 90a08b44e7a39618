//! From desired to programmed, one VIP at a time.
//!
//! Exposure goes upwards (targets, table, listener, address) and is taken back downwards, so that
//! a packet never meets a table with holes or an address without listeners. A table is built aside
//! and swapped as a whole. Plans are applied in turn: each is made from what the one before left.

pub mod fake;
mod text;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::{Ipv4Addr, SocketAddrV4};

use siphasher::sip::SipHasher13;

use crate::desired::{Desired, DesiredListener, ListenerId};
use crate::observed::{HostSettings, Observed, ObservedListener, ObservedTarget};

/// How many targets the program's array holds; id 0 is never one.
pub const MAX_TARGETS: u32 = 65_536;
/// How many tables, and so listeners.
pub const MAX_TABLES: u32 = 4_096;
/// How many addresses.
pub const MAX_VIPS: u32 = 4_096;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    SetHost(HostSettings),
    /// New, back in the table, or reached by another MAC.
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
    /// Builds a table aside and swaps it in.
    SwapTable {
        table: u32,
        service: String,
        listener: ListenerId,
        members: Vec<Member>,
        seed: u64,
        fingerprint: u64,
    },
    ClearTable {
        table: u32,
    },
    SetListener {
        listener: ListenerId,
        table: u32,
        idle: u16,
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

/// A target's place in a Maglev table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    pub node: String,
    pub weight: u32,
    pub id: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Plan {
    /// After any prefix of batches, also of a batch's steps, planning again settles.
    pub batches: Vec<Vec<Step>>,
    pub notes: Vec<Note>,
}

/// Why something cannot be programmed. The text begins with the listener where it is about one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Note {
    pub vip: Ipv4Addr,
    pub text: String,
}

/// What plans are applied to: the kernel's maps, or the tests' fake.
pub trait Backend {
    /// Reads back everything that is programmed.
    ///
    /// # Errors
    /// When a map cannot be read.
    fn observe(&mut self) -> anyhow::Result<Observed>;

    /// Takes the steps in order. After an error the steps before it stay: observe and plan again.
    ///
    /// # Errors
    /// The refusal, with the step.
    fn apply(&mut self, batch: &[Step]) -> anyhow::Result<()>;
}

/// The steps for what belongs to the host and not to a VIP. They come before any VIP's.
pub fn plan_host(desired: &Desired, observed: &Observed) -> Plan {
    let host =
        HostSettings { slot: desired.host_slot, seed: desired.seed, probe_address: desired.probe_address };
    let mut plan = Plan::default();
    if observed.host != Some(host) {
        plan.push(vec![Step::SetHost(host)]);
    }
    plan
}

/// The steps for one VIP. Its cost is that of the VIP's listeners and their targets.
pub fn plan(vip: Ipv4Addr, desired: &Desired, observed: &Observed) -> Plan {
    let mut plan = Plan::default();
    let want = desired.vips.get(&vip).copied();
    let have = observed.vips.get(&vip).copied();
    let loses = have == Some(true) && want != Some(true);
    if loses {
        // Withdrawn before anything below it goes away.
        plan.push(vec![Step::SetVip { vip, owned: false }]);
    }
    let ours = Ours::of(vip, observed);
    let wanted: BTreeMap<_, _> = desired.listeners_of(vip).collect();
    for listener in ours.keys().filter(|l| !wanted.contains_key(l)) {
        plan.push(ours.removal_of(&listener));
    }
    if want.is_some() && have.is_none() && observed.vips.len() >= MAX_VIPS as usize {
        let why = |l: &&ListenerId| {
            Note::of(l, format_args!("is not programmed: all {MAX_VIPS} addresses are in use"))
        };
        plan.notes.extend(wanted.keys().map(why));
        return plan;
    }
    let mut free = Free::new(observed);
    for (listener, wish) in wanted {
        program(*listener, wish, desired.seed, &ours, &mut free, &mut plan);
    }
    match want {
        Some(owned) if have != want && !loses => plan.push(vec![Step::SetVip { vip, owned }]),
        None if have.is_some() => plan.push(vec![Step::RemoveVip { vip }]),
        _ => {}
    }
    plan
}

/// The steps for several VIPs as one plan, a batch a phase: first every withdrawal, …, then every
/// target, every table, … The kernel waits once for all tables instead of once for each (about 10 ms),
/// which is what counts when a node with a thousand listeners goes down.
pub fn plan_all(vips: impl IntoIterator<Item = Ipv4Addr>, desired: &Desired, observed: &Observed) -> Plan {
    let mut ahead = observed.clone();
    let (mut phases, mut notes) = (BTreeMap::<Phase, Vec<Step>>::new(), Vec::new());
    for vip in vips {
        let one = plan(vip, desired, &ahead);
        notes.extend(one.notes);
        for step in one.batches.into_iter().flatten() {
            let phase = Phase::of(&step, &ahead);
            if let Err(refused) = ahead.apply(&step) {
                // Only maps that somebody else wrote to can be so; the VIP keeps what it has.
                notes.push(Note { vip, text: refused.to_string() });
                break;
            }
            phases.entry(phase).or_default().push(step);
        }
    }
    Plan { batches: phases.into_values().collect(), notes }
}

/// The order of exposure over several VIPs. Steps of one VIP keep theirs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Withdraw,
    RemoveListener,
    ClearTable,
    ForgetTarget,
    SetTarget,
    SwapTable,
    SetListener,
    RetireTarget,
    Announce,
    RemoveVip,
}

impl Phase {
    fn of(step: &Step, before: &Observed) -> Self {
        match step {
            Step::SetVip { vip, owned: false } if before.vips.contains_key(vip) => Self::Withdraw,
            Step::RemoveListener { .. } => Self::RemoveListener,
            Step::ClearTable { .. } => Self::ClearTable,
            Step::ForgetTarget { .. } => Self::ForgetTarget,
            Step::SetHost(_) | Step::SetTarget { .. } => Self::SetTarget,
            Step::SwapTable { .. } => Self::SwapTable,
            Step::SetListener { .. } => Self::SetListener,
            Step::RetireTarget { .. } => Self::RetireTarget,
            Step::SetVip { .. } => Self::Announce,
            Step::RemoveVip { .. } => Self::RemoveVip,
        }
    }
}

/// Names a table's content: equal exactly when the table would come out equal.
pub fn fingerprint(seed: u64, members: &[Member]) -> u64 {
    let mut hasher = SipHasher13::new_with_keys(seed, 0);
    for member in members {
        hasher.write(member.node.as_bytes());
        hasher.write(&[0]);
        hasher.write(&member.weight.to_be_bytes());
        hasher.write(&member.id.to_be_bytes());
    }
    hasher.finish()
}

fn program(
    listener: ListenerId,
    wish: &DesiredListener,
    seed: u64,
    ours: &Ours,
    free: &mut Free<'_>,
    plan: &mut Plan,
) {
    let Some(table) = ours.table_of(&listener).or_else(|| free.table()) else {
        plan.notes
            .push(Note::of(&listener, format_args!("is not programmed: all {MAX_TABLES} tables are in use")));
        return;
    };
    let mut known = ours.targets_of(&listener);
    let (mut steps, mut members) = (Vec::new(), Vec::new());
    let mut named: BTreeMap<SocketAddrV4, u32> = BTreeMap::new();
    for (node, target) in &wish.targets {
        let have = known.remove(&target.address);
        let id = named.get(&target.address).copied().or(have.map(|(id, _)| id)).or_else(|| free.target());
        let Some(id) = id else {
            plan.notes.push(Note::of(
                &listener,
                format_args!("leaves out {node}: all {MAX_TARGETS} targets are in use"),
            ));
            continue;
        };
        let entry = ObservedTarget {
            listener,
            address: target.address,
            mac: target.mac,
            in_table: true,
            idle: false,
        };
        if named.insert(target.address, id).is_none() && have.is_none_or(|(_, have)| have != entry) {
            steps.push(Step::SetTarget { id, node: node.clone(), target: entry });
        }
        members.push(Member { node: node.clone(), weight: target.weight, id });
    }
    let fingerprint = fingerprint(seed, &members);
    if ours.tables.get(&table).is_none_or(|(_, have)| *have != fingerprint) {
        let service = wish.service.clone();
        steps.push(Step::SwapTable { table, service, listener, members, seed, fingerprint });
    }
    let idle = wish.timeouts.idle(listener.protocol);
    if ours.listeners.get(&listener) != Some(&ObservedListener { table, idle }) {
        steps.push(Step::SetListener { listener, table, idle });
    }
    for (id, target) in known.into_values() {
        if target.in_table {
            steps.push(Step::RetireTarget { id });
        } else if target.idle {
            steps.push(Step::ForgetTarget { id });
        }
    }
    plan.push(steps);
}

/// What is programmed for one VIP, whole or left half-way by a crash.
#[derive(Debug)]
struct Ours {
    listeners: BTreeMap<ListenerId, ObservedListener>,
    /// Listener and fingerprint, by number.
    tables: BTreeMap<u32, (ListenerId, u64)>,
    targets: BTreeMap<u32, ObservedTarget>,
}

impl Ours {
    fn of(vip: Ipv4Addr, observed: &Observed) -> Self {
        Self {
            listeners: observed.listeners.range(ListenerId::all_of(vip)).map(|(k, v)| (*k, *v)).collect(),
            tables: observed.tables_of(vip).map(|(n, t)| (n, (t.listener, t.fingerprint))).collect(),
            targets: observed.targets_of(vip).map(|(id, t)| (id, *t)).collect(),
        }
    }

    /// Every listener that something is programmed for, in order.
    fn keys(&self) -> impl Iterator<Item = ListenerId> {
        let tables = self.tables.values().map(|(l, _)| *l);
        let all: BTreeSet<_> = self
            .listeners
            .keys()
            .copied()
            .chain(tables)
            .chain(self.targets.values().map(|t| t.listener))
            .collect();
        all.into_iter()
    }

    fn table_of(&self, listener: &ListenerId) -> Option<u32> {
        self.tables.iter().find(|(_, (l, _))| l == listener).map(|(number, _)| *number)
    }

    fn targets_of(&self, listener: &ListenerId) -> BTreeMap<SocketAddrV4, (u32, ObservedTarget)> {
        let ours = self.targets.iter().filter(|(_, t)| t.listener == *listener);
        ours.map(|(id, t)| (t.address, (*id, *t))).collect()
    }

    fn removal_of(&self, listener: &ListenerId) -> Vec<Step> {
        let mut steps = Vec::new();
        if self.listeners.contains_key(listener) {
            steps.push(Step::RemoveListener { listener: *listener });
        }
        steps.extend(self.table_of(listener).map(|table| Step::ClearTable { table }));
        steps.extend(self.targets_of(listener).into_values().map(|(id, _)| Step::ForgetTarget { id }));
        steps
    }
}

/// Hands out numbers that nothing uses; within one plan, each once.
#[derive(Debug)]
struct Free<'a> {
    observed: &'a Observed,
    targets: BTreeSet<u32>,
    tables: BTreeSet<u32>,
}

impl<'a> Free<'a> {
    fn new(observed: &'a Observed) -> Self {
        Self { observed, targets: BTreeSet::new(), tables: BTreeSet::new() }
    }

    /// The lowest ids come last, so that most rest before they are given again. It is not needed: a
    /// flow names its target's address too.
    fn target(&mut self) -> Option<u32> {
        let used = self.observed.targets.last_key_value().map(|(id, _)| *id);
        let highest = used.max(self.targets.last().copied()).unwrap_or(0);
        let taken = |id: &u32| self.observed.targets.contains_key(id) || self.targets.contains(id);
        let id = (highest + 1..MAX_TARGETS).chain(1..highest).find(|id| !taken(id))?;
        self.targets.insert(id);
        Some(id)
    }

    fn table(&mut self) -> Option<u32> {
        let taken = |table: &u32| self.observed.tables.contains_key(table) || self.tables.contains(table);
        let table = (0..MAX_TABLES).find(|table| !taken(table))?;
        self.tables.insert(table);
        Some(table)
    }
}

impl Note {
    fn of(listener: &ListenerId, why: std::fmt::Arguments<'_>) -> Self {
        Self { vip: listener.vip, text: format!("{listener} {why}") }
    }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    pub fn steps(&self) -> impl Iterator<Item = &Step> {
        self.batches.iter().flatten()
    }

    fn push(&mut self, steps: Vec<Step>) {
        if !steps.is_empty() {
            self.batches.push(steps);
        }
    }
}
