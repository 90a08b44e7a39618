//! What is to be done, against what the kernel has: one commit a sync.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nfnetlink::Error;
use service_model::{IpFamily, Node, ServiceName, World};

use crate::config::Config;
use crate::host;
use crate::metrics::Commit;
use crate::nft::desired::DesiredService;
use crate::nft::kernel::Kernel;
use crate::nft::layout::FAMILIES;
use crate::nft::mirror::Mirror;
use crate::nft::plan::{Holder, Plan, Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::nft::step::Step;
use crate::nft::stranded::Stranded;
use crate::select::Place;

/// How long what nothing names any more stays, for packets that are under way.
const GRACE: Duration = Duration::from_secs(1);
/// A Service that the kernel refuses is tried again after this long.
const QUARANTINE: Duration = Duration::from_secs(30);

/// So many refused Services are found in one sync; further ones in the next, so that a kernel that refuses all of them
/// does not keep the agent from everything else.
const MOST_REFUSALS: usize = 64;

/// Services that are planned at once when all are.
const PART: usize = 1000;
/// Plans of more steps are logged by their size only.
const LOGGED_STEPS: usize = 60;

/// Owns the mirror and the socket; told what is dirty.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    rulesets: Vec<Ruleset>,
    kernel: Kernel,
    /// The state of the kernel; `None` when in doubt.
    mirror: Option<Mirror>,
    planner: Planner,
    dirty: BTreeSet<ServiceName>,
    node_changed: bool,
    /// The host's addresses when it last said them.
    host: BTreeSet<IpAddr>,
    /// They may be others by now.
    host_changed: bool,
    /// Elements that no Service claims are looked for.
    sweep: bool,
    /// Who has a second batch, and when it may be committed.
    later: BTreeMap<Holder, Instant>,
    /// Services that the kernel refused, and when they are tried again.
    refused: BTreeMap<ServiceName, Instant>,
    /// Those that were refused anew, and what the kernel said; until they are told.
    refusals: Vec<(ServiceName, String)>,
    stranded: Stranded,
    /// Since they were last taken.
    commits: Vec<Commit>,
}

/// What a sync did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Synced {
    pub steps: usize,
}

impl Engine {
    /// # Errors
    /// When nf_tables cannot be reached.
    pub fn new(config: Config) -> anyhow::Result<Self> {
        let kernel = Kernel::open_listening()
            .context("nf_tables needs CAP_NET_ADMIN and a kernel with CONFIG_NF_TABLES")?;
        Ok(Self {
            rulesets: Ruleset::each(&config),
            config,
            kernel,
            mirror: None,
            planner: Planner::new(RandomState::new().hash_one("numbers of endpoints")),
            dirty: BTreeSet::new(),
            node_changed: false,
            host: BTreeSet::new(),
            host_changed: true,
            sweep: false,
            later: BTreeMap::new(),
            refused: BTreeMap::new(),
            refusals: Vec::new(),
            stranded: Stranded::default(),
            commits: Vec::new(),
        })
    }

    pub fn mark(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        self.dirty.extend(services);
    }

    /// The Node changed, hence perhaps its addresses; or the networks of ClusterIPs.
    pub fn mark_node(&mut self) {
        self.node_changed = true;
    }

    /// The host's addresses may have changed.
    pub fn mark_host(&mut self) {
        self.host_changed = true;
        if let Err(error) = self.learn_host() {
            tracing::warn!(error = format!("{error:#}"), "trying again with the next sync");
        }
    }

    /// Asks the host for its addresses, if they may have changed. A host that cannot say keeps those that it had.
    fn learn_host(&mut self) -> anyhow::Result<()> {
        if self.host_changed {
            let host = host::addresses().context("asking for this host's addresses")?;
            self.host_changed = false;
            self.node_changed |= host != self.host;
            self.host = host;
        }
        Ok(())
    }

