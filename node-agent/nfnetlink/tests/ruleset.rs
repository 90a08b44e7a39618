//! A ruleset written in one batch is what the kernel lists, and `nft` can print it.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "support/namespace.rs"]
mod namespace;
#[path = "support/nft.rs"]
mod nft;

use std::time::Duration;

use namespace::in_fresh_namespace;
use nfnetlink::expr::{
    Bitwise, Cmp, CmpOp, Counter, CtState, CtStatus, Dynset, DynsetOp, Masquerade, Nat, NatFlags, NatKind,
    Numgen, NumgenKind, Reject,
};
use nfnetlink::{
    Batch, Chain, ChainKind, DataType, Dumped, Element, ElementData, Expr, Family, Field, Hook, MapData,
    Policy, Reg, Rule, Set, Socket, Table, TableRef, Value, Verdict,
};
use nft::nft;

/// A ruleset as values.
struct Ruleset {
    table: Table,
    chains: Vec<Chain>,
    sets: Vec<Set>,
    rules: Vec<Rule>,
}

/// (set, key, datum, comment) of elements to write.
type Pairs = Vec<(&'static str, Value, Option<Value>, Option<&'static str>)>;

fn ruleset(family: Family) -> Ruleset {
    let mut table = Table::new(family, "fairlead");
    table.comment = Some("a test".to_owned());

    let mut input = Chain::base("input", ChainKind::Filter, Hook::Input, 0);
    input.base.as_mut().unwrap().policy = Policy::Drop;
    let mut services = Chain::regular("services");
    services.comment = Some("where Services begin".to_owned());
    let chains = vec![
        Chain::base("nat-prerouting", ChainKind::Nat, Hook::Prerouting, -100),
        Chain::base("nat-output", ChainKind::Nat, Hook::Output, -100),
        Chain::base("nat-postrouting", ChainKind::Nat, Hook::Postrouting, 100),
        input,
        Chain::base("forward", ChainKind::Filter, Hook::Forward, 0),
        services,
        Chain::regular("lb-2"),
        Chain::regular("odds"),
    ];
    Ruleset { table, chains, sets: sets(family), rules: rules(family) }
}

fn sets(family: Family) -> Vec<Set> {
    let vip_key = [Field::daddr(family), Field::L4PROTO, Field::TH_DPORT];
    let endpoint_key = [&vip_key[..], &[Field::random(65536)]].concat();
    let mut endpoints = Set::map("eps", endpoint_key, [Field::daddr(family), Field::TH_DPORT]);
    endpoints.comment = Some("endpoints".to_owned());
    let address = if family == Family::Ip { DataType::Ipv4Addr } else { DataType::Ipv6Addr };
    let plain = [address, DataType::InetProto, DataType::InetService].map(Field::plain);
    vec![
        endpoints,
        Set::new("n-2", vip_key),
        Set::new("plain", plain),
        Set::new("ports", [Field::TH_DPORT]),
        Set { flags: Set::INTERVAL, ..Set::new("ranges", [Field::saddr(family)]) },
        Set { flags: Set::INTERVAL, ..Set::new("allowed", [Field::daddr(family), Field::saddr(family)]) },
        Set {
            flags: Set::DYNAMIC | Set::TIMEOUT,
            timeout: Some(Duration::from_secs(10800)),
            gc_interval: Some(Duration::from_secs(10)),
            size: Some(65535),
            ..Set::new("affinity", [Field::saddr(family)])
        },
        Set { data: Some(MapData::Verdict), ..Set::new("verdicts", [Field::L4PROTO]) },
        Set::map("marks", [Field::L4PROTO], [Field::MARK]),
    ]
}

/// Loads (destination, protocol, port) from register 1 on; returns the next register.
fn vip_key(family: Family) -> ([Expr; 3], Reg) {
    let protocol = Reg::R1.after(if family == Family::Ip { 4 } else { 16 }).unwrap();
    let port = protocol.after(1).unwrap();
    let exprs = [Expr::daddr(family, Reg::R1), Expr::l4proto(protocol), Expr::th_dport(port)];
    (exprs, port.after(2).unwrap())
}

