//! Carries out what [`Tier`] plans: the API server through [`Marks`], the hosts through one
//! [`push::drive`] each. It lives as long as one leadership.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::Client;
use metal_lb_api::Host;
use service_model::{Service, ServiceName, World};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::client::HostClient;
use super::crds::IPAddressPoolStatus;
use super::document::Nodes;
use super::member_key::member_key;
use super::plan::Step;
use super::pool::Pool;
use super::push::{Shared, drive, issue};
use super::tier::{Applied, Tier};
use super::tls::TlsFiles;
use crate::desired::{Classes, Provider as Who, Verdict};
use crate::election::Role;
use crate::marks::{MarkError, Marks};
use crate::plan::{Note, Outcome, Plan, Report};

/// What the tier consists of and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The owner of the documents.
    pub cluster: String,
    /// Where the member key's Secret is.
    pub namespace: String,
    /// By name, which is also the order of their slots.
    pub endpoints: BTreeMap<String, SocketAddr>,
    pub tls: TlsFiles,
}

#[derive(Debug)]
pub struct Provider {
    shared: Arc<Shared>,
    marks: Marks,
    /// Ends with the provider.
    _drivers: JoinSet<()>,
}

/// Where the hosts probe one another (UDP).
const MEMBER_PORT: u16 = 7947;
/// A waiting Service is planned again when a host's answer changes; this is only the safety net.
const LOOK_AGAIN: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(1);

/// The members of the tier. Slots go by the order of names.
pub fn hosts(endpoints: &BTreeMap<String, SocketAddr>) -> Vec<Host> {
    let host = |(slot, (name, address)): (usize, (&String, &SocketAddr))| Host {
        name: name.clone(),
        address: SocketAddr::new(address.ip(), MEMBER_PORT),
        slot: u8::try_from(slot).expect("the number of endpoints is checked at the command line"),
    };
    endpoints.iter().enumerate().map(host).collect()
}

impl Provider {
    /// Takes over as the leader of `term`: hears the hosts, adopts what is recorded, and sends the
    /// first document.
    ///
    /// # Errors
    /// When the member key cannot be had.
    pub async fn begin(
        setup: &Setup,
        client: Client,
        term: u64,
        role: watch::Receiver<Role>,
        state: (&World, &Classes, Vec<Pool>),
    ) -> anyhow::Result<Self> {
        let key = member_key(client.clone(), &setup.namespace).await?;
        let mut tier = Tier::new(&setup.cluster, key, hosts(&setup.endpoints), term, Instant::now());
        let (world, classes, pools) = state;
        tier.set_pools(pools);
        let shared = Arc::new(Shared::new(tier));
        let mut drivers = JoinSet::new();
        for (name, address) in &setup.endpoints {
            let client = HostClient::new(name, *address, setup.tls.clone());
            drivers.spawn(drive(Arc::clone(&shared), name.clone(), *address, client, role.clone()));
        }
        issue(&shared, term, role, |tier| adopt(tier, world, classes)).await;
        Ok(Self { shared, marks: Marks::new(client), _drivers: drivers })
    }

    /// What would be done for a Service, in words.
    pub fn plan(&self, service: &Service) -> Plan<Step> {
        self.shared.with(|tier| tier.plan_serve(service, Instant::now()))
    }

    /// Brings a Service that is ours one plan further.
    pub async fn reconcile(&self, service: &Service) -> Report {
        let plan = self.shared.with(|tier| tier.plan_serve(service, Instant::now()));
        let blocked = plan.is_empty() && !self.shared.with(|tier| tier.holds_address(&service.name));
        let mut report = self.execute(service, plan).await;
        if blocked && report.outcome == Outcome::Converged {
            let why = report.notes.last().map(|n| n.message.clone()).unwrap_or_default();
            report.outcome = Outcome::Blocked { why };
        }
        report
    }

    /// Takes a Service back.
    pub async fn release(&self, service: &Service) -> Report {
        let plan = self.shared.with(|tier| tier.plan_release(service));
        self.execute(service, plan).await
    }

    /// The Service is gone, or neither ours nor marked by us.
    pub fn forget(&self, service: &ServiceName) {
        self.shared.with(|tier| tier.forget(service, Instant::now()));
    }

