//! `node-agent explain` against the real nf_tables: what it says of the kernel it read.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nfnetlink::{Batch, Family, Socket, Table, TableRef};
use node_agent::explain::{Answer, Question, Verdict};
use node_agent::host;
use node_agent::nft::kernel::Kernel;
use node_agent::nft::layout::FAMILIES;
use node_agent::nft::reading::Reading;
use node_agent::nft::ruleset::Ruleset;
use support::kernel::{in_namespace, nft};
use support::*;

/// A host 172.30.0.11 with some Services in its kernel.
fn program() {
    let spec = |number, contended: Option<u8>, endpoints: &[(u8, bool)]| Spec {
        number,
        external: contended,
        node_port: contended,
        local_policy: true,
        endpoints: endpoints.to_vec(),
        ..Spec::default()
    };
    let kept = Spec { affinity: Some(60), ..spec(3, None, &[(8, true), (9, false)]) };
    let firewalled = Spec { sources: 0b100, ..spec(4, Some(2), &[(9, true)]) };
    let mut agent = Agent::new();
    for spec in [
        kept,
        firewalled,
        spec(0, Some(0), &[(5, true), (6, false)]),
        spec(1, None, &[]),
        spec(2, Some(1), &[(7, false)]),
    ] {
        agent.happen(&Happening::Apply(spec));
    }
    Kernel::open().unwrap().commit(&agent.plan().now).unwrap();
}

fn explain(source: &str, to: &str) -> Answer {
    let mut kernel = Kernel::open_listening().unwrap();
    let mut reading = Reading::of(&mut kernel).unwrap();
    let question = Question { source: source.parse().unwrap(), to: to.parse().unwrap(), interface: None };
    let host = host::addresses().unwrap();
    let packet = question.packet(&reading.mirror, &host).unwrap();
    reading.ask_for(&mut kernel, packet).unwrap();
    Answer::of(&reading, &host, packet)
}

#[test]
fn each_verdict_comes_with_its_reason() {
    in_namespace(|| {
        program();
        for (source, to, said) in [
            (
                "10.244.3.9",
                "10.96.0.0:80",
                [
                    "TCP from 10.244.3.9 to 10.96.0.0:80, ns/svc-0:http\n",
                    "one of 2 endpoints",
                    "the client's own address: 10.244.3.9 is in 10.244.0.0/16.",
                ],
            ),
            (
                "203.0.113.5",
                "10.96.0.0:80",
                [
                    "one of 2 endpoints",
                    "  10.244.1.5:8080\n",
                    "masqueraded, so it sees an address of this node: 203.0.113.5 is outside 10.244.0.0/16.",
                ],
            ),
            (
                "10.244.1.5",
                "10.96.0.0:80",
                [
                    "1. Goes to the endpoint",
                    "2. Goes to the endpoint 10.244.1.5:8080,\nmasqueraded",
                    "the endpoint is the client itself",
                ],
            ),
            (
                "203.0.113.5",
                "192.0.2.0:80",
                [
                    "Goes to the endpoint 10.244.1.5:8080,",
                    "10.244.0.0/16: does not go on in spread",
                    "client's own address",
                ],
            ),
            (
                "10.244.3.9",
                "192.0.2.0:80",
                ["ext-local", "10.244.3.9 is in 10.244.0.0/16: goes on in spread", "one of 2 endpoints"],
            ),
            (
                "node",
                "node:30000",
                [
                    "TCP from 172.30.0.11 (this host) to 172.30.0.11:30000",
                    "172.30.0.11 is an address of this host",
                    "one of 2 endpoints",
                ],
            ),
            (
                "10.244.3.9",
                "10.96.0.3:80",
                ["spread           stays with the endpoint", "one of 2 endpoints", "  10.244.1.8:8080\n"],
            ),
            (
                "10.244.3.9",
                "10.96.0.1:80",
                ["ns/svc-1:http", "Refused at once", "has no usable endpoint on any node"],
            ),
            (
                "203.0.113.5",
                "192.0.2.1:80",
                [
                    "Dropped without an answer",
                    "192.0.2.1:80/TCP has usable endpoints on other nodes",
                    "traffic policy is Local",
                ],
            ),
            (
                "203.0.113.5",
                "192.0.2.2:80",
                [
                    "ns/svc-4:http",
                    "Dropped without an answer",
                    "203.0.113.5 is in none of the networks of its loadBalancerSourceRanges",
                ],
            ),
            (
                "10.244.3.9",
                "192.0.2.2:80",
                [
                    "ns/svc-4:http",
                    "10.244.3.9 is in 10.244.0.0/16, which is in its loadBalancerSourceRanges: is let on",
                    "10.244.1.9:8080",
                ],
            ),
            (
                "10.244.3.9",
                "10.96.0.0:81",
                ["Refused at once", "10.96.0.0 is served at other ports only: 80/TCP (ns/svc-0:http)", ""],
            ),
            (
                "10.244.3.9",
                "198.51.100.1:81/udp",
                ["UDP from", "no Service has 198.51.100.1 as an address", "none has NodePort 81/UDP"],
            ),
            (
                "10.244.3.9",
                "127.0.0.1:30000",
                [
                    "NodePort 30000/TCP is ns/svc-0:http",
                    "127.0.0.1 does not answer NodePorts",
                    "addresses that do: 172.30.0.11",
                ],
            ),
        ] {
            let answer = explain(source, to);
            assert_eq!(answer.warnings, Vec::<String>::new());
            let text = answer.to_string();
            for part in said {
                assert!(text.contains(part), "{part:?} is not in the answer to {source} {to}:\n{text}");
            }
        }
        let json = serde_json::to_value(explain("203.0.113.5", "192.0.2.1:80")).unwrap();
        assert_eq!(json["outcomes"][0]["verdict"], "dropped");
        assert_eq!(json["service"], "ns/svc-2:http");
    });
}

