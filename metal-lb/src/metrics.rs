//! What the packet path does, per Service, port and target, with the meaning of an NLB's metrics;
//! and what this process does. Counters of packets are read from the maps at the moment of a scrape.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;

use metal_lb_api::{ListenerState, TargetHealth};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::{Registry, Unit};
use tokio::sync::watch;

use crate::desired::ListenerId;
use crate::observed::ObservedTarget;
use crate::programmed::Programmed;
use crate::xdp::XdpBackend;
use crate::xdp::layout::Counters;

type Labels = Vec<(&'static str, String)>;

/// What this process counts itself.
#[derive(Debug, Clone, Default)]
pub struct Events {
    gratuitous: Family<Labels, Counter>,
    steps: Counter,
    failures: Counter,
}

impl Events {
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "metal_lb_gratuitous_arp_sent",
            "Announcements sent, by address",
            self.gratuitous.clone(),
        );
        registry.register("metal_lb_plan_steps", "Steps of plans that were applied", self.steps.clone());
        registry.register(
            "metal_lb_plan_failures",
            "Batches of steps that the kernel refused",
            self.failures.clone(),
        );
    }

    pub fn gratuitous_sent(&self, vip: Ipv4Addr) {
        self.gratuitous.get_or_create(&vec![("vip", vip.to_string())]).inc();
    }

    pub fn batch_applied(&self, steps: usize, ok: bool) {
        if ok {
            self.steps.inc_by(steps as u64);
        } else {
            self.failures.inc();
        }
    }
}

/// Reads the packet path's counters.
pub struct Traffic {
    path: XdpBackend,
    host: String,
    programmed: watch::Receiver<Arc<Programmed>>,
}

impl Traffic {
    /// `path`: handles of its own on the pinned maps.
    pub fn new(path: XdpBackend, host: String, programmed: watch::Receiver<Arc<Programmed>>) -> Self {
        Self { path, host, programmed }
    }
}

impl fmt::Debug for Traffic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Traffic").field("host", &self.host).finish_non_exhaustive()
    }
}

impl Collector for Traffic {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let programmed = Arc::clone(&self.programmed.borrow());
        // What cannot be read is left out of the page; the log of the next sync says why.
        let labels: BTreeMap<ListenerId, Labels> =
            programmed.state.listeners.iter().filter_map(|l| Some((id_of(l)?, labels_of(l)))).collect();
        let of_listener = |(id, labels): (&ListenerId, &Labels)| {
            let table = programmed.listeners.get(id)?.table;
            Some((labels.clone(), self.path.listener_counters(table).ok()?))
        };
        flows(&mut encoder, "listener", &labels.iter().filter_map(of_listener).collect::<Vec<_>>())?;
        let of_target = |(id, target): (&u32, &ObservedTarget)| {
            let mut labels = labels.get(&target.listener)?.clone();
            labels.push(("target", target.address.to_string()));
            Some((labels, self.path.target_counters(*id).ok()?))
        };
        flows(&mut encoder, "target", &programmed.targets.iter().filter_map(of_target).collect::<Vec<_>>())?;
        gauges(&mut encoder, &programmed, &self.host)?;
        let dropped = self.path.reasons().into_iter().flatten();
        let dropped: Vec<(Labels, u64)> =
            dropped.map(|(reason, count)| (vec![("reason", reason.to_owned())], count)).collect();
        counter(
            &mut encoder,
            "refused_packets",
            "Packets to VIPs that were not forwarded, by reason",
            None,
            &dropped,
        )
    }
}

fn flows(encoder: &mut DescriptorEncoder<'_>, of: &str, rows: &[(Labels, Counters)]) -> fmt::Result {
    let pick = |value: fn(&Counters) -> u64| -> Vec<(Labels, u64)> {
        rows.iter().map(|(labels, counters)| (labels.clone(), value(counters))).collect()
    };
    let name = |what: &str| format!("{of}_{what}");
    counter(encoder, &name("new_flows"), "Connections that began", None, &pick(|c| c.new_flows))?;
    counter(encoder, &name("packets"), "Packets forwarded, both directions", None, &pick(|c| c.packets))?;
    let help = "Bytes forwarded, both directions, with headers";
    counter(encoder, &name("processed"), help, Some(&Unit::Bytes), &pick(|c| c.bytes))
}

fn gauges(encoder: &mut DescriptorEncoder<'_>, programmed: &Programmed, host: &str) -> fmt::Result {
    let count = |is: fn(&metal_lb_api::TargetState) -> bool| -> Vec<(Labels, i64)> {
        let of = |l: &ListenerState| (labels_of(l), l.targets.iter().filter(|t| is(t)).count() as i64);
        programmed.state.listeners.iter().map(of).collect()
    };
    let healthy = count(|t| t.health == TargetHealth::Healthy);
    gauge(encoder, "healthy_targets", "Targets whose last checks succeeded", &healthy)?;
    let unhealthy = count(|t| t.health == TargetHealth::Unhealthy);
    gauge(encoder, "unhealthy_targets", "Targets whose last checks failed", &unhealthy)?;
    let serving = count(|t| t.in_table);
    gauge(encoder, "serving_targets", "Targets that get new connections", &serving)?;
    let owned = |v: &metal_lb_api::VipState| {
        (vec![("vip", v.vip.to_string())], i64::from(v.owner.as_deref() == Some(host)))
    };
    let owned: Vec<(Labels, i64)> = programmed.state.vips.iter().map(owned).collect();
    gauge(encoder, "vip_owned", "1 where this host answers for the address", &owned)?;
    let alive = programmed.peers.iter().map(|(peer, live)| (vec![("peer", peer.clone())], i64::from(*live)));
    let alive: Vec<(Labels, i64)> = alive.collect();
    gauge(encoder, "peer_alive", "1 for a host of the tier that answers probes and is controlled", &alive)
}

fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    rows: &[(Labels, u64)],
) -> fmt::Result {
    family(encoder, name, help, unit, rows.iter().map(|(labels, value)| (labels, ConstCounter::new(*value))))
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, rows: &[(Labels, i64)]) -> fmt::Result {
    family(encoder, name, help, None, rows.iter().map(|(labels, value)| (labels, ConstGauge::new(*value))))
}

fn family<'l, M: EncodeMetric>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    rows: impl Iterator<Item = (&'l Labels, M)>,
) -> fmt::Result {
    let mut rows = rows.peekable();
    let Some(kind) = rows.peek().map(|(_, metric)| metric.metric_type()) else { return Ok(()) };
    let name = format!("metal_lb_{name}");
    let mut descriptor = encoder.encode_descriptor(&name, help, unit, kind)?;
    for (labels, metric) in rows {
        metric.encode(descriptor.encode_family(labels)?)?;
    }
    Ok(())
}

fn id_of(listener: &ListenerState) -> Option<ListenerId> {
    match listener.vip {
        std::net::IpAddr::V4(vip) => {
            Some(ListenerId { vip, protocol: listener.protocol, port: listener.port })
        }
        std::net::IpAddr::V6(_) => None,
    }
}

fn labels_of(listener: &ListenerState) -> Labels {
    vec![
        ("service", listener.service.clone()),
        ("vip", listener.vip.to_string()),
        ("protocol", listener.protocol.to_string()),
        ("port", listener.port.to_string()),
    ]
}
