//! The AWS provider dies, or loses an answer, at any point of its work, and still ends in the one
//! right state: nothing twice, nothing left behind.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod aws_support;

use aws_support::{UID, account, annotate, provider, release, service, settle, without_group_names, world};
use cloud_controller::aws::Provider;
use cloud_controller::aws::fake::{Fake, Fault};
use cloud_controller::plan::Outcome;
use proptest::prelude::*;
use service_model::{Service, TrafficPolicy, World};

/// How the controller comes by its knowledge after something went wrong.
#[derive(Debug, Clone, Copy)]
enum After {
    /// It goes on with what it knows.
    Continued,
    /// Another begins with nothing.
    Restarted,
}

const WRONG: [Fault; 2] = [Fault::LoseAnswer, Fault::Refuse("InternalFailure")];

fn after(aws: Provider<Fake>, how: After) -> Provider<Fake> {
    match how {
        After::Continued => aws,
        After::Restarted => provider(aws.api().clone()),
    }
}

/// A Service, and what it may turn into.
fn stories() -> Vec<(Service, Service)> {
    let full = annotate(
        service("web", UID, &["TCP 80 30080", "UDP 53 30053"]),
        &[
            ("additional-resource-tags", "team=a"),
            ("attributes", "load_balancing.cross_zone.enabled=true"),
            ("target-group-attributes", "deregistration_delay.timeout_seconds=5"),
        ],
    );
    let mut ranges = full.clone();
    ranges.source_ranges = vec!["10.0.0.0/8".parse().unwrap()];
    vec![
        (full.clone(), service("web", UID, &["UDP 80 30080", "TCP 443 30443"])),
        (full.clone(), annotate(full.clone(), &[("scheme", "internet-facing")])),
        (full.clone(), service("web", "uid-2", &["TCP 80 30080"])),
        (full, ranges),
    ]
}

async fn expected(before: Option<&Service>, service: &Service, world: &World) -> Vec<String> {
    let aws = provider(account());
    if let Some(before) = before {
        settle(&aws, before, world).await;
    }
    settle(&aws, service, world).await;
    without_group_names(&aws.api().show())
}

#[tokio::test]
async fn any_write_may_fail_or_lose_its_answer() {
    let world = world(&["i-1", "i-2"]);
    for (before, service) in stories() {
        let created = expected(None, &before, &world).await;
        let changed = expected(Some(&before), &service, &world).await;
        for (fault, how) in
            WRONG.into_iter().flat_map(|f| [After::Continued, After::Restarted].map(|how| (f, how)))
        {
            let mut reached = 0;
            for nth in 0..30 {
                let aws = provider(account());
                let empty = aws.api().show();
                aws.api().fail_write(nth, fault);
                aws.reconcile(&before, &world).await;
                let aws = after(aws, how);
                let report = settle(&aws, &before, &world).await;
                assert_eq!(report.outcome, Outcome::Converged, "{fault:?} {how:?} write {nth}");
                assert_eq!(without_group_names(&aws.api().show()), created, "{fault:?} {how:?} write {nth}");

                aws.api().forget_faults();
                aws.api().fail_write(nth, fault);
                aws.reconcile(&service, &world).await;
                let aws = after(aws, how);
                settle(&aws, &service, &world).await;
                assert_eq!(without_group_names(&aws.api().show()), changed, "{fault:?} {how:?} write {nth}");

                aws.api().forget_faults();
                aws.api().fail_write(nth, fault);
                if !aws.release(&service).await.released {
                    reached += 1;
                }
                let aws = after(aws, how);
                release(&aws, &service).await;
                assert_eq!(aws.api().show(), empty, "{fault:?} {how:?} write {nth}");
            }
            assert!(reached > 3, "the faults did not hit");
        }
    }
}

