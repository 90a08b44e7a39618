//! Constants and verdicts.

use super::Wire;
use crate::data_types::{Reg, Value, Verdict, decode_value, encode_value};
use crate::uapi::NFTA_DATA_VERDICT;
use crate::wire::{Attrs, Writer, be32};

const NFTA_IMMEDIATE_DREG: u16 = 1;
const NFTA_IMMEDIATE_DATA: u16 = 2;
const NFT_REG_VERDICT: u32 = 0;

/// Loads a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Immediate {
    /// Where to.
    pub dreg: Reg,
    /// The constant.
    pub value: Value,
}

impl Wire for Immediate {
    const NAME: &'static str = "immediate";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_IMMEDIATE_DREG, self.dreg.number());
        encode_value(NFTA_IMMEDIATE_DATA, self.value.bytes(), w);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut dreg, mut constant) = (None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_IMMEDIATE_DREG => dreg = Reg::read(value),
                NFTA_IMMEDIATE_DATA => constant = decode_value(value),
                _ => {}
            }
        }
        Some(Self { dreg: dreg?, value: constant? })
    }
}

impl Wire for Verdict {
    const NAME: &'static str = "immediate";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_IMMEDIATE_DREG, NFT_REG_VERDICT);
        Verdict::encode(self, NFTA_IMMEDIATE_DATA, w);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        Self::decode_expr(data)
    }
}

impl Verdict {
    /// Reads an immediate expression whose target is the verdict register.
    pub(super) fn decode_expr(data: &[u8]) -> Option<Self> {
        let (mut is_verdict, mut verdict) = (false, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_IMMEDIATE_DREG => is_verdict = be32(value)? == NFT_REG_VERDICT,
                NFTA_IMMEDIATE_DATA => {
                    verdict = Attrs::new(value)
                        .find(|(kind, _)| *kind == NFTA_DATA_VERDICT)
                        .and_then(|(_, value)| Verdict::decode(value));
                }
                _ => {}
            }
        }
        verdict.filter(|_| is_verdict)
    }
}
