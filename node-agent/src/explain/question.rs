//! What is asked: a source, and an address with a port.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::str::FromStr;

use service_model::{IpFamily, Protocol};

use crate::local::InterfaceName;
use crate::nft::evaluate::Packet;
use crate::nft::mirror::Mirror;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    pub source: Place,
    pub to: Destination,
    /// By which the packet comes in, if it matters.
    pub interface: Option<InterfaceName>,
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Address(IpAddr),
    /// This node, by an address of its own.
    Node,
}

/// `ADDRESS:PORT`, `[ADDRESS]:PORT` or `node:PORT`, and perhaps `/PROTOCOL`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Destination {
    pub place: Place,
    pub port: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseQuestionError {
    #[error(
        "{0:?} is no address: write an IP such as 10.244.1.5 or fd00::5, or \"node\" for this host itself"
    )]
    Place(String),
    #[error("{0:?} has no port: write {0}:80, or {0}:53/udp")]
    NoPort(String),
    #[error("{0:?} has no port: write [{0}]:80, or [{0}]:53/udp")]
    NoPortV6(String),
    #[error("an IPv6 address with a port needs brackets: write [{0}]:{1}")]
    Brackets(String, String),
    #[error("{0:?} is no port: write a number from 1 to 65535 behind the colon, as in 10.96.0.10:53/udp")]
    Port(String),
    #[error("{0:?} is no protocol: write /tcp, /udp or /sctp, or nothing for tcp")]
    Protocol(String),
    #[error("{0} has no connection with {1}: write both as IPv4 or both as IPv6")]
    Families(IpAddr, IpAddr),
    #[error("this host has no {0} address but loopback: write the address that you mean")]
    NoAddress(IpFamily),
}

impl Question {
    /// The first packet of such a connection on this host.
    ///
    /// # Errors
    /// Ends of different families, or a node without an address.
    pub fn packet(self, mirror: &Mirror, host: &BTreeSet<IpAddr>) -> Result<Packet, ParseQuestionError> {
        let Destination { place, port, protocol } = self.to;
        let family = match (self.source, place) {
            (Place::Address(ip), _) | (_, Place::Address(ip)) => IpFamily::of(ip),
            (Place::Node, Place::Node) => IpFamily::V4,
        };
        let fitting = |ip: &&IpAddr| IpFamily::of(**ip) == family && !ip.is_loopback();
        let own = || host.iter().find(fitting).copied().ok_or(ParseQuestionError::NoAddress(family));
        let destination = match place {
            Place::Address(ip) => ip,
            // An address that answers NodePorts, for that is what is meant.
            Place::Node => mirror.node_addresses.iter().find(fitting).copied().map_or_else(own, Ok)?,
        };
        let source = match self.source {
            Place::Address(ip) => ip,
            // What this host sends to itself has one address at both ends.
            Place::Node if host.contains(&destination) => destination,
            Place::Node => own()?,
        };
        if IpFamily::of(source) != IpFamily::of(destination) {
            return Err(ParseQuestionError::Families(source, destination));
        }
        // What this host sends comes in by none.
        let interface = self.interface.filter(|_| !host.contains(&source));
        Ok(Packet { source, destination, protocol, port, interface })
    }
}

impl FromStr for Place {
    type Err = ParseQuestionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.eq_ignore_ascii_case("node") {
            return Ok(Place::Node);
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        let ip = bare.parse().map_err(|_| ParseQuestionError::Place(text.to_owned()))?;
        Ok(Place::Address(ip))
    }
}

impl FromStr for Destination {
    type Err = ParseQuestionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (rest, protocol) = match text.split_once('/') {
            None => (text, Protocol::Tcp),
            Some((rest, name)) => {
                let protocol = name.to_ascii_uppercase().parse();
                (rest, protocol.map_err(|_| ParseQuestionError::Protocol(name.to_owned()))?)
            }
        };
        let (place, port) = split_port(rest)?;
        let number = port.parse().ok().filter(|port| *port != 0);
        let port = number.ok_or_else(|| ParseQuestionError::Port(port.to_owned()))?;
        Ok(Self { place: place.parse()?, port, protocol })
    }
}

