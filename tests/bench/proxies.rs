//! What a node's proxy costs with many Services, ours beside the real kube-proxy, turn by turn.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, reached};
use crate::contender::{BOTH, Contender, Running};
use crate::figures::{Row, Samples, Unit};
use crate::lone_change::{Change, Changes, await_endpoint};
use crate::shape::Size;
use crate::{Plan, progress, replay};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
const LOOK: Duration = Duration::from_millis(100);
/// The peer takes minutes for 30,000 Services.
const PATIENCE: Duration = Duration::from_secs(600);

/// VIPs that are looked at beside the first and the last.
const SAMPLE: usize = 48;

/// Memory and processor time are looked at so long after everything is programmed: the `nft` that
/// kube-proxy runs has ended by then, and counts.
const REST: Duration = Duration::from_secs(10);
/// To each VIP of the sample.
const CONNECTIONS_TO_EACH: usize = 10;

#[derive(Debug, Clone, Default)]
struct Costs {
    cold: Samples,
    in_syncs: Samples,
    processor_until_then: Samples,
    processor: Samples,
    rss: Samples,
    hwm: Samples,
    peak: Samples,
    idle: Samples,
    connect: Samples,
    changes: Changes,
    restart_healthy: Samples,
    restart_served: Samples,
}

/// Rows are told as soon as all rounds of their size are done.
pub(crate) async fn measure(plan: &Plan, tell: fn(Row)) -> Result<()> {
    let mut run = 0;
    for sizes in plan.sizes.chunk_by(|one, next| one.shape == next.shape && one.services <= next.services) {
        let Some(shape) = sizes.first().map(|size| size.shape) else { continue };
        progress("starting a control plane");
        let mut cluster = Cluster::start(shape).await?;
        for size in sizes {
            cluster.grow_to(size.services).await?;
            table(size, compare(plan, &cluster, size, &mut run).await?).into_iter().for_each(tell);
            if size.is_changed() {
                replay::measure(plan, &cluster, size, &mut run, tell).await?;
            }
        }
    }
    Ok(())
}

/// Both programs with as many Services as there are, by turns.
async fn compare(plan: &Plan, cluster: &Cluster, size: &Size, run: &mut usize) -> Result<[Costs; 2]> {
    let mut costs = BOTH.map(|_| Costs::default());
    for (round, contender) in size.rounds.turns() {
        progress(&format!(
            "{size}, {}, round {} of {}",
            contender.name(),
            round + 1,
            size.rounds.of(contender)
        ));
        let costs = contender.of(costs.each_mut());
        *run += 1;
        let running = contender.start(cluster, *run).await?;
        cold_start(cluster, contender, &running, round, costs).await?;
        connect(cluster, &running, round, &mut costs.connect).await?;
        if size.is_changed() && plan.changes > 0 {
            idle(&running, Duration::from_secs(plan.idle), &mut costs.idle).await?;
            costs.changes.measure(cluster, &running, plan.changes).await?;
            restart(cluster, contender, &running, round, costs).await?;
        }
    }
    Ok(costs)
}

/// How long connections take once everything is programmed.
async fn connect(cluster: &Cluster, running: &Running, round: usize, samples: &mut Samples) -> Result<()> {
    for _ in 0..CONNECTIONS_TO_EACH {
        for vip in sample(&cluster.vips, round) {
            let start = Instant::now();
            lab::traffic::connect(&running.host.netns, None, vip).await?;
            samples.add_time(start.elapsed());
        }
    }
    Ok(())
}

/// Nothing of theirs changes; but another table comes, so that whoever compares the kernel with what he thinks of it from
/// time to time has a reason to.
async fn idle(running: &Running, time: Duration, samples: &mut Samples) -> Result<()> {
    let family = running.family()?;
    let before = family.processor_seconds()?;
    running.host.netns.tool("nft", &["add", "table", "inet", "beside"])?;
    sleep(time).await;
    samples.add((family.processor_seconds()? - before) / time.as_secs_f64());
    Ok(())
}

async fn cold_start(
    cluster: &Cluster,
    contender: Contender,
    running: &Running,
    round: usize,
    costs: &mut Costs,
) -> Result<()> {
    let family = running.family()?;
    let programmed = async {
        for vip in sample(&cluster.vips, round) {
            await_vip(running, vip).await?;
        }
        let cold = running.started.elapsed();
        costs.cold.add_time(cold);
        costs.processor_until_then.add(family.processor_seconds()?);
        let in_syncs = running.in_syncs().await?;
        costs.in_syncs.add(in_syncs);
        let name = contender.name();
        progress(&format!(
            "{name}: all VIPs answer after {:.3} s, of which it synced for {in_syncs:.3} s",
            cold.as_secs_f64()
        ));
        sleep(REST).await;
        anyhow::Ok(())
    };
    family.peak_during(&mut costs.peak, programmed).await?;
    costs.processor.add(family.processor_seconds()?);
    costs.rss.add(family.memory("VmRSS"));
    costs.hwm.add(family.memory("VmHWM"));
    Ok(())
}

