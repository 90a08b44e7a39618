//! The loop over the real kernel: changes come through the channel, others interfere.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use daemon::Readiness;
use nfnetlink::{Batch, Element, Event, Family, Field, Generation, Monitor, Set, Socket, Table, Value};
use node_agent::agent::Agent;
use node_agent::config::Config;
use node_agent::events::{self, Events};
use node_agent::external_ips::ExternalIps;
use node_agent::health::{Health, Moment};
use node_agent::local::DetectLocal;
use node_agent::metrics::Metrics;
use node_agent::overrides::Overrides;
use prometheus_client::registry::Registry;
use service_model::{
    Change, Endpoint, EndpointPort, EndpointSlice, IpFamily, Key, Kind, Node, NodeAddress, NodeAddressKind,
    Object, ObjectName, Protocol, Service, ServiceCidr, ServicePort, ServiceType, TrafficPolicy,
};
use support::kernel::{in_namespace, ip, nft};
use support::{Spec, config, name};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio_util::sync::CancellationToken;

const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

/// Waits, with the runtime running, until the condition holds.
async fn until(what: &str, deadline: Duration, condition: impl Fn() -> bool) {
    let waiting = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(deadline, waiting).await.is_ok(), "{what}\n{}", nft(&["list", "ruleset"]));
}

fn listed(text: &str) -> bool {
    nft(&["list", "ruleset"]).contains(text)
}

fn spec(endpoints: &[u8]) -> Spec {
    Spec {
        number: 1,
        node_port: Some(0),
        endpoints: endpoints.iter().map(|last| (*last, true)).collect(),
        ..Spec::default()
    }
}

/// Runs an agent in a namespace of its own beside the test, which feeds it.
fn with_agent(test: impl AsyncFnOnce(&Sender<Change>, &Health) + Send) {
    with_agent_of(config(), Duration::from_secs(30), Duration::ZERO, test);
}

/// As [`with_agent`], with its configuration, its sync period and the least time between syncs.
fn with_agent_of(
    config: Config,
    sync_period: Duration,
    min_sync_period: Duration,
    test: impl AsyncFnOnce(&Sender<Change>, &Health) + Send,
) {
    let health = Health::new(sync_period);
    run_agent(config, min_sync_period, &health, |agent| agent, async |tx| test(tx, &health).await);
}

/// As [`with_agent`], with what it is told in place of the API server, and the Events that it tells.
fn with_agent_that_tells(
    overrides: Overrides,
    test: impl AsyncFnOnce(&Sender<Change>, Receiver<events::Event>) + Send,
) {
    let (events, told) = Events::channel();
    let prepare = |agent: Agent| agent.telling(events).overriding(overrides);
    let health = Health::new(Duration::from_secs(30));
    run_agent(config(), Duration::ZERO, &health, prepare, async |tx| test(tx, told).await);
}

fn run_agent(
    config: Config,
    min_sync_period: Duration,
    health: &Health,
    prepare: impl FnOnce(Agent) -> Agent + Send,
    test: impl AsyncFnOnce(&Sender<Change>) + Send,
) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let readiness = Readiness::default();
            let metrics = Metrics::register(&mut Registry::default());
            let token = readiness.task("first sync");
            let agent = Agent::new(config, min_sync_period, health.clone(), metrics, token).unwrap();
            let ((tx, rx), cancel) = (channel(16), CancellationToken::new());
            let running = tokio::spawn(prepare(agent).run(rx, cancel.clone()));
            test(&tx).await;
            cancel.cancel();
            running.await.unwrap().unwrap();
        });
    });
}

async fn send(tx: &Sender<Change>, changes: impl IntoIterator<Item = Change>) {
    for change in changes {
        tx.send(change).await.unwrap();
    }
}

fn node() -> Node {
    let mut node = Node::new("here".into());
    node.addresses = vec![NodeAddress { kind: NodeAddressKind::Internal, ip: [172, 30, 0, 11].into() }];
    node
}

async fn list(tx: &Sender<Change>, spec: &Spec) {
    send(tx, KINDS.map(Change::ListStarted)).await;
    send(tx, spec.changes()).await;
    send(tx, [Change::Apply(Object::Node(node()))]).await;
    send(tx, KINDS.map(Change::ListEnded)).await;
}

/// Long before the next look at everything, five minutes after the last.
const HEALED_WITHIN: Duration = Duration::from_secs(5);
const PATIENCE: Duration = Duration::from_secs(10);

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
                    assert!(text.contains("node here") && text.ends_with(&format!(": {ip}")), "{text}");
                }
            }
            until("the agent has taken all changes", PATIENCE, || tx.capacity() == tx.max_capacity()).await;
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
        assert!(text.starts_with("On node here: 10.96.0.8:80/TCP is ns/svc-8's"), "{text}");

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

/// The runtime's clock stands still, but for when nothing is left to be done: then it goes to what is next.
#[test]
fn what_was_told_is_told_again_every_five_minutes_until_it_is_no_longer_so() {
    const FIVE_MINUTES: Duration = Duration::from_secs(300);
    with_agent_that_tells(Overrides::default(), async |tx, mut told| {
        list(tx, &spec(&[1])).await;
        let thief = |external_ips: &[[u8; 4]]| {
            let external_ips = external_ips.iter().map(|ip| (*ip).into()).collect();
            Change::Apply(Object::Service(Service { external_ips, ..plain(9, "ab") }))
        };
        send(tx, [Change::Apply(Object::Service(plain(8, "ab"))), thief(&[[10, 96, 0, 8]])]).await;
        let first = next(&mut told).await;
        assert_eq!((first.0.as_str(), first.1.as_str()), ("AddressTaken", "uid-9"));
        tokio::time::pause();
        let mut at = Vec::new();
        for _ in 0..3 {
            let event =
                tokio::time::timeout(2 * FIVE_MINUTES, told.recv()).await.expect("told again").unwrap();
            assert_eq!((event.reason, event.message), (first.0.clone(), first.2.clone()));
            at.push(tokio::time::Instant::now());
        }
        assert_eq!([at[1] - at[0], at[2] - at[1]], [FIVE_MINUTES; 2]);
        send(tx, [thief(&[])]).await;
        let again = tokio::time::timeout(3 * FIVE_MINUTES, told.recv()).await;
        assert!(again.is_err(), "{again:?}");
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
