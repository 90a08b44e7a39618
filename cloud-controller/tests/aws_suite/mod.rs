//! Stories that have to end alike wherever they are played: on the fake, and through the SDK on
//! moto, which keeps the fake honest.

#![allow(clippy::unwrap_used, reason = "a part of test binaries")]

use std::collections::BTreeSet;

use cloud_controller::aws::Provider;
use cloud_controller::aws::api::{Api, NewLoadBalancer};
use cloud_controller::aws::resources::{HealthProtocol, Protocol, Scheme, SecurityGroup, Tags};
use cloud_controller::plan::Outcome;

use crate::aws_support::{CLUSTER, NODES, UID, annotate, reasons, release, service, settle, world};

/// An account with a VPC: two zones with a private and a public subnet each, three instances, and a
/// security group of the nodes.
pub(crate) trait Site {
    type Api: Api;
    /// As after a start.
    fn api(&self) -> Self::Api;
    fn vpc(&self) -> &str;
    fn instances(&self) -> &[String; 3];
    fn subnets(&self, scheme: Scheme) -> BTreeSet<String>;
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Story {
    ServedFollowedAndTakenAway,
    KilledBetweenAnyTwoBatches,
    LocalTrafficPolicyThenAnotherScheme,
    CreatedAgainUnderItsName,
    NameOfSomebodyElse,
    TakenOver,
}

/// How many of each there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    load_balancers: usize,
    target_groups: usize,
    security_groups: usize,
    node_rules: usize,
}

const NAME: &str = "k8s-default-web-6b0ba8ff70";

impl Story {
    pub(crate) const ALL: [Self; 6] = [
        Self::ServedFollowedAndTakenAway,
        Self::KilledBetweenAnyTwoBatches,
        Self::LocalTrafficPolicyThenAnotherScheme,
        Self::CreatedAgainUnderItsName,
        Self::NameOfSomebodyElse,
        Self::TakenOver,
    ];

    /// # Panics
    /// Where the story takes another turn, or leaves something behind.
    pub(crate) async fn play(self, site: &impl Site) {
        let before = count(site).await;
        match self {
            Self::ServedFollowedAndTakenAway => served_followed_and_taken_away(site).await,
            Self::KilledBetweenAnyTwoBatches => killed_between_any_two_batches(site).await,
            Self::LocalTrafficPolicyThenAnotherScheme => local_then_another_scheme(site).await,
            Self::CreatedAgainUnderItsName => created_again(site).await,
            Self::NameOfSomebodyElse => name_of_somebody_else(site).await,
            Self::TakenOver => taken_over(site).await,
        }
        assert_eq!(count(site).await, before, "{self:?} leaves something behind");
    }
}

/// One that has just started.
fn provider<S: Site>(site: &S) -> Provider<S::Api> {
    Provider::with_api(site.api(), CLUSTER, site.vpc())
}

