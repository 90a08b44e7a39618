//! Gives every LoadBalancer Service an external load balancer: an AWS NLB, or a VIP on `metal-lb`.
//!
//! `desired` says which Services are ours, each provider plans and carries out, `run` decides when.

pub mod args;
pub mod aws;
pub mod desired;
pub mod election;
pub mod events;
mod lead;
pub mod marks;
pub mod metal;
pub mod metrics;
pub mod plan;
pub mod plan_verb;
pub mod providers;
pub mod queue;
pub mod run;
mod state;
pub mod status;
