//! The third opinion: what `node-agent explain` would say of a flow. It reads the rules back from
//! the kernel and walks them, and the kernel's own verdict must be the same.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::Service;
use lab::network::UPLINK;
use node_agent::host;
use node_agent::nft::evaluate::{Fate, Packet, fates};
use node_agent::nft::kernel::Kernel;
use node_agent::nft::layout::{Frontend, Group, Pool};
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

/// Everything that may become of a flow.
#[derive(Debug)]
pub(crate) struct Opinion<'a> {
    foretold: BTreeSet<Foretold>,
    /// The addresses of the node.
    host: &'a BTreeSet<IpAddr>,
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

    pub(crate) fn opinion(&self, twin: &Twin, flow: &Flow) -> Opinion<'_> {
        let foretold = match flow.destination.ip().is_loopback() {
            true => self.of_loopback(flow),
            false => self.of_rules(twin, flow),
        };
        Opinion::new(foretold, &self.host)
    }

    fn of_rules(&self, twin: &Twin, flow: &Flow) -> BTreeSet<Foretold> {
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

    /// What is sent to loopback is taken by a socket of node-agent's, which no rule tells of: only the
    /// endpoints of the NodePort are in the sets, and the policy holds.
    fn of_loopback(&self, flow: &Flow) -> BTreeSet<Foretold> {
        let (to, protocol) = (flow.destination, flow.protocol);
        let frontend = Frontend::NodePort { family: IpFamily::of(to.ip()), protocol, port: to.port() };
        let state = self.reading.mirror.frontends.get(&frontend);
        let endpoints = state.into_iter().flat_map(|state| {
            let local = state.groups.contains(Group::ExternalLocal);
            state.pool(if local { Pool::Local } else { Pool::Cluster }).iter().flatten()
        });
        let reached = endpoints.map(|target| Foretold::Reached(target.ip, target.port, None));
        reached.chain([Foretold::Refused, Foretold::Silent]).collect()
    }
}

impl<'a> Opinion<'a> {
    pub(crate) fn new(foretold: BTreeSet<Foretold>, host: &'a BTreeSet<IpAddr>) -> Self {
        Self { foretold, host }
    }

    /// Whether nothing was met with but what was foretold.
    pub(crate) fn admits(&self, flow: &Flow, verdict: &Verdict) -> bool {
        self.met(flow, verdict).is_subset(&self.foretold)
    }

    /// Whether the kernel did what was foretold. Tries are ended once nothing new seems to come, so that
    /// some of the endpoints foretold may not have been met; a client that is kept meets one.
    pub(crate) fn holds(&self, service: &Service, flow: &Flow, verdict: &Verdict) -> bool {
        let met = self.met(flow, verdict);
        let may_miss_some = meant::is_sticky(service) || met.len() > 1;
        met == self.foretold || may_miss_some && met.is_subset(&self.foretold)
    }

    /// The endpoints foretold, as nobody meets them: tries go on until no doubt is left.
    pub(crate) fn sought(&self) -> Verdict {
        let nobody = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let reached = self.foretold.iter().filter_map(|foretold| match foretold {
            Foretold::Reached(ip, port, _) => {
                Some(Outcome::Reached { endpoint: SocketAddr::new(*ip, *port), client: nobody })
            }
            Foretold::Silent => Some(Outcome::Silent),
            _ => None,
        });
        Verdict(reached.collect())
    }

    /// What was met with, in the same words.
    fn met(&self, flow: &Flow, verdict: &Verdict) -> BTreeSet<Foretold> {
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

impl fmt::Display for Foretold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reached(ip, port, masqueraded) => {
                write!(f, "{}", SocketAddr::new(*ip, *port))?;
                f.write_str(match masqueraded {
                    Some(true) => " (masqueraded)",
                    Some(false) => " (as itself)",
                    None => "",
                })
            }
            Self::Refused => f.write_str("refused"),
            Self::Silent => f.write_str("silent"),
            Self::Unserved => f.write_str("unserved"),
            Self::Broken => f.write_str("broken"),
        }
    }
}

impl fmt::Display for Opinion<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words: Vec<String> = self.foretold.iter().map(ToString::to_string).collect();
        f.write_str(&words.join(", "))
    }
}
