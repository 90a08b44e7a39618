//! The work of one leadership: changes mark Services, the queue picks them, jobs bring each one
//! further. Dropping the future stops everything that it started.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use service_model::{Dirty, ServiceName};
use tokio::sync::watch;
use tokio::task::{Id, JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::aws;
use crate::desired::Provider;
use crate::election::Role;
use crate::marks::answer;
use crate::metal;
use crate::metal::crds::{IPAddressPool, IPAddressPoolStatus};
use crate::plan::Outcome;
use crate::providers::{Providers, Work};
use crate::queue::Queue;
use crate::state::State;

/// How many Services of the metal provider are worked on at once; it waits for the API server only.
const METAL_JOBS: usize = 32;
/// AWS limits calls, not connections: more at once would only wait for the budget.
const AWS_JOBS: usize = 8;
/// How long running jobs may take at the end.
const DRAIN: Duration = Duration::from_secs(5);
/// How often hosts and pools are looked at for what is told of them.
const REPORT_PERIOD: Duration = Duration::from_secs(1);

type Job = (Provider, ServiceName);

pub(crate) struct Lead<'a> {
    state: &'a mut State,
    client: Client,
    providers: Providers,
    queue: Queue,
    jobs: JoinSet<Outcome>,
    running: BTreeMap<Id, (Job, Instant)>,
    pool_job: Option<Id>,
}

