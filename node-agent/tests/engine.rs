//! How the engine commits: how much together, what it makes of what others did, and of what the kernel refuses.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nfnetlink::{Batch, Family, Socket, Table, TableRef};
use node_agent::engine::Engine;
use node_agent::nft::mirror::Mirror;
use service_model::{Change, Node, NodeAddress, NodeAddressKind, Object, Service, SessionAffinity};
use support::kernel::{in_namespace, nft};
use support::many::*;
use support::*;

/// It sorts first, and names the address of one that is planned in a later part.
#[test]
fn an_address_that_two_want_has_its_owner_from_the_first_part_of_a_start_on() {
    in_namespace(|| {
        let mut agent = Agent::new();
        many(&mut agent);
        let victim = Ipv4Addr::from(FIRST + MANY - 1);
        let mut owner = service("ns", "svc-2499", FIRST + MANY - 1);
        owner.session_affinity = Some(SessionAffinity::of_seconds(60));
        agent.world.apply(Change::Apply(Object::Service(owner)));
        agent.world.apply(Change::Apply(Object::EndpointSlice(slice("svc-2499"))));
        let mut thief = service("aaa", "thief", FIRST + MANY);
        thief.external_ips = vec![victim.into()];
        agent.world.apply(Change::Apply(Object::Service(thief)));
        let (mut engine, before) = (Engine::new(config()).unwrap(), generation());
        assert!(sync(&mut engine, &mut agent, Instant::now()) > MANY as usize);
        assert_eq!((generation() - before) as usize, parts(MANY + 1), "none was refused");
        let owner = || {
            let programmed = programmed();
            let (_, state) = programmed
                .frontends
                .iter()
                .find(|(f, _)| f.to_string() == format!("{victim}:80/TCP"))
                .unwrap();
            state.label.to_string()
        };
        assert_eq!(owner(), "ns/svc-2499:http");
        agent.world.mark_all_services();
        let mut again = Engine::new(config()).unwrap();
        assert_eq!(
            sync(&mut again, &mut agent, Instant::now()),
            0,
            "nor is it given away for a moment by a restart"
        );
        let told: Vec<String> =
            engine.take_notes().iter().map(|(name, note)| format!("{name}: {note}")).collect();
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].starts_with("aaa/thief: 10.96.9.196:80/TCP is ns/svc-2499's"), "{told:?}");
    });
}

#[test]
fn what_changes_together_is_one_commit_however_much_it_is() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        many(&mut agent);
        sync(&mut engine, &mut agent, Instant::now());
        for doubts in [false, true] {
            for number in 0..MANY {
                let mut service = service("ns", &format!("svc-{number:04}"), FIRST + number);
                service.ports[0].port = 81 + u16::from(doubts);
                agent.world.apply(Change::Apply(Object::Service(service)));
            }
            if doubts {
                engine.doubt();
            }
            let before = generation();
            assert_eq!(sync(&mut engine, &mut agent, Instant::now()), 4 * MANY as usize);
            assert_eq!(generation() - before, 1);
            assert!(!engine.recheck().unwrap(), "it knows what it wrote");
        }
    });
}

#[test]
fn what_nobody_said_is_found_by_looking_and_put_right() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        agent.happen(&Happening::Apply(Spec { number: 1, endpoints: vec![(1, true)], ..Spec::default() }));
        sync(&mut engine, &mut agent, Instant::now());
        assert!(!engine.recheck().unwrap() && !engine.in_doubt());
        nft(&["add", "table", "ip", "another"]);
        assert!(!engine.recheck().unwrap() && !engine.in_doubt(), "what is not ours may be as it likes");
        nft(&["delete", "element", "ip", "fairlead", "cluster-ips", "{ 10.96.0.1 }"]);
        assert!(engine.recheck().unwrap() && engine.in_doubt());
        assert_eq!(sync(&mut engine, &mut agent, Instant::now()), 1);
        assert!(!engine.recheck().unwrap());
    });
}

/// Each would be refused if it were deleted or written as it stands.
#[test]
fn what_others_left_goes_in_the_commit_that_puts_our_rules_right() {
    const HAIRPIN: &str = "add element ip fairlead hairpin { 10.244.1.1 . 10.244.1.6 . tcp . 8080 }";
    for (what, edit) in [
        (
            "a chain that a rule in a chain of session affinity leads to",
            "add chain ip fairlead log-it; add rule ip fairlead affinity/ns/svc-1/http/tcp jump log-it",
        ),
        (
            "a set that such a rule asks",
            "add set ip fairlead debug { type ipv4_addr; }; \
             add rule ip fairlead affinity/ns/svc-1/http/tcp ip saddr @debug drop",
        ),
        ("a chain within a rule", "insert rule ip fairlead services jump { drop; }"),
        (
            "a chain within a rule of session affinity",
            "insert rule ip fairlead affinity/ns/svc-1/http/tcp jump { drop; }",
        ),
        ("a way from one endpoint to another", HAIRPIN),
        (
            "that, in place of ours",
            "delete element ip fairlead hairpin { 10.244.1.1 . 10.244.1.1 . tcp . 8080 }",
        ),
    ] {
        in_namespace(|| {
            let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
            let spec = Spec { number: 1, affinity: Some(60), endpoints: vec![(1, true)], ..Spec::default() };
            agent.happen(&Happening::Apply(spec));
            sync(&mut engine, &mut agent, Instant::now());
            let before = programmed();
            nft(&[edit]);
            if what.starts_with("that") {
                nft(&[HAIRPIN]);
            }
            engine.doubt();
            let generation_before = generation();
            assert!(sync(&mut engine, &mut agent, Instant::now()) > 0, "{what}");
            assert_eq!(generation() - generation_before, 1, "{what}");
            let after = programmed();
            assert_eq!((&after.v4, &after.v6), (&before.v4, &before.v6), "{what}");
            assert_eq!((&after.hairpins, &after.frontends), (&before.hairpins, &before.frontends), "{what}");
            assert_eq!(keepers(&after), keepers(&before), "{what}");
            assert!(!engine.recheck().unwrap(), "{what}");
        });
    }
}

