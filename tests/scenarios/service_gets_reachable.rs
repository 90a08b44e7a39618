//! The main story: apply a Service, get an external IP, reach the pods.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::Lab;

const WEB: &str = include_str!("../fixtures/web.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn a_service_gets_an_external_ip_and_its_pods_are_reached() -> Result<()> {
    let lab = Lab::builder("reach").start().await?;

    let applied = Instant::now();
    lab.apply(WEB).await?;
    let (ip, _) = lab.external_ip("web", Duration::from_secs(10)).await?;
    eprintln!("external IP {ip} after {:?} from the start of kubectl", applied.elapsed());
    let pods = lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    let service = lab.service("web").await?;

    // From outside, through the balancer.
    let answers = lab.client().http_spread(SocketAddr::new(ip, service.port()?), 100, 2).await?;
    ensure!(answers.by_pod().values().all(|count| *count >= 10), "100 connections went to {answers}");
    // From outside, by every node's address, also where no pod is.
    for node in &lab.nodes {
        for address in node.host.addresses() {
            let target = SocketAddr::new(address, service.node_port()?);
            lab.client().http_spread(target, 20, 2).await?;
        }
    }
    // From a pod, by cluster IP, and by the external IP.
    let mut targets = service.all_cluster()?;
    targets.push(SocketAddr::new(ip, service.port()?));
    for target in targets {
        lab.inside(&pods[0])?.http_spread(target, 20, 2).await?;
    }
    Ok(())
}
