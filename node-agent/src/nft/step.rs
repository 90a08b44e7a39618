//! Steps: what is done to the kernel, as data. A batch of them is committed as a whole.

use std::fmt;
use std::net::IpAddr;

use service_model::{IpFamily, Protocol};

use super::affinity::{AffinityChain, AffinityKey};
use super::layout::{Frontend, Group, Pool, SetName, TABLE, Target};
use super::ruleset::{ChainName, Ruleset};
use super::source_ranges::SourceNetwork;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Creates the table with all sets, chains and rules, but without elements.
    CreateTable(Box<Ruleset>),
    DeleteTable(IpFamily),
    CreateSet(IpFamily, SetName),
    /// Creates the chain unless it exists, and makes its rules those of the ruleset.
    RewriteChain(ChainName, Box<Ruleset>),
    /// Empties a chain that is not ours to have.
    FlushChain(IpFamily, String),
    DeleteChain(IpFamily, String),
    DeleteSet(IpFamily, String),
    /// Creates the chain unless it exists, and makes its rules those of the description.
    WriteAffinity(AffinityKey, Box<AffinityChain>),
    DeleteAffinity(AffinityKey),
    Add(Element),
    Delete(Element),
}

/// An element of one of our sets or maps.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Element {
    /// Membership in [`Group::Served`], with the Service port's name as the comment.
    Served {
        frontend: Frontend,
        label: Box<str>,
    },
    /// Membership in any other group.
    Member {
        frontend: Frontend,
        group: Group,
    },
    Endpoint {
        frontend: Frontend,
        pool: Pool,
        index: u32,
        target: Target,
    },
    /// The frontend's clients stay with their endpoints.
    Affinity {
        frontend: Frontend,
        pool: Pool,
        chain: AffinityKey,
    },
    NodeAddress(IpAddr),
    /// An address at which no port but those that are served leads anywhere.
    ClusterIp(IpAddr),
    /// The frontend is reached from the network.
    SourceRange {
        frontend: Frontend,
        network: SourceNetwork,
    },
    Hairpin(Hairpin),
}

/// An endpoint on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hairpin {
    pub target: Target,
    pub protocol: Protocol,
}

impl Element {
    pub fn family(&self) -> IpFamily {
        match self {
            Element::Served { frontend, .. }
            | Element::Member { frontend, .. }
            | Element::Affinity { frontend, .. }
            | Element::SourceRange { frontend, .. }
            | Element::Endpoint { frontend, .. } => frontend.family(),
            Element::NodeAddress(ip) | Element::ClusterIp(ip) => IpFamily::of(*ip),
            Element::Hairpin(hairpin) => IpFamily::of(hairpin.target.ip),
        }
    }

    /// The set or map that holds it.
    pub fn set(&self) -> SetName {
        match self {
            Element::Served { frontend, .. } => SetName::Group(frontend.shape(), Group::Served),
            Element::Member { frontend, group } => SetName::Group(frontend.shape(), *group),
            Element::Endpoint { frontend, pool, .. } => SetName::Endpoints(frontend.shape(), *pool),
            Element::Affinity { frontend, pool, .. } => SetName::Affinity(frontend.shape(), *pool),
            Element::NodeAddress(_) => SetName::NodeAddresses,
            Element::ClusterIp(_) => SetName::ClusterIps,
            Element::SourceRange { network, .. } => SetName::SourceRanges(network.length()),
            Element::Hairpin(_) => SetName::Hairpin,
        }
    }

    pub fn frontend(&self) -> Option<Frontend> {
        match self {
            Element::Served { frontend, .. }
            | Element::Member { frontend, .. }
            | Element::Affinity { frontend, .. }
            | Element::SourceRange { frontend, .. }
            | Element::Endpoint { frontend, .. } => Some(*frontend),
            Element::NodeAddress(_) | Element::ClusterIp(_) | Element::Hairpin(_) => None,
        }
    }
}

impl Step {
    /// What comes or goes, if it is an element.
    pub fn element(&self) -> Option<&Element> {
        match self {
            Step::Add(element) | Step::Delete(element) => Some(element),
            _ => None,
        }
    }

