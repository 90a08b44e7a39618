//! What a running agent tells in Events.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use node_agent::agent::Agent;
use node_agent::events::{self, Events};
use node_agent::external_ips::ExternalIps;
use node_agent::health::Health;
use node_agent::overrides::Overrides;
use service_model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Key, Object, ObjectName, Protocol, Service,
    ServicePort, ServiceType, TrafficPolicy,
};
use support::running::*;
use support::{config, name};
use tokio::sync::mpsc::Receiver;

/// A Service with nothing but a ClusterIP.
fn plain(last: u8, port_name: &str) -> Service {
    let mut service = Service::new(name(last));
    service.uid = format!("uid-{last}").into();
    service.cluster_ips = vec![[10, 96, 0, last].into()];
    service.ports =
        vec![ServicePort { name: port_name.into(), protocol: Protocol::Tcp, port: 80, node_port: None }];
    service
}

/// One of that namespace that names an external IP too.
fn with_external_ip(namespace: &str, last: u8) -> Service {
    let named = plain(last, "");
    let external_ips = vec![[192, 0, 2, last].into()];
    Service { name: ObjectName::new(namespace, named.name.name()), external_ips, ..named }
}

/// The next Event within [`PATIENCE`]: its reason, the UID of the object it is about, its text.
async fn next(told: &mut Receiver<events::Event>) -> (String, String, String) {
    let event = tokio::time::timeout(PATIENCE, told.recv()).await.expect("an Event is told").unwrap();
    (event.reason, event.regarding.uid.unwrap_or_default(), event.message)
}

#[test]
fn a_health_check_port_that_is_taken_is_told_of_and_bound_once_it_is_free() {
    with_agent_that_tells(Overrides::default(), async |tx, mut told| {
        let listener = || TcpListener::bind((Ipv4Addr::UNSPECIFIED, 32_000));
        let taken = listener().unwrap();
        list(tx, &spec(&[1])).await;
        let mut service = plain(9, "");
        service.service_type = ServiceType::LoadBalancer;
        service.external_traffic_policy = TrafficPolicy::Local;
        service.health_check_node_port = Some(32_000);
        send(tx, [Change::Apply(Object::Service(service))]).await;
        until("programmed", PATIENCE, || listed("10.96.0.9 . tcp . 80")).await;
        let (reason, uid, text) = next(&mut told).await;
        assert_eq!((reason.as_str(), uid.as_str()), ("FailedToStartServiceHealthcheck", "uid-9"));
        assert!(text.contains("node here") && text.contains("on port 32000"), "{text}");
        drop(taken);
        until("bound", PATIENCE, || listener().is_err()).await;
    });
}

/// The ClusterIP of each is served, and what it names beside it where its namespace may.
#[test]
fn external_ips_are_served_where_they_are_allowed_and_who_has_none_is_told() {
    let only = ExternalIps::In(["edge".into()].into());
    for (external_ips, served, left_out) in [
        (ExternalIps::All, &["edge", "ns"][..], &[][..]),
        (only, &["edge"], &["ns"]),
        (ExternalIps::None, &[], &["edge", "ns"]),
    ] {
        let overrides = Overrides { external_ips: external_ips.clone(), ..Overrides::default() };
        with_agent_that_tells(overrides, async |tx, mut told| {
            list(tx, &spec(&[1])).await;
            let named = [("edge", 7), ("ns", 8)].map(|(namespace, last)| with_external_ip(namespace, last));
            send(tx, named.clone().map(|s| Change::Apply(Object::Service(s)))).await;
            for service in named {
                let (ip, namespace) = (service.external_ips[0], service.name.namespace());
                let cluster_ip = format!("{} . tcp . 80", service.cluster_ips[0]);
                until("the ClusterIP is served", PATIENCE, || listed(&cluster_ip)).await;
                let is_listed = listed(&format!("{ip} . tcp . 80"));
                assert_eq!(is_listed, served.contains(&namespace), "{external_ips:?}: {namespace}");
                if left_out.contains(&namespace) {
                    let (reason, uid, text) = next(&mut told).await;
                    assert_eq!((reason.as_str(), &uid), ("ExternalIPsNotAllowed", &service.uid.to_string()));
                    assert!(text.ends_with(&format!(": {ip}")), "{text}");
                }
            }
            // Whoever is to be told of those before it has been when it is served.
            send(tx, [Change::Apply(Object::Service(plain(9, "")))]).await;
            until("the last one is served", PATIENCE, || listed("10.96.0.9 . tcp . 80")).await;
            assert!(told.try_recv().is_err(), "{external_ips:?}: nothing else is told");
        });
    }
}

