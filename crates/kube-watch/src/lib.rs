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

mod client;
mod convert;
mod dir;
mod watch;
pub mod wire;

pub use client::client;
pub use convert::{Detail, endpoint_slice, node, parse_ip, service};
pub use dir::read_dir;
pub use watch::{Listing, Nodes, ParseSourceError, Source, WatchConfig, watch, watch_kind};
