//! The networks from which a load balancer's address is reached, as they stand in the kernel.
//!
//! A hash set has no ranges. So there is one for each length of a prefix, and a rule for each masks the packet's
//! source and looks it up. Not every length has a set, which keeps the rules few: of IPv4 those that are multiples of
//! four bits, of IPv6 those of eight. Any other network is written as the networks of the next length that it is made of.
//!
//! ```text
//! 203.0.113.0/25  is written as  203.0.113.0/28, 203.0.113.16/28, … 203.0.113.112/28  in source-ranges-28
//! ```

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use service_model::IpFamily;

/// How many bits of an address a network fixes, where there is a set for that. Above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrefixLength(u8);

/// A network whose length has a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceNetwork(IpNet);

/// Bits between two lengths.
fn step(family: IpFamily) -> u8 {
    match family {
        IpFamily::V4 => 4,
        IpFamily::V6 => 8,
    }
}

impl PrefixLength {
    /// The longest first: many ranges are single addresses.
    pub fn all(family: IpFamily) -> impl Iterator<Item = Self> {
        let most = match family {
            IpFamily::V4 => 32,
            IpFamily::V6 => 128,
        };
        let step = step(family);
        (step..=most).rev().step_by(step.into()).map(Self)
    }

    pub fn bits(self) -> u8 {
        self.0
    }

    /// The network of this length that the address is in; the address itself, where it has fewer bits.
    pub fn network_of(self, ip: IpAddr) -> SourceNetwork {
        SourceNetwork(IpNet::new(ip, self.0).unwrap_or_else(|_| ip.into()).trunc())
    }
}

impl SourceNetwork {
    /// Those that the network is made of.
    pub fn within(network: IpNet) -> impl Iterator<Item = Self> {
        let step = step(IpFamily::of(network.addr()));
        let bits = network.prefix_len().next_multiple_of(step).max(step);
        network.subnets(bits).into_iter().flatten().map(Self)
    }

    /// The networks that these make up, as few as can be.
    pub fn join<'a>(networks: impl IntoIterator<Item = &'a Self>) -> Vec<IpNet> {
        let networks: Vec<IpNet> = networks.into_iter().map(|network| network.0).collect();
        IpNet::aggregate(&networks)
    }

    pub fn length(self) -> PrefixLength {
        PrefixLength(self.0.prefix_len())
    }

    /// The first address.
    pub fn address(self) -> IpAddr {
        self.0.network()
    }
}

impl fmt::Display for SourceNetwork {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_written_as_those_of_the_next_length_that_has_a_set() {
        for (network, length, count) in [
            ("0.0.0.0/0", 4, 16),
            ("10.0.0.0/8", 8, 1),
            ("172.16.0.0/12", 12, 1),
            ("203.0.113.0/25", 28, 8),
            ("203.0.113.128/27", 28, 2),
            ("192.0.2.7/32", 32, 1),
            ("2001:db8::/29", 32, 8),
            ("2001:db8::/64", 64, 1),
            ("2001:db8::8/126", 128, 4),
            ("2001:db8::/60", 64, 16),
            ("::/0", 8, 256),
        ] {
            let network: IpNet = network.parse().unwrap();
            let parts: Vec<SourceNetwork> = SourceNetwork::within(network).collect();
            assert_eq!(parts.len(), count, "{network}");
            let family = IpFamily::of(network.addr());
            assert!(PrefixLength::all(family).any(|of| of == parts[0].length()), "{network}");
            assert!(parts.iter().all(|part| part.length().bits() == length), "{network}");
            assert!(parts.iter().all(|part| part.length().network_of(part.address()) == *part));
            assert_eq!(SourceNetwork::join(&parts), [network]);
        }
    }

    #[test]
    fn an_address_is_in_one_network_of_each_length() {
        let ip: IpAddr = "203.0.113.77".parse().unwrap();
        let networks: Vec<String> =
            PrefixLength::all(IpFamily::V4).map(|length| length.network_of(ip).to_string()).collect();
        let expected = ["203.0.113.77/32", "203.0.113.64/28", "203.0.113.0/24", "203.0.112.0/20"];
        assert_eq!(networks[..4], expected);
        assert_eq!(networks.last().unwrap(), "192.0.0.0/4");
        let longest = PrefixLength::all(IpFamily::V6).next().unwrap();
        assert_eq!(longest.network_of(ip).to_string(), networks[0]);
    }
}