impl<'a> Lead<'a> {
    /// Takes over: the providers adopt what is there, and every Service is due.
    pub(crate) async fn begin(
        state: &'a mut State,
        client: Client,
        term: u64,
        role: watch::Receiver<Role>,
    ) -> anyhow::Result<Lead<'a>> {
        let writers = state.writers.clone();
        let metal = match &state.metal {
            Some(setup) => {
                let known = (&*state.world, &state.classes, state.pools.parsed());
                let provider = metal::Provider::begin(setup, client.clone(), term, role, known).await?;
                tracing::info!(hosts = setup.endpoints.len(), term, "metal is on");
                Some(Arc::new(provider))
            }
            None => None,
        };
        let aws = match &state.aws {
            Some(setup) => {
                let provider = aws::Provider::new(setup).await;
                tracing::info!(region = setup.region, vpc = setup.vpc, term, "aws is on");
                Some(Arc::new(provider))
            }
            None => None,
        };
        let limits = [(Provider::Metal, METAL_JOBS), (Provider::Aws, AWS_JOBS)];
        let mut lead = Self {
            state,
            client,
            providers: Providers { metal, aws, writers },
            queue: Queue::new(limits),
            jobs: JoinSet::new(),
            running: BTreeMap::new(),
            pool_job: None,
        };
        // What changed so far is part of the first pass.
        lead.state.pools_changed();
        lead.state.world_changed();
        Arc::make_mut(&mut lead.state.world).take_dirty();
        let names: Vec<ServiceName> = lead.state.world.services().map(|s| s.name.clone()).collect();
        for name in &names {
            lead.classify(name, Queue::mark_first);
        }
        Ok(lead)
    }

    /// Works until cancelled, then lets running jobs end.
    pub(crate) async fn run(mut self, cancel: &CancellationToken) -> anyhow::Result<()> {
        let mut report = tokio::time::interval(REPORT_PERIOD);
        while !cancel.is_cancelled() {
            self.dispatch();
            if self.queue.first_pass_done() {
                self.state.ready();
            }
            let retry = self.queue.next_retry();
            let metal = self.providers.metal.clone();
            tokio::select! {
                () = cancel.cancelled() => {}
                changed = self.state.changes.receive() => changed?.apply(self.state),
                Some(ended) = self.jobs.join_next_with_id() => self.finish(ended),
                due = due_on_metal(metal.as_deref()) => {
                    for name in due {
                        self.classify(&name, Queue::mark);
                    }
                }
                () = sleep_until(retry) => {}
                _ = report.tick() => self.report_on_metal(),
            }
            self.take_changes();
        }
        let drained = async { while self.jobs.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drained).await.is_err() {
            tracing::warn!("some jobs did not end in time and are dropped; the next leader takes them up");
        }
        Ok(())
    }

    /// Turns what changed into marks.
    fn take_changes(&mut self) {
        if self.state.pools_changed()
            && let Some(metal) = &self.providers.metal
        {
            metal.pools_changed(self.state.pools.parsed());
        }
        if !self.state.world_changed() {
            return;
        }
        let Dirty { services, nodes, .. } = Arc::make_mut(&mut self.state.world).take_dirty();
        for name in &services {
            self.classify(name, Queue::mark);
        }
        if nodes.is_empty() {
            return;
        }
        if let Some(metal) = &self.providers.metal {
            metal.nodes_changed(&self.state.world);
        }
        let on_nodes: Vec<ServiceName> = self
            .state
            .world
            .services()
            .filter(|s| self.state.classes.judge(s).serve == Some(Provider::Aws))
            .map(|s| s.name.clone())
            .collect();
        for name in &on_nodes {
            self.queue.mark(Provider::Aws, name);
        }
    }

    /// Marks the Service in the lanes of whoever has to do with it, and forgets it elsewhere.
    fn classify(&mut self, name: &ServiceName, mark: fn(&mut Queue, Provider, &ServiceName)) {
        let world = Arc::clone(&self.state.world);
        let service = world.service(name);
        let verdict = service.map(|s| self.state.classes.judge(s)).unwrap_or_default();
        let lanes: Vec<Provider> = verdict.serve.into_iter().chain(verdict.release).collect();
        for provider in &lanes {
            mark(&mut self.queue, *provider, name);
        }
        if lanes.is_empty() {
            self.queue.drop_service(name);
        }
        if !lanes.contains(&Provider::Metal)
            && !self.queue.is_running(name)
            && let Some(metal) = &self.providers.metal
        {
            metal.forget(name);
        }
        if let Some(service) = service.filter(|_| !verdict.notes.is_empty()) {
            let (events, service) = (self.providers.writers.events.clone(), service.clone());
            self.jobs.spawn(async move {
                events.tell(&service, &verdict.notes).await;
                Outcome::Converged
            });
        }
    }

    fn dispatch(&mut self) {
        while let Some((provider, name)) = self.queue.next(Instant::now()) {
            let now = Instant::now();
            let Some((service, work)) = self.work_for(provider, &name) else {
                self.queue.finished(provider, &name, &Outcome::Converged, now);
                continue;
            };
            // Who holds the World makes the next change copy it, and metal is told of nodes anyhow.
            let world = match provider {
                Provider::Metal => Arc::default(),
                Provider::Aws => Arc::clone(&self.state.world),
            };
            let providers = self.providers.clone();
            let job = self.jobs.spawn(async move { providers.run(provider, work, &service, &world).await });
            self.running.insert(job.id(), ((provider, name), now));
        }
    }

    /// What is to be done now, which can differ from when the Service was marked.
    fn work_for(&self, provider: Provider, name: &ServiceName) -> Option<(service_model::Service, Work)> {
        let service = self.state.world.service(name)?;
        let verdict = self.state.classes.judge(service);
        if verdict.serve == Some(provider) {
            return Some((service.clone(), Work::Reconcile));
        }
        verdict.release.contains(&provider).then(|| (service.clone(), Work::Release))
    }

    fn finish(&mut self, ended: Result<(Id, Outcome), JoinError>) {
        let (id, outcome) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                tracing::error!(%error, "a job died; its Service is tried again");
                let why = "the job died".to_owned();
                (error.id(), Outcome::Retry { after: Duration::from_secs(1), why })
            }
        };
        self.pool_job = self.pool_job.filter(|job| *job != id);
        // Jobs that only told Events are nobody's.
        let Some(((provider, name), begun)) = self.running.remove(&id) else { return };
        let now = Instant::now();
        self.state.metrics.reconciled(provider, &outcome, (now - begun).as_secs_f64());
        match &outcome {
            Outcome::Converged => {}
            Outcome::Retry { why, .. } => tracing::info!(service = %name, %provider, "not done yet: {why}"),
            Outcome::Blocked { why } => tracing::info!(service = %name, %provider, "blocked: {why}"),
        }
        self.queue.finished(provider, &name, &outcome, now);
        // It may have vanished, or stopped being ours, while the job ran.
        if self.work_for(provider, &name).is_none() {
            self.classify(&name, Queue::mark);
        }
    }

    /// Metrics of hosts and pools, and what pools show, where it differs; one write at a time.
    fn report_on_metal(&mut self) {
        let Some(metal) = &self.providers.metal else { return };
        for (host, up) in metal.reachable_hosts() {
            self.state.metrics.balancer_host(&host, up);
        }
        let mut differing = Vec::new();
        for (name, status) in metal.pool_statuses() {
            self.state.metrics.pool(&name, &status);
            if self.state.pools.status(&name) != Some(&status) {
                differing.push((name, status));
            }
        }
        if differing.is_empty() || self.pool_job.is_some() {
            return;
        }
        let api = Api::<IPAddressPool>::all(self.client.clone());
        let job = self.jobs.spawn(async move {
            for (name, status) in differing {
                write_pool_status(&api, &name, &status).await;
            }
            Outcome::Converged
        });
        self.pool_job = Some(job.id());
    }
}

async fn write_pool_status(api: &Api<IPAddressPool>, name: &str, status: &IPAddressPoolStatus) {
    let mut fields = json!(status);
    // A merge patch keeps what it does not name.
    if status.problem.is_none() {
        fields["problem"] = serde_json::Value::Null;
    }
    let patch = Patch::Merge(json!({ "status": fields }));
    if let Err(error) = answer(api.patch_status(name, &PatchParams::default(), &patch)).await {
        tracing::warn!(pool = %name, "writing the pool's status: {error}");
    }
}

async fn due_on_metal(metal: Option<&metal::Provider>) -> std::collections::BTreeSet<ServiceName> {
    match metal {
        Some(metal) => metal.due().await,
        None => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
