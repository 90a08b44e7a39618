//! Questions to the routing tables.

use super::Wire;
use crate::data_types::Reg;
use crate::wire::{Attrs, Writer, be32};

const NFTA_FIB_DREG: u16 = 1;
const NFTA_FIB_RESULT: u16 = 2;
const NFTA_FIB_FLAGS: u16 = 3;

/// What a [`Fib`] loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FibResult {
    /// Index of the outgoing interface.
    Oif,
    /// Its name.
    OifName,
    /// The [`AddressType`] of the address.
    AddressType,
}

const RESULTS: [(FibResult, u32); 3] =
    [(FibResult::Oif, 1), (FibResult::OifName, 2), (FibResult::AddressType, 3)];

/// What the routing tables know about an address (`RTN_*`), 32 bits in host byte order.
#[derive(Debug, Clone, Copy)]
pub struct AddressType;

impl AddressType {
    /// Reached through a route.
    pub const UNICAST: u32 = 1;
    /// An address of this host.
    pub const LOCAL: u32 = 2;
    /// A broadcast address.
    pub const BROADCAST: u32 = 3;
    /// A multicast address.
    pub const MULTICAST: u32 = 5;
}

/// Looks up the packet's route and loads a property of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fib {
    /// What to load.
    pub result: FibResult,
    /// `Fib::SADDR`, `Fib::DADDR`, … or-ed.
    pub flags: u32,
    /// Where to.
    pub dreg: Reg,
}

impl Fib {
    /// Look up the source address.
    pub const SADDR: u32 = 1;
    /// Look up the destination address.
    pub const DADDR: u32 = 2;
    /// Take the packet's mark into account.
    pub const MARK: u32 = 4;
    /// Only routes of the incoming interface.
    pub const IIF: u32 = 8;
    /// Only routes of the outgoing interface.
    pub const OIF: u32 = 16;
}

impl Wire for Fib {
    const NAME: &'static str = "fib";

    fn encode(&self, w: &mut Writer) {
        w.u32(NFTA_FIB_FLAGS, self.flags);
        w.u32(NFTA_FIB_RESULT, super::number(&RESULTS, self.result));
        w.u32(NFTA_FIB_DREG, self.dreg.number());
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut dreg, mut result, mut flags) = (None, None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_FIB_DREG => dreg = Reg::read(value),
                NFTA_FIB_RESULT => result = super::named_number(&RESULTS, be32(value)?),
                NFTA_FIB_FLAGS => flags = be32(value),
                _ => {}
            }
        }
        Some(Self { result: result?, flags: flags?, dreg: dreg? })
    }
}