    /// Whether a sync would have anything to look at.
    pub fn has_work(&self, now: Instant) -> bool {
        let due = self.next_due().is_some_and(|at| at <= now);
        self.in_doubt() || !self.dirty.is_empty() || self.node_changed || self.host_changed || due
    }

    /// Whether the next sync reads the kernel.
    pub fn in_doubt(&self) -> bool {
        self.mirror.is_none()
    }

    /// Reads the kernel again before the next plan.
    pub fn doubt(&mut self) {
        self.mirror = None;
    }

    /// Becomes readable when [`Engine::changed_by_others`] may have a new answer.
    pub fn notifications(&self) -> Option<BorrowedFd<'_>> {
        self.kernel.notifications()
    }

    /// Whether somebody else changed our tables since they were read; if so, the next sync reads
    /// them again.
    pub fn changed_by_others(&mut self) -> bool {
        let changed = self.mirror.is_some() && self.kernel.changed_by_others();
        if changed {
            self.doubt();
        }
        changed
    }

    /// When there is something to do that nobody will ask for.
    pub fn next_due(&self) -> Option<Instant> {
        self.later.values().chain(self.refused.values()).min().copied()
    }

    /// Services that the kernel refuses.
    pub fn refused(&self) -> usize {
        self.refused.len()
    }

    /// Services that the kernel refused since this was last asked, and what it said.
    pub fn take_refusals(&mut self) -> Vec<(ServiceName, String)> {
        std::mem::take(&mut self.refusals)
    }

    /// The addresses of this host on which NodePorts answer.
    pub fn nodeport_addresses(&self) -> BTreeSet<IpAddr> {
        let everywhere =
            |ip: &&IpAddr| !ip.is_loopback() && self.config.answers_everywhere(IpFamily::of(**ip));
        let listed = self.mirror.iter().flat_map(|mirror| &mirror.node_addresses);
        listed.chain(self.host.iter().filter(everywhere)).copied().collect()
    }

    /// Frontends whose traffic policy leaves them without an endpoint.
    pub fn stranded(&self) -> &Stranded {
        &self.stranded
    }

    /// What was committed since this was last asked.
    pub fn take_commits(&mut self) -> Vec<Commit> {
        std::mem::take(&mut self.commits)
    }

    /// Plans what is dirty or due, and commits it.
    ///
    /// # Errors
    /// A kernel that cannot be read or written; everything is read and planned anew then.
    pub fn sync(&mut self, world: &World, now: Instant) -> anyhow::Result<Synced> {
        let fresh = self.mirror.is_none();
        match self.attempt(world, now) {
            Ok(steps) => Ok(Synced { steps }),
            // What we know may be wrong, or one of the Services is: first the former.
            Err(error) if !fresh && retries(&error) => {
                tracing::warn!(error = format!("{error:#}"), "reading the kernel and planning anew");
                self.doubt();
                self.sync(world, now)
            }
            Err(error) => {
                if !is_refusal(&error) {
                    self.doubt();
                    return Err(error);
                }
                tracing::error!(
                    error = format!("{error:#}"),
                    "looking for the Service that the kernel refuses"
                );
                let steps = self.start_over(world).and_then(|()| self.commit_apart(world, now));
                steps.map(|steps| Synced { steps }).inspect_err(|_| self.doubt())
            }
        }
    }

    /// Takes from the Node object and the ServiceCIDRs what rules are made of. If it differs, the kernel's are compared
    /// with those that are wanted now.
    fn learn_node(&mut self, world: &World) {
        let facts = self.config.node.after(world.node(&self.config.node_name));
        let networks = world.service_networks();
        if (facts, &networks) == (self.config.node, &self.config.service_networks) {
            return;
        }
        (self.config.node, self.config.service_networks) = (facts, networks);
        let rulesets = Ruleset::each(&self.config);
        if rulesets != self.rulesets {
            self.rulesets = rulesets;
            self.doubt();
        }
    }

    /// All that is to be done, in one commit. Where everything is looked at and that is much, in
    /// several, each with whole Services: the plan of all takes more memory than all they are.
    fn attempt(&mut self, world: &World, now: Instant) -> anyhow::Result<usize> {
        self.learn_node(world);
        let fresh = self.mirror.is_none();
        self.host_changed |= fresh;
        self.learn_host()?;
        if fresh {
            self.start_over(world)?;
        }
        let due: BTreeSet<Holder> =
            self.later.iter().filter(|(_, at)| **at <= now).map(|(holder, _)| holder.clone()).collect();
        self.later.retain(|holder, _| !due.contains(holder));
        let mut changed = std::mem::take(&mut self.dirty);
        let suspects: Vec<ServiceName> = self
            .refused
            .iter()
            .filter(|(name, at)| changed.remove(*name) || **at <= now)
            .map(|(name, _)| name.clone())
            .collect();

        self.node_changed = false;
        let mut steps = self.prepare();
        let mut done = 0;
        // A table that is made anew is never seen half filled.
        let remade = steps.iter().any(|step| matches!(step, Step::DeleteTable(_)));
        while fresh && !remade && changed.len() > PART {
            let (part, rest) = split(changed);
            changed = rest;
            let plan = self.plan(&part, world);
            self.later.extend(plan.later.into_keys().map(|holder| (holder, now + GRACE)));
            steps.extend(plan.now);
            done += self.commit(&std::mem::take(&mut steps))?;
        }
        let work: BTreeSet<ServiceName> = changed.iter().chain(due.iter().flatten()).cloned().collect();
        let mut plan = self.plan(&work, world);
        if std::mem::take(&mut self.sweep) || due.contains(&None) {
            plan.append(self.leftovers());
        }
        steps.extend(plan.now);
        for (holder, surplus) in plan.later {
            let settled = due.contains(&holder) && holder.as_ref().is_none_or(|name| !changed.contains(name));
            if settled {
                steps.extend(surplus);
            } else {
                self.later.insert(holder, now + GRACE);
            }
        }
        done += self.commit(&steps)?;
        for name in suspects {
            done += self.commit_alone(&name, world, now)?;
        }
        Ok(done)
    }

    /// Reads the kernel, and marks everything.
    fn start_over(&mut self, world: &World) -> anyhow::Result<()> {
        let mirror = self.kernel.observe(&self.rulesets).context("reading our tables")?;
        self.stranded = Stranded::of(&mirror);
        self.mirror = Some(mirror);
        self.later.clear();
        self.dirty.extend(world.services().map(|s| s.name.clone()));
        self.dirty.extend(self.planner.services().cloned());
        self.dirty.retain(|name| !self.refused.contains_key(name));
        self.planner.forget_released();
        self.sweep = true;
        Ok(())
    }

    /// The steps that no Service asks for: tables, chains and sets, the node's addresses. The
    /// mirror follows at once, since elements are planned for the tables as they will be.
    fn prepare(&mut self) -> Vec<Step> {
        // While it is not known which addresses answer, those that did go on.
        let mut wanted = self.config.answering(&self.host);
        if let Some(wanted) = &mut wanted {
            wanted.retain(|ip| self.config.families.contains(IpFamily::of(*ip)));
        }
        let Some(mirror) = &mut self.mirror else { return Vec::new() };
        let before = mirror.node_addresses.clone();
        let mut steps = plan_structure(&self.rulesets, mirror).now;
        steps.iter().for_each(|step| mirror.follow(step));
        steps.extend(plan_node_addresses(&wanted.unwrap_or(before), mirror).now);
        steps
    }

    fn plan(&mut self, services: &BTreeSet<ServiceName>, world: &World) -> Plan {
        let Some(mirror) = &self.mirror else { return Plan::default() };
        let node = &self.config.node_name;
        let place = Place { node, zone: world.node(node).and_then(Node::zone) };
        let families = self.config.families;
        let desired = |name: &ServiceName| {
            let service = world.service(name);
            service.map(|s| DesiredService::of(s, world, place).within(families)).unwrap_or_default()
        };
        self.planner.plan(services, desired, mirror)
    }

    fn leftovers(&self) -> Plan {
        self.mirror.as_ref().map(|mirror| self.planner.leftovers(mirror)).unwrap_or_default()
    }

    /// One bad Service never blocks the others: all but those that the kernel refuses. What is
    /// surplus waits for the next sync.
    fn commit_apart(&mut self, world: &World, now: Instant) -> anyhow::Result<usize> {
        let steps = self.prepare();
        let mut done = self.commit(&steps)?;
        let all: Vec<ServiceName> = std::mem::take(&mut self.dirty).into_iter().collect();
        let mut parts = vec![all];
        let before = self.refusals.len();
        while let Some(mut services) = parts.pop() {
            let found = self.refusals.len() - before;
            anyhow::ensure!(found < MOST_REFUSALS, "the kernel refuses {found} Services and perhaps more");
            if let [name] = services.as_slice() {
                done += self.commit_alone(name, world, now)?;
                continue;
            }
            let plan = self.plan(&services.iter().cloned().collect(), world);
            self.later.extend(plan.later.into_keys().map(|holder| (holder, now + GRACE)));
            match self.commit(&plan.now) {
                Ok(steps) => done += steps,
                Err(error) if is_refusal(&error) => {
                    let second = services.split_off(services.len() / 2);
                    parts.extend([second, services]);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    /// Commits one Service; if the kernel refuses it, it is left as it is for a while.
    fn commit_alone(&mut self, name: &ServiceName, world: &World, now: Instant) -> anyhow::Result<usize> {
        let plan = self.plan(&BTreeSet::from([name.clone()]), world);
        self.later.extend(plan.later.into_keys().map(|holder| (holder, now + GRACE)));
        match self.commit(&plan.now) {
            Ok(steps) => {
                self.refused.remove(name);
                Ok(steps)
            }
            Err(error) if is_refusal(&error) => {
                let (service, error) = (name.as_str(), format!("{error:#}"));
                tracing::error!(service, error, "the kernel refuses this Service; it is left out for now");
                self.refusals.push((name.clone(), error));
                self.refused.insert(name.clone(), now + QUARANTINE);
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Commits and follows.
    fn commit(&mut self, steps: &[Step]) -> anyhow::Result<usize> {
        let Some(mirror) = &mut self.mirror else { return Ok(0) };
        if steps.is_empty() {
            return Ok(0);
        }
        log(steps);
        let began = Instant::now();
        self.kernel.commit(steps).context("committing")?;
        let of = |family| steps.iter().filter(|step| step.family() == family).count();
        self.commits.push(Commit { steps: FAMILIES.map(of), took: began.elapsed() });
        steps.iter().for_each(|step| mirror.follow(step));
        self.stranded.follow(steps, mirror);
        Ok(steps.len())
    }
}

/// The first [`PART`], and the rest.
fn split(mut services: BTreeSet<ServiceName>) -> (BTreeSet<ServiceName>, BTreeSet<ServiceName>) {
    let rest = services.iter().nth(PART).cloned().map(|first| services.split_off(&first));
    (services, rest.unwrap_or_default())
}

/// Tells what is about to be committed.
fn log(steps: &[Step]) {
    if steps.len() > LOGGED_STEPS {
        tracing::info!(steps = steps.len(), "committing");
        return;
    }
    for step in steps {
        tracing::info!("{step}");
    }
}

/// Whether reading the kernel again may help at once.
fn retries(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(Error::Rejected(_) | Error::StaleGeneration))
}

/// Whether what was asked for cannot be done: by the kernel, or already on the way to it. A kernel that has no memory or
/// grants no permission refuses no Service: then the sync has failed, and is tried again.
fn is_refusal(error: &anyhow::Error) -> bool {
    match error.downcast_ref() {
        Some(Error::Rejected(rejection)) => !rejection.is_of_the_host(),
        Some(Error::Invalid { .. }) => true,
        _ => false,
    }
}
