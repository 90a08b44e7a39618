//! Services, nodes and accounts for the tests of the AWS provider.

#![allow(dead_code, clippy::unwrap_used, reason = "a part of test binaries")]

use cloud_controller::aws::Provider;
use cloud_controller::aws::api::Api;
use cloud_controller::aws::fake::Fake;
use cloud_controller::plan::{Outcome, Report};
use service_model::{Change, Node, Object, Protocol, Service, ServicePort, World};

pub(crate) const CLUSTER: &str = "my-cluster";
pub(crate) const VPC: &str = "vpc-1";
pub(crate) const UID: &str = "bdca2bd0-bfc6-449a-88a3-03451f05f18c";
const PREFIX: &str = "service.beta.kubernetes.io/aws-load-balancer-";

/// A Service `default/NAME` with ports as in `TCP 80 30080`.
pub(crate) fn service(name: &str, uid: &str, ports: &[&str]) -> Service {
    let mut service = Service::new(format!("default/{name}").parse().unwrap());
    service.uid = uid.into();
    service.ports = ports.iter().map(|text| port(text)).collect();
    service
}

pub(crate) fn annotate(mut service: Service, annotations: &[(&str, &str)]) -> Service {
    for (suffix, value) in annotations {
        service.annotations.insert(format!("{PREFIX}{suffix}").into(), (*value).into());
    }
    service
}

fn port(text: &str) -> ServicePort {
    let words: Vec<&str> = text.split(' ').collect();
    let protocol: Protocol = words[0].parse().unwrap();
    ServicePort {
        name: format!("{}-{}", words[0].to_lowercase(), words[1]).into(),
        protocol,
        port: words[1].parse().unwrap(),
        node_port: Some(words[2].parse().unwrap()),
    }
}

/// A world with a node for each instance.
pub(crate) fn world(instances: &[&str]) -> World {
    let mut world = World::default();
    for instance in instances {
        let mut node = Node::new(format!("node-of-{instance}").into());
        node.provider_id = Some(format!("aws:///us-east-1a/{instance}").into());
        world.apply(Change::Apply(Object::Node(node)));
    }
    world
}

/// The security group of the cluster's nodes.
pub(crate) const NODES: &str = "nodes";

/// A VPC with a private and a public subnet in each of two zones, and instances i-1 to i-4.
pub(crate) fn account() -> Fake {
    let fake = Fake::new(VPC);
    for (id, zone, public) in [
        ("subnet-a", "us-east-1a", false),
        ("subnet-b", "us-east-1b", false),
        ("subnet-pa", "us-east-1a", true),
        ("subnet-pb", "us-east-1b", true),
    ] {
        fake.add_subnet(id, zone, public, &[]);
    }
    fake.add_security_group(NODES, &[("kubernetes.io/cluster/my-cluster", "owned")]);
    for id in ["i-1", "i-2", "i-3", "i-4"] {
        fake.add_instance(id);
    }
    fake
}

pub(crate) fn provider<A: Api>(api: A) -> Provider<A> {
    Provider::with_api(api, CLUSTER, VPC)
}

/// Reconciles as the runner would, without its pauses.
///
/// # Panics
/// If the Service does not settle.
pub(crate) async fn settle<A: Api>(provider: &Provider<A>, service: &Service, world: &World) -> Report {
    for _ in 0..8 {
        let report = provider.reconcile(service, world).await;
        if !matches!(report.outcome, Outcome::Retry { .. }) {
            return report;
        }
    }
    panic!("{} does not settle: {:?}", service.name, provider.reconcile(service, world).await);
}

/// Releases as the runner would, without its pauses.
///
/// # Panics
/// If something stays behind.
pub(crate) async fn release<A: Api>(provider: &Provider<A>, service: &Service) -> Report {
    for _ in 0..8 {
        let report = provider.release(service).await;
        if report.released {
            return report;
        }
    }
    panic!("{} is not released: {:?}", service.name, provider.release(service).await);
}

pub(crate) fn reasons(report: &Report) -> Vec<&'static str> {
    report.notes.iter().map(|n| n.reason).collect()
}

/// The hashes of target groups' names depend on how they were first made.
pub(crate) fn without_group_names(shown: &str) -> Vec<String> {
    let words = |line: &str| -> String {
        let target = line.starts_with("target group") || line.contains(" to k8s-");
        let keep = |word: &&str| !(target && word.starts_with("k8s-"));
        let line: Vec<&str> = line.split(' ').filter(keep).collect();
        line.join(" ")
    };
    let mut lines: Vec<String> = shown.lines().map(words).collect();
    lines.sort();
    lines
}
