//! The L4 balancer: takes packets for VIPs in XDP, spreads them over nodes, and decides with its
//! peers which host answers for which VIP.
//!
//! ```text
//! document (server, store, file) ─┐
//! health ─ neighbours ─ members ──┴─▶ engine: resolve ─▶ Desired ─▶ plan ─▶ xdp::apply ─▶ maps
//!                                                └──────▶ HostState (GET /v1/state)
//! ```

pub mod args;
pub mod desired;
pub mod document_file;
pub mod engine;
pub mod health;
pub mod l2;
pub mod members;
pub mod metrics;
pub mod neighbours;
pub mod observed;
pub mod plan;
pub mod programmed;
pub mod resolve;
pub mod run;
pub mod server;
pub mod state;
pub mod store;
pub mod tls;
pub mod xdp;
