//! Properties of the packet outside its bytes.

use super::Wire;
use crate::data_types::Reg;
use crate::wire::{Attrs, Writer, be32};

const NFTA_META_DREG: u16 = 1;
const NFTA_META_KEY: u16 = 2;
const NFTA_META_SREG: u16 = 3;

/// Which property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetaKey {
    /// The packet mark, 32 bits, host byte order.
    Mark,
    /// Index of the incoming interface.
    Iif,
    /// Index of the outgoing interface.
    Oif,
    /// Name of the incoming interface, 16 bytes padded with NUL.
    IifName,
    /// Name of the outgoing interface.
    OifName,
    /// `NFPROTO_*` of the packet, one byte.
    Nfproto,
    /// IP protocol number of the transport header, one byte.
    L4proto,
    /// Unicast, multicast, … (`PACKET_*`), one byte.
    PktType,
    /// Length in bytes.
    Len,
    /// Ethertype.
    Protocol,
}

pub(super) const KEYS: [(MetaKey, u32); 10] = [
    (MetaKey::Len, 0),
    (MetaKey::Protocol, 1),
    (MetaKey::Mark, 3),
    (MetaKey::Iif, 4),
    (MetaKey::Oif, 5),
    (MetaKey::IifName, 6),
    (MetaKey::OifName, 7),
    (MetaKey::Nfproto, 15),
    (MetaKey::L4proto, 16),
    (MetaKey::PktType, 19),
];

impl MetaKey {
    pub(crate) fn number(self) -> u32 {
        super::number(&KEYS, self)
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        super::named_number(&KEYS, number)
    }
}

/// Loads `key` into `dreg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// What to load.
    pub key: MetaKey,
    /// Where to.
    pub dreg: Reg,
}

/// Sets `key` from `sreg`; only the mark and the packet type can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MetaSet {
    /// What to set.
    pub key: MetaKey,
    /// From where.
    pub sreg: Reg,
}

impl Wire for Meta {
    const NAME: &'static str = "meta";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_META_KEY, self.key.number());
        w.u32(NFTA_META_DREG, self.dreg.number());
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (key, register) = decode(data, NFTA_META_DREG)?;
        Some(Self { key, dreg: register })
    }
}

impl Wire for MetaSet {
    const NAME: &'static str = "meta";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_META_KEY, self.key.number());
        w.u32(NFTA_META_SREG, self.sreg.number());
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (key, register) = decode(data, NFTA_META_SREG)?;
        Some(Self { key, sreg: register })
    }
}

fn decode(data: &[u8], register_attr: u16) -> Option<(MetaKey, Reg)> {
    let (mut key, mut register) = (None, None);
    for (kind, value) in Attrs::new(data) {
        match kind {
            NFTA_META_KEY => key = MetaKey::from_number(be32(value)?),
            kind if kind == register_attr => register = Reg::read(value),
            _ => {}
        }
    }
    Some((key?, register?))
}
