//! Gives every LoadBalancer Service an external load balancer: an AWS NLB, or a VIP on `metal-lb`.

pub mod plan;
