//! ServiceCIDRs: the networks from which ClusterIPs are given.

use std::sync::Arc;

use ipnet::IpNet;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceCidr {
    pub name: Arc<str>,
    /// At most one a family; host bits are cut.
    pub networks: Vec<IpNet>,
}
