//! The node's connection table: UDP entries that lead to endpoints which no longer serve are ended,
//! and its limits are set ([`sysctls`]).
//!
//! ```text
//! agent ─Feed─▶ Reconciler ─▶ Served: what should be ─▶ Cleaner ─▶ kernel
//!        what changed         in a thread of its own: a commit never waits for it
//! ```
//!
//! A UDP flow keeps the endpoint of its first packet for as long as packets come, also when that
//! endpoint is gone: a client that asks from one source port (a DNS resolver) would hear nothing for
//! ever. TCP and SCTP end by themselves and are never touched.

mod cleaner;
mod pace;
mod reconciler;
mod served;
pub mod sysctls;

pub use cleaner::Cleaner;
pub use reconciler::{Feed, Reconciler};
pub use served::{Served, UdpPort, UdpService};
