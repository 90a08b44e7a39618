//! Reads and writes the file. YAML or JSON, as kube-proxy takes it: what is unknown is left out with
//! a warning (its strict decoding falls back to a lenient one, `loadConfig` in options.go), what has
//! the wrong type is an error.

use std::path::Path;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::configuration::{API_VERSION, KIND, KubeProxyConfiguration};

/// A file's content, and the fields in it that nobody knows.
#[derive(Debug, Clone, PartialEq)]
pub struct FromFile {
    pub configuration: KubeProxyConfiguration,
    pub unknown: Vec<String>,
}

/// # Errors
/// When there is no such file, or it says something else.
pub fn read(path: &Path) -> anyhow::Result<FromFile> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("reading the configuration file {}", path.display()))?;
    parse(&text).with_context(|| format!("in the configuration file {}", path.display()))
}

/// # Errors
/// When it is no configuration of kube-proxy's, or a field has the wrong type.
pub fn parse(text: &str) -> anyhow::Result<FromFile> {
    // Not all JSON is YAML: a line separator in a key ends a line there.
    let json = serde_json::from_str(text).ok();
    let mut given: Value = match json {
        Some(value) => value,
        None => serde_yaml_ng::from_str(text).context("it is neither YAML nor JSON")?,
    };
    ensure!(given.is_object(), "it holds no {KIND}");
    let said = |field| given.get(field).and_then(Value::as_str).unwrap_or_default();
    match (said("apiVersion"), said("kind")) {
        (API_VERSION, KIND) => {}
        (version, kind) => {
            bail!("it says {version:?}, kind {kind:?}: it should be {API_VERSION}, kind {KIND}")
        }
    }
    drop_nulls(&mut given);
    let mut configuration: KubeProxyConfiguration =
        serde_path(&given).context("a field is not what it should be")?;
    let mut unknown = Vec::new();
    find_unknown(&given, &configuration.as_value(), "", &mut unknown);
    configuration.fill_in();
    Ok(FromFile { configuration, unknown })
}

/// # Errors
/// When it cannot be written.
pub fn write(path: &Path, configuration: &KubeProxyConfiguration) -> anyhow::Result<()> {
    std::fs::write(path, to_yaml(configuration))
        .with_context(|| format!("writing the configuration to {}", path.display()))
}

/// As it is written: [`parse`] reads the same.
pub(crate) fn to_yaml(configuration: &KubeProxyConfiguration) -> String {
    serde_yaml_ng::to_string(&configuration.written()).expect("plain values")
}

/// Names the field that is wrong.
fn serde_path(given: &Value) -> anyhow::Result<KubeProxyConfiguration> {
    serde_path_to_error::deserialize(given).map_err(|error| {
        let path = error.path().to_string();
        anyhow::Error::new(error.into_inner()).context(path)
    })
}

