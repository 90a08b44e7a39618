//! Many cases at once: into the API server, through both programs, and asked from everywhere.

mod affinity;
mod objects;

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures::stream::{self, StreamExt};
use k8s_openapi::api::core::v1::Service;
use lab::wait;
use service_model::Protocol;

use crate::cases::Case;
use crate::difference::Difference;
use crate::fates::{Fate, Fates};
use crate::features::{Feature, Settings};
use crate::flows::{self, Flow};
use crate::foretold::Evaluator;
use crate::lab_of_two::LabOfTwo;
use crate::listing;
use crate::meant;
use crate::probe::{self, Call};
use crate::twin::{self, Source, Twin};
use crate::verdict::{Outcome, Verdict};

/// Flows that each source asks about at the same time.
const AT_ONCE: usize = 48;

/// The same, where most of the time is spent on waiting for what has been slow.
const SLOW_AT_ONCE: usize = 400;

/// The kernel answers in well under a millisecond. What was only slow is asked again.
const PATIENCE: Duration = Duration::from_millis(300);

/// When asked again: two retransmissions of a SYN.
pub(crate) const PATIENT: Duration = Duration::from_millis(3500);

/// When simpler cases are looked for, where a mistake costs little: one retransmission.
pub(crate) const BRISK: Duration = Duration::from_millis(1200);

/// How often the twins are asked again where they do not agree.
const ROUNDS: usize = 3;

const CATCH_UP: Duration = Duration::from_secs(60);

/// No Service has these: the allocator has not come that far.
const UNALLOCATED: [&str; 2] = ["10.111.255.250", "fd00:10:96::fff0"];

#[derive(Debug, Default)]
pub(crate) struct Judged {
    pub flows: usize,
    fates: Fates,
    meant: BTreeSet<&'static str>,
    /// Between the twins.
    differences: Vec<Difference>,
    /// Where node-agent's evaluator and the kernel do not agree.
    not_foretold: Vec<Difference>,
    /// Until the programs had caught up, and then until everything was asked once.
    times: [Duration; 2],
}

impl LabOfTwo {
    /// Both twins' verdicts on every flow of the cases. Where they do not agree they are asked again,
    /// with that much patience, until nothing changes.
    ///
    /// # Errors
    /// When the API server refuses an object, a program does not catch up, or `nft` does not
    /// understand node-agent's rules.
    pub(crate) async fn judge(&self, cases: &[Case], settings: &Settings, again: Duration) -> Result<Judged> {
        let started = Instant::now();
        let services = self.load(cases).await?;
        let loaded = started.elapsed();
        let flows = self.flows(&services, settings)?;
        for twin in self.twins() {
            twin.forget_connections()?;
        }
        let mut judged = Judged { flows: flows.len(), ..Judged::default() };
        let mut asked: Vec<Asked> = flows.into_iter().map(Asked::new).collect();
        self.ask(&mut asked, PATIENCE).await?;
        judged.differences = self.wanderers(&services, &asked).await?;
        judged.times = [loaded, started.elapsed() - loaded];
        listing::check(&self.node_agent)?;
        let evaluator = Evaluator::of(&self.node_agent)?;
        judged.fates = self.fates(&evaluator, &asked);
        let opinion = |flow: &Flow| evaluator.opinion(&self.node_agent, flow);
        let same = |flow: &Flow, verdicts: [&Verdict; 2]| {
            meant::same(&cases[flow.case], &services[flow.case], flow, verdicts, || opinion(flow))
        };
        judged.not_foretold = self.not_foretold(&evaluator, &services, &asked, again).await?;
        for _ in 0..ROUNDS {
            asked.retain(|asked| !same(&asked.flow, asked.verdicts.each_ref()));
            let before: Vec<_> = asked.iter().map(|asked| asked.verdicts.clone()).collect();
            self.ask(&mut asked, again).await?;
            if asked.iter().zip(&before).all(|(asked, before)| asked.verdicts == *before) {
                break;
            }
        }
        for Asked { flow, verdicts } in asked {
            let (service, verdicts) = (&services[flow.case], verdicts.each_ref());
            if same(&flow, verdicts) {
                continue;
            }
            match meant::exception(service, &flow, &verdicts) {
                Some(heading) => drop(judged.meant.insert(heading)),
                None => {
                    let difference = Difference::of_twins(flow, verdicts).beside(&opinion(&flow));
                    judged.differences.push(difference);
                }
            }
        }
        Ok(judged)
    }

