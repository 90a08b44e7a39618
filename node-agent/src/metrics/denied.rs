//! What was not let through: counted by the rules themselves, and read from the kernel at each scrape.
//! So a restart of this program does not begin anew.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;
use service_model::IpFamily;

use crate::config::Config;
use crate::nft::denial::{Denial, UNSERVED_ON_LOOPBACK};
use crate::nft::kernel::Kernel;
use crate::nft::layout::FAMILIES;
use crate::nft::ruleset::ChainName;

/// Packets that began a connection and were refused or dropped, by reason.
#[derive(Debug)]
struct DeniedPackets {
    families: Vec<IpFamily>,
}

/// kube-proxy's metric for loopback, with its name and labels. 0 where loopback is not named.
#[derive(Debug)]
struct RejectedOnLoopback {
    /// Where there are such rules.
    families: Vec<IpFamily>,
}

/// Adds both.
pub fn register(config: &Config, registry: &mut Registry) {
    let where_any = |has: &dyn Fn(IpFamily) -> bool| FAMILIES.into_iter().filter(|f| has(*f)).collect();
    let ours = DeniedPackets { families: where_any(&|family| config.families.contains(family)) };
    registry.sub_registry_with_prefix("fairlead_node_agent").register_collector(Box::new(ours));
    let theirs = RejectedOnLoopback { families: where_any(&|family| config.answers_on_loopback(family)) };
    registry.sub_registry_with_prefix("kubeproxy").register_collector(Box::new(theirs));
}

impl Collector for DeniedPackets {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut kernel = Kernel::open().ok();
        let mut metric = encoder.encode_descriptor(
            "denied_packets",
            "Packets that would have begun a connection and were refused or dropped",
            None,
            MetricType::Counter,
        )?;
        for family in &self.families {
            for denial in Denial::ALWAYS {
                let verdict = if denial.is_refusal() { "reject" } else { "drop" };
                let labels = [
                    ("ip_family", family.to_string()),
                    ("reason", denial.to_string()),
                    ("verdict", verdict.to_owned()),
                ];
                counted(kernel.as_mut(), *family, denial, &labels, &mut metric)?;
            }
        }
        Ok(())
    }
}

impl Collector for RejectedOnLoopback {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut kernel = if self.families.is_empty() { None } else { Kernel::open().ok() };
        let mut metric = encoder.encode_descriptor(
            "nftables_localhost_nodeport_rejected_packets",
            "Packets to NodePorts on loopback that were refused",
            None,
            MetricType::Counter,
        )?;
        for family in FAMILIES {
            for protocol in UNSERVED_ON_LOOPBACK {
                let labels = [("ip_family", family.to_string()), ("protocol", protocol.to_string())];
                if self.families.contains(&family) {
                    let denial = Denial::OnLoopback(protocol);
                    counted(kernel.as_mut(), family, denial, &labels, &mut metric)?;
                } else {
                    ConstCounter::new(0_u64).encode(metric.encode_family(&labels)?)?;
                }
            }
        }
        Ok(())
    }
}

/// What cannot be read is missing from the scrape: a 0 would be a lie.
fn counted<const N: usize>(
    kernel: Option<&mut Kernel>,
    family: IpFamily,
    denial: Denial,
    labels: &[(&str, String); N],
    metric: &mut MetricEncoder<'_>,
) -> fmt::Result {
    let packets = kernel.and_then(|kernel| kernel.counted(family, ChainName::Denied(denial)).ok());
    match packets {
        Some(packets) => ConstCounter::new(packets).encode(metric.encode_family(labels)?),
        None => Ok(()),
    }
}
