//! What the source ranges of load balancers' addresses cost, by their number, in two shapes: one set with intervals,
//! and a hash set for each length of prefix with a rule for each. Needs CAP_SYS_ADMIN for a network namespace of its
//! own, which is all that it touches.
//!
//! ```sh
//! cargo run --release -p nfnetlink --example source_ranges_cost
//! ```

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod figures;

use std::net::{Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use figures::{millis, spread, timed};
use nfnetlink::expr::Bitwise;
use nfnetlink::{
    Batch, Chain, ChainKind, Element, Expr, Family, Field, Hook, Reg, Result, Rule, Set, Socket, Table,
    TableRef, Value, Verdict,
};

const TABLE: TableRef<'_> = TableRef::new(Family::Ip6, "cost");
const PORT: u16 = 4444;
/// Removed at once, as when Services are deleted.
const MANY: u32 = 1000;
const ROUNDS: u32 = 40;
const PACKETS: u32 = 200_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    Intervals,
    Lengths,
}

fn main() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("a network namespace needs CAP_SYS_ADMIN");
    let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status();
    assert!(up.is_ok_and(|status| status.success()), "ip link set lo up");
    println!("a packet over loopback, without rules: {}", nanoseconds(&packets()));
    for networks in [1000, 10_000] {
        for shape in [Shape::Intervals, Shape::Lengths] {
            measure(shape, networks)?;
        }
    }
    Ok(())
}

/// `networks` networks of 64 bits, each of a Service of its own.
fn measure(shape: Shape, networks: u32) -> Result<()> {
    let mut socket = Socket::open()?;
    let cold = timed(|| socket.commit(&base(shape, networks)))?;
    let (mut removed, mut added) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let network = round * 37 % networks;
        removed.push(timed(|| socket.commit(&change(shape, [network], false)))?);
        added.push(timed(|| socket.commit(&change(shape, [network], true)))?);
    }
    let many = timed(|| socket.commit(&change(shape, 0..MANY.min(networks), false)))?;
    println!(
        "{shape:?}, {networks} networks: all in {:.1} ms, one less {}, one more {}, {} less at once {:.1} ms, a packet {}",
        millis(cold),
        spread(removed),
        spread(added),
        MANY.min(networks),
        millis(many),
        nanoseconds(&packets()),
    );
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    socket.commit(&batch)
}

/// Every packet that this host sends goes through all of it; the sender is in the shortest prefix, asked last.
fn base(shape: Shape, networks: u32) -> Batch {
    let mut batch = Batch::with_capacity(16 << 20);
    batch.add_table(&Table::new(Family::Ip6, "cost"));
    let key = [Field::daddr(Family::Ip6), Field::L4PROTO, Field::TH_DPORT, Field::saddr(Family::Ip6)];
    let sets: Vec<(String, u32)> = match shape {
        Shape::Intervals => vec![("ranges".to_owned(), 128)],
        Shape::Lengths => (1..=16).rev().map(|n| (format!("ranges-{}", n * 8), n * 8)).collect(),
    };
    batch.add_chain(TABLE, &Chain::base("output", ChainKind::Filter, Hook::Output, -110));
    for (name, bits) in &sets {
        let flags = if shape == Shape::Intervals { Set::INTERVAL } else { 0 };
        batch.add_set(TABLE, &Set { flags, ..Set::new(name, key) });
        batch.add_rule(TABLE, &Rule::new("output", lookup(name, *bits)));
    }
    batch.append_own(shape);
    batch.append_networks(shape, 0..networks, true);
    batch
}

fn change(shape: Shape, networks: impl IntoIterator<Item = u32>, add: bool) -> Batch {
    let mut batch = Batch::new();
    batch.append_networks(shape, networks, add);
    batch
}

trait Ranges {
    fn append_own(&mut self, shape: Shape);
    fn append_networks(&mut self, shape: Shape, networks: impl IntoIterator<Item = u32>, add: bool);
}

impl Ranges for Batch {
    /// `::/8`, in which `::1` is.
    fn append_own(&mut self, shape: Shape) {
        let service = key(Ipv6Addr::LOCALHOST, PORT);
        let first = service.ipv6(Ipv6Addr::UNSPECIFIED);
        let last = service.ipv6(Ipv6Addr::from_bits(u128::MAX >> 8));
        let (set, key_end) = match shape {
            Shape::Intervals => ("ranges", Some(last.bytes())),
            Shape::Lengths => ("ranges-8", None),
        };
        self.add_elements(TABLE, set).push(&Element { key_end, ..Element::key(first.bytes()) });
    }

    fn append_networks(&mut self, shape: Shape, networks: impl IntoIterator<Item = u32>, add: bool) {
        let set = if shape == Shape::Intervals { "ranges" } else { "ranges-64" };
        let mut elements = if add { self.add_elements(TABLE, set) } else { self.delete_elements(TABLE, set) };
        for number in networks {
            let service = key(Ipv6Addr::from_bits((0xfd00 << 112) + u128::from(number)), 80);
            let network = (0x2001_0db8 << 96) + (u128::from(number) << 64);
            let first = service.ipv6(Ipv6Addr::from_bits(network));
            let last = service.ipv6(Ipv6Addr::from_bits(network | u128::from(u64::MAX)));
            let key_end = (shape == Shape::Intervals).then_some(last.bytes());
            elements.push(&Element { key_end, ..Element::key(first.bytes()) });
        }
    }
}

fn key(vip: Ipv6Addr, port: u16) -> Value {
    Value::new().ipv6(vip).u8(17).port(port)
}

/// The destination and the first bits of the source, in a set: then it is let on.
fn lookup(set: &str, bits: u32) -> Vec<Expr> {
    let word = |index| Reg::word(index).expect("one of sixteen");
    let source = word(6);
    let mut exprs = vec![Expr::ip6_daddr(Reg::R1), Expr::l4proto(word(4)), Expr::th_dport(word(5))];
    exprs.push(Expr::ip6_saddr(source));
    if bits < 128 {
        let mask = Value::new().ipv6(Ipv6Addr::from_bits(u128::MAX << (128 - bits)));
        let xor = Value::new().ipv6(Ipv6Addr::UNSPECIFIED);
        exprs.push(Bitwise { sreg: source, dreg: source, mask, xor }.into());
    }
    exprs.extend([Expr::in_set(set, Reg::R1), Verdict::Accept.into()]);
    exprs
}

/// What sending one packet takes, each time of many.
fn packets() -> Vec<Duration> {
    let sender = UdpSocket::bind("[::1]:0").expect("loopback is up");
    let receiver = UdpSocket::bind(("::1", PORT)).expect("nobody else is in this namespace");
    sender.connect(("::1", PORT)).expect("a UDP socket connects to anything");
    let rounds = (0..9).map(|_| {
        let start = Instant::now();
        for _ in 0..PACKETS / 9 {
            // A full buffer drops, which costs the same.
            sender.send(&[0]).expect("loopback takes it");
        }
        start.elapsed() / (PACKETS / 9)
    });
    let times = rounds.collect();
    drop(receiver);
    times
}

fn nanoseconds(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort_unstable();
    let [first, middle, last] = [0, times.len() / 2, times.len() - 1].map(|at| times[at].as_nanos());
    format!("{first}/{middle}/{last} ns")
}
