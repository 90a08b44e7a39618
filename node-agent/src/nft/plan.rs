//! From desired to programmed, one Service at a time.
//!
//! A plan has two batches. The first is what must hold now: new endpoints and the counts that
//! name them, in one commit. The second takes away what nothing names any more; it must wait a
//! second, because a batch is atomic per lookup and not per packet: a packet that has drawn an
//! index may look it up after the commit.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use service_model::ServiceName;

use super::affinity::{AffinityChain, AffinityKey};
use super::affinity_plan::{Numbering, Numbers, plan_chain};
use super::claims::{Claims, Title};
use super::desired::{DesiredFrontend, DesiredService};
use super::layout::{Frontend, Group, MAX_TARGETS, Pool, SetName, SizeClass, Target};
use super::mirror::{FrontendState, Mirror};
use super::note::{Note, Notes};
use super::ruleset::Ruleset;
use super::source_ranges::SourceNetwork;
use super::step::{Element, Hairpin, Step};

/// How long what nothing names any more stays, for packets that are under way.
pub const GRACE: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// Committed together, at once.
    pub now: Vec<Step>,
    /// Committed at least a second after the last change of the Service that it belongs to.
    pub later: BTreeMap<Holder, Vec<Step>>,
    /// Each is told by one plan.
    pub notes: Vec<(ServiceName, Note)>,
}

/// The Service that owns a resource, or gave it up last; `None` for what another life of this
/// program left behind.
pub type Holder = Option<ServiceName>;

/// What several Services can claim, and only one can have.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    /// First in a plan: frontends lead to it.
    Affinity(AffinityKey),
    Frontend(Frontend),
    Hairpin(Hairpin),
    ClusterIp(IpAddr),
}

/// Plans Services, and remembers who claims what.
#[derive(Debug, Default)]
pub struct Planner {
    claims: Claims<Resource>,
    /// What nobody claims any more and is still there, its endpoints waiting for their second; with
    /// the Service that gave it up last.
    released: BTreeMap<Resource, ServiceName>,
    numbers: Numbers,
    notes: Notes,
}

impl Planner {
    /// `seed`: different in each life of the program.
    pub fn new(seed: u64) -> Self {
        Self { numbers: Numbers::new(seed), ..Self::default() }
    }

    /// Which frontends a Service asks for, before it is planned: where many are planned in parts, who owns what must not
    /// depend on the part. What it gives up, its plan finds.
    pub fn foresee(&mut self, service: &ServiceName, titles: impl IntoIterator<Item = (Frontend, Title)>) {
        let resources = titles.into_iter().map(|(frontend, title)| (Resource::Frontend(frontend), title));
        self.claims.foresee(service, resources);
    }

    /// The steps for some Services, in one commit. `desired_of` answers for any Service; others are
    /// asked for only if they share a frontend with these.
    pub fn plan(
        &mut self,
        services: &BTreeSet<ServiceName>,
        desired_of: impl Fn(&ServiceName) -> DesiredService,
        mirror: &Mirror,
    ) -> Plan {
        let mut wanted: BTreeMap<ServiceName, DesiredService> = BTreeMap::new();
        let mut passed_on: BTreeSet<Resource> = BTreeSet::new();
        let mut numbering = Numbering::new(&mut self.numbers);
        let mut chains: BTreeMap<AffinityKey, AffinityChain> = BTreeMap::new();
        let held = self.released.iter().filter(|(_, by)| services.contains(*by));
        let mut touched: BTreeSet<(Resource, ServiceName)> =
            held.map(|(resource, by)| (resource.clone(), by.clone())).collect();
        for service in services {
            let own = desired_of(service);
            for resource in self.claims.of(service) {
                if let Resource::Frontend(frontend) = resource
                    && !own.frontends.contains_key(frontend)
                {
                    self.notes.forget(*frontend, service);
                }
            }
            let frontends =
                own.frontends.iter().map(|(frontend, of)| (Resource::Frontend(*frontend), of.title));
            let hairpins = own.hairpins.iter().copied().map(Resource::Hairpin);
            let cluster_ips = own.cluster_ips.iter().copied().map(Resource::ClusterIp);
            let affinities = own.affinities.keys().cloned().map(Resource::Affinity);
            let others = hairpins.chain(cluster_ips).chain(affinities);
            let others = others.map(|resource| (resource, Title::Allocated));
            let changed = self.claims.replace(service, frontends.chain(others));
            let all = changed.iter().chain(self.claims.of(service)).cloned();
            touched.extend(all.map(|resource| (resource, service.clone())));
            passed_on.extend(changed);
            chains.append(&mut numbering.chains(service, &own, mirror));
            wanted.insert(service.clone(), own);
        }
        let mut plan = Plan::default();
        let mut last = None;
        for (resource, toucher) in touched {
            if last.as_ref() == Some(&resource) {
                continue;
            }
            last = Some(resource.clone());
            let owner = self.claims.owner(&resource).cloned();
            if owner.is_none() && resource.is_in(mirror) {
                self.released.insert(resource.clone(), toucher.clone());
            } else {
                self.released.remove(&resource);
            }
            // It stays with whoever had it: these Services ask for it in vain.
            let is_anothers = owner.as_ref().is_some_and(|owner| !services.contains(owner));
            if is_anothers && !passed_on.contains(&resource) {
                if let Resource::Frontend(frontend) = resource {
                    plan.notes.extend(self.notes.add(frontend, taken(frontend, &self.claims)));
                }
                continue;
            }
            let holder = owner.clone().or(Some(toucher));
            match resource {
                Resource::Affinity(key) => {
                    // It is of a Service port: no other Service can want it.
                    let (now, later) = plan_chain(&key, chains.remove(&key), mirror);
                    plan.now.extend(now);
                    plan.put_off(holder, later);
                }
                Resource::Hairpin(hairpin) => plan.hairpin(hairpin, owner.is_some(), mirror),
                Resource::ClusterIp(ip) => plan.cluster_ip(ip, owner.is_some(), mirror),
                Resource::Frontend(frontend) => {
                    let desired = owner.map(|o| &*wanted.entry(o).or_insert_with_key(&desired_of));
                    let want = desired.and_then(|d| d.frontends.get(&frontend));
                    plan.notes.extend(self.notes.update(frontend, notes(frontend, want, &self.claims)));
                    plan.frontend(frontend, want, holder, mirror);
                }
            }
        }
        plan
    }