    /// What `node-agent explain` would be wrong about.
    async fn not_foretold(
        &self,
        evaluator: &Evaluator,
        services: &[Service],
        asked: &[Asked],
        again: Duration,
    ) -> Result<Vec<Difference>> {
        let twin = &self.node_agent;
        let wrong = |flow: &Flow, verdict: &Verdict| {
            let opinion = evaluator.opinion(twin, flow);
            let holds = opinion.holds(&services[flow.case], flow, verdict);
            (!holds).then(|| Difference::of_opinion(*flow, &opinion, verdict))
        };
        let mut asked: Vec<Asked> = asked
            .iter()
            // What is sent to loopback is taken by a socket of node-agent's, which no rule tells of.
            .filter(|asked| !asked.flow.destination.ip().is_loopback())
            .filter(|asked| wrong(&asked.flow, &asked.verdicts[1]).is_some())
            .map(|asked| Asked {
                flow: asked.flow,
                verdicts: [evaluator.opinion(twin, &asked.flow).sought(), asked.verdicts[1].clone()],
            })
            .collect();
        // Most were only unlucky, or met with silence first: an ICMPv6 error that arrives while its `connect` holds the
        // socket is lost, and so is one now and then on a machine that has too much to do. What the rules do they do
        // each time.
        for patience in [BRISK, again, again, again] {
            asked.retain(|asked| wrong(&asked.flow, &asked.verdicts[1]).is_some());
            if asked.is_empty() {
                break;
            }
            let verdicts = ask_twin(twin, 1, &asked, patience).await?;
            for (asked, verdict) in asked.iter_mut().zip(verdicts) {
                asked.verdicts[1] = verdict;
            }
        }
        Ok(asked.iter().filter_map(|asked| wrong(&asked.flow, &asked.verdicts[1])).collect())
    }

    /// What became of the flows on kube-proxy's twin.
    fn fates(&self, evaluator: &Evaluator, asked: &[Asked]) -> Fates {
        let mut fates = Fates::default();
        for Asked { flow, verdicts } in asked {
            let own = twin::address_of(&self.kube_proxy, flow.source, flow.destination.ip());
            let Some(outcome) = verdicts[0].0.first() else { continue };
            let silent = || evaluator.opinion(&self.node_agent, flow).admits(flow, &verdicts[0]);
            fates.add(match Fate::of(flow.source, own, outcome) {
                Fate::Silent if !silent() => Fate::Slow,
                fate => fate,
            });
        }
        fates
    }

    fn flows(&self, services: &[Service], settings: &Settings) -> Result<Vec<Flow>> {
        let node = self.kube_proxy.node.addresses();
        let mut flows = Vec::new();
        for (case, service) in services.iter().enumerate() {
            flows.extend(flows::of_service(case, service, node, settings)?);
            if self.setup.loopback {
                flows.extend(flows::on_loopback(case, service)?);
            }
        }
        if settings.has(Feature::UnallocatedAddresses) && !services.is_empty() {
            let addresses = UNALLOCATED.map(|ip| ip.parse().expect("an address is written there"));
            flows.extend(flows::of_nobody(0, &addresses));
        }
        flows.retain(|flow| (self.setup.asks)(flow.source, flow.frontend));
        Ok(flows)
    }

