//! The command line: kube-proxy's flags, by name.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use kube_watch::Source;

use crate::explain::{Destination, Place};
use crate::external_ips::namespace;
use crate::kube_proxy::flags::GivenFlags;
use crate::local::InterfaceName;

/// Makes Services reachable from and through this node.
#[derive(Debug, Parser)]
#[command(name = "node-agent", version, args_override_self = true)]
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
    /// Asks this kernel for all that our tables need, and names what it lacks. Changes nothing.
    Preflight(PreflightArgs),
    /// Removes our tables.
    Cleanup(CleanupArgs),
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub configured: Configured,
    /// The API server's URL, in place of the kubeconfig's; without one, nobody's credentials are shown.
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,
    /// Writes the configuration to a file, and ends.
    #[arg(long, value_name = "FILE")]
    pub write_config_to: Option<PathBuf>,
    /// Does what needs more than CAP_NET_ADMIN, and ends.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true)]
    pub init_only: bool,
    /// Does what `cleanup --kube-proxy` does, and ends.
    #[arg(long, num_args = 0..=1, require_equals = true, default_value_t = false, default_missing_value = "true", action = ArgAction::Set, hide_possible_values = true)]
    pub cleanup: bool,
}

/// What [`crate::settings::Settings`] are made from.
#[derive(Debug, Clone, Args)]
pub struct Configured {
    /// A KubeProxyConfiguration. Beside it only --hostname-override, --external-ips-namespaces and the flags for logs count.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only Services of these namespaces have external IPs; all unless given. kube-proxy's file has no field for it: counts
    /// beside --config too.
    #[arg(long, value_name = "LIST", value_delimiter = ',', value_parser = namespace)]
    pub external_ips_namespaces: Vec<Box<str>>,
    #[command(flatten)]
    pub flags: GivenFlags,
}

#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// dir:PATH, a folder of YAML files.
    #[arg(long)]
    pub source: Source,
    #[command(flatten)]
    pub configured: Configured,
}

#[derive(Debug, Clone, Args)]
pub struct DumpArgs {
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Clone, Args)]
pub struct PreflightArgs {
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

#[derive(Debug, Clone, Args)]
pub struct CleanupArgs {
    /// Removes kube-proxy's rules too, as its own --cleanup does.
    #[arg(long)]
    pub kube_proxy: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}