#[tokio::test]
async fn any_prefix_of_a_plan_is_a_good_place_to_die() {
    let world = world(&["i-1", "i-2"]);
    for (before, service) in stories() {
        let changed = expected(Some(&before), &service, &world).await;
        for killed_after in 0.. {
            let aws = provider(account());
            let empty = aws.api().show();
            settle(&aws, &before, &world).await;
            let plan = aws.plan(&service, &world).await.unwrap();
            if killed_after > plan.batches.len() {
                break;
            }
            aws.execute(&plan.batches[..killed_after]).await.unwrap();
            let aws = provider(aws.api().clone());
            settle(&aws, &service, &world).await;
            assert_eq!(without_group_names(&aws.api().show()), changed, "after {killed_after}");
            assert!(aws.plan(&service, &world).await.unwrap().is_empty());

            let plan = aws.plan_release(&service).await.unwrap();
            aws.execute(&plan.batches[..killed_after.min(plan.batches.len())]).await.unwrap();
            let aws = provider(aws.api().clone());
            release(&aws, &service).await;
            assert_eq!(aws.api().show(), empty, "after {killed_after}");
        }
    }
}

/// One edit, and what goes wrong while it is carried out.
#[derive(Debug, Clone)]
struct Edit {
    ports: Vec<&'static str>,
    instances: Vec<&'static str>,
    public: bool,
    tag: Option<&'static str>,
    local: bool,
    ranges: bool,
    uid: u8,
    fault: Option<(u64, Fault)>,
    how: After,
    linger: u32,
}

fn edit() -> impl Strategy<Value = Edit> {
    let ports = prop::sample::subsequence(vec!["TCP 80 30080", "UDP 53 30053", "TCP 443 30443"], 1..=3);
    let odd_ports = prop::sample::subsequence(vec!["UDP 80 31080", "TCP 53 30053", "UDP 53 30053"], 1..=3);
    let instances = prop::sample::subsequence(vec!["i-1", "i-2", "i-3", "i-4"], 0..=4);
    let fault = prop::option::of((0_u64..16, prop::sample::select(WRONG.to_vec())));
    let how = prop::sample::select(vec![After::Continued, After::Restarted]);
    let tag = prop::option::of(prop::sample::select(vec!["team=a", "team=b,stage=test"]));
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (prop_oneof![ports, odd_ports], instances, flags, tag, 0_u8..2, fault, how, 0_u32..3).prop_map(
        |(ports, instances, (public, local, ranges), tag, uid, fault, how, linger)| Edit {
            ports,
            instances,
            public,
            tag,
            local,
            ranges,
            uid,
            fault,
            how,
            linger,
        },
    )
}

impl Edit {
    fn service(&self) -> Service {
        let scheme = if self.public { "internet-facing" } else { "internal" };
        let service = service("web", &format!("uid-{}", self.uid), &self.ports);
        let mut service = annotate(service, &[("scheme", scheme)]);
        if let Some(tag) = self.tag {
            service = annotate(service, &[("additional-resource-tags", tag)]);
        }
        if self.local {
            service.external_traffic_policy = TrafficPolicy::Local;
            service.health_check_node_port = Some(32000);
        }
        if self.ranges {
            service.source_ranges = vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.0/24".parse().unwrap()];
        }
        service
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    /// However a Service is edited, created again, and interrupted: at the end stands what the last
    /// edit alone would have made, and after the release nothing.
    #[test]
    fn any_history_ends_in_the_state_of_its_last_edit(edits in prop::collection::vec(edit(), 1..6)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut aws = provider(account());
            let empty = aws.api().show();
            for edit in &edits {
                let (service, world) = (edit.service(), world(&edit.instances));
                aws.api().set_linger(edit.linger);
                aws.api().forget_faults();
                if let Some((nth, fault)) = edit.fault {
                    aws.api().fail_write(nth, fault);
                }
                aws.reconcile(&service, &world).await;
                aws = after(aws, edit.how);
            }
            let last = &edits[edits.len() - 1];
            let (service, world) = (last.service(), world(&last.instances));
            settle(&aws, &service, &world).await;
            let wanted = expected(None, &service, &world).await;
            prop_assert_eq!(without_group_names(&aws.api().show()), wanted);
            aws.api().reset_calls();
            settle(&aws, &service, &world).await;
            prop_assert_eq!(aws.api().call_count(), 0);
            release(&aws, &service).await;
            prop_assert_eq!(aws.api().show(), empty);
            Ok(())
        })?;
    }
}
