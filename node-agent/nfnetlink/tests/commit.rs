//! A batch comes into force as a whole or not at all, and says why not.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/nft.rs"]
mod nft;

use std::panic::AssertUnwindSafe;

use namespace::in_fresh_namespace;
use nfnetlink::{
    Batch, Chain, Dumped, Element, Error, Expr, Family, Field, Generation, Rule, Set, Socket, Table,
    TableRef, Value, Verdict,
};
use nft::nft;

const TABLE: TableRef<'_> = TableRef::new(Family::Ip, "t");

/// A batch that makes the table with a map `m` of numbers to ports.
fn base() -> Batch {
    let mut batch = Batch::new();
    batch.add_table(&Table::new(Family::Ip, "t"));
    batch.add_set(TABLE, &Set::map("m", [Field::random(1 << 31)], [Field::TH_DPORT]));
    batch
}

/// Pushes `key -> port` into the map.
fn push(batch: &mut Batch, key: u32, port: u16) -> usize {
    let (key, port) = (Value::new().u32(key), Value::new().port(port));
    batch.add_elements(TABLE, "m").push(&Element::pair(key.bytes(), port.bytes()))
}

fn pushed(keys: std::ops::Range<u32>) -> Batch {
    let mut batch = base();
    let mut elements = batch.add_elements(TABLE, "m");
    for key in keys {
        elements.push(&Element::pair(Value::new().u32(key).bytes(), Value::new().port(key as u16).bytes()));
    }
    batch
}

fn ports(socket: &mut Socket) -> Vec<(u32, u16)> {
    let mut found = Vec::new();
    let visit = |dumped: Dumped<'_>| match dumped {
        Dumped::Restart => found.clear(),
        Dumped::Element(element) => {
            let key = u32::from_ne_bytes(element.key.try_into().unwrap());
            found.push((key, u16::from_be_bytes(element.value().unwrap().try_into().unwrap())));
        }
        Dumped::Other => panic!("there is none"),
    };
    socket.elements(TABLE, "m", visit).unwrap();
    found.sort_unstable();
    found
}

fn failures(result: nfnetlink::Result<()>) -> Vec<(Option<usize>, i32)> {
    match result {
        Err(Error::Rejected(rejection)) => {
            rejection.failures.iter().map(|failure| (failure.message, failure.errno)).collect()
        }
        other => panic!("not rejected: {other:?}"),
    }
}

#[test]
fn an_error_names_its_change_and_leaves_nothing_applied() {
    in_fresh_namespace(|| {
        let mut batch = base();
        batch.add_chain(TABLE, &Chain::regular("c"));
        let jump = batch.add_rule(TABLE, &Rule::new("c", [Expr::jump("nowhere")]));
        push(&mut batch, 1, 80);
        let short = batch.add_elements(TABLE, "m").push(&Element::pair(&[1, 2], &[0, 80]));
        let mut socket = Socket::open().unwrap();

        let error = socket.commit(&batch).unwrap_err();
        assert!(
            error.to_string().contains("message 3, add rule to ip t c: No such file or directory"),
            "{error}"
        );
        assert!(error.to_string().contains("message 5, add elements to ip t m: Invalid argument"), "{error}");
        assert_eq!(failures(Err(error)), [(Some(jump), libc::ENOENT), (Some(short), libc::EINVAL)]);
        assert_eq!(socket.tables(None).unwrap(), []);
        assert_eq!(nft(&["list", "ruleset"]), "");
    });
}

#[test]
fn every_complaint_of_a_long_batch_arrives() {
    in_fresh_namespace(|| {
        let mut batch = base();
        for index in 0..20_000 {
            batch.delete_chain(TABLE, &format!("c-{index}"));
        }
        let failures = failures(Socket::open().unwrap().commit(&batch));
        let expected: Vec<_> = (2..20_002).map(|index| (Some(index), libc::ENOENT)).collect();
        assert_eq!(failures, expected);
    });
}

#[test]
fn the_kernel_says_which_name_is_unknown() {
    in_fresh_namespace(|| {
        let mut batch = Batch::new();
        batch.flush_set(TABLE, "nowhere");
        let Err(error) = Socket::open().unwrap().commit(&batch) else { panic!("there is no such table") };
        assert!(error.is_not_found());
        let Error::Rejected(rejection) = error else { panic!("{error}") };
        // Behind the netlink header and nfgenmsg: the table's name.
        assert_eq!(rejection.failures[0].offset, Some(20));
    });
}

/// A question that is answered so was asked while another one's answer was not read; a batch is refused.
#[test]
fn a_chain_that_is_still_jumped_to_is_refused_as_busy_and_named() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let mut batch = base();
        batch.add_chain(TABLE, &Chain::regular("from"));
        batch.add_chain(TABLE, &Chain::regular("to"));
        batch.add_rule(TABLE, &Rule::new("from", [Verdict::Jump("to".to_owned()).into()]));
        socket.commit(&batch).unwrap();

        let mut batch = Batch::new();
        push(&mut batch, 1, 80);
        let index = batch.delete_chain(TABLE, "to");
        let Err(Error::Rejected(rejection)) = socket.commit(&batch) else { panic!("it is jumped to") };
        let [failure] = &rejection.failures[..] else { panic!("{rejection}") };
        assert_eq!((failure.message, failure.errno), (Some(index), libc::EBUSY));
        assert_eq!(failure.what, "delete chain ip t to");
        assert!(!rejection.is_of_the_host(), "it will be so again");
        assert_eq!(ports(&mut socket), [], "nothing of it is in force");
    });
}

