//! Leader election on a `coordination.k8s.io` Lease: [`sm`] decides, this carries it out.

pub mod sm;

use std::time::{Duration, Instant};

use anyhow::Context;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use sm::{Decision, Machine, Seen};
pub use sm::{Role, Timing};

/// The Lease that all replicas contend for.
pub const LEASE_NAME: &str = "fairlead-cloud-controller";

/// How long a release may take at the end.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Debug)]
pub struct Election {
    api: Api<Lease>,
    identity: String,
    timing: Timing,
    machine: Machine,
}

impl Election {
    pub fn new(client: Client, namespace: &str, identity: &str, timing: Timing) -> Self {
        Self {
            api: Api::namespaced(client, namespace),
            identity: identity.to_owned(),
            timing,
            machine: Machine::new(identity, timing),
        }
    }

    /// Contends until cancelled, and tells the role whenever it changes or is confirmed. The Lease
    /// is released at the end, so cancel only when nothing is being written any more.
    ///
    /// # Errors
    /// None: an API server that cannot be reached costs the leadership, and is tried again.
    pub async fn run(mut self, role: watch::Sender<Role>, cancel: CancellationToken) -> anyhow::Result<()> {
        loop {
            let begun = Instant::now();
            let deadline = self.machine.deadline().unwrap_or(begun + self.timing.renew);
            tokio::select! {
                () = cancel.cancelled() => break,
                tried = tokio::time::timeout_at(deadline.into(), self.contend(begun)) => {
                    if let Some(error) = tried.map_err(anyhow::Error::from).flatten().err() {
                        self.machine.failed(Instant::now());
                        tracing::warn!("leader election: {error:#}; trying again");
                    }
                }
            }
            tell(&role, self.machine.role(Instant::now()));
            let next = begun + self.timing.retry;
            let wake = self.machine.deadline().map_or(next, |d| d.min(next));
            tokio::select! {
                () = cancel.cancelled() => break,
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            tell(&role, self.machine.role(Instant::now()));
        }
        let led = matches!(self.machine.role(Instant::now()), Role::Leading { .. });
        tell(&role, Role::Standby);
        if led {
            match tokio::time::timeout(RELEASE_TIMEOUT, self.release()).await {
                Ok(Ok(())) => tracing::info!("released the Lease"),
                Ok(Err(error)) => tracing::warn!("releasing the Lease: {error:#}; it will expire"),
                Err(_) => tracing::warn!("releasing the Lease took too long; it will expire"),
            }
        }
        Ok(())
    }

    async fn contend(&mut self, begun: Instant) -> anyhow::Result<()> {
        let lease = self.api.get_opt(LEASE_NAME).await.context("reading the Lease")?;
        let Decision::Write { transitions } = self.machine.read(lease.as_ref().map(seen), Instant::now())
        else {
            return Ok(());
        };
        let now = MicroTime(Timestamp::now());
        let renewing = matches!(self.machine.role(begun), Role::Leading { .. });
        let acquired = lease
            .as_ref()
            .filter(|_| renewing)
            .and_then(|l| l.spec.as_ref()?.acquire_time.clone())
            .unwrap_or_else(|| now.clone());
        let spec = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.lease.as_secs()).ok(),
            lease_transitions: i32::try_from(transitions).ok(),
            acquire_time: Some(acquired),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        self.write(lease, spec).await?;
        if !renewing {
            tracing::info!(term = transitions, "leading");
        }
        self.machine.written(transitions, begun);
        Ok(())
    }

    /// Loses against any other writer, by the resourceVersion.
    async fn write(&self, lease: Option<Lease>, spec: LeaseSpec) -> anyhow::Result<()> {
        match lease {
            Some(mut lease) => {
                lease.spec = Some(spec);
                self.api
                    .replace(LEASE_NAME, &PostParams::default(), &lease)
                    .await
                    .context("writing the Lease")?;
            }
            None => {
                let metadata = ObjectMeta { name: Some(LEASE_NAME.to_owned()), ..ObjectMeta::default() };
                let lease = Lease { metadata, spec: Some(spec) };
                self.api.create(&PostParams::default(), &lease).await.context("creating the Lease")?;
            }
        }
        Ok(())
    }

    async fn release(&self) -> anyhow::Result<()> {
        let lease = self.api.get(LEASE_NAME).await?;
        let before = lease.spec.clone().unwrap_or_default();
        if before.holder_identity.as_deref() != Some(&*self.identity) {
            return Ok(());
        }
        let now = MicroTime(Timestamp::now());
        let spec = LeaseSpec {
            holder_identity: Some(String::new()),
            lease_duration_seconds: Some(1),
            lease_transitions: before.lease_transitions,
            acquire_time: Some(now.clone()),
            renew_time: Some(now),
            ..LeaseSpec::default()
        };
        self.write(Some(lease), spec).await
    }
}

fn tell(sender: &watch::Sender<Role>, role: Role) {
    sender.send_if_modified(|before| std::mem::replace(before, role) != role);
}

fn seen(lease: &Lease) -> Seen {
    let spec = lease.spec.clone().unwrap_or_default();
    let positive = |n: i32| u64::try_from(n).ok();
    Seen {
        holder: spec.holder_identity.unwrap_or_default(),
        transitions: spec.lease_transitions.and_then(positive).unwrap_or_default(),
        renewed: format!("{:?} {:?}", spec.renew_time, lease.metadata.resource_version),
        duration: Duration::from_secs(spec.lease_duration_seconds.and_then(positive).unwrap_or_default()),
    }
}
