//! The metal provider: an address from a pool, on a tier of `metal-lb` hosts.

pub mod client;
pub mod crds;
pub mod document;
pub mod hosts;
pub mod ipam;
pub mod listeners;
pub mod member_key;
pub mod plan;
pub mod pool;
pub mod pools;
pub mod provider;
pub mod push;
pub mod ranges;
pub mod request;
pub mod tier;
pub mod tls;

pub use provider::{Provider, Setup};