#[test]
fn a_client_that_an_endpoint_keeps_goes_there() {
    in_namespace(|| {
        program();
        let mut kernel = Kernel::open().unwrap();
        let mirror = Reading::of(&mut kernel).unwrap().mirror;
        let endpoints = mirror.affinities.chains().values().flat_map(|chain| &chain.endpoints);
        let kept = endpoints.last().unwrap();
        let element = format!("{{ 203.0.113.5 . {} timeout 1h }}", kept.number);
        nft(&["add", "element", "ip", "fairlead", "affinity-clients", &element]);
        let answer = explain("203.0.113.5", "10.96.0.3:80");
        assert_eq!(answer.outcomes[0].endpoints, [kept.target.to_string()]);
        assert_eq!(explain("203.0.113.6", "10.96.0.3:80").outcomes[0].endpoints.len(), 2);
    });
}

#[test]
fn what_is_in_the_kernel_counts_and_not_what_should_be_there() {
    in_namespace(|| {
        program();
        nft(&["insert", "rule", "ip", "fairlead", "services", "ip", "saddr", "203.0.113.5", "drop"]);
        nft(&["add", "rule", "ip", "fairlead", "services", "ip", "ttl", "1", "accept"]);
        nft(&["add", "chain", "ip", "fairlead", "mine"]);
        nft(&["add", "table", "ip", "kube-proxy"]);
        let answer = explain("203.0.113.5", "10.96.0.0:80");
        assert_eq!(answer.outcomes[0].verdict, Verdict::Dropped);
        let told = |part: &str| answer.warnings.iter().any(|warning| warning.contains(part));
        for part in [
            "of chain services is not one that this version writes",
            "chain mine is none of ours",
            "kube-proxy's table",
        ] {
            assert!(told(part), "{part} is not in {:?}", answer.warnings);
        }
        nft(&["delete", "table", "ip", "fairlead"]);
        let answer = explain("203.0.113.5", "10.96.0.0:80");
        assert_eq!(answer.outcomes[0].verdict, Verdict::Untouched);
        assert!(answer.to_string().contains("there is no IPv4 table fairlead"), "{answer}");
    });
}

/// A reading takes longer than there is between two of these commits.
#[test]
fn who_commits_to_other_tables_all_the_time_disturbs_no_answer() {
    in_namespace(|| {
        program();
        let (mut socket, done) = (Socket::open().unwrap(), AtomicBool::new(false));
        let before = socket.generation().unwrap().id;
        let reading = std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                let table = TableRef::new(Family::Ip, "another");
                while !done.load(Ordering::Relaxed) {
                    let mut batch = Batch::new();
                    batch.add_table(&Table::new(table.family, table.name));
                    batch.delete_table(table);
                    socket.commit(&batch).unwrap();
                    std::thread::park_timeout(Duration::from_millis(2));
                }
                socket.generation().unwrap().id
            });
            let reading = Reading::of(&mut Kernel::open_listening().unwrap()).unwrap();
            done.store(true, Ordering::Relaxed);
            assert!(others.join().unwrap() - before > 2, "they did commit");
            reading
        });
        assert_eq!(reading.oddities, Vec::<String>::new());
        assert!(!reading.mirror.frontends.is_empty());
    });
}

#[test]
fn the_kernels_rules_read_back_as_the_ruleset() {
    in_namespace(|| {
        program();
        let reading = Reading::of(&mut Kernel::open().unwrap()).unwrap();
        assert_eq!(reading.oddities, Vec::<String>::new());
        for family in FAMILIES {
            let mut wanted = Ruleset::new(family, &config());
            let mut read = reading.ruleset(family).clone();
            wanted.chains.sort_by_key(|chain| chain.name);
            read.chains.sort_by_key(|chain| chain.name);
            assert_eq!(read, wanted);
        }
    });
}
