//! What a configuration means to us, parsed: from flags or from a file, the rest of the program does
//! not know which.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use daemon::log::LogFormat;
use kube_watch::parse_ip;

use crate::args::Configured;
use crate::config::{ClusterCidrs, Config, Families, Listen, NodeFacts};
use crate::external_ips::ExternalIps;
use crate::kube_proxy::configuration::MASQUERADE_BIT;
use crate::kube_proxy::unheeded::unheeded;
use crate::kube_proxy::{KubeProxyConfiguration, file};
use crate::local::{DetectLocal, LocalMode};
use crate::nft::layout::MasqueradeMark;
use crate::nodeport_addresses::NodePortAddresses;
use crate::overrides::Overrides;

/// From this verbosity on, `debug` is logged.
const VERBOSE: u32 = 4;

#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub config: Config,
    pub overrides: Overrides,
    pub kubeconfig: Option<PathBuf>,
    pub healthz: Listen,
    pub metrics: Listen,
    /// An address that is taken ends the program; else it is tried again.
    pub hard_fail: bool,
    pub sync_period: Duration,
    pub min_sync_period: Duration,
    pub log_format: LogFormat,
    pub verbose: bool,
    pub oom_score_adj: i32,
    /// What all this was made from.
    pub source: KubeProxyConfiguration,
    /// To be said at the start.
    pub warnings: Vec<String>,
}

/// What file and flags say together, and what is to be said about it.
///
/// # Errors
/// When the file cannot be read.
pub fn combine(args: &Configured) -> anyhow::Result<(KubeProxyConfiguration, Vec<String>)> {
    let Some(path) = &args.config else { return Ok((args.flags.configuration(), Vec::new())) };
    let file::FromFile { mut configuration, unknown } = file::read(path)?;
    let mut warnings = Vec::new();
    if !unknown.is_empty() {
        warnings.push(format!("no such fields, left out: {}", unknown.join(", ")));
    }
    let surplus = args.flags.beside_file(&mut configuration);
    if !surplus.is_empty() {
        warnings.push(format!("with --config these flags do not count: --{}", surplus.join(", --")));
    }
    Ok((configuration, warnings))
}

impl Settings {
    /// # Errors
    /// A file that cannot be read, a field that says nothing sensible, a host without a name.
    pub fn new(args: &Configured) -> anyhow::Result<Self> {
        let (source, mut warnings) = combine(args)?;
        warnings.extend(unheeded(&source));
        let mut settings = Self::of(source, warnings)?;
        settings.restrict_external_ips(&args.external_ips_namespaces);
        Ok(settings)
    }

    /// Nothing is asked for by an empty list.
    fn restrict_external_ips(&mut self, namespaces: &[Box<str>]) {
        if namespaces.is_empty() {
            return;
        }
        match &mut self.overrides.external_ips {
            ExternalIps::None => self.warnings.push(
                "the feature gate AllowServiceExternalIPs is off, so no Service has external IPs: \
                 --external-ips-namespaces does not count"
                    .to_owned(),
            ),
            heeded => *heeded = ExternalIps::In(namespaces.iter().cloned().collect()),
        }
    }

    pub(crate) fn of(mut source: KubeProxyConfiguration, warnings: Vec<String>) -> anyhow::Result<Self> {
        let of_mode = source.mode_fields();
        let masquerade_all = *of_mode.masquerade_all;
        let masquerade_bit = of_mode.masquerade_bit.unwrap_or(MASQUERADE_BIT);
        let masquerade_mark = u32::try_from(masquerade_bit).ok().and_then(MasqueradeMark::of_bit);
        let (sync_period, min_sync_period) = (of_mode.sync_period.0, of_mode.min_sync_period.0);
        ensure!(!sync_period.is_zero(), "the sync period must be more than 0");
        ensure!(
            min_sync_period <= sync_period,
            "the least sync period must not be more than the sync period"
        );
        let score = source.oom_score_adj.unwrap_or_default();
        ensure!((-1000..=1000).contains(&score), "oomScoreAdj must be from -1000 to 1000");
        let log_format = match source.logging.format.as_str() {
            "text" => LogFormat::Text,
            "json" => LogFormat::Json,
            other => anyhow::bail!("logging.format is {other:?}: it should be text or json"),
        };
        let bind_address = bind_address(&source)?;
        let config = Config {
            node_name: node_name(&source.hostname_override)?.into(),
            detect_local: detect_local(&source)?,
            masquerade_all,
            masquerade_mark: masquerade_mark.context("masqueradeBit must be from 0 to 31")?,
            nodeport_addresses: nodeport_addresses(&source).context("nodePortAddresses")?,
            families: Families::default(),
            service_networks: BTreeSet::new(),
            // It counts also while there is no Node.
            node: NodeFacts { primary_ips: bind_address.into_iter().collect(), ..NodeFacts::default() },
        };
        let overrides = Overrides {
            external_ips: match source.feature_gates.get("AllowServiceExternalIPs") {
                Some(false) => ExternalIps::None,
                _ => ExternalIps::All,
            },
            node_address: bind_address.map(|ip| (config.node_name.clone(), ip)),
        };
        let kubeconfig = &source.client_connection.kubeconfig;
        Ok(Self {
            config,
            overrides,
            kubeconfig: (!kubeconfig.is_empty()).then(|| kubeconfig.into()),
            healthz: listen(&source.healthz_bind_address, 10256).context("healthzBindAddress")?,
            metrics: listen(&source.metrics_bind_address, 10249).context("metricsBindAddress")?,
            hard_fail: source.bind_address_hard_fail,
            sync_period,
            min_sync_period,
            log_format,
            verbose: source.logging.verbosity >= VERBOSE,
            oom_score_adj: score,
            source,
            warnings,
        })
    }
}

