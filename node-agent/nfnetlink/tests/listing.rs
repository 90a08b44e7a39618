//! What a listing is worth while others commit.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/nft.rs"]
mod nft;

use std::collections::BTreeSet;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use namespace::in_fresh_namespace;
use nfnetlink::{Batch, Chain, Dumped, Element, Family, Field, Set, Socket, Table, TableRef, Value};
use nft::nft;

const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "t");
const ANOTHER: TableRef<'_> = TableRef::new(Family::Ip, "another");

/// Creates the table with a set `s` of these numbers.
fn fill(socket: &mut Socket, keys: std::ops::Range<u32>) {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(Family::Ip, "t"));
    batch.add_set(TABLE, &Set::new("s", [Field::random(1 << 31)]));
    socket.commit(&batch).unwrap();
    add(socket, keys);
}

fn add(socket: &mut Socket, keys: std::ops::Range<u32>) {
    let mut batch = Batch::new();
    let mut elements = batch.add_elements(TABLE, "s");
    for key in keys {
        elements.push(&Element::key(Value::new().u32(key).bytes()));
    }
    socket.commit(&batch).unwrap();
}

fn delete(socket: &mut Socket, key: u32) {
    let mut batch = Batch::new();
    batch.delete_elements(TABLE, "s").push(&Element::key(Value::new().u32(key).bytes()));
    socket.commit(&batch).unwrap();
}

/// Commits to another table, where it stands in a chain of its own.
fn commit_elsewhere(socket: &mut Socket) {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(Family::Ip, "another"));
    batch.add_chain(ANOTHER, &Chain::regular("c"));
    socket.commit(&batch).unwrap();
    batch = Batch::new();
    batch.delete_chain(ANOTHER, "c");
    socket.commit(&batch).unwrap();
}

fn key(element: &Element<'_>) -> u32 {
    u32::from_ne_bytes(element.key.try_into().unwrap())
}

/// A network plugin's rules, a firewall's bans: a set takes longer to list than the time between two
/// of their commits.
#[test]
fn a_large_set_is_listed_in_whole_while_others_commit_to_another_table_all_the_time() {
    in_fresh_namespace(|| {
        let (mut socket, mut other) = (Socket::open().unwrap(), Socket::open().unwrap());
        fill(&mut socket, 0..100_000);
        let (stop, stopped) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                while stopped.recv_timeout(Duration::from_millis(50)) == Err(RecvTimeoutError::Timeout) {
                    commit_elsewhere(&mut other);
                }
            });
            for _ in 0..3 {
                let mut found = Vec::new();
                let listed = socket.elements(TABLE, "s", |dumped| match dumped {
                    Dumped::Restart => found.clear(),
                    Dumped::Element(element) => found.push(key(&element)),
                    Dumped::Other => panic!("there is none"),
                });
                listed.unwrap();
                found.sort_unstable();
                assert!(found.into_iter().eq(0..100_000));
            }
            drop(stop);
        });
    });
}

/// The listing is watched from its second attempt on; the thread is elsewhere by then.
#[test]
fn no_listing_counts_during_which_its_own_table_was_changed() {
    in_fresh_namespace(|| {
        let (mut socket, mut other) = (Socket::open().unwrap(), Socket::open().unwrap());
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        fill(&mut socket, 0..20_000);
        let (mut attempts, mut found) = (0, BTreeSet::new());
        let listed = socket.elements(TABLE, "s", |dumped| match dumped {
            Dumped::Restart => found.clear(),
            Dumped::Element(element) => {
                if found.is_empty() && attempts < 4 {
                    attempts += 1;
                    delete(&mut other, attempts);
                    commit_elsewhere(&mut other);
                }
                found.insert(key(&element));
            }
            Dumped::Other => panic!("there is none"),
        });
        listed.unwrap();
        assert_eq!(attempts, 4);
        let left: BTreeSet<u32> = (0..20_000).filter(|key| !(1..=4).contains(key)).collect();
        assert!(found == left, "{:?}", found.symmetric_difference(&left).collect::<Vec<_>>());
    });
}

#[test]
fn a_catch_all_is_told() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        fill(&mut socket, 0..10);
        let mut count = || {
            let (mut elements, mut others) = (0, 0);
            let visit = |dumped: Dumped<'_>| match dumped {
                Dumped::Restart => (elements, others) = (0, 0),
                Dumped::Element(_) => elements += 1,
                Dumped::Other => others += 1,
            };
            socket.elements(TABLE, "s", visit).unwrap();
            (elements, others)
        };
        assert_eq!(count(), (10, 0));
        nft(&["add", "element", "ip", "t", "s", "{ * }"]);
        assert_eq!(count(), (10, 1));
    });
}
