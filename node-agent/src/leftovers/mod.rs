//! What kube-proxy leaves in the kernel when it ends: found, and removed as its own `--cleanup` does
//! (`CleanupLeftovers` in each of its modes).
//!
//! | mode | where | how it goes |
//! |---|---|---|
//! | nftables | tables `kube-proxy` | netlink |
//! | iptables, over nf_tables | chains KUBE-… in `nat`, `filter`, `mangle`, and jumps to them | netlink, one commit with the above |
//! | iptables, legacy | the same | `iptables-legacy-save` and `-restore`, where they are installed |
//! | ipvs | its chains as above; virtual servers, `kube-ipvs0`, ipsets | chains as above; the rest is left, and named |

pub mod legacy;
pub mod names;
pub mod nftables;
pub mod take_over;

use std::fmt;

/// What was done about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// One phrase for each table.
    pub removed: Vec<String>,
    /// What is still there, and why.
    pub left: Vec<String>,
}

/// Removes what is there. Our own tables should stand first: where no other NAT chain is left, the
/// kernel stops translating connections that live.
///
/// # Errors
/// When nf_tables cannot be read or written. What a tool refuses is in the report.
pub fn remove() -> anyhow::Result<Report> {
    let mut report = Report { removed: nftables::remove()?, left: Vec::new() };
    legacy::remove(&mut report);
    // It holds every ClusterIP, and goes with the virtual servers, which may carry connections.
    if nix::net::if_::if_nametoindex("kube-ipvs0").is_ok() {
        report.left.push(
            "kube-proxy's IPVS servers, its interface kube-ipvs0 and its ipsets: kube-proxy --cleanup removes them"
                .to_owned(),
        );
    }
    Ok(report)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let removed = self.removed.iter().map(|what| format!("removed {what}"));
        let left = self.left.iter().map(|what| format!("left {what}"));
        f.write_str(&removed.chain(left).collect::<Vec<_>>().join("; "))
    }
}
