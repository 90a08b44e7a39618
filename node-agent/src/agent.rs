//! The loop: changes mark Services dirty, one commit a sync. Nothing is decided from an event.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use daemon::ReadyToken;
use service_model::{Change, IpFamily, Key, Kind, Node, Object, ServiceName, World};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::conntrack::Feed;
use crate::engine::Engine;
use crate::events::{self, Events};
use crate::external_ips::LeftOut;
use crate::health::{Health, Moment};
use crate::health_checks::HealthChecks;
use crate::host::AddressChanges;
use crate::localhost::LocalhostNodePorts;
use crate::metrics::Metrics;
use crate::nft::note::Note;
use crate::node_wait::{AddressWait, PodCidrWait};
use crate::nodeport_addresses::PrimaryIps;
use crate::overrides::Overrides;
use crate::select::Place;

/// The kernel is compared with what we think of it, in case a notification was missed.
const RECHECK: Duration = Duration::from_secs(300);
/// With every so many of those, what is still so is told again: the API server forgets Events after an hour.
const TOLD_AGAIN: u32 = 10;
/// How long connections over loopback have to end by themselves when the program stops.
const DRAIN: Duration = Duration::from_secs(1);
/// After a failed sync, for a port that is taken, and for Events that found no room.
const RETRY: Duration = Duration::from_secs(1);
/// Between two readings of the kernel, however often others change our tables.
const PAUSE: Duration = Duration::from_millis(250);

/// Of changes that wait for a sync, so many are measured.
const MOST_TRIGGERS: usize = 10_000;

/// Every kind that the agent watches: nothing is decided before all are listed.
const KINDS: [Kind; 4] = [Kind::Service, Kind::EndpointSlice, Kind::Node, Kind::ServiceCidr];

/// The World, and what is made of it.
#[derive(Debug)]
pub struct Agent {
    world: World,
    config: Config,
    engine: Engine,
    checks: HealthChecks,
    localhost: LocalhostNodePorts,
    conntrack: Option<Feed>,
    health: Health,
    metrics: Metrics,
    events: Events,
    overrides: Overrides,
    /// Until there is room to tell them.
    notes: BTreeSet<(ServiceName, Note)>,
    left_out: LeftOut,
    recheck_every: Duration,
    /// So far.
    rechecks: u32,
    min_sync_period: Duration,
    first_sync: Option<ReadyToken>,
    pod_cidrs: PodCidrWait,
    addresses: AddressWait,
    /// The connection table is looked through after the next sync, whatever that does.
    look_through: bool,
    zone: Option<Box<str>>,
    primary_ips: PrimaryIps,
    /// Services whose health check port, or port on loopback, may have to change.
    changed: BTreeSet<ServiceName>,
    /// When a port that was taken is tried again.
    next_check: Option<Instant>,
    /// No sync before.
    not_before: Option<Instant>,
    failed: bool,
    started: SystemTime,
    /// When the endpoints changed that wait for a sync.
    triggers: Vec<(IpFamily, SystemTime)>,
}

impl Agent {
    /// # Errors
    /// When nf_tables cannot be reached.
    pub fn new(
        config: Config,
        min_sync_period: Duration,
        health: Health,
        metrics: Metrics,
        first_sync: ReadyToken,
    ) -> anyhow::Result<Self> {
        // Until the Node is known.
        health.set_eligible(false);
        Ok(Self {
            world: World::default(),
            engine: Engine::new(config.clone())?,
            checks: HealthChecks::new(health.clone(), &config.node_name),
            events: Events::channel().0,
            overrides: Overrides::default(),
            notes: BTreeSet::new(),
            left_out: LeftOut::default(),
            recheck_every: RECHECK,
            rechecks: 0,
            localhost: LocalhostNodePorts::new(&config, metrics.clone()),
            health,
            metrics,
            min_sync_period,
            first_sync: Some(first_sync),
            pod_cidrs: PodCidrWait::new(config.detect_local),
            addresses: AddressWait::new(&config),
            look_through: false,
            zone: None,
            primary_ips: PrimaryIps::default(),
            conntrack: None,
            changed: BTreeSet::new(),
            next_check: None,
            not_before: None,
            failed: false,
            started: SystemTime::now(),
            triggers: Vec::new(),
            config,
        })
    }

