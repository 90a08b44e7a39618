//! The plan settles from anywhere, and never dispatches to an endpoint that is not there.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::Duration;

use node_agent::nft::affinity::Affinities;
use node_agent::nft::desired::{DesiredFrontend, DesiredService};
use node_agent::nft::evaluate::holes;
use node_agent::nft::layout::{Frontend, Group, Pool, Target};
use node_agent::nft::mirror::Mirror;
use node_agent::nft::plan::Planner;
use node_agent::nft::step::{Element, Step};
use proptest::prelude::*;
use service_model::{ObjectName, Protocol, ServiceName};
use support::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Settles: apply, observe, plan again: nothing. Crash-safe: it may die before, between and
    /// after the batches, with or without knowing what was committed.
    #[test]
    fn a_plan_settles_however_often_the_agent_dies(
        happenings in proptest::collection::vec((happening(), 0u8..4), 1..12),
    ) {
        let mut agent = Agent::new();
        for (happening, dies) in &happenings {
            agent.happen(happening);
            let plan = agent.plan();
            if *dies == 1 {
                agent.happen(&Happening::Restart);
                continue;
            }
            prop_assert!(agent.fake.commit(&plan.now).is_ok(), "{:?}\n{plan}", agent.fake.clone().commit(&plan.now));
            prop_assert_eq!(holes(&agent.fake.observe()), Vec::<String>::new());
            if *dies == 2 {
                agent.happen(&Happening::Restart);
                continue;
            }
            // A second later: whatever has happened meanwhile, it is planned anew.
            let later = agent.plan();
            prop_assert!(later.now.is_empty(), "not settled:\n{later}");
            prop_assert!(agent.fake.commit(&later.all_later()).is_ok());
            prop_assert_eq!(holes(&agent.fake.observe()), Vec::<String>::new());
        }
        let plan = agent.plan();
        agent.fake.commit(&plan.now).unwrap();
        let later = agent.plan();
        agent.fake.commit(&later.all_later()).unwrap();
        agent.happen(&Happening::Restart);
        let rest = agent.plan();
        prop_assert!(rest.is_empty(), "a restart has work:\n{rest}");
    }

    /// However a Service came about, the kernel ends up alike but for the order of endpoints.
    #[test]
    fn the_end_does_not_depend_on_the_way(happenings in proptest::collection::vec(happening(), 1..8)) {
        let mut slow = Agent::new();
        for happening in &happenings {
            slow.happen(happening);
            settle(&mut slow);
        }
        let mut fast = Agent::new();
        for happening in happenings.iter().filter(|h| !matches!(h, Happening::Restart)) {
            fast.happen(happening);
        }
        settle(&mut fast);
        prop_assert_eq!(keepers(&slow.fake.observe()), keepers(&fast.fake.observe()));
        prop_assert_eq!(sorted(slow.fake.observe()), sorted(fast.fake.observe()));
    }
}

fn settle(agent: &mut Agent) {
    let plan = agent.plan();
    agent.fake.commit(&plan.now).unwrap();
    let later = agent.plan();
    assert!(later.now.is_empty(), "{later}");
    agent.fake.commit(&later.all_later()).unwrap();
}

fn sorted(mut mirror: Mirror) -> Mirror {
    for state in mirror.frontends.values_mut() {
        state.cluster.sort_unstable();
        state.local.sort_unstable();
    }
    // Compared by `keepers`.
    mirror.affinities = Affinities::default();
    mirror
}

/// Endpoints of one Service, by the last byte of their addresses.
fn of_one_service(lasts: impl IntoIterator<Item = u8>) -> Happening {
    let endpoints = lasts.into_iter().map(|last| (last, false)).collect();
    Happening::Apply(Spec { number: 1, endpoints, ..Spec::default() })
}

#[test]
fn a_removal_moves_only_the_last_index_into_the_hole() {
    let mut agent = Agent::new();
    agent.happen(&of_one_service([1, 2, 3, 4, 5]));
    settle(&mut agent);
    agent.happen(&of_one_service([1, 3, 4, 5]));
    let plan = agent.plan();
    let endpoints: Vec<String> = plan
        .now
        .iter()
        .filter(|s| matches!(s, Step::Add(Element::Endpoint { .. }) | Step::Delete(Element::Endpoint { .. })))
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        endpoints,
        [
            "no longer send 10.96.0.1:80/TCP #1 to 10.244.0.2:8080",
            "send 10.96.0.1:80/TCP #1 to 10.244.0.5:8080"
        ]
    );
    assert_eq!(plan.all_later().len(), 1, "the old place of the last one goes a second later:\n{plan}");
}

