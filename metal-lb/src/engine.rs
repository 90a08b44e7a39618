//! The one owner of everything that decides. Inputs only change what is known; then ownership is
//! decided, VIPs that differ are planned, and plans are applied.
//!
//! A standby host programs every listener too and owns no VIP: taking one over is a single step.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use daemon::ReadyToken;
use metal_lb_api::Config;
use tokio::sync::watch;

use crate::desired::Desired;
use crate::health::{Check, Checks, HealthReport};
use crate::members::transport::{Heard, Tier};
use crate::members::{Members, Ownership, Standing};
use crate::metrics::Events;
use crate::neighbours::{Neighbours, NextHop};
use crate::observed::Observed;
use crate::plan::{Backend, Note, Plan, plan_all, plan_host};
use crate::programmed::Programmed;
use crate::resolve::{Inputs, checks_of, node_addresses, resolve, vips_of};

/// A new process leaves what an earlier one programmed alone until it knows as much, or for this long.
const INFORMED_BY: Duration = Duration::from_secs(2);
/// The first process waits this long for the nodes' link-layer addresses, so that it need not begin
/// with an empty table.
const RESOLVED_BY: Duration = Duration::from_millis(300);
/// Without a decision for so long, the mirror may no longer be what the maps are.
const ASLEEP: Duration = Duration::from_secs(5);
/// After the maps refused a step.
const RETRY: Duration = Duration::from_secs(1);

/// What happens to an engine.
#[derive(Debug)]
pub enum Input {
    Document(Arc<Config>),
    Heard(Heard),
    Neighbours(Neighbours),
    Health(HealthReport),
    /// Everything is read back and planned anew, in case the maps are not what the mirror says.
    Resync,
}

/// Where decisions go.
#[derive(Debug)]
pub struct Outputs {
    pub programmed: watch::Sender<Arc<Programmed>>,
    pub standing: watch::Sender<Standing>,
    pub tier: watch::Sender<Option<Tier>>,
    pub nodes: watch::Sender<BTreeSet<Ipv4Addr>>,
    pub checks: watch::Sender<BTreeSet<Check>>,
    pub events: Events,
    /// Done once the first document is programmed.
    pub ready: Option<ReadyToken>,
}

#[derive(Debug)]
pub struct Engine<B> {
    name: String,
    backend: B,
    outputs: Outputs,
    members: Members,
    config: Option<Arc<Config>>,
    checks: Checks,
    neighbours: Neighbours,
    owners: BTreeMap<Ipv4Addr, Ownership>,
    peers: BTreeMap<String, bool>,
    /// What the mirror was last brought to.
    planned: Desired,
    observed: Observed,
    /// Why plans left something out.
    notes: BTreeSet<Note>,
    /// When the first one came.
    document_at: Option<Duration>,
    informed: bool,
    changed: bool,
    settled: Duration,
    retry_at: Option<Duration>,
}

impl<B: Backend> Engine<B> {
    /// # Errors
    /// When the maps cannot be read.
    pub fn new(name: &str, mut backend: B, outputs: Outputs, now: Duration) -> anyhow::Result<Self> {
        let observed = backend.observe()?;
        let resumed = observed.vips.iter().filter(|(_, owned)| **owned).map(|(vip, _)| *vip).collect();
        Ok(Self {
            name: name.to_owned(),
            backend,
            outputs,
            members: Members::new(name, resumed, now),
            config: None,
            checks: Checks::new(),
            neighbours: Neighbours { carrier: true, ..Neighbours::default() },
            owners: BTreeMap::new(),
            peers: BTreeMap::new(),
            planned: Desired::default(),
            observed,
            notes: BTreeSet::new(),
            document_at: None,
            informed: false,
            changed: true,
            settled: now,
            retry_at: None,
        })
    }

    pub fn observed(&self) -> &Observed {
        &self.observed
    }

