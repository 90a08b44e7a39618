//! Comparisons.

use super::Wire;
use crate::data_types::{Reg, Value, decode_value, encode_value};
use crate::wire::{Attrs, Writer, be32};

const NFTA_CMP_SREG: u16 = 1;
const NFTA_CMP_OP: u16 = 2;
const NFTA_CMP_DATA: u16 = 3;

/// How to compare; the orders are those of the bytes as big-endian numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum CmpOp {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

const OPS: [(CmpOp, u32); 6] = [
    (CmpOp::Equal, 0),
    (CmpOp::NotEqual, 1),
    (CmpOp::Less, 2),
    (CmpOp::LessOrEqual, 3),
    (CmpOp::Greater, 4),
    (CmpOp::GreaterOrEqual, 5),
];

/// Compares the first `value.bytes().len()` bytes of `sreg`; the rule ends here unless
/// the comparison holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cmp {
    /// The left side.
    pub sreg: Reg,
    /// How to compare.
    pub op: CmpOp,
    /// The right side.
    pub value: Value,
}

impl Wire for Cmp {
    const NAME: &'static str = "cmp";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_CMP_SREG, self.sreg.number());
        w.u32(NFTA_CMP_OP, super::number(&OPS, self.op));
        encode_value(NFTA_CMP_DATA, self.value.bytes(), w);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut sreg, mut op, mut operand) = (None, None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_CMP_SREG => sreg = Reg::read(value),
                NFTA_CMP_OP => op = super::named_number(&OPS, be32(value)?),
                NFTA_CMP_DATA => operand = decode_value(value),
                _ => {}
            }
        }
        Some(Self { sreg: sreg?, op: op?, value: operand? })
    }
}
