//! The command line: kube-proxy's flags, by name.

use std::path::PathBuf;
use std::time::Duration;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use daemon::log::LogFormat;
use kube_watch::Source;

use crate::config::{ClusterCidrs, Config, Listen, NodeFacts, parse_duration};
use crate::explain::{Destination, Place};
use crate::local::{DetectLocal, InterfaceName, LocalMode};
use crate::nodeport_addresses::NodePortAddresses;

/// Makes Services reachable from and through this node.
#[derive(Debug, Parser)]
#[command(name = "node-agent", version)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Works in the foreground. Its rules stay when it stops.
    Run(RunArgs),
    /// Prints what would be programmed on an empty node.
    Plan(PlanArgs),
    /// Prints what is in the kernel now, in words.
    Dump(DumpArgs),
    /// Prints where a connection goes and why, by what is in the kernel now.
    Explain(ExplainArgs),
    /// Removes our tables.
    Cleanup,
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// Without it, the pod's service account.
    #[arg(long)]
    pub kubeconfig: Option<PathBuf>,
    #[command(flatten)]
    pub node: NodeArgs,
    /// /healthz and /livez; empty for none.
    #[arg(long, default_value = "0.0.0.0:10256", value_parser = Listen::parser(10256))]
    pub healthz_bind_address: Listen,
    /// /metrics, /proxyMode and /readyz; empty for none.
    #[arg(long, default_value = "127.0.0.1:10249", value_parser = Listen::parser(10249))]
    pub metrics_bind_address: Listen,
    /// A change that waits for twice as long makes the node unhealthy.
    #[arg(long, default_value = "30s", value_parser = parse_duration)]
    pub sync_period: Duration,
    /// The least time between two commits; changes that come meanwhile share one.
    #[arg(long, default_value = "0", value_parser = parse_duration)]
    pub min_sync_period: Duration,
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// dir:PATH, a folder of YAML files.
    #[arg(long)]
    pub source: Source,
    #[command(flatten)]
    pub node: NodeArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Clone, Args)]
pub struct ExplainArgs {
    /// Who connects: an IP, or "node" for this host itself.
    #[arg(value_name = "SRC")]
    pub source: Place,
    /// 10.96.0.10:80, [fd00:96::a]:53/udp, or node:30080.
    #[arg(value_name = "DST:PORT[/PROTO]")]
    pub destination: Destination,
    /// The interface by which it comes in, where pods are known by that.
    #[arg(long)]
    pub interface: Option<InterfaceName>,
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Clone, Args)]
pub struct NodeArgs {
    /// The Node object's name; the host's name unless given.
    #[arg(long)]
    pub hostname_override: Option<String>,
    /// The pods' networks, one a family: traffic from elsewhere to a ClusterIP is masqueraded.
    #[arg(long, default_value = "")]
    pub cluster_cidr: ClusterCidrs,
    /// How pods of this node are known: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix.
    #[arg(long, default_value_t)]
    pub detect_local_mode: LocalMode,
    /// For BridgeInterface: what comes in by it is a pod's.
    #[arg(long, default_value = "")]
    pub pod_bridge_interface: String,
    /// For InterfaceNamePrefix: what comes in by an interface whose name begins so is a pod's.
    #[arg(long, default_value = "")]
    pub pod_interface_name_prefix: String,
    /// Masquerade all traffic to ClusterIPs.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, default_value_t = false, default_missing_value = "true")]
    pub masquerade_all: bool,
    /// Which addresses answer NodePorts: CIDRs, primary, localhost, all, or several of them.
    #[arg(long, default_value = "primary")]
    pub nodeport_addresses: NodePortAddresses,
}

impl RunArgs {
    /// # Errors
    /// When the periods contradict each other.
    pub fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(!self.sync_period.is_zero(), "--sync-period must be more than 0");
        let (least, period) = (self.min_sync_period, self.sync_period);
        anyhow::ensure!(least <= period, "--min-sync-period must not be more than --sync-period");
        Ok(())
    }
}

impl NodeArgs {
    /// # Errors
    /// When the host has no usable name, or flags lack what others need.
    pub fn config(&self) -> anyhow::Result<Config> {
        // As kube-proxy does (`GetHostname`, component-helpers/node/util).
        let node_name = match self.hostname_override.as_deref() {
            None | Some("") => nix::unistd::gethostname()?.to_string_lossy().trim().to_lowercase(),
            Some(name) => name.trim().to_lowercase(),
        };
        anyhow::ensure!(!node_name.is_empty(), "this host has no name: pass --hostname-override");
        let (bridge, prefix) = (&self.pod_bridge_interface, &self.pod_interface_name_prefix);
        Ok(Config {
            node_name: node_name.into(),
            detect_local: DetectLocal::new(self.detect_local_mode, self.cluster_cidr, bridge, prefix)?,
            masquerade_all: self.masquerade_all,
            nodeport_addresses: self.nodeport_addresses.clone(),
            node: NodeFacts::default(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(flags: &[&str]) -> RunArgs {
        match Cli::try_parse_from(["node-agent", "run"].iter().chain(flags)).unwrap().verb {
            Verb::Run(args) => args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_nodes_name_is_trimmed_and_in_lower_case_and_the_hosts_unless_given() {
        let name = |flags: &[&str]| run(flags).node.config().unwrap().node_name;
        assert_eq!(&*name(&["--hostname-override= Node-1 "]), "node-1");
        assert_eq!(name(&["--hostname-override="]), name(&[]));
    }

    #[test]
    fn periods_that_contradict_each_other_are_refused() {
        assert!(run(&[]).check().is_ok());
        assert!(run(&["--sync-period=0"]).check().is_err());
        assert!(run(&["--sync-period=1s", "--min-sync-period=2s"]).check().is_err());
    }
}