    /// Whoever ends stale connections is told of commits.
    #[must_use]
    pub fn feeding(mut self, conntrack: Feed) -> Self {
        self.conntrack = Some(conntrack);
        self
    }

    /// Tells what an operator must know; without this, nobody.
    #[must_use]
    pub fn telling(self, events: Events) -> Self {
        Self { events, ..self }
    }

    /// Compares the kernel with what we think of it so often, in place of every five minutes.
    #[must_use]
    pub fn rechecking(self, every: Duration) -> Self {
        Self { recheck_every: every, ..self }
    }

    /// Takes the configuration's word for these.
    #[must_use]
    pub fn overriding(self, overrides: Overrides) -> Self {
        Self { overrides, ..self }
    }

    fn tell(&mut self) {
        let node = &self.config.node_name;
        for (name, error) in self.engine.take_refusals() {
            if let Some(service) = self.world.service(&name) {
                let message = format!(
                    "The kernel of node {node} refuses this Service; it is left out there and tried again every 30 s: \
                     {error}. Run node-agent preflight on the node"
                );
                self.events.of_service(service, events::REFUSED, message);
            }
        }
        for (name, port, error) in self.checks.take_failures() {
            if let Some(service) = self.world.service(&name) {
                let message =
                    format!("node {node} failed to start healthcheck \"{name}\" on port {port}: {error}");
                self.events.of_service(service, events::NO_HEALTH_CHECK, message);
            }
        }
        for (name, note) in self.engine.take_notes() {
            tracing::warn!(service = name.as_str(), "{note}");
            self.notes.insert((name, note));
        }
        // Of these there may be one for each Service of the cluster, and every node says the same: so they do not name
        // it, and are one Event for all.
        while self.events.has_room()
            && let Some(told) = self.notes.pop_first()
        {
            let (name, note) = &told;
            if self.engine.is_noted(&told)
                && let Some(service) = self.world.service(name)
            {
                let reason = match note {
                    Note::Taken { .. } => events::ADDRESS_TAKEN,
                    Note::TooManyEndpoints { .. } => events::TOO_MANY_ENDPOINTS,
                };
                self.events.of_service(service, reason, note.to_string());
            }
        }
        while self.events.has_room()
            && let Some((name, ips)) = self.left_out.pop()
        {
            if let Some(service) = self.world.service(&name) {
                let message = self.overrides.external_ips.told(&name, ips);
                self.events.of_service(service, events::EXTERNAL_IPS_NOT_ALLOWED, message);
            }
        }
    }

    /// Works until cancelled, or until no more changes can come. The rules stay.
    ///
    /// # Errors
    /// When notifications of the kernel cannot be waited for.
    pub async fn run(
        mut self,
        changes: mpsc::Receiver<Change>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let ended = self.work(changes, cancel).await;
        self.localhost.drain(DRAIN).await;
        ended
    }

