//! Address ranges of a pool: CIDRs and `a-b`, as MetalLB writes them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// An inclusive range of addresses of one family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range {
    first: IpAddr,
    last: IpAddr,
}

const NOT_UNICAST: [Range; 6] = [
    Range::v4([0, 0, 0, 0], [0, 255, 255, 255]),
    Range::v4([127, 0, 0, 0], [127, 255, 255, 255]),
    Range::v4([224, 0, 0, 0], [239, 255, 255, 255]),
    Range::v4([255, 255, 255, 255], [255, 255, 255, 255]),
    Range::v6(0, 1),
    Range::v6(0xff << 120, u128::MAX),
];

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRangeError {
    #[error("{0:?} is neither a CIDR such as 192.0.2.0/24 nor a range such as 192.0.2.10-192.0.2.20")]
    Neither(String),
    #[error("{0:?} mixes address families")]
    Families(String),
    #[error("{0:?} ends before it begins")]
    Backwards(String),
    #[error("{0:?} holds addresses that no Service can have ({1}): write it without them")]
    NotUnicast(String, Range),
}

impl Range {
    const fn v4(first: [u8; 4], last: [u8; 4]) -> Self {
        Self {
            first: IpAddr::V4(Ipv4Addr::from_octets(first)),
            last: IpAddr::V4(Ipv4Addr::from_octets(last)),
        }
    }

    const fn v6(first: u128, last: u128) -> Self {
        Self { first: IpAddr::V6(Ipv6Addr::from_bits(first)), last: IpAddr::V6(Ipv6Addr::from_bits(last)) }
    }

    pub fn contains(&self, ip: IpAddr) -> bool {
        self.is_ipv4() == ip.is_ipv4() && self.first <= ip && ip <= self.last
    }

    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    pub fn overlaps(&self, other: &Self) -> bool {
        self.is_ipv4() == other.is_ipv4() && self.first <= other.last && other.first <= self.last
    }

    /// How many addresses.
    pub fn size(&self) -> u128 {
        number(self.last) - number(self.first) + 1
    }

    /// In ascending order.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.is_ipv4();
        (number(self.first)..=number(self.last)).map(move |n| address(n, v4))
    }

    /// How many of its addresses are [`is_buggy`].
    pub fn buggy(&self) -> u128 {
        if !self.is_ipv4() {
            return 0;
        }
        let up_to = |end: u128| (end + 256) / 256 + (end + 1) / 256;
        let (first, last) = (number(self.first), number(self.last));
        up_to(last) - up_to(first - 1)
    }
}

/// Whether the address can belong to one host: unspecified, loopback, multicast and broadcast ones
/// cannot.
pub fn is_unicast(ip: IpAddr) -> bool {
    !NOT_UNICAST.iter().any(|range| range.contains(ip))
}

/// An IPv4 address that ends in `.0` or `.255`: some old devices drop packets for it.
pub fn is_buggy(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255))
}

fn number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(v4) => u128::from(v4.to_bits()),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

fn address(number: u128, v4: bool) -> IpAddr {
    if v4 {
        let bits = u32::try_from(number).expect("an IPv4 range holds 32-bit numbers");
        IpAddr::V4(Ipv4Addr::from_bits(bits))
    } else {
        IpAddr::V6(Ipv6Addr::from_bits(number))
    }
}

impl FromStr for Range {
    type Err = ParseRangeError;

    fn from_str(text: &str) -> Result<Self, ParseRangeError> {
        let text = text.trim();
        let neither = || ParseRangeError::Neither(text.to_owned());
        let (first, last): (IpAddr, IpAddr) = match text.split_once('-') {
            Some((first, last)) => {
                (first.trim().parse().map_err(|_| neither())?, last.trim().parse().map_err(|_| neither())?)
            }
            None => {
                let net: IpNet = text.parse().map_err(|_| neither())?;
                (net.network(), net.broadcast())
            }
        };
        if first.is_ipv4() != last.is_ipv4() {
            return Err(ParseRangeError::Families(text.to_owned()));
        }
        if last < first {
            return Err(ParseRangeError::Backwards(text.to_owned()));
        }
        let range = Self { first, last };
        match NOT_UNICAST.iter().find(|r| r.overlaps(&range)) {
            Some(other) => Err(ParseRangeError::NotUnicast(text.to_owned(), *other)),
            None => Ok(range),
        }
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cidrs_and_ranges_are_read_and_counted() {
        let table = [
            ("192.0.2.0/24", "192.0.2.0-192.0.2.255", 256, 2),
            ("192.0.2.7/24", "192.0.2.0-192.0.2.255", 256, 2),
            ("172.30.0.200-172.30.0.239", "172.30.0.200-172.30.0.239", 40, 0),
            (" 10.0.0.250 - 10.0.1.1 ", "10.0.0.250-10.0.1.1", 8, 2),
            ("10.0.0.1/32", "10.0.0.1-10.0.0.1", 1, 0),
            ("10.0.0.0/8", "10.0.0.0-10.255.255.255", 1 << 24, 1 << 17),
            ("fd00::/120", "fd00::-fd00::ff", 256, 0),
        ];
        for (text, shown, size, buggy) in table {
            let range: Range = text.parse().unwrap();
            assert_eq!((range.to_string().as_str(), range.size(), range.buggy()), (shown, size, buggy));
        }
    }

    #[test]
    fn buggy_addresses_are_counted_as_they_are_recognised() {
        let range: Range = "10.0.0.255-10.0.3.0".parse().unwrap();
        assert_eq!(range.buggy(), range.iter().filter(|ip| is_buggy(*ip)).count() as u128);
    }

    #[test]
    fn a_malformed_range_says_what_is_wrong_with_it() {
        let table = [
            ("", "neither"),
            ("192.0.2.0", "neither"),
            ("192.0.2.0/33", "neither"),
            ("a-b", "neither"),
            ("192.0.2.9-192.0.2.1", "ends before"),
            ("192.0.2.9-fd00::1", "mixes"),
            ("0.0.0.0/0", "no Service can have"),
            ("126.0.0.0-128.0.0.0", "127.0.0.0-127.255.255.255"),
            ("239.1.1.1-239.1.1.2", "no Service can have"),
            ("255.255.255.255/32", "no Service can have"),
            ("::/0", "no Service can have"),
            ("ff02::/64", "no Service can have"),
        ];
        for (text, part) in table {
            let error = text.parse::<Range>().unwrap_err().to_string();
            assert!(error.contains(part), "{text:?}: {error}");
        }
    }
}
