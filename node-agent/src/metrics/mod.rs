//! What the agent counts: kube-proxy's names where dashboards know them, ours for the rest.

pub mod denied;
mod kube_proxy;

use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use service_model::IpFamily;

use crate::nft::layout::FAMILIES;
use crate::nft::stranded::Stranded;
pub use kube_proxy::{KubeProxyMetrics, TrafficPolicyLabel};

#[derive(Debug, Clone)]
pub struct Metrics {
    pub theirs: KubeProxyMetrics,
    steps: Counter,
    commit_seconds: Histogram,
    commit_steps: Histogram,
    changes_by_others: Counter,
    refused: Gauge,
}

/// One commit to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Commit {
    /// Steps in the order of [`FAMILIES`].
    pub steps: [usize; 2],
    /// What the kernel took for it.
    pub took: Duration,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self {
            theirs: KubeProxyMetrics::register(registry.sub_registry_with_prefix("kubeproxy")),
            steps: Counter::default(),
            // 50 µs to 1.6 s
            commit_seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)),
            // 1 to 262,144
            commit_steps: Histogram::new(exponential_buckets(1.0, 4.0, 10)),
            changes_by_others: Counter::default(),
            refused: Gauge::default(),
        };
        let ours = registry.sub_registry_with_prefix("fairlead_node_agent");
        ours.register("steps", "Steps committed to the kernel", metrics.steps.clone());
        ours.register(
            "commit_duration_seconds",
            "What the kernel took for a commit",
            metrics.commit_seconds.clone(),
        );
        ours.register("commit_steps", "Steps of a commit", metrics.commit_steps.clone());
        ours.register(
            "changes_by_others",
            "How often somebody else changed our tables, or may have, and they were read again and put right",
            metrics.changes_by_others.clone(),
        );
        ours.register("refused_services", "Services that the kernel refuses", metrics.refused.clone());
        metrics
    }

    /// A sync succeeded: `full` if it read the kernel first.
    pub fn synced(&self, took: Duration, commits: &[Commit], full: bool, at: SystemTime) {
        for commit in commits {
            let steps: usize = commit.steps.iter().sum();
            self.steps.inc_by(steps as u64);
            self.commit_seconds.observe(commit.took.as_secs_f64());
            self.commit_steps.observe(steps as f64);
        }
        for (number, family) in FAMILIES.into_iter().enumerate() {
            if commits.iter().any(|commit| commit.steps[number] > 0) {
                self.theirs.took(family, took, full);
            }
            self.theirs.synced(family, at);
        }
    }

    pub fn failed(&self) {
        FAMILIES.into_iter().for_each(|family| self.theirs.failed(family));
    }

    /// Service ports that have no endpoint on this node where the policy asks for one.
    pub fn stranded(&self, stranded: &Stranded) {
        for family in FAMILIES {
            for policy in [TrafficPolicyLabel::Internal, TrafficPolicyLabel::External] {
                let external = policy == TrafficPolicyLabel::External;
                self.theirs.no_local_endpoints(family, policy, stranded.count(family, external));
            }
        }
    }

    /// Since an event until it was programmed.
    pub fn programmed(&self, family: IpFamily, since: SystemTime, at: SystemTime) {
        self.theirs.programmed(family, at.duration_since(since).unwrap_or_default());
    }

    pub fn changed_by_others(&self, times: usize) {
        self.changes_by_others.inc_by(times as u64);
    }

    pub fn refused(&self, services: usize) {
        self.refused.set(i64::try_from(services).unwrap_or(i64::MAX));
    }

    pub fn healthz(&self, status: StatusCode) {
        self.theirs.healthz(status);
    }

    pub fn livez(&self, status: StatusCode) {
        self.theirs.livez(status);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dashboards_find_kube_proxys_names() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let at = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        let commit = Commit { steps: [7, 0], took: Duration::from_millis(1) };
        metrics.synced(Duration::from_millis(3), &[commit], true, at);
        metrics.synced(Duration::from_millis(3), &[], false, at);
        metrics.healthz(StatusCode::OK);
        metrics.failed();
        metrics.programmed(IpFamily::V4, at, at + Duration::from_secs(2));
        metrics.stranded(&Stranded::default());
        let mut page = String::new();
        prometheus_client::encoding::text::encode(&mut page, &registry).unwrap();
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"} 1",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv6\"} 60.0",
            "kubeproxy_sync_proxy_rules_nftables_sync_failures_total{ip_family=\"IPv4\"} 1",
            "kubeproxy_network_programming_duration_seconds_sum{ip_family=\"IPv4\"} 2.0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"external\",ip_family=\"IPv6\"} 0",
            "kubeproxy_proxy_healthz_total{code=\"200\"} 1",
            "fairlead_node_agent_steps_total 7",
            "fairlead_node_agent_commit_steps_count 1",
        ] {
            assert!(page.lines().any(|l| l == line), "{line} is not in\n{page}");
        }
        let of_v6 = "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}";
        assert!(!page.contains(of_v6), "nothing was written for IPv6");
    }
}
