//! Watches against a scripted API server on loopback.

mod anew;
mod api_server;

use std::time::Duration;

use kube::runtime::watcher;
use kube::runtime::watcher::InitialListStrategy;
use kube::{Api, Client};
use serde_json::{Value, json};
use service_model::{Change, Key, Kind, Object, World};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use self::api_server::Reply::{Json, Lines};
use self::api_server::Then::{Cut, CutInside, End, EndAfter, Hold};
use self::api_server::{ApiServer, DEADLINE, Reply};
use crate::follow::{Times, follow};
use crate::metrics::WatchMetrics;
use crate::{Detail, Listing, Nodes, Options, Source, WatchConfig, watch_kind, watch_with, wire};

/// Short waits; nothing is asserted about how long they are.
const TIMES: Times = Times {
    first_retry: Duration::from_millis(1),
    longest_retry: Duration::from_millis(5),
    steady: Duration::from_secs(1),
    silence: Duration::from_secs(10),
    warn_again: Duration::from_secs(60),
    anew: (Duration::from_secs(3600), Duration::from_secs(7200)),
    anew_retry: (Duration::from_millis(1), Duration::from_millis(5)),
    optional: None,
};

struct Watched {
    server: ApiServer,
    changes: mpsc::Receiver<Change>,
    metrics: WatchMetrics,
    watching: JoinSet<()>,
}

impl Watched {
    /// Follows Nodes, as [`follow`] does for every kind.
    async fn nodes(list: watcher::Config, times: Times, script: Vec<Reply>) -> Self {
        let server = ApiServer::start(script).await;
        let (tx, changes) = mpsc::channel(64);
        let metrics = WatchMetrics::default();
        let mut watching = JoinSet::new();
        let (client, of) = (client(&server).await, metrics.of("Node"));
        watching.spawn(async move {
            let mut nodes = crate::changes::Changes::new(crate::changes::Nodes);
            follow(Api::<wire::Node>::all(client), list, times, of, |l| Some(nodes.of(l)), tx).await;
        });
        Self { server, changes, metrics, watching }
    }

    async fn next(&mut self) -> String {
        let change = tokio::time::timeout(DEADLINE, self.changes.recv()).await.expect("a change comes");
        show(&change.unwrap())
    }

    async fn expect(&mut self, changes: &[&str]) {
        for (at, change) in changes.iter().enumerate() {
            assert_eq!(self.next().await, *change, "change {at}");
        }
    }
}

async fn client(server: &ApiServer) -> Client {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("kubeconfig");
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": server.url()}}],
        "users": [{"name": "u", "user": {}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]
    });
    std::fs::write(&file, config.to_string()).unwrap();
    crate::client(Some(&file)).await.unwrap()
}

fn show(change: &Change) -> String {
    match change {
        Change::ListStarted(kind) => format!("{kind:?} list started"),
        Change::ListEnded(kind) => format!("{kind:?} list ended"),
        Change::Apply(Object::Node(node)) => format!("apply {}", node.name),
        Change::Apply(Object::Service(service)) => format!("apply {}", service.name),
        Change::Apply(Object::EndpointSlice(slice)) => format!("apply {}", slice.name),
        Change::Apply(Object::ServiceCidr(cidr)) => format!("apply {}", cidr.name),
        Change::Delete(Key::Node(name) | Key::ServiceCidr(name)) => format!("delete {name}"),
        Change::Delete(Key::Service(name) | Key::EndpointSlice(name)) => format!("delete {name}"),
    }
}

fn node(name: &str, version: u32) -> Value {
    json!({"metadata": {"name": name, "resourceVersion": version.to_string()}})
}

fn list(version: u32, items: &[Value]) -> Reply {
    Json(200, json!({"kind": "List", "metadata": {"resourceVersion": version.to_string()}, "items": items}))
}

fn page(next: &str, items: &[Value]) -> Reply {
    Json(200, json!({"metadata": {"resourceVersion": "10", "continue": next}, "items": items}))
}

fn event(kind: &str, object: impl Into<Value>) -> Value {
    let object: Value = object.into();
    json!({"type": kind, "object": object})
}

