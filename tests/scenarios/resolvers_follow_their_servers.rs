//! Clients that speak UDP from one port, as resolvers do: they stay with their server while others
//! come and go and while the node's proxy dies, and are led to another when theirs is gone. Without
//! the last, the connection table would send them into nothing for as long as they ask. Under
//! kube-proxy and under node-agent alike.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use kube::ResourceExt;
use lab::traffic::Dialogue;
use lab::{Lab, NodeProxy, Provider, wait};
use nix::sys::signal::Signal;

const SERVICE: &str = "
apiVersion: v1
kind: Service
metadata: {name: dns}
spec:
  type: NodePort
  selector: {app: dns}
  ports: [{name: dns, port: 53, targetPort: 5353, protocol: UDP}]
";
const SERVERS: &str = include_str!("../fixtures/dns.yaml");

const LIMIT: Duration = Duration::from_secs(20);
/// As many questions as would meet every server, were they drawn anew each time.
const OFTEN: usize = 20;

/// The one server that answers all of them.
async fn server(client: &Dialogue, what: &str) -> Result<String> {
    let mut pods = BTreeSet::new();
    for _ in 0..OFTEN {
        pods.insert(client.ask().await?.pod);
    }
    ensure!(pods.len() == 1, "{what}: answered by {pods:?}");
    Ok(pods.into_iter().collect())
}

/// The names of the servers, once there are so many, all ready.
async fn servers(lab: &Lab, count: usize) -> Result<BTreeSet<String>> {
    Ok(lab.pods_ready("app=dns", count).await?.iter().map(ResourceExt::name_any).collect())
}

async fn follow(name: &str, proxy: NodeProxy) -> Result<()> {
    let lab = Lab::builder(name).nodes(2).node_proxy(proxy).provider(Provider::None).start().await?;
    lab.apply(SERVERS).await?;
    lab.apply(SERVICE).await?;
    lab.pods_ready("app=dns", 2).await?;
    lab.endpoints_ready("dns", 2).await?;
    let service = lab.service("dns").await?;
    let node = &lab.nodes[0];
    let node_port = SocketAddr::new(node.host.v4().into(), service.node_port()?);
    let on_the_node = lab.client_on(&node.host.name)?;
    let mut clients = Vec::new();
    for (client, target) in [(lab.client(), node_port), (on_the_node, service.cluster()?)] {
        wait::until("the Service is served", LIMIT, async || client.ask_by_udp(target, "ready?").await)
            .await?;
        let dialogue = client.converse(target).await?;
        clients.push((client, target, dialogue));
    }
    for (others, target, client) in &clients {
        let known = servers(&lab, 2).await?;
        // Of a server that leaves, and answers until it is gone, the proxy may not have heard yet.
        let first = wait::until("a server that stays answers", LIMIT, async || {
            let first = server(client, "at first").await?;
            ensure!(known.contains(&first), "{first} is not of {known:?}");
            Ok(first)
        })
        .await?;
        node.proxy.signal_and_await_restart(Signal::SIGKILL).await?;
        lab.scale("dns", 3).await?;
        let more = servers(&lab, 3).await?;
        wait::until("the new proxy leads others to one more server", LIMIT, async || {
            let answers = others.udp(*target, 30).await.complete()?;
            let new = |pod: &str| more.contains(pod) && !known.contains(pod);
            ensure!(answers.by_pod().keys().any(|pod| new(pod)), "{answers}");
            Ok(())
        })
        .await?;
        ensure!(server(client, "after that").await? == first, "{first} was left for another");

        lab.kubectl(&format!("delete pod {first} --wait=false")).await?;
        let second = wait::until("another server answers", LIMIT, async || {
            let pod = client.ask().await?.pod;
            ensure!(pod != first, "{first} still answers");
            Ok(pod)
        })
        .await?;
        ensure!(server(client, "when the first was gone").await? == second, "{second} was left for another");
        lab.scale("dns", 2).await?;
        lab.pods_ready("app=dns", 2).await?;
        lab.endpoints_ready("dns", 2).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn resolvers_follow_their_servers_under_kube_proxy() -> Result<()> {
    follow("resolvers-theirs", NodeProxy::KubeProxy).await
}

#[tokio::test(flavor = "multi_thread")]
async fn resolvers_follow_their_servers_under_node_agent() -> Result<()> {
    follow("resolvers-ours", NodeProxy::NodeAgent).await
}
