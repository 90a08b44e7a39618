//! Masks.

use super::Wire;
use crate::data_types::{Reg, Value, decode_value, encode_value};
use crate::wire::{Attrs, Writer, be32};

const NFTA_BITWISE_SREG: u16 = 1;
const NFTA_BITWISE_DREG: u16 = 2;
const NFTA_BITWISE_LEN: u16 = 3;
const NFTA_BITWISE_MASK: u16 = 4;
const NFTA_BITWISE_XOR: u16 = 5;
const NFTA_BITWISE_OP: u16 = 6;

/// `dreg = (sreg & mask) ^ xor`, over as many bytes as the two operands have: the
/// same number. "Or" with `v` is mask `!v`, xor `v`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bitwise {
    /// From where.
    pub sreg: Reg,
    /// Where to.
    pub dreg: Reg,
    /// Bits to keep.
    pub mask: Value,
    /// Bits to flip afterwards.
    pub xor: Value,
}

impl Wire for Bitwise {
    const NAME: &'static str = "bitwise";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_BITWISE_SREG, self.sreg.number());
        w.u32(NFTA_BITWISE_DREG, self.dreg.number());
        w.u32(NFTA_BITWISE_LEN, self.mask.bytes().len() as u32);
        encode_value(NFTA_BITWISE_MASK, self.mask.bytes(), w);
        encode_value(NFTA_BITWISE_XOR, self.xor.bytes(), w);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut sreg, mut dreg, mut mask, mut xor) = (None, None, None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_BITWISE_SREG => sreg = Reg::read(value),
                NFTA_BITWISE_DREG => dreg = Reg::read(value),
                NFTA_BITWISE_MASK => mask = decode_value(value),
                NFTA_BITWISE_XOR => xor = decode_value(value),
                // Shifts and two-register operations.
                NFTA_BITWISE_OP if be32(value)? != 0 => return None,
                _ => {}
            }
        }
        Some(Self { sreg: sreg?, dreg: dreg?, mask: mask?, xor: xor? })
    }
}
