//! The answer: the steps of the walk in words, and what may come of it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::Serialize;
use service_model::{IpFamily, Protocol};

use super::words;
use crate::nft::denial::Denial;
use crate::nft::evaluate::{self, Fate, Hop, Packet, Trace};
use crate::nft::layout::{Frontend, Group, Shape, TABLE};
use crate::nft::mirror::Mirror;
use crate::nft::reading::Reading;
use crate::nft::ruleset::{Action, ChainName, Match};

/// Of an untouched packet's neighbours, so many are named.
const NEIGHBOURS: usize = 12;

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Answer {
    pub source: IpAddr,
    pub sent_by_this_host: bool,
    pub destination: IpAddr,
    pub port: u16,
    pub protocol: String,
    /// `namespace/name:port` of the Service port, if it is one's.
    pub service: Option<String>,
    /// Up to the choice of an endpoint.
    pub steps: Vec<Step>,
    /// One of these happens.
    pub outcomes: Vec<Outcome>,
    /// What keeps this answer from being the whole truth.
    pub warnings: Vec<String>,
}

/// A rule that the packet met.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Step {
    pub chain: String,
    pub applied: bool,
    /// Empty for a rule without conditions.
    pub because: String,
    pub deed: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Outcome {
    pub verdict: Verdict,
    /// The endpoint sees this node's address, not the client's.
    pub masqueraded: bool,
    pub why: String,
    /// Each with the same chance.
    pub endpoints: Vec<String>,
    /// From the choice of the endpoint on.
    pub steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Endpoint,
    Refused,
    Dropped,
    Untouched,
}

impl Answer {
    /// What becomes of the packet on a host with these addresses.
    pub fn of(reading: &Reading, host: &BTreeSet<IpAddr>, packet: Packet) -> Self {
        let family = IpFamily::of(packet.destination);
        let trace = evaluate::trace(reading.ruleset(family), &reading.mirror, host, packet, &reading.held);
        let mut warnings = reading.oddities.clone();
        if !reading.mirror.structure(family).exists {
            warnings.push(format!(
                "there is no {family} table {TABLE}: nothing is programmed in this network namespace"
            ));
        }
        let by_interface = |hop: &Hop<'_>| hop.rule.matches.iter().any(words::is_about_interfaces);
        let sent = host.contains(&packet.source);
        if !sent && packet.interface.is_none() && trace.hops.iter().any(by_interface) {
            warnings.push(format!(
                "pods are known by the interface that their packets come in by: this answer is for one that is no \
                 pod's. Say by which {} comes in: --interface NAME",
                packet.source
            ));
        }
        Self {
            source: packet.source,
            sent_by_this_host: sent,
            destination: packet.destination,
            port: packet.port,
            protocol: packet.protocol.to_string(),
            service: label(&trace, &reading.mirror, packet),
            steps: steps(&trace.hops, packet),
            outcomes: outcomes(&trace, Known { reading, host }, packet),
            warnings,
        }
    }
}

/// What a reason may be looked for in.
#[derive(Clone, Copy)]
struct Known<'a> {
    reading: &'a Reading,
    host: &'a BTreeSet<IpAddr>,
}

impl Known<'_> {
    /// The addresses of the family that answer NodePorts.
    fn answering(self, family: IpFamily) -> String {
        let rules = self.reading.ruleset(family).chains.iter().flat_map(|chain| &chain.rules);
        let everywhere = rules.into_iter().any(|rule| rule.matches.contains(&Match::ToThisHost));
        let addresses = if everywhere { self.host } else { &self.reading.mirror.node_addresses };
        let named: Vec<String> = addresses
            .iter()
            .filter(|ip| IpFamily::of(**ip) == family && !(everywhere && ip.is_loopback()))
            .map(ToString::to_string)
            .collect();
        match (named.is_empty(), everywhere) {
            (true, _) => "none".to_owned(),
            (false, true) => format!("all of this host but loopback ({})", named.join(", ")),
            (false, false) => named.join(", "),
        }
    }
}

fn label(trace: &Trace<'_>, mirror: &Mirror, packet: Packet) -> Option<String> {
    let of = |shape| mirror.frontends.get(&packet.frontend(shape));
    let named = |matched: &Match| match matched {
        Match::To(shape, Group::Served | Group::Firewalled) => of(*shape),
        _ => None,
    };
    let served = |hop: &Hop<'_>| match hop.failed {
        None => hop.rule.matches.iter().find_map(named),
        Some(_) => None,
    };
    trace.hops.iter().find_map(served).map(|state| state.label.to_string())
}

