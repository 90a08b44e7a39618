//! The AWS provider on the fake: it settles, keeps its hands off what is not its own, and leaves
//! nothing behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod aws_suite;
mod aws_support;

use std::collections::BTreeSet;
use std::time::Duration;

use aws_support::{
    CLUSTER, UID, VPC, account, annotate, provider, reasons, release, service, settle, without_group_names,
    world,
};
use cloud_controller::aws::api::{Api, NewLoadBalancer};
use cloud_controller::aws::fake::{Fake, Fault};
use cloud_controller::aws::operation::Operation;
use cloud_controller::aws::resources::{Rule, Scheme, Source, Tags};
use cloud_controller::plan::Outcome;
use service_model::Protocol;

const NAME: &str = "k8s-default-web-6b0ba8ff70";

#[tokio::test]
async fn the_stories_that_moto_judges_too() {
    for story in aws_suite::Story::ALL {
        story.play(&FakeSite::new()).await;
    }
}

#[tokio::test]
async fn a_service_gets_a_load_balancer_within_the_budget_of_calls_and_then_costs_none() {
    let aws = provider(account());
    let web = service("web", UID, &["TCP 80 30080", "UDP 53 30053", "TCP 443 30443"]);
    let world = world(&["i-1", "i-2", "i-3"]);
    aws.reconcile(&service("other", "uid-0", &["TCP 80 30081"]), &world).await;
    aws.api().reset_calls();

    let report = settle(&aws, &web, &world).await;
    assert_eq!(report.outcome, Outcome::Converged);
    let entry = &report.ingress.unwrap()[0];
    assert!(entry.hostname.as_deref().unwrap().starts_with(&format!("{NAME}-")), "{entry:?}");
    let ports: Vec<String> = entry.ports.iter().map(|p| format!("{} {}", p.protocol, p.port)).collect();
    assert_eq!(ports, ["UDP 53", "TCP 80", "TCP 443"]);
    let calls = aws.api().call_count();
    assert!(calls <= 8 + 4 * 3, "{calls} calls: {:?}", aws.api().calls());

    aws.api().reset_calls();
    assert_eq!(settle(&aws, &web, &world).await.outcome, Outcome::Converged);
    assert_eq!(aws.api().call_count(), 0, "{:?}", aws.api().calls());
}

#[tokio::test]
async fn a_restart_with_nothing_to_do_writes_nothing() {
    let aws = provider(account());
    let web = annotate(
        service("web", UID, &["TCP 80 30080"]),
        &[("attributes", "load_balancing.cross_zone.enabled=true"), ("additional-resource-tags", "team=a")],
    );
    settle(&aws, &web, &world(&["i-1"])).await;
    let fake = aws.api().clone();
    fake.reset_calls();
    let aws = provider(fake);
    assert_eq!(settle(&aws, &web, &world(&["i-1"])).await.outcome, Outcome::Converged);
    assert!(aws.api().calls().keys().all(|op| !op.is_write()), "{:?}", aws.api().calls());
}

#[tokio::test]
async fn release_takes_everything_away_although_aws_lets_go_late() {
    let fake = account();
    fake.set_linger(2);
    let (empty, aws) = (fake.show(), provider(fake));
    let web = service("web", UID, &["TCP 80 30080", "UDP 53 30053"]);
    settle(&aws, &web, &world(&["i-1"])).await;

    let report = aws.release(&web).await;
    assert!(!report.released);
    assert!(matches!(report.outcome, Outcome::Retry { .. }), "{report:?}");
    let report = release(&aws, &web).await;
    assert_eq!(report.outcome, Outcome::Converged);
    assert_eq!(aws.api().show(), empty);
    // Once more does no harm.
    aws.api().reset_calls();
    assert!(aws.release(&web).await.released);
    assert_eq!(aws.api().call_count(), 0);
}