/// As kube-proxy does (`GetHostname`, component-helpers/node/util).
fn node_name(asked: &str) -> anyhow::Result<String> {
    let name = match asked {
        "" => nix::unistd::gethostname()?.to_string_lossy().trim().to_lowercase(),
        name => name.trim().to_lowercase(),
    };
    ensure!(!name.is_empty(), "this host has no name: pass --hostname-override");
    Ok(name)
}

/// One that is unspecified says nothing of the node.
fn bind_address(source: &KubeProxyConfiguration) -> anyhow::Result<Option<IpAddr>> {
    let text = &source.bind_address;
    if text.is_empty() {
        return Ok(None);
    }
    let ip =
        parse_ip(text).with_context(|| format!("bindAddress is {text:?}: it should be an IP address"))?;
    Ok((!ip.is_unspecified()).then_some(ip))
}

fn detect_local(source: &KubeProxyConfiguration) -> anyhow::Result<DetectLocal> {
    let mode: LocalMode = source.detect_local_mode.parse().context("detectLocalMode")?;
    let cluster_cidrs = match mode {
        LocalMode::ClusterCidr => source.cluster_cidr.parse().context("clusterCIDR")?,
        _ => ClusterCidrs::default(),
    };
    let fields = &source.detect_local;
    Ok(DetectLocal::new(mode, cluster_cidrs, &fields.bridge_interface, &fields.interface_name_prefix)?)
}

/// Where nothing is said, all answer in kube-proxy's other modes, in iptables mode loopback too: what
/// worked there goes on.
fn nodeport_addresses(source: &KubeProxyConfiguration) -> anyhow::Result<NodePortAddresses> {
    match source.node_port_addresses.as_deref() {
        None | Some([]) if source.mode != "nftables" => {
            let loopback = source.mode == "iptables" && source.iptables.localhost_node_ports != Some(false);
            Ok(if loopback { "all,localhost" } else { "all" }.parse()?)
        }
        addresses => Ok(addresses.unwrap_or_default().join(",").parse()?),
    }
}

