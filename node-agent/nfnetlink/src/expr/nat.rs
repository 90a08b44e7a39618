//! Address translation.

use super::Wire;
use crate::data_types::{Family, Reg};
use crate::wire::{Attrs, Writer, be32};

const NFTA_NAT_TYPE: u16 = 1;
const NFTA_NAT_FAMILY: u16 = 2;
const NFTA_NAT_REG_ADDR_MIN: u16 = 3;
const NFTA_NAT_REG_ADDR_MAX: u16 = 4;
const NFTA_NAT_REG_PROTO_MIN: u16 = 5;
const NFTA_NAT_REG_PROTO_MAX: u16 = 6;
const NFTA_NAT_FLAGS: u16 = 7;
const NFTA_MASQ_FLAGS: u16 = 1;
const NFTA_MASQ_REG_PROTO_MIN: u16 = 2;

/// Which end of the connection is translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NatKind {
    /// The source; in postrouting and input.
    Source,
    /// The destination; in prerouting and output.
    Destination,
}

const KINDS: [(NatKind, u32); 2] = [(NatKind::Source, 0), (NatKind::Destination, 1)];

/// How the kernel chooses among tuples (`NF_NAT_RANGE_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NatFlags(u32);

impl NatFlags {
    /// Keep the port where possible.
    pub const NONE: Self = Self(0);
    /// Random port, hashed.
    pub const RANDOM: Self = Self(4);
    /// The same address for all connections of a client.
    pub const PERSISTENT: Self = Self(8);
    /// Random port, from the random generator: `fully-random`.
    pub const FULLY_RANDOM: Self = Self(16);

    /// What the kernel derives from the registers (NF_NAT_RANGE_MAP_IPS,
    /// _PROTO_SPECIFIED) and shows in dumps.
    const DERIVED: u32 = 3;

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    fn read(payload: &[u8]) -> Option<Self> {
        Some(Self(be32(payload)? & !Self::DERIVED))
    }
}

/// Translates an end of the connection to the address and port in registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nat {
    /// Which end.
    pub kind: NatKind,
    /// [`Family::Ip`] or [`Family::Ip6`].
    pub family: Family,
    /// Where the address is; `None` translates the port alone.
    pub address: Option<Reg>,
    /// Where the port is; `None` keeps the port.
    pub port: Option<Reg>,
    /// How a tuple is chosen.
    pub flags: NatFlags,
}

impl Wire for Nat {
    const NAME: &'static str = "nat";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_NAT_TYPE, super::number(&KINDS, self.kind));
        w.u32(NFTA_NAT_FAMILY, u32::from(self.family.number()));
        if let Some(address) = self.address {
            w.u32(NFTA_NAT_REG_ADDR_MIN, address.number());
        }
        if let Some(port) = self.port {
            w.u32(NFTA_NAT_REG_PROTO_MIN, port.number());
        }
        if self.flags != NatFlags::NONE {
            w.u32(NFTA_NAT_FLAGS, self.flags.0);
        }
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut side, mut family, mut flags) = (None, None, NatFlags::NONE);
        let (mut address, mut address_max, mut port, mut port_max) = (None, None, None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_NAT_TYPE => side = super::named_number(&KINDS, be32(value)?),
                NFTA_NAT_FAMILY => family = Family::from_number(u8::try_from(be32(value)?).ok()?),
                NFTA_NAT_REG_ADDR_MIN => address = Some(Reg::read(value)?),
                NFTA_NAT_REG_ADDR_MAX => address_max = Some(Reg::read(value)?),
                NFTA_NAT_REG_PROTO_MIN => port = Some(Reg::read(value)?),
                NFTA_NAT_REG_PROTO_MAX => port_max = Some(Reg::read(value)?),
                NFTA_NAT_FLAGS => flags = NatFlags::read(value)?,
                _ => {}
            }
        }
        // The kernel lists the end of a range even where there is none.
        let is_range = |first: Option<Reg>, last: Option<Reg>| last.is_some() && last != first;
        if is_range(address, address_max) || is_range(port, port_max) {
            return None;
        }
        Some(Self { kind: side?, family: family?, address, port, flags })
    }
}

/// Translates the source to the address of the interface that the packet leaves by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Masquerade {
    /// How the source port is chosen.
    pub flags: NatFlags,
}

impl Wire for Masquerade {
    const NAME: &'static str = "masq";

    fn encode(&self, w: &mut Writer) {
        if self.flags != NatFlags::NONE {
            w.u32(NFTA_MASQ_FLAGS, self.flags.0);
        }
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let mut flags = NatFlags::NONE;
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_MASQ_FLAGS => flags = NatFlags::read(value)?,
                NFTA_MASQ_REG_PROTO_MIN => return None,
                _ => {}
            }
        }
        Some(Self { flags })
    }
}
