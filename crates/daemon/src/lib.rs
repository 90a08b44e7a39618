//! What every Fairlead program needs around its work: logs, signals, probes, metrics and owned tasks.

pub mod http;
pub mod log;
pub mod metrics;
mod ready;
pub mod routes;
mod shutdown;
mod tasks;

pub use ready::{Readiness, ReadyToken};
pub use shutdown::Shutdown;
pub use tasks::Tasks;
