//! Observe, plan, apply, report: one Service at a time, any number of Services at once.

use std::time::Duration;

use service_model::{Ingress, IngressPort, Service, World};
use tokio::sync::RwLock;

use super::api::{Api, ApiError, ApiResult, ErrorKind, NO_CREDENTIALS};
use super::apply::{Mirror, StepError, apply};
use super::desired::{Desired, desired, identity};
use super::names::Identity;
use super::plan::{Decision, release, serve};
use super::resources::LoadBalancer;
use super::sdk::Sdk;
use super::snapshot::Observed;
use super::step::Step;
use super::{Setup, observe};
use crate::plan::{Note, Outcome, Plan, Report};

/// Plans and carries out for all AWS Services of one cluster in one VPC.
#[derive(Debug)]
pub struct Provider<A = Sdk> {
    api: A,
    cluster: String,
    vpc: String,
    mirror: Mirror,
    /// Held shared by who writes to the account, alone by who lists it: a list that began before a
    /// write must not replace a mirror that knows of it.
    listing: RwLock<()>,
}

/// A plan, once carried out, leaves nothing to do; a second round is for what changed meanwhile.
const ROUNDS: usize = 4;
/// AWS takes seconds to minutes to let go of a load balancer's network interfaces.
const WHEN_IN_USE: Duration = Duration::from_secs(2);
const WHEN_UNKNOWN: Duration = Duration::from_secs(5);
const WHEN_THROTTLED: Duration = Duration::from_secs(10);
/// Someone has to act outside the cluster, and nothing tells us when they have.
const WHEN_DENIED: Duration = Duration::from_secs(60);

/// How a job ended, before it is told.
struct Ended {
    outcome: Outcome,
    notes: Vec<Note>,
    changed: bool,
}

impl Provider<Sdk> {
    /// # Errors
    /// What the setup lacks.
    pub async fn new(setup: &Setup) -> anyhow::Result<Self> {
        let api = Sdk::connect(setup).await?;
        Ok(Self::with_api(api, &setup.cluster, &setup.vpc))
    }
}

impl<A: Api> Provider<A> {
    pub fn with_api(api: A, cluster: &str, vpc: &str) -> Self {
        Self {
            api,
            cluster: cluster.to_owned(),
            vpc: vpc.to_owned(),
            mirror: Mirror::default(),
            listing: RwLock::new(()),
        }
    }

    /// What AWS is reached through.
    pub fn api(&self) -> &A {
        &self.api
    }

