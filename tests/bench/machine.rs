//! Where and against what the figures were taken, so that a table says it itself.

use std::fmt::Write as _;
use std::fs;
use std::process::Command;

use jiff::Timestamp;
use lab::programs;

use crate::Plan;

/// Two lines of a Markdown list a fact, for the head of the table.
pub(crate) fn described(plan: &Plan) -> String {
    let mut text = String::new();
    let sizes: Vec<String> =
        plan.sizes.iter().map(|size| format!("{} starts at {size}", size.rounds)).collect();
    let facts = [
        ("Printed by", format!("`{}`, {}", command(), Timestamp::now().strftime("%F %H:%M UTC"))),
        ("Machine", machine()),
        ("Fairlead", format!("commit {}, release build", revision())),
        (
            "Peer",
            format!(
                "kube-proxy of {}, nftables mode with {}; its defaults, but for `minSyncPeriod: 10ms`",
                said(programs::kubernetes("kube-proxy").ok(), &["--version"]),
                said(Some("nft".into()), &["--version"]),
            ),
        ),
        (
            "Beside them",
            "on the same machine, in namespaces: etcd (`--unsafe-no-fsync`), kube-apiserver, \
             kube-controller-manager, kube-scheduler; the peer's release"
                .to_owned(),
        ),
        (
            "Rounds",
            format!(
                "{} Services applied; of each program, turn by turn, {}; {} changes of each kind, a restart, \
                 and {} starts with a watch replayed for {} s at each rate at 1,000 and 10,000 × 2",
                plan.reach_rounds,
                sizes.join(", "),
                plan.changes,
                plan.replay_rounds,
                plan.replay_seconds,
            ),
        ),
    ];
    for (what, fact) in facts {
        writeln!(text, "- {what}: {fact}").expect("a String takes everything");
    }
    text
}

/// scripts/bench says how it was called.
fn command() -> String {
    std::env::var("BENCH_COMMAND").unwrap_or_else(|_| std::env::args().collect::<Vec<_>>().join(" "))
}

fn machine() -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':'))
            .map_or_else(String::new, |(_, value)| value.trim().to_owned())
    };
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let kibibytes: f64 = memory.trim_end_matches(" kB").parse().unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "{}, {cores} cores, {:.0} GiB, Linux {}; load average before the run {}",
        field(&read("/proc/cpuinfo"), "model name"),
        kibibytes / f64::from(1 << 20),
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or_default(),
    )
}

/// The commit, and whether anything was changed since.
fn revision() -> String {
    let workspace = programs::workspace().display().to_string();
    said(Some("git".into()), &["-C", &workspace, "describe", "--always", "--dirty", "--exclude=*"])
}

fn said(program: Option<std::path::PathBuf>, arguments: &[&str]) -> String {
    program
        .and_then(|program| Command::new(program).args(arguments).output().ok())
        .filter(|output| output.status.success())
        .map_or_else(|| "unknown".into(), |output| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
