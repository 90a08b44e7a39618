//! What a packet costs in the XDP program, by BPF_PROG_TEST_RUN; needs root.
//! `cargo run --release -p metal-lb --example xdp_cost`
//!
//! Each figure is the median (and range) of 9 runs of a million packets on one CPU, less what the
//! same runs cost with an empty program.

#![expect(clippy::print_stdout, reason = "an example's output")]

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Instant;

use anyhow::Context;
use libbpf_rs::{MapCore, MapFlags, MapHandle, Object, ObjectBuilder, ProgramInput, ProgramMut};
use metal_lb::desired::{Desired, DesiredListener, DesiredTarget, ListenerId, Mac};
use metal_lb::plan::{Backend, Step, plan, plan_all, plan_host};
use metal_lb::xdp::maps::Maps;
use metal_lb::xdp::{XdpBackend, object};
use metal_lb_api::NatProtocol;

#[path = "../tests/support/frame.rs"]
mod frame;

use frame::{ACK, Frame, SYN};

static RESTORE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/xdp_cost.o"));

const ROUNDS: u32 = 1_000_000;
const RUNS: usize = 9;
const TARGETS: u8 = 200;
/// More connections than the caches hold.
const MANY: u32 = 50_000;
const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 200);
const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

fn main() -> anyhow::Result<()> {
    pin_to_cpu_0()?;
    let balancer = object::load(None, 262_144)?;
    let mut backend = XdpBackend::new(Maps::of(&balancer)?, HOST_MAC)?;
    let desired = desired();
    for plan in [plan_host(&desired, &backend.observe()?), plan(VIP, &desired, &backend.observe()?)] {
        plan.batches.iter().try_for_each(|batch| backend.apply(batch))?;
    }
    let bench = Bench::new(&balancer, &backend)?;

    let client = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 100), 40_000);
    let vip = SocketAddrV4::new(VIP, 80);
    println!("{ROUNDS} packets a run, {RUNS} runs, {TARGETS} targets; nanoseconds a packet");
    bench.print(
        "TCP SYN, a new client each, tables full of half-open flows",
        &Frame::tcp(client, vip, SYN),
        u32::MAX,
    )?;

    for (name, open, next) in [
        ("TCP", Frame::tcp(client, vip, SYN), Frame::tcp(client, vip, ACK)),
        ("UDP", Frame::udp(client, vip), Frame::udp(client, vip)),
    ] {
        let sent = bench.forward(&open)?;
        let answer = sent.answer(HOST_MAC);
        bench.forward(&Frame { flags: SYN | ACK, ..answer })?;
        bench.forward(&next)?;
        bench.print(&format!("{name} established, client to target"), &next, 0)?;
        bench.print(&format!("{name} established, target to client"), &Frame { flags: ACK, ..answer }, 0)?;
    }
    let other = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 9), 80);
    bench.print("not for a VIP", &Frame::tcp(client, other, ACK), 0)?;

    for n in 0..MANY {
        let from = SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + n), client.port());
        let sent = bench.forward(&Frame::udp(from, vip))?;
        bench.forward(&sent.answer(HOST_MAC))?;
    }
    bench.print(
        &format!("UDP established, client to target, {MANY} connections in turn"),
        &Frame::udp(client, vip),
        MANY,
    )?;
    print_swap(&mut backend)?;
    print_node_loss(&mut backend)
}

struct Bench<'a> {
    restore: Object,
    balancer: &'a Object,
    backend: &'a XdpBackend,
}

impl<'a> Bench<'a> {
    fn new(balancer: &'a Object, backend: &'a XdpBackend) -> anyhow::Result<Self> {
        Ok(Self { restore: ObjectBuilder::default().open_memory(RESTORE)?.load()?, balancer, backend })
    }

    /// What one packet becomes; it must be sent on.
    fn forward(&self, frame: &Frame) -> anyhow::Result<Frame> {
        let (mut out, packet) = (vec![0; 256], frame.build());
        let input = ProgramInput { data_in: Some(&packet), data_out: Some(&mut out), ..Default::default() };
        let output = object::program(self.balancer)?.test_run(input)?;
        anyhow::ensure!(
            output.return_value == 3,
            "{frame:?} was not sent on: verdict {}",
            output.return_value
        );
        Ok(Frame::parse(output.data.context("no frame came out")?))
    }

    fn print(&self, what: &str, frame: &Frame, clients: u32) -> anyhow::Result<()> {
        let balancer = object::program(self.balancer)?;
        let nothing = self.program("nothing")?;
        let mut costs = Vec::new();
        let before: Vec<_> = self.backend.reasons()?.collect();
        for _ in 0..RUNS {
            costs.push(self.cost(&balancer, frame, clients)? - self.cost(&nothing, frame, clients)?);
        }
        costs.sort_by(f64::total_cmp);
        println!("{:6.1} ({:.1} to {:.1})  {what}", costs[RUNS / 2], costs[0], costs[RUNS - 1]);
        for ((reason, now), (_, then)) in self.backend.reasons()?.zip(before) {
            if now > then {
                println!("        {} packets of these were dropped: {reason}", now - then);
            }
        }
        Ok(())
    }