async fn served_followed_and_taken_away(site: &impl Site) {
    let [first, second, third] = site.instances();
    let web = annotate(
        service("web", UID, &["TCP 80 30080", "UDP 53 30053", "TCP 443 30443"]),
        &[
            ("additional-resource-tags", "team=shop"),
            ("attributes", "load_balancing.cross_zone.enabled=true"),
            ("target-group-attributes", "deregistration_delay.timeout_seconds=30"),
        ],
    );
    let report = settle(&provider(site), &web, &world(&[first, second])).await;
    assert_eq!(report.outcome, Outcome::Converged, "{:?}", report.notes);
    let hostname = report.ingress.unwrap()[0].hostname.clone().unwrap();

    // What AWS has now.
    let api = site.api();
    let balancers = api.load_balancers().await.unwrap();
    let [balancer] = balancers.as_slice() else { panic!("{balancers:?}") };
    assert_eq!((&*balancer.name, balancer.scheme), (NAME, Scheme::Internal));
    assert_eq!(balancer.dns_name.to_lowercase(), *hostname);
    assert_eq!(balancer.subnets, site.subnets(Scheme::Internal));
    let attributes = api.load_balancer_attributes(&balancer.arn).await.unwrap();
    assert_eq!(attributes["load_balancing.cross_zone.enabled"], "true");
    for (protocol, port) in [(Protocol::Tcp, 30080), (Protocol::Udp, 30053), (Protocol::Tcp, 30443)] {
        let groups = api.target_groups().await.unwrap();
        let group = groups.iter().find(|g| g.port == port).unwrap();
        assert_eq!((group.protocol, group.health_check.protocol), (protocol, HealthProtocol::Tcp));
        assert_eq!(instances_of(&api, &group.arn).await, BTreeSet::from([first.clone(), second.clone()]));
        let attributes = api.target_group_attributes(&group.arn).await.unwrap();
        assert_eq!(attributes["deregistration_delay.timeout_seconds"], "30");
    }
    let listeners = api.listeners(&balancer.arn).await.unwrap();
    assert_eq!(listeners.len(), 3);
    let tags = api.tags(&[balancer.arn.clone(), listeners[0].arn.clone()]).await.unwrap();
    for tags in tags.values() {
        assert_eq!((&*tags["service.k8s.aws/stack"], &*tags["team"]), ("default/web", "shop"));
    }
    let rules: Vec<String> = frontend(site).await.rules.iter().map(ToString::to_string).collect();
    assert_eq!(rules, ["tcp 80 from 0.0.0.0/0", "tcp 443 from 0.0.0.0/0", "udp 53 from 0.0.0.0/0"]);
    assert_eq!(count(site).await.node_rules, 1);

    // A restart finds all of it as it should be.
    let plan = provider(site).plan(&web, &world(&[first, second])).await.unwrap();
    assert!(plan.is_empty(), "{plan}");

    // Nodes, ports and tags change.
    let fewer = annotate(service("web", UID, &["TCP 80 30080"]), &[("additional-resource-tags", "team=b")]);
    settle(&provider(site), &fewer, &world(&[second, third])).await;
    let plan = provider(site).plan(&fewer, &world(&[second, third])).await.unwrap();
    assert!(plan.is_empty(), "{plan}");
    let groups = api.target_groups().await.unwrap();
    let [group] = groups.as_slice() else { panic!("{groups:?}") };
    assert_eq!(instances_of(&api, &group.arn).await, BTreeSet::from([second.clone(), third.clone()]));

    release(&provider(site), &fewer).await;
}

async fn killed_between_any_two_batches(site: &impl Site) {
    let empty = count(site).await;
    let world = world(&[&site.instances()[0]]);
    let web = service("web", UID, &["TCP 80 30080", "UDP 53 30053"]);
    let steps = provider(site).plan(&web, &world).await.unwrap().batches.len();
    assert!(steps > 5, "{steps}");
    for killed_after in 0..=steps {
        let aws = provider(site);
        let plan = aws.plan(&web, &world).await.unwrap();
        aws.execute(&plan.batches[..killed_after]).await.unwrap();

        let aws = provider(site);
        let report = settle(&aws, &web, &world).await;
        assert_eq!(report.outcome, Outcome::Converged, "after {killed_after}");
        let full = Count { load_balancers: 1, target_groups: 2, node_rules: 1, ..empty };
        let full = Count { security_groups: empty.security_groups + 1, ..full };
        assert_eq!(count(site).await, full, "after {killed_after}");

        let plan = aws.plan_release(&web).await.unwrap();
        aws.execute(&plan.batches[..killed_after.min(plan.batches.len())]).await.unwrap();
        release(&provider(site), &web).await;
        assert_eq!(count(site).await, empty, "after {killed_after}");
    }
}

async fn local_then_another_scheme(site: &impl Site) {
    let world = world(&[&site.instances()[0]]);
    let mut web = service("web", UID, &["TCP 80 30080"]);
    web.external_traffic_policy = service_model::TrafficPolicy::Local;
    web.health_check_node_port = Some(32000);
    let aws = provider(site);
    assert_eq!(settle(&aws, &web, &world).await.outcome, Outcome::Converged);
    let api = site.api();
    assert_eq!(api.target_groups().await.unwrap()[0].health_check.protocol, HealthProtocol::Http);

    let public = annotate(web, &[("scheme", "internet-facing"), ("name", "shop")]);
    assert_eq!(settle(&aws, &public, &world).await.outcome, Outcome::Converged);
    let balancers = api.load_balancers().await.unwrap();
    let [balancer] = balancers.as_slice() else { panic!("{balancers:?}") };
    assert_eq!((&*balancer.name, balancer.scheme), ("shop", Scheme::InternetFacing));
    assert_eq!(balancer.subnets, site.subnets(Scheme::InternetFacing));
    release(&aws, &public).await;
}

