//! What is to be done, against what the kernel has: one commit a sync.

mod apart;

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use anyhow::Context;
use service_model::{IpFamily, Node, Service, ServiceName, World};

use crate::config::Config;
use crate::host;
use crate::metrics::Commit;
use crate::nft::desired::{DesiredService, titles_of};
use crate::nft::kernel::Kernel;
use crate::nft::layout::FAMILIES;
use crate::nft::mirror::Mirror;
use crate::nft::note::Note;
use crate::nft::plan::{GRACE, Holder, Plan, Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::nft::step::Step;
use crate::nft::stranded::Stranded;
use crate::select::Place;

/// Services that are planned at once when all are. What a plan takes beside what stays is gone after it, but leaves gaps
/// in the heap that a larger part makes larger.
pub const PART: usize = 250;
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
    /// The next reading is not trusted: the tables are made anew.
    remake: bool,
    /// What was there at the start of this process is as it should be now.
    begun: bool,
    /// Who has a second batch, and when it may be committed.
    later: BTreeMap<Holder, Instant>,
    /// Services that the kernel refused, and when they are tried again.
    refused: BTreeMap<ServiceName, Instant>,
    /// Those that were refused anew, and what the kernel said; until they are told.
    refusals: Vec<(ServiceName, String)>,
    changes_by_others: usize,
    /// Until they are told.
    notes: Vec<(ServiceName, Note)>,
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
            remake: false,
            begun: false,
            later: BTreeMap::new(),
            refused: BTreeMap::new(),
            refusals: Vec::new(),
            changes_by_others: 0,
            notes: Vec::new(),
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
            let mut host = host::addresses().context("asking for this host's addresses")?;
            host.retain(|ip| self.config.families.contains(IpFamily::of(*ip)));
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
    /// them again. It does so too where nothing is known but that somebody committed unseen.
    pub fn changed_by_others(&mut self) -> bool {
        if self.mirror.is_none() || !self.kernel.changed_by_others() {
            return false;
        }
        self.doubt();
        let seen = !self.kernel.is_taken_unawares();
        self.changes_by_others += usize::from(seen);
        seen
    }

    /// How often that was so, or was found otherwise, since this was last asked.
    pub fn take_changes_by_others(&mut self) -> usize {
        std::mem::take(&mut self.changes_by_others)
    }

    /// Compares the kernel with what we think of it, in case a notification was missed; not if nobody has committed
    /// anything since. Returns whether it differs: then the next sync reads it again.
    ///
    /// # Errors
    /// When the kernel does not answer.
    pub fn recheck(&mut self) -> anyhow::Result<bool> {
        let Some(mirror) = &self.mirror else { return Ok(false) };
        if self.kernel.is_as_read()? {
            return Ok(false);
        }
        let differs = self.kernel.observe(&self.rulesets)? != *mirror;
        if differs {
            self.changes_by_others += 1;
            self.doubt();
        }
        Ok(differs)
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

    /// What users should know, since this was last asked.
    pub fn take_notes(&mut self) -> Vec<(ServiceName, Note)> {
        std::mem::take(&mut self.notes)
    }

    /// Whether that is still so.
    pub fn is_noted(&self, note: &(ServiceName, Note)) -> bool {
        self.planner.is_noted(note)
    }

    /// What was told and is still so is told again: whoever should have learned of it may not have.
    pub fn repeat_notes(&mut self) {
        self.notes.extend(self.planner.notes().cloned());
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
            Ok(steps) => {
                self.begun = true;
                Ok(Synced { steps })
            }
            // Somebody committed while we did not listen. Now we do.
            Err(error) if apart::is_overtaken(&error) && self.kernel.is_taken_unawares() => {
                tracing::info!("somebody committed beside us; reading the kernel and planning anew");
                self.doubt();
                self.sync(world, now)
            }
            // What we know may be wrong, or one of the Services is: first the former.
            Err(error) if !fresh && apart::retries(&error) => {
                self.changes_by_others += usize::from(apart::is_overtaken(&error));
                tracing::warn!(error = format!("{error:#}"), "reading the kernel and planning anew");
                self.doubt();
                self.sync(world, now)
            }
            Err(error) => {
                if !apart::is_refusal(&error) {
                    self.doubt();
                    return Err(error);
                }
                tracing::error!(
                    error = format!("{error:#}"),
                    "looking for the Service that the kernel refuses"
                );
                let steps = self.start_over(world).and_then(|()| self.commit_apart(world, now));
                let steps = steps.inspect_err(|_| self.doubt())?;
                self.begun = true;
                Ok(Synced { steps })
            }
        }
    }

    /// Takes from the Node object and the ServiceCIDRs what rules are made of.
    fn learn_node(&mut self, world: &World) {
        let facts = self.config.node.after(world.node(&self.config.node_name));
        let networks = world.service_networks();
        if (facts, &networks) == (self.config.node, &self.config.service_networks) {
            return;
        }
        (self.config.node, self.config.service_networks) = (facts, networks);
        self.configured();
    }

    /// The Node's own addresses are not waited for any more: NodePorts answer on all of the host's.
    pub fn go_on_without_addresses(&mut self) {
        self.config.node.unaddressed = true;
        self.node_changed = true;
        self.configured();
    }

    /// If other rules follow from the configuration, the kernel's are compared with them.
    fn configured(&mut self) {
        let rulesets = Ruleset::each(&self.config);
        if rulesets != self.rulesets {
            self.rulesets = rulesets;
            self.doubt();
        }
    }

    /// All that is to be done, in one commit. At a start with many Services in several, each with whole ones: the plan of
    /// all takes more memory than all they are.
    fn attempt(&mut self, world: &World, now: Instant) -> anyhow::Result<usize> {
        self.learn_node(world);
        let fresh = self.mirror.is_none();
        self.host_changed |= fresh;
        self.learn_host()?;
        if fresh {
            self.start_over(world)?;
        }
        let mut due: BTreeSet<Holder> =
            self.later.iter().filter(|(_, at)| **at <= now).map(|(holder, _)| holder.clone()).collect();
        self.later.retain(|holder, _| !due.contains(holder));
        let mut changed = std::mem::take(&mut self.dirty);
        let suspects = self.suspects(&mut changed, now);

        self.node_changed = false;
        let mut steps = self.prepare();
        let apart = !self.begun && !steps.iter().any(leaves_gaps);
        let mut done = 0;
        if fresh && changed.len() > PART {
            self.foresee(&changed, world);
        }
        while changed.len() > PART {
            let (part, rest) = split(changed);
            changed = rest;
            // They have a second from now.
            due.retain(|holder| holder.as_ref().is_none_or(|name| !part.contains(name)));
            let plan = self.plan(&part, world);
            self.put_off(plan.later, now);
            if apart {
                steps.extend(plan.now);
                done += self.commit(&std::mem::take(&mut steps))?;
            } else {
                self.follow(&plan.now);
                steps.extend(plan.now);
            }
        }
        let work =
            changed.iter().chain(due.iter().flatten()).filter(|name| !self.refused.contains_key(*name));
        let work: BTreeSet<ServiceName> = work.cloned().collect();
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
            done += self.commit_alone(&name, &mut Vec::new(), world, now)?;
        }
        Ok(done)
    }

    /// Reads the kernel, and marks everything.
    fn start_over(&mut self, world: &World) -> anyhow::Result<()> {
        let mut mirror = self.kernel.observe(&self.rulesets).context("reading our tables")?;
        if std::mem::take(&mut self.remake) {
            FAMILIES.into_iter().for_each(|family| mirror.structure_mut(family).unusable = true);
        }
        self.stranded = Stranded::of(&mirror);
        self.mirror = Some(mirror);
        self.later.clear();
        // Those that are refused wait for their time, unless they changed.
        let all = world.services().map(|s| &s.name).chain(self.planner.services());
        self.dirty.extend(all.filter(|name| !self.refused.contains_key(*name)).cloned());
        self.planner.forget_released();
        self.sweep = true;
        Ok(())
    }

    /// Tells the planner who asks for what, where that can be contested.
    fn foresee(&mut self, services: &BTreeSet<ServiceName>, world: &World) {
        if !world.services().any(may_contest) {
            return;
        }
        let families = self.config.families;
        for service in services.iter().filter_map(|name| world.service(name)) {
            let titles = titles_of(service).into_iter().filter(|(of, _)| families.contains(of.family()));
            self.planner.foresee(&service.name, titles);
        }
    }

    fn put_off(&mut self, later: BTreeMap<Holder, Vec<Step>>, now: Instant) {
        self.later.extend(later.into_keys().map(|holder| (holder, now + GRACE)));
    }

    /// The steps that no Service asks for: tables, chains and sets, the node's addresses. The
    /// mirror follows at once, since elements are planned for the tables as they will be.
    fn prepare(&mut self) -> Vec<Step> {
        // While it is not known which addresses answer, those that did go on.
        let wanted = self.config.answering(&self.host);
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
        // One that is refused and not looked at now gets nothing that others give up.
        let refused = |name: &ServiceName| self.refused.contains_key(name) && !services.contains(name);
        let desired = |name: &ServiceName| {
            let service = world.service(name).filter(|_| !refused(name));
            service.map(|s| DesiredService::of(s, world, place).within(families)).unwrap_or_default()
        };
        let mut plan = self.planner.plan(services, desired, mirror);
        self.notes.append(&mut plan.notes);
        plan
    }

    fn leftovers(&self) -> Plan {
        self.mirror.as_ref().map(|mirror| self.planner.leftovers(mirror)).unwrap_or_default()
    }

    /// Commits and follows.
    fn commit(&mut self, steps: &[Step]) -> anyhow::Result<usize> {
        if self.mirror.is_none() || steps.is_empty() {
            return Ok(0);
        }
        log(steps);
        let began = Instant::now();
        self.kernel.commit(steps).context("committing")?;
        let of = |family| steps.iter().filter(|step| step.family() == family).count();
        self.commits.push(Commit { steps: FAMILIES.map(of), took: began.elapsed() });
        self.follow(steps);
        Ok(steps.len())
    }

    /// What was committed, or will be with what is planned next. Following it twice does no harm.
    fn follow(&mut self, steps: &[Step]) {
        if let Some(mirror) = &mut self.mirror {
            steps.iter().for_each(|step| mirror.follow(step));
            self.stranded.follow(steps, mirror);
        }
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

/// ClusterIPs and NodePorts are the API server's to give, each to one Service; other addresses are anybody's to name.
fn may_contest(service: &Service) -> bool {
    !service.external_ips.is_empty() || service.vip_mode_ips().next().is_some()
}

/// Whether what a table holds is filled in again only by the plans of all Services: it is never seen in between.
fn leaves_gaps(step: &Step) -> bool {
    matches!(step, Step::DeleteTable(_) | Step::CreateSet(..))
}