fn rules(family: Family) -> Vec<Rule> {
    let word = |number: u32| Value::new().u32(number);
    let address_bytes = if family == Family::Ip { 4 } else { 16 };
    let endpoint_port = Reg::R1.after(address_bytes).unwrap();
    let (key, index) = vip_key(family);

    let mut balance = key.to_vec();
    balance.extend([
        Expr::random(2, index),
        Expr::map("eps", Reg::R1, Reg::R1),
        Expr::dnat(family, Reg::R1, Some(endpoint_port)),
    ]);
    let mut dispatch = key.to_vec();
    dispatch.extend([Expr::in_set("n-2", Reg::R1), Expr::goto("lb-2")]);
    let mut local = Expr::daddr_is_local().to_vec();
    local.extend(dispatch.clone());
    let mut new_only = vec![Expr::ct_state(Reg::R1)];
    new_only.extend(Expr::any_bit(Reg::R1, CtState::NEW));
    new_only.extend([
        Expr::saddr(family, Reg::R1),
        Expr::in_set("ranges", Reg::R1),
        Counter::default().into(),
    ]);
    new_only.push(Reject::port_unreachable(family).into());
    let mut translated = vec![Expr::ct_status(Reg::R1)];
    translated.extend(Expr::any_bit(Reg::R1, CtStatus::DNAT));
    translated.push(Verdict::Accept.into());
    let mut marked = vec![Expr::mark(Reg::R1)];
    marked.extend(Expr::any_bit(Reg::R1, 0x4000));
    marked.extend([Expr::mark(Reg::R1), Expr::mask32(Reg::R1, u32::MAX, 0x4000), Expr::set_mark(Reg::R1)]);
    marked.push(Expr::masquerade_fully_random());
    let eth = Value::from_bytes(b"eth\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    let snat =
        Nat { kind: NatKind::Source, family, address: Some(Reg::R1), port: None, flags: NatFlags::RANDOM };
    let constant = Value::from_bytes(&vec![10; address_bytes]).unwrap();
    let mask = Value::from_bytes(&[&[255; 2][..], &vec![0; address_bytes - 2]].concat()).unwrap();
    let zero = Value::from_bytes(&vec![0; address_bytes]).unwrap();
    let both_addresses = [Expr::daddr(family, Reg::R1), Expr::saddr(family, endpoint_port)];

    vec![
        Rule::new("nat-prerouting", [Expr::jump("services")]),
        Rule::new("nat-output", [Expr::jump("services")]),
        Rule::new("services", dispatch).comment("two endpoints"),
        Rule::new("services", local),
        Rule::new("lb-2", balance),
        Rule::new("lb-2", [Verdict::Drop.into()]),
        Rule::new("nat-postrouting", marked),
        Rule::new("nat-postrouting", [Masquerade { flags: NatFlags::NONE }.into()]),
        Rule::new("nat-postrouting", [Expr::immediate(Reg::R1, constant), snat.into()]),
        Rule::new("input", new_only),
        Rule::new("input", translated),
        Rule::new(
            "input",
            [Expr::l4proto(Reg::R1), Expr::eq(Reg::R1, Value::new().u8(6)), Reject::TcpReset.into()],
        ),
        Rule::new("forward", [&both_addresses[..], &[Expr::not_in_set("allowed", Reg::R1)]].concat()),
        Rule::new(
            "forward",
            [
                Expr::iifname(Reg::R1),
                Expr::eq(Reg::R1, eth),
                Expr::th_dport(Reg::R1),
                Expr::in_set("ports", Reg::R1),
            ],
        ),
        Rule::new(
            "odds",
            [
                Expr::saddr(family, Reg::R1),
                Dynset {
                    set: "affinity".to_owned(),
                    op: DynsetOp::Update,
                    sreg_key: Reg::R1,
                    sreg_data: None,
                    timeout: Duration::ZERO,
                }
                .into(),
            ],
        ),
        Rule::new(
            "odds",
            [
                Expr::daddr(family, Reg::R1),
                Bitwise { sreg: Reg::R1, dreg: Reg::R1, mask, xor: zero }.into(),
                Cmp { sreg: Reg::R1, op: CmpOp::NotEqual, value: zero }.into(),
                Verdict::Return.into(),
            ],
        ),
        Rule::new("odds", [Expr::l4proto(Reg::R1), Expr::map("verdicts", Reg::R1, Reg::VERDICT)]),
        Rule::new(
            "odds",
            [Expr::l4proto(Reg::R1), Expr::map("marks", Reg::R1, Reg::R1), Expr::set_mark(Reg::R1)],
        ),
        Rule::new(
            "odds",
            [
                Numgen { kind: NumgenKind::Incremental, modulus: 7, offset: 3, dreg: Reg::R1 }.into(),
                Expr::eq(Reg::R1, word(4)),
                Verdict::Continue.into(),
            ],
        ),
        Rule::new("odds", Expr::saddr_is_local()),
    ]
}

fn address(family: Family, last: u8) -> Value {
    match family {
        Family::Ip => Value::new().ipv4([10, 0, 0, last].into()),
        _ => Value::new().ipv6([0xfd00, 0, 0, 0, 0, 0, 0, last.into()].into()),
    }
}

fn pairs(family: Family) -> Pairs {
    let vip = address(family, 1).u8(6).port(80);
    vec![
        ("eps", vip.u32(0), Some(address(family, 2).port(8080)), None),
        ("eps", vip.u32(1), Some(address(family, 3).port(8080)), Some("default/web:http")),
        ("n-2", vip, None, Some("default/web:http")),
        ("plain", vip, None, None),
        ("ports", Value::new().port(443), None, None),
        ("marks", Value::new().u8(17), Some(Value::new().u32(5)), None),
    ]
}

fn write(ruleset: &Ruleset) -> Batch {
    let family = ruleset.table.family;
    let id = ruleset.table.id();
    let mut batch = Batch::new();
    batch.add_table(&ruleset.table);
    for chain in &ruleset.chains {
        batch.add_chain(id, chain);
    }
    for set in &ruleset.sets {
        batch.add_set(id, set);
    }
    for rule in &ruleset.rules {
        batch.add_rule(id, rule);
    }
    for (set, key, data, comment) in &pairs(family) {
        let data = data.as_ref().map(|data| ElementData::Value(data.bytes()));
        let element = Element { data, comment: *comment, ..Element::key(key.bytes()) };
        batch.add_elements(id, set).push(&element);
    }
    let drop_udp = Value::new().u8(17);
    let verdict = Some(ElementData::Verdict(Verdict::Goto("lb-2".to_owned())));
    batch.add_elements(id, "verdicts").push(&Element { data: verdict, ..Element::key(drop_udp.bytes()) });
    let (first, end) = (address(family, 16), address(family, 32));
    let mut ranges = batch.add_elements(id, "ranges");
    ranges.push(&Element::key(first.bytes()));
    ranges.push(&Element { interval_end: true, ..Element::key(end.bytes()) });
    let vip = address(family, 1);
    let (low, high) = (vip.field(first.bytes()), vip.field(end.bytes()));
    batch
        .add_elements(id, "allowed")
        .push(&Element { key_end: Some(high.bytes()), ..Element::key(low.bytes()) });
    batch
}

/// (key, datum, comment) of a listed element.
type Owned = (Vec<u8>, Option<Vec<u8>>, Option<String>);

fn elements(socket: &mut Socket, table: TableRef<'_>, set: &str) -> Vec<Owned> {
    let mut found = Vec::new();
    let visit = |dumped: Dumped<'_>| match dumped {
        Dumped::Restart => found.clear(),
        Dumped::Other => panic!("there is none"),
        Dumped::Element(element) => {
            found.push((
                element.key.to_vec(),
                element.value().map(<[u8]>::to_vec),
                element.comment.map(str::to_owned),
            ));
        }
    };
    socket.elements(table, set, visit).unwrap();
    found.sort();
    found
}

