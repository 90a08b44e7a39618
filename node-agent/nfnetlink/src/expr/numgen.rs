//! Numbers: random or counting.

use super::Wire;
use crate::data_types::Reg;
use crate::wire::{Attrs, Writer, be32};

const NFTA_NG_DREG: u16 = 1;
const NFTA_NG_MODULUS: u16 = 2;
const NFTA_NG_TYPE: u16 = 3;
const NFTA_NG_OFFSET: u16 = 4;

/// How the next number is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NumgenKind {
    /// One more than the last.
    Incremental,
    /// Uniformly random.
    Random,
}

const KINDS: [(NumgenKind, u32); 2] = [(NumgenKind::Incremental, 0), (NumgenKind::Random, 1)];

impl NumgenKind {
    pub(crate) fn number(self) -> u32 {
        super::number(&KINDS, self)
    }

    pub(crate) fn from_number(number: u32) -> Option<Self> {
        super::named_number(&KINDS, number)
    }
}

/// Loads a number from `offset` up to but not including `offset + modulus`, as 32 bits
/// in host byte order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Numgen {
    /// How.
    pub kind: NumgenKind,
    /// How many different numbers; not zero.
    pub modulus: u32,
    /// The smallest number.
    pub offset: u32,
    /// Where to.
    pub dreg: Reg,
}

impl Wire for Numgen {
    const NAME: &'static str = "numgen";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_NG_DREG, self.dreg.number());
        w.u32(NFTA_NG_MODULUS, self.modulus);
        w.u32(NFTA_NG_TYPE, self.kind.number());
        w.u32(NFTA_NG_OFFSET, self.offset);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut dreg, mut modulus, mut method, mut offset) = (None, None, None, 0);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_NG_DREG => dreg = Reg::read(value),
                NFTA_NG_MODULUS => modulus = be32(value),
                NFTA_NG_TYPE => method = NumgenKind::from_number(be32(value)?),
                NFTA_NG_OFFSET => offset = be32(value)?,
                _ => {}
            }
        }
        Some(Self { kind: method?, modulus: modulus?, offset, dreg: dreg? })
    }
}
