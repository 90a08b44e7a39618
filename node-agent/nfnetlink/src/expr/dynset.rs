//! Sets that packets fill.

use std::time::Duration;

use super::Wire;
use crate::data_types::Reg;
use crate::wire::{Attrs, Writer, be32, be64, millis, name};

const NFTA_DYNSET_SET_NAME: u16 = 1;
const NFTA_DYNSET_OP: u16 = 3;
const NFTA_DYNSET_SREG_KEY: u16 = 4;
const NFTA_DYNSET_SREG_DATA: u16 = 5;
const NFTA_DYNSET_TIMEOUT: u16 = 6;
const NFTA_DYNSET_EXPR: u16 = 7;
const NFTA_DYNSET_FLAGS: u16 = 9;
const NFTA_DYNSET_EXPRESSIONS: u16 = 10;

/// What to do to the set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DynsetOp {
    /// Add the element unless it is there.
    Add,
    /// Add the element, or begin its timeout anew.
    Update,
    /// Remove the element.
    Delete,
}

const OPS: [(DynsetOp, u32); 3] = [(DynsetOp::Add, 0), (DynsetOp::Update, 1), (DynsetOp::Delete, 2)];

/// Changes a set with the flag `dynamic` by the key at `sreg_key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dynset {
    /// Name of the set.
    pub set: String,
    /// What to do.
    pub op: DynsetOp,
    /// Where the key begins.
    pub sreg_key: Reg,
    /// Where the datum begins, for a map. `nft` 1.0.6 cannot list a rule in which that
    /// register was loaded by a map lookup.
    pub sreg_data: Option<Reg>,
    /// The element's timeout in whole milliseconds; zero means the set's own.
    pub timeout: Duration,
}

impl Wire for Dynset {
    const NAME: &'static str = "dynset";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_DYNSET_SREG_KEY, self.sreg_key.number());
        if let Some(data) = self.sreg_data {
            w.u32(NFTA_DYNSET_SREG_DATA, data.number());
        }
        w.u32(NFTA_DYNSET_OP, super::number(&OPS, self.op));
        if !self.timeout.is_zero() {
            w.u64(NFTA_DYNSET_TIMEOUT, millis(self.timeout));
        }
        w.name(NFTA_DYNSET_SET_NAME, &self.set);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut set, mut op, mut sreg_key, mut sreg_data) = (None, None, None, None);
        let mut timeout = Duration::ZERO;
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_DYNSET_SET_NAME => set = name(value),
                NFTA_DYNSET_OP => op = super::named_number(&OPS, be32(value)?),
                NFTA_DYNSET_SREG_KEY => sreg_key = Reg::read(value),
                NFTA_DYNSET_SREG_DATA => sreg_data = Some(Reg::read(value)?),
                NFTA_DYNSET_TIMEOUT => timeout = Duration::from_millis(be64(value)?),
                // Expressions in elements and inversion are not ours.
                NFTA_DYNSET_EXPR | NFTA_DYNSET_EXPRESSIONS => return None,
                NFTA_DYNSET_FLAGS if be32(value)? != 0 => return None,
                _ => {}
            }
        }
        Some(Self { set: set?.to_owned(), op: op?, sreg_key: sreg_key?, sreg_data, timeout })
    }
}