    pub fn family(&self) -> IpFamily {
        match self {
            Step::CreateTable(ruleset) | Step::RewriteChain(_, ruleset) => ruleset.family,
            Step::DeleteTable(family)
            | Step::CreateSet(family, _)
            | Step::FlushChain(family, _)
            | Step::DeleteChain(family, _)
            | Step::DeleteSet(family, _) => *family,
            Step::WriteAffinity(key, _) | Step::DeleteAffinity(key) => key.family,
            Step::Add(element) | Step::Delete(element) => element.family(),
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::CreateTable(ruleset) => {
                let (family, chains) = (ruleset.family, ruleset.chains.len());
                let sets = SetName::all(family).count();
                write!(f, "create the {family} table {TABLE} with its {chains} chains and {sets} sets")
            }
            Step::DeleteTable(family) => write!(f, "delete the {family} table {TABLE}"),
            Step::CreateSet(family, set) => write!(f, "create the {family} set {set}"),
            Step::RewriteChain(chain, ruleset) => write!(f, "rewrite the {} chain {chain}", ruleset.family),
            Step::FlushChain(family, chain) => {
                write!(f, "empty the {family} chain {chain}, which is not ours")
            }
            Step::DeleteChain(family, chain) => {
                write!(f, "delete the {family} chain {chain}, which is not ours")
            }
            Step::DeleteSet(family, set) => write!(f, "delete the {family} set {set}, which is not ours"),
            Step::WriteAffinity(key, chain) => match chain.endpoints.as_slice() {
                [] => write!(f, "empty the {} chain {key}", key.family),
                endpoints => {
                    let (count, seconds) = (endpoints.len(), chain.timeout);
                    let plural = if count == 1 { "" } else { "s" };
                    write!(f, "write the {} chain {key}: ", key.family)?;
                    write!(f, "keep clients for {seconds} s at one of {count} endpoint{plural}")
                }
            },
            Step::DeleteAffinity(key) => write!(f, "delete the {} chain {key}", key.family),
            Step::Add(element) => element.fmt_added(f),
            Step::Delete(element) => element.fmt_deleted(f),
        }
    }
}

impl Element {
    fn fmt_added(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Served { frontend, label } => write!(f, "serve {frontend} for {label}"),
            Element::Member { frontend, group } => match group {
                Group::Served => write!(f, "serve {frontend}"),
                Group::External => write!(f, "masquerade connections to {frontend}"),
                Group::ExternalLocal => write!(f, "keep outside connections to {frontend} on this node"),
                Group::Reject => write!(f, "refuse connections to {frontend}: it has no endpoint"),
                Group::Drop => write!(f, "drop connections to {frontend}: no endpoint on this node"),
                Group::Firewalled => write!(f, "let named networks alone reach {frontend}"),
                Group::Count(pool, class) => {
                    let (plural, local) = (if class.slots() == 1 { "" } else { "s" }, on_this_node(*pool));
                    match class.least() == class.slots() {
                        true => write!(f, "spread {frontend} over {} endpoint{plural}{local}", class.slots()),
                        false => {
                            let (least, most) = (class.least(), class.slots());
                            write!(f, "spread {frontend} over {least} to {most} endpoints{local}")
                        }
                    }
                }
            },
            Element::Endpoint { frontend, pool, index, target } => {
                write!(f, "send {frontend} #{index}{} to {target}", on_this_node(*pool))
            }
            Element::Affinity { frontend, pool, chain } => {
                write!(f, "keep clients of {frontend} at their endpoint{}: {chain}", on_this_node(*pool))
            }
            Element::NodeAddress(ip) => write!(f, "answer NodePorts on {ip}"),
            Element::ClusterIp(ip) => write!(f, "refuse connections to other ports of {ip}"),
            Element::SourceRange { frontend, network } => {
                write!(f, "let clients in {network} reach {frontend}")
            }
            Element::Hairpin(Hairpin { target, protocol }) => {
                write!(f, "masquerade connections of {target}/{protocol} to itself")
            }
        }
    }

    fn fmt_deleted(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Element::Served { frontend, label } => write!(f, "no longer serve {frontend} for {label}"),
            Element::Endpoint { frontend, pool, index, target } => {
                write!(f, "no longer send {frontend} #{index}{} to {target}", on_this_node(*pool))
            }
            Element::Member { frontend, group: Group::Reject } => write!(f, "no longer refuse {frontend}"),
            Element::Member { frontend, group: Group::Drop } => write!(f, "no longer drop {frontend}"),
            other => {
                f.write_str("no longer ")?;
                other.fmt_added(f)
            }
        }
    }
}

fn on_this_node(pool: Pool) -> &'static str {
    match pool {
        Pool::Cluster => "",
        Pool::Local => " on this node",
    }
}
