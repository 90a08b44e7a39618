//! `GET /v1/state`: what a host does, and why.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::{Generation, NatProtocol};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    pub host: String,
    /// The schemas that this host takes.
    pub schemas: Vec<u32>,
    /// The document that is programmed; `None` before the first.
    pub generation: Option<Generation>,
    pub owner: Option<String>,
    pub vips: Vec<VipState>,
    pub listeners: Vec<ListenerState>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VipState {
    pub vip: IpAddr,
    /// The host that answers for it now; `None` while nobody is known to.
    pub owner: Option<String>,
    /// One sentence: why it is (not) here.
    pub why: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerState {
    pub service: String,
    pub vip: IpAddr,
    pub protocol: NatProtocol,
    pub port: u16,
    pub programmed: bool,
    pub why: String,
    pub targets: Vec<TargetState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TargetHealth {
    /// Not asked often enough yet.
    Initial,
    Healthy,
    Unhealthy,
    Draining,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetState {
    pub node: String,
    pub address: IpAddr,
    pub port: u16,
    pub health: TargetHealth,
    /// Gets new connections now.
    pub in_table: bool,
    pub why: String,
}