#[test]
fn a_ruleset_is_listed_as_it_was_written() {
    for family in [Family::Ip, Family::Ip6] {
        in_fresh_namespace(|| {
            let ruleset = ruleset(family);
            let id = ruleset.table.id();
            let mut socket = Socket::open().unwrap();
            socket.commit(&write(&ruleset)).unwrap();

            let table = socket.table(id).unwrap().unwrap();
            assert_eq!(table.item, ruleset.table);
            let mut chains: Vec<Chain> =
                socket.chains(id).unwrap().into_iter().map(|listed| listed.item).collect();
            chains.sort_by_key(|chain| ruleset.chains.iter().position(|other| other.name == chain.name));
            assert_eq!(chains, ruleset.chains);
            let mut sets: Vec<Set> = socket.sets(id).unwrap().into_iter().map(|listed| listed.item).collect();
            sets.sort_by_key(|set| ruleset.sets.iter().position(|other| other.name == set.name));
            assert_eq!(sets, ruleset.sets);

            let listed = socket.rules(id).unwrap();
            for chain in &ruleset.chains {
                let of = |rule: &&Rule| rule.chain == chain.name;
                let written: Vec<&Rule> = ruleset.rules.iter().filter(of).collect();
                let read: Vec<&Rule> = listed.iter().map(|listed| &listed.item).filter(of).collect();
                assert_eq!(read, written, "chain {}", chain.name);
            }

            for set in ["eps", "n-2", "plain", "ports", "marks"] {
                let bytes = |value: &Value| value.bytes().to_vec();
                let mut written: Vec<_> = pairs(family)
                    .iter()
                    .filter(|pair| pair.0 == set)
                    .map(|(_, key, data, comment)| {
                        (bytes(key), data.as_ref().map(bytes), comment.map(str::to_owned))
                    })
                    .collect();
                written.sort();
                assert_eq!(elements(&mut socket, id, set), written, "set {set}");
            }
        });
    }
}