    /// What is programmed and nobody has ever claimed: left by another life of this program.
    pub fn leftovers(&self, mirror: &Mirror) -> Plan {
        let mut plan = Plan::default();
        let unknown = |r: &Resource| self.claims.owner(r).is_none() && !self.released.contains_key(r);
        for key in mirror.affinities.chains().keys().filter(|k| unknown(&Resource::Affinity((*k).clone()))) {
            let (now, later) = plan_chain(key, None, mirror);
            plan.now.extend(now);
            plan.put_off(None, later);
        }
        let leads = mirror.affinities.leads().keys().map(|(frontend, _)| frontend);
        let all = mirror.frontends.keys().chain(leads).chain(mirror.source_ranges.keys());
        let frontends: BTreeSet<&Frontend> = all.collect();
        for frontend in frontends.into_iter().filter(|f| unknown(&Resource::Frontend(**f))) {
            plan.frontend(*frontend, None, None, mirror);
        }
        for hairpin in mirror.hairpins.iter().filter(|h| unknown(&Resource::Hairpin(**h))) {
            plan.hairpin(*hairpin, false, mirror);
        }
        for ip in mirror.cluster_ips.iter().filter(|ip| unknown(&Resource::ClusterIp(**ip))) {
            plan.cluster_ip(*ip, false, mirror);
        }
        plan
    }

    /// The kernel was read anew: what is left there unclaimed is found by [`Planner::leftovers`].
    pub fn forget_released(&mut self) {
        self.released.clear();
    }

    /// What was told and is still so.
    pub fn notes(&self) -> impl Iterator<Item = &(ServiceName, Note)> {
        self.notes.all()
    }

    /// Whether that is among them.
    pub fn is_noted(&self, note: &(ServiceName, Note)) -> bool {
        self.notes.has(note)
    }

    /// Services that claimed something when they were last planned.
    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.claims.services()
    }
}

impl Resource {
    fn is_in(&self, mirror: &Mirror) -> bool {
        match self {
            Resource::Affinity(key) => mirror.affinities.chains().contains_key(key),
            Resource::Frontend(frontend) => {
                mirror.frontends.contains_key(frontend)
                    || mirror.affinities.has_lead(*frontend)
                    || mirror.source_ranges.contains_key(frontend)
            }
            Resource::Hairpin(hairpin) => mirror.hairpins.contains(hairpin),
            Resource::ClusterIp(ip) => mirror.cluster_ips.contains(ip),
        }
    }
}

