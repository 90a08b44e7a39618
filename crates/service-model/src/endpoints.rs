//! EndpointSlices: the addresses behind a Service.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use crate::{IpFamily, NodeName, ObjectName, Protocol, ServiceName};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointPort {
    /// Equals the Service port's name; empty for the unnamed one.
    pub name: Box<str>,
    pub protocol: Protocol,
    pub port: u16,
}

/// One endpoint. A slice's endpoint has several addresses by type, but only the first counts
/// (KEP-752; kube-proxy's EndpointSliceCache).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    pub address: IpAddr,
    pub node: Option<NodeName>,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// Apart, since few have any and there are many endpoints.
    pub hints: Option<Box<Hints>>,
}

/// Which clients an endpoint is meant for (`hints` in an EndpointSlice).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// `forZones`
    pub zones: Vec<Arc<str>>,
    /// `forNodes`
    pub nodes: Vec<NodeName>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: ObjectName,
    /// From the label `kubernetes.io/service-name`.
    pub service: ServiceName,
    pub family: IpFamily,
    pub ports: Vec<EndpointPort>,
    pub endpoints: Vec<Endpoint>,
    /// When that happened of which the slice tells (annotation
    /// `endpoints.kubernetes.io/last-change-trigger-time`), where the source was asked for it. Whoever
    /// measures takes it out before the World keeps the slice.
    pub triggered: Option<SystemTime>,
}

impl Endpoint {
    /// A ready endpoint on no particular node.
    pub fn ready(address: IpAddr) -> Self {
        Self { address, node: None, ready: true, serving: true, terminating: false, hints: None }
    }

    /// `hints.forZones`
    pub fn zone_hints(&self) -> &[Arc<str>] {
        self.hints.as_ref().map_or(&[], |hints| &hints.zones)
    }

    /// `hints.forNodes`
    pub fn node_hints(&self) -> &[NodeName] {
        self.hints.as_ref().map_or(&[], |hints| &hints.nodes)
    }
}