#[test]
fn nft_prints_what_was_written() {
    let v4 = [
        "typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport",
        r#"10.0.0.1 . tcp . 80 . 1 comment "default/web:http" : 10.0.0.3 . 8080"#,
        "typeof ip daddr . meta l4proto . th dport",
        "type ipv4_addr . inet_proto . inet_service",
        "elements = { 10.0.0.16/28 }",
        "elements = { 10.0.0.1 . 10.0.0.16-10.0.0.32 }",
        "elements = { udp : goto lb-2 }",
        "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @eps",
        r#"ip daddr . meta l4proto . th dport @n-2 goto lb-2 comment "two endpoints""#,
        "fib daddr type local ip daddr . meta l4proto . th dport @n-2 goto lb-2",
        "fib saddr type local",
        "ip daddr . ip saddr != @allowed",
        "ct state new ip saddr @ranges counter packets 0 bytes 0 reject",
        "update @affinity { ip saddr }",
        "snat to 10.10.10.10 random",
        "meta l4proto vmap @verdicts",
        "meta mark set meta l4proto map @marks",
    ];
    let v6 = [
        "typeof ip6 daddr . meta l4proto . th dport . numgen random mod 65536 : ip6 daddr . th dport",
        r#"fd00::1 . tcp . 80 . 1 comment "default/web:http" : fd00::3 . 8080"#,
        "typeof ip6 daddr . meta l4proto . th dport",
        "type ipv6_addr . inet_proto . inet_service",
        "elements = { fd00::10/124 }",
        "elements = { fd00::1 . fd00::10-fd00::20 }",
        "dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 2 map @eps",
        r#"ip6 daddr . meta l4proto . th dport @n-2 goto lb-2 comment "two endpoints""#,
        "fib daddr type local ip6 daddr . meta l4proto . th dport @n-2 goto lb-2",
        "ip6 daddr . ip6 saddr != @allowed",
        "ct state new ip6 saddr @ranges counter packets 0 bytes 0 reject",
        "update @affinity { ip6 saddr }",
    ];
    let both = [
        r#"comment "a test""#,
        r#"comment "endpoints""#,
        r#"comment "where Services begin""#,
        "type filter hook input priority filter; policy drop;",
        "masquerade fully-random",
        "ct status dnat accept",
        "reject with tcp reset",
        r#"iifname "eth" th dport @ports"#,
    ];
    for (family, lines) in [(Family::Ip, &v4[..]), (Family::Ip6, &v6[..])] {
        in_fresh_namespace(|| {
            Socket::open().unwrap().commit(&write(&ruleset(family))).unwrap();
            let listing = nft(&["list", "ruleset"]);
            for line in lines.iter().chain(&both) {
                assert!(listing.contains(line), "{line}\nis not in\n{listing}");
            }
        });
    }
}