    async fn ask(&self, asked: &mut [Asked], patience: Duration) -> Result<()> {
        let [theirs, ours] = self.twins();
        let (theirs, ours) =
            tokio::try_join!(ask_twin(theirs, 0, asked, patience), ask_twin(ours, 1, asked, patience))?;
        for (asked, verdicts) in asked.iter_mut().zip(theirs.into_iter().zip(ours)) {
            asked.verdicts = verdicts.into();
        }
        Ok(())
    }

    /// Returns once both programs serve the addresses, which are those of the Service made last.
    async fn await_twins(&self, addresses: &[IpAddr]) -> Result<()> {
        for twin in self.twins() {
            for ip in addresses {
                let call =
                    Call { source: None, destination: SocketAddr::new(*ip, 80), protocol: Protocol::Tcp };
                let what = format!("{} serves the last Service", twin.node.netns.name());
                wait::until(&what, CATCH_UP, async || {
                    let tried = twin.handle(Source::Node).spawn(call.once(PATIENCE)).await?;
                    match tried {
                        Outcome::Reached { .. } => Ok(()),
                        other => bail!("{call:?}: {other}"),
                    }
                })
                .await?;
            }
        }
        Ok(())
    }
}

/// A flow, and what both twins made of it so far.
struct Asked {
    flow: Flow,
    verdicts: [Verdict; 2],
}

impl Asked {
    fn new(flow: Flow) -> Self {
        Self { flow, verdicts: Default::default() }
    }
}

/// The verdicts of one twin, in order. All sources ask at the same time.
async fn ask_twin(twin: &Twin, which: usize, asked: &[Asked], patience: Duration) -> Result<Vec<Verdict>> {
    let at_once = if patience > PATIENCE { SLOW_AT_ONCE } else { AT_ONCE };
    let tasks = Source::ALL.map(|source| {
        let of_source = asked.iter().enumerate().filter(|(_, asked)| asked.flow.source == source);
        let calls: Vec<(usize, Call, [Verdict; 2])> = of_source
            .map(|(nth, asked)| {
                let [own, elsewhere] = [&asked.verdicts[which], &asked.verdicts[1 - which]];
                // A silence that both met with is looked into, not waited for again.
                let sought = if own == elsewhere { elsewhere.certain() } else { elsewhere.clone() };
                (nth, asked.flow.call(), [own.certain(), sought])
            })
            .collect();
        let verdicts = stream::iter(calls).map(move |(nth, call, [before, elsewhere])| async move {
            (nth, probe::verdict(call, patience, before, &elsewhere).await)
        });
        twin.handle(source).spawn(verdicts.buffer_unordered(at_once).collect::<Vec<_>>())
    });
    let mut verdicts = vec![Verdict::default(); asked.len()];
    for task in tasks {
        for (nth, verdict) in task.await.context("asking")? {
            verdicts[nth] = verdict;
        }
    }
    Ok(verdicts)
}

impl Judged {
    pub(crate) fn fates(&self) -> &Fates {
        &self.fates
    }

    /// The cases that the twins do not agree on, or the evaluator and the kernel.
    pub(crate) fn different_cases(&self) -> BTreeSet<usize> {
        self.all().map(|difference| difference.flow.case).collect()
    }

    pub(crate) fn of_case(&self, case: usize) -> Vec<Difference> {
        self.all().filter(|difference| difference.flow.case == case).cloned().collect()
    }

    fn all(&self) -> impl Iterator<Item = &Difference> {
        self.differences.iter().chain(&self.not_foretold)
    }
}

impl fmt::Display for Judged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [loaded, asked] = self.times.map(|time| time.as_secs_f32());
        write!(
            f,
            "{} flows ({}), {} differ, {} not foretold; loaded in {loaded:.1} s, asked in {asked:.1} s",
            self.flows,
            self.fates,
            self.differences.len(),
            self.not_foretold.len()
        )?;
        self.meant.iter().try_for_each(|heading| write!(f, "; meant: {heading}"))
    }
}