/// Nothing that is served changes with them, so that nothing is committed.
#[test]
fn external_ips_that_come_and_change_without_being_served_are_told_of_once_each() {
    let overrides = Overrides { external_ips: ExternalIps::None, ..Overrides::default() };
    with_agent_that_tells(overrides, async |tx, mut told| {
        let apply =
            async |service: &Service| send(tx, [Change::Apply(Object::Service(service.clone()))]).await;
        list(tx, &spec(&[1])).await;
        let (mut service, ips) = (with_external_ip("ns", 8), [[192, 0, 2, 8], [192, 0, 2, 9]]);
        service.external_ips.clear();
        apply(&service).await;
        until("programmed", PATIENCE, || listed("10.96.0.8 . tcp . 80")).await;
        for ip in ips {
            service.external_ips = vec![ip.into()];
            apply(&service).await;
            apply(&service).await;
            let (reason, uid, text) = next(&mut told).await;
            assert_eq!((reason.as_str(), uid.as_str()), ("ExternalIPsNotAllowed", "uid-8"));
            assert!(text.ends_with(&format!(": {}", service.external_ips[0])), "{text}");
        }
        send(tx, [Change::Delete(Key::Service(service.name.clone()))]).await;
        until("it is gone", PATIENCE, || !listed("10.96.0.8 . tcp . 80")).await;
        assert!(told.try_recv().is_err(), "once");
        // One that has its name is another.
        service.uid = "uid-new".into();
        apply(&service).await;
        assert_eq!(next(&mut told).await.1, "uid-new");
    });
}

/// More than fit into the queue, and nothing else happens that would wake the agent.
#[test]
fn however_many_have_external_ips_that_are_not_served_each_is_told() {
    let overrides = Overrides { external_ips: ExternalIps::None, ..Overrides::default() };
    with_agent_that_tells(overrides, async |tx, mut told| {
        list(tx, &spec(&[1])).await;
        let services = (2..=101).map(|last| Change::Apply(Object::Service(with_external_ip("ns", last))));
        send(tx, services.collect::<Vec<_>>()).await;
        let mut uids = BTreeSet::new();
        for _ in 2..=101 {
            uids.insert(next(&mut told).await.1);
        }
        assert_eq!(uids.len(), 100, "each once");
    });
}

#[test]
fn however_many_ask_for_anothers_address_each_is_told() {
    with_agent_that_tells(Overrides::default(), async |tx, mut told| {
        list(tx, &spec(&[1])).await;
        let thieves = (2..=101).map(|last| {
            let mut thief = plain(last, "ab");
            thief.external_ips = vec![[10, 96, 0, 1].into()];
            Change::Apply(Object::Service(thief))
        });
        send(tx, thieves.collect::<Vec<_>>()).await;
        let mut uids = BTreeSet::new();
        for _ in 2..=101 {
            let (reason, uid, _) = next(&mut told).await;
            assert_eq!(reason, "AddressTaken");
            uids.insert(uid);
        }
        assert_eq!(uids.len(), 100, "each once");
    });
}

