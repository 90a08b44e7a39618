//! Refusals that the sender hears of.

use super::Wire;
use crate::wire::{Attrs, Writer, be32};

const NFTA_REJECT_TYPE: u16 = 1;
const NFTA_REJECT_ICMP_CODE: u16 = 2;
const NFT_REJECT_ICMP_UNREACH: u32 = 0;
const NFT_REJECT_TCP_RST: u32 = 1;
const NFT_REJECT_ICMPX_UNREACH: u32 = 2;

/// The reason in an ICMP error of either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum IcmpxCode {
    NoRoute,
    PortUnreachable,
    HostUnreachable,
    AdminProhibited,
}

const CODES: [(IcmpxCode, u32); 4] = [
    (IcmpxCode::NoRoute, 0),
    (IcmpxCode::PortUnreachable, 1),
    (IcmpxCode::HostUnreachable, 2),
    (IcmpxCode::AdminProhibited, 3),
];

/// Drops the packet and says so. Not in prerouting before Linux 5.9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reject {
    /// ICMP or ICMPv6 "destination unreachable" with a code of the table's own family;
    /// see [`Reject::port_unreachable`].
    Icmp(u8),
    /// The same, with a code that means the same in both families: for `inet` tables.
    Icmpx(IcmpxCode),
    /// A TCP reset; only where the rule has matched TCP.
    TcpReset,
}

impl Reject {
    /// What `nft` writes for a plain `reject` in an `ip` table.
    pub const PORT_UNREACHABLE: Self = Self::Icmp(3);
    /// What `nft` writes for a plain `reject` in an `ip6` table.
    pub const PORT_UNREACHABLE_V6: Self = Self::Icmp(4);

    /// "Port unreachable" for a table of this family.
    pub fn port_unreachable(family: crate::Family) -> Self {
        match family {
            crate::Family::Ip => Self::PORT_UNREACHABLE,
            crate::Family::Ip6 => Self::PORT_UNREACHABLE_V6,
            _ => Self::Icmpx(IcmpxCode::PortUnreachable),
        }
    }
}

impl Wire for Reject {
    const NAME: &'static str = "reject";

    fn encode(&self, w: &mut Writer) {
        let (kind, code) = match *self {
            Self::Icmp(code) => (NFT_REJECT_ICMP_UNREACH, code),
            Self::Icmpx(code) => (NFT_REJECT_ICMPX_UNREACH, super::number(&CODES, code) as u8),
            Self::TcpReset => (NFT_REJECT_TCP_RST, 0),
        };
        w.u32(NFTA_REJECT_TYPE, kind);
        w.attr(NFTA_REJECT_ICMP_CODE, &[code]);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut method, mut code) = (None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_REJECT_TYPE => method = be32(value),
                NFTA_REJECT_ICMP_CODE => code = value.first().copied(),
                _ => {}
            }
        }
        match method? {
            NFT_REJECT_ICMP_UNREACH => Some(Self::Icmp(code?)),
            NFT_REJECT_ICMPX_UNREACH => Some(Self::Icmpx(super::named_number(&CODES, u32::from(code?))?)),
            NFT_REJECT_TCP_RST => Some(Self::TcpReset),
            _ => None,
        }
    }
}
