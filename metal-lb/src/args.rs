//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use daemon::log::LogFormat;

use crate::xdp::Mode;

/// The L4 balancer of Fairlead.
#[derive(Debug, Parser)]
#[command(name = "metal-lb", version)]
pub struct Cli {
    #[command(subcommand)]
    pub verb: Verb,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Serves VIPs in the foreground. Stopping it leaves the packet path running.
    Run(Box<RunArgs>),
    /// Checks a document and prints the path of the first mistake.
    Check {
        /// The document: JSON.
        #[arg(long)]
        config: PathBuf,
    },
    /// Prints what a host does with every listener and target, and why.
    State(StateArgs),
    /// Detaches the packet path and removes its maps: every connection ends.
    Cleanup(PathArgs),
    /// Attaches a program that passes everything: for the far end of a veth pair.
    #[command(hide = true)]
    LabXdpPass { interface: String },
}

/// Where the packet path lives.
#[derive(Debug, Clone, Args)]
pub struct PathArgs {
    /// The interface that packets for VIPs arrive on, and leave by.
    #[arg(long)]
    pub interface: String,
    /// Where maps and the link are pinned.
    #[arg(long, default_value = "/sys/fs/bpf/fairlead")]
    pub bpf_dir: PathBuf,
}

#[derive(Debug, Clone, Args)]
pub struct StateArgs {
    /// HOST:PORT of a host's control API.
    #[arg(long, default_value = "127.0.0.1:7443")]
    pub endpoint: String,
    /// PEM certificate that carries the host's --controller-name.
    #[arg(long)]
    pub tls_cert: PathBuf,
    /// The certificate's private key, PEM.
    #[arg(long)]
    pub tls_key: PathBuf,
    /// PEM certificates of the authorities that the host's certificate may come from.
    #[arg(long)]
    pub tls_ca: PathBuf,
    /// The name that the host's certificate must carry; the endpoint's without this.
    #[arg(long)]
    pub server_name: Option<String>,
    /// As it is answered, instead of for people.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    Native,
    Generic,
}

impl From<XdpMode> for Mode {
    fn from(mode: XdpMode) -> Self {
        match mode {
            XdpMode::Native => Mode::Native,
            XdpMode::Generic => Mode::Generic,
        }
    }
}

#[derive(Debug, Clone, Args)]
pub struct RunArgs {
    /// This host's name, as `hosts[].name` in the document.
    #[arg(long)]
    pub name: String,
    #[command(flatten)]
    pub path: PathArgs,
    /// Established connections that fit, shared out evenly among the CPUs; fixed when the maps are
    /// first made.
    #[arg(long, default_value_t = 262_144)]
    pub max_connections: u32,
    /// Where in the kernel the packet path runs: native is in the driver; generic works on any
    /// interface, several times slower.
    #[arg(long, value_enum, default_value_t = XdpMode::Native)]
    pub xdp_mode: XdpMode,
    /// The control API.
    #[arg(long, default_value = "0.0.0.0:7443")]
    pub listen: SocketAddr,
    /// PEM certificate of the control API; read again when it changes.
    #[arg(long)]
    pub tls_cert: PathBuf,
    /// The certificate's private key, PEM.
    #[arg(long)]
    pub tls_key: PathBuf,
    /// PEM certificates of the authorities whose clients may speak.
    #[arg(long)]
    pub tls_client_ca: PathBuf,
    /// The DNS name that the client's certificate must carry.
    #[arg(long, default_value = "fairlead-cloud-controller")]
    pub controller_name: String,
    /// Where the last document is kept.
    #[arg(long, default_value = "/var/lib/fairlead/metal-lb")]
    pub state_dir: PathBuf,
    /// Obey this file instead of a controller; it is read again when it changes.
    #[arg(long)]
    pub config: Option<PathBuf>,
    /// Plain HTTP: /metrics, /livez, /readyz.
    #[arg(long, default_value = "127.0.0.1:7473")]
    pub metrics_listen: SocketAddr,
    #[arg(long, value_enum, default_value_t)]
    pub log_format: LogFormat,
}
