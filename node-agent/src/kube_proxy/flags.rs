//! kube-proxy's command line: every flag of 1.37 (`AddFlags` in options.go, and those for logs) sets
//! a field of its configuration here too. The ones that change something are in `--help`.

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::configuration::{KubeProxyConfiguration, VModule};
use super::duration::GoDuration;
use crate::config::{ClusterCidrs, Listen, parse_duration};
use crate::local::LocalMode;
use crate::nodeport_addresses::NodePortAddresses;

type Set = fn(&mut KubeProxyConfiguration, &str) -> Result<(), String>;

/// One flag and the field that it sets.
struct Flag {
    name: &'static str,
    /// For `--help`; those without stay out of it.
    help: Option<&'static str>,
    /// What holds without it, where `--help` should say so.
    default: Option<&'static str>,
    takes: Takes,
    /// Whether it counts beside `--config`.
    beside_file: bool,
    set: Set,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Value(&'static str),
    /// `--x` is `--x=true`; a value stands behind `=` only.
    Bool,
}

/// Flags as they were given, in the order of the table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GivenFlags(Vec<(&'static str, String)>);

/// Which field a mode's section has for them is known once the mode is: it comes first.
static FLAGS: &[Flag] = &[
    quiet("proxy-mode", |c, v| {
        one_of(v, &["nftables", "iptables", "ipvs"])?;
        text(&mut c.mode, v)
    }),
    heeded(
        "kubeconfig",
        "FILE",
        "The API server and our identity; without it, the pod's service account",
        |c, v| text(&mut c.client_connection.kubeconfig, v),
    ),
    Flag {
        beside_file: true,
        ..heeded(
            "hostname-override",
            "NAME",
            "The Node object's name; the host's name unless given",
            |c, v| host_name(&mut c.hostname_override, v),
        )
    },
    with_default(
        "detect-local-mode",
        "MODE",
        "ClusterCIDR",
        "How pods of this node are known: ClusterCIDR, NodeCIDR, BridgeInterface or InterfaceNamePrefix",
        |c, v| {
            v.parse::<LocalMode>().map_err(|e| e.to_string())?;
            text(&mut c.detect_local_mode, v)
        },
    ),
    heeded("pod-bridge-interface", "NAME", "For BridgeInterface: what comes in by it is a pod's", |c, v| {
        text(&mut c.detect_local.bridge_interface, v)
    }),
    heeded(
        "pod-interface-name-prefix",
        "PREFIX",
        "For InterfaceNamePrefix: what comes in by an interface whose name begins so is a pod's",
        |c, v| text(&mut c.detect_local.interface_name_prefix, v),
    ),
    heeded(
        "cluster-cidr",
        "CIDRS",
        "For ClusterCIDR: the pods' networks, one a family; traffic from elsewhere to a ClusterIP is masqueraded",
        |c, v| {
            v.parse::<ClusterCidrs>().map_err(|e| e.to_string())?;
            text(&mut c.cluster_cidr, v)
        },
    ),
    Flag {
        takes: Takes::Bool,
        ..with_default("masquerade-all", "", "false", "Masquerade all traffic to ClusterIPs", |c, v| {
            boolean(c.mode_fields().masquerade_all, v)
        })
    },
    with_default(
        "nodeport-addresses",
        "LIST",
        "primary",
        "Which addresses answer NodePorts: CIDRs, primary, localhost, all, or several of them",
        |c, v| {
            v.parse::<NodePortAddresses>().map_err(|e| e.to_string())?;
            c.node_port_addresses.get_or_insert_default().extend(list(v));
            Ok(())
        },
    ),
    with_default(
        "healthz-bind-address",
        "IP:PORT",
        "0.0.0.0:10256",
        "/healthz and /livez; empty for none",
        |c, v| listen(&mut c.healthz_bind_address, v, 10256),
    ),
    with_default(
        "metrics-bind-address",
        "IP:PORT",
        "127.0.0.1:10249",
        "/metrics, /proxyMode, /configz and /readyz; empty for none",
        |c, v| listen(&mut c.metrics_bind_address, v, 10249),
    ),
    Flag {
        takes: Takes::Bool,
        ..with_default(
            "bind-address-hard-fail",
            "",
            "false",
            "An address that is taken ends the program; else it is tried again",
            |c, v| boolean(&mut c.bind_address_hard_fail, v),
        )
    },
    with_default(
        "sync-period",
        "DURATION",
        "30s",
        "A change that waits for twice as long makes the node unhealthy",
        |c, v| period(c.mode_fields().sync_period, v),
    ),
    with_default(
        "min-sync-period",
        "DURATION",
        "0",
        "The least time between two commits; changes that come meanwhile share one",
        |c, v| period(c.mode_fields().min_sync_period, v),
    ),
    with_default("oom-score-adj", "NUMBER", "-999", "What the kernel adds when memory is short", |c, v| {
        let score = number(v)?;
        if !(-1000..=1000).contains(&score) {
            return Err("it is not from -1000 to 1000".to_owned());
        }
        c.oom_score_adj = Some(score);
        Ok(())
    }),
    Flag {
        beside_file: true,
        ..with_default(
            "v",
            "LEVEL",
            "0",
            "4 and above shows more in the log; RUST_LOG says it finer",
            |c, v| {
                c.logging.verbosity = number(v)?;
                Ok(())
            },
        )
    },
    Flag {
        beside_file: true,
        ..with_default("logging-format", "FORMAT", "text", "text or json", |c, v| {
            one_of(v, &["text", "json"])?;
            text(&mut c.logging.format, v)
        })
    },
    quiet("healthz-port", |c, v| port(&mut c.healthz_bind_address, v)),
    quiet("metrics-port", |c, v| port(&mut c.metrics_bind_address, v)),
    quiet("iptables-sync-period", |c, v| period(c.mode_fields().sync_period, v)),
    quiet("iptables-min-sync-period", |c, v| period(c.mode_fields().min_sync_period, v)),
    quiet("ipvs-sync-period", |c, v| of_ipvs(c, v, |c| c.mode_fields().sync_period)),
    quiet("ipvs-min-sync-period", |c, v| of_ipvs(c, v, |c| c.mode_fields().min_sync_period)),
    quiet("iptables-masquerade-bit", |c, v| bit(&mut c.iptables.masquerade_bit, v)),
    yes("iptables-localhost-nodeports", |c, v| {
        boolean(c.iptables.localhost_node_ports.get_or_insert(true), v)
    }),
    quiet("ipvs-scheduler", |c, v| text(&mut c.ipvs.scheduler, v)),
    quiet("ipvs-exclude-cidrs", |c, v| {
        c.ipvs.exclude_cidrs.get_or_insert_default().extend(list(v));
        Ok(())
    }),
    yes("ipvs-strict-arp", |c, v| boolean(&mut c.ipvs.strict_arp, v)),
    quiet("ipvs-tcp-timeout", |c, v| period(&mut c.ipvs.tcp_timeout, v)),
    quiet("ipvs-tcpfin-timeout", |c, v| period(&mut c.ipvs.tcp_fin_timeout, v)),
    quiet("ipvs-udp-timeout", |c, v| period(&mut c.ipvs.udp_timeout, v)),
    quiet("bind-address", |c, v| {
        v.parse::<std::net::IpAddr>().map_err(|_| "it is not an address".to_owned())?;
        text(&mut c.bind_address, v)
    }),
    with_default(
        "conntrack-max-per-core",
        "NUMBER",
        "32768",
        "Connections that the kernel tracks for each processor, raised at the start; 0 leaves it as it is",
        |c, v| count(&mut c.conntrack.max_per_core, v),
    ),
    with_default(
        "conntrack-min",
        "NUMBER",
        "131072",
        "Connections that it tracks at least, whatever --conntrack-max-per-core amounts to",
        |c, v| count(&mut c.conntrack.min, v),
    ),
    with_default(
        "conntrack-tcp-timeout-established",
        "DURATION",
        "24h",
        "When an idle TCP connection is forgotten; 0 leaves it as it is",
        |c, v| period(c.conntrack.tcp_established_timeout.get_or_insert_default(), v),
    ),
    with_default(
        "conntrack-tcp-timeout-close-wait",
        "DURATION",
        "1h",
        "The same for one that the server has closed; 0 leaves it as it is",
        |c, v| period(c.conntrack.tcp_close_wait_timeout.get_or_insert_default(), v),
    ),
    with_default(
        "conntrack-udp-timeout",
        "DURATION",
        "0",
        "The same for UDP without an answer; 0 leaves it as it is",
        |c, v| period(&mut c.conntrack.udp_timeout, v),
    ),
    with_default(
        "conntrack-udp-timeout-stream",
        "DURATION",
        "0",
        "The same for UDP both ways; 0 leaves it as it is",
        |c, v| period(&mut c.conntrack.udp_stream_timeout, v),
    ),
    Flag {
        takes: Takes::Bool,
        ..with_default(
            "conntrack-tcp-be-liberal",
            "",
            "false",
            "TCP packets outside the window stay part of their connection",
            |c, v| boolean(&mut c.conntrack.tcp_be_liberal, v),
        )
    },
    quiet("kube-api-content-type", |c, v| text(&mut c.client_connection.content_type, v)),
    quiet("kube-api-qps", |c, v| {
        c.client_connection.qps = number(v)?;
        Ok(())
    }),
    quiet("kube-api-burst", |c, v| {
        c.client_connection.burst = number(v)?;
        Ok(())
    }),
    quiet("config-sync-period", |c, v| period(&mut c.config_sync_period, v)),
    quiet("feature-gates", |c, v| {
        for gate in list(v) {
            let (name, on) = gate.split_once('=').ok_or("it is not NAME=true or NAME=false")?;
            boolean(c.feature_gates.entry(name.trim().to_owned()).or_default(), on.trim())?;
        }
        Ok(())
    }),
    yes("profiling", |c, v| boolean(&mut c.enable_profiling, v)),
    quiet("show-hidden-metrics-for-version", |c, v| text(&mut c.show_hidden_metrics_for_version, v)),
    logs("vmodule", |c, v| {
        for item in list(v) {
            let (pattern, level) = item.split_once('=').ok_or("it is not PATTERN=LEVEL")?;
            let level: u32 = number(level)?;
            c.logging.vmodule.push(VModule { file_pattern: pattern.to_owned(), verbosity: level });
        }
        Ok(())
    }),
    logs("log-flush-frequency", |c, v| {
        let every = parse_duration(v).map_err(|e| e.to_string())?;
        c.logging.flush_frequency = GoDuration(every).to_string().into();
        Ok(())
    }),
    logs("log-json-info-buffer-size", |c, v| log_option(c, "json", "infoBufferSize", v.into())),
    logs("log-text-info-buffer-size", |c, v| log_option(c, "text", "infoBufferSize", v.into())),
    Flag {
        takes: Takes::Bool,
        ..logs("log-json-split-stream", |c, v| log_option(c, "json", "splitStream", truth(v)?.into()))
    },
    Flag {
        takes: Takes::Bool,
        ..logs("log-text-split-stream", |c, v| log_option(c, "text", "splitStream", truth(v)?.into()))
    },
];

const fn quiet(name: &'static str, set: Set) -> Flag {
    Flag { name, help: None, default: None, takes: Takes::Value("VALUE"), beside_file: false, set }
}

const fn yes(name: &'static str, set: Set) -> Flag {
    Flag { takes: Takes::Bool, ..quiet(name, set) }
}

const fn logs(name: &'static str, set: Set) -> Flag {
    Flag { beside_file: true, ..quiet(name, set) }
}

const fn heeded(name: &'static str, value: &'static str, help: &'static str, set: Set) -> Flag {
    Flag { help: Some(help), takes: Takes::Value(value), ..quiet(name, set) }
}

const fn with_default(
    name: &'static str,
    value: &'static str,
    default: &'static str,
    help: &'static str,
    set: Set,
) -> Flag {
    Flag { default: Some(default), ..heeded(name, value, help, set) }
}

impl GivenFlags {
    /// What the flags say, without a file.
    pub fn configuration(&self) -> KubeProxyConfiguration {
        let mut configuration = KubeProxyConfiguration::without_file();
        // The mode decides, if none are given.
        configuration.node_port_addresses = None;
        self.apply_to(&mut configuration, |_| true);
        configuration.fill_in_mode();
        configuration
    }