    /// Takes in what happened. Nothing is decided before [`Engine::settle`].
    pub fn take(&mut self, input: Input, now: Duration) {
        match input {
            Input::Document(config) => self.take_document(config, now),
            Input::Heard(Heard::Answer { peer, age, serves }) => {
                return self.members.on_answer(&peer, age, serves, now);
            }
            Input::Heard(Heard::Hello { peer, generation, owned }) => {
                return self.members.on_hello(&peer, generation, owned, now);
            }
            Input::Neighbours(neighbours) => {
                if neighbours.carrier != self.neighbours.carrier {
                    tracing::warn!(carrier = neighbours.carrier, "the interface's link changed");
                    self.members.set_carrier(neighbours.carrier, now);
                }
                self.neighbours = neighbours;
            }
            Input::Health(HealthReport { check, verdict, why }) => {
                if self.checks.get(&check).is_none_or(|(before, _)| *before != verdict) {
                    tracing::info!(address = %check.0, ?verdict, "{why}");
                }
                self.checks.insert(check, (verdict, why));
            }
            Input::Resync => self.read_back(),
        }
        self.changed = true;
    }

    fn take_document(&mut self, config: Arc<Config>, now: Duration) {
        tracing::info!(generation = %config.generation, listeners = config.listeners.len(), "document in force");
        let hosts: BTreeSet<String> = config.hosts.iter().map(|h| h.name.clone()).collect();
        let tier = Tier::of(&config, &self.name);
        if tier.is_none() {
            tracing::error!(name = %self.name, ?hosts, "this host is not in the document: check --name; it owns nothing");
        }
        let (vips, peers) =
            if tier.is_some() { (vips_of(&config), hosts) } else { (BTreeSet::new(), BTreeSet::new()) };
        self.members.set_document(config.generation, vips, &peers, now);
        let wanted = checks_of(&config);
        self.checks.retain(|check, _| wanted.contains(check));
        update(&self.outputs.checks, wanted);
        update(&self.outputs.nodes, node_addresses(&config));
        update(&self.outputs.tier, tier);
        self.config = Some(config);
        self.document_at.get_or_insert(now);
    }

    /// Decides, plans and applies. To be called after inputs, and every few milliseconds without
    /// any: silence is an event too.
    pub fn settle(&mut self, now: Duration) {
        if now.saturating_sub(std::mem::replace(&mut self.settled, now)) > ASLEEP {
            // The packet path gives addresses up by itself when a successor announces them.
            self.read_back();
            self.changed = true;
        }
        let owners = self.members.decide(now);
        let peers = self.members.peers(now).map(|(name, live)| (name.to_owned(), live)).collect();
        if self.config.is_some() && (owners != self.owners || peers != self.peers) {
            self.tell_ownership(&owners, &peers);
            (self.owners, self.peers) = (owners, peers);
            self.changed = true;
        }
        if self.retry_at.is_some_and(|at| now >= at) {
            self.retry_at = None;
            self.read_back();
        }
        let Some(config) = self.config.clone().filter(|_| self.changed && self.retry_at.is_none()) else {
            // A claim can get a new number although nothing has to be programmed.
            self.publish_standing();
            return;
        };
        if !self.informed && !self.is_informed(&config, now) {
            return;
        }
        self.informed = true;
        if self.sync(&config) {
            self.changed = false;
        } else {
            self.retry_at = Some(now + RETRY);
        }
    }

    fn tell_ownership(&self, owners: &BTreeMap<Ipv4Addr, Ownership>, peers: &BTreeMap<String, bool>) {
        for (peer, live) in peers.iter().filter(|(peer, live)| self.peers.get(*peer) != Some(live)) {
            tracing::info!(%peer, "{}", if *live { "is alive" } else { "is not heard" });
        }
        let owner = |o: &Ownership| o.owner.clone();
        for (vip, new) in
            owners.iter().filter(|(vip, new)| self.owners.get(vip).map(owner) != Some(owner(new)))
        {
            tracing::info!(%vip, owner = new.owner.as_deref().unwrap_or("nobody"), "{}", new.why);
        }
    }

    /// Whether as much is known as an earlier process knew that may have programmed the maps; for
    /// the first process, whether the nodes are resolved.
    fn is_informed(&self, config: &Config, now: Duration) -> bool {
        let hops: Vec<_> =
            node_addresses(config).iter().map(|node| self.neighbours.next_hops.get(node).copied()).collect();
        let first = self.observed.listeners.is_empty();
        let asked = || checks_of(config).iter().all(|check| self.checks.contains_key(check));
        let complete = !hops.contains(&Some(NextHop::Unresolved)) && (first || asked());
        let patience = if first { RESOLVED_BY } else { INFORMED_BY };
        !hops.contains(&None) && (complete || self.document_at.is_some_and(|at| now >= at + patience))
    }