/// What the API server would never let in stands for what a kernel may refuse.
fn refused(mut service: Service) -> Change {
    service.ports[0].name = "a\0b".into();
    Change::Apply(Object::Service(service))
}

/// A chain that cannot be deleted may be what the kernel refuses, and so may the Service.
#[test]
fn a_refused_service_and_a_strange_chain_at_once_hinder_nobody() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        for number in 1..=3 {
            agent.world.apply(Change::Apply(Object::Service(service(
                "ns",
                &format!("svc-{number}"),
                FIRST + number,
            ))));
        }
        sync(&mut engine, &mut agent, Instant::now());
        nft(&["add chain ip fairlead log-it"]);
        agent.world.apply(refused(service("ns", "svc-2", FIRST + 9)));
        agent.world.apply(Change::Apply(Object::Service(service("ns", "svc-4", FIRST + 4))));
        engine.doubt();
        sync(&mut engine, &mut agent, Instant::now());
        assert_eq!(engine.refused(), 1);
        let served: Vec<String> =
            programmed().frontends.values().map(|state| state.label.to_string()).collect();
        assert_eq!(served, ["ns/svc-1:http", "ns/svc-3:http", "ns/svc-4:http"]);
        assert!(programmed().v4.other_chains.is_empty());
    });
}

/// Its endpoints' second batch would take the commit of all others with it.
#[test]
fn a_refused_service_is_left_alone_until_its_time() {
    in_namespace(|| {
        let (mut agent, mut engine, now) = (Agent::new(), Engine::new(config()).unwrap(), Instant::now());
        let spec = |last: u8| Spec {
            number: 1,
            endpoints: (1..=last).map(|n| (n, true)).collect(),
            ..Spec::default()
        };
        agent.happen(&Happening::Apply(spec(3)));
        sync(&mut engine, &mut agent, now);
        for change in spec(1).changes() {
            match change {
                Change::Apply(Object::Service(service)) => agent.world.apply(refused(service)),
                other => agent.world.apply(other),
            }
        }
        sync(&mut engine, &mut agent, now);
        assert_eq!(engine.refused(), 1);
        assert_eq!(engine.next_due(), Some(now + Duration::from_secs(30)));
        let targets = |mirror: &Mirror| mirror.frontends.values().map(|state| state.cluster.len()).max();
        assert_eq!(targets(&programmed()), Some(3), "it is as it was");

        // What changed is looked at while the kernel is in doubt too.
        agent.happen(&Happening::Apply(spec(1)));
        engine.mark(agent.world.take_dirty().services);
        engine.doubt();
        engine.sync(&agent.world, now).unwrap();
        assert_eq!((engine.refused(), targets(&programmed())), (0, Some(3)), "the surplus has its second");
        sync(&mut engine, &mut agent, now + Duration::from_secs(1));
        assert_eq!(targets(&programmed()), Some(1));
    });
}

#[test]
fn a_node_without_addresses_answers_node_ports_everywhere_until_it_has_some() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        let spec = Spec { number: 1, node_port: Some(0), endpoints: vec![(1, true)], ..Spec::default() };
        agent.happen(&Happening::Apply(spec));
        sync(&mut engine, &mut agent, Instant::now());
        let dispatch = || nft(&["list", "chain", "ip", "fairlead", "nat-prerouting"]);
        assert!(dispatch().contains("@nodeport-ips"), "they are waited for");
        engine.go_on_without_addresses();
        sync(&mut engine, &mut agent, Instant::now());
        assert!(dispatch().contains("fib daddr type local ip daddr != 127.0.0.0/8"), "{}", dispatch());

        let mut node = Node::new("here".into());
        let ip: IpAddr = [172, 30, 0, 11].into();
        node.addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, ip }];
        agent.world.apply(Change::Apply(Object::Node(node)));
        engine.mark_node();
        sync(&mut engine, &mut agent, Instant::now());
        assert!(dispatch().contains("@nodeport-ips") && programmed().node_addresses.contains(&ip));
    });
}

/// It is not listened to while many elements are written: each of those moments may be somebody else's.
#[test]
fn a_start_is_made_beside_others_who_commit_all_the_time() {
    in_namespace(|| {
        let mut agent = Agent::new();
        many(&mut agent);
        let mut engine = Engine::new(config()).unwrap();
        let (going_on, over) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut socket = Socket::open().unwrap();
                while over.recv_timeout(Duration::from_millis(2)) == Err(RecvTimeoutError::Timeout) {
                    let mut batch = Batch::new();
                    batch.add_table(&Table::new(Family::Ip, "beside"));
                    batch.delete_table(TableRef::new(Family::Ip, "beside"));
                    socket.commit(&batch).unwrap();
                }
            });
            let synced = sync(&mut engine, &mut agent, Instant::now());
            assert!(synced > 0);
            drop(going_on);
        });
        assert_eq!(engine.take_changes_by_others(), 0, "none of it was to our tables");
        assert_eq!(programmed().cluster_ips.len(), MANY as usize);
    });
}
