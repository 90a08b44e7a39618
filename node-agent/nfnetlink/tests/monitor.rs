//! The monitor sees what others do to the ruleset.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/nft.rs"]
mod nft;

use std::io::ErrorKind;

use namespace::in_fresh_namespace;
use nfnetlink::{
    Batch, Chain, Change, Element, Event, Family, Field, Monitor, ObjectKind, Set, Socket, Table, TableRef,
    Value,
};
use nft::nft;

const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "t");

/// What has come so far. Notifications are queued before the commit that causes them
/// returns, so there is nothing to wait for.
fn events(monitor: &mut Monitor) -> Vec<Event> {
    let mut events = Vec::new();
    loop {
        match monitor.receive(&mut events) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return events,
            Err(error) => panic!("{error}"),
        }
    }
}

fn object(change: Change, kind: ObjectKind) -> Event {
    Event::Object { change, kind, family: Family::Ip, table: "t".to_owned() }
}

fn make_table(socket: &mut Socket) {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(Family::Ip, "t"));
    batch.add_chain(TABLE, &Chain::regular("c"));
    batch.add_set(TABLE, &Set::new("s", [Field::random(1 << 31)]));
    socket.commit(&batch).unwrap();
}

fn add_elements(socket: &mut Socket, keys: std::ops::Range<u32>) {
    let mut batch = Batch::new();
    let mut elements = batch.add_elements(TABLE, "s");
    for key in keys {
        elements.push(&Element::key(Value::new().u32(key).bytes()));
    }
    socket.commit(&batch).unwrap();
}

#[test]
fn a_foreign_flush_is_seen() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        make_table(&mut socket);
        let mut monitor = Monitor::open().unwrap();
        assert_eq!(events(&mut monitor), [], "what was before is not told");

        nft(&["flush", "ruleset"]);
        let seen = events(&mut monitor);
        assert!(seen.contains(&object(Change::Deleted, ObjectKind::Table)), "{seen:?}");
        let Some(Event::Generation(generation)) = seen.last() else { panic!("{seen:?}") };
        assert_eq!(generation.process, "nft");
        assert_eq!(generation.id, socket.generation().unwrap().id);
    });
}

#[test]
fn whoever_commits_may_have_a_name_of_any_bytes() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let mut monitor = Monitor::open().unwrap();
        std::fs::write("/proc/thread-self/comm", b"caf\xe9").unwrap();
        make_table(&mut socket);
        let seen = events(&mut monitor);
        let Some(Event::Generation(generation)) = seen.last() else { panic!("{seen:?}") };
        assert_eq!(generation.process, "caf\u{fffd}");
        assert_eq!(generation.id, socket.generation().unwrap().id);
    });
}

#[test]
fn one_event_stands_for_many_elements() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let mut monitor = Monitor::open().unwrap();
        make_table(&mut socket);
        let kinds =
            [ObjectKind::Table, ObjectKind::Chain, ObjectKind::Set].map(|kind| object(Change::New, kind));
        assert_eq!(events(&mut monitor)[..3], kinds);

        add_elements(&mut socket, 0..1000);
        let seen = events(&mut monitor);
        assert_eq!(seen.len(), 2, "{seen:?}");
        assert_eq!(seen[0], object(Change::New, ObjectKind::Element));
    });
}

#[test]
fn nothing_is_told_to_a_monitor_that_left() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        make_table(&mut socket);
        let mut monitor = Monitor::open().unwrap();
        monitor.leave().unwrap();
        add_elements(&mut socket, 0..10);
        assert_eq!(events(&mut monitor), []);

        monitor.join().unwrap();
        add_elements(&mut socket, 10..20);
        assert_eq!(events(&mut monitor).len(), 2);
        add_elements(&mut socket, 20..30);
        monitor.drain().unwrap();
        assert_eq!(events(&mut monitor), []);
    });
}

#[test]
fn an_overflow_is_an_event() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        make_table(&mut socket);
        let mut monitor = Monitor::open().unwrap();
        for round in 0..10 {
            add_elements(&mut socket, round * 40_000..(round + 1) * 40_000);
        }
        assert!(events(&mut monitor).contains(&Event::Overrun));
        add_elements(&mut socket, 400_000..400_010);
        assert_eq!(events(&mut monitor).len(), 2, "it goes on afterwards");
    });
}
