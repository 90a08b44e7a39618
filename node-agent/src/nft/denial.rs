//! Why a connection is not let through. Each reason has a chain of its own, which counts the packets
//! and ends them: whatever hook they came by, an operator reads one number.

use std::fmt;

use service_model::Protocol;

use super::ruleset::{Action, Match, Rule};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Denial {
    /// No usable endpoint anywhere.
    NoEndpoints,
    /// Usable endpoints, but none that the traffic policy allows here.
    NoLocalEndpoints,
    /// The client is in none of the networks of `loadBalancerSourceRanges`.
    OutsideSourceRanges,
    /// A ClusterIP, but not one of its ports.
    UndefinedPort,
    /// An address of the Service networks that no Service has.
    UnallocatedAddress,
    /// A NodePort on loopback over a protocol that no proxy serves there.
    OnLoopback(Protocol),
}

/// Where `--nodeport-addresses` names loopback, TCP has a proxy there and these have not.
pub const UNSERVED_ON_LOOPBACK: [Protocol; 2] = [Protocol::Udp, Protocol::Sctp];

impl Denial {
    /// Those that do not depend on the configuration.
    pub const ALWAYS: [Denial; 5] = [
        Denial::NoEndpoints,
        Denial::NoLocalEndpoints,
        Denial::OutsideSourceRanges,
        Denial::UndefinedPort,
        Denial::UnallocatedAddress,
    ];

    /// What happens to the packet: as with kube-proxy, the client is told where it can do nothing
    /// else, and hears nothing where another node or network would have been right.
    pub fn action(self) -> Action {
        match self {
            Denial::NoEndpoints | Denial::UndefinedPort | Denial::OnLoopback(_) => Action::Reject,
            Denial::NoLocalEndpoints | Denial::OutsideSourceRanges | Denial::UnallocatedAddress => {
                Action::Drop
            }
        }
    }

    /// Whether the client is told.
    pub fn is_refusal(self) -> bool {
        self.action() == Action::Reject
    }

    pub(super) fn rules(self) -> Vec<Rule> {
        let mut rules = vec![Rule::always(Action::Count)];
        if self.is_refusal() && !matches!(self, Denial::OnLoopback(_)) {
            rules.push(Rule { matches: vec![Match::Over(Protocol::Tcp)], action: Action::Reset });
        }
        rules.push(Rule::always(self.action()));
        rules
    }
}

/// The end of the kernel's name of the chain, and the label of the metric.
impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Denial::NoEndpoints => f.write_str("no-endpoints"),
            Denial::NoLocalEndpoints => f.write_str("no-local-endpoints"),
            Denial::OutsideSourceRanges => f.write_str("source-ranges"),
            Denial::UndefinedPort => f.write_str("undefined-port"),
            Denial::UnallocatedAddress => f.write_str("unallocated-address"),
            Denial::OnLoopback(protocol) => write!(f, "loopback-{}", protocol.to_string().to_lowercase()),
        }
    }
}