    /// Those that count beside a file are put into what it says; the others' names are the answer.
    pub fn beside_file(&self, configuration: &mut KubeProxyConfiguration) -> Vec<&'static str> {
        self.apply_to(configuration, |flag| flag.beside_file);
        let beside = |name: &str| FLAGS.iter().any(|flag| flag.name == name && flag.beside_file);
        let mut unheeded: Vec<_> =
            self.0.iter().map(|(name, _)| *name).filter(|name| !beside(name)).collect();
        unheeded.dedup();
        unheeded
    }

    fn apply_to(&self, configuration: &mut KubeProxyConfiguration, counts: impl Fn(&Flag) -> bool) {
        for (name, value) in &self.0 {
            let flag = FLAGS.iter().find(|flag| flag.name == *name).expect("given flags are in the table");
            if counts(flag) {
                (flag.set)(configuration, value).expect("values were checked on the command line");
            }
        }
    }
}

impl Args for GivenFlags {
    fn augment_args(command: Command) -> Command {
        FLAGS.iter().fold(command, |command, flag| command.arg(flag.arg()))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for GivenFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = Self::default();
        given.update_from_arg_matches(matches)?;
        Ok(given)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for flag in FLAGS {
            if matches.value_source(flag.name) == Some(ValueSource::CommandLine) {
                let values = matches.get_many::<String>(flag.name).into_iter().flatten();
                self.0.extend(values.map(|value| (flag.name, value.clone())));
            }
        }
        Ok(())
    }
}

