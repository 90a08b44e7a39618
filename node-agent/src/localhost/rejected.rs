//! What was refused on loopback because no proxy serves it there: counted by the rules themselves.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use service_model::IpFamily;

use crate::config::Config;
use crate::nft::kernel::Kernel;
use crate::nft::layout::FAMILIES;
use crate::nft::ruleset::{ChainName, UNSERVED_ON_LOOPBACK};

/// kube-proxy's metric, read from the kernel at each scrape. 0 where loopback is not named.
#[derive(Debug)]
pub struct RejectedOnLoopback {
    /// Where there are such rules.
    families: Vec<IpFamily>,
}

impl RejectedOnLoopback {
    pub fn register(config: &Config, registry: &mut Registry) {
        let families = FAMILIES.into_iter().filter(|family| config.answers_on_loopback(*family)).collect();
        registry.sub_registry_with_prefix("kubeproxy").register_collector(Box::new(Self { families }));
    }
}

impl Collector for RejectedOnLoopback {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        // What cannot be read is left out: the log of the next sync says why.
        let mut kernel = if self.families.is_empty() { None } else { Kernel::open().ok() };
        let mut metric = encoder.encode_descriptor(
            "nftables_localhost_nodeport_rejected_packets",
            "Packets to NodePorts on loopback that were refused",
            None,
            MetricType::Counter,
        )?;
        for family in FAMILIES {
            for protocol in UNSERVED_ON_LOOPBACK {
                let counted = match self.families.contains(&family) {
                    false => Some(0),
                    true => kernel.as_mut().and_then(|kernel| {
                        kernel.counted(family, ChainName::RejectOnLoopback(protocol)).ok()
                    }),
                };
                let Some(packets) = counted else { continue };
                let labels = [("ip_family", family.to_string()), ("protocol", protocol.to_string())];
                ConstCounter::new(packets).encode(metric.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
