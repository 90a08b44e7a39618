//! The API server is gone for a minute: everything goes on serving, also through a restart of
//! a program that cannot reach it.

mod support;

use anyhow::Result;
use lab::Lab;
use nix::sys::signal::Signal;
use support::UnderLoad;

#[tokio::test(flavor = "multi_thread")]
async fn everything_goes_on_serving_without_the_api_server() -> Result<()> {
    let lab = Lab::builder("api").start().await?;
    let load = UnderLoad::start(&lab).await?;
    lab.control_plane.api_server.stop().await?;
    // A request every 10 ms: about a minute in all.
    load.requests(2000).await?;
    lab.nodes[0].proxy.signal_and_await_restart(Signal::SIGKILL).await?;
    load.requests(2000).await?;
    lab.balancer("lb-1")?.program.signal_and_await_restart(Signal::SIGKILL).await?;
    load.requests(2000).await?;
    lab.control_plane.api_server.resume().await?;
    lab.control_plane.await_ready().await?;
    lab.control_plane.restart_controllers().await?;
    load.requests(100).await?;
    // And it is not only still there, it follows again.
    lab.scale("web", 3).await?;
    lab.pods_ready("app=web", 3).await?;
    lab.client().http_spread(load.vip, 60, 3).await?;
    load.nothing_failed("without an API server").await?;
    Ok(())
}