/// Go takes `null` for "not said".
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, value| !value.is_null());
            fields.values_mut().for_each(drop_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

/// Fields that were given and are not among those that were understood.
fn find_unknown(given: &Value, understood: &Value, path: &str, unknown: &mut Vec<String>) {
    let (Value::Object(given), Value::Object(understood)) = (given, understood) else { return };
    for (name, value) in given {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        match understood.get(name) {
            Some(known) => find_unknown(value, known, &path, unknown),
            None => unknown.push(path),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

    fn file(text: &str) -> FromFile {
        parse(&format!("{HEAD}{text}")).unwrap()
    }

    #[test]
    fn yaml_and_json_say_the_same() {
        let yaml = file("clusterCIDR: 10.244.0.0/16\nmode: nftables\nconntrack:\n  maxPerCore: 0\n");
        let json = parse(
            r#"{"apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
                "clusterCIDR": "10.244.0.0/16", "mode": "nftables", "conntrack": {"maxPerCore": 0}}"#,
        );
        assert_eq!(json.unwrap(), yaml);
        assert_eq!(yaml.configuration.conntrack.max_per_core, Some(0));
        assert_eq!(yaml.configuration.conntrack.min, Some(128 * 1024), "what is not said has its default");
        assert_eq!(yaml.unknown, Vec::<String>::new());
    }

    #[test]
    fn what_kubeadm_writes_is_understood() {
        let kubeadm = file(concat!(
            "bindAddress: 0.0.0.0\nbindAddressHardFail: false\nclientConnection:\n  acceptContentTypes: \"\"\n",
            "  burst: 0\n  contentType: \"\"\n  kubeconfig: /var/lib/kube-proxy/kubeconfig.conf\n  qps: 0\n",
            "clusterCIDR: 10.244.0.0/16\nconfigSyncPeriod: 0s\nconntrack:\n  maxPerCore: null\n  min: null\n",
            "  tcpBeLiberal: false\n  tcpCloseWaitTimeout: null\n  tcpEstablishedTimeout: null\n",
            "  udpStreamTimeout: 0s\n  udpTimeout: 0s\ndetectLocal:\n  bridgeInterface: \"\"\n",
            "  interfaceNamePrefix: \"\"\ndetectLocalMode: \"\"\nenableProfiling: false\n",
            "healthzBindAddress: \"\"\nhostnameOverride: \"\"\niptables:\n  localhostNodePorts: null\n",
            "  masqueradeAll: false\n  masqueradeBit: null\n  minSyncPeriod: 0s\n  syncPeriod: 0s\n",
            "ipvs:\n  excludeCIDRs: null\n  minSyncPeriod: 0s\n  scheduler: \"\"\n  strictARP: false\n",
            "  syncPeriod: 0s\n  tcpFinTimeout: 0s\n  tcpTimeout: 0s\n  udpTimeout: 0s\n",
            "logging:\n  flushFrequency: 0\n  options:\n    json:\n      infoBufferSize: \"0\"\n",
            "    text:\n      infoBufferSize: \"0\"\n  verbosity: 0\nmetricsBindAddress: \"\"\nmode: \"\"\n",
            "nftables:\n  masqueradeAll: false\n  masqueradeBit: null\n  minSyncPeriod: 0s\n  syncPeriod: 0s\n",
            "nodePortAddresses: null\noomScoreAdj: null\nportRange: \"\"\nshowHiddenMetricsForVersion: \"\"\n",
            "winkernel:\n  enableDSR: false\n  forwardHealthCheckVip: false\n  networkName: \"\"\n",
            "  rootHnsEndpointName: \"\"\n  sourceVip: \"\"\n",
        ));
        assert_eq!(kubeadm.unknown, Vec::<String>::new());
        let mut configuration = kubeadm.configuration;
        assert_eq!((configuration.mode.as_str(), configuration.oom_score_adj), ("iptables", Some(-999)));
        let periods = configuration.mode_fields();
        assert_eq!(periods.sync_period.0, Duration::from_secs(30));
        assert!(periods.min_sync_period.is_zero(), "no wait between two commits unless asked for");
    }

    #[test]
    fn what_nobody_knows_is_named_and_the_rest_counts() {
        let read =
            file("clusterCIDR: 10.0.0.0/8\nclusterCidr: 11.0.0.0/8\niptables:\n  masqueradAll: true\n");
        assert_eq!(read.unknown, ["clusterCidr", "iptables.masqueradAll"]);
        assert_eq!(read.configuration.cluster_cidr, "10.0.0.0/8");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, names) in [
            ("apiVersion: v1\nkind: ConfigMap\n", "ConfigMap"),
            ("mode: nftables\n", "kubeproxy.config.k8s.io/v1alpha1"),
            ("- a\n", "KubeProxyConfiguration"),
            ("a: b: c", "neither YAML nor JSON"),
            (&format!("{HEAD}iptables:\n  syncPeriod: 30\n"), "iptables.syncPeriod"),
            (&format!("{HEAD}iptables:\n  syncPeriod: soon\n"), "soon"),
            (&format!("{HEAD}nodePortAddresses: primary\n"), "nodePortAddresses"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(names), "{text:?}: {error}");
        }
    }

    #[test]
    fn what_is_written_reads_back_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        for text in [
            "mode: nftables\nnftables: {masqueradeAll: true, minSyncPeriod: 10ms}\nfeatureGates: {A: true}\n",
            "mode: iptables\niptables: {masqueradeAll: true, syncPeriod: 1m0s}\nnodePortAddresses: [all]\n",
        ] {
            let read_first = file(text);
            write(&path, &read_first.configuration).unwrap();
            let read_again = read(&path).unwrap();
            assert_eq!(read_again.unknown, Vec::<String>::new());
            assert_eq!(read_again.configuration.written(), read_first.configuration.written());
        }
    }
}
