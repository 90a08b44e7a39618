//! Names and tags, byte for byte those of AWS Load Balancer Controller v3, so that either
//! controller finds what the other made.
//!
//! A name is `k8s-<namespace>-<service>-<hash>`: each part without what is not a letter or a
//! digit, cut to 8, and ten hex digits of a SHA-256 over inputs put together without separators.

use service_model::ServiceName;
use sha2::{Digest, Sha256};

use super::resources::{HealthProtocol, Protocol, Scheme, Tags};

pub const TAG_CLUSTER: &str = "elbv2.k8s.aws/cluster";
pub const TAG_STACK: &str = "service.k8s.aws/stack";
pub const TAG_RESOURCE: &str = "service.k8s.aws/resource";
/// Ours alone: tells a Service from an earlier one of the same name.
pub const TAG_SERVICE_UID: &str = "fairlead.dev/service-uid";

pub const SECURITY_GROUP_DESCRIPTION: &str = "[k8s] Managed SecurityGroup for LoadBalancer";

/// Whose resources: one Service of one cluster, in one of its lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub cluster: String,
    pub service: ServiceName,
    pub uid: String,
}

/// What a resource is within its Service's stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    LoadBalancer,
    SecurityGroup,
    /// By the Service's port.
    TargetGroup(u16),
    Listener(u16),
}

/// What goes into a target group's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TargetGroupKey {
    /// The NodePort.
    pub target_port: u16,
    pub service_port: u16,
    pub protocol: Protocol,
    pub health_protocol: HealthProtocol,
    /// Seconds.
    pub health_interval: u16,
}

impl Identity {
    pub fn load_balancer_name(&self, scheme: Scheme) -> String {
        self.name(&[&self.cluster, &self.uid, scheme.as_str()])
    }

    pub fn target_group_name(&self, key: &TargetGroupKey) -> String {
        self.name(&[
            &self.cluster,
            &self.uid,
            &key.target_port.to_string(),
            &key.service_port.to_string(),
            "instance",
            key.protocol.as_str(),
            key.health_protocol.as_str(),
            &key.health_interval.to_string(),
        ])
    }

    pub fn security_group_name(&self) -> String {
        self.name(&[&self.cluster, self.service.name(), self.service.namespace(), &self.uid])
    }

    fn name(&self, hashed: &[&str]) -> String {
        let namespace = part(self.service.namespace());
        let name = part(self.service.name());
        format!("k8s-{namespace}-{name}-{}", hash(hashed))
    }

    /// The tags by which the resource is found again.
    pub fn tags(&self, role: Role) -> Tags {
        let resource = match role {
            Role::LoadBalancer => "LoadBalancer".to_owned(),
            Role::SecurityGroup => "ManagedLBSecurityGroup".to_owned(),
            Role::TargetGroup(port) => format!("{}:{port}", self.service),
            Role::Listener(port) => port.to_string(),
        };
        Tags::from([
            (TAG_CLUSTER.to_owned(), self.cluster.clone()),
            (TAG_STACK.to_owned(), self.service.to_string()),
            (TAG_RESOURCE.to_owned(), resource),
            (TAG_SERVICE_UID.to_owned(), self.uid.clone()),
        ])
    }

    /// Whether the tags say that this Service, or an earlier one of its name, owns the resource.
    pub fn is_stack_of(&self, tags: &Tags) -> bool {
        tags.get(TAG_CLUSTER) == Some(&self.cluster)
            && tags.get(TAG_STACK).is_some_and(|s| s == self.service.as_str())
    }
}

fn part(text: &str) -> String {
    text.chars().filter(char::is_ascii_alphanumeric).take(8).collect()
}

fn hash(parts: &[&str]) -> String {
    let digest = Sha256::digest(parts.concat());
    digest.iter().take(5).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(name: &str) -> Identity {
        Identity {
            cluster: "my-cluster".to_owned(),
            service: name.parse().unwrap(),
            uid: "bdca2bd0-bfc6-449a-88a3-03451f05f18c".to_owned(),
        }
    }

    #[test]
    fn names_are_those_of_aws_load_balancer_controller() {
        let id = identity("default/nlb-ip-svc-tls");
        assert_eq!(id.load_balancer_name(Scheme::Internal), "k8s-default-nlbipsvc-6b0ba8ff70");
        assert_eq!(id.load_balancer_name(Scheme::InternetFacing), "k8s-default-nlbipsvc-4d831c6ca6");
        assert_eq!(id.security_group_name(), "k8s-default-nlbipsvc-1da4b78715");
        // Their test of a target group has ip targets; ours differs in that one input.
        let inputs = [&*id.cluster, &id.uid, "80", "80", "ip", "TCP", "TCP", "10"];
        assert_eq!(hash(&inputs), "d4818dcd51");
        let key = TargetGroupKey {
            target_port: 80,
            service_port: 80,
            protocol: Protocol::Tcp,
            health_protocol: HealthProtocol::Tcp,
            health_interval: 10,
        };
        let inputs = [&*id.cluster, &id.uid, "80", "80", "instance", "TCP", "TCP", "10"];
        assert_eq!(id.target_group_name(&key), format!("k8s-default-nlbipsvc-{}", hash(&inputs)));
    }

    #[test]
    fn names_fit_the_limit_of_32_and_hold_no_character_that_aws_refuses() {
        let id = identity("a-very-long-namespace/and.a-very-long.name");
        let name = id.load_balancer_name(Scheme::Internal);
        assert_eq!(name.len(), 32);
        assert!(name.starts_with("k8s-averylon-andavery-"), "{name}");
    }

    #[test]
    fn resources_are_told_apart_by_their_tags() {
        let id = identity("default/web");
        let resource = |role| id.tags(role)[TAG_RESOURCE].clone();
        assert_eq!(resource(Role::LoadBalancer), "LoadBalancer");
        assert_eq!(resource(Role::SecurityGroup), "ManagedLBSecurityGroup");
        assert_eq!(resource(Role::TargetGroup(80)), "default/web:80");
        assert_eq!(resource(Role::Listener(80)), "80");
        assert!(id.is_stack_of(&id.tags(Role::LoadBalancer)));
        let other = Identity { cluster: "other".to_owned(), ..id.clone() };
        assert!(!other.is_stack_of(&id.tags(Role::LoadBalancer)));
    }
}