#[tokio::test]
async fn whatever_changes_ends_in_the_state_of_a_new_service() {
    let world_a = world(&["i-1", "i-2"]);
    let world_b = world(&["i-2", "i-3", "i-4"]);
    let before = service("web", UID, &["TCP 80 30080", "TCP 443 30443"]);
    let mut local = before.clone();
    local.external_traffic_policy = service_model::TrafficPolicy::Local;
    local.health_check_node_port = Some(32000);
    let mut ranges = before.clone();
    ranges.source_ranges = vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.0/24".parse().unwrap()];
    let changes = [
        service("web", UID, &["TCP 80 30080"]),
        service("web", UID, &["TCP 80 30080", "UDP 53 30053", "TCP 443 30443"]),
        service("web", UID, &["UDP 80 30080", "TCP 443 30443"]),
        service("web", UID, &["TCP 80 30080", "UDP 80 30080"]),
        local,
        ranges,
        annotate(before.clone(), &[("scheme", "internet-facing")]),
        annotate(before.clone(), &[("subnets", "subnet-a")]),
        annotate(before.clone(), &[("additional-resource-tags", "team=a,stage=test")]),
        annotate(before.clone(), &[("target-group-attributes", "deregistration_delay.timeout_seconds=5")]),
        annotate(before.clone(), &[("healthcheck-interval", "30"), ("healthcheck-protocol", "http")]),
    ];
    for after in changes {
        let changed = provider(account());
        settle(&changed, &before, &world_a).await;
        let report = settle(&changed, &after, &world_b).await;
        assert_eq!(report.outcome, Outcome::Converged, "{after:?}: {:?}", report.notes);
        let fresh = provider(account());
        settle(&fresh, &after, &world_b).await;
        // A target group keeps the name that it was made with.
        let strip = |text: String| without_group_names(&text);
        assert_eq!(strip(changed.api().show()), strip(fresh.api().show()), "{after:?}");
    }
}

#[tokio::test]
async fn a_changed_node_port_moves_the_targets_of_the_same_target_group() {
    let aws = provider(account());
    settle(&aws, &service("web", UID, &["TCP 80 30080"]), &world(&["i-1"])).await;
    let moved = service("web", UID, &["TCP 80 31080"]);
    settle(&aws, &moved, &world(&["i-1"])).await;
    let shown = aws.api().show();
    assert!(shown.contains("; i-1:31080;") && !shown.contains("i-1:30080"), "{shown}");
    assert!(!aws.api().calls().contains_key(&Operation::ModifyListener));
}

#[tokio::test]
async fn a_mistake_changes_nothing_and_says_everything() {
    let aws = provider(account());
    let world = world(&["i-1"]);
    let web = service("web", UID, &["TCP 80 30080"]);
    let published = settle(&aws, &web, &world).await.ingress;
    let before = aws.api().show();
    aws.api().reset_calls();
    for (mistake, reason) in [
        (("scheme", "public"), "InvalidAnnotation"),
        (("schem", "internal"), "UnknownAnnotation"),
        (("nlb-target-type", "ip"), "UnsupportedAnnotation"),
        (("ssl-cert", "arn:aws:acm:x"), "UnsupportedAnnotation"),
        (("subnets", "subnet-nowhere"), "InvalidAnnotation"),
    ] {
        let report = aws.reconcile(&annotate(web.clone(), &[mistake]), &world).await;
        // A subnet may be made, or tagged, without a word to us.
        let looked_at_again = matches!(report.outcome, Outcome::Retry { .. });
        assert_eq!(looked_at_again, mistake.0 == "subnets", "{mistake:?}: {report:?}");
        assert_ne!(report.outcome, Outcome::Converged);
        assert_eq!(reasons(&report), [reason]);
        assert_eq!(report.ingress, published, "{mistake:?}");
    }
    let mut sctp = web.clone();
    sctp.ports[0].protocol = Protocol::Sctp;
    assert_eq!(reasons(&aws.reconcile(&sctp, &world).await), ["UnsupportedProtocol"]);
    assert_eq!(aws.api().show(), before);
    assert_eq!(aws.api().call_count(), 0, "{:?}", aws.api().calls());
}

