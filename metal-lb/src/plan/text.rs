//! A plan as people read it: golden files, logs, dry runs. One line a step.

use std::fmt;

use maglev::TABLE_SLOTS;

use super::{Member, Plan, Step};
use crate::observed::HostSettings;

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, batch) in self.batches.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            batch.iter().try_for_each(|step| writeln!(f, "{step}"))?;
        }
        self.notes.iter().try_for_each(|note| writeln!(f, "note: {}", note.text))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::SetHost(HostSettings { slot, probe_address, .. }) => {
                write!(f, "host: source ports of slot {slot}, ")?;
                match probe_address {
                    Some(address) => write!(f, "probes answered at {address}"),
                    None => f.write_str("no probes answered"),
                }
            }
            Step::SetTarget { id, node, target } => {
                write!(f, "target {id} = {node} {} ", target.address)?;
                match target.mac {
                    Some(mac) => write!(f, "via {mac}"),
                    None => f.write_str("without a neighbour yet"),
                }
            }
            Step::RetireTarget { id } => write!(f, "target {id}: no new connections, existing ones go on"),
            Step::ForgetTarget { id } => write!(f, "target {id}: forgotten"),
            Step::SwapTable { table, service, listener, members, .. } => {
                write!(f, "table {table} {listener} ({service}): {}", Members(members))
            }
            Step::ClearTable { table } => write!(f, "table {table}: cleared"),
            Step::SetListener { listener, table, idle } => {
                write!(f, "listener {listener}: table {table}, idle after {idle} s")
            }
            Step::RemoveListener { listener } => write!(f, "listener {listener}: removed"),
            Step::SetVip { vip, owned: true } => write!(f, "announce {vip}"),
            Step::SetVip { vip, owned: false } => {
                write!(f, "do not announce {vip}: existing connections go on")
            }
            Step::RemoveVip { vip } => write!(f, "forget {vip}"),
        }
    }
}

struct Members<'a>(&'a [Member]);

impl fmt::Display for Members<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.iter().all(|m| m.weight == 0) {
            return f.write_str("no target, new connections are dropped");
        }
        f.write_str("build for ")?;
        for (i, member) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, member.node)?;
            if member.weight != 1 {
                write!(f, " (weight {})", member.weight)?;
            }
        }
        write!(f, " ({TABLE_SLOTS} slots) and swap in")
    }
}
