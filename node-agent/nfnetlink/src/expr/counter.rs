//! Counters.

use super::Wire;
use crate::wire::{Attrs, Writer, be64};

const NFTA_COUNTER_BYTES: u16 = 1;
const NFTA_COUNTER_PACKETS: u16 = 2;

/// Counts the packets that come this far. To compare rules regardless of traffic, set
/// both numbers to zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counter {
    /// Packets so far; when written, the number to begin with.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Wire for Counter {
    const NAME: &'static str = "counter";

    fn encode(&self, w: &mut Writer) {
        w.u64(NFTA_COUNTER_BYTES, self.bytes);
        w.u64(NFTA_COUNTER_PACKETS, self.packets);
    }

    fn decode(data: &[u8]) -> Option<Self> {
        let (mut packets, mut bytes) = (None, None);
        for (kind, value) in Attrs::new(data) {
            match kind {
                NFTA_COUNTER_BYTES => bytes = be64(value),
                NFTA_COUNTER_PACKETS => packets = be64(value),
                _ => {}
            }
        }
        Some(Self { packets: packets?, bytes: bytes? })
    }
}