/// The layout is nft's own: what it makes of the same words reads as the same set.
#[test]
fn sets_that_nft_made_are_read_alike() {
    in_fresh_namespace(|| {
        let text = r#"
            table ip fairlead {
                map eps {
                    typeof ip daddr . meta l4proto . th dport . numgen random mod 65536 : ip daddr . th dport
                    comment "endpoints"
                }
                set n-2 { typeof ip daddr . meta l4proto . th dport; }
                set plain { type ipv4_addr . inet_proto . inet_service; }
                set ports { typeof th dport; }
                set ranges { typeof ip saddr; flags interval; }
                set allowed { typeof ip daddr . ip saddr; flags interval; }
                set affinity { typeof ip saddr; size 65535; flags dynamic, timeout; timeout 3h; gc-interval 10s; }
                map verdicts { typeof meta l4proto : verdict; }
                map marks { typeof meta l4proto : meta mark; }
            }
        "#;
        nft(&[text]);
        let listed = Socket::open().unwrap().sets(TableRef::new(Family::Ip, "fairlead")).unwrap();
        let made: Vec<Set> = listed.into_iter().map(|listed| listed.item).collect();
        assert_eq!(made, sets(Family::Ip));
    });
}

#[test]
fn what_was_added_can_be_deleted() {
    in_fresh_namespace(|| {
        let ruleset = ruleset(Family::Ip);
        let id = ruleset.table.id();
        let mut socket = Socket::open().unwrap();
        socket.commit(&write(&ruleset)).unwrap();
        let rules = socket.rules(id).unwrap();
        let second = rules.iter().filter(|listed| listed.item.chain == "lb-2").nth(1).unwrap();
        let [(_, key, ..), ..] = &pairs(Family::Ip)[..] else { unreachable!("there are pairs") };

        assert!(socket.has_element(id, "eps", &Element::key(key.bytes())).unwrap());
        let mut batch = Batch::new();
        batch.delete_rule(id, "lb-2", second.handle);
        batch.flush_chain(id, "forward");
        batch.delete_chain(id, "forward");
        batch.delete_set(id, "allowed");
        batch.flush_set(id, "n-2");
        batch.delete_elements(id, "eps").push(&Element::key(key.bytes()));
        socket.commit(&batch).unwrap();

        let rules = socket.rules(id).unwrap();
        assert_eq!(rules.iter().filter(|listed| listed.item.chain == "lb-2").count(), 1);
        assert!(socket.chains(id).unwrap().iter().all(|listed| listed.item.name != "forward"));
        assert!(socket.sets(id).unwrap().iter().all(|listed| listed.item.name != "allowed"));
        assert_eq!(elements(&mut socket, id, "n-2"), []);
        assert!(!socket.has_element(id, "eps", &Element::key(key.bytes())).unwrap());
        assert!(socket.has_element(id, "nowhere", &Element::key(key.bytes())).is_ok_and(|has| !has));
        assert_eq!(elements(&mut socket, id, "eps").len(), 1);

        let mut batch = Batch::new();
        batch.delete_table(id);
        socket.commit(&batch).unwrap();
        assert_eq!(socket.table(id).unwrap(), None);
        assert_eq!(socket.sets(id).unwrap(), []);
        assert_eq!(nft(&["list", "ruleset"]), "");
    });
}
