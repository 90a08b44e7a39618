//! One pod's life on its node, from its sandbox to its removal from the API.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::container::{Event, Restart, Runner, What};
use super::sandbox::Sandbox;
use super::status::{ContainerFacts, Ended, Facts, Life};
use super::{Machine, environment, probe, status};
use crate::programs;
use crate::spawn::Spec;

/// After the API server did not take something.
const RETRY: Duration = Duration::from_millis(300);

/// What a pod's default `terminationGracePeriodSeconds` is.
const DEFAULT_GRACE: Duration = Duration::from_secs(30);

pub(super) struct Worker {
    machine: Arc<Machine>,
    /// The newest version of the pod; none once it is gone from the API.
    pod: watch::Receiver<Option<Arc<Pod>>>,
    latest: Arc<Pod>,
    api: Api<Pod>,
    facts: Facts,
    /// Whether the API server has yet to hear of the facts.
    unsaid: bool,
}

/// Why the wait for the next event ended.
enum Next {
    Container(Event),
    Changed,
    Gone,
    SayAgain,
    Deadline,
}

impl Worker {
    pub(super) fn new(
        machine: Arc<Machine>,
        pod: watch::Receiver<Option<Arc<Pod>>>,
        latest: Arc<Pod>,
    ) -> Self {
        let api = Api::namespaced(machine.client.clone(), &latest.namespace().unwrap_or_default());
        let containers = containers_of(&latest)
            .iter()
            .map(|container| ContainerFacts {
                name: container.name.clone(),
                image: container.image.clone().unwrap_or_default(),
                state: Life::Waiting("ContainerCreating"),
                before: None,
                ready: false,
                restarts: 0,
            })
            .collect();
        let facts = Facts {
            containers,
            host_ips: machine.host.addresses().map(|ip| ip.to_string()).to_vec(),
            pod_ips: Vec::new(),
            started: now(),
        };
        Self { machine, pod, latest, api, facts, unsaid: true }
    }

    pub(super) async fn run(mut self) {
        if self.latest.metadata.deletion_timestamp.is_none() && !self.live().await {
            return;
        }
        self.remove().await;
    }

    /// Runs the pod until it has ended on request. False if it is gone from the API already.
    async fn live(&mut self) -> bool {
        let Some(sandbox) = self.sandbox().await else { return false };
        self.facts.pod_ips = sandbox.addresses.iter().map(ToString::to_string).collect();
        let (events, mut inbox) = mpsc::channel(16);
        let stop = CancellationToken::new();
        let mut running = JoinSet::new();
        for index in 0..self.facts.containers.len() {
            match self.runner(index, &sandbox).await {
                Ok(runner) => {
                    running.spawn(runner.run(events.clone(), stop.clone()));
                }
                Err(error) => {
                    tracing::warn!(pod = self.latest.name_any(), "a container cannot be started: {error:#}");
                    self.facts.containers[index].state = Life::Waiting("CreateContainerConfigError");
                }
            }
        }
        let mut deadline = None;
        loop {
            self.say().await;
            match self.next(&mut inbox, deadline).await {
                Next::Gone => return false,
                Next::Deadline => return true,
                Next::SayAgain => {}
                Next::Container(event) => self.note(&event),
                Next::Changed if self.latest.metadata.deletion_timestamp.is_none() => self.unsaid = true,
                Next::Changed => {
                    let grace = grace(&self.latest);
                    let until = Instant::now() + grace;
                    // A second delete may shorten the time, never lengthen it.
                    deadline = Some(deadline.map_or(until, |earlier: Instant| earlier.min(until)));
                    stop.cancel();
                }
            }
            while running.try_join_next().is_some() {}
            if deadline.is_some() && running.is_empty() {
                while let Ok(event) = inbox.try_recv() {
                    self.note(&event);
                }
                return true;
            }
        }
    }

    async fn next(&mut self, inbox: &mut mpsc::Receiver<Event>, deadline: Option<Instant>) -> Next {
        tokio::select! {
            Some(event) = inbox.recv() => Next::Container(event),
            changed = self.pod.changed() => {
                match (changed, self.pod.borrow_and_update().clone()) {
                    (Ok(()), Some(pod)) => {
                        self.latest = pod;
                        Next::Changed
                    }
                    _ => Next::Gone,
                }
            }
            () = sleep(RETRY), if self.unsaid => Next::SayAgain,
            () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => Next::Deadline,
        }
    }

