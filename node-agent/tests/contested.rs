//! Addresses that several Services want: who has them is known before the first part of a start, whatever becomes of who
//! asks.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use node_agent::engine::Engine;
use node_agent::nft::desired::{DesiredService, titles_of};
use node_agent::nft::plan::Planner;
use service_model::{Change, Key, Object, Service, ServiceName};
use support::kernel::in_namespace;
use support::many::{FIRST, MANY, many, programmed, service, sync};
use support::*;

/// What they all want: the ClusterIP of one, an external IP of others.
const CONTESTED: u32 = FIRST + MANY;

fn owner() -> Service {
    service("zzz", "owner", CONTESTED)
}

/// It sorts before all others, and so is in the first part.
fn thief() -> Service {
    let mut thief = service("aaa", "thief", FIRST + MANY + 1);
    thief.external_ips = vec![Ipv4Addr::from(CONTESTED).into()];
    thief
}

fn apply(agent: &mut Agent, service: Service) {
    agent.world.apply(Change::Apply(Object::Service(service)));
}

/// Whom the kernel has the address for.
fn served_for() -> Option<String> {
    let frontend = format!("{}:80/TCP", Ipv4Addr::from(CONTESTED));
    let programmed = programmed();
    let found = programmed.frontends.iter().find(|(of, _)| of.to_string() == frontend);
    found.map(|(_, state)| state.label.to_string())
}

#[test]
fn what_the_kernel_refuses_to_its_owner_is_nobodys_until_that_is_right_or_gone() {
    for goes in [false, true] {
        in_namespace(|| {
            let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
            let now = Instant::now();
            many(&mut agent);
            apply(&mut agent, thief());
            // What the API server would never let in stands for what a kernel may refuse.
            let mut refused = owner();
            refused.ports[0].name = "a\0b".into();
            apply(&mut agent, refused);
            sync(&mut engine, &mut agent, now);
            assert_eq!((engine.refused(), served_for()), (1, None));
            assert_eq!(programmed().frontends.len(), MANY as usize + 1, "the thief's own address is served");

            sync(&mut engine, &mut agent, now + Duration::from_secs(60));
            assert_eq!((engine.refused(), served_for()), (1, None), "it was tried again");
            if goes {
                agent.world.apply(Change::Delete(Key::Service(owner().name)));
            } else {
                apply(&mut agent, owner());
            }
            sync(&mut engine, &mut agent, now + Duration::from_secs(61));
            let then = if goes { "aaa/thief:http" } else { "zzz/owner:http" };
            assert_eq!((engine.refused(), served_for().as_deref()), (0, Some(then)));
            assert!(!engine.recheck().unwrap());
        });
    }
}

/// A start that fails between two parts is made anew, with what the cluster is like by then. Who was foreseen is among
/// those that are planned then, and its plan gives up what it was to have.
#[test]
fn who_is_foreseen_and_goes_before_its_part_passes_on_what_it_never_had() {
    let mut planner = Planner::default();
    for service in [owner(), thief()] {
        planner.foresee(&service.name, titles_of(&service));
    }
    let agent = Agent::new();
    let mut mirror = agent.fake.observe();
    let mut plan = |planner: &mut Planner, service: &ServiceName, there: &[Service]| -> Vec<String> {
        let desired = |name: &ServiceName| {
            let service = there.iter().find(|service| service.name == *name);
            service.map(|service| DesiredService::of(service, &agent.world, PLACE)).unwrap_or_default()
        };
        let plan = planner.plan(&BTreeSet::from([service.clone()]), desired, &mirror);
        plan.now.iter().for_each(|step| mirror.follow(step));
        plan.now.iter().map(ToString::to_string).collect()
    };
    let contested = Ipv4Addr::from(CONTESTED).to_string();
    let of_contested = |steps: Vec<String>| steps.iter().any(|step| step.contains(&contested));
    assert!(!of_contested(plan(&mut planner, &thief().name, &[owner(), thief()])), "it is the owner's");
    let known: Vec<&ServiceName> = planner.services().collect();
    assert_eq!(known, [&thief().name, &owner().name]);
    assert!(of_contested(plan(&mut planner, &owner().name, &[thief()])), "it is the thief's now");
    assert_eq!(planner.services().collect::<Vec<_>>(), [&thief().name]);
}
