//! What looking through a large connection table costs, and whether a commit to nf_tables waits for
//! it. Needs CAP_SYS_ADMIN for network namespaces of its own, which are all that it touches.
//!
//! ```sh
//! cargo run --release -p nfnetlink --example conntrack_cost [ENTRIES]
//! ```
//!
//! The host's nf_conntrack_max limits each namespace, but the kernel has one hash table for all of
//! them, and a listing walks the whole of it: so a million entries are spread over some namespaces,
//! and the first of them is looked through. One entry in ten is UDP, and half of those are ended, 256 at a time.

#![expect(clippy::print_stdout, reason = "printing is what it is for")]

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

use nfnetlink::conntrack::{Conntrack, Flow, Tuple, Zone};
use nfnetlink::{Batch, Element, Family, Field, Result, Set, Socket, Table, TableRef, Value};

const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "cost");
const TCP: u8 = 6;
const UDP: u8 = 17;
/// Less than the kernel's own nf_conntrack_max, 262,144 where there is memory enough.
const IN_ONE_NAMESPACE: u32 = 250_000;
const TIMES: usize = 9;

fn main() -> Result<()> {
    let entries: u32 = std::env::args().nth(1).and_then(|count| count.parse().ok()).unwrap_or(1_000_000);
    let here = entries.min(IN_ONE_NAMESPACE);
    let (mut left, mut elsewhere) = (entries - here, Vec::new());
    while left > 0 {
        let there = left.min(IN_ONE_NAMESPACE);
        elsewhere.push(fill_elsewhere(there)?);
        left -= there;
    }
    enter_namespace();
    fill(here)?;
    println!("{entries} entries, of which {here} are in this namespace, a tenth of them UDP");

    let mut table = Conntrack::open()?;
    let listings = (0..TIMES).map(|_| {
        let start = Instant::now();
        let listed = table.visit(Family::Ip, UDP, |_| {})?;
        Ok((listed, start.elapsed()))
    });
    let listings = listings.collect::<Result<Vec<_>>>()?;
    let listed = listings[0].0;
    println!("UDP alone, {listed} listed: {}", spread(listings.into_iter().map(|(_, took)| took).collect()));

    let mut socket = Socket::open()?;
    let mut batch = Batch::new();
    batch.add_table(&Table::new(Family::Ip, "cost"));
    batch.add_set(TABLE, &Set::new("one", [Field::IP_DADDR]));
    socket.commit(&batch)?;
    println!("a commit of one element: {}", spread(commits(&mut socket, |done| done < 2000)?));

    let looking = AtomicBool::new(true);
    std::thread::scope(|scope| {
        // The same namespace: a thread begins where its maker is.
        let cleaning = scope.spawn(|| {
            let cleaned = clean();
            looking.store(false, Ordering::Relaxed);
            cleaned
        });
        let during = commits(&mut socket, |_| looking.load(Ordering::Relaxed))?;
        let (ended, took) = cleaning.join().expect("it does not panic")?;
        println!("{TIMES} times looked through, {ended} ended on the way: {took:?}");
        println!("a commit of one element meanwhile, {} of them: {}", during.len(), spread(during));
        Ok(())
    })
}

/// Fills a namespace of its own, which lasts until what is returned is dropped.
fn fill_elsewhere(entries: u32) -> Result<Sender<()>> {
    let ((tell, full), (stays, ends)) = (channel(), channel());
    std::thread::spawn(move || {
        enter_namespace();
        // Whoever asked is gone if this fails, and so is the wish.
        let _ = tell.send(fill(entries));
        let _ = ends.recv();
    });
    full.recv().expect("it tells once").map(|()| stays)
}

fn enter_namespace() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)
        .expect("a network namespace needs CAP_SYS_ADMIN");
}

fn fill(entries: u32) -> Result<()> {
    let flows: Vec<Flow> = (0..entries).map(flow).collect();
    Conntrack::open()?.create(&flows, Duration::from_secs(600)).map(drop)
}

/// The entry of one client of many.
fn flow(number: u32) -> Flow {
    let [_, a, b, c] = (number / 50_000).to_be_bytes();
    let protocol = if number.is_multiple_of(10) { UDP } else { TCP };
    let client = SocketAddr::from(([172, a, b, c], 10_000 + (number % 50_000) as u16));
    let original = Tuple { protocol, ..Tuple::udp(client, ([10, 96, 0, 10], 53).into()) };
    let reply = Tuple { protocol, ..Tuple::udp(([10, 244, 1, 5], 5353).into(), client) };
    Flow { original, reply, zone: Zone::Usual, id: 0 }
}

/// As node-agent does it, with half of what is listed found stale the first time.
fn clean() -> Result<(usize, Duration)> {
    let (mut listing, mut ending) = (Conntrack::open()?, Conntrack::open()?);
    let (start, mut ended) = (Instant::now(), 0);
    for time in 0..TIMES {
        let (mut seen, mut stale, mut failed) = (0, Vec::new(), None);
        listing.visit(Family::Ip, UDP, |flow| {
            seen += 1;
            if time == 0 && seen % 2 == 0 {
                stale.push(*flow);
            }
            if stale.len() == 256 {
                match ending.delete(&stale) {
                    Ok(were_there) => ended += were_there,
                    Err(error) => failed = Some(error),
                }
                stale.clear();
            }
        })?;
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok((ended, start.elapsed()))
}

/// Adds an element and deletes it, in a commit each, while that is asked for.
fn commits(socket: &mut Socket, goes_on: impl Fn(usize) -> bool) -> Result<Vec<Duration>> {
    let (mut times, key) = (Vec::new(), Value::new().ipv4([10, 96, 0, 1].into()));
    while goes_on(times.len()) {
        let mut batch = Batch::new();
        let element = Element::key(key.bytes());
        if times.len().is_multiple_of(2) {
            batch.add_elements(TABLE, "one").push(&element);
        } else {
            batch.delete_elements(TABLE, "one").push(&element);
        }
        let start = Instant::now();
        socket.commit(&batch)?;
        times.push(start.elapsed());
    }
    Ok(times)
}

/// Smallest, median, 99th percentile and largest.
fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |share: usize| times[(times.len() - 1) * share / 100].as_secs_f64() * 1e3;
    format!("{:.3}/{:.3}/{:.3}/{:.3} ms (least, median, p99, most)", at(0), at(50), at(99), at(100))
}
