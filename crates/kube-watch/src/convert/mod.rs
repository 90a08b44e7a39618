//! Wire structs to the model. Pure: what could not be read is handed back, not logged.
//!
//! Tolerant where kube-proxy is: what an older API server let in (addresses with leading zeros,
//! white space in source ranges) is read as it was meant; an entry that cannot be read is left
//! out, and the rest of the object counts.

mod endpoint_slice;
mod names;
mod node;
mod parse;
mod service;
mod service_cidr;

pub(crate) use endpoint_slice::endpoint_slice;
pub(crate) use names::Names;
pub(crate) use node::node;
pub(crate) use parse::Problems;
pub use parse::parse_ip;
pub(crate) use service::service;
pub(crate) use service_cidr::service_cidr;

/// How much of an object is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// What packets are routed by: no labels (but a node's), annotations (but what one says of session
    /// affinity) or finalizers; no Service of another proxy, no headless Service and none of its
    /// EndpointSlices.
    Dataplane,
    Full,
}

/// A Service with this label belongs to another proxy (KEP-2447).
pub(crate) const OTHER_PROXY_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// EndpointSlices with this label serve DNS only; there is nothing to route.
pub(crate) const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";
