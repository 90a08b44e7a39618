//! Programs the ClusterIP, NodePort and load balancer addresses of its node, in place of
//! kube-proxy.

pub mod agent;
pub mod args;
pub mod command_line;
pub mod config;
pub mod conntrack;
pub mod dump;
pub mod engine;
pub mod events;
pub mod explain;
pub mod external_ips;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod health;
pub mod health_checks;
pub mod host;
pub mod kube_proxy;
pub mod leftovers;
pub mod local;
pub mod localhost;
pub mod metrics;
#[cfg(test)]
mod namespace;
pub mod nft;
pub mod node_wait;
pub mod nodeport_addresses;
pub mod overrides;
pub mod preflight;
pub mod run;
pub mod select;
pub mod settings;
pub mod verbs;
