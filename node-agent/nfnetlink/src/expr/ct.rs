//! Properties of the packet's connection.

use super::Wire;
use crate::data_types::Reg;
use crate::wire::{Attrs, Writer, be32};

const NFTA_CT_DREG: u16 = 1;
const NFTA_CT_KEY: u16 = 2;
const NFTA_CT_DIRECTION: u16 = 3;

/// Which property.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum CtKey {
    /// A bit of [`CtState`].
    State,
    /// 0 in the original direction, 1 in the reply direction; one byte.
    Direction,
    /// Bits of [`CtStatus`].
    Status,
    /// The connection mark.
    Mark,
}

const KEYS: [(CtKey, u32); 4] =
    [(CtKey::State, 0), (CtKey::Direction, 1), (CtKey::Status, 2), (CtKey::Mark, 3)];

/// The bits of `ct state` (`NF_CT_STATE_BIT`).
#[derive(Debug, Clone, Copy)]
pub struct CtState;

impl CtState {
    /// Belongs to no connection and cannot start one.
    pub const INVALID: u32 = 1;
    /// Of a connection that has seen packets both ways.
    pub const ESTABLISHED: u32 = 2;
    /// Starts a connection that another one announced, or an ICMP error.
    pub const RELATED: u32 = 4;
    /// Starts a connection.
    pub const NEW: u32 = 8;
    /// Exempt from tracking.
    pub const UNTRACKED: u32 = 64;
}

/// The bits of `ct status` (`IPS_*`).
#[derive(Debug, Clone, Copy)]
pub struct CtStatus;

impl CtStatus {
    /// A reply was seen.
    pub const SEEN_REPLY: u32 = 2;
    /// Never expires early.
    pub const ASSURED: u32 = 4;
    /// The source is translated.
    pub const SNAT: u32 = 16;
    /// The destination is translated.
    pub const DNAT: u32 = 32;
}

/// Loads `key` into `dreg`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ct {
    /// What to load.
    pub key: CtKey,
    /// Where to.
    pub dreg: Reg,
}

impl Wire for Ct {
    const NAME: &'static str = "ct";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_CT_KEY, super::number(&KEYS, self.key));
        w.u32(NFTA_CT_DREG, self.dreg.number());
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut key, mut dreg) = (None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_CT_KEY => key = super::named_number(&KEYS, be32(value)?),
                NFTA_CT_DREG => dreg = Reg::read(value),
                NFTA_CT_DIRECTION => return None,
                _ => {}
            }
        }
        Some(Self { key: key?, dreg: dreg? })
    }
}
