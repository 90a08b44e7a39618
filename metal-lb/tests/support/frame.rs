//! Frames, built and taken apart by hand; every checksum computed in full.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by tests and an example; each uses its own part"
)]

use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb::desired::Mac;

pub const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// A parsed, or to be built, frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub to: Mac,
    pub from: Mac,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub protocol: u8,
    pub flags: u8,
    pub ttl: u8,
    pub udp_checksum: bool,
}

impl Frame {
    pub fn tcp(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Self {
        Self {
            to: HOST_MAC,
            from: CLIENT_MAC,
            source,
            destination,
            protocol: 6,
            flags,
            ttl: 64,
            udp_checksum: true,
        }
    }

    pub fn udp(source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self { protocol: 17, flags: 0, ..Self::tcp(source, destination, 0) }
    }

    /// The node's answer to what it was sent.
    pub fn answer(&self, to: Mac) -> Self {
        Self { to, from: self.to, source: self.destination, destination: self.source, ttl: 64, ..*self }
    }

    pub fn build(&self) -> Vec<u8> {
        // An odd length, so that the last byte of a checksum stands alone.
        let payload: &[u8] = b"hello";
        let mut l4 = Vec::new();
        l4.extend(self.source.port().to_be_bytes());
        l4.extend(self.destination.port().to_be_bytes());
        if self.protocol == 6 {
            l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            l4.extend((8 + payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(payload);
        let checksum_at = if self.protocol == 6 { 16 } else { 6 };
        if self.protocol == 6 || self.udp_checksum {
            let sum = l4_checksum(&self.source, &self.destination, self.protocol, &l4);
            l4[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut ip = vec![0x45, 0];
        ip.extend((20 + l4.len() as u16).to_be_bytes());
        ip.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol, 0, 0]);
        ip.extend(self.source.ip().octets());
        ip.extend(self.destination.ip().octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&self.to.0[..], &self.from.0[..], &[8, 0], &ip, &l4].concat()
    }

    /// Reads a frame back; every checksum is recomputed in full.
    pub fn parse(frame: &[u8]) -> Self {
        let (ip, l4) = (&frame[14..34], &frame[34..]);
        assert_eq!(checksum(ip), 0, "the IP checksum is wrong");
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let parsed = Self {
            to: Mac(frame[..6].try_into().unwrap()),
            from: Mac(frame[6..12].try_into().unwrap()),
            source: SocketAddrV4::new(address(12), port(0)),
            destination: SocketAddrV4::new(address(16), port(2)),
            protocol: ip[9],
            flags: if ip[9] == 6 { l4[13] } else { 0 },
            ttl: ip[8],
            udp_checksum: ip[9] == 6 || l4[6..8] != [0, 0],
        };
        if parsed.udp_checksum {
            let length = usize::from(u16::from_be_bytes([ip[2], ip[3]])) - 20;
            let sum = l4_checksum(&parsed.source, &parsed.destination, parsed.protocol, &l4[..length]);
            assert_eq!(sum, 0, "the TCP or UDP checksum is wrong");
        }
        parsed
    }
}

pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn l4_checksum(source: &SocketAddrV4, destination: &SocketAddrV4, protocol: u8, l4: &[u8]) -> u16 {
    let mut pseudo = [&source.ip().octets()[..], &destination.ip().octets()[..], &[0, protocol]].concat();
    pseudo.extend((l4.len() as u16).to_be_bytes());
    pseudo.extend(l4);
    checksum(&pseudo)
}