fn bookmark(version: u32) -> Value {
    event("BOOKMARK", json!({"kind": "Node", "metadata": {"resourceVersion": version.to_string()}}))
}

fn list_complete(version: u32) -> Value {
    let annotations = json!({"k8s.io/initial-events-end": "true"});
    event(
        "BOOKMARK",
        json!({"metadata": {"resourceVersion": version.to_string(), "annotations": annotations}}),
    )
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "message": "scripted", "reason": "Scripted"})
}

fn pages() -> watcher::Config {
    watcher::Config::default()
}

fn streamed() -> watcher::Config {
    watcher::Config::default().streaming_lists()
}

#[tokio::test]
async fn a_list_comes_page_by_page_and_the_watch_begins_at_its_version() {
    let script = vec![
        page("more", &[node("a", 1), node("b", 2)]),
        page("", &[node("c", 3)]),
        Lines(vec![event("MODIFIED", node("a", 11)), event("DELETED", node("b", 12)), bookmark(15)], Hold),
    ];
    let mut watched = Watched::nodes(pages().page_size(2), TIMES, script).await;
    watched
        .expect(&[
            "Node list started",
            "apply a",
            "apply b",
            "apply c",
            "Node list ended",
            "apply a",
            "delete b",
        ])
        .await;
    let first = watched.server.asked().await;
    assert!(first.target.starts_with("/api/v1/nodes?") && first.target.contains("limit=2"), "{first:?}");
    assert_eq!(first.user_agent, concat!("fairlead/", env!("CARGO_PKG_VERSION")));
    let second = watched.server.asked().await.target;
    assert!(second.contains("continue=more"), "{second}");
    let watch = watched.server.asked().await.target;
    assert!(watch.contains("watch=true") && watch.contains("allowWatchBookmarks=true"), "{watch}");
    assert!(watch.ends_with("resourceVersion=10"), "{watch}");
}

#[tokio::test]
async fn a_kind_that_need_not_be_there_counts_as_empty_until_it_comes_and_when_it_is_gone() {
    let optional = Times { optional: Some(Duration::from_millis(1)), ..TIMES };
    for list in [pages(), streamed()] {
        let there = |end| match list == pages() {
            true => vec![page("", &[node("a", 1)]), Lines(vec![], end)],
            false => vec![Lines(vec![event("ADDED", node("a", 1)), list_complete(10)], end)],
        };
        let not_there = vec![Json(404, status(404)), Json(403, status(403))];
        let script = [not_there.clone(), there(End), not_there, there(Hold)].concat();
        let mut watched = Watched::nodes(list, optional, script).await;
        for _ in 0..2 {
            watched.expect(&["Node list started", "Node list ended"]).await;
            assert!(watched.metrics.of("Node").last_heard.get() > 0, "it says that it has none");
            watched.expect(&["Node list started", "apply a", "Node list ended"]).await;
        }
    }
}

