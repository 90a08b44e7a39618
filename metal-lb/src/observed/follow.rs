//! What a step does to what is observed, and the rules that the program relies on.

use super::{Observed, ObservedListener, ObservedTable, ObservedTarget, Refused};
use crate::desired::ListenerId;
use crate::plan::{MAX_VIPS, Step};

impl Observed {
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
}
