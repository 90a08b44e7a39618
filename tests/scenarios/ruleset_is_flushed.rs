//! Somebody flushes the ruleset of a node: its Services are back within a second.

use std::net::SocketAddr;
use std::time::Instant;

use anyhow::{Result, ensure};
use lab::Lab;

const WEB: &str = include_str!("../fixtures/web.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn a_flushed_node_heals_by_itself() -> Result<()> {
    let lab = Lab::builder("flush").start().await?;
    lab.apply(WEB).await?;
    lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    let port = lab.service("web").await?.node_port()?;
    for node in &lab.nodes {
        let target = SocketAddr::new(node.host.v4().into(), port);
        lab.client().http_eventually(target, 1).await?;
        let flushed = Instant::now();
        lab.flush_ruleset(&node.host.name)?;
        lab.client().http_eventually(target, 20).await?;
        eprintln!("{target} was whole again, and had answered 20 requests, after {:?}", flushed.elapsed());
        ensure!(node.proxy.restarts() == 0, "{} was restarted", node.proxy.name());
    }
    Ok(())
}