/// The tables, chains and sets of both families. Elements of a family are planned after its table
/// is as it should be: a table that is made anew has none.
pub fn plan_structure(rulesets: &[Ruleset], mirror: &Mirror) -> Plan {
    let mut plan = Plan::default();
    for ruleset in rulesets {
        let (family, have) = (ruleset.family, mirror.structure(ruleset.family));
        if have.fits(ruleset) {
            continue;
        }
        if have.exists && have.unusable {
            plan.now.push(Step::DeleteTable(family));
        }
        if !have.exists || have.unusable {
            plan.now.push(Step::CreateTable(Box::new(ruleset.clone())));
            continue;
        }
        plan.now.extend(
            SetName::all(family).filter(|s| !have.sets.contains(s)).map(|s| Step::CreateSet(family, s)),
        );
        // Those that others lead to first: one that is missing is made before a rule names it.
        let wrong = ruleset.chains.iter().rev().map(|c| c.name).filter(|name| !have.chains.contains(name));
        plan.now.extend(wrong.map(|name| Step::RewriteChain(name, Box::new(ruleset.clone()))));
        // What somebody wrote there may use what is to be deleted. Their Services fill them again.
        let edited = mirror.affinities.edited().filter(|key| key.family == family);
        plan.now.extend(edited.map(|key| Step::WriteAffinity(key.clone(), Box::new(AffinityChain::empty()))));
        plan.now.extend(have.other_chains.iter().map(|c| Step::FlushChain(family, c.clone())));
        // In this order: rules use sets, and maps of verdicts lead to chains.
        plan.now.extend(have.other_sets.iter().map(|s| Step::DeleteSet(family, s.clone())));
        plan.now.extend(have.other_chains.iter().map(|c| Step::DeleteChain(family, c.clone())));
    }
    plan
}

/// The node's addresses that answer NodePorts.
pub fn plan_node_addresses(wanted: &BTreeSet<IpAddr>, mirror: &Mirror) -> Plan {
    let added = wanted.difference(&mirror.node_addresses).map(|ip| Step::Add(Element::NodeAddress(*ip)));
    let gone = mirror.node_addresses.difference(wanted).map(|ip| Step::Delete(Element::NodeAddress(*ip)));
    Plan { now: gone.chain(added).collect(), ..Plan::default() }
}

impl Plan {
    pub fn is_empty(&self) -> bool {
        self.now.is_empty() && self.later.is_empty()
    }

    pub fn append(&mut self, other: Plan) {
        self.now.extend(other.now);
        self.notes.extend(other.notes);
        for (holder, steps) in other.later {
            self.later.entry(holder).or_default().extend(steps);
        }
    }

    /// The second batches of everybody.
    pub fn all_later(&self) -> Vec<Step> {
        self.later.values().flatten().cloned().collect()
    }

    fn hairpin(&mut self, hairpin: Hairpin, wanted: bool, mirror: &Mirror) {
        self.one(Element::Hairpin(hairpin), wanted, mirror.hairpins.contains(&hairpin));
    }

    fn cluster_ip(&mut self, ip: IpAddr, wanted: bool, mirror: &Mirror) {
        self.one(Element::ClusterIp(ip), wanted, mirror.cluster_ips.contains(&ip));
    }

    fn one(&mut self, element: Element, wanted: bool, there: bool) {
        match (wanted, there) {
            (true, false) => self.now.push(Step::Add(element)),
            (false, true) => self.now.push(Step::Delete(element)),
            _ => {}
        }
    }

    fn frontend(
        &mut self,
        frontend: Frontend,
        want: Option<&DesiredFrontend>,
        holder: Holder,
        mirror: &Mirror,
    ) {
        let nothing = FrontendState::default();
        let have = mirror.frontends.get(&frontend).unwrap_or(&nothing);
        let mut surplus = Vec::new();
        for pool in [Pool::Cluster, Pool::Local] {
            surplus.extend(self.endpoints(
                frontend,
                pool,
                want.map_or(&[], |w| w.pool(pool)),
                have.pool(pool),
            ));
        }
        surplus.extend(self.source_ranges(frontend, want.map(|w| &w.sources), mirror));
        self.put_off(holder, surplus);
        self.leads(frontend, want, mirror);
        let groups = want.map(|w| w.groups).unwrap_or_default();
        for group in have.groups.without(groups).iter() {
            self.now.push(Step::Delete(member(frontend, group, &have.label)));
        }
        let label = want.map(|w| w.label.clone()).unwrap_or_default();
        for group in groups.without(have.groups).iter() {
            self.now.push(Step::Add(member(frontend, group, &label)));
        }
        if groups.contains(Group::Served) && have.groups.contains(Group::Served) && label != have.label {
            self.now.push(Step::Delete(member(frontend, Group::Served, &have.label)));
            self.now.push(Step::Add(member(frontend, Group::Served, &label)));
        }
    }

    /// Returns what must go later: whoever saw that there are ranges, before the commit, looks for them after it.
    fn source_ranges(
        &mut self,
        frontend: Frontend,
        want: Option<&BTreeSet<SourceNetwork>>,
        mirror: &Mirror,
    ) -> Vec<Step> {
        let nothing = BTreeSet::new();
        let (want, have) =
            (want.unwrap_or(&nothing), mirror.source_ranges.get(&frontend).unwrap_or(&nothing));
        let element = |network: &SourceNetwork| Element::SourceRange { frontend, network: *network };
        self.now.extend(want.difference(have).map(|network| Step::Add(element(network))));
        let gone = have.difference(want).map(|network| Step::Delete(element(network)));
        if want.is_empty() {
            return gone.collect();
        }
        self.now.extend(gone);
        Vec::new()
    }