#[tokio::test]
async fn a_cut_connection_is_resumed_from_the_last_version_heard() {
    for cut in [Cut, CutInside(r#"{"type":"MODIFIED","obj"#), End] {
        let script = vec![
            list(10, &[node("a", 1)]),
            Lines(vec![event("ADDED", node("b", 11)), bookmark(15)], cut),
            Lines(vec![event("DELETED", node("a", 16))], Hold),
        ];
        let mut watched = Watched::nodes(pages(), TIMES, script).await;
        watched.expect(&["Node list started", "apply a", "Node list ended", "apply b", "delete a"]).await;
        let versions = ["limit=500", "resourceVersion=10", "resourceVersion=15"];
        for version in versions {
            let target = watched.server.asked().await.target;
            assert!(target.ends_with(version), "{target} should end with {version}");
        }
    }
}

#[tokio::test]
async fn an_expired_watch_lists_anew_and_the_world_keeps_exactly_what_is_listed() {
    for expired in [Lines(vec![event("ERROR", status(410))], Hold), Json(410, status(410))] {
        let script = vec![
            list(10, &[node("kept", 1), node("gone", 2)]),
            expired,
            list(20, &[node("kept", 1), node("new", 19)]),
            Lines(vec![event("MODIFIED", node("new", 21))], Hold),
        ];
        let mut watched = Watched::nodes(pages(), TIMES, script).await;
        let mut world = World::default();
        let mut seen = Vec::new();
        while seen.len() < 9 {
            let change = tokio::time::timeout(DEADLINE, watched.changes.recv()).await.unwrap().unwrap();
            seen.push(show(&change));
            world.apply(change);
        }
        let expected = [
            "Node list started",
            "apply kept",
            "apply gone",
            "Node list ended",
            "Node list started",
            "apply kept",
            "apply new",
            "Node list ended",
            "apply new",
        ];
        assert_eq!(seen, expected);
        assert_eq!(world.nodes().map(|n| &*n.name).collect::<Vec<_>>(), ["kept", "new"]);
        let of = watched.metrics.of("Node");
        assert_eq!((of.lists.get(), of.events.get(), of.interruptions.get()), (2, 5, 0));
    }
}

#[tokio::test]
async fn a_list_that_fails_between_its_pages_begins_again_and_sweeps_only_at_its_end() {
    for failure in [Json(410, status(410)), Json(500, status(500))] {
        let script =
            vec![page("more", &[node("a", 1)]), failure, list(20, &[node("b", 2)]), Lines(vec![], Hold)];
        let mut watched = Watched::nodes(pages(), TIMES, script).await;
        watched
            .expect(&["Node list started", "apply a", "Node list started", "apply b", "Node list ended"])
            .await;
    }
}

#[tokio::test]
async fn a_streamed_list_asks_for_the_newest_state_and_goes_on_as_a_watch() {
    let script = vec![
        Lines(
            vec![
                event("ADDED", node("b", 9)),
                event("ADDED", node("a", 4)),
                list_complete(10),
                event("MODIFIED", node("a", 12)),
            ],
            Cut,
        ),
        Lines(vec![event("DELETED", node("b", 13))], Hold),
    ];
    let mut watched = Watched::nodes(streamed(), TIMES, script).await;
    watched
        .expect(&["Node list started", "apply b", "apply a", "Node list ended", "apply a", "delete b"])
        .await;
    let first = watched.server.asked().await.target;
    for part in ["sendInitialEvents=true", "resourceVersionMatch=NotOlderThan"] {
        assert!(first.contains(part), "{first}");
    }
    assert!(first.ends_with("resourceVersion="), "{first}");
    let second = watched.server.asked().await.target;
    assert!(second.ends_with("resourceVersion=12") && !second.contains("sendInitialEvents"), "{second}");
}

#[tokio::test]
async fn a_streamed_list_that_breaks_off_is_streamed_again_from_its_beginning() {
    let script = vec![
        Lines(vec![event("ADDED", node("a", 4)), bookmark(5)], Cut),
        Lines(vec![event("ADDED", node("b", 6)), list_complete(10)], Hold),
    ];
    let mut watched = Watched::nodes(streamed(), TIMES, script).await;
    watched
        .expect(&["Node list started", "apply a", "Node list started", "apply b", "Node list ended"])
        .await;
}

#[tokio::test]
async fn an_api_server_that_does_not_stream_lists_is_read_in_pages() {
    let script = vec![Json(422, status(422)), list(10, &[node("a", 1)]), Lines(vec![], Hold)];
    let mut watched = Watched::nodes(streamed(), TIMES, script).await;
    watched.expect(&["Node list started", "apply a", "Node list ended"]).await;
    assert_eq!(watched.metrics.of("Node").interruptions.get(), 0, "nothing is wrong with that");
}

#[tokio::test]
async fn refusals_are_retried_for_ever_and_tell_the_receiver_nothing() {
    let script = vec![
        Json(403, status(403)),
        Json(200, json!("not a list")),
        Json(500, status(500)),
        list(10, &[]),
        Json(500, status(500)),
        Lines(vec![event("ADDED", node("a", 11))], Hold),
    ];
    let mut watched = Watched::nodes(pages(), TIMES, script).await;
    watched.expect(&["Node list started", "Node list ended", "apply a"]).await;
    assert_eq!(watched.metrics.of("Node").interruptions.get(), 4);
}

#[tokio::test]
async fn a_silent_connection_is_given_up() {
    let times = Times { silence: Duration::from_secs(1), ..TIMES };
    let script = vec![
        list(10, &[]),
        Lines(vec![bookmark(15)], Hold),
        Lines(vec![event("ADDED", node("a", 16))], Hold),
    ];
    let mut watched = Watched::nodes(pages(), times, script).await;
    watched.expect(&["Node list started", "Node list ended", "apply a"]).await;
    for end in ["limit=500", "resourceVersion=10", "resourceVersion=15"] {
        let target = watched.server.asked().await.target;
        assert!(target.ends_with(end), "{target} should end with {end}");
    }
}

#[tokio::test]
async fn an_api_server_that_ends_every_watch_at_once_is_not_hammered() {
    let ends = (0..1000).map(|_| Lines(vec![], End));
    let script = std::iter::once(list(10, &[])).chain(ends).collect();
    let hour = Duration::from_secs(3600);
    let mut watched = Watched::nodes(pages(), Times { first_retry: hour, ..TIMES }, script).await;
    watched.expect(&["Node list started", "Node list ended"]).await;
    watched.server.asked().await;
    watched.server.asked().await;
    // What would come next would come at once.
    let another = tokio::time::timeout(Duration::from_millis(100), watched.server.asked()).await;
    assert!(another.is_err() && watched.server.more_asked() == 0, "{another:?}");
}

/// Each expiry doubles the wait, whatever came before it: soon nothing more is asked.
#[tokio::test]
async fn a_storm_of_expiries_is_listed_ever_more_slowly() {
    let expired = || event("ERROR", status(410));
    for config in [pages(), streamed()] {
        let listing = match config.initial_list_strategy {
            InitialListStrategy::ListWatch => vec![list(10, &[node("a", 1)])],
            InitialListStrategy::StreamingList => {
                vec![Lines(vec![event("ADDED", node("a", 1)), list_complete(10)], End)]
            }
        };
        let watch = || Lines(vec![event("MODIFIED", node("a", 11)), expired()], End);
        let script = (0..1000).flat_map(|_| listing.clone().into_iter().chain([watch()])).collect();
        let times = Times { longest_retry: Duration::from_secs(3600), ..TIMES };
        let Watched { mut server, mut changes, watching: _watching, .. } =
            Watched::nodes(config, times, script).await;
        let drain = async { while changes.recv().await.is_some() {} };
        let count = async {
            let mut asked = 0;
            while tokio::time::timeout(Duration::from_millis(500), server.asked()).await.is_ok() {
                asked += 1;
            }
            asked
        };
        let asked = tokio::select! { asked = count => asked, () = drain => unreachable!("it never ends") };
        assert!((4..100).contains(&asked), "{asked} requests");
    }
}

#[tokio::test]
async fn an_object_of_another_shape_is_passed_over_in_lists_and_watches() {
    let odd = |name: &str, version: u32| json!({"metadata": {"name": name, "resourceVersion": version.to_string()}, "spec": 7});
    let script = vec![
        list(10, &[node("a", 1), odd("b", 2), node("c", 3)]),
        Lines(vec![event("MODIFIED", odd("a", 11)), event("MODIFIED", node("c", 12))], Hold),
    ];
    let mut watched = Watched::nodes(pages(), TIMES, script).await;
    watched.expect(&["Node list started", "apply a", "apply c", "Node list ended", "apply c"]).await;
}

#[tokio::test]
async fn an_object_that_took_another_shape_before_it_was_deleted_is_gone_all_the_same() {
    let odd = json!({"metadata": {"name": "a", "resourceVersion": "12"}, "spec": 7});
    let script = vec![
        list(10, &[node("a", 1), node("b", 2)]),
        Lines(vec![event("MODIFIED", odd.clone()), event("DELETED", odd)], Hold),
        list(20, &[node("b", 2)]),
        Lines(vec![], Hold),
    ];
    let mut watched = Watched::nodes(pages(), TIMES, script).await;
    watched.expect(&["Node list started", "apply a", "apply b", "Node list ended"]).await;
    watched.expect(&["Node list started", "apply b", "Node list ended"]).await;
}

#[tokio::test]
async fn a_watch_ends_when_its_receiver_is_gone() {
    let mut watched = Watched::nodes(pages(), TIMES, vec![list(10, &[]), Lines(vec![], Hold)]).await;
    watched.expect(&["Node list started", "Node list ended"]).await;
    let Watched { changes, mut watching, server: _server, .. } = watched;
    drop(changes);
    tokio::time::timeout(DEADLINE, watching.join_next()).await.expect("it ends").unwrap().unwrap();
}

/// The selectors are those of kube-proxy 1.37; the reply does not matter here.
#[tokio::test]
async fn the_data_plane_asks_for_what_it_routes_and_one_node() {
    let table = [
        (
            WatchConfig {
                services: true,
                slices: false,
                nodes: Nodes::None,
                service_cidrs: false,
                detail: Detail::Dataplane,
            },
            "/api/v1/services?",
            vec![
                "fieldSelector=spec.clusterIP!=None",
                "labelSelector=!service.kubernetes.io/service-proxy-name",
            ],
        ),
        (
            WatchConfig {
                services: false,
                slices: true,
                nodes: Nodes::None,
                service_cidrs: false,
                detail: Detail::Dataplane,
            },
            "/apis/discovery.k8s.io/v1/endpointslices?",
            vec!["labelSelector=!service.kubernetes.io/headless"],
        ),
        (
            WatchConfig {
                services: false,
                slices: false,
                nodes: Nodes::One("node-1".into()),
                service_cidrs: false,
                detail: Detail::Dataplane,
            },
            "/api/v1/nodes?",
            vec!["fieldSelector=metadata.name=node-1"],
        ),
        (
            WatchConfig {
                services: true,
                slices: false,
                nodes: Nodes::None,
                service_cidrs: false,
                detail: Detail::Full,
            },
            "/api/v1/services?",
            vec![],
        ),
    ];
    for (config, path, selectors) in table {
        let mut server = ApiServer::start(vec![]).await;
        let (tx, _rx) = mpsc::channel(1);
        let mut watching = JoinSet::new();
        let source = Source::Kube(client(&server).await);
        watching.spawn(watch_with(source, config.clone(), Options::default(), tx));
        let target = server.asked().await.target;
        assert!(target.starts_with(path), "{target}");
        for selector in &selectors {
            assert!(target.contains(selector), "{selector} is missing in {target}");
        }
        assert_eq!(target.matches("Selector=").count(), selectors.len(), "{target}");
    }
}

#[tokio::test]
async fn another_kind_is_converted_by_its_watcher_and_may_be_dropped() {
    let script = vec![list(10, &[node("a", 1), node("b", 2)]), Lines(vec![], Hold)];
    let server = ApiServer::start(script).await;
    let (tx, mut rx) = mpsc::channel(4);
    let api = Api::<wire::Node>::all(client(&server).await);
    let convert = |listing: Listing<wire::Node>| match listing {
        Listing::Apply(node) => node.metadata.name.filter(|n| n != "a"),
        Listing::Ended => Some("(ended)".to_owned()),
        Listing::Started | Listing::Delete(_) => None,
    };
    let mut watching = JoinSet::new();
    watching.spawn(watch_kind(api, pages(), convert, tx));
    for expected in ["b", "(ended)"] {
        let seen = tokio::time::timeout(DEADLINE, rx.recv()).await.expect("it comes");
        assert_eq!(seen.as_deref(), Some(expected));
    }
}

#[tokio::test]
async fn every_kind_that_is_asked_for_is_listed() {
    let empty = || Lines(vec![list_complete(10)], Hold);
    let server = ApiServer::start(vec![empty(), empty(), empty()]).await;
    let config = WatchConfig {
        services: true,
        slices: true,
        nodes: Nodes::All,
        service_cidrs: false,
        detail: Detail::Full,
    };
    let (tx, mut rx) = mpsc::channel(16);
    let mut watching = JoinSet::new();
    let source = Source::Kube(client(&server).await);
    watching.spawn(watch_with(source, config.clone(), Options::default(), tx));
    let mut world = World::default();
    while !world.has_synced(&config.kinds()) {
        world.apply(tokio::time::timeout(DEADLINE, rx.recv()).await.expect("a change comes").unwrap());
    }
    assert_eq!(config.kinds(), [Kind::Service, Kind::EndpointSlice, Kind::Node]);
}