    /// Tries until there is one: an earlier pod of the same name may still be leaving.
    async fn sandbox(&mut self) -> Option<Sandbox> {
        loop {
            let (machine, name, uid) =
                (Arc::clone(&self.machine), self.latest.name_any(), self.latest.uid().unwrap_or_default());
            let host_network = self.latest.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
            let made = tokio::task::spawn_blocking(move || {
                if host_network {
                    Ok(Sandbox::of_host(&machine))
                } else {
                    Sandbox::create(&machine, &name, &uid)
                }
            });
            match made.await.context("making a sandbox").flatten() {
                Ok(sandbox) => return Some(sandbox),
                Err(error) => tracing::warn!(pod = self.latest.name_any(), "no sandbox yet: {error:#}"),
            }
            tokio::select! {
                () = sleep(RETRY) => {}
                gone = self.pod.wait_for(Option::is_none) => {
                    drop(gone);
                    return None;
                }
            }
        }
    }

    async fn runner(&self, index: usize, sandbox: &Sandbox) -> Result<Runner> {
        let pod = &*self.latest;
        let spec = pod.spec.as_ref().context("a pod has a spec")?;
        let container = &spec.containers[index];
        let node = &self.machine.host.name;
        let (name, namespace) = (pod.name_any(), pod.namespace().unwrap_or_default());
        let mut arguments =
            vec![format!("--pod={name}"), format!("--namespace={namespace}"), format!("--node={node}")];
        for port in container.ports.iter().flatten() {
            match port.protocol.as_deref() {
                Some("UDP") => arguments.push(format!("--udp={}", port.container_port)),
                Some("SCTP") => {}
                _ => arguments.push(format!("--tcp={}", port.container_port)),
            }
        }
        let hostname =
            if spec.host_network == Some(true) { node } else { spec.hostname.as_ref().unwrap_or(&name) };
        let log = format!("pod-{namespace}-{name}-{}", container.name);
        Ok(Runner {
            index,
            spec: Spec {
                program: programs::ours("lab-pod")?,
                arguments: arguments.into_iter().map(Into::into).collect(),
                environment: self.environment(container, spec, &namespace, hostname).await?,
                netns: sandbox.netns.clone(),
                hostname: Some(hostname.clone()),
                log: self.machine.logs.join(format!("{log}.log")),
            },
            probe: probe::Plan::of(container),
            node: self.machine.host.netns.clone(),
            address: *sandbox.addresses.first().context("a sandbox has an address")?,
            before_stop: before_stop(container),
            restart: Restart::parse(spec.restart_policy.as_deref()),
            spawner: self.machine.spawner.clone(),
        })
    }

    async fn environment(
        &self,
        container: &Container,
        spec: &PodSpec,
        namespace: &str,
        hostname: &str,
    ) -> Result<BTreeMap<String, String>> {
        let services = self.machine.services.state();
        let links = spec.enable_service_links != Some(false);
        let mut variables = environment::of_services(services.iter().map(AsRef::as_ref), namespace, links);
        for source in container.env_from.iter().flatten() {
            let prefix = source.prefix.clone().unwrap_or_default();
            let mut data = BTreeMap::new();
            if let Some(wanted) = &source.config_map_ref {
                data = self.config_map(namespace, &wanted.name).await?;
            } else if let Some(wanted) = &source.secret_ref {
                data = self.secret(namespace, &wanted.name).await?;
            }
            variables.extend(data.into_iter().map(|(name, value)| (format!("{prefix}{name}"), value)));
        }
        for variable in container.env.iter().flatten() {
            let value = match (&variable.value, &variable.value_from) {
                (Some(text), _) => Some(environment::expand(text, &variables)),
                (None, None) => Some(String::new()),
                (None, Some(source)) => {
                    if let Some(key) = &source.config_map_key_ref {
                        self.config_map(namespace, &key.name).await?.remove(&key.key)
                    } else if let Some(key) = &source.secret_key_ref {
                        self.secret(namespace, &key.name).await?.remove(&key.key)
                    } else {
                        environment::of_field(source, &self.latest, &self.facts.pod_ips, &self.facts.host_ips)
                    }
                }
            };
            variables.extend(value.map(|value| (variable.name.clone(), value)));
        }
        variables.insert("HOSTNAME".into(), hostname.to_owned());
        Ok(variables)
    }

