//! The real nf_tables, in a network namespace of the test's own.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use node_agent::engine::Engine;
use node_agent::nft::evaluate::{Fate, Packet, fates, holes};
use node_agent::nft::fake::Fake;
use node_agent::nft::layout::{Frontend, Target};
use node_agent::nft::mirror::{FrontendState, Mirror};
use node_agent::nft::ruleset::Ruleset;
use proptest::prelude::*;
use service_model::{
    Change, EndpointPort, EndpointSlice, IpFamily, Key, Node, NodeAddress, NodeAddressKind, Object,
    ObjectName, Protocol, Service, ServicePort,
};
use support::kernel::{in_namespace, nft, ruleset};
use support::many::*;
use support::*;

/// The agent dies and starts anew wherever it is told to: before it has planned, or with its second
/// batch outstanding. It ends with just what a fresh start would program, and writes nothing then.
fn lives_and_dies(happenings: &[(Happening, bool)]) {
    let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
    let mut now = Instant::now();
    for (happening, waits) in happenings {
        agent.happen(happening);
        if matches!(happening, Happening::Restart) {
            engine = Engine::new(config()).unwrap();
            continue;
        }
        sync(&mut engine, &mut agent, now);
        if *waits {
            now += Duration::from_secs(2);
            sync(&mut engine, &mut agent, now);
        }
        assert!(!engine.recheck().unwrap(), "what it thinks of the kernel is what the kernel has");
    }
    for _ in 0..2 {
        now += Duration::from_secs(2);
        sync(&mut engine, &mut agent, now);
    }
    let before = generation();
    let mut again = Engine::new(config()).unwrap();
    for second in [0, 2] {
        let at = now + Duration::from_secs(second);
        assert_eq!(sync(&mut again, &mut agent, at), 0, "a restart has nothing to write");
    }
    assert_eq!(generation(), before, "and does not commit");

    let programmed = programmed();
    let fresh = plan_into_fake(&mut agent);
    assert_eq!(holes(&programmed), Vec::<String>::new());
    assert_eq!(programmed.hairpins, fresh.hairpins);
    assert_eq!(keepers(&programmed), keepers(&fresh));
    assert_eq!(contents(&programmed), contents(&fresh));
}

/// Regardless of which endpoint has which index.
fn contents(mirror: &Mirror) -> Vec<(Frontend, FrontendState)> {
    let sorted = |(frontend, state): (&Frontend, &FrontendState)| {
        let mut state = state.clone();
        state.cluster.sort_unstable();
        state.local.sort_unstable();
        (*frontend, state)
    };
    mirror.frontends.iter().map(sorted).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_kernel_ends_as_a_fresh_start_would_leave_it_however_often_the_agent_dies(
        happenings in proptest::collection::vec((happening(), any::<bool>()), 1..10),
    ) {
        in_namespace(|| lives_and_dies(&happenings));
    }
}

/// What a fresh start would program.
fn plan_into_fake(agent: &mut Agent) -> Mirror {
    agent.happen(&Happening::Restart);
    agent.fake = Fake::default();
    let plan = agent.plan();
    agent.fake.commit(&plan.now).unwrap();
    agent.fake.observe()
}

