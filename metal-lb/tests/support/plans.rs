//! Wishes, and driving a backend to them.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries; each uses its own part"
)]

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb::desired::{Desired, DesiredListener, DesiredTarget, ListenerId, Mac, Timeouts};
use metal_lb::plan::fake::Fake;
use metal_lb::plan::{Backend, Plan, plan, plan_host};
use metal_lb_api::NatProtocol;
use proptest::prelude::*;

/// One TCP listener at 172.30.0.200:80, owned, whose nodes have addresses 172.30.0.10 + n.
pub fn web(nodes: &[(&str, u8)]) -> Desired {
    let vip = Ipv4Addr::new(172, 30, 0, 200);
    let targets = nodes.iter().map(|(name, n)| ((*name).to_owned(), target(*n, 30080, true, 1)));
    let listener =
        DesiredListener { service: "shop/web".into(), targets: targets.collect(), ..Default::default() };
    Desired {
        host_slot: 2,
        seed: 7,
        probe_address: Some(SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 21), 7947)),
        vips: [(vip, true)].into(),
        listeners: [(ListenerId { vip, protocol: NatProtocol::Tcp, port: 80 }, listener)].into(),
    }
}

pub fn listener<'a>(wish: &'a Desired, id: &ListenerId) -> &'a DesiredListener {
    &wish.listeners[id]
}

fn target(n: u8, port: u16, resolved: bool, weight: u32) -> DesiredTarget {
    let address = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 10 + n), port);
    DesiredTarget { address, mac: resolved.then_some(Mac([2, 0, 0, 0, 1, n])), weight }
}

/// The first plan that has steps; nothing is applied.
pub fn next_plan(backend: &mut impl Backend, wish: &Desired) -> Option<Plan> {
    let observed = backend.observe().unwrap();
    let addresses = wish.vips.keys().copied().chain(observed.addresses());
    let mut plans =
        std::iter::once(plan_host(wish, &observed)).chain(addresses.map(|vip| plan(vip, wish, &observed)));
    plans.find(|p| !p.is_empty())
}

/// All plans for a wish, found out on a copy.
pub fn plans_of(fake: &mut Fake, wish: &Desired) -> Vec<Plan> {
    let (mut copy, mut plans) = (Fake { dies_after: None, ..fake.clone() }, Vec::new());
    while let Some(plan) = next_plan(&mut copy, wish) {
        apply_all(&mut copy, &plan).unwrap();
        plans.push(plan);
    }
    plans
}

pub fn apply_all(backend: &mut impl Backend, plan: &Plan) -> anyhow::Result<()> {
    plan.batches.iter().try_for_each(|batch| backend.apply(batch))
}

/// Plans and applies until nothing is left to do.
pub fn settle(backend: &mut impl Backend, wish: &Desired) {
    let mut rounds = 0;
    while let Some(plan) = next_plan(backend, wish) {
        apply_all(backend, &plan).unwrap();
        rounds += 1;
        assert!(rounds < 50, "does not settle:\n{plan}");
    }
}

/// A few VIPs, listeners and targets out of a small world, so that wishes overlap.
pub fn any_desired() -> impl Strategy<Value = Desired> {
    let target = (any::<bool>(), 0u32..3);
    let targets = prop::collection::btree_map(1u8..6, target, 0..5);
    let idle = prop::sample::select(vec![60u16, 350]);
    let listeners = prop::collection::btree_map((0u8..3, any::<bool>(), 80u16..82), (targets, idle), 0..5);
    (listeners, prop::collection::btree_map(0u8..3, any::<bool>(), 0..4), 0u8..2).prop_map(wish_of)
}

type Targets = BTreeMap<u8, (bool, u32)>;
type Listeners = BTreeMap<(u8, bool, u16), (Targets, u16)>;

fn wish_of((listeners, vips, slot): (Listeners, BTreeMap<u8, bool>, u8)) -> Desired {
    let address = |n: u8| Ipv4Addr::new(172, 30, 0, 200 + n);
    let listener = |((vip, tcp, port), (targets, idle)): ((u8, bool, u16), (Targets, u16))| {
        let protocol = if tcp { NatProtocol::Tcp } else { NatProtocol::Udp };
        let targets = targets
            .into_iter()
            .map(|(n, (resolved, weight))| (format!("node-{n}"), target(n, 30000 + port, resolved, weight)));
        let timeouts = Timeouts { tcp_idle: idle, udp_idle: idle };
        let listener = DesiredListener { service: "shop/web".into(), targets: targets.collect(), timeouts };
        (ListenerId { vip: address(vip), protocol, port }, listener)
    };
    Desired {
        host_slot: slot,
        seed: 7,
        probe_address: None,
        vips: vips.into_iter().map(|(n, owned)| (address(n), owned)).collect(),
        listeners: listeners.into_iter().map(listener).collect(),
    }
}