/// What the API server would never let in stands for what a kernel may refuse.
#[test]
fn whoever_reads_events_learns_of_a_service_that_the_kernel_refuses() {
    with_agent_that_tells(Overrides::default(), async |tx, mut told| {
        list(tx, &spec(&[1])).await;
        until("programmed", PATIENCE, || listed("10.244.1.1 . 8080")).await;
        send(tx, [plain(8, "a\0b"), plain(9, "ab")].map(|s| Change::Apply(Object::Service(s)))).await;
        until("the other is served", PATIENCE, || listed("10.96.0.9 . tcp . 80")).await;
        let (reason, uid, text) = next(&mut told).await;
        assert_eq!((reason.as_str(), uid.as_str()), ("ServiceRefusedByKernel", "uid-8"));
        assert!(
            ["node here", "contains a NUL byte", "node-agent preflight"].iter().all(|w| text.contains(w)),
            "{text}"
        );
        assert!(told.try_recv().is_err(), "nothing is told of what is served");
    });
}

#[test]
fn who_asks_for_anothers_address_or_has_too_many_endpoints_is_told() {
    with_agent_that_tells(Overrides::default(), async |tx, mut told| {
        list(tx, &spec(&[1])).await;
        let mut thief = plain(9, "ab");
        thief.external_ips = vec![[10, 96, 0, 8].into()];
        send(tx, [plain(8, "ab"), thief].map(|s| Change::Apply(Object::Service(s)))).await;
        let (reason, uid, text) = next(&mut told).await;
        assert_eq!((reason.as_str(), uid.as_str()), ("AddressTaken", "uid-9"));
        assert!(text.starts_with("10.96.0.8:80/TCP is ns/svc-8's"), "{text}");

        let slices = (0..84).map(|part| {
            let mut slice = EndpointSlice {
                name: ObjectName::new("ns", &format!("slice-8-{part}")),
                service: name(8),
                family: IpFamily::V4,
                ports: vec![EndpointPort { name: "ab".into(), protocol: Protocol::Tcp, port: 8080 }],
                endpoints: Vec::new(),
                triggered: None,
            };
            slice.endpoints = (0..100).map(|last| Endpoint::ready([10, 245, part, last].into())).collect();
            Change::Apply(Object::EndpointSlice(slice))
        });
        send(tx, slices.collect::<Vec<_>>()).await;
        let (reason, uid, text) = next(&mut told).await;
        assert_eq!((reason.as_str(), uid.as_str()), ("TooManyEndpoints", "uid-8"));
        assert!(text.contains("has more than 8192 endpoints"), "{text}");
        until("all are known", PATIENCE, || listed("10.245.81.91 . 8080")).await;
        assert!(told.try_recv().is_err(), "once");
    });
}

/// With every tenth look at everything, which is every five minutes otherwise.
#[test]
fn what_was_told_is_told_again_until_it_is_no_longer_so() {
    let (events, mut told) = Events::channel();
    let health = Health::new(Duration::from_secs(30));
    let prepare = |agent: Agent| agent.telling(events).rechecking(Duration::from_millis(10));
    run_agent(config(), Duration::ZERO, &health, prepare, async |tx| {
        list(tx, &spec(&[1])).await;
        let thief = |last: u8, external_ips: &[[u8; 4]]| {
            let external_ips = external_ips.iter().map(|ip| (*ip).into()).collect();
            Change::Apply(Object::Service(Service { external_ips, ..plain(last, "ab") }))
        };
        let owner = Change::Apply(Object::Service(plain(8, "ab")));
        send(tx, [owner, thief(9, &[[10, 96, 0, 8]]), thief(10, &[[10, 96, 0, 8]])]).await;
        let mut times: BTreeMap<String, usize> = BTreeMap::new();
        while times.len() < 2 || times.values().any(|times| *times < 3) {
            let (reason, uid, _) = next(&mut told).await;
            assert_eq!(reason, "AddressTaken");
            *times.entry(uid).or_default() += 1;
        }
        assert!(times.keys().eq(["uid-10", "uid-9"]), "{times:?}");

        send(tx, [thief(9, &[])]).await;
        until("the agent has taken all changes", PATIENCE, || tx.capacity() == tx.max_capacity()).await;
        while told.try_recv().is_ok() {}
        for _ in 0..3 {
            assert_eq!(next(&mut told).await.1, "uid-10");
        }
    });
}
