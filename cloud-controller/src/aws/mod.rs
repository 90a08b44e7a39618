//! The AWS provider: a network load balancer for each Service.
//!
//! ```text
//! Service, nodes ─desired─▶ Desired ┐
//!                                   ├─plan─▶ Step… ─apply─▶ Api (the SDK, or the fake)
//! account ─observe─▶ Snapshot ──────┘                        │
//!              ▲──────────── patched by our own writes ──────┘
//! ```
//!
//! A reconcile reads the snapshot, never AWS: one that changes nothing makes no call.

pub mod annotations;
pub mod api;
pub mod apply;
pub mod budget;
pub mod desired;
pub mod fake;
pub mod names;
pub mod observe;
pub mod operation;
pub mod plan;
pub mod provider;
pub mod resources;
pub mod sdk;
pub mod security_groups;
pub mod snapshot;
pub mod step;
pub mod subnets;

pub use provider::Provider;

/// AWS Load Balancer Controller's, so that either finds what the other left.
pub const FINALIZER: &str = "service.k8s.aws/resources";

/// Where and for whom the provider works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// `--cluster-name`; in tags and in the hash of names.
    pub cluster: String,
    /// `--aws-region`
    pub region: String,
    /// `--aws-vpc-id`
    pub vpc: String,
    /// `--aws-endpoint`, instead of the public ones; `http://` is taken at its word.
    pub endpoint: Option<String>,
}
