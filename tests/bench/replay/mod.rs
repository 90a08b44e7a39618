//! Sustained changes: a watch of EndpointSlices that was recorded at a real API server is replayed over
//! HTTP at given rates, to both programs by turns.

mod run;
mod stage;
mod tape;

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use run::{Behind, Player};
use stage::Stage;
use tape::Tape;

use crate::cluster::Cluster;
use crate::contender::BOTH;
use crate::figures::{Row, Unit};
use crate::proxies::{await_vip, sample};
use crate::shape::Size;
use crate::{Plan, progress};

/// With the Services that there are.
pub(crate) async fn measure(
    plan: &Plan,
    cluster: &Cluster,
    size: &Size,
    run: &mut usize,
    tell: fn(Row),
) -> Result<()> {
    if plan.replay_rounds.turns().next().is_none() {
        return Ok(());
    }
    progress("recording the watches of EndpointSlices");
    let tape = Arc::new(Tape::record(cluster).await?);
    let behind = compare(plan, cluster, &tape, size, run).await?;
    for (rate, behind) in plan.rates.iter().zip(behind) {
        table(size, *rate, behind).into_iter().for_each(tell);
    }
    Ok(())
}

/// For each rate, both programs'.
async fn compare(
    plan: &Plan,
    cluster: &Cluster,
    tape: &Arc<Tape>,
    size: &Size,
    run: &mut usize,
) -> Result<Vec<[Behind; 2]>> {
    let length = Duration::from_secs(plan.replay_seconds);
    let client = cluster.control_plane.client.clone();
    let mut stage = Stage::open(&cluster.backends.netns, Arc::clone(tape), client)?;
    let kubeconfig = cluster.ground.path().join("stage.kubeconfig");
    fs::write(&kubeconfig, Stage::kubeconfig(cluster.backends.v4()))?;
    let mut behind = vec![BOTH.map(|_| Behind::default()); plan.rates.len()];
    for (round, contender) in plan.replay_rounds.turns() {
        let who = contender.name();
        progress(&format!(
            "replay at {size}, {who}, round {} of {}",
            round + 1,
            plan.replay_rounds.of(contender)
        ));
        *run += 1;
        let running = contender.start_with(cluster, *run, &kubeconfig).await?;
        let watch = stage.watch().await?;
        for vip in sample(&cluster.vips, round) {
            await_vip(&running, vip).await?;
        }
        let mut player = Player { cluster, tape, running: &running, watch, played: 0, away: true };
        for (rate, behind) in plan.rates.iter().zip(&mut behind) {
            let behind = contender.of(behind.each_mut());
            player.play(*rate, length, behind).await?;
            stage.ensure_no_other()?;
            let served = behind.all_served.last().unwrap_or_default() * 1e3;
            progress(&format!("{who}: {rate} a second; all served after {served:.1} ms"));
        }
        // While it lives it would begin the watch anew, which ends with the player.
        running.program.kill().await?;
    }
    Ok(behind)
}

fn table(size: &Size, rate: u32, [ours, peer]: [Behind; 2]) -> Vec<Row> {
    let rows = [
        ("from a change until it is served", Unit::Milliseconds, ours.lag, peer.lag),
        ("… in the first quarter of the run", Unit::Milliseconds, ours.first_quarter, peer.first_quarter),
        ("… in the last quarter", Unit::Milliseconds, ours.last_quarter, peer.last_quarter),
        ("from the last change until all are served", Unit::Milliseconds, ours.all_served, peer.all_served),
        ("processor time of 1,000 changes", Unit::Milliseconds, ours.processor, peer.processor),
    ];
    let row = |(what, unit, ours, peer)| Row {
        what: format!("{size}, {rate} changes a second: {what}"),
        unit,
        ours,
        peer: Some(peer),
    };
    rows.into_iter().map(row).collect()
}
