//! The command line as kube-proxy's may be brought along: without a verb, and with `_` for `-`.

use std::ffi::OsString;

use clap::Parser;

use crate::args::Cli;

/// The command line of this process; a wrong one, and `--help`, end it.
pub fn parse() -> Cli {
    Cli::parse_from(as_ours(std::env::args_os()))
}

/// Flags without a verb are those of `run`.
pub fn as_ours(line: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut line: Vec<OsString> = line.into_iter().map(with_dashes).collect();
    let first = line.get(1).and_then(|word| word.to_str()).unwrap_or_default();
    let about_all = ["-h", "--help", "-V", "--version"].contains(&first);
    if first.starts_with('-') && !about_all {
        line.insert(1, "run".into());
    }
    line
}

/// kube-proxy takes `--cluster_cidr` for `--cluster-cidr`.
fn with_dashes(word: OsString) -> OsString {
    match word.to_str().filter(|word| word.starts_with("--")) {
        Some(flag) => {
            let (name, value) = flag.split_at(flag.find('=').unwrap_or(flag.len()));
            format!("{}{value}", name.replace('_', "-")).into()
        }
        None => word,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Verb;

    fn parsed(line: &[&str]) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(as_ours(["node-agent"].iter().chain(line).map(OsString::from)))
    }

    #[test]
    fn flags_without_a_verb_are_those_of_run() {
        for line in [
            &["--config=/var/lib/kube-proxy/config.conf", "--hostname-override=node-1"][..],
            &["--kubeconfig", "/k", "--v=2"],
            &["--cluster_cidr=10.0.0.0/8"],
            &["--cleanup"],
        ] {
            assert!(matches!(parsed(line).unwrap().verb, Verb::Run(_)), "{line:?}");
        }
        assert!(matches!(parsed(&["cleanup"]).unwrap().verb, Verb::Cleanup(_)));
        for about_all in ["--help", "--version"] {
            assert_eq!(parsed(&[about_all]).unwrap_err().exit_code(), 0);
        }
    }

    /// As kube-proxy takes it: the kubeconfig may stand in the file, or there is none.
    #[test]
    fn the_api_servers_url_needs_no_kubeconfig_on_the_command_line() {
        for line in [
            &["--master=https://10.0.0.1:6443"][..],
            &["--config=/c", "--master", "https://10.0.0.1:6443"],
            &["--kubeconfig=/k", "--master=https://10.0.0.1:6443"],
        ] {
            let Verb::Run(args) = parsed(line).unwrap().verb else { panic!("{line:?} is no run") };
            assert_eq!(args.master.as_deref(), Some("https://10.0.0.1:6443"), "{line:?}");
        }
    }

    /// Of kube-proxy 1.37.2; `--help` and `--version` are everybody's.
    #[test]
    fn every_flag_of_kube_proxy_is_known() {
        let with_values = [
            "bind-address=0.0.0.0",
            "cluster-cidr=10.0.0.0/8",
            "config-sync-period=15m",
            "conntrack-max-per-core=32768",
            "conntrack-min=131072",
            "conntrack-tcp-timeout-close-wait=1h",
            "conntrack-tcp-timeout-established=24h0m0s",
            "conntrack-udp-timeout=0",
            "conntrack-udp-timeout-stream=0s",
            "detect-local-mode=NodeCIDR",
            "feature-gates=A=true,B=false",
            "healthz-bind-address=0.0.0.0:10256",
            "healthz-port=10256",
            "hostname-override=n",
            "iptables-masquerade-bit=14",
            "iptables-min-sync-period=1s",
            "iptables-sync-period=30s",
            "ipvs-exclude-cidrs=10.0.0.0/8",
            "ipvs-min-sync-period=1s",
            "ipvs-scheduler=rr",
            "ipvs-sync-period=30s",
            "ipvs-tcp-timeout=0s",
            "ipvs-tcpfin-timeout=0s",
            "ipvs-udp-timeout=0s",
            "kube-api-burst=10",
            "kube-api-content-type=application/json",
            "kube-api-qps=5.5",
            "kubeconfig=/k",
            "log-flush-frequency=5s",
            "log-json-info-buffer-size=1k",
            "log-text-info-buffer-size=0",
            "logging-format=json",
            "metrics-bind-address=127.0.0.1",
            "metrics-port=0",
            "nodeport-addresses=primary",
            "oom-score-adj=-999",
            "pod-bridge-interface=cni0",
            "pod-interface-name-prefix=veth",
            "proxy-mode=ipvs",
            "show-hidden-metrics-for-version=1.36",
            "v=4",
            "vmodule=proxier=4",
            "config=/c",
            "write-config-to=/w",
        ];
        let switches = [
            "bind-address-hard-fail",
            "cleanup",
            "conntrack-tcp-be-liberal",
            "init-only",
            "iptables-localhost-nodeports",
            "ipvs-strict-arp",
            "log-json-split-stream",
            "log-text-split-stream",
            "masquerade-all",
            "profiling",
        ];
        let mut all = vec!["--master=https://10.0.0.1:6443".to_owned()];
        all.extend(with_values.iter().map(|flag| format!("--{flag}")));
        all.extend(switches.iter().map(|flag| format!("--{flag}")));
        all.extend(switches.iter().map(|flag| format!("--{flag}=false")));
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        parsed(&all).unwrap();
        for (wrong, names) in [
            ("--oom-score-adj=2000", "1000"),
            ("--cluster-cidr=here", "CIDR"),
            ("--masquerade-all=perhaps", "neither true nor false"),
            ("--proxy-mode=userspace", "nftables, iptables, ipvs"),
            ("--hostname", "--hostname-override"),
        ] {
            let error = parsed(&[wrong]).unwrap_err().to_string();
            assert!(error.contains(names), "{error}");
        }
    }
}