    /// To the chains that keep clients.
    fn leads(&mut self, frontend: Frontend, want: Option<&DesiredFrontend>, mirror: &Mirror) {
        for pool in [Pool::Cluster, Pool::Local] {
            let have = mirror.affinities.leads().get(&(frontend, pool));
            let want = want.and_then(|w| w.affinities.iter().find(|(of, _)| *of == pool)).map(|(_, key)| key);
            if have != want {
                let element = |key: &AffinityKey| Element::Affinity { frontend, pool, chain: key.clone() };
                self.now.extend(have.map(|key| Step::Delete(element(key))));
                self.now.extend(want.map(|key| Step::Add(element(key))));
            }
        }
    }

    fn put_off(&mut self, holder: Holder, steps: impl IntoIterator<Item = Step>) {
        let mut steps = steps.into_iter().peekable();
        if steps.peek().is_some() {
            self.later.entry(holder).or_default().extend(steps);
        }
    }

    /// An endpoint keeps its index while that is below the new count; the others move into the
    /// holes. So a removal costs one element, and connections in flight find what they drew. Returns
    /// what must go later.
    fn endpoints(
        &mut self,
        frontend: Frontend,
        pool: Pool,
        want: &[Target],
        have: &[Option<Target>],
    ) -> Vec<Step> {
        let count = want.len().min(MAX_TARGETS);
        let want = &want[..count];
        let mut slots: Vec<Option<Target>> = have.iter().take(count).copied().collect();
        slots.resize(count, None);
        // The last one may still stand in its old place too, which this count takes in again.
        let mut kept: BTreeSet<Target> = BTreeSet::new();
        for slot in &mut slots {
            *slot = slot.filter(|target| want.binary_search(target).is_ok() && kept.insert(*target));
        }
        let mut new = want.iter().filter(|target| !kept.contains(target));
        for slot in slots.iter_mut().filter(|slot| slot.is_none()) {
            *slot = new.next().copied();
        }
        let element =
            |index: usize, target| Element::Endpoint { frontend, pool, index: index as u32, target };
        for (index, target) in slots.iter().enumerate() {
            let before = have.get(index).copied().flatten();
            if before == *target {
                continue;
            }
            self.now.extend(before.map(|before| Step::Delete(element(index, before))));
            self.now.extend(target.map(|target| Step::Add(element(index, target))));
        }
        // What the new count can still draw goes now: an index that is not taken is drawn again. What
        // only a packet can have drawn that is under way goes later.
        let drawn = SizeClass::of(count).map_or(0, |class| class.slots() as usize);
        let surplus = have.iter().enumerate().skip(count);
        let (now, later): (Vec<_>, Vec<_>) = surplus
            .filter_map(|(index, target)| Some((index, (*target)?)))
            .partition(|(index, _)| *index < drawn);
        let delete = |(index, target)| Step::Delete(element(index, target));
        self.now.extend(now.into_iter().map(delete));
        later.into_iter().map(delete).collect()
    }
}

fn notes(
    frontend: Frontend,
    want: Option<&DesiredFrontend>,
    claims: &Claims<Resource>,
) -> BTreeSet<(ServiceName, Note)> {
    let too_many = want.is_some_and(|w| w.cluster.len().max(w.local.len()) > MAX_TARGETS);
    let owner = claims.owner(&Resource::Frontend(frontend)).filter(|_| too_many);
    let too_many = owner.map(|owner| (owner.clone(), Note::TooManyEndpoints { frontend }));
    taken(frontend, claims).into_iter().chain(too_many).collect()
}

fn taken(frontend: Frontend, claims: &Claims<Resource>) -> Vec<(ServiceName, Note)> {
    let resource = Resource::Frontend(frontend);
    let Some(by) = claims.owner(&resource) else { return Vec::new() };
    let note = |loser: &ServiceName| (loser.clone(), Note::Taken { frontend, by: by.clone() });
    claims.losers(&resource).map(note).collect()
}

fn member(frontend: Frontend, group: Group, label: &str) -> Element {
    match group {
        Group::Served => Element::Served { frontend, label: label.into() },
        group => Element::Member { frontend, group },
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.now {
            writeln!(f, "{step}")?;
        }
        for (i, step) in self.later.values().flatten().enumerate() {
            if i == 0 {
                writeln!(f, "a second later:")?;
            }
            writeln!(f, "{step}")?;
        }
        Ok(())
    }
}
