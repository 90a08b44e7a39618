//! What is watched.

use service_model::{Kind, NodeName};

use crate::Detail;

/// Which Nodes are watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nodes {
    None,
    All,
    One(NodeName),
}

#[derive(Debug, Clone)]
pub struct WatchConfig {
    pub services: bool,
    pub slices: bool,
    pub nodes: Nodes,
    /// An API server that has none, or does not show them (Kubernetes before 1.33, other rights),
    /// counts as one with an empty list.
    pub service_cidrs: bool,
    pub detail: Detail,
}

impl WatchConfig {
    /// The kinds that must have been listed before anything may be decided.
    pub fn kinds(&self) -> Vec<Kind> {
        let nodes = self.nodes != Nodes::None;
        let wanted = [
            (self.services, Kind::Service),
            (self.slices, Kind::EndpointSlice),
            (nodes, Kind::Node),
            (self.service_cidrs, Kind::ServiceCidr),
        ];
        wanted.into_iter().filter_map(|(wanted, kind)| wanted.then_some(kind)).collect()
    }
}