fn split_port(text: &str) -> Result<(&str, &str), ParseQuestionError> {
    if text.starts_with('[') {
        return match text.split_once("]:") {
            Some((place, port)) => Ok((&place[1..], port)),
            None => Err(ParseQuestionError::NoPortV6(text.trim_matches(['[', ']']).to_owned())),
        };
    }
    let Some((place, port)) = text.rsplit_once(':') else {
        return Err(ParseQuestionError::NoPort(text.to_owned()));
    };
    match place.contains(':') {
        false => Ok((place, port)),
        // The last group may have been meant as the port.
        true if place.parse::<IpAddr>().is_ok() => {
            Err(ParseQuestionError::Brackets(place.to_owned(), port.to_owned()))
        }
        true => Err(ParseQuestionError::NoPortV6(text.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(text: &str) -> Result<Destination, String> {
        text.parse().map_err(|error: ParseQuestionError| error.to_string())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn destinations_are_written_as_everywhere() {
        let address = |ip: &str| Place::Address(ip.parse().unwrap());
        for (text, place, port, protocol) in [
            ("10.96.0.10:80", address("10.96.0.10"), 80, Protocol::Tcp),
            ("10.96.0.10:53/udp", address("10.96.0.10"), 53, Protocol::Udp),
            ("[fd00::a]:53/SCTP", address("fd00::a"), 53, Protocol::Sctp),
            ("node:30080", Place::Node, 30_080, Protocol::Tcp),
        ] {
            assert_eq!(to(text), Ok(Destination { place, port, protocol }), "{text}");
        }
    }

    #[test]
    fn a_mistake_is_answered_with_what_to_write() {
        for (text, hint) in [
            ("10.96.0.10", "write 10.96.0.10:80, or 10.96.0.10:53/udp"),
            ("node", "write node:80"),
            ("fd00:0:0:0:0:0:0:a", "write [fd00:0:0:0:0:0:0:a]:80"),
            ("fd00::a:80", "write [fd00::a]:80"),
            ("[fd00::a]", "write [fd00::a]:80"),
            ("10.96.0.10:http", "\"http\" is no port"),
            ("10.96.0.10:0", "\"0\" is no port"),
            ("10.96.0.10:80/icmp", "write /tcp, /udp or /sctp"),
            ("web:80", "write an IP such as 10.244.1.5"),
        ] {
            let error = to(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn node_is_an_address_of_this_host_in_the_others_family() {
        let host = BTreeSet::from(["127.0.0.1", "172.30.0.11", "fd00:30::11"].map(ip));
        let mut mirror = Mirror::default();
        mirror.node_addresses.insert(ip("172.30.0.12"));
        let packet = |source: &str, to: &str| {
            let question =
                Question { source: source.parse().unwrap(), to: to.parse().unwrap(), interface: None };
            question.packet(&mirror, &host).map(|p| (p.source, p.destination))
        };
        assert_eq!(packet("node", "10.96.0.1:80"), Ok((ip("172.30.0.11"), ip("10.96.0.1"))));
        assert_eq!(packet("node", "[fd00:96::1]:80"), Ok((ip("fd00:30::11"), ip("fd00:96::1"))));
        assert_eq!(packet("203.0.113.5", "node:30080"), Ok((ip("203.0.113.5"), ip("172.30.0.12"))));
        assert_eq!(packet("node", "127.0.0.1:30080"), Ok((ip("127.0.0.1"), ip("127.0.0.1"))));
        let error = packet("203.0.113.5", "[fd00:96::1]:80").unwrap_err();
        assert_eq!(error, ParseQuestionError::Families(ip("203.0.113.5"), ip("fd00:96::1")));
    }
}