    /// `false` when the maps refused something.
    fn sync(&mut self, config: &Config) -> bool {
        let inputs = Inputs {
            host: &self.name,
            config,
            checks: &self.checks,
            neighbours: &self.neighbours,
            owners: &self.owners,
        };
        let mut resolved = resolve(&inputs);
        // The program must know its ports and addresses before it takes a packet.
        let plan_of_host = plan_host(&resolved.desired, &self.observed);
        if !self.apply(&plan_of_host) {
            return false;
        }
        // Those that change hands are what somebody waits for.
        let dirty = dirty(&self.planned, &resolved.desired, &self.observed);
        let changes_hands = |vip: &Ipv4Addr| {
            let owned = self.observed.vips.get(vip);
            owned.is_some() && owned != resolved.desired.vips.get(vip)
        };
        let (first, rest): (BTreeSet<_>, BTreeSet<_>) = dirty.into_iter().partition(changes_hands);
        for vips in [first, rest] {
            let plan = plan_all(vips.iter().copied(), &resolved.desired, &self.observed);
            if !self.apply(&plan) {
                return false;
            }
            for note in plan.notes.iter().filter(|note| !self.notes.contains(note)) {
                tracing::error!("{}", note.text);
            }
            self.notes.retain(|note| !vips.contains(&note.vip));
            self.notes.extend(plan.notes);
            self.publish_standing();
        }
        let notes: Vec<String> = self.notes.iter().map(|note| note.text.clone()).collect();
        resolved.reflect(&self.observed.listeners, &notes);
        self.planned = resolved.desired;
        self.outputs
            .standing
            .send_if_modified(|s| s.generation.replace(config.generation) != Some(config.generation));
        let programmed = Programmed {
            state: resolved.state,
            listeners: self.observed.listeners.clone(),
            targets: self.observed.targets.clone(),
            peers: self.peers.clone(),
        };
        update(&self.outputs.programmed, Arc::new(programmed));
        if let Some(token) = self.outputs.ready.take() {
            token.done();
        }
        true
    }

    /// What is announced is what is programmed.
    fn publish_standing(&self) {
        if !self.informed {
            return;
        }
        let owned = |vip: &Ipv4Addr| self.observed.vips.get(vip) == Some(&true);
        let claims =
            self.members.mine().iter().filter(|(vip, _)| owned(vip)).map(|(v, n)| (*v, *n)).collect();
        self.outputs.standing.send_if_modified(|standing| {
            let changed = standing.claims != claims;
            standing.claims = claims;
            changed
        });
    }

    fn apply(&mut self, plan: &Plan) -> bool {
        for batch in &plan.batches {
            for step in batch {
                tracing::info!("{step}");
            }
            let applied = self
                .backend
                .apply(batch)
                .and_then(|()| batch.iter().try_for_each(|step| Ok(self.observed.apply(step)?)));
            self.outputs.events.batch_applied(batch.len(), applied.is_ok());
            if let Err(error) = applied {
                tracing::error!(
                    error = format!("{error:#}"),
                    "a step failed; reading the maps and planning anew"
                );
                self.read_back();
                return false;
            }
        }
        true
    }

    fn read_back(&mut self) {
        self.planned = Desired::default();
        match self.backend.observe() {
            Ok(observed) => self.observed = observed,
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "the maps cannot be read; trying again");
            }
        }
    }
}

/// The VIPs whose part of the desired state changed and those that nobody wants any more.
fn dirty(before: &Desired, after: &Desired, observed: &Observed) -> BTreeSet<Ipv4Addr> {
    let known = before.vips.keys().chain(after.vips.keys()).copied();
    let is_dirty = |vip: &Ipv4Addr| {
        observed.vips.get(vip) != after.vips.get(vip)
            || before.vips.get(vip) != after.vips.get(vip)
            || !before.listeners_of(*vip).eq(after.listeners_of(*vip))
    };
    known.chain(observed.addresses()).filter(is_dirty).collect()
}

/// Tells nobody when nothing changed.
fn update<T: PartialEq>(sender: &watch::Sender<T>, value: T) {
    sender.send_if_modified(|present| {
        let changed = *present != value;
        *present = value;
        changed
    });
}

#[cfg(test)]
#[path = "engine_tests.rs"]
mod tests;
