//! What is to be done, against what the kernel has: one commit a sync.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use nfnetlink::Error;
use service_model::{ServiceName, World};

use crate::config::Config;
use crate::nft::desired::DesiredService;
use crate::nft::kernel::Kernel;
use crate::nft::mirror::Mirror;
use crate::nft::plan::{Holder, Plan, Planner, plan_node_addresses, plan_structure};
use crate::nft::ruleset::Ruleset;
use crate::nft::step::Step;
use crate::select::Place;

/// How long what nothing names any more stays, for packets that are under way.
const GRACE: Duration = Duration::from_secs(1);
/// A Service that the kernel refuses is tried again after this long.
const QUARANTINE: Duration = Duration::from_secs(30);
/// Plans of more steps are logged by their size only.
const LOGGED_STEPS: usize = 60;
/// A commit of more steps is split, endpoints first, when the table is new.
const COLD_BATCH: usize = 100_000;

/// Owns the mirror and the socket; told what is dirty.
#[derive(Debug)]
pub struct Engine {
    config: Config,
    rulesets: [Ruleset; 2],
    kernel: Kernel,
    /// The state of the kernel, and the generation in which it was so; `None` when in doubt.
    mirror: Option<(Mirror, u32)>,
    planner: Planner,
    dirty: BTreeSet<ServiceName>,
    /// Elements that no Service claims are looked for.
    sweep: bool,
    /// Who has a second batch, and when it may be committed.
    later: BTreeMap<Holder, Instant>,
    refused: BTreeMap<ServiceName, Instant>,
    /// Commits that were ours, to tell them from others' in notifications.
    pub commits: u64,
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
        let kernel =
            Kernel::open().context("nf_tables needs CAP_NET_ADMIN and a kernel with CONFIG_NF_TABLES")?;
        Ok(Self {
            rulesets: Ruleset::both(&config),
            config,
            kernel,
            mirror: None,
            planner: Planner::default(),
            dirty: BTreeSet::new(),
            sweep: false,
            later: BTreeMap::new(),
            refused: BTreeMap::new(),
            commits: 0,
        })
    }

    pub fn mark(&mut self, services: impl IntoIterator<Item = ServiceName>) {
        self.dirty.extend(services);
    }

    /// Reads the kernel again before the next plan: somebody else changed our table, or may have.
    pub fn doubt(&mut self) {
        self.mirror = None;
    }

    /// The generation that the mirror is of.
    pub fn generation(&self) -> Option<u32> {
        self.mirror.as_ref().map(|(_, generation)| *generation)
    }

    /// When there is something to do that nobody will ask for.
    pub fn next_due(&self) -> Option<Instant> {
        self.later.values().chain(self.refused.values()).min().copied()
    }

    /// Plans what is dirty or due, and commits it.
    ///
    /// # Errors
    /// What the kernel refused, or a socket that is broken; everything is planned anew then.
    pub fn sync(&mut self, world: &World, now: Instant) -> anyhow::Result<Synced> {
        let mut synced = Synced::default();
        if self.mirror.is_none() {
            synced.steps += self.start_over(world)?;
        }
        let due: BTreeSet<Holder> =
            self.later.iter().filter(|(_, at)| **at <= now).map(|(holder, _)| holder.clone()).collect();
        let retried = self.refused.iter().filter(|(_, at)| **at <= now).map(|(name, _)| name.clone());
        let mut changed = std::mem::take(&mut self.dirty);
        changed.extend(retried);
        self.refused.retain(|name, _| !changed.contains(name));
        self.later.retain(|holder, _| !due.contains(holder));
        synced.steps += self.commit_node_addresses(world)?;

        let work: BTreeSet<ServiceName> = changed.iter().chain(due.iter().flatten()).cloned().collect();
        let mut plan = self.plan(&work, world);
        if std::mem::take(&mut self.sweep) || due.contains(&None) {
            plan.append(self.leftovers());
        }
        let mut steps = plan.now;
        for (holder, surplus) in plan.later {
            let settled = due.contains(&holder) && holder.as_ref().is_none_or(|name| !changed.contains(name));
            if settled {
                steps.extend(surplus);
            } else {
                self.later.insert(holder, now + GRACE);
            }
        }
        match self.commit(&steps) {
            Ok(steps) => synced.steps += steps,
            Err(Error::Rejected(rejection)) => {
                tracing::error!(%rejection, "the kernel refused a plan; committing its Services one by one");
                synced.steps += self.commit_each(&work, world, now)?;
            }
            Err(error) => {
                self.dirty.extend(work);
                return Err(error).context("committing");
            }
        }
        Ok(synced)
    }

    /// Reads the kernel, and brings tables, chains and sets into shape.
    fn start_over(&mut self, world: &World) -> anyhow::Result<usize> {
        let generation = self.kernel.generation()?;
        let mirror = self.kernel.observe(&self.rulesets).context("reading our tables")?;
        let structure = plan_structure(&self.rulesets, &mirror);
        self.mirror = Some((mirror, generation));
        self.later.clear();
        self.dirty.extend(world.services().map(|s| s.name.clone()));
        self.dirty.extend(self.planner.services().cloned());
        self.planner.forget_released();
        self.sweep = true;
        Ok(self.commit(&structure.now)?)
    }

    fn commit_node_addresses(&mut self, world: &World) -> anyhow::Result<usize> {
        let wanted = self.node_addresses(world);
        let Some((mirror, _)) = &self.mirror else { return Ok(0) };
        let plan = plan_node_addresses(&wanted, mirror);
        Ok(self.commit(&plan.now)?)
    }

    fn node_addresses(&self, world: &World) -> BTreeSet<IpAddr> {
        let host: Vec<IpAddr> = nix::ifaddrs::getifaddrs()
            .into_iter()
            .flatten()
            .filter_map(|interface| {
                let address = interface.address?;
                let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
                v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
            })
            .collect();
        let node = world.node(&self.config.node_name);
        let internal = node.into_iter().flat_map(service_model::Node::internal_ips);
        self.config.nodeport_addresses.select(internal, &host).into_iter().collect()
    }

    fn plan(&mut self, services: &BTreeSet<ServiceName>, world: &World) -> Plan {
        let Some((mirror, _)) = &self.mirror else { return Plan::default() };
        let node = &self.config.node_name;
        let place = Place { node, zone: world.node(node).and_then(service_model::Node::zone) };
        let desired = |name: &ServiceName| {
            world.service(name).map(|s| DesiredService::of(s, world, place)).unwrap_or_default()
        };
        self.planner.plan(services, desired, mirror)
    }

    fn leftovers(&self) -> Plan {
        self.mirror.as_ref().map(|(mirror, _)| self.planner.leftovers(mirror)).unwrap_or_default()
    }

    /// One bad Service never blocks the others.
    fn commit_each(
        &mut self,
        work: &BTreeSet<ServiceName>,
        world: &World,
        now: Instant,
    ) -> anyhow::Result<usize> {
        let mut done = 0;
        for name in work {
            let plan = self.plan(&BTreeSet::from([name.clone()]), world);
            match self.commit(&plan.now) {
                Ok(steps) => done += steps,
                Err(Error::Rejected(rejection)) => {
                    tracing::error!(service = %name, %rejection, "left out until it changes; the others go on");
                    self.refused.insert(name.clone(), now + QUARANTINE);
                }
                Err(error) => return Err(error).context("committing one Service"),
            }
        }
        Ok(done)
    }

    /// Commits and follows. A foreign commit in between is no error if our table is untouched.
    fn commit(&mut self, steps: &[Step]) -> nfnetlink::Result<usize> {
        let Some((mirror, generation)) = &mut self.mirror else { return Ok(0) };
        if steps.is_empty() {
            return Ok(0);
        }
        log(steps);
        for batch in batches(steps) {
            match self.kernel.commit(&batch, *generation) {
                Ok(next) => *generation = next,
                Err(error) => {
                    if !matches!(error, Error::Rejected(_)) {
                        self.mirror = None;
                    }
                    return Err(error);
                }
            }
            self.commits += 1;
            batch.iter().for_each(|step| mirror.follow(step));
        }
        Ok(steps.len())
    }

    /// The generation moved without touching our table.
    pub fn follow_generation(&mut self, now: u32) {
        if let Some((_, generation)) = &mut self.mirror {
            *generation = now;
        }
    }
}

/// One batch, but for a cold start too large for the socket: endpoints first, so that a frontend is
/// dispatched only when all that it needs is there.
fn batches(steps: &[Step]) -> Vec<std::borrow::Cow<'_, [Step]>> {
    use crate::nft::step::Element;
    let only_adds = steps.iter().all(|s| matches!(s, Step::Add(_)));
    if steps.len() <= COLD_BATCH || !only_adds {
        return vec![steps.into()];
    }
    let (endpoints, rest): (Vec<Step>, Vec<Step>) =
        steps.iter().cloned().partition(|s| matches!(s, Step::Add(Element::Endpoint { .. })));
    let cut = |steps: Vec<Step>| steps.chunks(COLD_BATCH).map(|c| c.to_vec().into()).collect::<Vec<_>>();
    [cut(endpoints), cut(rest)].concat()
}

fn log(steps: &[Step]) {
    if steps.len() > LOGGED_STEPS {
        tracing::info!(steps = steps.len(), "committing");
        return;
    }
    for step in steps {
        tracing::info!("{step}");
    }
}