#[test]
fn an_element_takes_another_datum_only_by_deletion() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let mut batch = base();
        push(&mut batch, 1, 80);
        socket.commit(&batch).unwrap();

        let mut same = Batch::new();
        push(&mut same, 1, 80);
        socket.commit(&same).unwrap();

        let mut other = Batch::new();
        push(&mut other, 1, 81);
        assert_eq!(failures(socket.commit(&other)), [(Some(0), libc::EEXIST)]);

        let mut exclusive = Batch::new();
        let key = Value::new().u32(1);
        exclusive.create_elements(TABLE, "m").push(&Element::pair(key.bytes(), &[0, 80]));
        assert_eq!(failures(socket.commit(&exclusive)), [(Some(0), libc::EEXIST)]);

        let mut replacement = Batch::new();
        replacement.delete_elements(TABLE, "m").push(&Element::key(key.bytes()));
        push(&mut replacement, 1, 81);
        socket.commit(&replacement).unwrap();
        assert_eq!(ports(&mut socket), [(1, 81)]);
    });
}

#[test]
fn a_batch_for_another_generation_is_refused() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let generation = socket.generation().unwrap().id;
        let mut batch = base();
        batch.expect_generation(generation);
        socket.commit(&batch).unwrap();
        assert_eq!(socket.generation().unwrap().id, Generation::next(generation));

        let mut stale = Batch::new();
        push(&mut stale, 1, 80);
        stale.expect_generation(generation);
        assert!(matches!(socket.commit(&stale), Err(Error::StaleGeneration)));
        assert_eq!(ports(&mut socket), []);
        stale.expect_generation(Generation::next(generation));
        socket.commit(&stale).unwrap();
        assert_eq!(ports(&mut socket), [(1, 80)]);
    });
}

#[test]
fn a_quarter_of_a_million_elements_go_in_one_commit() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        let before = socket.generation().unwrap().id;
        socket.commit(&pushed(0..250_000)).unwrap();
        assert_eq!(socket.generation().unwrap().id, Generation::next(before));
        let found = ports(&mut socket);
        assert_eq!(found.len(), 250_000);
        assert!(
            found
                .iter()
                .enumerate()
                .all(|(index, (key, port))| *key == index as u32 && *port == index as u16)
        );
    });
}

#[test]
fn a_dump_that_a_commit_interrupts_begins_anew() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        socket.commit(&pushed(0..20_000)).unwrap();
        let mut other = Socket::open().unwrap();
        let (mut restarts, mut found) = (0, 0);
        let visit = |dumped: Dumped<'_>| match dumped {
            Dumped::Restart => (restarts, found) = (restarts + 1, 0),
            Dumped::Element(_) => {
                if restarts == 0 && found == 0 {
                    let mut batch = Batch::new();
                    push(&mut batch, 20_000, 1);
                    other.commit(&batch).unwrap();
                }
                found += 1;
            }
            Dumped::Other => panic!("there is none"),
        };
        socket.elements(TABLE, "m", visit).unwrap();
        // More restarts than one if the kernel is rehashing the set as well.
        assert!(restarts >= 1);
        assert_eq!(found, 20_001);
    });
}

#[test]
fn a_dump_that_never_comes_to_rest_is_given_up() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        socket.commit(&pushed(0..20_000)).unwrap();
        let mut other = Socket::open().unwrap();
        let mut is_first = true;
        let mut next = 20_000;
        let visit = |dumped: Dumped<'_>| {
            if std::mem::replace(&mut is_first, dumped == Dumped::Restart) {
                let mut batch = Batch::new();
                push(&mut batch, next, 1);
                other.commit(&batch).unwrap();
                next += 1;
            }
        };
        assert!(matches!(socket.elements(TABLE, "m", visit), Err(Error::Interrupted { .. })));
        // What the last attempt left in the queue confuses nobody.
        assert_eq!(ports(&mut socket).len(), next as usize);
    });
}

#[test]
fn what_is_left_of_a_dump_does_not_hinder_the_next() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        socket.commit(&pushed(0..20_000)).unwrap();
        let stopped = std::panic::catch_unwind(AssertUnwindSafe(|| {
            socket.elements(TABLE, "m", |_| std::panic::resume_unwind(Box::new("enough")))
        }));
        assert!(stopped.is_err());
        assert_eq!(ports(&mut socket).len(), 20_000);
    });
}

#[test]
fn a_socket_stays_in_the_namespace_where_it_was_opened() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        socket.commit(&base()).unwrap();
        assert!(socket.table(TABLE).unwrap().is_some());
        assert_eq!(Socket::open().unwrap().table(TABLE).unwrap(), None);
    });
}

#[test]
fn asking_for_what_is_not_there_is_an_empty_answer_or_not_found() {
    in_fresh_namespace(|| {
        let mut socket = Socket::open().unwrap();
        assert_eq!(socket.table(TABLE).unwrap(), None);
        assert_eq!(socket.chains(TABLE).unwrap(), []);
        assert_eq!(socket.rules(TABLE).unwrap(), []);
        assert_eq!(socket.sets(TABLE).unwrap(), []);
        assert!(socket.elements(TABLE, "m", |_| {}).unwrap_err().is_not_found());
        socket.commit(&Batch::new()).unwrap();
    });
}
