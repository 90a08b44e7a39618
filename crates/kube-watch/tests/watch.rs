//! From an API server's bytes to a World, through the public surface alone: every kind at once over
//! one channel, lists in pages and lists streamed, with the times that programs run with.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeMap;
use std::fmt::Display;

use kube_watch::{Detail, Nodes, Options, Source, WatchConfig, WatchMetrics, watch_with};
use serde_json::{Value, json};
use service_model::{Change, EndpointSlice, Key, Kind, Node, Object, Service, World};
use support::Reply::{HangUp, List, Refuse, Watch};
use support::Then::{Cut, End, Hold};
use support::{ApiServer, DEADLINE, Reply, bookmark, event, expired};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

const SERVICES: &str = "services";
const SLICES: &str = "endpointslices";
const NODES: &str = "nodes";

/// A watch of every kind, and the World that it feeds.
struct Watched {
    server: ApiServer,
    changes: mpsc::Receiver<Change>,
    world: World,
    /// By kind, because kinds are not ordered among each other: what came, and what it marked dirty.
    seen: BTreeMap<Kind, Vec<String>>,
    kinds: Vec<Kind>,
    _watching: JoinSet<anyhow::Result<()>>,
}

impl Watched {
    async fn start(streaming: bool, script: &[(&'static str, Vec<Reply>)]) -> Self {
        let script = script.iter().map(|(of, replies)| (*of, replies.clone().into())).collect();
        let server = ApiServer::start(script).await;
        let config = WatchConfig {
            services: true,
            slices: true,
            nodes: Nodes::All,
            service_cidrs: false,
            detail: Detail::Full,
        };
        let kinds = config.kinds();
        let options = Options { streaming, metrics: WatchMetrics::default() };
        // Narrow, so that the three kinds wait for each other.
        let (tx, changes) = mpsc::channel(1);
        let mut watching = JoinSet::new();
        watching.spawn(watch_with(Source::Kube(server.client()), config, options, tx));
        let (world, seen) = (World::default(), BTreeMap::new());
        Self { server, changes, world, seen, kinds, _watching: watching }
    }

    /// Applies as many changes as are expected, and compares them.
    async fn expect(&mut self, expected: &[(Kind, &[&str])]) {
        let mut synced = false;
        for _ in 0..expected.iter().map(|(_, changes)| changes.len()).sum() {
            let change = tokio::time::timeout(DEADLINE, self.changes.recv()).await;
            let Ok(Some(change)) = change else { panic!("no change comes after {:#?}", self.seen) };
            let (kind, mut line) = show(&change);
            self.world.apply(change);
            let dirty = self.world.take_dirty();
            let marked = words(dirty.services.iter().map(ToString::to_string).chain(text(dirty.nodes)));
            if !marked.is_empty() {
                line = format!("{line}, marks {marked}");
            }
            self.seen.entry(kind).or_default().push(line);
            synced |= self.world.has_synced(&self.kinds);
            assert_eq!(self.world.has_synced(&self.kinds), synced, "what was known stays known");
        }
        for (kind, changes) in expected {
            assert_eq!(self.seen.get(kind).map(Vec::as_slice).unwrap_or_default(), *changes, "{kind:?}");
        }
        assert!(synced, "{:#?}", self.seen);
    }

    /// Services with their endpoints, and Nodes.
    fn expect_world(&self, expected: &[&str]) {
        let services = self.world.services().map(|service| {
            let slices: Vec<String> = self.world.slices_of(&service.name).map(show_slice).collect();
            format!("{} -> {}", show_service(service), slices.join(" and "))
        });
        let held: Vec<String> = services.chain(self.world.nodes().map(show_node)).collect();
        assert_eq!(held, expected);
    }
}

/// The kind and, in one line, what a program reads from the change.
fn show(change: &Change) -> (Kind, String) {
    match change {
        Change::ListStarted(kind) => (*kind, "list started".to_owned()),
        Change::ListEnded(kind) => (*kind, "list ended".to_owned()),
        Change::Apply(Object::Service(service)) => (Kind::Service, show_service(service)),
        Change::Apply(Object::EndpointSlice(slice)) => (Kind::EndpointSlice, show_slice(slice)),
        Change::Apply(Object::Node(node)) => (Kind::Node, show_node(node)),
        Change::Apply(Object::ServiceCidr(cidr)) => {
            (Kind::ServiceCidr, format!("{} {:?}", cidr.name, cidr.networks))
        }
        Change::Delete(Key::ServiceCidr(name)) => (Kind::ServiceCidr, format!("delete {name}")),
        Change::Delete(Key::Service(name)) => (Kind::Service, format!("delete {name}")),
        Change::Delete(Key::EndpointSlice(name)) => (Kind::EndpointSlice, format!("delete {name}")),
        Change::Delete(Key::Node(name)) => (Kind::Node, format!("delete {name}")),
    }
}

fn show_service(service: &Service) -> String {
    let ports = service.ports.iter().map(|p| p.port);
    format!("{} {}:{}", service.name, words(text(&service.cluster_ips)), words(text(ports)))
}

fn show_slice(slice: &EndpointSlice) -> String {
    format!("{} [{}]", slice.name, words(slice.endpoints.iter().map(|e| e.address.to_string())))
}

fn show_node(node: &Node) -> String {
    format!("{} {}", node.name, words(text(node.internal_ips())))
}

fn text<T: Display>(items: impl IntoIterator<Item = T>) -> impl Iterator<Item = String> {
    items.into_iter().map(|item| item.to_string())
}

fn words(items: impl Iterator<Item = String>) -> String {
    items.collect::<Vec<_>>().join(" ")
}

fn metadata(name: &str, version: u32) -> Value {
    json!({"namespace": "shop", "name": name, "uid": name, "resourceVersion": version.to_string()})
}

fn service(name: &str, version: u32, ip: &str, port: u16) -> Value {
    let spec = json!({
        "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilies": ["IPv4"],
        "ports": [{"protocol": "TCP", "port": port, "targetPort": 8080}]
    });
    json!({"metadata": metadata(name, version), "spec": spec, "status": {"loadBalancer": {}}})
}

fn slice(name: &str, version: u32, service: &str, addresses: &[&str]) -> Value {
    let mut metadata = metadata(name, version);
    metadata["labels"] = json!({"kubernetes.io/service-name": service});
    let endpoints: Vec<Value> =
        addresses.iter().map(|a| json!({"addresses": [a], "conditions": {"ready": true}})).collect();
    json!({
        "metadata": metadata, "addressType": "IPv4", "endpoints": endpoints,
        "ports": [{"name": "", "protocol": "TCP", "port": 8080}]
    })
}

fn node(name: &str, version: u32, ip: &str) -> Value {
    let addresses = json!([{"type": "InternalIP", "address": ip}, {"type": "Hostname", "address": name}]);
    json!({"metadata": {"name": name, "resourceVersion": version.to_string()}, "status": {"addresses": addresses}})
}

fn list(version: u32, items: &[Value]) -> Reply {
    List { version, items: items.to_vec() }
}

/// What a watch that was never interrupted asks for.
fn undisturbed(streaming: bool) -> &'static [&'static str] {
    if streaming { &["streamed list"] } else { &["list", "watch from 10"] }
}

#[tokio::test]
async fn the_world_holds_what_is_listed_and_then_watched() {
    let script = [
        (
            SERVICES,
            vec![
                list(10, &[service("db", 4, "10.96.0.2", 5432), service("web", 3, "10.96.0.1", 80)]),
                Watch(
                    vec![
                        event("ADDED", service("cache", 11, "10.96.0.3", 6379)),
                        bookmark(20),
                        event("MODIFIED", service("web", 21, "10.96.0.1", 81)),
                        event("DELETED", service("db", 22, "10.96.0.2", 5432)),
                    ],
                    Hold,
                ),
            ],
        ),
        (
            SLICES,
            vec![
                list(10, &[slice("web-1", 5, "web", &["10.244.1.2"])]),
                Watch(
                    vec![
                        event("ADDED", slice("web-2", 12, "web", &["10.244.3.2"])),
                        event("ADDED", slice("cache-1", 13, "cache", &[])),
                        bookmark(20),
                        event("MODIFIED", slice("web-1", 23, "web", &["10.244.1.2", "10.244.2.2"])),
                        event("DELETED", slice("web-2", 24, "web", &["10.244.3.2"])),
                    ],
                    Hold,
                ),
            ],
        ),
        (
            NODES,
            vec![
                list(10, &[node("node-1", 1, "172.30.0.11"), node("node-2", 2, "172.30.0.12")]),
                Watch(
                    vec![
                        // A heartbeat: nothing that a program reads is different.
                        event("MODIFIED", node("node-1", 14, "172.30.0.11")),
                        event("MODIFIED", node("node-2", 15, "172.30.0.13")),
                    ],
                    Hold,
                ),
            ],
        ),
    ];
    for streaming in [false, true] {
        let mut watched = Watched::start(streaming, &script).await;
        watched
            .expect(&[
                (
                    Kind::Service,
                    &[
                        "list started",
                        "shop/db 10.96.0.2:5432, marks shop/db",
                        "shop/web 10.96.0.1:80, marks shop/web",
                        "list ended",
                        "shop/cache 10.96.0.3:6379, marks shop/cache",
                        "shop/web 10.96.0.1:81, marks shop/web",
                        "delete shop/db, marks shop/db",
                    ],
                ),
                (
                    Kind::EndpointSlice,
                    &[
                        "list started",
                        "shop/web-1 [10.244.1.2], marks shop/web",
                        "list ended",
                        "shop/web-2 [10.244.3.2], marks shop/web",
                        "shop/cache-1 [], marks shop/cache",
                        "shop/web-1 [10.244.1.2 10.244.2.2], marks shop/web",
                        "delete shop/web-2, marks shop/web",
                    ],
                ),
                (
                    Kind::Node,
                    &[
                        "list started",
                        "node-1 172.30.0.11, marks node-1",
                        "node-2 172.30.0.12, marks node-2",
                        "list ended",
                        "node-1 172.30.0.11",
                        "node-2 172.30.0.13, marks node-2",
                    ],
                ),
            ])
            .await;
        watched.expect_world(&[
            "shop/cache 10.96.0.3:6379 -> shop/cache-1 []",
            "shop/web 10.96.0.1:81 -> shop/web-1 [10.244.1.2 10.244.2.2]",
            "node-1 172.30.0.11",
            "node-2 172.30.0.13",
        ]);
        let undisturbed = undisturbed(streaming);
        watched
            .server
            .expect_asked(&[(SERVICES, undisturbed), (SLICES, undisturbed), (NODES, undisturbed)])
            .await;
    }
}

/// An expiry is an event inside the watch, or the answer to resuming it; the list anew may fail first.
#[tokio::test]
async fn an_expired_kind_is_listed_anew_and_sweeps_what_went_unseen_only_at_the_end() {
    let services = [
        list(10, &[service("old", 2, "10.96.0.2", 80), service("web", 3, "10.96.0.1", 80)]),
        Watch(vec![bookmark(15), expired()], End),
        Refuse(500),
        list(40, &[service("new", 39, "10.96.0.3", 80), service("web", 3, "10.96.0.1", 80)]),
        Watch(vec![event("MODIFIED", service("new", 41, "10.96.0.3", 81))], Hold),
    ];
    let slices = [
        list(10, &[slice("web-1", 4, "web", &["10.244.1.2"]), slice("web-2", 5, "web", &["10.244.2.2"])]),
        Watch(vec![bookmark(15)], Cut),
        Refuse(410),
        list(40, &[slice("web-1", 4, "web", &["10.244.1.2"])]),
        Watch(vec![event("ADDED", slice("new-1", 42, "new", &["10.244.3.2"]))], Hold),
    ];
    let nodes = [list(10, &[node("node-1", 1, "172.30.0.11")]), Watch(vec![], Hold)];
    let script = [(SERVICES, services.to_vec()), (SLICES, slices.to_vec()), (NODES, nodes.to_vec())];
    for streaming in [false, true] {
        let mut watched = Watched::start(streaming, &script).await;
        watched
            .expect(&[
                (
                    Kind::Service,
                    &[
                        "list started",
                        "shop/old 10.96.0.2:80, marks shop/old",
                        "shop/web 10.96.0.1:80, marks shop/web",
                        "list ended",
                        "list started",
                        "shop/new 10.96.0.3:80, marks shop/new",
                        "shop/web 10.96.0.1:80",
                        "list ended, marks shop/old",
                        "shop/new 10.96.0.3:81, marks shop/new",
                    ],
                ),
                (
                    Kind::EndpointSlice,
                    &[
                        "list started",
                        "shop/web-1 [10.244.1.2], marks shop/web",
                        "shop/web-2 [10.244.2.2], marks shop/web",
                        "list ended",
                        "list started",
                        "shop/web-1 [10.244.1.2]",
                        "list ended, marks shop/web",
                        "shop/new-1 [10.244.3.2], marks shop/new",
                    ],
                ),
                (Kind::Node, &["list started", "node-1 172.30.0.11, marks node-1", "list ended"]),
            ])
            .await;
        watched.expect_world(&[
            "shop/new 10.96.0.3:81 -> shop/new-1 [10.244.3.2]",
            "shop/web 10.96.0.1:80 -> shop/web-1 [10.244.1.2]",
            "node-1 172.30.0.11",
        ]);
        let (services, slices): (&[&str], &[&str]) = if streaming {
            (
                &["streamed list", "streamed list", "streamed list"],
                &["streamed list", "watch from 15", "streamed list"],
            )
        } else {
            (
                &["list", "watch from 10", "list", "list", "watch from 40"],
                &["list", "watch from 10", "watch from 15", "list", "watch from 40"],
            )
        };
        let nodes = undisturbed(streaming);
        watched.server.expect_asked(&[(SERVICES, services), (SLICES, slices), (NODES, nodes)]).await;
    }
}

/// The version is that of the last event or bookmark, whichever came last.
#[tokio::test]
async fn a_dropped_connection_is_resumed_from_the_last_version_without_a_list() {
    let services = [
        list(10, &[service("web", 3, "10.96.0.1", 80)]),
        Watch(vec![event("ADDED", service("db", 12, "10.96.0.2", 5432)), bookmark(20)], Cut),
        HangUp,
        Refuse(503),
        Watch(vec![bookmark(21), event("DELETED", service("db", 22, "10.96.0.2", 5432))], Cut),
        Watch(vec![event("MODIFIED", service("web", 23, "10.96.0.1", 81))], Hold),
    ];
    let slices = [
        list(10, &[slice("web-1", 4, "web", &["10.244.1.2"])]),
        Watch(vec![], Cut),
        Watch(vec![event("MODIFIED", slice("web-1", 13, "web", &["10.244.2.2"]))], Hold),
    ];
    let nodes = [list(10, &[node("node-1", 1, "172.30.0.11")]), Watch(vec![], Hold)];
    let script = [(SERVICES, services.to_vec()), (SLICES, slices.to_vec()), (NODES, nodes.to_vec())];
    for streaming in [false, true] {
        let mut watched = Watched::start(streaming, &script).await;
        watched
            .expect(&[
                (
                    Kind::Service,
                    &[
                        "list started",
                        "shop/web 10.96.0.1:80, marks shop/web",
                        "list ended",
                        "shop/db 10.96.0.2:5432, marks shop/db",
                        "delete shop/db, marks shop/db",
                        "shop/web 10.96.0.1:81, marks shop/web",
                    ],
                ),
                (
                    Kind::EndpointSlice,
                    &[
                        "list started",
                        "shop/web-1 [10.244.1.2], marks shop/web",
                        "list ended",
                        "shop/web-1 [10.244.2.2], marks shop/web",
                    ],
                ),
                (Kind::Node, &["list started", "node-1 172.30.0.11, marks node-1", "list ended"]),
            ])
            .await;
        watched.expect_world(&["shop/web 10.96.0.1:81 -> shop/web-1 [10.244.2.2]", "node-1 172.30.0.11"]);
        let resumed = ["watch from 20", "watch from 20", "watch from 20", "watch from 22"];
        let nodes = undisturbed(streaming);
        let services = [nodes, &resumed].concat();
        let slices = [nodes, &["watch from 10"]].concat();
        watched.server.expect_asked(&[(SERVICES, &services), (SLICES, &slices), (NODES, nodes)]).await;
    }
}
