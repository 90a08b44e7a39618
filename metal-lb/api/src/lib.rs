//! The document that drives a `metal-lb` host, and what a host says of itself.
//!
//! The whole desired state travels in one [`Config`] with a [`Generation`]; deltas never do.
//! [`Config::parse`] is the only way in: it answers a document that cannot be wrong, or the JSON
//! path of the first mistake. This crate has no runtime and no I/O, so that the controller which
//! writes the document and the host which obeys it agree by construction.

mod config;
mod error;
mod generation;
mod state;

pub use config::{
    CURRENT_SCHEMA, Config, HealthCheck, Host, Listener, ListenerKey, MemberKey, NatProtocol, Node, NodeSet,
};
pub use error::ConfigError;
pub use generation::Generation;
pub use state::{HostState, ListenerState, TargetHealth, TargetState, VipState};