#[tokio::test]
async fn a_foreign_load_balancer_that_appears_after_the_listing_is_not_hijacked_either() {
    let world = world(&["i-1"]);
    let web = annotate(service("web", UID, &["TCP 80 30080"]), &[("name", "shop")]);
    let aws = provider(account());
    // The listing happens here; AWS's answer to the same name with the same settings is "done".
    settle(&aws, &service("other", "uid-0", &["TCP 80 30081"]), &world).await;
    let plan = aws.plan(&web, &world).await.unwrap();
    aws.execute(&plan.batches[..1]).await.unwrap();
    let groups = aws.api().security_groups(VPC).await.unwrap();
    let group = groups.iter().find(|g| g.name.contains("web")).unwrap();
    let foreign = NewLoadBalancer {
        name: "shop".to_owned(),
        scheme: Scheme::Internal,
        subnets: vec!["subnet-a".to_owned(), "subnet-b".to_owned()],
        security_groups: vec![group.id.clone()],
        tags: Tags::from([("owner".to_owned(), "payroll".to_owned())]),
    };
    aws.api().create_load_balancer(&foreign).await.unwrap();
    let report = aws.reconcile(&web, &world).await;
    assert!(
        matches!(&report.outcome, Outcome::Retry { why, .. } if why.contains("named shop")),
        "{report:?}"
    );
    let shown = aws.api().show();
    assert!(
        shown.contains("owner=payroll") && !shown.contains("listener 80 TCP to k8s-default-web"),
        "{shown}"
    );
}

#[tokio::test]
async fn a_service_created_again_under_its_name_never_adopts_what_was_left() {
    let world = world(&["i-1"]);
    for name in [None, Some("shop")] {
        let of_uid = |uid| {
            let service = service("web", uid, &["TCP 80 30080"]);
            name.map_or(service.clone(), |name| annotate(service, &[("name", name)]))
        };
        let aws = provider(account());
        settle(&aws, &of_uid(UID), &world).await;
        // The first one's finalizer was taken off by hand; a second one comes.
        let aws = provider(aws.api().clone());
        let report = settle(&aws, &of_uid("uid-2"), &world).await;
        assert_eq!(report.outcome, Outcome::Converged);
        let fresh = provider(account());
        settle(&fresh, &of_uid("uid-2"), &world).await;
        assert_eq!(aws.api().show(), fresh.api().show());
    }
}

#[tokio::test]
async fn a_load_balancer_of_unknown_origin_is_neither_taken_over_nor_deleted() {
    let (web, world) = (annotate(service("web", UID, &["TCP 80 30080"]), &[("name", "shop")]), world(&[]));
    let fake = account();
    let tags = [("elbv2.k8s.aws/cluster", CLUSTER), ("service.k8s.aws/stack", "default/web")];
    let unproven = NewLoadBalancer {
        name: "shop".to_owned(),
        scheme: Scheme::Internal,
        subnets: vec!["subnet-a".to_owned()],
        security_groups: Vec::new(),
        tags: tags.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
    };
    fake.create_load_balancer(&unproven).await.unwrap();
    let before = fake.show();
    let aws = provider(fake);
    let report = aws.reconcile(&web, &world).await;
    let Outcome::Retry { why, .. } = &report.outcome else { panic!("{report:?}") };
    assert!(why.contains(&format!("fairlead.dev/service-uid={UID}")), "{why}");
    assert_eq!(reasons(&release(&aws, &web).await), ["LoadBalancerLeft"]);
    assert_eq!(aws.api().show(), before);
}

#[tokio::test]
async fn the_nodes_are_opened_to_the_load_balancer_and_closed_after_it() {
    let aws = provider(account());
    let empty = aws.api().show();
    let (web, world) = (service("web", UID, &["TCP 80 30080"]), world(&["i-1"]));
    let report = settle(&aws, &web, &world).await;
    assert_eq!(reasons(&report), ["EnsuredLoadBalancer"]);
    let opened = "security group nodes: everything from k8s-default-web-1caaa375f0;";
    assert!(aws.api().show().contains(opened), "{}", aws.api().show());
    release(&aws, &web).await;
    assert_eq!(aws.api().show(), empty);
}

