//! All 500 endpoints of a Service are replaced, 50 a second, one write each, under load: who asks
//! always meets one that serves. Then the same while node-agent is killed again and again.
#![allow(clippy::print_stdout, reason = "a story tells what happened")]

mod fleet;
mod load;
mod roll;
mod stage;

use std::time::Duration;

use anyhow::Result;
use load::Load;
use nix::sys::signal::Signal;
use roll::{ENDPOINTS, Rolling};
use stage::Stage;

/// What a pod has between its SIGTERM and its end, at the least.
const GRACE: Duration = Duration::from_secs(2);

/// A killed program is started a second later, and then has to find out what it missed; one that is killed too soon
/// again and again learns nothing between.
const GRACE_WITHOUT_AGENT: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_is_lost_while_endpoints_are_rolled_and_the_agent_dies() -> Result<()> {
    let stage = Stage::set().await?;
    let mut rolling = Rolling::begin(&stage).await?;
    let load = Load::start(&stage.client, rolling.vip()).await?;
    load.spread_over(&rolling.ready()).await?;

    let rate = rolling.roll(ENDPOINTS, Duration::from_millis(20), GRACE).await?;
    println!("{ENDPOINTS} endpoints at {rate:.0} a second: {load}; {}", stage.fleet);
    load.nothing_failed("while endpoints were rolled")?;
    load.spread_over(&rolling.ready()).await?;

    let killed = async {
        // Some lives are too short to learn anything.
        for requests in [30, 500, 30, 30, 200, 500] {
            stage.agent.signal_and_await_restart(Signal::SIGKILL).await?;
            load.requests(requests).await?;
        }
        anyhow::Ok(())
    };
    let rolled = rolling.roll(200, Duration::from_millis(40), GRACE_WITHOUT_AGENT);
    let ((), rate) = tokio::try_join!(killed, rolled)?;
    println!("{} deaths, {rate:.0} endpoints a second: {load}; {}", stage.agent.restarts(), stage.fleet);
    load.spread_over(&rolling.ready()).await?;
    load.nothing_failed("while node-agent died")
}
