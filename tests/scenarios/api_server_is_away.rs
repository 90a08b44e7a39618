//! kube-apiserver stops for half a minute: everything goes on serving, and catches up afterwards.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Lab, wait};

const WEB: &str = include_str!("../fixtures/web.yaml");

const AWAY: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread")]
async fn everything_serves_without_the_api_server_and_catches_up_when_it_is_back() -> Result<()> {
    let lab = Lab::builder("away").start().await?;
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

    lab.control_plane.api_server.stop().await?;
    // Requests pace the outage: one every 10 ms, so this many take as long as it shall last.
    let during = usize::try_from(AWAY.as_millis() / 10)?;
    wait::until("the clients have asked for 30 s", AWAY * 3, async || {
        let story = outside.so_far();
        ensure!(story.requests >= during, "{story}");
        Ok(())
    })
    .await?;
    lab.control_plane.api_server.resume().await?;
    lab.control_plane.await_ready().await?;

    // What changes from now on arrives everywhere.
    lab.scale("web", 4).await?;
    lab.pods_ready("app=web", 4).await?;
    wait::until("the new pods answer too", Duration::from_secs(60), async || {
        let answers = lab.client().http(vip, 40).await;
        ensure!(answers.failures.is_empty() && answers.by_pod().len() == 4, "{answers}");
        Ok(())
    })
    .await?;
    outside.stop().await.without_failure().context("through the balancer")?;
    inside.stop().await.without_failure().context("by cluster IP")?;
    connected.alive()?;
    for program in lab.programs() {
        ensure!(program.restarts() == 0, "{} was restarted: {}", program.name(), program.log_tail(5));
    }
    Ok(())
}
