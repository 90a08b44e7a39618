//! Sets and maps.

use super::Wire;
use crate::data_types::Reg;
use crate::wire::{Attrs, Writer, be32, name};

const NFTA_LOOKUP_SET: u16 = 1;
const NFTA_LOOKUP_SREG: u16 = 2;
const NFTA_LOOKUP_DREG: u16 = 3;
const NFTA_LOOKUP_FLAGS: u16 = 5;
const NFT_LOOKUP_F_INV: u32 = 1;

/// Looks the key at `sreg` up; the rule ends here if it is not found (or, inverted, if
/// it is).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lookup {
    /// Name of a set or map of the rule's table; one that the same batch creates earlier
    /// will do.
    pub set: String,
    /// Where the key begins.
    pub sreg: Reg,
    /// Where the element's datum goes, if a map is asked for it; [`Reg::VERDICT`] for a map
    /// of verdicts.
    pub dreg: Option<Reg>,
    /// Go on when the key is *not* found.
    pub inverted: bool,
}

impl Wire for Lookup {
    const NAME: &'static str = "lookup";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_LOOKUP_SREG, self.sreg.number());
        if let Some(dreg) = self.dreg {
            w.u32(NFTA_LOOKUP_DREG, dreg.number());
        }
        w.name(NFTA_LOOKUP_SET, &self.set);
        if self.inverted {
            w.u32(NFTA_LOOKUP_FLAGS, NFT_LOOKUP_F_INV);
        }
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut set, mut sreg, mut dreg, mut flags) = (None, None, None, 0);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_LOOKUP_SET => set = name(value),
                NFTA_LOOKUP_SREG => sreg = Reg::read(value),
                NFTA_LOOKUP_DREG => dreg = Some(Reg::read(value)?),
                NFTA_LOOKUP_FLAGS => flags = be32(value)?,
                _ => {}
            }
        }
        let inverted = flags & NFT_LOOKUP_F_INV != 0;
        Some(Self { set: set?.to_owned(), sreg: sreg?, dreg, inverted })
    }
}
