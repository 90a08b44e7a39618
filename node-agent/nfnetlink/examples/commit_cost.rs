//! What commits and dumps cost, by the size of the map. Needs CAP_SYS_ADMIN for a
//! network namespace of its own, which is all that it touches.
//!
//! ```sh
//! cargo run --release -p nfnetlink --example commit_cost
//! ```

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

mod figures;

use std::net::Ipv4Addr;
use std::time::Instant;

use figures::{spread, timed};
use nfnetlink::{
    Batch, Dumped, Element, Family, Field, Monitor, Result, Set, Socket, Table, TableRef, Value,
};

const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "cost");
/// As the elements are made: (vip, protocol, port, index) -> (address, port), each with
/// the name of a Service as its comment if it has index 0.
const ENDPOINTS: u32 = 2;

fn main() -> Result<()> {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("a network namespace needs CAP_SYS_ADMIN");
    for elements in [10_000, 100_000, 120_000] {
        load(elements, None)?;
        load(elements, Some(&Monitor::open()?))?;
        change_one(elements)?;
    }
    Ok(())
}

/// Commits all elements at once, five times from an empty map.
fn load(elements: u32, monitor: Option<&Monitor>) -> Result<()> {
    let mut socket = Socket::open()?;
    let (mut encoding, mut committing, mut dumping) = (Vec::new(), Vec::new(), Vec::new());
    let (mut bytes, mut restarts) = (0, 0);
    for _ in 0..5 {
        let start = Instant::now();
        let mut batch = empty_map();
        push(&mut batch, 0..elements);
        encoding.push(start.elapsed());
        bytes = batch.bytes();

        committing.push(timed(|| socket.commit(&batch))?);
        let mut found = 0;
        let dump = |dumped: Dumped<'_>| match dumped {
            Dumped::Restart => (found, restarts) = (0, restarts + 1),
            Dumped::Element(_) | Dumped::Other => found += 1,
        };
        dumping.push(timed(|| socket.elements(TABLE, "eps", dump))?);
        assert_eq!(found, elements);

        let mut batch = Batch::new();
        batch.delete_table(TABLE);
        socket.commit(&batch)?;
    }
    println!(
        "{elements} elements, {}, {:.1} MB: encode {}, commit {}, dump {} ({restarts} begun anew)",
        if monitor.is_some() { "a listener" } else { "no listener" },
        bytes as f64 / 1e6,
        spread(encoding),
        spread(committing),
        spread(dumping)
    );
    Ok(())
}

/// Adds and deletes one element of a loaded map, two hundred times.
fn change_one(elements: u32) -> Result<()> {
    let mut socket = Socket::open()?;
    let mut batch = empty_map();
    push(&mut batch, 0..elements);
    socket.commit(&batch)?;
    let mut times = Vec::new();
    for round in 0..200 {
        let start = Instant::now();
        let mut batch = Batch::new();
        push(&mut batch, elements + round..elements + round + 1);
        socket.commit(&batch)?;
        times.push(start.elapsed());

        let start = Instant::now();
        let mut batch = Batch::new();
        batch.delete_elements(TABLE, "eps").push(&Element::key(key(elements + round).bytes()));
        socket.commit(&batch)?;
        times.push(start.elapsed());
    }
    println!("{elements} elements, one added or deleted: {}", spread(times));
    let mut batch = Batch::new();
    batch.delete_table(TABLE);
    socket.commit(&batch)
}

fn empty_map() -> Batch {
    let mut batch = Batch::with_capacity(16 << 20);
    batch.add_table(&Table::new(Family::Ip, "cost"));
    let key = [Field::IP_DADDR, Field::L4PROTO, Field::TH_DPORT, Field::random(65536)];
    batch.add_set(TABLE, &Set::map("eps", key, [Field::IP_DADDR, Field::TH_DPORT]));
    batch
}

fn key(number: u32) -> Value {
    let vip = Ipv4Addr::from_bits(Ipv4Addr::new(10, 96, 0, 0).to_bits() + number / ENDPOINTS);
    Value::new().ipv4(vip).u8(6).port(80).u32(number % ENDPOINTS)
}

fn push(batch: &mut Batch, numbers: std::ops::Range<u32>) {
    let mut elements = batch.add_elements(TABLE, "eps");
    for number in numbers {
        let endpoint = Value::new().ipv4(Ipv4Addr::from_bits(0x0af4_0000 + number)).port(8080);
        let comment = format!("namespace/service-{}:http", number / ENDPOINTS);
        let key = key(number);
        let element = Element::pair(key.bytes(), endpoint.bytes());
        elements.push(&if number % ENDPOINTS == 0 { element.comment(&comment) } else { element });
    }
}