impl Flag {
    fn arg(&'static self) -> Arg {
        let check = |value: &str| {
            (self.set)(&mut KubeProxyConfiguration::without_file(), value).map(|()| value.to_owned())
        };
        let mut arg = Arg::new(self.name).action(ArgAction::Append).value_parser(check);
        arg = match self.name {
            "v" => arg.long("v").short('v'),
            // As it is called on our other programs.
            "logging-format" => arg.long("log-format").alias("logging-format"),
            name => arg.long(name),
        };
        arg = match self.takes {
            Takes::Value(name) => arg.value_name(name).allow_hyphen_values(true),
            Takes::Bool => arg
                .value_name("BOOL")
                .num_args(0..=1)
                .require_equals(true)
                .default_missing_value("true")
                .hide_possible_values(true),
        };
        if let Some(default) = self.default {
            arg = arg.default_value(default);
        }
        match self.help {
            Some(help) => arg.help(help),
            None => arg.hide(true),
        }
    }
}

fn text(field: &mut String, value: &str) -> Result<(), String> {
    value.clone_into(field);
    Ok(())
}

/// Empty says nothing (`processHostnameOverrideFlag`).
fn host_name(field: &mut String, value: &str) -> Result<(), String> {
    match value.trim() {
        "" if value.is_empty() => Ok(()),
        "" => Err("it is blank".to_owned()),
        name => text(field, &name.to_lowercase()),
    }
}

