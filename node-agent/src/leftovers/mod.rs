//! What kube-proxy leaves in the kernel when it ends: found, and removed as its own `--cleanup` does
//! (`CleanupLeftovers` in each of its modes).
//!
//! | mode | where | how it goes |
//! |---|---|---|
//! | nftables | tables `kube-proxy` | netlink |
//! | iptables, over nf_tables | chains KUBE-… in `nat`, `filter`, `mangle`, and jumps to them | netlink, one commit with the above |
//! | iptables, legacy | the same | `iptables-legacy-save` and `-restore`, where they are installed |
//! | ipvs | its chains as above; ipsets; virtual servers and `kube-ipvs0` | netlink; the latter only where connections may end |

pub mod ipvs;
pub mod legacy;
pub mod names;
pub mod nftables;
pub mod take_over;

use std::collections::BTreeSet;
use std::fmt;

/// So many chains are named of those that stay.
const NAMED: usize = 5;

/// What was done about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One phrase for each table.
    pub removed: Vec<String>,
    /// What is still there, and why.
    pub left: Vec<String>,
}

/// What becomes of connections that live in something that only kube-proxy makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Connections {
    /// What carries them is named.
    Keep,
    End,
}

/// Removes what is there. Our own tables should stand first: where no other NAT chain is left, the
/// kernel stops translating connections that live.
///
/// # Errors
/// When nf_tables cannot be read or written. What a tool refuses is in the report.
pub fn remove(connections: Connections) -> anyhow::Result<Report> {
    let mut report = nftables::remove()?;
    legacy::remove(&mut report);
    ipvs::remove_sets(&mut report);
    match connections {
        Connections::Keep => ipvs::name_servers(&mut report),
        Connections::End => ipvs::remove_servers(&mut report),
    }
    Ok(report)
}

impl Report {
    /// Of one of iptables' tables: how many chains went, and which had to stay.
    fn note(&mut self, table: &str, removed: usize, in_use: &BTreeSet<String>) {
        if removed > 0 {
            self.removed.push(format!("{removed} chains of {table}"));
        }
        if let Some(first) = in_use.first() {
            let names: Vec<&str> = in_use.iter().take(NAMED).map(String::as_str).collect();
            let more = if in_use.len() > NAMED { ", …" } else { "" };
            self.left.push(format!(
                "{} chains of {table} that a rule of somebody else leads to ({}{more}): they are as kube-proxy left \
                 them, and nobody keeps them up to date. Take that rule out (look for -j {first}), and they go too",
                in_use.len(),
                names.join(", ")
            ));
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = self.removed.iter().map(|what| format!("removed {what}"));
        let left = self.left.iter().map(|what| format!("left {what}"));
        f.write_str(&removed.chain(left).collect::<Vec<_>>().join("; "))
    }
}