#[tokio::test]
async fn without_a_known_group_of_the_nodes_the_user_is_told_what_to_open() {
    let fake = Fake::new(VPC);
    fake.add_subnet("subnet-a", "us-east-1a", false, &[]);
    fake.add_instance("i-1");
    let report = settle(&provider(fake), &service("web", UID, &["TCP 80 30080"]), &world(&["i-1"])).await;
    assert_eq!(reasons(&report), ["NodesNotOpened", "EnsuredLoadBalancer"]);
    assert!(report.notes[0].message.contains("kubernetes.io/cluster/my-cluster"), "{:?}", report.notes);
}

#[tokio::test]
async fn a_rule_that_somebody_else_made_for_the_load_balancer_is_named_and_left() {
    let fake = account();
    let database = fake.add_security_group("database", &[]);
    let aws = provider(fake);
    let web = service("web", UID, &["TCP 80 30080"]);
    settle(&aws, &web, &world(&["i-1"])).await;
    let groups = aws.api().security_groups(VPC).await.unwrap();
    let ours = groups.iter().find(|g| g.name.starts_with("k8s-")).unwrap();
    let by_hand = Rule::new("tcp", (5432, 5432), Source::Group(ours.id.clone()));
    aws.api().allow(&database, std::slice::from_ref(&by_hand)).await.unwrap();

    // The first try finds out, the second knows.
    let report = aws.release(&web).await;
    assert!(matches!(report.outcome, Outcome::Retry { .. }) && !report.released, "{report:?}");
    let report = aws.release(&web).await;
    assert_eq!(reasons(&report), ["SecurityGroupInUse"]);
    assert!(report.notes[0].message.contains("security group database"), "{:?}", report.notes);
    assert!(aws.api().show().contains("security group database: tcp 5432"), "{}", aws.api().show());
    aws.api().revoke(&database, &[by_hand]).await.unwrap();
    assert!(release(&aws, &web).await.released);
}

#[tokio::test]
async fn deletion_protection_holds_until_the_annotation_is_taken_away() {
    let aws = provider(account());
    let empty = aws.api().show();
    let web = service("web", UID, &["TCP 80 30080"]);
    let protected = annotate(web.clone(), &[("attributes", "deletion_protection.enabled=true")]);
    let world = world(&["i-1"]);
    settle(&aws, &protected, &world).await;
    for attempt in [
        aws.release(&protected).await,
        aws.reconcile(&annotate(protected.clone(), &[("scheme", "internet-facing")]), &world).await,
    ] {
        assert_eq!(reasons(&attempt), ["DeletionProtected"]);
        assert!(!attempt.released && matches!(attempt.outcome, Outcome::Blocked { .. }));
    }
    release(&aws, &web).await;
    assert_eq!(aws.api().show(), empty);
}

#[tokio::test]
async fn an_instance_that_aws_does_not_take_costs_the_others_nothing_and_is_tried_again() {
    let aws = provider(account());
    let web = service("web", UID, &["TCP 80 30080", "TCP 443 30443"]);
    // i-9 was terminated, or stopped; its Node is still there.
    let with_dead = world(&["i-1", "i-2", "i-9"]);
    for _ in 0..2 {
        let report = aws.reconcile(&web, &with_dead).await;
        assert!(matches!(&report.outcome, Outcome::Retry { why, .. } if why.contains("i-9")), "{report:?}");
        assert_eq!(reasons(&report)[0], "TargetRefused");
        assert!(report.ingress.is_some());
    }
    let shown = aws.api().show();
    assert!(shown.contains("; i-1:30080 i-2:30080;") && shown.contains("i-1:30443 i-2:30443"), "{shown}");
    assert!(shown.contains("listener 443"), "{shown}");
    aws.api().add_instance("i-9");
    assert_eq!(aws.reconcile(&web, &with_dead).await.outcome, Outcome::Converged);
    assert!(aws.api().show().contains("i-2:30443 i-9:30443"), "{}", aws.api().show());
}

