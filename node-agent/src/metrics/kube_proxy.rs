//! kube-proxy's metrics in its nftables mode: names, types, labels and buckets as in
//! `pkg/proxy/metrics/metrics.go` of Kubernetes 1.37.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use service_model::IpFamily;

use crate::nft::layout::FAMILIES;

#[derive(Debug, Clone)]
pub struct KubeProxyMetrics {
    sync_seconds: Family<OfFamily, Histogram, fn() -> Histogram>,
    full_sync_seconds: Family<OfFamily, Histogram, fn() -> Histogram>,
    partial_sync_seconds: Family<OfFamily, Histogram, fn() -> Histogram>,
    programming_seconds: Family<OfFamily, Histogram, fn() -> Histogram>,
    last_sync: Family<OfFamily, Gauge<f64, AtomicU64>>,
    last_queued: Family<OfFamily, Gauge<f64, AtomicU64>>,
    failures: Family<OfFamily, Counter>,
    no_local_endpoints: Family<OfPolicy, Gauge>,
    endpoint_changes: Counter,
    endpoint_changes_pending: Gauge,
    service_changes: Counter,
    service_changes_pending: Gauge,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
    localhost_listeners: Family<OfFamily, Gauge>,
    localhost_listeners_failed: Family<OfFamily, Counter>,
    conntrack_seconds: Family<OfFamily, Histogram, fn() -> Histogram>,
    conntrack_deleted: Family<OfFamily, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfFamily {
    ip_family: FamilyLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfPolicy {
    traffic_policy: TrafficPolicyLabel,
    ip_family: FamilyLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct FamilyLabel(IpFamily);

/// Which of a Service's traffic policies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TrafficPolicyLabel {
    Internal,
    External,
}

impl KubeProxyMetrics {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let histogram = || Family::new_with_constructor(sync_histogram as fn() -> Histogram);
        let metrics = Self {
            sync_seconds: histogram(),
            full_sync_seconds: histogram(),
            partial_sync_seconds: histogram(),
            programming_seconds: Family::new_with_constructor(programming_histogram as fn() -> Histogram),
            last_sync: Family::default(),
            last_queued: Family::default(),
            failures: Family::default(),
            no_local_endpoints: Family::default(),
            endpoint_changes: Counter::default(),
            endpoint_changes_pending: Gauge::default(),
            service_changes: Counter::default(),
            service_changes_pending: Gauge::default(),
            healthz: Family::default(),
            livez: Family::default(),
            localhost_listeners: Family::default(),
            localhost_listeners_failed: Family::default(),
            conntrack_seconds: histogram(),
            conntrack_deleted: Family::default(),
        };
        // What grows needs a sample to begin with.
        for family in FAMILIES {
            drop(metrics.failures.get_or_create(&of(family)));
            drop(metrics.programming_seconds.get_or_create(&of(family)));
            drop(metrics.conntrack_seconds.get_or_create(&of(family)));
            drop(metrics.conntrack_deleted.get_or_create(&of(family)));
            drop(metrics.localhost_listeners.get_or_create(&of(family)));
            drop(metrics.localhost_listeners_failed.get_or_create(&of(family)));
        }
        let m = &metrics;
        registry.register(
            "sync_proxy_rules_duration_seconds",
            "How long a sync took that wrote something, planning included",
            m.sync_seconds.clone(),
        );
        registry.register(
            "sync_full_proxy_rules_duration_seconds",
            "The same, of syncs that read the kernel first",
            m.full_sync_seconds.clone(),
        );
        registry.register(
            "sync_partial_proxy_rules_duration_seconds",
            "The same, of syncs of what changed alone",
            m.partial_sync_seconds.clone(),
        );
        registry.register(
            "network_programming_duration_seconds",
            "From a change of a pod or Service until it was committed",
            m.programming_seconds.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "The last successful sync, Unix time",
            m.last_sync.clone(),
        );
        registry.register(
            "sync_proxy_rules_last_queued_timestamp_seconds",
            "When a sync was last asked for, Unix time",
            m.last_queued.clone(),
        );
        registry.register("sync_proxy_rules_nftables_sync_failures", "Failed syncs", m.failures.clone());
        registry.register(
            "sync_proxy_rules_no_local_endpoints_total",
            "Service ports with a Local traffic policy and no endpoint on this node",
            m.no_local_endpoints.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes",
            "Changes of EndpointSlices that mattered",
            m.endpoint_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_endpoint_changes_pending",
            "Those that wait for a sync",
            m.endpoint_changes_pending.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes",
            "Changes of Services that mattered",
            m.service_changes.clone(),
        );
        registry.register(
            "sync_proxy_rules_service_changes_pending",
            "Those that wait for a sync",
            m.service_changes_pending.clone(),
        );
        registry.register("proxy_healthz", "Answers of /healthz", m.healthz.clone());
        registry.register("proxy_livez", "Answers of /livez", m.livez.clone());
        registry.register(
            "conntrack_reconciler_sync_duration_seconds",
            "How long it took to look through the connection table for stale UDP entries",
            m.conntrack_seconds.clone(),
        );
        registry.register(
            "conntrack_reconciler_deleted_entries",
            "Stale UDP entries that were ended",
            m.conntrack_deleted.clone(),
        );
        registry.register(
            "nftables_localhost_nodeport_listeners",
            "NodePorts that are served on loopback",
            m.localhost_listeners.clone(),
        );
        registry.register(
            "nftables_localhost_nodeport_listener_creation_failures",
            "Tries to listen on loopback that failed",
            m.localhost_listeners_failed.clone(),
        );
        metrics
    }

    pub(super) fn took(&self, family: IpFamily, took: Duration, full: bool) {
        let kind = if full { &self.full_sync_seconds } else { &self.partial_sync_seconds };
        for histogram in [&self.sync_seconds, kind] {
            histogram.get_or_create(&of(family)).observe(took.as_secs_f64());
        }
    }

    pub(super) fn synced(&self, family: IpFamily, at: SystemTime) {
        self.last_sync.get_or_create(&of(family)).set(unix(at));
        self.endpoint_changes_pending.set(0);
        self.service_changes_pending.set(0);
    }

    pub fn queued(&self, at: SystemTime) {
        for family in FAMILIES {
            self.last_queued.get_or_create(&of(family)).set(unix(at));
        }
    }

    pub fn endpoint_changed(&self) {
        self.endpoint_changes.inc();
        self.endpoint_changes_pending.inc();
    }

    pub fn service_changed(&self) {
        self.service_changes.inc();
        self.service_changes_pending.inc();
    }

    pub(super) fn programmed(&self, family: IpFamily, took: Duration) {
        self.programming_seconds.get_or_create(&of(family)).observe(took.as_secs_f64());
    }

    pub fn localhost_listeners(&self, family: IpFamily, listeners: usize) {
        self.localhost_listeners.get_or_create(&of(family)).set(i64::try_from(listeners).unwrap_or(i64::MAX));
    }

    pub fn localhost_listener_failed(&self, family: IpFamily) {
        self.localhost_listeners_failed.get_or_create(&of(family)).inc();
    }

    /// The connection table was looked through.
    pub fn conntrack_reconciled(&self, family: IpFamily, took: Duration, deleted: usize) {
        self.conntrack_seconds.get_or_create(&of(family)).observe(took.as_secs_f64());
        self.conntrack_deleted.get_or_create(&of(family)).inc_by(deleted as u64);
    }

    pub(super) fn failed(&self, family: IpFamily) {
        self.failures.get_or_create(&of(family)).inc();
    }

    pub(super) fn no_local_endpoints(&self, family: IpFamily, policy: TrafficPolicyLabel, ports: usize) {
        let of = OfPolicy { traffic_policy: policy, ip_family: FamilyLabel(family) };
        self.no_local_endpoints.get_or_create(&of).set(i64::try_from(ports).unwrap_or(i64::MAX));
    }

    pub(super) fn healthz(&self, status: StatusCode) {
        self.healthz.get_or_create(&Code { code: status.as_u16() }).inc();
    }

    pub(super) fn livez(&self, status: StatusCode) {
        self.livez.get_or_create(&Code { code: status.as_u16() }).inc();
    }
}

impl EncodeLabelValue for FamilyLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        EncodeLabelValue::encode(&self.0.to_string(), encoder)
    }
}

impl EncodeLabelValue for TrafficPolicyLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> std::fmt::Result {
        let text = match self {
            TrafficPolicyLabel::Internal => "internal",
            TrafficPolicyLabel::External => "external",
        };
        EncodeLabelValue::encode(&text, encoder)
    }
}

fn of(family: IpFamily) -> OfFamily {
    OfFamily { ip_family: FamilyLabel(family) }
}

/// 1 ms to 16 s
fn sync_histogram() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

/// 0.25 s to 5 minutes, finest below one
fn programming_histogram() -> Histogram {
    let linear = |start: f64, width: f64, count: u32| (0..count).map(move |n| start + width * f64::from(n));
    let buckets = linear(0.25, 0.25, 2).chain(linear(1.0, 1.0, 59));
    Histogram::new(buckets.chain(linear(60.0, 5.0, 12)).chain(linear(120.0, 30.0, 7)))
}

fn unix(at: SystemTime) -> f64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}