    async fn config_map(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, String>> {
        let api: Api<ConfigMap> = Api::namespaced(self.machine.client.clone(), namespace);
        let map = api.get(name).await.with_context(|| format!("reading ConfigMap {namespace}/{name}"))?;
        Ok(map.data.unwrap_or_default())
    }

    async fn secret(&self, namespace: &str, name: &str) -> Result<BTreeMap<String, String>> {
        let api: Api<Secret> = Api::namespaced(self.machine.client.clone(), namespace);
        let secret = api.get(name).await.with_context(|| format!("reading Secret {namespace}/{name}"))?;
        let data = secret.data.unwrap_or_default();
        Ok(data
            .into_iter()
            .map(|(key, value)| (key, String::from_utf8_lossy(&value.0).into_owned()))
            .collect())
    }

    fn note(&mut self, event: &Event) {
        let container = &mut self.facts.containers[event.index];
        match event.what {
            What::Started { pid } => container.state = Life::Running { since: now(), pid },
            What::NotStarted => container.state = Life::Waiting("CreateContainerError"),
            What::Ready(ready) => container.ready = ready,
            What::Ended { code, signal, again } => {
                let since =
                    if let Life::Running { since, .. } = &container.state { since.clone() } else { now() };
                let ended = Ended { code, signal, since, at: now() };
                container.ready = false;
                if again {
                    container.restarts += 1;
                    container.before = Some(ended);
                    container.state = Life::Waiting("CrashLoopBackOff");
                } else {
                    container.state = Life::Ended(ended);
                }
            }
        }
        self.unsaid = true;
    }

    /// Reports the status, unless the API server knows it.
    async fn say(&mut self) {
        if !self.unsaid {
            return;
        }
        let status = status::of(&self.latest, &self.facts, &now());
        if self.latest.status.as_ref().is_some_and(|known| same(known, &status)) {
            self.unsaid = false;
            return;
        }
        // With the uid, a namesake that came later is never meant.
        let patch = json!({"metadata": {"uid": self.latest.metadata.uid}, "status": status});
        let sent = self
            .api
            .patch_status(&self.latest.name_any(), &PatchParams::default(), &Patch::Merge(patch))
            .await;
        match sent {
            Ok(_) => self.unsaid = false,
            Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => self.unsaid = false,
            Err(error) => tracing::debug!(pod = self.latest.name_any(), "status not reported yet: {error}"),
        }
    }

    /// Takes the pod, whose processes have ended, out of the API.
    async fn remove(&mut self) {
        self.say().await;
        let uid = self.latest.metadata.uid.clone();
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions { uid, resource_version: None }),
            ..DeleteParams::default()
        };
        loop {
            match self.api.delete(&self.latest.name_any(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(refusal)) if matches!(refusal.code, 404 | 409) => return,
                Err(error) => tracing::debug!(pod = self.latest.name_any(), "not removed yet: {error}"),
            }
            sleep(RETRY).await;
        }
    }
}

fn containers_of(pod: &Pod) -> &[Container] {
    pod.spec.as_ref().map_or(&[], |spec| &spec.containers)
}

fn grace(pod: &Pod) -> Duration {
    let seconds = pod.metadata.deletion_grace_period_seconds.and_then(|seconds| u64::try_from(seconds).ok());
    seconds.map_or(DEFAULT_GRACE, Duration::from_secs)
}

fn before_stop(container: &Container) -> Duration {
    let hook = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref());
    let seconds =
        hook.and_then(|hook| hook.sleep.as_ref()).and_then(|sleep| u64::try_from(sleep.seconds).ok());
    Duration::from_secs(seconds.unwrap_or(0))
}

/// Whether the known status says all that the new one says.
fn same(known: &k8s_openapi::api::core::v1::PodStatus, new: &k8s_openapi::api::core::v1::PodStatus) -> bool {
    known.phase == new.phase
        && known.conditions == new.conditions
        && known.pod_ips == new.pod_ips
        && known.container_statuses == new.container_statuses
        && known.observed_generation == new.observed_generation
}

/// The API keeps whole seconds.
fn now() -> Time {
    let second = Timestamp::now().as_second();
    Time(Timestamp::from_second(second).expect("the present is within the calendar"))
}
