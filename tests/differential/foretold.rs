//! The third opinion: what `node-agent explain` would say of a flow. It reads the rules back from
//! the kernel and walks them, and the kernel's own verdict must be the same.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use lab::network::UPLINK;
use node_agent::host;
use node_agent::nft::evaluate::{Fate, Packet, fates};
use node_agent::nft::kernel::Kernel;
use node_agent::nft::reading::Reading;
use service_model::{IpFamily, Protocol};

use crate::flows::Flow;
use crate::meant;
use crate::twin::{self, Source, Twin};
use crate::verdict::{Outcome, Verdict};

/// The state of a twin's kernel.
pub(crate) struct Evaluator {
    reading: Reading,
    host: BTreeSet<IpAddr>,
}

/// An outcome as far as it can be foretold: whose address the node takes for a client that is
/// masqueraded is not in the rules.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Foretold {
    /// Whether the endpoint sees the client's own address; unknown where both are the node's.
    Reached(IpAddr, u16, Option<bool>),
    Refused,
    Silent,
    Unserved,
    Broken,
}

impl Evaluator {
    /// # Errors
    /// When the kernel cannot be read.
    pub(crate) fn of(twin: &Twin) -> Result<Self> {
        twin.node.netns.enter(|| {
            let reading = Kernel::open().and_then(|mut kernel| Reading::of(&mut kernel));
            Ok(Self {
                reading: reading.context("reading the rules")?,
                host: host::addresses().context("asking for the addresses of the node")?,
            })
        })
    }

    /// Everything that may become of the flow.
    pub(crate) fn verdict(&self, twin: &Twin, flow: &Flow) -> BTreeSet<Foretold> {
        let to = flow.destination;
        let source = twin::address_of(twin, flow.source, to.ip());
        let interface = match flow.source {
            Source::Node => None,
            Source::Pod(_) => Some(flow.source.to_string()),
            Source::PodElsewhere | Source::Outside => Some(UPLINK.to_owned()),
        };
        let interface = interface.map(|name| name.parse().expect("cables have names"));
        let packet =
            Packet { source, destination: to.ip(), protocol: flow.protocol, port: to.port(), interface };
        let ruleset = self.reading.ruleset(IpFamily::of(to.ip()));
        let leaves = flow.source == Source::Node && !self.host.contains(&to.ip());
        fates(ruleset, &self.reading.mirror, &self.host, packet)
            .into_iter()
            .map(|fate| match fate {
                // An answer to itself from itself is one that nobody asked for.
                Fate::Endpoint { target, masqueraded: false } if target.ip == source => Foretold::Silent,
                Fate::Endpoint { target, masqueraded } => {
                    let told = flow.source != Source::Node;
                    Foretold::Reached(target.ip, target.port, told.then_some(masqueraded))
                }
                // A datagram that the host sends to others does not even leave `send`, which says that it is not
                // permitted.
                Fate::Refused if leaves && flow.protocol == Protocol::Udp => Foretold::Silent,
                Fate::Refused => Foretold::Refused,
                Fate::Dropped => Foretold::Silent,
                // No socket of the node's listens there; and the router refuses what goes on.
                Fate::Untouched if self.host.contains(&to.ip()) => Foretold::Refused,
                Fate::Untouched => Foretold::Unserved,
            })
            .collect()
    }

    /// The endpoints foretold, as nobody meets them: tries go on until no doubt is left.
    pub(crate) fn sought(&self, twin: &Twin, flow: &Flow) -> Verdict {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let reached = self.verdict(twin, flow).into_iter().filter_map(|foretold| match foretold {
            Foretold::Reached(ip, port, _) => {
                Some(Outcome::Reached { endpoint: SocketAddr::new(ip, port), client: nobody })
            }
            Foretold::Silent => Some(Outcome::Silent),
            _ => None,
        });
        Verdict(reached.collect())
    }

    /// What was met with, in the same words.
    pub(crate) fn met(&self, flow: &Flow, verdict: &Verdict) -> BTreeSet<Foretold> {
        let word = |outcome: &Outcome| match outcome {
            Outcome::Reached { endpoint, client } => {
                let masqueraded = (flow.source != Source::Node).then(|| self.host.contains(client));
                Foretold::Reached(endpoint.ip(), endpoint.port(), masqueraded)
            }
            Outcome::Refused => Foretold::Refused,
            Outcome::Silent => Foretold::Silent,
            Outcome::Unserved => Foretold::Unserved,
            Outcome::Broken(_) => Foretold::Broken,
        };
        verdict.0.iter().map(word).collect()
    }
}

/// Whether the kernel did what was foretold. Tries are ended once nothing new seems to come, so that
/// some of the endpoints foretold may not have been met; a client that is kept meets one.
pub(crate) fn holds(service: &Service, foretold: &BTreeSet<Foretold>, met: &BTreeSet<Foretold>) -> bool {
    match meant::is_sticky(service) {
        true => met.is_subset(foretold),
        false => met == foretold || met.len() > 1 && met.is_subset(foretold),
    }
}
