//! The AWS provider against moto: the wire format as a third party reads it.
//!
//! moto is no NLB (it forgets duplicate names, dependencies and target validation), so behaviour is
//! judged on the fake; here the same story has to come through the SDK and back.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod aws_moto_support;
mod aws_support;

use aws_moto_support::{Moto, Site};
use aws_support::{UID, annotate, release, service, settle, world};
use cloud_controller::aws::api::Api;
use cloud_controller::aws::resources::{HealthProtocol, Protocol, Scheme};
use cloud_controller::plan::Outcome;

const NAME: &str = "k8s-default-web-6b0ba8ff70";

#[tokio::test]
async fn a_service_is_served_followed_and_taken_away() {
    let moto = Moto::start().await;
    let site = Site::build(&moto).await;
    let empty = site.count().await;
    let [first, second, third] = &site.instances;
    let aws = site.provider(&moto).await;
    let web = annotate(
        service("web", UID, &["TCP 80 30080", "UDP 53 30053", "TCP 443 30443"]),
        &[
            ("additional-resource-tags", "team=shop"),
            ("attributes", "load_balancing.cross_zone.enabled=true"),
            ("target-group-attributes", "deregistration_delay.timeout_seconds=30"),
        ],
    );
    let report = settle(&aws, &web, &world(&[first, second])).await;
    assert_eq!(report.outcome, Outcome::Converged, "{:?}", report.notes);
    let hostname = report.ingress.unwrap()[0].hostname.clone().unwrap();

    // What moto says, through the eyes of a controller that has just started.
    let api = site.api(&moto).await;
    let balancers = api.load_balancers().await.unwrap();
    let [balancer] = balancers.as_slice() else { panic!("{balancers:?}") };
    assert_eq!((&*balancer.name, balancer.scheme), (NAME, Scheme::Internal));
    assert_eq!(balancer.dns_name.to_lowercase(), *hostname);
    assert_eq!(balancer.subnets, site.private_subnets);
    let groups = api.target_groups().await.unwrap();
    for (protocol, port) in [(Protocol::Tcp, 30080), (Protocol::Udp, 30053), (Protocol::Tcp, 30443)] {
        let group = groups.iter().find(|g| g.port == port).unwrap();
        assert_eq!((group.protocol, group.health_check.protocol), (protocol, HealthProtocol::Tcp));
        let targets: Vec<String> =
            api.targets(&group.arn).await.unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(targets.len(), 2);
        assert!(targets.contains(&format!("{first}:{port}")), "{targets:?}");
        let attributes = api.target_group_attributes(&group.arn).await.unwrap();
        assert_eq!(attributes["deregistration_delay.timeout_seconds"], "30");
    }
    let listeners = api.listeners(&balancer.arn).await.unwrap();
    assert_eq!(listeners.len(), 3);
    let tags = api.tags(&[balancer.arn.clone(), listeners[0].arn.clone()]).await.unwrap();
    for tags in tags.values() {
        assert_eq!((&*tags["service.k8s.aws/stack"], &*tags["team"]), ("default/web", "shop"));
    }
    let rules: Vec<String> = site.frontend_rules(&api).await;
    assert_eq!(rules, ["tcp 80 from 0.0.0.0/0", "tcp 443 from 0.0.0.0/0", "udp 53 from 0.0.0.0/0"]);

    assert_eq!(site.node_rules().await, 1);

    // A restart finds all of it as it should be.
    let aws = site.provider(&moto).await;
    let plan = aws.plan(&web, &world(&[first, second])).await.unwrap();
    assert!(plan.is_empty(), "{plan}");

    // Nodes and ports change.
    let fewer = annotate(service("web", UID, &["TCP 80 30080"]), &[("additional-resource-tags", "team=b")]);
    settle(&aws, &fewer, &world(&[second, third])).await;
    let aws = site.provider(&moto).await;
    let plan = aws.plan(&fewer, &world(&[second, third])).await.unwrap();
    assert!(plan.is_empty(), "{plan}");
    let groups = api.target_groups().await.unwrap();
    let [group] = groups.as_slice() else { panic!("{groups:?}") };
    let mut targets: Vec<String> =
        api.targets(&group.arn).await.unwrap().into_iter().map(|t| t.instance).collect();
    targets.sort();
    let mut wanted = [second.clone(), third.clone()];
    wanted.sort();
    assert_eq!(targets, wanted);

    assert!(release(&aws, &fewer).await.released);
    assert_eq!(site.count().await, empty);
    assert_eq!(site.node_rules().await, 0);
}

#[tokio::test]
async fn a_controller_killed_between_any_two_batches_is_carried_on_by_the_next() {
    let moto = Moto::start().await;
    let site = Site::build(&moto).await;
    let empty = site.count().await;
    let world = world(&[&site.instances[0]]);
    let web = service("web", UID, &["TCP 80 30080", "UDP 53 30053"]);
    let steps = site.provider(&moto).await.plan(&web, &world).await.unwrap().batches.len();
    assert!(steps > 5, "{steps}");
    for killed_after in 0..=steps {
        let aws = site.provider(&moto).await;
        let plan = aws.plan(&web, &world).await.unwrap();
        aws.execute(&plan.batches[..killed_after]).await.unwrap();
        drop(aws);

        let aws = site.provider(&moto).await;
        assert_eq!(settle(&aws, &web, &world).await.outcome, Outcome::Converged, "after {killed_after}");
        assert_eq!(site.count().await, empty.with(1, 2, 1), "after {killed_after}");
        let plan = aws.plan_release(&web).await.unwrap();
        aws.execute(&plan.batches[..killed_after.min(plan.batches.len())]).await.unwrap();
        drop(aws);

        let aws = site.provider(&moto).await;
        assert!(release(&aws, &web).await.released, "after {killed_after}");
        assert_eq!(site.count().await, empty, "after {killed_after}");
    }
}

#[tokio::test]
async fn a_service_of_another_scheme_or_with_local_traffic_policy_settles_too() {
    let moto = Moto::start().await;
    let site = Site::build(&moto).await;
    let empty = site.count().await;
    let world = world(&[&site.instances[0]]);
    let mut web = service("web", UID, &["TCP 80 30080"]);
    web.external_traffic_policy = service_model::TrafficPolicy::Local;
    web.health_check_node_port = Some(32000);
    let aws = site.provider(&moto).await;
    assert_eq!(settle(&aws, &web, &world).await.outcome, Outcome::Converged);
    assert_eq!(aws.api().target_groups().await.unwrap()[0].health_check.protocol, HealthProtocol::Http);
    let public = annotate(web, &[("scheme", "internet-facing"), ("name", "shop")]);
    assert_eq!(settle(&aws, &public, &world).await.outcome, Outcome::Converged);
    let balancers = aws.api().load_balancers().await.unwrap();
    let [balancer] = balancers.as_slice() else { panic!("{balancers:?}") };
    assert_eq!((&*balancer.name, balancer.scheme), ("shop", Scheme::InternetFacing));
    assert_eq!(balancer.subnets, site.public_subnets);
    assert!(release(&aws, &public).await.released);
    assert_eq!(site.count().await, empty);
}
