//! The laboratory: a whole cluster on one machine, in network namespaces.
//!
//! ```text
//!            client .100            control plane .10 (etcd, API server, controllers, moto)
//!               │                        │
//!         ──────┴───── switch (bridge) ──┴──────────────┬──────────────┐ 172.30.0.0/24
//!                       │        │                      │              │
//!                    lb-1 .21  lb-2 .22            node-1 .11 …    node-3 .13
//!                    metal-lb  metal-lb            node-agent      pods 10.244.N.0/24
//! ```
//!
//! Hosts are namespaces, pods are namespaces with a process inside, and the control plane is the
//! real one. Scenarios read like prose; every wait has a deadline and says what was seen instead.

pub mod answer;
pub mod aws;
pub mod control_plane;
pub mod forward;
pub mod kubelet;
pub mod netns;
pub mod network;
pub mod pki;
pub mod process;
pub mod programs;
pub mod spawn;
pub mod sweep;
pub mod traffic;
pub mod wait;

mod cluster;

pub use cluster::{Balancer, Builder, Lab, Node, NodeProxy, POOL, Provider, ServiceView, Tier};
