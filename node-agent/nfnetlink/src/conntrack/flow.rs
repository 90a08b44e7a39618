//! An entry of the connection table, on the wire and off it.
//!
//! ```text
//! CTA_TUPLE_ORIG  { CTA_TUPLE_IP { src, dst }  CTA_TUPLE_PROTO { number, ports }  [CTA_TUPLE_ZONE] }
//! CTA_TUPLE_REPLY { … }      with DNAT, its source is where the connection really goes
//! CTA_ID  [CTA_ZONE]  …
//! ```

use std::net::{IpAddr, SocketAddr};

use crate::data_types::Family;
use crate::uapi::*;
use crate::wire::{Attrs, Message, Writer};

/// One direction of a connection. Ports are 0 where the protocol has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tuple {
    /// Who sends.
    pub source: SocketAddr,
    /// To whom.
    pub destination: SocketAddr,
    /// `IPPROTO_*`
    pub protocol: u8,
}

/// In which table of connections an entry stands, where a host has several (`ct zone`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Zone {
    /// Zone 0, as without any.
    #[default]
    Usual,
    /// Another one, for both directions.
    Both(u16),
    /// Another one, for the original direction alone.
    Original(u16),
}

/// An entry of the connection table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Flow {
    /// As the first packet was sent.
    pub original: Tuple,
    /// As its answers come: another source than the original's destination is DNAT.
    pub reply: Tuple,
    /// Its table.
    pub zone: Zone,
    /// The kernel's mark of this very entry: one that is made anew has another.
    pub id: u32,
}

impl Tuple {
    /// A UDP datagram's.
    pub fn udp(source: SocketAddr, destination: SocketAddr) -> Self {
        Self { source, destination, protocol: libc::IPPROTO_UDP as u8 }
    }

    /// The same connection, the other way.
    pub fn reversed(self) -> Self {
        Self { source: self.destination, destination: self.source, ..self }
    }

    pub(super) fn family(&self) -> Family {
        if self.source.is_ipv4() { Family::Ip } else { Family::Ip6 }
    }

    pub(super) fn encode(&self, kind: u16, zone: Zone, w: &mut Writer) {
        w.nest(kind, |w| {
            w.nest(CTA_TUPLE_IP, |w| {
                for (ip, v4, v6) in [
                    (self.source.ip(), CTA_IP_V4_SRC, CTA_IP_V6_SRC),
                    (self.destination.ip(), CTA_IP_V4_DST, CTA_IP_V6_DST),
                ] {
                    match ip {
                        IpAddr::V4(ip) => w.attr(v4, &ip.octets()),
                        IpAddr::V6(ip) => w.attr(v6, &ip.octets()),
                    }
                }
            });
            w.nest(CTA_TUPLE_PROTO, |w| {
                w.attr(CTA_PROTO_NUM, &[self.protocol]);
                w.attr(CTA_PROTO_SRC_PORT, &self.source.port().to_be_bytes());
                w.attr(CTA_PROTO_DST_PORT, &self.destination.port().to_be_bytes());
            });
            if let Zone::Original(zone) = zone {
                w.attr(CTA_TUPLE_ZONE, &zone.to_be_bytes());
            }
        });
    }

    /// `None` if it has no addresses, or of two families. The number is its zone's.
    fn decode(bytes: &[u8]) -> Option<(Self, u16)> {
        let (mut source, mut destination, mut protocol, mut zone) = (None, None, None, 0);
        let mut ports = (0, 0);
        for (kind, value) in Attrs::new(bytes) {
            match kind {
                CTA_TUPLE_IP => {
                    for (kind, value) in Attrs::new(value) {
                        match kind {
                            CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = address(value),
                            CTA_IP_V4_DST | CTA_IP_V6_DST => destination = address(value),
                            _ => {}
                        }
                    }
                }
                CTA_TUPLE_PROTO => {
                    for (kind, value) in Attrs::new(value) {
                        match kind {
                            CTA_PROTO_NUM => protocol = value.first().copied(),
                            CTA_PROTO_SRC_PORT => ports.0 = be16(value)?,
                            CTA_PROTO_DST_PORT => ports.1 = be16(value)?,
                            _ => {}
                        }
                    }
                }
                CTA_TUPLE_ZONE => zone = be16(value)?,
                _ => {}
            }
        }
        let (source, destination) = (source?, destination?);
        let tuple = Self {
            source: SocketAddr::new(source, ports.0),
            destination: SocketAddr::new(destination, ports.1),
            protocol: protocol?,
        };
        (source.is_ipv4() == destination.is_ipv4()).then_some((tuple, zone))
    }
}

impl Flow {
    /// Whether its destination is translated.
    pub fn has_dnat(&self) -> bool {
        self.reply.source != self.original.destination
    }

