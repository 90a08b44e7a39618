//! `KubeProxyConfiguration`, `kubeproxy.config.k8s.io/v1alpha1`: every field of 1.37's type, under
//! its name (k8s.io/kube-proxy/config/v1alpha1/types.go). What nothing here looks into is kept as
//! it came.

use std::collections::BTreeMap;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Value, json};

use super::duration::GoDuration;

pub const API_VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
pub const KIND: &str = "KubeProxyConfiguration";
/// The bit of the packet mark that asks for masquerading.
pub const MASQUERADE_BIT: i32 = 14;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct KubeProxyConfiguration {
    pub api_version: String,
    pub kind: String,
    pub feature_gates: BTreeMap<String, bool>,
    pub client_connection: ClientConnection,
    pub logging: Logging,
    pub hostname_override: String,
    pub bind_address: String,
    pub healthz_bind_address: String,
    pub metrics_bind_address: String,
    pub bind_address_hard_fail: bool,
    pub enable_profiling: bool,
    pub show_hidden_metrics_for_version: String,
    pub mode: String,
    pub iptables: IpTables,
    pub ipvs: Ipvs,
    pub nftables: NfTables,
    pub winkernel: Winkernel,
    pub detect_local_mode: String,
    pub detect_local: DetectLocalFields,
    #[serde(rename = "clusterCIDR")]
    pub cluster_cidr: String,
    pub node_port_addresses: Option<Vec<String>>,
    pub oom_score_adj: Option<i32>,
    pub conntrack: Conntrack,
    pub config_sync_period: GoDuration,
    pub port_range: String,
    pub windows_run_as_service: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ClientConnection {
    pub kubeconfig: String,
    pub accept_content_types: String,
    pub content_type: String,
    #[serde(serialize_with = "as_go_writes_it", deserialize_with = "finite")]
    pub qps: f32,
    pub burst: i32,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Logging {
    pub format: String,
    /// A duration, or nanoseconds as a number.
    pub flush_frequency: Value,
    pub verbosity: u32,
    pub vmodule: Vec<VModule>,
    pub options: Value,
}

/// How much the files whose names match log.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VModule {
    pub file_pattern: String,
    pub verbosity: u32,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct IpTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub localhost_node_ports: Option<bool>,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Ipvs {
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
    pub scheduler: String,
    #[serde(rename = "excludeCIDRs")]
    pub exclude_cidrs: Option<Vec<String>>,
    #[serde(rename = "strictARP")]
    pub strict_arp: bool,
    pub tcp_timeout: GoDuration,
    pub tcp_fin_timeout: GoDuration,
    pub udp_timeout: GoDuration,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NfTables {
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: bool,
    pub sync_period: GoDuration,
    pub min_sync_period: GoDuration,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Winkernel {
    pub network_name: String,
    pub source_vip: String,
    #[serde(rename = "enableDSR")]
    pub enable_dsr: bool,
    pub root_hns_endpoint_name: String,
    pub forward_health_check_vip: bool,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DetectLocalFields {
    pub bridge_interface: String,
    pub interface_name_prefix: String,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Conntrack {
    pub max_per_core: Option<i32>,
    pub min: Option<i32>,
    pub tcp_established_timeout: Option<GoDuration>,
    pub tcp_close_wait_timeout: Option<GoDuration>,
    pub tcp_be_liberal: bool,
    pub udp_timeout: GoDuration,
    pub udp_stream_timeout: GoDuration,
}

/// What kube-proxy keeps in a section for each mode and uses from the mode's own.
#[derive(Debug)]
pub struct ModeFields<'a> {
    /// `None` before [`KubeProxyConfiguration::fill_in`].
    pub masquerade_bit: Option<i32>,
    pub masquerade_all: &'a mut bool,
    pub sync_period: &'a mut GoDuration,
    pub min_sync_period: &'a mut GoDuration,
}

impl KubeProxyConfiguration {
    /// What holds without a file and without flags: kube-proxy's defaults in nftables mode, but for
    /// the least time between two commits, which is none.
    pub fn without_file() -> Self {
        let mut configuration = Self { mode: "nftables".to_owned(), ..Self::default() };
        configuration.fill_in();
        configuration
    }

    /// Gives what is not said kube-proxy's value (`SetDefaults_KubeProxyConfiguration`). Not so
    /// `minSyncPeriod`: one is kept only where it is asked for.
    pub fn fill_in(&mut self) {
        let say = |field: &mut String, value: &str| {
            if field.is_empty() {
                value.clone_into(field);
            }
        };
        let last = |field: &mut GoDuration, seconds| {
            if field.is_zero() {
                *field = GoDuration::seconds(seconds);
            }
        };
        self.api_version = API_VERSION.to_owned();
        self.kind = KIND.to_owned();
        say(&mut self.bind_address, "0.0.0.0");
        let (all, loopback) =
            if self.bind_address.contains(':') { ("[::]", "[::1]") } else { ("0.0.0.0", "127.0.0.1") };
        say(&mut self.healthz_bind_address, &format!("{all}:10256"));
        say(&mut self.metrics_bind_address, &format!("{loopback}:10249"));
        self.oom_score_adj.get_or_insert(-999);
        for period in
            [&mut self.iptables.sync_period, &mut self.ipvs.sync_period, &mut self.nftables.sync_period]
        {
            last(period, 30);
        }
        self.iptables.localhost_node_ports.get_or_insert(true);
        self.iptables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        self.nftables.masquerade_bit.get_or_insert(MASQUERADE_BIT);
        self.conntrack.max_per_core.get_or_insert(32 * 1024);
        self.conntrack.min.get_or_insert(128 * 1024);
        self.conntrack.tcp_established_timeout.get_or_insert(GoDuration::seconds(24 * 3600));
        self.conntrack.tcp_close_wait_timeout.get_or_insert(GoDuration::seconds(3600));
        last(&mut self.config_sync_period, 15 * 60);
        say(&mut self.client_connection.content_type, "application/vnd.kubernetes.protobuf");
        if self.client_connection.qps == 0.0 {
            self.client_connection.qps = 5.0;
        }
        if self.client_connection.burst == 0 {
            self.client_connection.burst = 10;
        }
        say(&mut self.logging.format, "text");
        if self.logging.flush_frequency.is_null() {
            self.logging.flush_frequency = json!("5s");
        }
        if self.logging.options.is_null() {
            self.logging.options = json!({"json": {"infoBufferSize": "0"}, "text": {"infoBufferSize": "0"}});
        }
        say(&mut self.detect_local_mode, "ClusterCIDR");
        self.fill_in_mode();
    }

    /// As `platformApplyDefaults` in server_linux.go: without a mode it is iptables'.
    pub fn fill_in_mode(&mut self) {
        if self.mode.is_empty() {
            "iptables".clone_into(&mut self.mode);
        }
        if self.mode == "nftables" && self.node_port_addresses.as_ref().is_none_or(Vec::is_empty) {
            self.node_port_addresses = Some(vec!["primary".to_owned()]);
        }
    }

    /// The fields of the mode's own section.
    pub fn mode_fields(&mut self) -> ModeFields<'_> {
        let Self { iptables, ipvs, nftables, .. } = self;
        match self.mode.as_str() {
            "nftables" => ModeFields {
                masquerade_bit: nftables.masquerade_bit,
                masquerade_all: &mut nftables.masquerade_all,
                sync_period: &mut nftables.sync_period,
                min_sync_period: &mut nftables.min_sync_period,
            },
            "ipvs" => ModeFields {
                masquerade_bit: iptables.masquerade_bit,
                masquerade_all: &mut iptables.masquerade_all,
                sync_period: &mut ipvs.sync_period,
                min_sync_period: &mut ipvs.min_sync_period,
            },
            _ => ModeFields {
                masquerade_bit: iptables.masquerade_bit,
                masquerade_all: &mut iptables.masquerade_all,
                sync_period: &mut iptables.sync_period,
                min_sync_period: &mut iptables.min_sync_period,
            },
        }
    }

    /// As kube-proxy writes it: of the sections for modes, only the mode's own speaks; what is
    /// optional and empty is not there.
    pub fn written(&self) -> Value {
        let mut clean = self.clone();
        let ModeFields { masquerade_all, sync_period, min_sync_period, .. } = clean.mode_fields();
        let kept = (*masquerade_all, *sync_period, *min_sync_period);
        (clean.iptables.masquerade_all, clean.nftables.masquerade_all) = (false, false);
        for period in [
            &mut clean.iptables.sync_period,
            &mut clean.iptables.min_sync_period,
            &mut clean.ipvs.sync_period,
            &mut clean.ipvs.min_sync_period,
            &mut clean.nftables.sync_period,
            &mut clean.nftables.min_sync_period,
        ] {
            *period = GoDuration::default();
        }
        let ModeFields { masquerade_all, sync_period, min_sync_period, .. } = clean.mode_fields();
        (*masquerade_all, *sync_period, *min_sync_period) = kept;
        let mut value = clean.as_value();
        if let Some(fields) = value.as_object_mut() {
            fields.retain(|name, value| match name.as_str() {
                "featureGates" => value != &json!({}),
                "windowsRunAsService" => value != &json!(false),
                _ => true,
            });
        }
        if let Some(logging) = value.get_mut("logging").and_then(Value::as_object_mut) {
            logging.retain(|name, value| name != "vmodule" || value != &json!([]));
        }
        value
    }

    /// All fields, by their names.
    pub fn as_value(&self) -> Value {
        serde_json::to_value(self).expect("plain fields and string keys")
    }
}

/// As Go: what a float32 cannot hold is an error.
fn finite<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f32, D::Error> {
    let number = f32::deserialize(deserializer)?;
    if number.is_finite() { Ok(number) } else { Err(D::Error::custom("the number is too large")) }
}

/// Whole numbers without a point, others with as many digits as it takes.
fn as_go_writes_it<S: Serializer>(number: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    // Beyond that all are whole, and not all are an i64.
    if number.fract() == 0.0 && number.abs() < 1e15 {
        return serializer.serialize_i64(*number as i64);
    }
    serializer.serialize_f64(number.to_string().parse().expect("digits"))
}
