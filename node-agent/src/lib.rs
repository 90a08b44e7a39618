//! Programs the ClusterIP, NodePort and load balancer addresses of its node, in place of
//! kube-proxy.

pub mod args;
pub mod config;
pub mod engine;
pub mod health;
pub mod nft;
pub mod run;
pub mod select;
