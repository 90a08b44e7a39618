//! Packets obey: keys, data and verdicts mean to the kernel what they say here.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "support/namespace.rs"]
mod namespace;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::time::Duration;

use namespace::in_fresh_namespace;
use nfnetlink::expr::{CtState, Dynset, DynsetOp, Reject};
use nfnetlink::{
    Batch, Chain, ChainKind, Element, Expr, Family, Field, Hook, Reg, Rule, Set, Socket, Table, TableRef,
    Value,
};

fn ip(args: &str) {
    let status = Command::new("ip").args(args.split(' ')).status().unwrap();
    assert!(status.success(), "ip {args}");
}

/// 10.0.0.N or fd00::N, all of them on the loopback interface.
fn address(family: Family, last: u8) -> IpAddr {
    match family {
        Family::Ip => [10, 0, 0, last].into(),
        _ => [0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into(),
    }
}

/// VIP 1 port 80 is balanced over 2 and 3, port 8080; its other ports are refused.
fn balancer(family: Family) -> Batch {
    let table = TableRef::new(family, "t");
    let vip = [Field::daddr(family), Field::L4PROTO, Field::TH_DPORT];
    let protocol = Reg::R1.after(if family == Family::Ip { 4 } else { 16 }).unwrap();
    let port = protocol.after(1).unwrap();
    let key = [Expr::daddr(family, Reg::R1), Expr::l4proto(protocol), Expr::th_dport(port)];

    let mut batch = Batch::new();
    batch.add_table(&Table::new(family, "t"));
    batch.add_set(table, &Set::new("n-2", vip));
    let with_index = [&vip[..], &[Field::random(65536)]].concat();
    batch.add_set(table, &Set::map("eps", with_index, [Field::daddr(family), Field::TH_DPORT]));
    batch.add_chain(table, &Chain::base("output", ChainKind::Nat, Hook::Output, -100));
    batch.add_chain(table, &Chain::base("refuse", ChainKind::Filter, Hook::Output, 0));
    batch.add_chain(table, &Chain::regular("lb-2"));
    batch.add_rule(
        table,
        &Rule::new("output", [&key[..], &[Expr::in_set("n-2", Reg::R1), Expr::goto("lb-2")]].concat()),
    );
    let balance = [
        Expr::random(2, port.after(2).unwrap()),
        Expr::map("eps", Reg::R1, Reg::R1),
        Expr::dnat(family, Reg::R1, Some(protocol)),
    ];
    batch.add_rule(table, &Rule::new("lb-2", [&key[..], &balance].concat()));
    let is_vip = Expr::eq(Reg::R1, Value::new().ip(address(family, 1)));
    // Only new ones: the VIP is also the address that the host's own connections to it
    // come from.
    let [mask, any] = Expr::any_bit(Reg::R1, CtState::NEW);
    let is_new = [Expr::ct_state(Reg::R1), mask, any];
    let refuse = [Expr::daddr(family, Reg::R1), is_vip, Reject::port_unreachable(family).into()];
    batch.add_rule(table, &Rule::new("refuse", [&is_new[..], &refuse].concat()));

    let vip = Value::new().ip(address(family, 1)).u8(6).port(80);
    batch.add_elements(table, "n-2").push(&Element::key(vip.bytes()));
    for (index, endpoint) in [(0, 2), (1, 3)] {
        let data = Value::new().ip(address(family, endpoint)).port(8080);
        batch.add_elements(table, "eps").push(&Element::pair(vip.u32(index).bytes(), data.bytes()));
    }
    batch
}

#[test]
fn connections_are_spread_and_the_rest_is_refused() {
    for family in [Family::Ip, Family::Ip6] {
        in_fresh_namespace(|| {
            ip("link set lo up");
            for last in 1..=3 {
                // Without nodad an address is tentative for a moment, and nobody can listen on it.
                let length = if family == Family::Ip { "32" } else { "128 nodad" };
                ip(&format!("address add dev lo {}/{length}", address(family, last)));
            }
            Socket::open().unwrap().commit(&balancer(family)).unwrap();
            let listen = |last| TcpListener::bind((address(family, last), 8080)).unwrap();
            let listeners = [listen(2), listen(3)];

            let vip = |port| SocketAddr::new(address(family, 1), port);
            let connect = |port| TcpStream::connect_timeout(&vip(port), Duration::from_secs(5));
            let clients: Vec<TcpStream> = (0..64).map(|_| connect(80).unwrap()).collect();
            let accepted = listeners.map(|listener| {
                listener.set_nonblocking(true).unwrap();
                std::iter::from_fn(|| listener.accept().ok()).count()
            });
            assert_eq!(accepted.iter().sum::<usize>(), clients.len());
            assert!(accepted.iter().all(|count| *count > 0), "{accepted:?}");

            let refused = connect(81).unwrap_err();
            assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        });
    }
}

/// What falls through such a rule goes on to the next: node-agent's session affinity relies on it.
#[test]
fn a_rule_that_would_add_to_a_full_set_ends_there_and_one_that_renews_goes_on() {
    in_fresh_namespace(|| {
        ip("link set lo up");
        for last in 1..=3 {
            ip(&format!("address add {}/32 dev lo", address(Family::Ip, last)));
        }
        let table = TableRef::new(Family::Ip, "t");
        let mut batch = Batch::new();
        batch.add_table(&Table::new(Family::Ip, "t"));
        let clients = Set::new("clients", [Field::IP_DADDR, Field::random(u32::MAX)]);
        let clients = Set { flags: Set::DYNAMIC | Set::TIMEOUT, size: Some(2), ..clients };
        batch.add_set(table, &clients);
        batch.add_chain(table, &Chain::base("output", ChainKind::Filter, Hook::Output, 0));
        let [mask, any] = Expr::any_bit(Reg::R1, CtState::NEW);
        let add = Dynset {
            set: "clients".to_owned(),
            op: DynsetOp::Update,
            sreg_key: Reg::R1,
            sreg_data: None,
            timeout: Duration::from_secs(60),
        };
        let key = [Expr::ip_daddr(Reg::R1), Expr::number(7, Reg::R32_01)];
        let [address_of, number] = key;
        let refuse = Reject::port_unreachable(Family::Ip).into();
        let rule = [Expr::ct_state(Reg::R1), mask, any, address_of, number, add.into(), refuse];
        batch.add_rule(table, &Rule::new("output", rule));
        let mut socket = Socket::open().unwrap();
        socket.commit(&batch).unwrap();

        let _listener = TcpListener::bind(("0.0.0.0", 8080)).unwrap();
        let is_refused = |last| {
            let to = SocketAddr::new(address(Family::Ip, last), 8080);
            TcpStream::connect_timeout(&to, Duration::from_secs(5)).is_err()
        };
        assert_eq!([1, 2, 3, 1].map(is_refused), [true, true, false, true]);
        let key = |last| Value::new().ip(address(Family::Ip, last)).u32(7);
        let held =
            [1, 2, 3].map(|last| socket.has_element(table, "clients", &Element::key(key(last).bytes())));
        assert_eq!(held.map(Result::unwrap), [true, true, false]);
    });
}