/// Counts above 16 share a class, which draws more indexes than are taken.
#[test]
fn an_endpoint_that_leaves_a_large_service_can_no_longer_be_drawn() {
    let mut agent = Agent::new();
    agent.happen(&of_one_service(1..=18));
    settle(&mut agent);
    agent.happen(&of_one_service(1..=17));
    let plan = agent.plan();
    let gone = plan.now.iter().filter(|step| matches!(step, Step::Delete(Element::Endpoint { .. }))).count();
    assert_eq!((gone, plan.all_later().len()), (1, 0), "{plan}");
}

#[test]
fn a_frontend_that_two_services_claim_belongs_to_the_first_name_and_passes_on() {
    let mut agent = Agent::new();
    let spec =
        |number, last| Spec { number, external: Some(1), endpoints: vec![(last, false)], ..Spec::default() };
    agent.happen(&Happening::Apply(spec(2, 2)));
    settle(&mut agent);
    agent.happen(&Happening::Apply(spec(1, 1)));
    settle(&mut agent);
    let owner = |agent: &Agent| {
        let frontend =
            Frontend::Vip { ip: [192, 0, 2, 1].into(), protocol: service_model::Protocol::Tcp, port: 80 };
        let state = agent.fake.observe().frontends[&frontend].clone();
        (state.label.to_string(), state.pool(Pool::Cluster)[0].unwrap().to_string())
    };
    assert_eq!(owner(&agent), ("ns/svc-1:http".into(), "10.244.0.1:8080".into()));
    agent.happen(&Happening::Delete(1));
    settle(&mut agent);
    assert_eq!(owner(&agent), ("ns/svc-2:http".into(), "10.244.0.2:8080".into()));
}

/// The endpoint that moved into the hole still stands in its old place, and must not keep it.
#[test]
fn an_endpoint_that_comes_while_another_is_leaving_gets_a_place() {
    let mut agent = Agent::new();
    let spec = |lasts: &[u8]| Spec {
        number: 1,
        endpoints: lasts.iter().map(|l| (*l, false)).collect(),
        ..Spec::default()
    };
    agent.happen(&Happening::Apply(spec(&[1, 2, 3])));
    settle(&mut agent);
    for endpoints in [[2, 3].as_slice(), &[2, 3, 4]] {
        agent.happen(&Happening::Apply(spec(endpoints)));
        let plan = agent.plan();
        agent.fake.commit(&plan.now).unwrap();
    }
    let vip = Frontend::Vip { ip: [10, 96, 0, 1].into(), protocol: service_model::Protocol::Tcp, port: 80 };
    let mut places: Vec<String> =
        agent.fake.observe().frontends[&vip].cluster.iter().flatten().map(ToString::to_string).collect();
    places.sort_unstable();
    assert_eq!(places, ["10.244.0.2:8080", "10.244.0.3:8080", "10.244.0.4:8080"]);
}

/// Nothing is looked through for each of them: twenty times as many would take four hundred times as long.
#[test]
fn services_that_go_at_once_take_no_longer_each_if_they_are_many() {
    // What else the machine does can make many look slow, but not again and again.
    let grows = || work_of_services_that_go(10_000).div_duration_f64(work_of_services_that_go(500));
    let seen: Vec<f64> = std::iter::repeat_with(grows).take(3).take_while(|grown| *grown > 100.0).collect();
    assert!(seen.len() < 3, "twenty times as many Services took {seen:?} times as long");
}

/// The processor time in which so many are planned that go.
fn work_of_services_that_go(count: u32) -> Duration {
    let mut mirror = Mirror::default();
    let mut planner = Planner::default();
    let names: BTreeSet<ServiceName> = (0..count).map(|n| ObjectName::new("ns", &n.to_string())).collect();
    let frontend = |name: &ServiceName| {
        let number: u32 = name.name().parse().unwrap();
        Frontend::Vip { ip: Ipv4Addr::from(0x0a60_0000 + number).into(), protocol: Protocol::Tcp, port: 80 }
    };
    let target = Target { ip: [10, 244, 0, 1].into(), port: 80 };
    let desired = |name: &ServiceName| DesiredService {
        frontends: [(
            frontend(name),
            DesiredFrontend {
                label: name.as_str().into(),
                groups: [Group::Served].into_iter().collect(),
                cluster: vec![target],
                local: Vec::new(),
                sources: BTreeSet::new(),
                title: node_agent::nft::claims::Title::Allocated,
                affinities: Vec::new(),
            },
        )]
        .into(),
        ..DesiredService::default()
    };
    let plan = planner.plan(&names, desired, &mirror);
    plan.now.iter().for_each(|step| mirror.follow(step));
    let before = time_of_this_thread();
    for _ in 0..2 {
        let plan = planner.plan(&names, |_| DesiredService::default(), &mirror);
        plan.now.iter().for_each(|step| mirror.follow(step));
        assert_eq!(plan.later.len(), names.len());
    }
    time_of_this_thread() - before
}

fn time_of_this_thread() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}
