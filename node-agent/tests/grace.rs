//! What nothing names any more stays for a second, for packets under way: what that is, and that an update of many
//! Services neither forgets nor hurries it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Instant;

use node_agent::engine::{Engine, PART};
use node_agent::nft::layout::Group;
use node_agent::nft::mirror::Mirror;
use node_agent::nft::plan::{GRACE, Plan};
use node_agent::nft::step::{Element, Step};
use service_model::{Change, Object};
use support::kernel::in_namespace;
use support::many::{FIRST, generation, programmed, service, slice, sync};
use support::*;

/// A load balancer's address that is reached from some of [`SOURCES`].
fn ranged(sources: u8) -> Happening {
    let endpoints = vec![(1, true)];
    Happening::Apply(Spec { number: 1, external: Some(1), sources, endpoints, ..Spec::default() })
}

/// How many of the steps take networks away, and how many of them lead there no longer.
fn taken_away(steps: &[Step]) -> (usize, usize) {
    let count = |what: fn(&Element) -> bool| {
        steps.iter().filter(|step| matches!(step, Step::Delete(element) if what(element))).count()
    };
    (
        count(|element| matches!(element, Element::SourceRange { .. })),
        count(|element| matches!(element, Element::Member { group: Group::Firewalled, .. })),
    )
}

/// A packet that was sent to the networks before the commit looks for its own there after it, and is dropped if it finds
/// none.
#[test]
fn networks_go_a_second_after_nothing_leads_to_them_and_at_once_while_others_stay() {
    // 172.30.0.0/24 is one element, and so is 10.244.0.0/16.
    for (what, then, now, later) in [
        ("lifted", ranged(0), (0, 1), (2, 0)),
        ("the Service is gone", Happening::Delete(1), (0, 1), (2, 0)),
        ("fewer", ranged(0b100), (1, 0), (0, 0)),
        ("others", ranged(0b10), (2, 0), (0, 0)),
        ("none that could come to an address of this family", ranged(0b1000), (0, 1), (2, 0)),
    ] {
        let mut agent = Agent::new();
        agent.happen(&ranged(0b101));
        let plan = agent.plan();
        agent.fake.commit(&plan.now).unwrap();
        agent.happen(&then);
        let Plan { now: first, later: second, .. } = agent.plan();
        let second: Vec<Step> = second.into_values().flatten().collect();
        assert_eq!((taken_away(&first), taken_away(&second)), (now, later), "{what}");
        agent.fake.commit(&first).unwrap();
        let second = agent.plan().all_later();
        agent.fake.commit(&second).unwrap();
        assert!(agent.plan().is_empty(), "{what}");
    }
}

#[test]
fn the_kernel_has_networks_for_a_second_after_they_were_lifted() {
    in_namespace(|| {
        let (mut agent, mut engine, now) = (Agent::new(), Engine::new(config()).unwrap(), Instant::now());
        agent.happen(&ranged(0b101));
        sync(&mut engine, &mut agent, now);
        let state = |mirror: &Mirror| {
            let leads =
                mirror.frontends.values().filter(|state| state.groups.contains(Group::Firewalled)).count();
            (leads, mirror.source_ranges.values().flatten().count())
        };
        assert_eq!(state(&programmed()), (1, 2));
        agent.happen(&ranged(0));
        sync(&mut engine, &mut agent, now);
        assert_eq!(state(&programmed()), (0, 2));
        assert_eq!(engine.next_due(), Some(now + GRACE));
        assert_eq!(sync(&mut engine, &mut agent, now + GRACE / 2), 0, "it is not over yet");
        assert_eq!(sync(&mut engine, &mut agent, now + GRACE), 2);
        assert_eq!((state(&programmed()), engine.next_due()), ((0, 0), None));
        assert!(!engine.recheck().unwrap());
    });
}

/// Some parts of a start, and a bit.
const MANY: u32 = 2 * PART as u32 + 100;