#[test]
fn the_hosts_nft_lists_our_rules() {
    in_namespace(|| {
        let mut agent = Agent::new();
        let endpoints = (1..=20).map(|n| (n, n % 2 == 0)).collect();
        agent.happen(&Happening::Apply(Spec {
            number: 1,
            external: Some(1),
            node_port: Some(1),
            local_policy: true,
            sources: 0b111,
            affinity: Some(60),
            endpoints,
            ..Spec::default()
        }));
        sync(&mut Engine::new(config()).unwrap(), &mut agent, Instant::now());
        let listed = nft(&["list", "ruleset"]);
        for line in [
            "10.96.0.1 . tcp . 80 comment \"ns/svc-1:http\"",
            "ip daddr . meta l4proto . th dport @service-vips goto services",
            "ip daddr . meta l4proto . th dport @n-24 goto lb-24",
            "dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 2 map @cluster-endpoints",
            "fib saddr type local",
            "ip daddr . meta l4proto . th dport vmap @affinity\n",
            "ct state new ip daddr . meta l4proto . th dport @firewall-vips goto source-ranges",
            "ip daddr . meta l4proto . th dport . ip saddr @source-ranges-32 accept",
            "ip daddr . meta l4proto . th dport . ip saddr & 255.255.255.240 @source-ranges-28 accept",
            "ip6 daddr . meta l4proto . th dport . ip6 saddr & ffff:ffff:ffff:ffff:: @source-ranges-64 accept",
            "192.0.2.1 . tcp . 80 . 172.30.0.0 }",
            "10.96.0.1 . tcp . 80 : jump affinity/ns/svc-1/http/tcp",
            "tcp . 30001 : jump local-affinity/ns/svc-1/http/tcp",
            "chain local-affinity/ns/svc-1/http/tcp {",
            "flags dynamic,timeout\n\t\tgc-interval 10s\n",
            "masquerade fully-random",
            "ct state new ip daddr . meta l4proto . th dport @reject-vips goto reject-no-endpoints",
            "ct state new ip daddr . meta l4proto . th dport @drop-vips goto drop-no-local-endpoints",
            "ct state new ip daddr @cluster-ips goto reject-undefined-port",
            "counter packets 0 bytes 0\n\t\treject with tcp reset\n\t\treject\n",
            "counter packets 0 bytes 0\n\t\tdrop\n",
            "ip6 daddr . meta l4proto . th dport @service-vips goto services",
        ] {
            assert!(listed.contains(line), "{line:?} is not in\n{listed}");
        }
    });
}

/// Each of its endpoints is two rules, and each rule is announced to whoever listens.
#[test]
fn a_large_service_with_affinity_is_changed_without_a_doubt_about_what_is_there() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        let endpoints: Vec<_> = (0..=250).flat_map(|last| [(last, true), (last, false)]).collect();
        for left_out in 0..4 {
            let endpoints = endpoints[left_out..].to_vec();
            let spec = Spec { number: 1, affinity: Some(60), endpoints, ..Spec::default() };
            agent.happen(&Happening::Apply(spec));
            assert!(sync(&mut engine, &mut agent, Instant::now()) > 0);
            assert!(!engine.changed_by_others(), "{left_out} left out");
        }
    });
}

/// So that whoever keeps the output of `nft list ruleset` can load it.
#[test]
fn the_hosts_nft_reads_what_it_listed() {
    in_namespace(|| {
        let mut agent = Agent::new();
        agent.happen(&Happening::Apply(Spec {
            number: 1,
            external: Some(1),
            node_port: Some(1),
            local_policy: true,
            sources: 0b111,
            affinity: Some(60),
            whole: true,
            https: Some((11..=21).map(|n| (n, n % 2 == 0)).collect()),
            endpoints: (1..=20).map(|n| (n, n % 2 == 0)).collect(),
        }));
        sync(&mut Engine::new(config()).unwrap(), &mut agent, Instant::now());
        let affinities = || programmed().affinities;
        let (before, written) = (nft(&["list", "ruleset"]), affinities());
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("flush ruleset\n{before}")).unwrap();
        nft(&["-f", &file.path().to_string_lossy()]);
        assert_eq!(affinities(), written);
    });
}

#[test]
fn a_foreign_flush_is_healed_by_the_next_sync() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        agent.happen(&Happening::Apply(Spec {
            number: 1,
            node_port: Some(0),
            affinity: Some(60),
            endpoints: vec![(1, true), (2, false)],
            ..Spec::default()
        }));
        sync(&mut engine, &mut agent, Instant::now());
        let before = ruleset();
        nft(&["flush", "ruleset"]);
        engine.doubt();
        assert!(sync(&mut engine, &mut agent, Instant::now()) > 0);
        assert!(ruleset() == before, "{}", ruleset());
    });
}

