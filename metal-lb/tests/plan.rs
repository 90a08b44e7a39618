//! The plan: its text, that it settles, and that a crash at any step leaves nothing behind.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/plans.rs"]
mod plans;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb::desired::{Desired, ListenerId, Mac, Timeouts};
use metal_lb::observed::{Observed, ObservedTarget};
use metal_lb::plan::fake::Fake;
use metal_lb::plan::{Backend, MAX_VIPS, Step, plan_all};
use metal_lb_api::NatProtocol;
use plans::{any_desired, apply_all, listener, plans_of, settle, web};
use proptest::prelude::*;

/// The plans that lead from one wish to the next, on the fake, as one text.
fn story(wishes: &[(&str, Desired)]) -> String {
    let mut fake = Fake::default();
    let mut text = String::new();
    for (title, wish) in wishes {
        text.push_str(&format!("## {title}\n"));
        for plan in plans_of(&mut fake, wish) {
            text.push_str(&plan.to_string());
            apply_all(&mut fake, &plan).unwrap();
        }
        text.push('\n');
    }
    text
}

/// `UPDATE_GOLDEN=1 cargo test` rewrites the file; read the diff.
fn assert_golden(name: &str, text: &str) {
    let path = format!("{}/tests/golden/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}");
}

#[test]
fn the_life_of_a_vip_reads_like_this() {
    let three = web(&[("node-1", 1), ("node-2", 2), ("node-3", 3)]);
    let mut unowned = three.clone();
    unowned.vips.values_mut().for_each(|owned| *owned = false);
    let mut moved = three.clone();
    moved
        .listeners
        .values_mut()
        .for_each(|l| l.targets.get_mut("node-1").unwrap().mac = Some(Mac([2, 0, 0, 0, 9, 9])));
    let mut weighted = web(&[("node-1", 1), ("node-2", 2)]);
    weighted.listeners.values_mut().for_each(|l| l.targets.get_mut("node-2").unwrap().weight = 3);
    let mut patient = weighted.clone();
    let timeouts = Timeouts { tcp_idle: 3600, ..Timeouts::default() };
    patient.listeners.values_mut().for_each(|l| l.timeouts = timeouts);
    assert_golden(
        "vip.txt",
        &story(&[
            ("a Service appears, another host owns the address", unowned),
            ("this host takes the address over", three.clone()),
            ("nothing changed", three),
            ("node-1 got another network card", moved),
            ("node-3 drains, node-2 takes three times as much", weighted),
            ("connections may be idle for an hour", patient),
            ("no node is healthy", web(&[])),
            ("node-2 is back", web(&[("node-2", 2)])),
            (
                "the Service is gone",
                Desired {
                    probe_address: web(&[]).probe_address,
                    host_slot: 2,
                    seed: 7,
                    ..Desired::default()
                },
            ),
        ]),
    );
}

#[test]
fn a_target_that_left_is_forgotten_only_when_nothing_can_name_it() {
    let mut fake = Fake::default();
    settle(&mut fake, &web(&[("node-1", 1), ("node-2", 2)]));
    let one = web(&[("node-1", 1)]);
    settle(&mut fake, &one);
    let left = |fake: &Fake| fake.state.targets.values().filter(|t| !t.in_table).count();
    assert_eq!(left(&fake), 1, "its connections go on");
    fake.state.targets.values_mut().for_each(|t| t.idle = !t.in_table);
    settle(&mut fake, &one);
    assert_eq!(left(&fake), 0);
}

#[test]
fn a_target_that_comes_back_in_time_has_its_old_id() {
    let mut fake = Fake::default();
    let both = web(&[("node-1", 1), ("node-2", 2)]);
    settle(&mut fake, &both);
    let before = fake.state.clone();
    settle(&mut fake, &web(&[("node-1", 1)]));
    settle(&mut fake, &both);
    assert_eq!(fake.state, before);
}

#[test]
fn a_name_that_moves_to_another_address_is_another_target() {
    let mut fake = Fake::default();
    settle(&mut fake, &web(&[("node-1", 1)]));
    settle(&mut fake, &web(&[("node-1", 7)]));
    let states: Vec<(SocketAddrV4, bool)> =
        fake.state.targets.values().map(|t| (t.address, t.in_table)).collect();
    let at = |n: u8| SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 10 + n), 30080);
    assert_eq!(states, [(at(1), false), (at(7), true)]);
}

#[test]
fn another_seed_builds_every_table_anew_and_changes_nothing_else() {
    let mut fake = Fake::default();
    let mut wish = web(&[("node-1", 1)]);
    settle(&mut fake, &wish);
    wish.seed += 1;
    let steps: Vec<Step> = plans_of(&mut fake, &wish).into_iter().flat_map(|p| p.batches.concat()).collect();
    assert!(matches!(steps[..], [Step::SetHost(_), Step::SwapTable { .. }]), "{steps:?}");
}

