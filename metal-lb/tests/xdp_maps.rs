//! The real maps: their structs against BTF, and the plan's promises against the kernel.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fmt::Write as _;
use std::process::Command;

use libbpf_rs::MapCore as _;
use libbpf_rs::btf::types::{MemberAttr, Struct};
use libbpf_rs::btf::{Btf, BtfType, HasSize};
use metal_lb::desired::{Desired, ListenerId};
use metal_lb::observed::Observed;
use metal_lb::plan::fake::Fake;
use metal_lb::plan::{Backend, plan_all};
use metal_lb::xdp::{layout, object};
use metal_lb_api::NatProtocol;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::plans::{self, any_desired, next_plan, settle};
use support::*;

#[test]
fn every_shared_struct_has_the_size_that_the_program_knows() {
    let object = object::load(None, 4096).unwrap();
    let btf = object.btf().unwrap().unwrap();
    let table = [
        ("settings", size_of::<layout::Settings>()),
        ("liveness", size_of::<layout::Liveness>()),
        ("vip", size_of::<layout::Vip>()),
        ("listener_key", size_of::<layout::ListenerKey>()),
        ("listener", size_of::<layout::Listener>()),
        ("target", size_of::<layout::Target>()),
        ("flow_key", size_of::<layout::FlowKey>()),
        ("flow", size_of::<layout::Flow>()),
        ("tuple", size_of::<layout::Tuple>()),
        ("connection", size_of::<layout::Connection>()),
        ("counters", size_of::<layout::Counters>()),
    ];
    for (name, size) in table {
        assert_eq!(struct_size(&btf, name), size, "{name}");
    }
}

/// A release finds the maps of the one before it: what it would misread must have another version.
#[test]
fn maps_of_another_shape_have_another_version() {
    let object = object::load(None, 4096).unwrap();
    let btf = object.btf().unwrap().unwrap();
    let mut shape =
        format!("a table: {} slots, then its label, {} bytes\n", maglev::TABLE_SLOTS, layout::TABLE_BYTES);
    let maps = object.maps().filter(|map| !map.name().to_string_lossy().contains(".rodata"));
    let mut maps: Vec<String> = maps
        .map(|map| {
            let (name, key, value) = (map.name().to_string_lossy(), map.key_size(), map.value_size());
            format!("map {name} {:?} {key} -> {value}\n", map.map_type())
        })
        .collect();
    maps.sort();
    shape.extend(maps);
    for name in [
        "settings",
        "liveness",
        "vip",
        "listener_key",
        "listener",
        "target",
        "flow_key",
        "flow",
        "tuple",
        "connection",
        "counters",
    ] {
        write!(shape, "struct {name}").unwrap();
        let found: BtfType<'_> = btf.type_by_name(name).unwrap();
        for member in Struct::try_from(found).unwrap().iter() {
            let MemberAttr::Normal { offset } = member.attr else { panic!("a bit field in {name}") };
            write!(shape, " {}@{}", member.name.unwrap().to_string_lossy(), offset / 8).unwrap();
        }
        shape.push('\n');
    }
    let path = format!("{}/tests/golden/maps-{}.txt", env!("CARGO_MANIFEST_DIR"), object::ABI);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, &shape).unwrap();
    }
    let known = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shape, known, "raise object::ABI, and run this with UPDATE_GOLDEN=1 to write {path}");
}

fn struct_size(btf: &Btf<'_>, name: &str) -> usize {
    let found: BtfType<'_> = btf.type_by_name(name).unwrap_or_else(|| panic!("BTF knows no {name}"));
    Struct::try_from(found).unwrap_or_else(|_| panic!("{name} is no struct")).size()
}

#[test]
fn a_service_that_is_gone_leaves_nothing() {
    let mut bench = Bench::programmed(&desired(true, 3));
    bench.program(&Desired::default());
    let mut left = bench.backend.observe().unwrap();
    left.host = None;
    assert_eq!(left, Observed::default());
    assert_eq!((bench.entries("vips"), bench.entries("listeners")), (0, 0));
}

#[test]
fn a_slow_listener_and_a_fast_one_keep_their_own_timeouts() {
    let mut wish = desired(true, 1);
    wish.listeners.values_mut().for_each(|l| l.timeouts.tcp_idle = 60);
    let bench = Bench::programmed(&wish);
    establish(&bench, 40_000);
    bench.age("connections", 61);
    assert_eq!(bench.run(&Frame::tcp(client(40_000), vip(), ACK).build()).0, DROP);
    let udp = forwarded(&bench, Frame::udp(client(5000), vip()));
    forwarded(&bench, answer(&udp, 0));
    bench.age("connections", 61);
    forwarded(&bench, Frame::udp(client(5000), vip()));
}

/// The same steps, cut off at the same places, leave the kernel's maps as they leave the fake's; so
/// what is proven on the fake holds on the kernel.
#[test]
fn the_kernels_maps_and_the_fake_agree_whatever_is_cut_off() {
    let mut runner = TestRunner::new(ProptestConfig::with_cases(8));
    let story = prop::collection::vec((any_desired(), 0usize..12), 2..4);
    runner
        .run(&story, |story| {
            let (mut bench, mut fake) = (Bench::new(), Fake::default());
            for (wish, survive) in &story {
                let mut left = *survive;
                while let Some(plan) = next_plan(&mut fake, wish) {
                    for step in plan.steps().take(left) {
                        bench.backend.apply(std::slice::from_ref(step)).unwrap();
                        fake.apply(std::slice::from_ref(step)).unwrap();
                    }
                    if plan.steps().count() > left {
                        break;
                    }
                    left -= plan.steps().count();
                }
                let mut observed = bench.backend.observe().unwrap();
                // The kernel knows that no packet ever went there; the fake does not count packets.
                observed.targets.values_mut().for_each(|t| t.idle = false);
                prop_assert_eq!(observed, fake.observe().unwrap());
            }
            let last = &story.last().unwrap().0;
            settle(&mut bench.backend, last);
            settle(&mut fake, last);
            prop_assert!(next_plan(&mut bench.backend, last).is_none());
            prop_assert_eq!(bench.backend.observe().unwrap().listeners, fake.state.listeners);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_step_that_is_taken_twice_is_no_error() {
    let mut bench = Bench::new();
    for wish in [desired(true, 2), desired(true, 1), Desired::default()] {
        while let Some(plan) = next_plan(&mut bench.backend, &wish) {
            for batch in &plan.batches {
                bench.backend.apply(batch).unwrap();
                bench.backend.apply(batch).unwrap();
            }
        }
    }
}

#[test]
fn more_tables_are_swapped_together_than_a_process_may_have_files() {
    const ALONE: &str = "FAIRLEAD_TEST_ALONE";
    if std::env::var_os(ALONE).is_none() {
        // The limit is a process's: those who test beside this one would have it too.
        let mut alone = Command::new(std::env::current_exe().unwrap());
        alone.args(["more_tables_are_swapped_together_than_a_process_may_have_files", "--exact"]);
        let output = alone.env(ALONE, "yes").output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
        return;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, 400, hard).unwrap();
    let one = desired(true, 2);
    let listener = one.listeners.values().next().unwrap();
    let mut wish = one.clone();
    wish.listeners = (1..=500u16)
        .map(|port| (ListenerId { vip: VIP, protocol: NatProtocol::Tcp, port }, listener.clone()))
        .collect();
    let mut bench = Bench::new();
    let plan = plan_all([VIP], &wish, &bench.backend.observe().unwrap());
    plans::apply_all(&mut bench.backend, &plan).unwrap();
    assert_eq!(bench.entries("listeners"), 500);
}