    /// Nanoseconds a round, restoring the frame included.
    fn cost(&self, next: &ProgramMut<'_>, frame: &Frame, clients: u32) -> anyhow::Result<f64> {
        let zero = 0u32.to_ne_bytes();
        let fd = u32::try_from(next.as_fd().as_raw_fd())?;
        self.map("next")?.update(&zero, &fd.to_ne_bytes(), MapFlags::ANY)?;
        let mut packet = frame.build();
        packet.resize(64, 0);
        let value = [&packet[..], &clients.to_ne_bytes(), &0u32.to_ne_bytes()].concat();
        self.map("template")?.update(&zero, &value, MapFlags::ANY)?;
        let input = ProgramInput { data_in: Some(&packet), repeat: ROUNDS, ..Default::default() };
        let duration = self.program("restore")?.test_run(input)?.duration;
        Ok(duration.as_nanos() as f64)
    }

    fn program(&self, name: &str) -> anyhow::Result<ProgramMut<'_>> {
        self.restore.progs_mut().find(|p| p.name() == name).context("no such program")
    }

    fn map(&self, name: &str) -> anyhow::Result<MapHandle> {
        let map = self.restore.maps().find(|m| m.name() == name).context("no such map")?;
        Ok(MapHandle::try_from(&map)?)
    }
}

/// A table for 1000 targets, from its plan to its swap.
fn print_swap(backend: &mut XdpBackend) -> anyhow::Result<()> {
    let mut wish = desired();
    let targets = (0..1000u32).map(|n| {
        let address = SocketAddrV4::new(Ipv4Addr::from(0x0a01_0000 + n), 30080);
        (format!("node-{n}"), DesiredTarget { address, mac: Some(HOST_MAC), weight: 1 })
    });
    wish.listeners.pop_last();
    wish.listeners.values_mut().for_each(|l| l.targets = targets.clone().collect());
    let mut costs = Vec::new();
    for seed in 1..=RUNS as u64 {
        wish.seed = seed;
        let plan = plan(VIP, &wish, &backend.observe()?);
        let swaps: Vec<Step> =
            plan.steps().filter(|s| matches!(s, Step::SwapTable { .. })).cloned().collect();
        let others: Vec<Step> =
            plan.steps().filter(|s| !matches!(s, Step::SwapTable { .. })).cloned().collect();
        backend.apply(&others)?;
        let start = Instant::now();
        backend.apply(&swaps)?;
        costs.push(start.elapsed());
    }
    costs.sort();
    println!(
        "{:.1?} ({:.1?} to {:.1?})  table for 1000 targets built and swapped in",
        costs[RUNS / 2],
        costs[0],
        costs[RUNS - 1]
    );
    Ok(())
}

/// A node leaves a thousand listeners: all their tables.
fn print_node_loss(backend: &mut XdpBackend) -> anyhow::Result<()> {
    let wish = |nodes: u8| {
        let one = desired();
        let listener = one.listeners.values().next().expect("it has two").clone();
        let vips = (0..1000u32).map(|n| Ipv4Addr::from(0x0a02_0000 + n));
        let listeners = vips.clone().map(|vip| {
            let targets =
                listener.targets.iter().take(usize::from(nodes)).map(|(n, t)| (n.clone(), *t)).collect();
            (
                ListenerId { vip, protocol: NatProtocol::Tcp, port: 80 },
                DesiredListener { targets, ..listener.clone() },
            )
        });
        Desired { vips: vips.clone().map(|vip| (vip, true)).collect(), listeners: listeners.collect(), ..one }
    };
    let mut costs = Vec::new();
    for round in 0..2 * RUNS {
        let wish = wish(if round % 2 == 0 { 3 } else { 2 });
        let observed = backend.observe()?;
        let start = Instant::now();
        let plan = plan_all(wish.vips.keys().copied(), &wish, &observed);
        plan.batches.iter().try_for_each(|batch| backend.apply(batch))?;
        if round % 2 == 1 {
            costs.push(start.elapsed());
        }
    }
    costs.sort();
    println!(
        "{:.1?} ({:.1?} to {:.1?})  a node leaves 1000 listeners of 3",
        costs[RUNS / 2],
        costs[0],
        costs[RUNS - 1]
    );
    Ok(())
}

fn desired() -> Desired {
    let target = |n: u8, port| DesiredTarget {
        address: SocketAddrV4::new(Ipv4Addr::new(172, 30, 1, n), port),
        mac: Some(Mac([2, 0, 0, 0, 1, n])),
        weight: 1,
    };
    let listener = |port| DesiredListener {
        service: "shop/web".into(),
        targets: (1..=TARGETS).map(|n| (format!("node-{n}"), target(n, port))).collect(),
        ..Default::default()
    };
    let id = |protocol| ListenerId { vip: VIP, protocol, port: 80 };
    Desired {
        vips: [(VIP, true)].into(),
        listeners: [(id(NatProtocol::Tcp), listener(30080)), (id(NatProtocol::Udp), listener(30081))].into(),
        ..Desired::default()
    }
}

fn pin_to_cpu_0() -> anyhow::Result<()> {
    let mut cpus = nix::sched::CpuSet::new();
    cpus.set(0)?;
    Ok(nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &cpus)?)
}