/// So many endpoints have these Services now.
fn have(agent: &mut Agent, services: impl IntoIterator<Item = u32>, endpoints: u8) {
    for number in services {
        let name = format!("svc-{number:04}");
        agent.world.apply(Change::Apply(Object::Service(service("ns", &name, FIRST + number))));
        let endpoints = (1..=endpoints).map(|last| endpoint(last, false)).collect();
        let slice = service_model::EndpointSlice { endpoints, ..slice(&name) };
        agent.world.apply(Change::Apply(Object::EndpointSlice(slice)));
    }
}

/// How many endpoints of each Service a packet can find that is under way.
fn places() -> Vec<usize> {
    programmed().frontends.values().map(|state| state.cluster.iter().flatten().count()).collect()
}

/// Whose endpoints go again meanwhile has a second from then; who is not in the update, what is left of its own.
#[test]
fn a_large_update_neither_forgets_what_is_due_nor_hurries_what_is_not() {
    in_namespace(|| {
        let (mut agent, mut engine, start) = (Agent::new(), Engine::new(config()).unwrap(), Instant::now());
        have(&mut agent, 0..MANY, 3);
        sync(&mut engine, &mut agent, start);
        // In the first part, in the last, and two that stay out of the update.
        let (first, last, over, running) = (0, MANY - 1, MANY / 2, MANY / 2 + 1);
        let expect = |of_others: usize, of_over: usize, of_running: usize, when: &str| {
            let mut expected = vec![of_others; MANY as usize];
            (expected[over as usize], expected[running as usize]) = (of_over, of_running);
            let places = places();
            assert_eq!(places.len(), expected.len(), "{when}");
            let differ = places.into_iter().zip(expected).enumerate().find(|(_, (is, should))| is != should);
            assert_eq!(differ, None, "{when}: a Service, how many it has, how many it should have");
        };
        have(&mut agent, [first, last, over], 2);
        sync(&mut engine, &mut agent, start);
        have(&mut agent, [running], 2);
        sync(&mut engine, &mut agent, start + GRACE / 2);
        expect(3, 3, 3, "all have their second");

        have(&mut agent, (0..MANY).filter(|number| ![over, running].contains(number)), 1);
        let before = generation();
        sync(&mut engine, &mut agent, start + GRACE);
        assert_eq!(generation() - before, 1);
        expect(3, 2, 3, "those that go again have another");
        assert_eq!(engine.next_due(), Some(start + GRACE * 3 / 2));

        sync(&mut engine, &mut agent, start + GRACE * 3 / 2);
        expect(3, 2, 2, "whose second began before the update");
        assert_eq!(engine.next_due(), Some(start + GRACE * 2));
        sync(&mut engine, &mut agent, start + GRACE * 2);
        expect(1, 2, 2, "all is gone that was to go");
        assert_eq!(engine.next_due(), None);
        assert!(!engine.recheck().unwrap());
    });
}

/// Each part of it puts off its own.
#[test]
fn a_start_in_parts_takes_away_what_the_last_life_had_put_off() {
    in_namespace(|| {
        let (mut agent, mut engine, now) = (Agent::new(), Engine::new(config()).unwrap(), Instant::now());
        have(&mut agent, 0..MANY, 2);
        sync(&mut engine, &mut agent, now);
        have(&mut agent, 0..MANY, 1);
        sync(&mut engine, &mut agent, now);
        let mut again = Engine::new(config()).unwrap();
        agent.world.mark_all_services();
        assert_eq!(sync(&mut again, &mut agent, now), 0, "there is nothing to do yet");
        assert!(places().iter().all(|places| *places == 2));
        assert_eq!(again.next_due(), Some(now + GRACE));
        assert_eq!(sync(&mut again, &mut agent, now + GRACE), MANY as usize);
        assert!(places().iter().all(|places| *places == 1));
    });
}
