//! Observe, plan, apply, report: one Service at a time, any number of Services at once.

use std::collections::BTreeSet;
use std::time::Duration;

use service_model::{Ingress, IngressPort, Service, World};
use tokio::sync::RwLock;

use super::api::{Api, ApiError, ApiResult, ErrorKind, NO_CREDENTIALS};
use super::apply::{Mirror, StepError, apply};
use super::desired::{Desired, desired, identity};
use super::names::Identity;
use super::plan::{Decision, Obstacle, release, serve};
use super::resources::{LoadBalancer, Target};
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
    look_again_after: Duration,
}

/// A plan, once carried out, leaves nothing to do; a second round is for what changed meanwhile.
const ROUNDS: usize = 4;
/// AWS takes seconds to minutes to let go of a load balancer's network interfaces.
const WHEN_IN_USE: Duration = Duration::from_secs(2);
const WHEN_UNKNOWN: Duration = Duration::from_secs(5);
const WHEN_THROTTLED: Duration = Duration::from_secs(10);
/// Someone has to act outside the cluster, and nothing tells us when they have.
const WHEN_DENIED: Duration = Duration::from_secs(60);
/// Shorter than [`WHEN_DENIED`]; many Services that are in the same trouble share one listing.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// How a job ended, before it is told.
struct Ended {
    outcome: Outcome,
    notes: Vec<Note>,
    changed: bool,
}

impl Provider<Sdk> {
    pub async fn new(setup: &Setup) -> Self {
        Self::with_api(Sdk::connect(setup).await, &setup.cluster, &setup.vpc)
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
            look_again_after: LOOK_AGAIN_AFTER,
        }
    }

    /// How old a listing may be when a Service is refused for what it shows.
    #[must_use]
    pub fn looking_again_after(self, pause: Duration) -> Self {
        Self { look_again_after: pause, ..self }
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
        let ended = self.drive(&id, |observed, refused| decide(&wanted, refused, observed)).await;
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
        let mut ended = self.drive(&id, |observed, _| release(service, observed)).await;
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
        let refused = BTreeSet::new();
        Ok(self.decide(&id, |observed| decide(&wanted, &refused, observed)).await?.plan)
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
    async fn drive(
        &self,
        id: &Identity,
        decide: impl Fn(&Observed<'_>, &BTreeSet<String>) -> Decision,
    ) -> Ended {
        let (mut changed, mut rounds, mut refused) = (false, 0, Refused::default());
        while rounds < ROUNDS {
            rounds += 1;
            let decided = self.decide_lately(id, |observed| decide(observed, &refused.instances)).await;
            let Decision { plan, blocked } = match decided {
                Ok(decision) => decision,
                Err(error) => return self.failed("reading the account", &error, Vec::new(), changed),
            };
            if plan.is_empty() {
                return refused.end(blocked, plan.notes, changed);
            }
            changed = true;
            match self.execute(&plan.batches).await {
                Ok(()) => {}
                // The mirror knows better now, or is read again: plan anew.
                Err((_, StepError::Foreign(_))) => {}
                Err((_, StepError::Lost(_))) => self.mirror.replace(None),
                Err((Step::RegisterTargets { targets, .. }, StepError::Api(error)))
                    if refused.take(&targets, &error) =>
                {
                    // Each time there is one instance less.
                    rounds -= 1;
                }
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

    /// As [`Self::decide`]; but what is in the way in the account is looked at again, in case that
    /// somebody has removed it.
    async fn decide_lately(
        &self,
        id: &Identity,
        decide: impl Fn(&Observed<'_>) -> Decision,
    ) -> ApiResult<Decision> {
        let decision = self.decide(id, &decide).await?;
        let old = || self.mirror.age().is_some_and(|age| age >= self.look_again_after);
        if !matches!(decision.blocked, Some((Obstacle::Account, _))) || !old() {
            return Ok(decision);
        }
        {
            let _alone = self.listing.write().await;
            // Another Service may have been faster.
            if old() {
                let listed = observe::bulk(&self.api, &self.vpc).await?;
                let kept = self.mirror.read(|earlier| listed.clone().with_details_of(earlier, id));
                self.mirror.replace(Some(kept.unwrap_or(listed)));
            }
        }
        self.decide(id, decide).await
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
                Outcome::Retry { after: WHEN_DENIED, why }
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

/// Instances that AWS did not take as targets: their Node is still there, and they are stopped or
/// gone. One of them costs the whole call, so the others are registered without it.
#[derive(Default)]
struct Refused {
    instances: BTreeSet<String>,
    why: String,
}

impl Refused {
    /// Whether the error is about some of the targets, which are left out from now on.
    fn take(&mut self, targets: &[Target], error: &ApiError) -> bool {
        if error.code != "InvalidTarget" {
            return false;
        }
        let is_of_id = |c: char| c.is_ascii_alphanumeric() || c == '-';
        let words: BTreeSet<&str> = error.message.split(|c| !is_of_id(c)).collect();
        let alone = targets.len() == 1;
        let named = targets.iter().map(|t| &t.instance).filter(|i| alone || words.contains(i.as_str()));
        let before = self.instances.len();
        self.instances.extend(named.cloned());
        self.why.clone_from(&error.message);
        self.instances.len() > before
    }

    /// How it ended when there is nothing left to do.
    fn end(self, blocked: Option<(Obstacle, String)>, mut notes: Vec<Note>, changed: bool) -> Ended {
        let outcome = match blocked {
            Some((Obstacle::Service, why)) => Outcome::Blocked { why },
            Some((Obstacle::Account, why)) => Outcome::Retry { after: WHEN_DENIED, why },
            None if self.instances.is_empty() => Outcome::Converged,
            None => {
                let instances: Vec<String> = self.instances.into_iter().collect();
                let why = format!("AWS does not take {} as targets: {}", instances.join(", "), self.why);
                let note = format!("{why}. The others are registered, and these are tried again");
                notes.push(Note::warning("TargetRefused", note));
                Outcome::Retry { after: WHEN_DENIED, why }
            }
        };
        Ended { outcome, notes, changed }
    }
}

fn decide(
    wanted: &Result<(Desired, Vec<Note>), Vec<Note>>,
    refused: &BTreeSet<String>,
    observed: &Observed<'_>,
) -> Decision {
    match wanted {
        Ok((desired, remarks)) => serve(desired, refused, remarks.clone(), observed),
        Err(mistakes) => Decision::blocked(Obstacle::Service, mistakes.clone()),
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
