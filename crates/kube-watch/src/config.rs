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
    pub detail: Detail,
}

impl WatchConfig {
    /// The kinds that must have been listed before anything may be decided.
    pub fn kinds(&self) -> Vec<Kind> {
        let nodes = self.nodes != Nodes::None;
        [(self.services, Kind::Service), (self.slices, Kind::EndpointSlice), (nodes, Kind::Node)]
            .into_iter()
            .filter_map(|(wanted, kind)| wanted.then_some(kind))
            .collect()
    }
}