    /// On every Service that has something in AWS; AWS Load Balancer Controller's.
    pub fn finalizer() -> &'static str {
        super::FINALIZER
    }

    /// Gives the Service its load balancer, or brings the one it has in line.
    pub async fn reconcile(&self, service: &Service, world: &World) -> Report {
        let id = identity(service, &self.cluster);
        let wanted = desired(service, world, &self.cluster);
        let ended = self.drive(&id, |observed| decide(&wanted, observed)).await;
        let mut report = Report {
            outcome: ended.outcome,
            ingress: self.ingress(&id, wanted.as_ref().ok().map(|(d, _)| d)),
            notes: ended.notes,
            released: false,
        };
        if let (true, Outcome::Converged, Some(Some(Ingress { hostname: Some(name), .. }))) =
            (ended.changed, &report.outcome, report.ingress.as_ref().map(|i| i.first()))
        {
            let ready = format!("load balancer {name} is as the Service wants it");
            report.notes.push(Note::normal("EnsuredLoadBalancer", ready));
        }
        report
    }

    /// Takes away everything that was made for the Service.
    pub async fn release(&self, service: &Service) -> Report {
        let id = identity(service, &self.cluster);
        let mut ended = self.drive(&id, |observed| release(service, observed)).await;
        let released = ended.outcome == Outcome::Converged;
        if released && ended.changed {
            ended.notes.push(Note::normal(
                "DeletedLoadBalancer",
                "deleted the load balancer and what belonged to it",
            ));
        }
        // Another provider may serve it by now; addresses without a name are not ours.
        let published = service.ingress.iter().any(|entry| entry.hostname.is_some());
        let ingress = (released && published).then(Vec::new);
        Report { outcome: ended.outcome, ingress, notes: ended.notes, released }
    }

    /// What [`Self::reconcile`] would do now.
    ///
    /// # Errors
    /// What of the account could not be read.
    pub async fn plan(&self, service: &Service, world: &World) -> ApiResult<Plan<Step>> {
        let id = identity(service, &self.cluster);
        let wanted = desired(service, world, &self.cluster);
        Ok(self.decide(&id, |observed| decide(&wanted, observed)).await?.plan)
    }

    /// What [`Self::release`] would do now.
    ///
    /// # Errors
    /// What of the account could not be read.
    pub async fn plan_release(&self, service: &Service) -> ApiResult<Plan<Step>> {
        let id = identity(service, &self.cluster);
        Ok(self.decide(&id, |observed| release(service, observed)).await?.plan)
    }

    /// Carries out batches of a plan that was made from the present snapshot.
    ///
    /// # Errors
    /// The step at which it ended, and why.
    pub async fn execute(&self, batches: &[Vec<Step>]) -> Result<(), (Step, StepError)> {
        let _writing = self.listing.read().await;
        for step in batches.iter().flatten() {
            tracing::info!("{step}");
            if let Err(error) = apply(&self.api, &self.vpc, &self.mirror, step).await {
                return Err((step.clone(), error));
            }
        }
        Ok(())
    }

    /// Plans and applies until there is nothing left to do, or nothing can be done now.
    #[tracing::instrument(name = "aws", skip_all, fields(service = %id.service))]
    async fn drive(&self, id: &Identity, decide: impl Fn(&Observed<'_>) -> Decision) -> Ended {
        let mut changed = false;
        for _ in 0..ROUNDS {
            let Decision { plan, blocked } = match self.decide(id, &decide).await {
                Ok(decision) => decision,
                Err(error) => return self.failed("reading the account", &error, Vec::new(), changed),
            };
            if plan.is_empty() {
                let outcome = blocked.map_or(Outcome::Converged, |why| Outcome::Blocked { why });
                return Ended { outcome, notes: plan.notes, changed };
            }
            changed = true;
            match self.execute(&plan.batches).await {
                Ok(()) => {}
                // The mirror knows better now, or is read again: plan anew.
                Err((_, StepError::Foreign(_))) => {}
                Err((_, StepError::Lost(_))) => self.mirror.replace(None),
                Err((step, StepError::Api(error))) => {
                    if matches!(error.kind, ErrorKind::NotFound | ErrorKind::Duplicate) {
                        tracing::info!("{step}: {error}: reading the account again");
                        self.mirror.replace(None);
                    } else {
                        if error.kind == ErrorKind::InUse {
                            self.look_what_holds().await;
                        }
                        return self.failed(&step.to_string(), &error, plan.notes, changed);
                    }
                }
            }
        }
        let why = "AWS's answers differ from what was done; trying again".to_owned();
        self.mirror.replace(None);
        Ended { outcome: Outcome::Retry { after: WHEN_UNKNOWN, why }, notes: Vec::new(), changed }
    }

    /// Decides from the mirror, after reading what it lacks.
    async fn decide(&self, id: &Identity, decide: impl Fn(&Observed<'_>) -> Decision) -> ApiResult<Decision> {
        loop {
            match self.mirror.read(|snapshot| snapshot.observed(id).map(|o| decide(&o))) {
                Some(Ok(decision)) => return Ok(decision),
                Some(Err(lacking)) => {
                    let _reading = self.listing.read().await;
                    if let Err(error) = observe::details(&self.api, &self.mirror, &lacking).await {
                        // It may name what is gone.
                        self.mirror.replace(None);
                        return Err(error);
                    }
                }
                None => {
                    let _alone = self.listing.write().await;
                    if self.mirror.read(|_| ()).is_none() {
                        let snapshot = observe::bulk(&self.api, &self.vpc).await?;
                        self.mirror.replace(Some(snapshot));
                    }
                }
            }
        }
    }

    /// A group that AWS does not delete may be referred to by a rule that we do not know of.
    async fn look_what_holds(&self) {
        let _alone = self.listing.write().await;
        if let Err(error) = observe::security_groups(&self.api, &self.vpc, &self.mirror).await {
            tracing::warn!("looking for what holds a security group: {error}");
        }
    }

    fn failed(&self, doing: &str, error: &ApiError, mut notes: Vec<Note>, changed: bool) -> Ended {
        let why = format!("{doing}: {error}");
        let outcome = match error.kind {
            ErrorKind::InUse => Outcome::Retry { after: WHEN_IN_USE, why },
            ErrorKind::Throttled => Outcome::Retry { after: WHEN_THROTTLED, why },
            ErrorKind::Unknown | ErrorKind::NotFound | ErrorKind::Duplicate => {
                self.mirror.replace(None);
                Outcome::Retry { after: WHEN_UNKNOWN, why }
            }
            ErrorKind::Denied => {
                notes.push(Note::warning("AccessDenied", format!("{why}. {}", how_to_allow(error))));
                Outcome::Retry { after: WHEN_DENIED, why }
            }
            ErrorKind::Limit => {
                let hint = format!("{why}. Ask AWS to raise the quota, or free what is not needed");
                notes.push(Note::warning("QuotaExceeded", hint));
                Outcome::Retry { after: WHEN_DENIED, why }
            }
            ErrorKind::Refused => {
                notes.push(Note::warning("RefusedByAws", why.clone()));
                Outcome::Blocked { why }
            }
        };
        Ended { outcome, notes, changed }
    }

    /// What the status should show: the host name as soon as there is a load balancer.
    fn ingress(&self, id: &Identity, desired: Option<&Desired>) -> Option<Vec<Ingress>> {
        let of = |snapshot: &super::snapshot::Snapshot| {
            let observed = snapshot.observed(id).ok()?;
            let found = observed.load_balancer()?;
            let ports = match desired {
                Some(desired) => ports(desired.listeners.values().map(|l| (l.port, l.protocol))),
                None => ports(found.detail.listeners.values().map(|l| (l.port, l.protocol))),
            };
            Some(vec![entry(found.resource, ports)])
        };
        self.mirror.read(of).flatten()
    }
}

fn decide(wanted: &Result<(Desired, Vec<Note>), Vec<Note>>, observed: &Observed<'_>) -> Decision {
    match wanted {
        Ok((desired, remarks)) => serve(desired, remarks.clone(), observed),
        Err(mistakes) => Decision::blocked(mistakes.clone()),
    }
}

fn how_to_allow(error: &ApiError) -> String {
    if error.code == NO_CREDENTIALS {
        return "Give the controller's ServiceAccount an IAM role: see terraform/modules/iam".to_owned();
    }
    let action = error.operation.iam_action();
    format!("The controller's role needs {action}: see deploy/iam/policy.json")
}

fn entry(balancer: &LoadBalancer, ports: Vec<IngressPort>) -> Ingress {
    let hostname = Some(balancer.dns_name.to_lowercase().into());
    Ingress { ip: None, hostname, ip_mode: None, ports }
}

fn ports(listeners: impl Iterator<Item = (u16, super::resources::Protocol)>) -> Vec<IngressPort> {
    let of = |(port, protocol): (u16, super::resources::Protocol)| {
        protocol.of_service().iter().map(move |protocol| IngressPort { port, protocol: *protocol })
    };
    listeners.flat_map(of).collect()
}
