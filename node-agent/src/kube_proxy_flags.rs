//! kube-proxy's flags that we do not have: what to do instead, said to whoever brings its command
//! line along.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{Command, Error, Parser};

const NFTABLES_ONLY: &str = "leave it out: there is one mode, which behaves as kube-proxy's nftables mode";
const NO_SYSCTL: &str =
    "leave it out and set net.netfilter.nf_conntrack_* on the host: no sysctl is set here";
const IN_KUBECONFIG: &str = "leave it out: the kubeconfig says it";
const LOGGING: &str = "set RUST_LOG (`debug`, `warn`), and --log-format json for JSON";
const NOT_NEEDED: &str = "leave it out: nothing here needs it";

/// Those of kube-proxy 1.37 (`AddFlags`, cmd/kube-proxy/app/options.go), each with what to do. A
/// name that ends in `-` is the beginning of several.
const ABSENT: [(&str, &str); 24] = [
    ("config", "give the fields of the file as flags: it cannot be read yet"),
    ("write-config-to", "leave it out: there is no configuration file yet"),
    ("cleanup", "run `node-agent cleanup`, which removes what node-agent made"),
    ("init-only", NOT_NEEDED),
    ("proxy-mode", NFTABLES_ONLY),
    ("iptables-sync-period", "write --sync-period"),
    ("iptables-min-sync-period", "write --min-sync-period, or leave it out"),
    ("iptables-", NFTABLES_ONLY),
    ("ipvs-", NFTABLES_ONLY),
    ("conntrack-", NO_SYSCTL),
    ("bind-address", "leave it out: the Node object says the node's address"),
    ("bind-address-hard-fail", "leave it out: an address that cannot be bound always ends the program"),
    ("healthz-port", "write --healthz-bind-address IP:PORT"),
    ("metrics-port", "write --metrics-bind-address IP:PORT"),
    ("master", IN_KUBECONFIG),
    ("kube-api-", NOT_NEEDED),
    ("config-sync-period", NOT_NEEDED),
    ("feature-gates", NOT_NEEDED),
    ("oom-score-adj", "leave it out and let what starts the program say it"),
    ("profiling", NOT_NEEDED),
    ("show-hidden-metrics-for-version", NOT_NEEDED),
    ("v", LOGGING),
    ("vmodule", LOGGING),
    ("logging-format", LOGGING),
];

/// The command line of this process; a wrong one, and `--help`, end it.
pub fn parse<P: Parser>() -> P {
    P::try_parse().unwrap_or_else(|error| explain(error, &P::command()).exit())
}

/// Adds to the complaint about an unknown flag what to do about it, where it is kube-proxy's.
fn explain(mut error: Error, command: &Command) -> Error {
    let unknown = match (error.kind(), error.get(ContextKind::InvalidArg)) {
        (ErrorKind::UnknownArgument, Some(ContextValue::String(flag))) => {
            flag.trim_start_matches('-').to_owned()
        }
        _ => return error,
    };
    let flag = unknown.split('=').next().unwrap_or_default();
    let on_run = command.find_subcommand("run").into_iter().flat_map(Command::get_arguments);
    let advice = match instead(flag) {
        Some(advice) => format!("kube-proxy has --{flag}, node-agent has not: {advice}"),
        None if on_run.filter_map(|arg| arg.get_long()).any(|known| known == flag) => {
            format!("flags stand behind a verb: node-agent run --{flag}")
        }
        None => return error,
    };
    error.remove(ContextKind::SuggestedArg);
    error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![advice.into()]));
    error
}

fn instead(flag: &str) -> Option<&'static str> {
    let is = |name: &str| name == flag || name.ends_with('-') && flag.starts_with(name);
    ABSENT.iter().find(|(name, _)| is(name)).map(|(_, advice)| *advice)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::args::Cli;

    fn complaint(line: &[&str]) -> String {
        let error = Cli::try_parse_from(["node-agent"].iter().chain(line)).unwrap_err();
        explain(error, &Cli::command()).to_string()
    }

    #[test]
    fn a_flag_of_kube_proxy_that_is_not_ours_is_answered_with_what_to_do() {
        for (line, advice) in [
            (
                &["run", "--config=/var/lib/kube-proxy/config.conf"][..],
                "give the fields of the file as flags",
            ),
            (&["run", "--proxy-mode", "nftables"], "there is one mode"),
            (&["run", "--ipvs-scheduler=rr"], "there is one mode"),
            (&["run", "--conntrack-min=0"], "net.netfilter"),
            (&["run", "--v=2"], "RUST_LOG"),
            (&["--cleanup"], "node-agent cleanup"),
            (&["--kubeconfig=/x", "--hostname-override=n"], "node-agent run --kubeconfig"),
        ] {
            let complaint = complaint(line);
            assert!(complaint.contains(advice), "{complaint}");
            assert!(!complaint.contains("similar"), "{complaint}");
        }
        assert!(complaint(&["run", "--hostname"]).contains("--hostname-override"), "as before");
    }

    #[test]
    fn no_flag_of_ours_is_called_absent() {
        let command = Cli::command();
        for arg in command.get_subcommands().flat_map(Command::get_arguments) {
            assert_eq!(arg.get_long().and_then(instead), None, "{arg}");
        }
    }
}