fn steps(hops: &[Hop<'_>], packet: Packet) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for hop in hops {
        let step = match hop.failed {
            None => Step {
                chain: hop.chain.to_string(),
                applied: true,
                because: because(hop, packet),
                deed: words::deed(hop.rule.action),
            },
            Some(failed) if words::is_policy(failed) => Step {
                chain: hop.chain.to_string(),
                applied: false,
                because: words::reason(failed, packet, false),
                deed: words::omission(hop.rule.action),
            },
            Some(_) => continue,
        };
        // An index that is free is drawn again.
        if steps.last() != Some(&step) {
            steps.push(step);
        }
    }
    steps
}

fn because(hop: &Hop<'_>, packet: Packet) -> String {
    let told = hop.rule.matches.iter().filter(|matched| **matched != Match::New);
    told.map(|matched| words::reason(matched, packet, true)).collect::<Vec<_>>().join(", ")
}

/// Outcomes that differ only in the endpoint are one.
fn outcomes(trace: &Trace<'_>, known: Known<'_>, packet: Packet) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for outcome in &trace.outcomes {
        let (verdict, masqueraded, target) = match outcome.fate {
            Fate::Endpoint { target, masqueraded } => (Verdict::Endpoint, masqueraded, Some(target)),
            Fate::Refused => (Verdict::Refused, false, None),
            Fate::Dropped => (Verdict::Dropped, false, None),
            Fate::Untouched => (Verdict::Untouched, false, None),
        };
        let endpoint = target.map(|target| target.to_string());
        let alike = outcomes.iter_mut().find(|o| o.verdict == verdict && o.masqueraded == masqueraded);
        if let Some(alike) = alike {
            alike.endpoints.extend(endpoint.filter(|endpoint| !alike.endpoints.contains(endpoint)));
            continue;
        }
        let after = target.map_or(packet, |t| Packet { destination: t.ip, port: t.port, ..packet });
        outcomes.push(Outcome {
            verdict,
            masqueraded,
            why: why(trace, outcome, known, packet),
            endpoints: endpoint.into_iter().collect(),
            steps: steps(&outcome.hops, after),
        });
    }
    outcomes
}

fn why(trace: &Trace<'_>, outcome: &evaluate::Outcome<'_>, known: Known<'_>, packet: Packet) -> String {
    let last = outcome.hops.iter().chain(&trace.hops).filter(|hop| hop.failed.is_none());
    let did = |deed: fn(&Action) -> bool| last.clone().find(|hop| deed(&hop.rule.action));
    match outcome.fate {
        Fate::Endpoint { masqueraded: true, .. } => {
            if did(|action| *action == Action::Masquerade).is_some() {
                return "the endpoint is the client itself: its own address would not come back here"
                    .to_owned();
            }
            let marked = did(|action| matches!(action, Action::Mark(_)));
            let asked = marked.map(|hop| because(hop, packet)).unwrap_or_default();
            match asked.is_empty() {
                true => {
                    "connections from outside are masqueraded, so that the replies come back here".to_owned()
                }
                false => asked,
            }
        }
        Fate::Endpoint { masqueraded: false, .. } => {
            let marks = trace.hops.iter().filter(|hop| matches!(hop.rule.action, Action::Mark(_)));
            let mut kept = marks.filter_map(|hop| Some(words::reason(hop.failed?, packet, false)));
            kept.next().unwrap_or_else(|| "no rule asks for masquerading".to_owned())
        }
        Fate::Refused | Fate::Dropped => {
            let denying = last.clone().find_map(|hop| match hop.rule.action {
                Action::Goto(ChainName::Denied(denial)) => Some((hop, denial)),
                _ => None,
            });
            match denying {
                Some((_, Denial::UndefinedPort)) => neighbours(known, packet),
                Some((_, Denial::OutsideSourceRanges)) => {
                    format!("{} is in none of the networks of its loadBalancerSourceRanges", packet.source)
                }
                Some((hop, _)) => because(hop, packet),
                None => "its endpoints are being replaced at this moment".to_owned(),
            }
        }
        Fate::Untouched if is_for_the_proxy(outcome, &known.reading.mirror, packet) => {
            "a NodePort on loopback: node-agent's own proxy listens there while the Service has endpoints that its \
             policy allows"
                .to_owned()
        }
        Fate::Untouched => neighbours(known, packet),
    }
}

