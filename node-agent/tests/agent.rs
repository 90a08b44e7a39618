//! The loop over the real kernel: changes come through the channel, others interfere.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::time::Duration;

use nfnetlink::{Batch, Element, Event, Family, Field, Generation, Monitor, Set, Socket, Table, Value};
use node_agent::config::Config;
use node_agent::health::Moment;
use node_agent::local::DetectLocal;
use service_model::{Change, Kind, Node, NodeAddress, NodeAddressKind, Object, ServiceCidr};
use support::kernel::{ip, nft};
use support::running::*;
use support::{Spec, config};

/// Long before the next look at everything, five minutes after the last.
const HEALED_WITHIN: Duration = Duration::from_secs(5);

#[test]
fn nothing_is_touched_before_every_kind_is_listed() {
    with_agent(async |tx, health| {
        send(tx, KINDS.map(Change::ListStarted)).await;
        send(tx, spec(&[1]).changes()).await;
        send(tx, [Change::ListEnded(Kind::Service), Change::ListEnded(Kind::EndpointSlice)]).await;
        until("the agent has taken all changes", PATIENCE, || tx.capacity() == tx.max_capacity()).await;
        assert_eq!(nft(&["list", "ruleset"]), "");
        assert!(!health.is_live(Moment::now()));
        send(tx, [Change::ListEnded(Kind::Node), Change::ListEnded(Kind::ServiceCidr)]).await;
        until("programmed", PATIENCE, || listed("10.96.0.1 . tcp . 80")).await;
        until("healthy", PATIENCE, || health.is_live(Moment::now())).await;
    });
}

#[test]
fn nothing_is_touched_before_the_node_has_the_pod_cidrs_by_which_pods_are_known() {
    let config = Config { detect_local: DetectLocal::NodeCidr, ..config() };
    with_agent_of(config, Duration::from_secs(30), Duration::ZERO, async |tx, health| {
        list(tx, &spec(&[1])).await;
        until("the agent has taken all changes", PATIENCE, || tx.capacity() == tx.max_capacity()).await;
        assert_eq!(nft(&["list", "ruleset"]), "");
        assert!(!health.is_live(Moment::now()));
        for cidr in ["10.244.1.0/24", "10.244.2.0/24"] {
            let mut node = Node::new("here".into());
            node.pod_cidrs = vec![cidr.parse().unwrap()];
            send(tx, [Change::Apply(Object::Node(node))]).await;
            until("followed", PATIENCE, || listed(&format!("ip saddr != {cidr}"))).await;
        }
        until("healthy", PATIENCE, || health.is_live(Moment::now())).await;
    });
}

#[test]
fn an_address_that_the_host_gets_answers_node_ports_and_one_that_it_loses_does_not() {
    let config = Config { nodeport_addresses: "192.0.2.0/24,2001:db8::/64".parse().unwrap(), ..config() };
    with_agent_of(config, Duration::from_secs(30), Duration::ZERO, async |tx, _| {
        list(tx, &spec(&[1])).await;
        until("programmed", PATIENCE, || listed("10.244.1.1 . 8080")).await;
        assert!(!listed("192.0.2.7"));
        ip("addr add 192.0.2.7/32 dev lo");
        ip("addr add 2001:db8::7/128 dev lo");
        until("both answer", PATIENCE, || listed("{ 192.0.2.7 }") && listed("{ 2001:db8::7 }")).await;
        ip("addr del 192.0.2.7/32 dev lo");
        until("one is gone", PATIENCE, || !listed("192.0.2.7")).await;
        assert!(listed("{ 2001:db8::7 }"));
    });
}

#[test]
fn a_change_is_followed_and_its_surplus_goes_a_second_later() {
    with_agent(async |tx, _| {
        list(tx, &spec(&[1, 2])).await;
        until("two endpoints", PATIENCE, || listed("10.96.0.1 . tcp . 80 . 1 : 10.244.1.2 . 8080")).await;
        send(tx, spec(&[1]).changes()).await;
        until("one endpoint", PATIENCE, || {
            nft(&["list", "set", "ip", "fairlead", "n-1"]).contains("10.96.0.1")
        })
        .await;
        until("the surplus is gone", PATIENCE, || !listed("10.244.1.2 . 8080")).await;
    });
}

