//! Each of our programs is killed, and asked to end, while clients are connected: nobody notices.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kube::ResourceExt;
use lab::Lab;
use nix::sys::signal::Signal;

const WEB: &str = include_str!("../fixtures/web.yaml");

#[tokio::test(flavor = "multi_thread")]
async fn killing_any_program_is_not_noticed_by_clients() -> Result<()> {
    let lab = Lab::builder("killed").start().await?;
    lab.apply(WEB).await?;
    let (ip, _) = lab.external_ip("web", Duration::from_secs(10)).await?;
    let pods = lab.pods_ready("app=web", 2).await?;
    lab.endpoints_ready("web", 2).await?;
    let service = lab.service("web").await?;
    let vip = SocketAddr::new(ip, service.port()?);
    lab.client().http_eventually(vip, 1).await?;
    lab.inside(&pods[0])?.http_eventually(service.cluster()?, 1).await?;

    let outside = lab.client().curl_along(vip);
    let inside = lab.inside(&pods[0])?.curl_along(service.cluster()?);
    let connected = lab.client().stay_connected(vip).await?;
    let owner = lab.owner_of(ip)?.host.name.clone();
    let before = settled(&lab).await?;

    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for program in lab.programs() {
            let at = || format!("{signal} of {}", program.name());
            program.signal_and_await_restart(signal).await?;
            outside.more(60).await.with_context(at)?;
            connected.alive().with_context(at)?;
            ensure!(lab.owner_of(ip)?.host.name == owner, "{}: {ip} moved from {owner}", at());
        }
    }
    outside.stop().await.without_failure().context("through the balancer")?;
    inside.stop().await.without_failure().context("by cluster IP")?;
    connected.alive()?;
    let after = lab.service("web").await?;
    ensure!(after.object().resource_version() == before, "the Service was written: {:?}", after.object());
    Ok(())
}

/// The Service's version, once its controller has published it and has nothing more to write.
async fn settled(lab: &Lab) -> Result<Option<String>> {
    lab.event_of("web", |event| event.contains("LoadBalancerReady")).await?;
    Ok(lab.service("web").await?.object().resource_version())
}
