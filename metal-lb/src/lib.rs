//! The L4 balancer: takes packets for VIPs in XDP, spreads them over nodes, and decides with its
//! peers which host answers for which VIP.

pub mod desired;
pub mod observed;
pub mod plan;
pub mod xdp;