#[test]
fn what_others_do_to_our_table_is_put_right_in_one_commit() {
    const CASES: [(&str, &str); 12] = [
        (
            "a chain that is gone, as in a table of an earlier version",
            "flush chain ip fairlead filter-forward; flush chain ip fairlead filter-output; \
             flush chain ip fairlead filter-input; delete chain ip fairlead reject-undefined-port",
        ),
        (
            "a chain, and a rule that leads to it",
            "add chain ip fairlead intruder; add rule ip fairlead intruder drop; \
             add rule ip fairlead services jump intruder",
        ),
        ("a set", "add set ip fairlead loot { type ipv4_addr; }"),
        ("a base chain", "add chain ip fairlead gate { type filter hook input priority 5; policy drop; }"),
        (
            "rules with sets of their own",
            "add chain ip fairlead intruder; add rule ip fairlead intruder ip saddr { 192.0.2.1, 192.0.2.2 } drop; \
             add rule ip fairlead services ip saddr { 192.0.2.1, 192.0.2.2 } drop",
        ),
        (
            "a map of verdicts",
            "add chain ip fairlead intruder; add map ip fairlead loot { type ipv4_addr : verdict; }; \
             add element ip fairlead loot { 192.0.2.1 : goto intruder }; \
             add rule ip fairlead services ip saddr vmap @loot",
        ),
        ("a table put to sleep", "add table ip fairlead { flags dormant; }"),
        (
            "a rule in a chain of session affinity",
            "insert rule ip fairlead affinity/ns/svc-1/http/tcp ip saddr 192.0.2.1 drop",
        ),
        (
            "a frontend that leads to another chain",
            "add chain ip fairlead intruder; \
             delete element ip fairlead affinity { 10.96.0.1 . tcp . 80 }; \
             add element ip fairlead affinity { 10.96.0.1 . tcp . 80 : jump intruder }",
        ),
        ("a policy", "add chain ip fairlead filter-input { policy drop; }"),
        ("an element that every address is in", "add element ip fairlead service-vips { * }"),
        (
            "an entry that every address has",
            "add element ip fairlead cluster-endpoints { * : 192.0.2.1 . 80 }",
        ),
    ];
    for (what, edit) in CASES {
        in_namespace(|| {
            let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
            agent.happen(&Happening::Apply(Spec {
                number: 1,
                affinity: Some(60),
                endpoints: vec![(1, true)],
                ..Spec::default()
            }));
            sync(&mut engine, &mut agent, Instant::now());
            let before = lines();
            nft(&[edit]);
            assert!(lines() != before, "{what}: the ruleset is as before");
            engine.doubt();
            let generation_before = generation();
            sync(&mut engine, &mut agent, Instant::now());
            let after = lines();
            assert_eq!(after.iter().find(|line| !before.contains(line)), None, "{what}");
            assert_eq!(before.iter().find(|line| !after.contains(line)), None, "{what}");
            let commits = generation() - generation_before;
            assert_eq!(commits, 1, "{what}");
        });
    }
}

/// What becomes of its packets: tests/traffic/sctp.rs.
#[test]
fn a_service_over_sctp_is_programmed_and_foretold_like_any_other() {
    in_namespace(|| {
        let mut service = Service::new(name(1));
        service.cluster_ips = vec![[10, 96, 0, 9].into(), "fd00:96::9".parse().unwrap()];
        service.ports = vec![ServicePort {
            name: "m3ua".into(),
            protocol: Protocol::Sctp,
            port: 2905,
            node_port: Some(30_905),
        }];
        let port = EndpointPort { name: "m3ua".into(), protocol: Protocol::Sctp, port: 2905 };
        let slice = EndpointSlice {
            name: ObjectName::new("ns", "m3ua"),
            service: name(1),
            family: IpFamily::V4,
            ports: vec![port],
            endpoints: vec![endpoint(7, true)],
            triggered: None,
        };
        let mut agent = Agent::new();
        agent.world.apply(Change::Apply(Object::Service(service)));
        agent.world.apply(Change::Apply(Object::EndpointSlice(slice)));
        sync(&mut Engine::new(config()).unwrap(), &mut agent, Instant::now());
        let listed = nft(&["list", "ruleset"]);
        for element in [
            "10.96.0.9 . sctp . 2905 comment \"ns/svc-1:m3ua\"",
            "10.96.0.9 . sctp . 2905 . 0 : 10.244.1.7 . 2905",
            "sctp . 30905",
        ] {
            assert!(listed.contains(element), "{element:?} is not in\n{listed}");
        }
        let programmed = programmed();
        let host = BTreeSet::from(["172.30.0.11".parse().unwrap()]);
        let fates = |to: &str| {
            let destination: IpAddr = to.parse().unwrap();
            let ruleset = Ruleset::new(IpFamily::of(destination), &config());
            let source = if destination.is_ipv4() { "10.244.3.9" } else { "fd00:10:244::39" };
            let (source, protocol) = (source.parse().unwrap(), Protocol::Sctp);
            fates(
                &ruleset,
                &programmed,
                &host,
                Packet { source, destination, protocol, port: 2905, interface: None },
            )
        };
        let target = Target { ip: "10.244.1.7".parse().unwrap(), port: 2905 };
        assert_eq!(fates("10.96.0.9"), BTreeSet::from([Fate::Endpoint { target, masqueraded: false }]));
        assert_eq!(fates("fd00:96::9"), BTreeSet::from([Fate::Refused]));
        assert_eq!(sync(&mut Engine::new(config()).unwrap(), &mut agent, Instant::now()), 0);
    });
}