fn listen(address: &str, usual: u16) -> anyhow::Result<Listen> {
    let Listen(address) = Listen::parser(usual)(address)?;
    let listen: Option<SocketAddr> = address;
    Ok(Listen(listen))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::{Cli, Verb};
    use clap::Parser;
    use std::io::Write;

    fn settings(flags: &[&str]) -> anyhow::Result<Settings> {
        match Cli::try_parse_from(["node-agent", "run"].iter().chain(flags))?.verb {
            Verb::Run(args) => Settings::new(&args.configured),
            other => panic!("{other:?}"),
        }
    }

    fn with_file(text: &str, flags: &[&str]) -> anyhow::Result<Settings> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration";
        write!(file, "{head}\n{text}").unwrap();
        let config = format!("--config={}", file.path().display());
        settings(&[&[config.as_str()], flags].concat())
    }

    #[test]
    fn the_nodes_name_is_trimmed_and_in_lower_case_and_the_hosts_unless_given() {
        let name = |flags: &[&str]| settings(flags).unwrap().config.node_name;
        assert_eq!(&*name(&["--hostname-override= Node-1 "]), "node-1");
        assert_eq!(name(&["--hostname-override="]), name(&[]));
    }

    #[test]
    fn flags_and_a_file_say_the_same() {
        for (flags, file) in [
            (&["--proxy-mode=nftables"][..], "mode: nftables"),
            (&["--proxy-mode=iptables"], ""),
            (&["--proxy-mode=ipvs", "--ipvs-sync-period=1m"], "mode: ipvs\nipvs: {syncPeriod: 1m}"),
            (&["--proxy-mode=iptables", "--masquerade-all"], "iptables: {masqueradeAll: true}"),
            (
                &["--masquerade-all=true", "--iptables-sync-period=50s", "--iptables-min-sync-period", "1s"],
                "mode: nftables\nnftables: {masqueradeAll: true, syncPeriod: 50s, minSyncPeriod: 1s}",
            ),
            (
                &["--cluster-cidr=10.0.0.0/8,fd00::/56", "--kubeconfig", "/k"],
                "mode: nftables\nclusterCIDR: 10.0.0.0/8,fd00::/56\nclientConnection: {kubeconfig: /k}",
            ),
            (
                &["--nodeport-addresses=10.0.0.0/8", "--nodeport-addresses=fd00::/8", "--v=4"],
                "mode: nftables\nnodePortAddresses: [10.0.0.0/8, 'fd00::/8']\nlogging: {verbosity: 4}",
            ),
            (
                &["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=cni0"],
                "mode: nftables\ndetectLocalMode: BridgeInterface\ndetectLocal: {bridgeInterface: cni0}",
            ),
            (
                &["--detect-local-mode=InterfaceNamePrefix", "--pod-interface-name-prefix=veth"],
                "mode: nftables\ndetectLocalMode: InterfaceNamePrefix\ndetectLocal: {interfaceNamePrefix: veth}",
            ),
            (
                &["--detect-local-mode=NodeCIDR", "--cluster-cidr=10.0.0.0/8"],
                "mode: nftables\ndetectLocalMode: NodeCIDR",
            ),
            (
                &["--healthz-bind-address=127.0.0.1", "--metrics-bind-address=[::]:9", "--oom-score-adj=-5"],
                "mode: nftables\nhealthzBindAddress: 127.0.0.1\nmetricsBindAddress: '[::]:9'\noomScoreAdj: -5",
            ),
        ] {
            let (by_flags, mut by_file) = (settings(flags).unwrap(), with_file(file, &[]).unwrap());
            by_file.source = by_flags.source.clone();
            assert_eq!(by_flags, by_file, "{flags:?}");
        }
    }

    #[test]
    fn modes_differ_in_which_addresses_answer_nodeports() {
        let primary: NodePortAddresses = "primary".parse().unwrap();
        let all: NodePortAddresses = "all".parse().unwrap();
        let addresses = |flags: &[&str]| settings(flags).unwrap().config.nodeport_addresses;
        assert_eq!(addresses(&[]), primary);
        assert_eq!(addresses(&["--proxy-mode=nftables"]), primary);
        let loopback_too: NodePortAddresses = "all,localhost".parse().unwrap();
        assert_eq!(addresses(&["--proxy-mode=ipvs"]), all);
        assert_eq!(addresses(&["--proxy-mode=iptables"]), loopback_too);
        assert_eq!(addresses(&["--proxy-mode=iptables", "--iptables-localhost-nodeports=false"]), all);
        assert_eq!(with_file("", &[]).unwrap().config.nodeport_addresses, loopback_too);
        let chosen = with_file("nodePortAddresses: [primary]", &[]).unwrap();
        assert_eq!(chosen.config.nodeport_addresses, primary);
    }

    #[test]
    fn beside_a_file_only_the_nodes_name_and_the_flags_for_logs_count() {
        let settings = with_file(
            "mode: nftables\nclusterCIDR: 10.0.0.0/8\nhostnameOverride: file\nlogging: {verbosity: 1}",
            &["--hostname-override=flag", "-v5", "--cluster-cidr=11.0.0.0/8", "--masquerade-all"],
        )
        .unwrap();
        assert_eq!(&*settings.config.node_name, "flag");
        assert!(settings.verbose);
        assert_eq!(settings.config.detect_local, DetectLocal::ClusterCidr("10.0.0.0/8".parse().unwrap()));
        assert!(!settings.config.masquerade_all);
        assert_eq!(
            settings.warnings,
            ["with --config these flags do not count: --cluster-cidr, --masquerade-all"]
        );
    }

    #[test]
    fn the_masquerade_bit_is_the_modes_own() {
        let mark = |file: &str| with_file(file, &[]).map(|settings| settings.config.masquerade_mark.value());
        assert_eq!(mark("mode: nftables").unwrap(), 0x4000);
        assert_eq!(
            mark("mode: nftables\nnftables: {masqueradeBit: 3}\niptables: {masqueradeBit: 5}").unwrap(),
            8
        );
        assert_eq!(mark("nftables: {masqueradeBit: 3}\niptables: {masqueradeBit: 31}").unwrap(), 1 << 31);
        for wrong in ["mode: nftables\nnftables: {masqueradeBit: 32}", "iptables: {masqueradeBit: -1}"] {
            let error = mark(wrong).unwrap_err().to_string();
            assert!(error.contains("masqueradeBit must be from 0 to 31"), "{error}");
        }
    }

    #[test]
    fn what_is_not_heeded_is_said() {
        for (file, said) in [
            ("mode: iptables", Some("mode \"iptables\": there is one mode")),
            ("mode: nftables\nenableProfiling: true", Some("pprof")),
            ("mode: nftables\nipvs: {strictARP: true}\nportRange: 1-2", None),
            ("mode: nftables\nnoSuchField: 1", Some("noSuchField")),
        ] {
            let warnings = with_file(file, &[]).unwrap().warnings;
            match said {
                Some(said) => assert!(warnings.len() == 1 && warnings[0].contains(said), "{warnings:?}"),
                None => assert_eq!(warnings, Vec::<String>::new(), "{file}"),
            }
        }
    }

    #[test]
    fn what_the_file_says_in_place_of_the_api_server_is_taken() {
        let overrides =
            |file: &str| with_file(&format!("hostnameOverride: n\n{file}"), &[]).map(|s| s.overrides);
        let node_address = |ip: &str| Some(("n".into(), ip.parse().unwrap()));
        for (file, expected) in [
            ("bindAddress: '::'", Overrides::default()),
            (
                "bindAddress: 10.0.0.1",
                Overrides { node_address: node_address("10.0.0.1"), ..Overrides::default() },
            ),
            ("featureGates: {AllowServiceExternalIPs: true}", Overrides::default()),
            (
                "featureGates: {AllowServiceExternalIPs: false}",
                Overrides { external_ips: ExternalIps::None, ..Overrides::default() },
            ),
        ] {
            assert_eq!(overrides(file).unwrap(), expected, "{file}");
        }
        let error = overrides("bindAddress: eth0").unwrap_err().to_string();
        assert!(error.contains("bindAddress is \"eth0\""), "{error}");
    }

    #[test]
    fn namespaces_with_external_ips_count_beside_a_file_too_and_the_gate_is_the_stronger() {
        let only = |names: &[&str]| ExternalIps::In(names.iter().map(|name| (*name).into()).collect());
        let heeded = |settings: Settings| settings.overrides.external_ips;
        for (flags, expected) in [
            (&[][..], ExternalIps::All),
            (&["--external-ips-namespaces=edge"], only(&["edge"])),
            (&["--external-ips-namespaces", "shop,edge", "--v=4"], only(&["edge", "shop"])),
            (&["--external-ips-namespaces=shop", "--external-ips-namespaces=edge"], only(&["edge", "shop"])),
        ] {
            assert_eq!(heeded(settings(flags).unwrap()), expected, "{flags:?}");
            let beside_file = with_file("mode: nftables", flags).unwrap();
            assert_eq!(beside_file.warnings, Vec::<String>::new(), "{flags:?}");
            assert_eq!(heeded(beside_file), expected, "{flags:?} beside a file");
        }
        let gate_off = "mode: nftables\nfeatureGates: {AllowServiceExternalIPs: false}";
        let both = with_file(gate_off, &["--external-ips-namespaces=edge"]).unwrap();
        let flags = ["--feature-gates=AllowServiceExternalIPs=false", "--external-ips-namespaces=edge"];
        for settings in [both, settings(&flags).unwrap()] {
            assert!(
                settings.warnings.iter().any(|w| w.contains("--external-ips-namespaces does not count")),
                "{:?}",
                settings.warnings
            );
            assert_eq!(heeded(settings), ExternalIps::None);
        }
    }

    #[test]
    fn a_list_of_namespaces_that_says_nothing_sensible_is_refused_with_what_to_do() {
        for (list, says) in [
            ("", "leave the flag out for all namespaces"),
            ("edge,", "leave the flag out for all namespaces"),
            ("edge, shop", "nothing but ',' between two names"),
            ("Edge", "lower-case letters"),
        ] {
            let error = settings(&[&format!("--external-ips-namespaces={list}")]).unwrap_err().to_string();
            assert!(error.contains("--external-ips-namespaces") && error.contains(says), "{list:?}: {error}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        assert!(settings(&["--sync-period=0"]).is_err());
        assert!(settings(&["--sync-period=1s", "--min-sync-period=2s"]).is_err());
        for (file, names) in [
            ("clusterCIDR: 10.0.0.0", "clusterCIDR"),
            ("detectLocalMode: Wherever", "Wherever"),
            ("detectLocalMode: BridgeInterface", "--pod-bridge-interface"),
            ("nodePortAddresses: [here]", "nodePortAddresses"),
            ("healthzBindAddress: localhost:1", "healthzBindAddress"),
            ("logging: {format: xml}", "logging.format"),
            ("oomScoreAdj: 2000", "oomScoreAdj"),
        ] {
            let error = format!("{:#}", with_file(file, &[]).unwrap_err());
            assert!(error.contains(names), "{error}");
        }
    }
}