    pub fn nodes_changed(&self, world: &World) {
        self.shared.with(|tier| tier.set_nodes(Nodes::of(world)));
    }

    pub fn pools_changed(&self, pools: Vec<Pool>) {
        self.shared.with(|tier| tier.set_pools(pools));
    }

    /// Waits until Services are due for a reason that the API server does not know, and names them.
    pub async fn due(&self) -> BTreeSet<ServiceName> {
        self.shared.due().await;
        self.shared.with(Tier::take_due)
    }

    /// What each pool's status should show.
    pub fn pool_statuses(&self) -> BTreeMap<Box<str>, IPAddressPoolStatus> {
        self.shared.with(|tier| tier.pool_statuses())
    }

    /// Which balancer hosts answer.
    pub fn reachable_hosts(&self) -> BTreeMap<String, bool> {
        self.shared.with(|tier| tier.reachable())
    }

    async fn execute(&self, service: &Service, plan: Plan<Step>) -> Report {
        let mut report =
            Report { outcome: Outcome::Converged, ingress: None, notes: plan.notes, released: false };
        for step in plan.batches.into_iter().flatten() {
            if step.changes() {
                tracing::info!(service = %service.name, "{step}");
            }
            match self.apply(service, &step, &mut report).await {
                Ok(Applied::Done) => {}
                Ok(Applied::Waiting(why)) => {
                    self.explain_waiting(service, &why, &mut report);
                    break;
                }
                Err(error) => {
                    report.outcome = Outcome::Retry { after: RETRY, why: format!("{step}: {error:#}") };
                    break;
                }
            }
        }
        report
    }

    async fn apply(&self, service: &Service, step: &Step, report: &mut Report) -> anyhow::Result<Applied> {
        match step {
            Step::Record { ip, .. } => match self.marks.record(service, *ip).await {
                Ok(()) => Ok(Applied::Done),
                Err(MarkError::Gone) => Ok(Applied::Waiting("the Service is gone".to_owned())),
                Err(error) => Err(error.into()),
            },
            Step::Publish { ingress, .. } => {
                report.ingress = Some(vec![ingress.clone()]);
                let ip = ingress.ip.map(|ip| ip.to_string()).unwrap_or_default();
                let ready = format!("{ip} is programmed on a balancer host");
                report.notes.push(Note::normal("LoadBalancerReady", ready));
                Ok(Applied::Done)
            }
            Step::ClearStatus { .. } => {
                report.ingress = Some(Vec::new());
                Ok(Applied::Done)
            }
            Step::LetGo { .. } => {
                report.released = true;
                Ok(Applied::Done)
            }
            local => Ok(self.shared.with(|tier| tier.apply(local, Instant::now()))?),
        }
    }

    fn explain_waiting(&self, service: &Service, why: &str, report: &mut Report) {
        let (rejection, nobody) = self.shared.with(|tier| {
            let rejection = tier.rejection().map(|(text, culprit)| (text, culprit == Some(&service.name)));
            (rejection, tier.nobody_answers())
        });
        if let Some((text, culprit)) = rejection {
            let whose = if culprit { "this Service's fault" } else { "not this Service's fault; it waits" };
            report.notes.push(Note::warning("DocumentRefused", format!("{text} ({whose})")));
            report.outcome = Outcome::Blocked { why: text };
            return;
        }
        if nobody {
            report.notes.push(Note::warning(
                "NoBalancerHost",
                "no metal-lb host can be reached: see the log of cloud-controller for each of them",
            ));
        }
        report.outcome = Outcome::Retry { after: LOOK_AGAIN, why: why.to_owned() };
    }
}

/// Adopts what is recorded on the Services of the World.
pub fn adopt(tier: &mut Tier, world: &World, classes: &Classes) {
    let by_verdict = |wanted: fn(&Verdict) -> bool| -> Vec<&Service> {
        world.services().filter(|s| wanted(&classes.judge(s))).collect()
    };
    let serving = by_verdict(|v| v.serve == Some(Who::Metal));
    let leaving = by_verdict(|v| v.release.contains(&Who::Metal));
    tier.adopt_all(&serving, &leaving, Nodes::of(world));
}
