//! With the real kube-proxy on its nodes, the lab is a cluster like any other: what works here
//! must work with our own programs too.

use std::net::SocketAddr;

use anyhow::Result;
use lab::{Lab, NodeProxy, Provider};

const WEB: &str = include_str!("../fixtures/web-nodeport.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn services_work_with_the_real_kube_proxy() -> Result<()> {
    let lab =
        Lab::builder("oracle").node_proxy(NodeProxy::KubeProxy).provider(Provider::None).start().await?;
    lab.apply(WEB).await?;
    let pods = lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    let service = lab.service("web").await?;

    // From a pod, by cluster IP, in both address families.
    for target in service.all_cluster()? {
        lab.inside(&pods[0])?.http_spread(target, 40, 2).await?;
    }
    // From outside, by every node's address.
    for node in &lab.nodes {
        for address in node.host.addresses() {
            let target = SocketAddr::new(address, service.node_port()?);
            lab.client().http_spread(target, 40, 2).await?;
        }
    }
    Ok(())
}