async fn created_again(site: &impl Site) {
    let world = world(&[&site.instances()[0]]);
    for name in [None, Some("shop")] {
        let of_uid = |uid| {
            let service = service("web", uid, &["TCP 80 30080"]);
            name.map_or(service.clone(), |name| annotate(service, &[("name", name)]))
        };
        settle(&provider(site), &of_uid(UID), &world).await;
        let old = site.api().load_balancers().await.unwrap().remove(0);
        // The finalizer was taken off by hand, and a new Service comes.
        let aws = provider(site);
        assert_eq!(settle(&aws, &of_uid("uid-2"), &world).await.outcome, Outcome::Converged);
        let balancers = site.api().load_balancers().await.unwrap();
        let [balancer] = balancers.as_slice() else { panic!("{balancers:?}") };
        assert_ne!(balancer.arn, old.arn);
        assert_eq!(site.api().target_groups().await.unwrap().len(), 1);
        release(&aws, &of_uid("uid-2")).await;
    }
}

async fn name_of_somebody_else(site: &impl Site) {
    let api = site.api();
    let foreign = NewLoadBalancer {
        name: "shop".to_owned(),
        scheme: Scheme::Internal,
        subnets: site.subnets(Scheme::Internal).into_iter().collect(),
        security_groups: Vec::new(),
        tags: Tags::from([("owner".to_owned(), "payroll".to_owned())]),
    };
    let arn = api.create_load_balancer(&foreign).await.unwrap().arn;
    let before = count(site).await;
    let web = annotate(service("web", UID, &["TCP 80 30080"]), &[("name", "shop")]);
    let aws = provider(site);
    let report = aws.reconcile(&web, &world(&[&site.instances()[0]])).await;
    assert!(matches!(report.outcome, Outcome::Retry { .. }), "{report:?}");
    assert_eq!(reasons(&report).last(), Some(&"NameTaken"));
    release(&aws, &web).await;
    assert_eq!(count(site).await, before);
    assert_eq!(api.tags(std::slice::from_ref(&arn)).await.unwrap()[&arn], foreign.tags);
    api.delete_load_balancer(&arn).await.unwrap();
}

/// AWS Load Balancer Controller's resources carry no UID; the hash in their names proves it.
async fn taken_over(site: &impl Site) {
    let (web, world) = (service("web", UID, &["TCP 80 30080"]), world(&[&site.instances()[0]]));
    settle(&provider(site), &web, &world).await;
    let api = site.api();
    let key = ["fairlead.dev/service-uid".to_owned()];
    let balancer = api.load_balancers().await.unwrap().remove(0);
    let mut arns = vec![balancer.arn.clone()];
    arns.extend(api.listeners(&balancer.arn).await.unwrap().into_iter().map(|l| l.arn));
    arns.extend(api.target_groups().await.unwrap().into_iter().map(|g| g.arn));
    api.remove_tags(&arns, &key).await.unwrap();
    let group = frontend(site).await;
    api.untag_security_group(&group.id, &key).await.unwrap();

    let aws = provider(site);
    let plan = aws.plan(&web, &world).await.unwrap().to_string();
    assert_eq!(
        plan,
        format!(
            "tag load balancer {NAME}, listener 80 on {NAME}, target group k8s-default-web-e35df15498: \
             fairlead.dev/service-uid={UID}\n\n\
             tag security group k8s-default-web-1caaa375f0: fairlead.dev/service-uid={UID}\n"
        )
    );
    settle(&aws, &web, &world).await;
    assert!(provider(site).plan(&web, &world).await.unwrap().is_empty());
    release(&aws, &web).await;
}

async fn count(site: &impl Site) -> Count {
    let api = site.api();
    let groups = api.security_groups(site.vpc()).await.unwrap();
    Count {
        load_balancers: api.load_balancers().await.unwrap().len(),
        target_groups: api.target_groups().await.unwrap().len(),
        security_groups: groups.len(),
        node_rules: groups.iter().find(|g| g.name == NODES).unwrap().rules.len(),
    }
}

async fn frontend(site: &impl Site) -> SecurityGroup {
    let groups = site.api().security_groups(site.vpc()).await.unwrap();
    groups.into_iter().find(|g| g.name.starts_with("k8s-default-web-")).unwrap()
}

async fn instances_of(api: &impl Api, target_group: &str) -> BTreeSet<String> {
    api.targets(target_group).await.unwrap().into_iter().map(|t| t.instance).collect()
}
