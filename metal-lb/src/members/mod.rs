//! Which hosts of the tier are alive, and which of them owns each VIP.
//!
//! ```text
//! probe answers (XDP of the peer), hellos (its control process), carrier, document, time
//!        ──▶ machine::Members ──▶ owner of each VIP, and why
//! ```

pub mod hello;
mod machine;
pub mod transport;

use metal_lb_api::Generation;

pub use machine::{Claims, Members, Ownership, RESUMED};

/// What this host has programmed: what it tells its peers and the network.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// `None` before the first document.
    pub generation: Option<Generation>,
    pub claims: Claims,
}
