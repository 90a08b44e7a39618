//! The lab itself, with the real kube-proxy on its nodes: what holds here is the laboratory's doing
//! and the peer's, so that a scenario that fails elsewhere fails because of us.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::net::SocketAddr;

use lab::lab::{LIMIT, node_of};
use lab::{Lab, NodeProxy, traffic, wait};

const WEB: &str = include_str!("../fixtures/web.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_reached_through_cluster_ip_and_node_port() {
    let lab = Lab::builder().node_proxy(NodeProxy::KubeProxy).start().await.unwrap();
    lab.apply(WEB).await.unwrap();
    let pods = lab.pods_ready("web", 2).await.unwrap();
    let cluster = lab.cluster_address("web").await.unwrap();
    let inside = lab.pod_namespace(&pods[0]).unwrap();
    let seen = wait::until("both pods answer through the ClusterIP", LIMIT, || async {
        let seen = traffic::connections(&inside, cluster, 50).map_err(|e| e.to_string())?;
        if seen.pods.len() == 2 && seen.failures.is_empty() { Ok(seen) } else { Err(format!("{seen:?}")) }
    });
    assert_eq!(seen.await.unwrap().answers(), 50);

    let port = lab.node_port("web").await.unwrap();
    let node = SocketAddr::from((lab::lab::node_address(1), port));
    let seen = traffic::connections(&lab.client.path(), node, 20).unwrap();
    assert_eq!((seen.answers(), seen.failures), (20, vec![]));
    assert!(pods.iter().all(|p| node_of(p).starts_with("node-")));
}
