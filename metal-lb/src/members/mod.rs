//! Which hosts of the tier are alive, and which of them owns each VIP.
//!
//! ```text
//! probe answers (XDP of the peer), hellos (its control process), carrier, document, time
//!        ──▶ machine::Members ──▶ owner of each VIP, and why
//! ```

pub mod hello;
mod machine;
pub mod transport;

pub use machine::{Members, Ownership};