#[test]
fn a_foreign_flush_or_edit_heals_before_the_next_look_at_everything() {
    with_agent(async |tx, _| {
        list(tx, &spec(&[1, 2])).await;
        until("programmed", PATIENCE, || listed("10.244.1.2 . 8080")).await;
        let before = sorted(&nft(&["list", "ruleset"]));
        let vandals: [&[&str]; 4] = [
            &["flush", "ruleset"],
            &["delete", "element", "ip", "fairlead", "service-vips", "{ 10.96.0.1 . tcp . 80 }"],
            &["add", "rule", "ip", "fairlead", "services", "drop"],
            &["delete", "table", "ip6", "fairlead"],
        ];
        for vandal in vandals {
            // First something that is none of our business, right before.
            nft(&["add", "table", "ip", "other"]);
            nft(&["delete", "table", "ip", "other"]);
            nft(vandal);
            assert!(sorted(&nft(&["list", "ruleset"])) != before, "{vandal:?} did no harm");
            until("healed", HEALED_WITHIN, || sorted(&nft(&["list", "ruleset"])) == before).await;
        }
    });
}

#[test]
fn others_may_commit_all_the_time() {
    with_agent(async |tx, _| {
        list(tx, &spec(&[1])).await;
        until("programmed", PATIENCE, || listed("10.244.1.1 . 8080")).await;
        for last in 2..20 {
            nft(&["add", "table", "ip", "other"]);
            send(tx, spec(&[last]).changes()).await;
            nft(&["delete", "table", "ip", "other"]);
            until("followed", PATIENCE, || listed(&format!("10.244.1.{last} . 8080"))).await;
        }
    });
}

/// Nobody reads meanwhile, since the test and its agent share a thread: what the vandal does is
/// among the notifications for which there was no room.
#[test]
fn a_change_whose_notification_was_lost_heals_too() {
    with_agent(async |tx, _| {
        list(tx, &spec(&[1, 2])).await;
        until("programmed", PATIENCE, || listed("10.244.1.2 . 8080")).await;
        let before = sorted(&nft(&["list", "table", "ip", "fairlead"]));
        let mut monitor = Monitor::open().unwrap();
        flood();
        nft(&["delete", "element", "ip", "fairlead", "service-vips", "{ 10.96.0.1 . tcp . 80 }"]);
        assert!(is_overrun(&mut monitor), "there was room for all of it");
        until("healed", PATIENCE, || sorted(&nft(&["list", "table", "ip", "fairlead"])) == before).await;
    });
}

/// More than a table of ours could ever take: notifications of it do not fit into the buffer.
fn flood() {
    let (table, set) = (Table::new(Family::Ip, "other"), Set::new("s", [Field::random(1 << 31)]));
    let mut socket = Socket::open().unwrap();
    for round in 0..10 {
        let mut batch = Batch::new();
        batch.add_table(&table);
        batch.add_set(table.id(), &set);
        let mut elements = batch.add_elements(table.id(), "s");
        for key in round * 40_000..(round + 1) * 40_000 {
            elements.push(&Element::key(Value::new().u32(key).bytes()));
        }
        socket.commit(&batch).unwrap();
    }
}

fn is_overrun(monitor: &mut Monitor) -> bool {
    let mut events = Vec::new();
    while monitor.receive(&mut events).is_ok() {}
    events.contains(&Event::Overrun)
}

/// As behind an API server that forgets its watches' versions over and over.
#[test]
fn a_storm_of_lists_that_say_nothing_new_writes_nothing() {
    with_agent(async |tx, _| {
        let many = |extra: &Spec| -> Vec<Change> {
            let of = |number| Spec { number, endpoints: vec![(1, true), (2, false)], ..extra.clone() };
            (2..=250).flat_map(|number| of(number).changes()).chain(extra.changes()).collect()
        };
        let relist = async |extra: &Spec| {
            send(tx, KINDS.map(Change::ListStarted)).await;
            send(tx, many(extra)).await;
            send(tx, [Change::Apply(Object::Node(node()))]).await;
            send(tx, KINDS.map(Change::ListEnded)).await;
        };
        let extra = Spec { node_port: None, ..spec(&[1]) };
        relist(&extra).await;
        until("programmed", PATIENCE, || listed("10.96.0.250 . tcp . 80") && listed("10.96.0.1 . tcp")).await;
        let generation = || Socket::open().unwrap().generation().unwrap().id;
        let before = generation();
        for _ in 0..20 {
            relist(&extra).await;
        }
        // What the last list does say is followed, in the one commit there is.
        relist(&Spec { endpoints: vec![(1, true), (2, true)], ..extra }).await;
        until("followed", PATIENCE, || listed("10.244.1.2 . 8080")).await;
        assert_eq!(generation(), Generation::next(before));
    });
}