    async fn work(
        &mut self,
        mut changes: mpsc::Receiver<Change>,
        cancel: CancellationToken,
    ) -> anyhow::Result<()> {
        let notifications = self.engine.notifications().map(|fd| fd.try_clone_to_owned()).transpose()?;
        let notifications = notifications.map(readable_fd).transpose().context("waiting for nf_tables")?;
        let addresses = AddressChanges::listen().context("listening to rtnetlink")?;
        let of_addresses = readable_fd(addresses.as_fd().try_clone_to_owned()?)?;
        let mut recheck = tokio::time::interval(self.recheck_every);
        recheck.tick().await;
        loop {
            let waits = self.left_out.has_more() || !self.notes.is_empty();
            let to_tell = waits.then(|| Instant::now() + RETRY);
            let next_due = [self.engine.next_due(), self.next_check, self.addresses.next_due(), to_tell];
            let next_due = next_due.into_iter().flatten().min();
            // What is due earlier than a sync is allowed waits for it too.
            let due = self.pod_cidrs.next_due().or(self.not_before).or(next_due);
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                change = changes.recv() => match change {
                    None => return Ok(()),
                    Some(change) => {
                        self.apply(change);
                        // What has come meanwhile goes into the same commit.
                        while let Ok(change) = changes.try_recv() {
                            self.apply(change);
                        }
                    }
                },
                ready = readable(notifications.as_ref()) => ready?,
                ready = readable(Some(&of_addresses)) => {
                    ready?;
                    addresses.take();
                    self.engine.mark_host();
                }
                _ = recheck.tick() => self.recheck(),
                () = sleep_until(due) => {}
            }
            let now = Instant::now();
            if self.engine.changed_by_others() {
                tracing::warn!("somebody else changed our tables; putting them right");
            }
            if self.knows_enough(now) && self.not_before.is_none_or(|at| at <= now) {
                self.sync(now);
            }
        }
    }

    /// Nothing is decided before.
    fn knows_enough(&mut self, now: Instant) -> bool {
        let node = self.world.node(&self.config.node_name);
        if !self.world.has_synced(&KINDS) {
            return false;
        }
        if self.addresses.gives_up(node, now) {
            self.engine.go_on_without_addresses();
        }
        self.pod_cidrs.is_over(node, now)
    }

    /// What others did is told by the kernel; this is in case it was not.
    fn recheck(&mut self) {
        match self.engine.recheck() {
            Ok(false) => {}
            Ok(true) => tracing::warn!("our tables are not as we left them; putting them right"),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "reading our tables; trying again");
                self.engine.doubt();
            }
        }
        self.rechecks += 1;
        if self.rechecks.is_multiple_of(TOLD_AGAIN) {
            self.engine.repeat_notes();
            self.left_out.repeat();
        }
        self.look_through = true;
    }

    fn sync(&mut self, now: Instant) {
        let reads = self.engine.in_doubt();
        let checks = !self.changed.is_empty() || self.next_check.is_some_and(|at| at <= now);
        if !reads && !self.engine.has_work(now) && !checks && !self.look_through {
            self.not_before = None;
            self.health.updated(Moment::now());
            // A change of what is left out changes nothing that is served.
            self.tell();
            return;
        }
        let synced = self.engine.sync(&self.world, now);
        self.metrics.changed_by_others(self.engine.take_changes_by_others());
        self.metrics.refused(self.engine.refused());
        let pause = match synced {
            Ok(_) => {
                let done = Moment::now();
                self.metrics.synced(now.elapsed(), &self.engine.take_commits(), reads, done.wall);
                self.metrics.stranded(self.engine.stranded());
                for (family, since) in self.triggers.drain(..) {
                    self.metrics.programmed(family, since, done.wall);
                }
                self.health.updated(done);
                let look = std::mem::take(&mut self.look_through) || reads;
                if let Some(feed) = &mut self.conntrack {
                    feed.committed(&self.world, self.engine.nodeport_addresses(), look);
                }
                // Who stands in for another proxy takes over after this: a kernel that refuses nearly everything
                // would leave the node with neither.
                let most = |_: &mut ReadyToken| self.engine.refused() * 2 <= self.world.services().count();
                if let Some(token) = self.first_sync.take_if(most) {
                    token.done();
                }
                if std::mem::take(&mut self.failed) {
                    tracing::info!("syncing again");
                }
                if reads { self.min_sync_period.max(PAUSE) } else { self.min_sync_period }
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "the sync failed; trying again");
                self.metrics.failed();
                self.failed = true;
                // Nobody may have changed anything but the kernel: then too the node is not as it should be.
                self.health.queued(Moment::now());
                self.min_sync_period.max(RETRY)
            }
        };
        self.not_before = (!pause.is_zero()).then(|| Instant::now() + pause);
        let changed = std::mem::take(&mut self.changed);
        let place = Place { node: &self.config.node_name, zone: self.zone.as_deref() };
        self.localhost.update(&changed, &self.world, place);
        self.checks.update(changed, &self.world);
        self.tell();
        let lacks_a_port = self.checks.lacks_a_port() || self.localhost.lacks_a_port();
        self.next_check = lacks_a_port.then(|| Instant::now() + RETRY);
    }

    fn apply(&mut self, mut change: Change) {
        let now = Moment::now();
        self.health.queued(now);
        let left_out = self.overrides.apply(&mut change);
        if let Change::Apply(Object::Service(service)) = &change {
            self.left_out.update(service, left_out);
        }
        let (kind, trigger) = (kind_of(&change), take_trigger(&mut change));
        self.world.apply(change);
        let mut dirty = self.world.take_dirty();
        if !dirty.services.is_empty() {
            self.metrics.theirs.queued(now.wall);
            match kind {
                Some(Kind::Service) => self.metrics.theirs.service_changed(),
                Some(Kind::EndpointSlice) => self.metrics.theirs.endpoint_changed(),
                Some(Kind::Node | Kind::ServiceCidr) | None => {}
            }
            // What happened before this process is not its to answer for.
            let trigger = trigger.filter(|(_, since)| *since > self.started);
            self.triggers.extend(trigger.filter(|_| self.triggers.len() < MOST_TRIGGERS));
        }
        if !dirty.nodes.is_empty() {
            let node = self.world.node(&self.config.node_name);
            self.health.set_eligible(node.is_some_and(|node| !node.is_being_removed()));
            let zone = node.and_then(Node::zone).map(Into::into);
            let primary_ips = node.into_iter().flat_map(Node::primary_ips).collect();
            if (&zone, primary_ips) != (&self.zone, self.primary_ips) {
                // They decide which endpoints are preferred, and who may come to load balancers.
                (self.zone, self.primary_ips) = (zone, primary_ips);
                self.world.mark_all_services();
                dirty.services.append(&mut self.world.take_dirty().services);
            }
            self.engine.mark_node();
        }
        if dirty.service_networks {
            self.engine.mark_node();
        }
        for name in &dirty.services {
            if self.left_out.has(name) && self.world.service(name).is_none() {
                self.left_out.forget(name);
            }
        }
        self.changed.extend(dirty.services.iter().cloned());
        if let Some(feed) = &mut self.conntrack {
            feed.mark(dirty.services.iter().cloned());
        }
        self.engine.mark(dirty.services);
    }
}

