//! A node that is about to go tells load balancers so, while its rules stay and are healthy: from
//! the Node object to the answer.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use daemon::Readiness;
use daemon::http::Server;
use kube_watch::{Options, Source, watch_with};
use node_agent::agent::Agent;
use node_agent::health::Health;
use node_agent::metrics::Metrics;
use prometheus_client::registry::Registry;
use serde_json::Value;
use support::config;
use support::kernel::in_namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc::channel;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(10);

/// The Node `here`, with these lines in its metadata and in its spec.
fn write_node(folder: &Path, metadata: &str, spec: &str) {
    let node = format!(
        "apiVersion: v1\nkind: Node\nmetadata: {{name: here{metadata}}}\nspec: {{{spec}}}\n\
         status: {{addresses: [{{type: InternalIP, address: 172.30.0.11}}]}}\n"
    );
    fs::write(folder.join("node.yaml"), node).unwrap();
}

/// The status of the answer, and what it says.
async fn ask(address: SocketAddr, path: &str) -> (u16, Value) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.split(' ').nth(1).unwrap().parse().unwrap(), serde_json::from_str(body).unwrap())
}

/// Runs an agent whose API server is a folder, and its health server; the test is told both.
fn with_agent(test: impl AsyncFnOnce(&Path, SocketAddr) + Send) {
    in_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let folder = tempfile::tempdir().unwrap();
            write_node(folder.path(), "", "");
            let health = Health::new(Duration::from_secs(30));
            let metrics = Metrics::register(&mut Registry::default());
            let server = Server::bind("127.0.0.1:0".parse().unwrap(), health.routes(&metrics)).unwrap();
            let (address, cancel) = (server.local_addr().unwrap(), CancellationToken::new());
            tokio::spawn(server.run(cancel.clone()));
            let first_sync = Readiness::default().task("first sync");
            let agent = Agent::new(config(), Duration::ZERO, health, metrics, first_sync).unwrap();
            let (tx, rx) = channel(16);
            let source = Source::Dir(folder.path().to_owned());
            tokio::spawn(watch_with(source, config().watches(), Options::default(), tx));
            let running = tokio::spawn(agent.run(rx, cancel.clone()));
            test(folder.path(), address).await;
            cancel.cancel();
            running.await.unwrap().unwrap();
        });
    });
}

/// Waits until `/healthz` answers so; what it says then.
async fn healthz_once(status: u16, address: SocketAddr) -> Value {
    let waiting = async {
        loop {
            let (is, body) = ask(address, "/healthz").await;
            if is == status {
                return body;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.expect("/healthz answers so")
}

#[test]
fn a_node_that_the_autoscaler_takes_or_that_is_deleted_is_not_eligible_and_healthy() {
    with_agent(async |folder, address| {
        let usual = healthz_once(200, address).await;
        assert_eq!((&usual["nodeEligible"], &usual["healthy"]), (&true.into(), &true.into()), "{usual}");
        let taint = "taints: [{key: ToBeDeletedByClusterAutoscaler, value: '1', effect: NoSchedule}]";
        let deleted = ", finalizers: [a/b], deletionTimestamp: '2026-01-01T00:00:00Z'";
        for (metadata, spec) in [("", taint), (deleted, "")] {
            write_node(folder, metadata, spec);
            let body = healthz_once(503, address).await;
            assert_eq!((&body["nodeEligible"], &body["healthy"]), (&false.into(), &true.into()), "{body}");
            assert_eq!(ask(address, "/livez").await.0, 200, "a kubelet does not restart it for that");
            write_node(folder, "", "");
            healthz_once(200, address).await;
        }
    });
}
