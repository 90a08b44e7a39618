//! What a host tells of itself.

use std::collections::BTreeMap;

use metal_lb_api::HostState;

use crate::desired::ListenerId;
use crate::observed::{ObservedListener, ObservedTarget};

/// What the packet path does: for people, and with the numbers that its counters have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programmed {
    pub state: HostState,
    pub listeners: BTreeMap<ListenerId, ObservedListener>,
    pub targets: BTreeMap<u32, ObservedTarget>,
    /// The other hosts, and whether each is alive.
    pub peers: BTreeMap<String, bool>,
}