fn one_of(value: &str, known: &[&str]) -> Result<(), String> {
    if known.contains(&value) { Ok(()) } else { Err(format!("it is none of {}", known.join(", "))) }
}

/// What Go's `strconv.ParseBool` reads.
fn truth(value: &str) -> Result<bool, String> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("it is neither true nor false".to_owned()),
    }
}

fn boolean(field: &mut bool, value: &str) -> Result<(), String> {
    *field = truth(value)?;
    Ok(())
}

fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
    value.parse().map_err(|_| "it is not such a number".to_owned())
}

fn count(field: &mut Option<i32>, value: &str) -> Result<(), String> {
    *field = Some(number(value)?);
    Ok(())
}

fn bit(field: &mut Option<i32>, value: &str) -> Result<(), String> {
    count(field, value)?;
    if field.is_some_and(|bit| (0..32).contains(&bit)) {
        Ok(())
    } else {
        Err("it is not from 0 to 31".to_owned())
    }
}

fn period(field: &mut GoDuration, value: &str) -> Result<(), String> {
    *field = GoDuration(parse_duration(value).map_err(|e| e.to_string())?);
    Ok(())
}

fn of_ipvs(
    configuration: &mut KubeProxyConfiguration,
    value: &str,
    field: impl Fn(&mut KubeProxyConfiguration) -> &mut GoDuration,
) -> Result<(), String> {
    let mut unused = GoDuration::default();
    let ipvs = configuration.mode == "ipvs";
    period(if ipvs { field(configuration) } else { &mut unused }, value)
}

fn list(value: &str) -> Vec<String> {
    value.split(',').filter(|item| !item.is_empty()).map(str::to_owned).collect()
}

fn listen(field: &mut String, value: &str, usual: u16) -> Result<(), String> {
    let Listen(address) = Listen::parser(usual)(value).map_err(|e| e.to_string())?;
    *field = address.map(|address| address.to_string()).unwrap_or_default();
    Ok(())
}

/// The old way: no server with 0; else it counts only for an address without a port, and those have
/// one (`addressFromDeprecatedFlags` in options.go).
fn port(address: &mut String, value: &str) -> Result<(), String> {
    if number::<u16>(value)? == 0 {
        address.clear();
    }
    Ok(())
}

fn log_option(
    configuration: &mut KubeProxyConfiguration,
    format: &str,
    option: &str,
    value: serde_json::Value,
) -> Result<(), String> {
    configuration.logging.options[format][option] = value;
    Ok(())
}
