//! The steps of a plan. Resources go by name, so a plan can be read, compared and printed before
//! any of them exists; carrying a step out looks the ARN up in the snapshot.

use std::collections::BTreeSet;
use std::fmt;

use super::resources::{Attributes, HealthCheck, Protocol, Rule, Scheme, Tags, Target};

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    CreateSecurityGroup {
        name: String,
        tags: Tags,
    },
    Allow {
        group: String,
        rules: Vec<Rule>,
    },
    Revoke {
        group: String,
        rules: Vec<Rule>,
    },
    /// Lets a load balancer's security group reach the nodes that `group` protects.
    OpenNodes {
        group: String,
        to: String,
    },
    CloseNodes {
        group: String,
        to: String,
    },
    DeleteSecurityGroup {
        name: String,
    },
    CreateTargetGroup {
        name: String,
        protocol: Protocol,
        port: u16,
        health_check: HealthCheck,
        tags: Tags,
    },
    SetHealthCheck {
        target_group: String,
        health_check: HealthCheck,
    },
    SetTargetGroupAttributes {
        target_group: String,
        attributes: Attributes,
    },
    DeleteTargetGroup {
        name: String,
    },
    RegisterTargets {
        target_group: String,
        targets: Vec<Target>,
    },
    DeregisterTargets {
        target_group: String,
        targets: Vec<Target>,
    },
    CreateLoadBalancer {
        name: String,
        scheme: Scheme,
        subnets: BTreeSet<String>,
        security_group: String,
        tags: Tags,
    },
    SetLoadBalancerAttributes {
        load_balancer: String,
        attributes: Attributes,
    },
    SetSubnets {
        load_balancer: String,
        subnets: BTreeSet<String>,
    },
    SetSecurityGroup {
        load_balancer: String,
        security_group: String,
    },
    DeleteLoadBalancer {
        name: String,
    },
    CreateListener {
        load_balancer: String,
        port: u16,
        protocol: Protocol,
        target_group: String,
        tags: Tags,
    },
    SetListener {
        load_balancer: String,
        port: u16,
        protocol: Protocol,
        target_group: String,
    },
    DeleteListener {
        load_balancer: String,
        port: u16,
    },
    /// One call for all resources that lack the same tags.
    Tag {
        resources: Vec<Resource>,
        tags: Tags,
    },
    Untag {
        resources: Vec<Resource>,
        keys: Vec<String>,
    },
    TagSecurityGroup {
        name: String,
        tags: Tags,
    },
    UntagSecurityGroup {
        name: String,
        keys: Vec<String>,
    },
}

/// What ELBv2's tag operations take.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    LoadBalancer(String),
    TargetGroup(String),
    Listener { load_balancer: String, port: u16 },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateSecurityGroup { name, tags } => {
                write!(f, "create security group {name}, {}", Map(tags))
            }
            Self::Allow { group, rules } => write!(f, "allow on {group}: {}", join(rules, ", ")),
            Self::Revoke { group, rules } => write!(f, "revoke on {group}: {}", join(rules, ", ")),
            Self::OpenNodes { group, to } => write!(f, "let {to} reach the nodes behind {group}"),
            Self::CloseNodes { group, to } => write!(f, "let {to} no longer reach the nodes behind {group}"),
            Self::DeleteSecurityGroup { name } => write!(f, "delete security group {name}"),
            Self::CreateTargetGroup { name, protocol, port, health_check, tags } => write!(
                f,
                "create target group {name}: {protocol} to instances at {port}, health {health_check}, {}",
                Map(tags)
            ),
            Self::SetHealthCheck { target_group, health_check } => {
                write!(f, "set health check of {target_group}: {health_check}")
            }
            Self::SetTargetGroupAttributes { target_group, attributes } => {
                write!(f, "set on target group {target_group}: {}", Map(attributes))
            }
            Self::DeleteTargetGroup { name } => write!(f, "delete target group {name}"),
            Self::RegisterTargets { target_group, targets } => {
                write!(f, "register in {target_group}: {}", join(targets, " "))
            }
            Self::DeregisterTargets { target_group, targets } => {
                write!(f, "deregister from {target_group}: {}", join(targets, " "))
            }
            Self::CreateLoadBalancer { name, scheme, subnets, security_group, tags } => write!(
                f,
                "create load balancer {name}: {scheme}, in {}, behind {security_group}, {}",
                join(subnets, " "),
                Map(tags)
            ),
            Self::SetLoadBalancerAttributes { load_balancer, attributes } => {
                write!(f, "set on load balancer {load_balancer}: {}", Map(attributes))
            }
            Self::SetSubnets { load_balancer, subnets } => {
                write!(f, "move load balancer {load_balancer} to {}", join(subnets, " "))
            }
            Self::SetSecurityGroup { load_balancer, security_group } => {
                write!(f, "put load balancer {load_balancer} behind {security_group}")
            }
            Self::DeleteLoadBalancer { name } => write!(f, "delete load balancer {name}"),
            Self::CreateListener { load_balancer, port, protocol, target_group, tags } => write!(
                f,
                "create listener {protocol} {port} on {load_balancer} to {target_group}, {}",
                Map(tags)
            ),
            Self::SetListener { load_balancer, port, protocol, target_group } => {
                write!(f, "set listener {port} on {load_balancer}: {protocol} to {target_group}")
            }
            Self::DeleteListener { load_balancer, port } => {
                write!(f, "delete listener {port} on {load_balancer}")
            }
            Self::Tag { resources, tags } => write!(f, "tag {}: {}", join(resources, ", "), Map(tags)),
            Self::Untag { resources, keys } => {
                write!(f, "untag {}: {}", join(resources, ", "), keys.join(" "))
            }
            Self::TagSecurityGroup { name, tags } => write!(f, "tag security group {name}: {}", Map(tags)),
            Self::UntagSecurityGroup { name, keys } => {
                write!(f, "untag security group {name}: {}", keys.join(" "))
            }
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LoadBalancer(name) => write!(f, "load balancer {name}"),
            Self::TargetGroup(name) => write!(f, "target group {name}"),
            Self::Listener { load_balancer, port } => write!(f, "listener {port} on {load_balancer}"),
        }
    }
}

/// `key=value key=value`
struct Map<'a>(&'a std::collections::BTreeMap<String, String>);

impl fmt::Display for Map<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (key, value)) in self.0.iter().enumerate() {
            let space = if i == 0 { "" } else { " " };
            write!(f, "{space}{key}={value}")?;
        }
        Ok(())
    }
}

fn join<T: fmt::Display>(items: impl IntoIterator<Item = T>, separator: &str) -> String {
    items.into_iter().map(|i| i.to_string()).collect::<Vec<_>>().join(separator)
}
