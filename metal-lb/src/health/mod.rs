//! Whether a node takes new connections: asked once per node and check, however many listeners
//! share it.

mod machine;
mod prober;

pub use machine::{Machine, Verdict};
pub use prober::{Check, Checks, HealthReport, run};
