//! What the agent counts: kube-proxy's names where dashboards know them, ours for the rest.

use std::sync::atomic::AtomicU64;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

#[derive(Debug, Clone)]
pub struct Metrics {
    sync_seconds: Histogram,
    last_sync: Gauge<f64, AtomicU64>,
    failures: Counter,
    healthz: Family<Code, Counter>,
    livez: Family<Code, Counter>,
    steps: Counter,
    changes_by_others: Counter,
    refused: Gauge,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Code {
    code: u16,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            // kube-proxy's buckets: 1 ms to 16 s
            sync_seconds: Histogram::new(exponential_buckets(0.001, 2.0, 15)),
            last_sync: Gauge::default(),
            failures: Counter::default(),
            healthz: Family::default(),
            livez: Family::default(),
            steps: Counter::default(),
            changes_by_others: Counter::default(),
            refused: Gauge::default(),
        };
        let theirs = registry.sub_registry_with_prefix("kubeproxy");
        theirs.register(
            "sync_proxy_rules_duration_seconds",
            "How long a sync took that wrote something, planning included",
            metrics.sync_seconds.clone(),
        );
        theirs.register(
            "sync_proxy_rules_last_timestamp_seconds",
            "The last successful sync, Unix time",
            metrics.last_sync.clone(),
        );
        theirs.register("sync_proxy_rules_nftables_sync_failures", "Failed syncs", metrics.failures.clone());
        theirs.register("proxy_healthz", "Answers of /healthz", metrics.healthz.clone());
        theirs.register("proxy_livez", "Answers of /livez", metrics.livez.clone());
        let ours = registry.sub_registry_with_prefix("fairlead_node_agent");
        ours.register("steps", "Steps committed to the kernel", metrics.steps.clone());
        ours.register(
            "changes_by_others",
            "How often somebody else changed our tables and they were put right",
            metrics.changes_by_others.clone(),
        );
        ours.register("refused_services", "Services that the kernel refuses", metrics.refused.clone());
        metrics
    }

    pub fn synced(&self, took: Duration, steps: usize, at: SystemTime) {
        if steps > 0 {
            self.sync_seconds.observe(took.as_secs_f64());
            self.steps.inc_by(steps as u64);
        }
        let since_epoch = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.last_sync.set(since_epoch.as_secs_f64());
    }

    pub fn failed(&self) {
        self.failures.inc();
    }

    pub fn changed_by_others(&self) {
        self.changes_by_others.inc();
    }

    pub fn refused(&self, services: usize) {
        self.refused.set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    pub fn healthz(&self, status: StatusCode) {
        self.healthz.get_or_create(&Code { code: status.as_u16() }).inc();
    }

    pub fn livez(&self, status: StatusCode) {
        self.livez.get_or_create(&Code { code: status.as_u16() }).inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashboards_find_kube_proxys_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.synced(Duration::from_millis(3), 7, SystemTime::UNIX_EPOCH + Duration::from_secs(60));
        metrics.healthz(StatusCode::OK);
        metrics.failed();
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds 60.0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total 1",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "fairlead_node_agent_steps_total 7",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
    }
}
