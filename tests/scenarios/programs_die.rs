//! Any program of ours may be killed or stopped at any time: it is started again a second later,
//! and no connection, new or established, notices.

mod support;

use anyhow::{Result, ensure};
use lab::Lab;
use nix::sys::signal::Signal;
use support::UnderLoad;

#[tokio::test(flavor = "multi_thread")]
async fn no_connection_notices_the_death_of_a_program() -> Result<()> {
    let lab = Lab::builder("die").start().await?;
    let load = UnderLoad::start(&lab).await?;
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        for program in lab.programs() {
            program.signal_and_await_restart(signal).await?;
            load.requests(100).await?;
            let story = load.curler.so_far();
            ensure!(story.failures.is_empty(), "{signal} of {}: {story}", program.name());
        }
    }
    // The address stayed where it was, and with whom.
    let (ip, _) = lab.external_ip("web", support::LIMIT).await?;
    ensure!(ip == load.vip.ip(), "the address changed from {} to {ip}", load.vip.ip());
    for balancer in lab.tier.iter().flat_map(|tier| &tier.balancers) {
        let log = balancer.program.log();
        let starts = balancer.program.state().starts as usize;
        let taken = log.matches("answer for").count();
        ensure!(
            taken <= 1,
            "{} took the address {taken} times in {starts} lives:\n{log}",
            balancer.host.name
        );
    }
    load.nothing_failed("after all of them died twice").await?;
    Ok(())
}
