//! What a node's proxy costs with many Services, ours beside the real kube-proxy, turn by turn.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::netns::Netns;
use tokio::time::{sleep, timeout};

use crate::cluster::{Cluster, endpoint, reached};
use crate::contender::{BOTH, Contender, Running};
use crate::figures::{Row, Samples, Unit};
use crate::{Plan, progress};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(2);
const LOOK: Duration = Duration::from_millis(100);
const PATIENCE: Duration = Duration::from_secs(180);

/// VIPs that are looked at beside the first and the last.
const SAMPLE: usize = 48;

/// Memory and processor time are looked at so long after everything is programmed: the `nft` that
/// kube-proxy runs has ended by then, and counts.
const REST: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Default)]
struct Costs {
    cold: Samples,
    processor: Samples,
    rss: Samples,
    peak: Samples,
    same_count: Samples,
    other_count: Samples,
}

pub(crate) async fn measure(plan: &Plan) -> Result<Vec<Row>> {
    progress("starting a control plane");
    let mut cluster = Cluster::start().await?;
    let mut rows = Vec::new();
    let mut run = 0;
    for size in &plan.sizes {
        cluster.grow_to(size.services).await?;
        let mut costs = BOTH.map(|contender| (contender, Costs::default()));
        for round in 0..size.rounds {
            for (contender, costs) in &mut costs {
                run += 1;
                let changes = if round == 0 { plan.changes } else { 0 };
                one_run(&cluster, *contender, run, changes, costs).await?;
            }
        }
        rows.extend(table(size.services, costs));
    }
    Ok(rows)
}

async fn one_run(
    cluster: &Cluster,
    contender: Contender,
    run: usize,
    changes: usize,
    costs: &mut Costs,
) -> Result<()> {
    let running = contender.start(cluster, run).await?;
    for vip in sample(&cluster.vips) {
        await_vip(&running, vip).await?;
    }
    let cold = running.started.elapsed();
    costs.cold.add_time(cold);
    progress(&format!(
        "{} with {} Services: all VIPs answer after {:.3} s",
        contender.name(),
        cluster.vips.len(),
        cold.as_secs_f64()
    ));
    sleep(REST).await;
    costs.processor.add(running.processor_seconds()?);
    costs.rss.add(running.memory("VmRSS")?);
    costs.peak.add(running.memory("VmHWM")?);
    for nth in 0..changes {
        change(cluster, &running.host.netns, nth, costs).await?;
    }
    Ok(())
}

/// The first, the last, and some between that are spread evenly.
fn sample(vips: &[SocketAddr]) -> Vec<SocketAddr> {
    let step = (vips.len() / (SAMPLE + 1)).max(1);
    let between = vips.iter().skip(step).step_by(step).take(SAMPLE);
    vips.last().into_iter().chain(vips.first()).chain(between).copied().collect()
}

async fn await_vip(running: &Running, vip: SocketAddr) -> Result<()> {
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

/// From the API server's answer to a patch until a connection reaches a new endpoint. The patch leaves
/// the count as it was, or changes it, by turns; the next one finds two endpoints again.
async fn change(cluster: &Cluster, netns: &Netns, nth: usize, costs: &mut Costs) -> Result<()> {
    let service = (nth * 7919) % cluster.vips.len();
    let vip = *cluster.vips.get(service).context("there are Services")?;
    let (before, after) =
        ([endpoint(service, 0), endpoint(service, 1)], [endpoint(service, 2), endpoint(service, 3)]);
    let wanted = if nth.is_multiple_of(2) { &after[..] } else { &after[..1] };
    let samples = if nth.is_multiple_of(2) { &mut costs.same_count } else { &mut costs.other_count };
    cluster.move_endpoints(service, wanted).await?;
    samples.add_time(await_endpoint(netns, vip, wanted).await?);
    cluster.move_endpoints(service, &before).await?;
    await_endpoint(netns, vip, &before).await?;
    Ok(())
}

async fn await_endpoint(netns: &Netns, vip: SocketAddr, wanted: &[Ipv4Addr]) -> Result<Duration> {
    let answered = Instant::now();
    loop {
        if let Ok(Ok(endpoint)) = timeout(LOOK, reached(netns, vip)).await
            && wanted.contains(&endpoint)
        {
            return Ok(answered.elapsed());
        }
        ensure!(answered.elapsed() < PATIENCE, "{vip} never reached {wanted:?}");
        sleep(Duration::from_millis(1)).await;
    }
}

fn table(services: usize, costs: [(Contender, Costs); 2]) -> Vec<Row> {
    let [(_, ours), (_, peer)] = costs;
    let row = |what: &str, unit, of: fn(&Costs) -> &Samples| Row {
        what: format!("{services} Services × 2 endpoints: {what}"),
        unit,
        ours: of(&ours).clone(),
        peer: Some(of(&peer).clone()),
    };
    vec![
        row("cold start until all VIPs answer", Unit::Seconds, |c| &c.cold),
        row("processor time of the start, taken 10 s later", Unit::Seconds, |c| &c.processor),
        row("VmRSS 10 s later", Unit::Mebibytes, |c| &c.rss),
        row("VmHWM", Unit::Mebibytes, |c| &c.peak),
        row("a lone change of endpoints, same count", Unit::Milliseconds, |c| &c.same_count),
        row("a lone change of endpoints, another count", Unit::Milliseconds, |c| &c.other_count),
    ]
}