/// Kills the program, changes the endpoints of a Service, and starts it again over its own rules.
async fn restart(
    cluster: &Cluster,
    contender: Contender,
    running: &Running,
    round: usize,
    costs: &mut Costs,
) -> Result<()> {
    let change = Change::of(cluster, round * 7919 + 17)?;
    running.program.kill().await?;
    cluster.move_endpoints(change.service, &change.after).await?;
    let started = running.resume().await?;
    let healthy = async {
        while running.healthy().await.is_err() {
            ensure!(started.elapsed() < PATIENCE, "{} does not become healthy", running.program.name());
            sleep(PAUSE).await;
        }
        Ok(started.elapsed())
    };
    let served = await_endpoint(&running.host.netns, change.vip, &change.after, started);
    let (healthy, served) = tokio::try_join!(healthy, served)?;
    costs.restart_healthy.add_time(healthy);
    costs.restart_served.add_time(served);
    progress(&format!("{}: back after {:.3} s", contender.name(), served.as_secs_f64()));
    cluster.move_endpoints(change.service, &change.before).await
}

/// The last, the first, and one out of each of as many equal parts between them; another one each round,
/// the same one for both programs.
pub(crate) fn sample(vips: &[SocketAddr], round: usize) -> Vec<SocketAddr> {
    let step = (vips.len() / SAMPLE).max(1);
    let between = vips.chunks(step).take(SAMPLE).enumerate().filter_map(|(part, vips)| {
        let mut hasher = DefaultHasher::new();
        (round, part).hash(&mut hasher);
        let chosen = usize::try_from(hasher.finish() >> 32).unwrap_or_default();
        vips.get(chosen % vips.len())
    });
    vips.last().into_iter().chain(vips.first()).chain(between).copied().collect()
}

pub(crate) async fn await_vip(running: &Running, vip: SocketAddr) -> Result<()> {
    loop {
        if let Ok(Ok(_)) = timeout(LOOK, reached(&running.host.netns, vip)).await {
            return Ok(());
        }
        ensure!(
            running.started.elapsed() < PATIENCE,
            "{} does not serve {vip}; its log ends with\n{}",
            running.program.name(),
            running.program.log_tail(5)
        );
        sleep(PAUSE).await;
    }
}

fn table(size: &Size, [ours, peer]: [Costs; 2]) -> Vec<Row> {
    type Of = fn(&Costs) -> &Samples;
    let rows: [(&str, Unit, Of); 15] = [
        ("cold start until all VIPs answer", Unit::Seconds, |c| &c.cold),
        ("of that, from the last object to the commit", Unit::Seconds, |c| &c.in_syncs),
        ("processor time until then, with children", Unit::Seconds, |c| &c.processor_until_then),
        ("processor time 10 s later, with children", Unit::Seconds, |c| &c.processor),
        ("VmRSS 10 s later", Unit::Mebibytes, |c| &c.rss),
        ("VmHWM 10 s later", Unit::Mebibytes, |c| &c.hwm),
        ("most memory at once, with children that ended", Unit::Mebibytes, |c| &c.peak),
        ("TCP handshake through a ClusterIP", Unit::Microseconds, |c| &c.connect),
        ("processor time when nothing changes", Unit::Percent, |c| &c.idle),
        ("lone change, same count", Unit::Milliseconds, |c| &c.changes.same_count),
        ("lone change, another count", Unit::Milliseconds, |c| &c.changes.other_count),
        ("processor time of a lone change", Unit::Milliseconds, |c| &c.changes.processor),
        ("changes back to back, each", Unit::Milliseconds, |c| &c.changes.back_to_back),
        ("restart until `/healthz` says 200", Unit::Seconds, |c| &c.restart_healthy),
        ("restart until a change made meanwhile is served", Unit::Seconds, |c| &c.restart_served),
    ];
    let row = |(what, unit, of): (&str, Unit, Of)| Row {
        what: format!("{size}: {what}"),
        unit,
        ours: of(&ours).clone(),
        peer: Some(of(&peer).clone()),
    };
    rows.into_iter().map(row).filter(|row| row.ours.median().is_some()).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_sample_has_the_ends_and_other_vips_each_round() {
        let vips: Vec<SocketAddr> = (1..=1000).map(|port| SocketAddr::from(([10, 96, 0, 1], port))).collect();
        let [first, second] = [0, 1].map(|round| sample(&vips, round));
        assert_eq!(first[..2], [vips[999], vips[0]]);
        assert_eq!(first.iter().collect::<BTreeSet<_>>().len(), SAMPLE + 2);
        assert_ne!(first, second);
        assert_eq!(sample(&vips[..3], 0).len(), 5, "few Services are all looked at");
    }
}