#[test]
fn when_ids_run_out_the_plan_says_which_target_it_leaves_out() {
    let other = ListenerId { vip: Ipv4Addr::new(10, 0, 0, 1), protocol: NatProtocol::Tcp, port: 1 };
    let taken = ObservedTarget {
        listener: other,
        address: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 1),
        mac: None,
        in_table: true,
        idle: false,
    };
    let targets: BTreeMap<u32, ObservedTarget> =
        (1..65_536).filter(|id| *id != 77).map(|id| (id, taken)).collect();
    let observed = Observed::new(None, BTreeMap::new(), BTreeMap::new(), targets, BTreeMap::new());
    let wish = web(&[("node-1", 1), ("node-2", 2)]);
    let plan = metal_lb::plan::plan(Ipv4Addr::new(172, 30, 0, 200), &wish, &observed);
    let text = plan.to_string();
    assert!(text.contains("target 77 = node-1"), "{text}");
    assert!(text.contains("leaves out node-2: all 65536 targets are in use"), "{text}");
}

#[test]
fn when_addresses_run_out_the_plan_leaves_one_out_and_the_others_go_on() {
    let other = |n: u32| Ipv4Addr::from_bits(0x0a00_0000 + n);
    let vips: BTreeMap<Ipv4Addr, bool> = (0..MAX_VIPS).map(|n| (other(n), true)).collect();
    let full = Observed::new(None, vips.clone(), BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let mut fake = Fake { state: full, ..Fake::default() };
    let mut wish = web(&[("node-1", 1)]);
    wish.vips.extend(vips);
    let plan = metal_lb::plan::plan(Ipv4Addr::new(172, 30, 0, 200), &wish, &fake.state);
    assert_eq!(
        plan.to_string(),
        "note: TCP 172.30.0.200:80 is not programmed: all 4096 addresses are in use\n"
    );
    settle(&mut fake, &wish);
    wish.vips.remove(&other(7));
    settle(&mut fake, &wish);
    settle(&mut fake, &wish);
    assert_eq!(fake.state.vips, wish.vips, "there is room again");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_wish_settles_from_any_other(wishes in prop::collection::vec(any_desired(), 1..5)) {
        let mut fake = Fake::default();
        for wish in &wishes {
            settle(&mut fake, wish);
        }
        assert_serves(&fake.state, wishes.last().unwrap());
    }

    /// Planned together, VIPs end as they would one after the other, and a crash between two phases
    /// leaves nothing behind either.
    #[test]
    fn many_vips_in_one_plan_end_like_one_after_the_other(
        wishes in prop::collection::vec(any_desired(), 1..4), after in 0usize..30
    ) {
        let (mut fake, mut cut) = (Fake::default(), Fake::default());
        for wish in &wishes {
            let together = |backend: &mut Fake| {
                let observed = backend.observe().unwrap();
                plan_all(wish.vips.keys().copied().chain(observed.addresses()).collect::<BTreeSet<_>>(), wish, &observed)
            };
            let plan = together(&mut fake);
            apply_all(&mut fake, &plan).unwrap();
            prop_assert!(together(&mut fake).is_empty());
            assert_serves(&fake.state, wish);

            cut.dies_after = Some(after);
            let plan = together(&mut cut);
            let _died = apply_all(&mut cut, &plan);
            cut.dies_after = None;
        }
        settle(&mut cut, wishes.last().unwrap());
        assert_serves(&cut.state, wishes.last().unwrap());
    }

    /// Each batch is cut at every step: the rest of the plan is lost, and what comes next is planned
    /// from what stands, perhaps for another wish.
    #[test]
    fn a_crash_at_any_step_leaves_nothing_behind(
        wishes in prop::collection::vec(any_desired(), 2..5), crashes in prop::collection::vec(0usize..12, 4)
    ) {
        let mut fake = Fake::default();
        for (wish, after) in wishes.iter().zip(&crashes) {
            fake.dies_after = Some(*after);
            for plan in plans_of(&mut fake, wish) {
                if apply_all(&mut fake, &plan).is_err() {
                    break;
                }
            }
            fake.dies_after = None;
        }
        let last = wishes.last().unwrap();
        settle(&mut fake, last);
        assert_serves(&fake.state, last);
        settle(&mut fake, &Desired::default());
        let gone = fake.observe().unwrap();
        prop_assert!(gone.addresses().is_empty(), "left behind: {gone:?}");
    }
}

/// What is programmed is what is wished, and no id or table stands twice.
fn assert_serves(state: &Observed, wish: &Desired) {
    assert_eq!(state.vips, wish.vips);
    let wanted: Vec<ListenerId> =
        wish.vips.keys().flat_map(|vip| wish.listeners_of(*vip)).map(|(id, _)| *id).collect();
    assert_eq!(state.listeners.keys().copied().collect::<Vec<_>>(), wanted);
    assert_eq!(state.tables.len(), wanted.len(), "one table a listener");
    for id in wanted {
        let in_table = state.targets.values().filter(|t| t.listener == id && t.in_table);
        let mut have: Vec<_> = in_table.map(|t| (t.address, t.mac)).collect();
        let mut want: Vec<_> = listener(wish, &id).targets.values().map(|t| (t.address, t.mac)).collect();
        have.sort();
        want.sort();
        assert_eq!(have, want, "{id}");
    }
}
