//! What kube-proxy's ipvs mode makes beside its chains.
//!
//! The virtual servers carry the connections that live, and `kube-ipvs0` holds the addresses to which
//! these go: both stay while a node changes over, and go when it is cleaned up. That there is such an
//! interface also says whose the servers are: those of others are not flushed.

use std::thread;
use std::time::Duration;

use nfnetlink::ipvs::{IpSets, delete_link, flush_virtual_servers, has_link};

use super::Report;

const INTERFACE: &str = "kube-ipvs0";

/// `ipsetInfo` in ipvs/proxier.go.
const SETS: [&str; 17] = [
    "LOOP-BACK",
    "CLUSTER-IP",
    "EXTERNAL-IP",
    "EXTERNAL-IP-LOCAL",
    "LOAD-BALANCER",
    "LOAD-BALANCER-FW",
    "LOAD-BALANCER-LOCAL",
    "LOAD-BALANCER-SOURCE-IP",
    "LOAD-BALANCER-SOURCE-CIDR",
    "NODE-PORT-TCP",
    "NODE-PORT-LOCAL-TCP",
    "NODE-PORT-UDP",
    "NODE-PORT-LOCAL-UDP",
    "NODE-PORT-SCTP-HASH",
    "NODE-PORT-LOCAL-SCTP-HASH",
    "HEALTH-CHECK-NODE-PORT",
    "IPVS-IPS",
];

/// The kernel's limit for a set's name.
const LONGEST_NAME: usize = 31;

/// The kernel forgets a removed rule's references a moment after the commit.
const TRIES: u32 = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

/// Removes the sets, which must come after the chains that refer to them.
#[expect(clippy::disallowed_methods, reason = "the kernel tells nobody when it has forgotten a rule")]
pub fn remove_sets(report: &mut Report) {
    let mut sets = match IpSets::open() {
        Ok(sets) => sets,
        Err(error) => return report.left.push(format!("ipsets: {error}")),
    };
    let mut removed = 0;
    let mut names: Vec<String> =
        SETS.iter().flat_map(|set| ["KUBE-", "KUBE-6-"].map(|prefix| name(prefix, set))).collect();
    let tries = if report.removed.is_empty() { 1 } else { TRIES };
    for tries_left in (0..tries).rev() {
        let mut busy = Vec::new();
        for name in names {
            match sets.destroy(&name) {
                Ok(there) => removed += usize::from(there),
                Err(_) if tries_left > 0 => busy.push(name),
                Err(error) => report.left.push(error.to_string()),
            }
        }
        if busy.is_empty() {
            break;
        }
        names = busy;
        thread::sleep(BETWEEN_TRIES);
    }
    if removed > 0 {
        report.removed.push(format!("{removed} ipsets"));
    }
}

/// Names what carries connections, where it is.
pub fn name_servers(report: &mut Report) {
    if nix::net::if_::if_nametoindex(INTERFACE).is_ok() {
        report.left.push(format!(
            "kube-proxy's IPVS servers and its interface {INTERFACE}, which may carry connections: \
             node-agent cleanup --kube-proxy removes them"
        ));
    }
}

/// Removes the same, with these connections.
pub fn remove_servers(report: &mut Report) {
    if let Err(error) = try_remove_servers(&mut report.removed) {
        report.left.push(error.to_string());
    }
}

/// The interface last: it says whose the servers are.
fn try_remove_servers(removed: &mut Vec<String>) -> nfnetlink::Result<()> {
    if !has_link(INTERFACE, "dummy")? {
        return Ok(());
    }
    if flush_virtual_servers()? {
        removed.push("the IPVS servers".to_owned());
    }
    if delete_link(INTERFACE, "dummy")? {
        removed.push(format!("the interface {INTERFACE}"));
    }
    Ok(())
}

/// That of IPv6 is cut, as kube-proxy cuts it.
fn name(prefix: &str, set: &str) -> String {
    let mut name = format!("{prefix}{set}");
    name.truncate(LONGEST_NAME);
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_kube_proxys() {
        assert_eq!(name("KUBE-", "LOOP-BACK"), "KUBE-LOOP-BACK");
        assert_eq!(name("KUBE-6-", "LOAD-BALANCER-SOURCE-CIDR"), "KUBE-6-LOAD-BALANCER-SOURCE-CID");
    }
}
