//! Rates.

use super::Wire;
use crate::wire::{Attrs, Writer, be32, be64};

const NFTA_LIMIT_RATE: u16 = 1;
const NFTA_LIMIT_UNIT: u16 = 2;
const NFTA_LIMIT_BURST: u16 = 3;
const NFTA_LIMIT_TYPE: u16 = 4;
const NFTA_LIMIT_FLAGS: u16 = 5;
const NFT_LIMIT_PKTS: u32 = 0;
const NFT_LIMIT_F_INV: u32 = 1;

/// The time in which a [`Limit`]'s rate is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum LimitUnit {
    Second,
    Minute,
    Hour,
    Day,
    Week,
}

/// As the kernel wants them: seconds.
const UNITS: [(LimitUnit, u32); 5] = [
    (LimitUnit::Second, 1),
    (LimitUnit::Minute, 60),
    (LimitUnit::Hour, 3600),
    (LimitUnit::Day, 86_400),
    (LimitUnit::Week, 604_800),
];

/// Lets `rate` packets a `unit` go on; the rule ends here for the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// Packets a unit.
    pub rate: u64,
    /// The unit.
    pub unit: LimitUnit,
    /// Packets above the rate that may come at once; the kernel reads 0 as 5, which is
    /// what a dump then shows.
    pub burst: u32,
    /// Go on for the packets *above* the rate instead.
    pub over: bool,
}

impl Wire for Limit {
    const NAME: &'static str = "limit";

    fn encode(&self, w: &mut Writer) {
        w.u64(NFTA_LIMIT_RATE, self.rate);
        w.u64(NFTA_LIMIT_UNIT, u64::from(super::number(&UNITS, self.unit)));
        w.u32(NFTA_LIMIT_BURST, self.burst);
        w.u32(NFTA_LIMIT_TYPE, NFT_LIMIT_PKTS);
        w.u32(NFTA_LIMIT_FLAGS, if self.over { NFT_LIMIT_F_INV } else { 0 });
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut rate, mut unit, mut burst, mut flags) = (None, None, 0, 0);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_LIMIT_RATE => rate = be64(value),
                NFTA_LIMIT_UNIT => unit = super::named_number(&UNITS, u32::try_from(be64(value)?).ok()?),
                NFTA_LIMIT_BURST => burst = be32(value)?,
                NFTA_LIMIT_TYPE if be32(value)? != NFT_LIMIT_PKTS => return None,
                NFTA_LIMIT_FLAGS => flags = be32(value)?,
                _ => {}
            }
        }
        Some(Self { rate: rate?, unit: unit?, burst, over: flags & NFT_LIMIT_F_INV != 0 })
    }
}
