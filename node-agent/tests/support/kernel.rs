//! The real nf_tables, in a network namespace of the test's own.

use std::process::Command;

/// Runs the test on a thread in a fresh network namespace, which ends with it. Its host has the
/// address of the Node that tests speak of. Whatever ruleset the test leaves, the host's `nft` can list.
pub fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            ip("link set lo up");
            ip("addr add 172.30.0.11/32 dev lo");
            test();
            list_ruleset();
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// All rules, without the numbers under which clients are remembered: a table that is made anew draws
/// others.
pub fn ruleset() -> String {
    let listed = nft(&["list", "ruleset"]);
    let mut parts = listed.split(" offset ");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| text + " offset N" + part.trim_start_matches(|c: char| c.is_ascii_digit()))
}

/// It takes some 20 ms, unless the machine is busy: every test can afford that. What it says of the tables of iptables is no matter.
fn list_ruleset() {
    let done = Command::new("nft").args(["list", "ruleset"]).output().expect("nftables is installed");
    let said = String::from_utf8_lossy(&done.stderr);
    let of_iptables = |line: &&str| line.contains("managed by iptables-nft") || line.starts_with("XT target");
    let complaints: Vec<&str> = said.lines().filter(|line| !of_iptables(line)).collect();
    assert!(done.status.success() && complaints.is_empty(), "nft: {}: {complaints:?}", done.status);
}

pub fn ip(command: &str) {
    let done = Command::new("ip").args(command.split(' ')).output().expect("iproute2 is installed");
    assert!(done.status.success(), "ip {command}: {}", String::from_utf8_lossy(&done.stderr));
}

/// The host's `nft`, as a second opinion.
pub fn nft(args: &[&str]) -> String {
    let done = Command::new("nft").args(args).output().expect("install nftables: scripts/setup does");
    assert!(done.status.success(), "nft {args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8_lossy(&done.stdout).into_owned()
}