/// As when a kind is listed to be sure: what the list says is not held up until its end.
#[test]
fn a_list_under_way_takes_nothing_away_and_holds_nothing_up() {
    with_agent(async |tx, _| {
        let other = Spec { number: 2, node_port: None, ..spec(&[3]) };
        send(tx, KINDS.map(Change::ListStarted)).await;
        send(tx, spec(&[1]).changes().into_iter().chain(other.changes())).await;
        send(tx, [Change::Apply(Object::Node(node()))]).await;
        send(tx, KINDS.map(Change::ListEnded)).await;
        until("programmed", PATIENCE, || listed("10.244.1.1 . 8080") && listed("10.244.1.3 . 8080")).await;
        send(tx, KINDS.map(Change::ListStarted)).await;
        send(tx, spec(&[1, 2]).changes()).await;
        until("followed within the list", PATIENCE, || listed("10.244.1.2 . 8080")).await;
        assert!(listed("10.244.1.3 . 8080"), "not listed yet");
        send(tx, KINDS.map(Change::ListEnded)).await;
        until("not listed at its end", PATIENCE, || !listed("10.244.1.3 . 8080")).await;
        assert!(listed("10.244.1.2 . 8080"));
    });
}

#[test]
fn what_is_due_before_the_next_sync_may_be_is_waited_for_without_spinning() {
    with_agent_of(config(), Duration::from_secs(30), Duration::from_secs(3), async |tx, _| {
        list(tx, &spec(&[1, 2])).await;
        until("two endpoints", PATIENCE, || listed("10.244.1.2 . 8080")).await;
        send(tx, spec(&[1]).changes()).await;
        until("one endpoint", PATIENCE, || {
            nft(&["list", "set", "ip", "fairlead", "n-1"]).contains("10.96.0.1")
        })
        .await;
        // Its surplus is due after one second, and may go after three.
        let before = time_of_this_thread();
        let surplus = async {
            while listed("10.244.1.2 . 8080") {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(PATIENCE, surplus).await.expect("the surplus goes");
        let spent = time_of_this_thread() - before;
        assert!(spent < Duration::from_millis(600), "{spent:?} of processor time");
    });
}

#[test]
fn rules_that_cannot_be_put_right_make_the_node_unhealthy() {
    with_agent_of(config(), Duration::from_millis(50), Duration::ZERO, async |tx, health| {
        list(tx, &spec(&[1])).await;
        until("healthy", PATIENCE, || health.is_live(Moment::now())).await;
        let mut thief = Socket::open().unwrap();
        let table = Table::new(Family::Ip, "fairlead");
        let mut batch = Batch::new();
        batch.delete_table(table.id());
        batch.add_table(&Table { flags: Table::OWNER, ..table });
        thief.commit(&batch).unwrap();
        until("unhealthy", PATIENCE, || !health.is_live(Moment::now())).await;
        drop(thief);
        until("healed", PATIENCE, || listed("10.244.1.1 . 8080")).await;
        until("healthy again", PATIENCE, || health.is_live(Moment::now())).await;
    });
}

#[test]
fn a_node_address_or_a_service_cidr_that_changes_is_heeded_at_once() {
    with_agent(async |tx, _| {
        let ranged = Spec { external: Some(7), sources: 0b1, ..spec(&[1]) };
        list(tx, &ranged).await;
        until("programmed", PATIENCE, || listed("192.0.2.7 . tcp . 80 . 172.30.0.0")).await;
        // The Node is in the range, so the address counts as the node.
        assert!(listed("192.0.2.7 . tcp . 80 . 192.0.2.7"));
        let mut node = Node::new("here".into());
        node.addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, ip: [198, 51, 100, 1].into() }];
        send(tx, [Change::Apply(Object::Node(node))]).await;
        until("it no longer does", PATIENCE, || !listed("192.0.2.7 . tcp . 80 . 192.0.2.7")).await;

        assert!(!listed("ip daddr 10.200.0.0/16"));
        let networks = vec!["10.200.0.0/16".parse().unwrap()];
        let cidr = ServiceCidr { name: "more".into(), networks };
        send(tx, [Change::Apply(Object::ServiceCidr(cidr))]).await;
        until("what nobody has of it is dropped", PATIENCE, || {
            listed("ct state new ip daddr 10.200.0.0/16 goto drop-unallocated-address")
        })
        .await;
    });
}

/// The processor time that the test and its agent have taken: they share a thread.
fn time_of_this_thread() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

/// Elements of a set are listed in no particular order.
fn sorted(ruleset: &str) -> Vec<String> {
    let mut lines: Vec<String> =
        ruleset.lines().map(|line| line.trim().trim_end_matches(',').to_owned()).collect();
    lines.sort_unstable();
    lines
}
