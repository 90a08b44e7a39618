//! Feeds a `service_model::World` from an API server, or from YAML files.
//!
//! ```text
//! API server ─list+watch─▶ wire (slim structs) ─▶ convert ─▶ Change ─▶ one bounded channel
//! dir:PATH   ─read───────▶ wire ───────────────▶ convert ─▶ Change ─┘
//! ```
//!
//! The wire structs name only the fields that somebody decides from, so the rest of an object is
//! never allocated. A relist is passed on as `ListStarted … ListEnded`: the World marks and
//! sweeps, and no second copy is held.

mod changes;
mod client;
mod config;
mod convert;
mod dir;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod known;
mod metrics;
mod requests;
mod retry;
mod watch;
pub mod wire;

#[cfg(test)]
mod tests;

pub use changes::Listing;
pub use client::{client, client_to};
pub use config::{Nodes, WatchConfig};
pub use convert::{Detail, parse_ip};
pub use dir::read_dir;
pub use metrics::WatchMetrics;
pub use watch::{Options, ParseSourceError, Source, watch, watch_kind, watch_with};
