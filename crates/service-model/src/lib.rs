//! The Kubernetes objects that Fairlead decides from, parsed and indexed.
//!
//! This crate knows no API client, no wire format and no runtime: a source (see the
//! `kube-watch` crate) turns watch events into [`Change`]s, a program applies them to its
//! own [`World`], and every plan reads the `World` as a snapshot.
//!
//! ```text
//! Change ──▶ World::apply ──▶ indexed objects + dirty keys ──▶ plan(key, …)
//! ```

mod endpoints;
mod name;
mod node;
mod service;
mod service_cidr;
mod world;

pub use endpoints::{Endpoint, EndpointPort, EndpointSlice, Hints};
pub use name::{InvalidName, NodeName, ObjectName, ServiceName};
pub use node::{Node, NodeAddress, NodeAddressKind, NodeReadiness, Taint, TaintEffect};
pub use service::{
    AffinityScope, Ingress, IngressPort, IpFamily, IpFamilyPolicy, IpMode, ParseAffinityScopeError,
    ParseProtocolError, Protocol, Service, ServicePort, ServiceType, SessionAffinity, TrafficPolicy,
};
pub use service_cidr::ServiceCidr;
pub use world::{Change, Dirty, Key, Kind, Object, World};