    /// What names the entry, this very one, in a question about it. By its answers: the original
    /// direction and the id come again when the client sends on and the kernel reuses the memory, but
    /// then to another endpoint.
    pub(super) fn encode_name(&self, w: &mut Writer) {
        self.reply.encode(CTA_TUPLE_REPLY, Zone::Usual, w);
        if let Zone::Both(zone) = self.zone {
            w.attr(CTA_ZONE, &zone.to_be_bytes());
        }
        w.u32(CTA_ID, self.id);
    }

    /// `None` for anything but an entry of IPv4 or IPv6.
    pub(crate) fn decode(message: &Message<'_>) -> Option<Self> {
        if message.kind != NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW {
            return None;
        }
        let (mut original, mut reply, mut both, mut id) = (None, None, 0, None);
        for (kind, value) in message.attrs() {
            match kind {
                CTA_TUPLE_ORIG => original = Tuple::decode(value),
                CTA_TUPLE_REPLY => reply = Tuple::decode(value),
                CTA_ZONE => both = be16(value)?,
                CTA_ID => id = crate::wire::be32(value),
                _ => {}
            }
        }
        let ((original, of_original), (reply, _)) = (original?, reply?);
        let zone = match (both, of_original) {
            (0, 0) => Zone::Usual,
            (0, zone) => Zone::Original(zone),
            (zone, _) => Zone::Both(zone),
        };
        Some(Self { original, reply, zone, id: id? })
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}

fn be16(payload: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(payload.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Messages;
    use proptest::prelude::*;

    fn written(flow: &Flow) -> Vec<u8> {
        let mut w = Writer::default();
        let kind = NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_NEW;
        let open = w.message(kind, 0, 1, flow.original.family().number(), 0);
        flow.original.encode(CTA_TUPLE_ORIG, flow.zone, &mut w);
        flow.encode_name(&mut w);
        w.close_message(open);
        w.buffer
    }

    fn decoded(bytes: &[u8]) -> Option<Flow> {
        Messages::new(bytes).next().and_then(|message| Flow::decode(&message))
    }

    /// A DNS query through a ClusterIP, as kernel 6.18 listed it.
    const CAPTURED: [&str; 5] = [
        "c0000000000122000100000029350000020000003400018014000180080001007f000001080002000a60000a",
        "1c0002800500010011000000060002009c40000006000300003500003400028014000180080001000af40105",
        "080002007f0000011c00028005000100110000000600020014e90000060003009c4000000800030000000008",
        "080008000000000008000c006208c4a108000b000000000108000700000000781c0018800800010000000000",
        "08000200000000000800030000000000",
    ];

    #[test]
    fn a_captured_entry_is_read() {
        let text = CAPTURED.concat();
        let byte = |at| u8::from_str_radix(&text[at..at + 2], 16).unwrap();
        let bytes: Vec<u8> = (0..text.len()).step_by(2).map(byte).collect();
        let flow = decoded(&bytes).unwrap();
        let client = "127.0.0.1:40000".parse().unwrap();
        assert_eq!(flow.original, Tuple::udp(client, "10.96.0.10:53".parse().unwrap()));
        assert_eq!(flow.reply, Tuple::udp("10.244.1.5:5353".parse().unwrap(), client));
        assert!(flow.has_dnat());
        assert_eq!((flow.zone, flow.id), (Zone::Usual, 0x6208_c4a1));
        for length in 0..bytes.len() {
            assert_eq!(decoded(&bytes[..length]), None, "cut after {length}");
        }
    }

    prop_compose! {
        fn flow()(v4: bool, ips: [u128; 4], ports: [u16; 4], protocol: u8, id: u32, zone in 0_u16..3, number in 1..u16::MAX) -> Flow {
            let address = |n: usize| {
                let ip = if v4 { IpAddr::V4((ips[n] as u32).into()) } else { IpAddr::V6(ips[n].into()) };
                SocketAddr::new(ip, ports[n])
            };
            let tuple = |n| Tuple { source: address(n), destination: address(n + 1), protocol };
            let zone = [Zone::Usual, Zone::Both(number), Zone::Original(number)][usize::from(zone)];
            Flow { original: tuple(0), reply: tuple(2), zone, id }
        }
    }

    proptest! {
        #[test]
        fn a_flow_reads_back_as_it_was_written(flow in flow()) {
            prop_assert_eq!(decoded(&written(&flow)), Some(flow));
        }

        #[test]
        fn damaged_entries_are_read_without_panic(
            flow in flow(),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..12),
            keep in any::<prop::sample::Index>(),
        ) {
            let mut bytes = written(&flow);
            for (at, byte) in damage {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(keep.index(bytes.len()) + 1);
            crate::fuzzing::datagram(&bytes);
        }
    }
}
