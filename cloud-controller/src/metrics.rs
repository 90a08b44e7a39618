//! What the controller counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::desired::Provider;
use crate::metal::crds::IPAddressPoolStatus;
use crate::plan::Outcome;

#[derive(Debug, Clone, Default)]
pub struct Metrics {
    leader: Gauge,
    reconciles: Family<ReconcileLabels, Counter>,
    seconds: Family<ProviderLabels, Counter<f64, AtomicU64>>,
    pool_addresses: Family<PoolLabels, Gauge>,
    pool_in_use: Family<PoolLabels, Gauge>,
    host_up: Family<HostLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReconcileLabels {
    provider: String,
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ProviderLabels {
    provider: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PoolLabels {
    pool: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabels {
    host: String,
}

impl Metrics {
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("fairlead_cloud_controller");
        registry.register("leader", "1 while this replica leads", metrics.leader.clone());
        registry.register(
            "reconciles",
            "Reconciles of a Service, by provider and how they ended",
            metrics.reconciles.clone(),
        );
        registry.register("reconcile_seconds", "Time spent in reconciles", metrics.seconds.clone());
        registry.register(
            "pool_addresses",
            "IPv4 addresses that an IPAddressPool offers",
            metrics.pool_addresses.clone(),
        );
        registry.register(
            "pool_addresses_in_use",
            "IPv4 addresses of an IPAddressPool that Services hold",
            metrics.pool_in_use.clone(),
        );
        registry.register(
            "balancer_host_up",
            "1 while a metal-lb host answers; only the leader asks",
            metrics.host_up.clone(),
        );
        metrics
    }

    pub fn leads(&self, leads: bool) {
        self.leader.set(leads.into());
    }

    pub fn reconciled(&self, provider: Provider, outcome: &Outcome, seconds: f64) {
        let outcome = match outcome {
            Outcome::Converged => "converged",
            Outcome::Retry { .. } => "retry",
            Outcome::Blocked { .. } => "blocked",
        };
        let provider = provider.to_string();
        self.reconciles.get_or_create(&ReconcileLabels { provider: provider.clone(), outcome }).inc();
        self.seconds.get_or_create(&ProviderLabels { provider }).inc_by(seconds);
    }

    pub fn balancer_host(&self, host: &str, up: bool) {
        self.host_up.get_or_create(&HostLabels { host: host.to_owned() }).set(up.into());
    }

    pub fn pool(&self, name: &str, status: &IPAddressPoolStatus) {
        let labels = PoolLabels { pool: name.to_owned() };
        let size = status.assigned_ipv4.saturating_add(status.available_ipv4);
        self.pool_addresses.get_or_create(&labels).set(size);
        self.pool_in_use.get_or_create(&labels).set(status.assigned_ipv4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reconciles_and_pools_are_counted_under_our_prefix() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.reconciled(Provider::Metal, &Outcome::Converged, 0.5);
        metrics.pool("p", &IPAddressPoolStatus { assigned_ipv4: 3, available_ipv4: 7, ..Default::default() });
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            r#"fairlead_cloud_controller_reconciles_total{provider="metal",outcome="converged"} 1"#,
            r#"fairlead_cloud_controller_pool_addresses{pool="p"} 10"#,
            r#"fairlead_cloud_controller_pool_addresses_in_use{pool="p"} 3"#,
        ] {
            assert!(text.contains(line), "{text}");
        }
    }
}