/// Rules about loopback are there only if it is to be served.
fn is_for_the_proxy(outcome: &evaluate::Outcome<'_>, mirror: &Mirror, packet: Packet) -> bool {
    let about_loopback = |hop: &Hop<'_>| hop.rule.matches.contains(&Match::ToLoopback);
    packet.protocol == Protocol::Tcp
        && packet.destination.is_loopback()
        && mirror.frontends.contains_key(&packet.frontend(Shape::NodePort))
        && outcome.hops.iter().any(about_loopback)
}

/// Why nothing of ours is about the packet, and what it may have been meant for.
fn neighbours(known: Known<'_>, packet: Packet) -> String {
    let mirror = &known.reading.mirror;
    let Packet { destination, port, protocol, .. } = packet;
    let node_port = packet.frontend(Shape::NodePort);
    if let Some(state) = mirror.frontends.get(&node_port) {
        let answering = known.answering(IpFamily::of(destination));
        return format!(
            "NodePort {port}/{protocol} is {}, but {destination} does not answer NodePorts; addresses that do: {answering}",
            state.label
        );
    }
    let served: Vec<String> = mirror
        .frontends
        .iter()
        .filter_map(|(frontend, state)| match frontend {
            Frontend::Vip { ip, protocol, port } if *ip == destination => {
                Some(format!("{port}/{protocol} ({})", state.label))
            }
            _ => None,
        })
        .take(NEIGHBOURS)
        .collect();
    match served.is_empty() {
        true => {
            format!("no Service has {destination} as an address, and none has NodePort {port}/{protocol}")
        }
        false => format!("{destination} is served at other ports only: {}", served.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::local::DetectLocal;
    use crate::nft::ruleset::Ruleset;
    use crate::nft::step::Element;

    /// Why a NodePort is not answered at the address, on a host with four.
    fn why_not(nodeport_addresses: &str, answering: &[&str], destination: &str) -> String {
        let detect_local = DetectLocal::ClusterCidr("10.244.0.0/16".parse().unwrap());
        let nodeport_addresses = nodeport_addresses.parse().unwrap();
        let config = Config { nodeport_addresses, ..Config::new("here", detect_local) };
        let rulesets = Ruleset::each(&config).try_into().unwrap();
        let mut mirror = Mirror::default();
        for family in crate::nft::layout::FAMILIES {
            mirror.structure_mut(family).exists = true;
            let frontend = Frontend::NodePort { family, protocol: Protocol::Tcp, port: 30_080 };
            mirror.add(&Element::Served { frontend, label: "ns/web:http".into() });
        }
        answering.iter().for_each(|ip| mirror.add(&Element::NodeAddress(ip.parse().unwrap())));
        let reading = Reading { mirror, rulesets, held: BTreeSet::new(), oddities: Vec::new() };
        let host = ["127.0.0.1", "::1", "172.30.0.11", "fd00:172:30::11"].map(|ip| ip.parse().unwrap());
        let destination: IpAddr = destination.parse().unwrap();
        let source = if destination.is_ipv4() { "10.244.3.9" } else { "fd00:10:244::39" };
        let (source, protocol) = (source.parse().unwrap(), Protocol::Tcp);
        let packet = Packet { source, destination, protocol, port: 30_080, interface: None };
        let answer = Answer::of(&reading, &host.into(), packet);
        let why = &answer.outcomes[0].why;
        why.split_once("addresses that do: ").unwrap_or_else(|| panic!("{why}")).1.to_owned()
    }

    #[test]
    fn addresses_that_answer_node_ports_are_those_of_the_packets_family_and_where_all_do_the_hosts() {
        for (configured, answering, destination, told) in [
            ("all", &[][..], "192.0.2.7", "all of this host but loopback (172.30.0.11)"),
            ("all", &[], "2001:db8::7", "all of this host but loopback (fd00:172:30::11)"),
            ("primary", &["172.30.0.11", "fd00:172:30::11"], "192.0.2.7", "172.30.0.11"),
            ("primary", &["172.30.0.11", "fd00:172:30::11"], "2001:db8::7", "fd00:172:30::11"),
            ("primary", &["172.30.0.11"], "2001:db8::7", "none"),
        ] {
            assert_eq!(why_not(configured, answering, destination), told, "{configured}, {destination}");
        }
    }
}
