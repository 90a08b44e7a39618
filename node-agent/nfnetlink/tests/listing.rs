//! What a listing tells.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/nft.rs"]
mod nft;

use namespace::in_fresh_namespace;
use nfnetlink::{Batch, Dumped, Element, Family, Field, Set, Socket, Table, TableRef, Value};
use nft::nft;

const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "t");

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