fn kind_of(change: &Change) -> Option<Kind> {
    Some(match change {
        Change::Apply(Object::Service(_)) | Change::Delete(Key::Service(_)) => Kind::Service,
        Change::Apply(Object::EndpointSlice(_)) | Change::Delete(Key::EndpointSlice(_)) => {
            Kind::EndpointSlice
        }
        Change::Apply(Object::Node(_)) | Change::Delete(Key::Node(_)) => Kind::Node,
        Change::Apply(Object::ServiceCidr(_)) | Change::Delete(Key::ServiceCidr(_)) => Kind::ServiceCidr,
        Change::ListStarted(_) | Change::ListEnded(_) => return None,
    })
}

/// The World does not keep it.
fn take_trigger(change: &mut Change) -> Option<(IpFamily, SystemTime)> {
    match change {
        Change::Apply(Object::EndpointSlice(slice)) => Some((slice.family, slice.triggered.take()?)),
        _ => None,
    }
}

#[expect(deprecated, reason = "sound here: it owns the descriptor; the replacement is an unsafe function")]
fn readable_fd(fd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::new(fd)
}

async fn readable(fd: Option<&AsyncFd<OwnedFd>>) -> anyhow::Result<()> {
    match fd {
        // Cleared before it is read empty: what comes later makes it readable again.
        Some(fd) => Ok(fd.readable().await.map(|mut ready| ready.clear_ready())?),
        None => std::future::pending().await,
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}