#[tokio::test]
async fn a_registered_instance_that_stops_is_not_taken_out() {
    let aws = provider(account());
    let web = service("web", UID, &["TCP 80 30080"]);
    settle(&aws, &web, &world(&["i-1", "i-2"])).await;
    aws.api().remove_instance("i-2");
    let more = service("web", UID, &["TCP 80 30080", "TCP 443 30443"]);
    aws.reconcile(&more, &world(&["i-1", "i-2"])).await;
    let shown = aws.api().show();
    assert!(shown.contains("i-1:30080 i-2:30080;") && shown.contains("; i-1:30443;"), "{shown}");
}

#[tokio::test]
async fn what_stood_in_the_way_in_the_account_is_looked_at_again_once_somebody_removed_it() {
    let (web, world) =
        (annotate(service("web", UID, &["TCP 80 30080"]), &[("name", "shop")]), world(&["i-1"]));
    let fake = account();
    let foreign = NewLoadBalancer {
        name: "shop".to_owned(),
        scheme: Scheme::Internal,
        subnets: vec!["subnet-a".to_owned()],
        security_groups: Vec::new(),
        tags: Tags::from([("owner".to_owned(), "payroll".to_owned())]),
    };
    let arn = fake.create_load_balancer(&foreign).await.unwrap().arn;
    let aws = provider(fake).looking_again_after(Duration::ZERO);
    // Another Service is served meanwhile, and must not pay for the other's second looks.
    let other = service("other", "uid-0", &["TCP 80 30081"]);
    settle(&aws, &other, &world).await;
    let report = aws.reconcile(&web, &world).await;
    assert_eq!(reasons(&report).last(), Some(&"NameTaken"));
    assert!(
        matches!(report.outcome, Outcome::Retry { .. }),
        "no Service, node or pool will tell: {report:?}"
    );
    aws.api().delete_load_balancer(&arn).await.unwrap();
    let report = aws.reconcile(&web, &world).await;
    assert_eq!(report.outcome, Outcome::Converged, "{report:?}");
    aws.api().reset_calls();
    settle(&aws, &other, &world).await;
    assert_eq!(aws.api().call_count(), 0, "{:?}", aws.api().calls());
}

#[tokio::test]
async fn errors_that_somebody_must_act_on_become_notes() {
    for (code, reason, retried) in [
        ("AccessDenied", Some("AccessDenied"), true),
        ("TooManyLoadBalancers", Some("QuotaExceeded"), true),
        ("InvalidConfigurationRequest", Some("RefusedByAws"), true),
        ("ThrottlingException", None, true),
        ("InternalFailure", None, true),
    ] {
        let aws = provider(account());
        aws.api().fail_write(0, Fault::Refuse(code));
        let (web, world) = (service("web", UID, &["TCP 80 30080"]), world(&["i-1"]));
        let report = aws.reconcile(&web, &world).await;
        assert_eq!(reasons(&report), reason.into_iter().collect::<Vec<_>>(), "{code}");
        assert_eq!(matches!(report.outcome, Outcome::Retry { .. }), retried, "{code}: {report:?}");
        assert_eq!(settle(&aws, &web, &world).await.outcome, Outcome::Converged, "{code}");
    }
}

/// The fake account as the stories see it.
struct FakeSite {
    fake: Fake,
    instances: [String; 3],
}

impl FakeSite {
    fn new() -> Self {
        Self { fake: account(), instances: ["i-1", "i-2", "i-3"].map(str::to_owned) }
    }
}

impl aws_suite::Site for FakeSite {
    type Api = Fake;

    fn api(&self) -> Fake {
        self.fake.clone()
    }

    fn vpc(&self) -> &str {
        VPC
    }

    fn instances(&self) -> &[String; 3] {
        &self.instances
    }

    fn subnets(&self, scheme: Scheme) -> BTreeSet<String> {
        let ids = match scheme {
            Scheme::Internal => ["subnet-a", "subnet-b"],
            Scheme::InternetFacing => ["subnet-pa", "subnet-pb"],
        };
        ids.map(str::to_owned).into()
    }
}
