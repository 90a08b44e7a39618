//! What the real kube-proxy makes of a command line, node-agent makes of it too: both write their
//! configuration down, and each reads the other's.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::programs;
use serde_json::Value;

const LINES: [&[&str]; 10] = [
    &[],
    &["--master=https://10.0.0.1:6443"],
    &["--masquerade-all", "--cluster-cidr=10.244.0.0/16,fd00:10:244::/56", "--kubeconfig=/k"],
    &["--iptables-sync-period=1m30s", "--iptables-min-sync-period", "100ms", "--oom-score-adj=-5"],
    &["--nodeport-addresses=10.0.0.0/8,localhost", "--nodeport-addresses=primary", "--ipvs-strict-arp"],
    &[
        "--healthz-bind-address=127.0.0.1:10256",
        "--metrics-bind-address=[::]:9000",
        "--bind-address=10.0.0.1",
    ],
    &["--profiling=true", "-v=4", "--vmodule=a=3,b=2"],
    &["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-be-liberal"],
    &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0", "--hostname-override= Node-1"],
    &["--kube-api-qps=7.5", "--kube_api_burst=20", "--log-flush-frequency=7s", "--config-sync-period=1h"],
];

/// Runs the program with the flags; what it wrote.
fn written(program: &Path, flags: &[&str], to: &Path) -> Result<Value> {
    let target = format!("--write-config-to={}", to.display());
    let done = Command::new(program).args(flags).arg(target).output()?;
    ensure!(done.status.success(), "{flags:?}: {}", String::from_utf8_lossy(&done.stderr));
    let text = std::fs::read_to_string(to).with_context(|| format!("{flags:?} wrote nothing"))?;
    Ok(serde_yaml_ng::from_str(&text)?)
}

#[test]
fn what_kube_proxy_makes_of_a_command_line_node_agent_makes_of_it_too() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (theirs, ours) = (folder.path().join("theirs.yaml"), folder.path().join("ours.yaml"));
    let (kube_proxy, node_agent) = (programs::kubernetes("kube-proxy")?, programs::ours("node-agent")?);
    for mode in ["nftables", "iptables"] {
        for line in LINES {
            let mode_flag = format!("--proxy-mode={mode}");
            let flags = [&[&*mode_flag], line].concat();
            let expected = written(&kube_proxy, &flags, &theirs)?;
            let mut real = written(&node_agent, &flags, &ours)?;
            if !flags.contains(&"--iptables-min-sync-period") {
                // Without being asked, node-agent does not wait between two commits.
                ensure!(real[mode]["minSyncPeriod"] == "0s", "{flags:?}: {real}");
                real[mode]["minSyncPeriod"] = "1s".into();
            }
            ensure!(real == expected, "{flags:?}\nkube-proxy: {expected}\nnode-agent: {real}");

            let by_file = |path: &Path| format!("--config={}", path.display());
            let again = folder.path().join("again.yaml");
            let read = written(&node_agent, &[&by_file(&theirs)], &again)?;
            ensure!(read == expected, "{flags:?}\nkube-proxy: {expected}\nread back: {read}");
            // A file cannot say "no server" to kube-proxy: an empty address is its usual one.
            let back = written(&kube_proxy, &[&by_file(&ours)], &again)?;
            let same = written(&node_agent, &[&by_file(&ours)], &theirs)?;
            for field in ["mode", "healthzBindAddress", "clusterCIDR", "nodePortAddresses", "conntrack"] {
                ensure!(back[field] == same[field], "{flags:?} {field}: {} and {}", back[field], same[field]);
            }
        }
    }
    Ok(())
}

/// The scenario's own table of flags may grow old: the real program's list may not be longer.
#[test]
fn every_flag_that_kube_proxy_lists_is_taken() -> Result<()> {
    let help = Command::new(programs::kubernetes("kube-proxy")?).arg("--help").output()?;
    let help = String::from_utf8(help.stdout)?;
    let flags: Vec<&str> = help
        .lines()
        .filter_map(|line| line.trim_start().split_once("--"))
        .filter(|(before, _)| before.is_empty() || before.ends_with(", "))
        .filter_map(|(_, flag)| flag.split([' ', '=', '[']).next())
        .filter(|flag| !["help", "version"].contains(flag))
        .collect();
    ensure!(flags.len() > 40, "only {flags:?} were found in {help}");
    let node_agent = programs::ours("node-agent")?;
    for flag in flags {
        // What follows the flag does not exist, and is what is complained about.
        let line = [format!("--{flag}"), "--no-such-flag".to_owned()];
        let done = Command::new(&node_agent).args(&line).output()?;
        let complaint = String::from_utf8_lossy(&done.stderr).into_owned();
        let unknown = format!("unexpected argument '--{flag}'");
        ensure!(!complaint.contains(&unknown), "--{flag}: {complaint}");
    }
    Ok(())
}