#[test]
fn a_service_with_the_longest_names_is_not_written_again_by_a_restart() {
    in_namespace(|| {
        let longest = "x".repeat(63);
        let mut service = Service::new(ObjectName::new(&longest, &longest));
        service.cluster_ips = vec![[10, 96, 0, 9].into()];
        service.ports =
            vec![ServicePort { name: longest.into(), protocol: Protocol::Tcp, port: 80, node_port: None }];
        let mut agent = Agent::new();
        agent.world.apply(Change::Apply(Object::Service(service)));
        sync(&mut Engine::new(config()).unwrap(), &mut agent, Instant::now());
        let mut again = Engine::new(config()).unwrap();
        assert_eq!(sync(&mut again, &mut agent, Instant::now()), 0);
    });
}

#[test]
fn a_start_with_many_services_is_made_in_parts_and_a_restart_writes_nothing() {
    in_namespace(|| {
        let (mut agent, before) = (Agent::new(), generation());
        many(&mut agent);
        sync(&mut Engine::new(config()).unwrap(), &mut agent, Instant::now());
        assert_eq!((generation() - before) as usize, parts(MANY));
        assert_eq!(programmed().frontends.len(), MANY as usize);

        let mut again = Engine::new(config()).unwrap();
        assert_eq!(sync(&mut again, &mut agent, Instant::now()), 0);
    });
}

/// What the API server would never let in stands for what a kernel may refuse.
#[test]
fn a_service_that_is_refused_does_not_hinder_the_others_and_comes_back_when_it_is_right() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        let service = |last: u8, port_name: &str| {
            let mut service = Service::new(name(last));
            service.cluster_ips = vec![[10, 96, 0, last].into()];
            service.ports = vec![ServicePort {
                name: port_name.into(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }];
            Change::Apply(Object::Service(service))
        };
        let served = |last| nft(&["list", "ruleset"]).contains(&format!("10.96.0.{last} . tcp . 80 comment"));
        let mut now = Instant::now();
        (1..=4).for_each(|last| agent.world.apply(service(last, if last == 2 { "a\0b" } else { "ab" })));
        sync(&mut engine, &mut agent, now);
        assert_eq!(([1, 2, 3, 4].map(served), engine.refused()), ([true, false, true, true], 1));

        agent.world.apply(service(5, "ab"));
        sync(&mut engine, &mut agent, now);
        assert!(served(5), "changes are followed meanwhile");

        now += Duration::from_secs(60);
        sync(&mut engine, &mut agent, now);
        assert_eq!((served(2), engine.refused()), (false, 1), "it was tried again");

        agent.world.apply(service(2, "ab"));
        sync(&mut engine, &mut agent, now);
        assert_eq!((served(2), engine.refused()), (true, 0));
    });
}

#[test]
fn a_node_object_that_goes_takes_no_node_port_with_it() {
    in_namespace(|| {
        let (mut agent, mut engine) = (Agent::new(), Engine::new(config()).unwrap());
        let mut node = Node::new("here".into());
        node.addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, ip: [172, 30, 0, 11].into() }];
        agent.world.apply(Change::Apply(Object::Node(node)));
        sync(&mut engine, &mut agent, Instant::now());
        let answering = || nft(&["list", "set", "ip", "fairlead", "nodeport-ips"]).contains("172.30.0.11");
        assert!(answering());
        agent.world.apply(Change::Delete(Key::Node("here".into())));
        engine.mark_node();
        sync(&mut engine, &mut agent, Instant::now());
        engine.doubt();
        sync(&mut engine, &mut agent, Instant::now());
        assert!(answering());
    });
}

/// In no particular order: a table that was made anew is listed last.
fn lines() -> Vec<String> {
    let mut lines: Vec<String> = ruleset().lines().map(str::to_owned).collect();
    lines.sort_unstable();
    lines
}
