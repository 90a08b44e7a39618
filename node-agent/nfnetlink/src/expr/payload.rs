//! Loading bytes of the packet.

use super::Wire;
use crate::data_types::Reg;
use crate::wire::{Attrs, Writer, be32};

const NFTA_PAYLOAD_DREG: u16 = 1;
const NFTA_PAYLOAD_BASE: u16 = 2;
const NFTA_PAYLOAD_OFFSET: u16 = 3;
const NFTA_PAYLOAD_LEN: u16 = 4;
const NFTA_PAYLOAD_SREG: u16 = 5;

/// Which header an offset counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PayloadBase {
    /// Link layer.
    Link,
    /// IPv4 or IPv6.
    Network,
    /// TCP, UDP, SCTP, …: absent in later fragments, where the rule then ends.
    Transport,
}

const BASES: [(PayloadBase, u32); 3] =
    [(PayloadBase::Link, 0), (PayloadBase::Network, 1), (PayloadBase::Transport, 2)];

/// Loads `len` bytes at `offset` of a header into `dreg` and the words after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Payload {
    /// The header.
    pub base: PayloadBase,
    /// Bytes from the header's start.
    pub offset: u32,
    /// Bytes to load.
    pub len: u32,
    /// Where to.
    pub dreg: Reg,
}

impl Wire for Payload {
    const NAME: &'static str = "payload";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_PAYLOAD_DREG, self.dreg.number());
        w.u32(NFTA_PAYLOAD_BASE, super::number(&BASES, self.base));
        w.u32(NFTA_PAYLOAD_OFFSET, self.offset);
        w.u32(NFTA_PAYLOAD_LEN, self.len);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut dreg, mut base, mut offset, mut len) = (None, None, None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_PAYLOAD_DREG => dreg = Reg::read(value),
                NFTA_PAYLOAD_BASE => base = super::named_number(&BASES, be32(value)?),
                NFTA_PAYLOAD_OFFSET => offset = be32(value),
                NFTA_PAYLOAD_LEN => len = be32(value),
                NFTA_PAYLOAD_SREG => return None,
                _ => {}
            }
        }
        Some(Self { base: base?, offset: offset?, len: len?, dreg: dreg? })
    }
}
