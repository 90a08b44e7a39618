//! Matches and actions in words.

use crate::local::{InterfaceName, Interfaces};
use crate::nft::evaluate::Packet;
use crate::nft::layout::{Frontend, Group, Pool};
use crate::nft::ruleset::{Action, ChainName, Match};

/// Why the match holds for the packet, or why it does not.
pub(super) fn reason(matched: &Match, packet: Packet, holds: bool) -> String {
    let Packet { source, destination, interface, .. } = packet;
    let not = if holds { "" } else { "not " };
    match matched {
        Match::New => "it begins a connection".to_owned(),
        Match::To(shape, group) => membership(packet.frontend(*shape), *group, holds),
        Match::ToClusterIp if holds => format!("{destination} is a ClusterIP, of which this is no port"),
        Match::ToClusterIp => format!("{destination} is no ClusterIP"),
        Match::ToNetwork(network) if holds => {
            format!("{destination} is in the Service network {network}, and no Service has it")
        }
        Match::ToNetwork(network) => format!("{destination} is outside {network}"),
        Match::ToNodeAddress => format!("{destination} does {not}answer NodePorts"),
        Match::ToThisHost => format!("{destination} is {not}an address of this host other than loopback"),
        Match::From(network) => inside(source, network, holds),
        Match::NotFrom(network) => inside(source, network, !holds),
        Match::ToLoopback => format!("{destination} is {not}a loopback address"),
        Match::Over(protocol) => format!("it is {not}{protocol}"),
        Match::FromInterface(interfaces) => came_in_by(interface, interfaces, holds),
        Match::NotFromInterface(interfaces) => came_in_by(interface, interfaces, !holds),
        Match::FromItsRanges(length) => {
            let network = length.network_of(source);
            format!("{source} is in {network}, which is {not}in its loadBalancerSourceRanges")
        }
        Match::FromThisHost => format!("{source} is {not}an address of this host"),
        Match::Marked(_) => format!("masquerading was {not}asked for"),
        Match::Hairpin => format!("the endpoint is {not}the client itself"),
    }
}

/// Whether a rule that did not apply is worth telling because of this match. Who the client is
/// decides about policy; the other matches only tell Services apart.
pub(super) fn is_policy(matched: &Match) -> bool {
    match matched {
        Match::From(_)
        | Match::NotFrom(_)
        | Match::FromInterface(_)
        | Match::NotFromInterface(_)
        | Match::FromThisHost => true,
        Match::New
        | Match::To(..)
        | Match::ToClusterIp
        | Match::ToNetwork(_)
        | Match::ToNodeAddress
        | Match::ToThisHost
        | Match::ToLoopback
        | Match::Over(_)
        | Match::FromItsRanges(_)
        | Match::Marked(_)
        | Match::Hairpin => false,
    }
}

pub(super) fn is_about_interfaces(matched: &Match) -> bool {
    matches!(matched, Match::FromInterface(_) | Match::NotFromInterface(_))
}

/// What a rule does that applies.
pub(super) fn deed(action: Action) -> String {
    match action {
        Action::Goto(chain) => format!("goes on in {chain}"),
        Action::Accept => "is let on".to_owned(),
        Action::Count => "is counted".to_owned(),
        Action::Mark(_) => "is to be masqueraded".to_owned(),
        Action::Dnat { .. } => "takes one of the endpoints at random".to_owned(),
        Action::Keep { .. } => {
            "stays with the endpoint that it had within the timeout, or takes one at random (sessionAffinity)"
                .to_owned()
        }
        Action::Masquerade | Action::UnmarkAndMasquerade(_) => "is masqueraded".to_owned(),
        Action::Reset => "is refused, with a reset".to_owned(),
        Action::Reject => "is refused".to_owned(),
        Action::Drop => "is dropped".to_owned(),
    }
}

/// What a rule would have done that does not apply.
pub(super) fn omission(action: Action) -> String {
    match action {
        Action::Goto(ChainName::Denied(denial)) => omission(denial.action()),
        Action::Goto(chain) => format!("does not go on in {chain}"),
        Action::Accept => "is not let on by this rule".to_owned(),
        Action::Count => "is not counted".to_owned(),
        Action::Mark(_) => "is not to be masqueraded by this rule".to_owned(),
        Action::Dnat { .. } => "takes none of these endpoints".to_owned(),
        Action::Keep { .. } => "is kept by no endpoint".to_owned(),
        Action::Masquerade | Action::UnmarkAndMasquerade(_) => "is not masqueraded by this rule".to_owned(),
        Action::Reset => "is not refused with a reset".to_owned(),
        Action::Reject => "is not refused".to_owned(),
        Action::Drop => "is not dropped".to_owned(),
    }
}

fn membership(frontend: Frontend, group: Group, holds: bool) -> String {
    let is = if holds { "is" } else { "is not" };
    let has = if holds { "has" } else { "does not have" };
    match group {
        Group::Served => format!("{frontend} {is} a Service's"),
        Group::External => {
            format!("{frontend} {is} reached from outside, with externalTrafficPolicy Cluster")
        }
        Group::ExternalLocal => format!("{frontend} {has} externalTrafficPolicy Local"),
        Group::Reject => format!("{frontend} {has} no usable endpoint on any node"),
        Group::Drop if holds => {
            format!("{frontend} has usable endpoints on other nodes, but its traffic policy is Local")
        }
        Group::Drop => format!("{frontend} does not lack endpoints on this node"),
        Group::Firewalled => format!("{frontend} {has} loadBalancerSourceRanges"),
        Group::Count(pool, class) => {
            let here = if pool == Pool::Local { " on this node" } else { "" };
            let (least, most) = (class.least(), class.slots());
            match (least, most) {
                (1, 1) => format!("{frontend} {has} one endpoint{here}"),
                _ if least == most => format!("{frontend} {has} {most} endpoints{here}"),
                _ => format!("{frontend} {has} {least} to {most} endpoints{here}"),
            }
        }
    }
}

fn came_in_by(interface: Option<InterfaceName>, interfaces: &Interfaces, is: bool) -> String {
    match interface {
        None => format!("it came in by no interface such as {interfaces}"),
        Some(name) if is => format!("it came in by {name}, as pods' packets do ({interfaces})"),
        Some(name) => format!("it came in by {name}, not by {interfaces}"),
    }
}

fn inside(source: std::net::IpAddr, network: &ipnet::IpNet, is: bool) -> String {
    format!("{source} is {} {network}", if is { "in" } else { "outside" })
}
