//! The controller's side of the balancer tier: addresses, document, hosts. All decisions about
//! metal are made here, without I/O; [`super::Provider`] carries them out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use metal_lb_api::{Generation, Host, HostState, MemberKey};
use service_model::{Service, ServiceName};

use super::crds::IPAddressPoolStatus;
use super::document::{Document, Nodes};
use super::hosts::{Hosts, PutAnswer, View};
use super::ipam::{Ipam, IpamError};
use super::listeners::listeners;
use super::plan::{self, Observed, Step};
use super::pool::Pool;
use super::request::Request;
use crate::plan::Plan;

#[derive(Debug, Clone)]
pub struct Tier {
    ipam: Ipam,
    document: Document,
    hosts: Hosts,
    /// Services that were taken out, and the generation since which they are.
    withdrawn: BTreeMap<ServiceName, Generation>,
    /// Services without an address: a pool that changes, or an address that comes free, helps them.
    addressless: BTreeSet<ServiceName>,
    /// Services that wait for a host.
    awaiting: BTreeSet<ServiceName>,
    /// Services to plan anew for a reason that the API server does not know.
    due: BTreeSet<ServiceName>,
}

/// How a step that needs nobody else ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Applied {
    Done,
    /// Not yet: the rest of the plan has to wait, and this is for what.
    Waiting(String),
}

impl Tier {
    pub fn new(owner: &str, member_key: MemberKey, hosts: Vec<Host>, term: u64, now: Instant) -> Self {
        let names: Vec<String> = hosts.iter().map(|h| h.name.clone()).collect();
        Self {
            ipam: Ipam::default(),
            document: Document::new(owner, member_key, hosts, term),
            hosts: Hosts::new(names, now),
            withdrawn: BTreeMap::new(),
            addressless: BTreeSet::new(),
            awaiting: BTreeSet::new(),
            due: BTreeSet::new(),
        }
    }

    /// Adopts what is recorded on the Services: their addresses, and their part of the document.
    /// `serving` are the Services of our class, `leaving` those that are only to be released.
    pub fn adopt_all(&mut self, serving: &[&Service], leaving: &[&Service], nodes: Nodes) {
        self.set_nodes(nodes);
        // A record counts before a status, and only with both marks: an annotation alone may have
        // been copied with a manifest. One that the status confirms counts first: marks can be
        // copied too, the status only we write.
        let recorded = || leaving.iter().chain(serving).filter(|s| plan::is_recorded(s));
        for confirmed in [true, false] {
            for service in recorded() {
                let ip = plan::recorded(service);
                if let Some(ip) = ip.filter(|_| !confirmed || service.ingress.iter().any(|i| i.ip == ip)) {
                    self.adopt(service, ip);
                }
            }
        }
        for service in serving {
            let shown = service.ingress.iter().filter_map(|i| i.ip).find(IpAddr::is_ipv4);
            if let Some(ip) = shown.filter(|ip| self.ipam.pool_of(*ip).is_some()) {
                self.adopt(service, ip);
            }
            self.expect_request(service);
        }
        for service in serving {
            if let Some(held) = self.ipam.held(&service.name).filter(|_| plan::is_recorded(service)) {
                let (listeners, _) = listeners(service, held.ip);
                self.document.put(&service.name, listeners);
            }
        }
    }

    /// Begins to send documents, after everything was adopted. What hosts still serve and nobody
    /// holds is kept from being given out until they have let go of it.
    pub fn issue(&mut self) {
        self.document.issue(self.hosts.highest());
        let first = self.document.generation().unwrap_or_default();
        let held: BTreeSet<_> = self.ipam.holders().map(|(_, h)| h.ip).collect();
        for ip in self.hosts.vips().difference(&held) {
            self.ipam.quarantine(*ip, first);
        }
    }

    fn adopt(&mut self, service: &Service, ip: IpAddr) {
        if self.ipam.held(&service.name).is_some() {
            return;
        }
        if let Err(error) = self.ipam.take(&service.name, &service.uid, ip) {
            tracing::warn!(service = %service.name, %error, "the recorded address cannot be kept");
        }
    }

    fn expect(&mut self, service: &ServiceName, ip: Option<IpAddr>) {
        if self.ipam.expect(service, ip) {
            self.due.append(&mut self.addressless.clone());
        }
    }

    /// What a Service asks for is kept for it, until it holds something.
    fn expect_request(&mut self, service: &Service) {
        let held = self.ipam.held(&service.name).is_some();
        let ip = Request::of(service).ok().and_then(|r| r.ip).filter(|_| !held);
        self.expect(&service.name, ip);
    }

    /// The plan for a Service that is ours and lives.
    pub fn plan_serve(&mut self, service: &Service, now: Instant) -> Plan<Step> {
        self.drop_namesake(service, now);
        self.expect_request(service);
        let request = Request::of(service);
        let observed = self.observe(&service.name);
        let plan = plan::serve(service, &request, |r| self.ipam.choose(service, r), &observed);
        let blocked = self.ipam.held(&service.name).is_none() && plan.batches.is_empty();
        mark(&mut self.addressless, &service.name, blocked);
        plan
    }

    /// The plan for a Service that is to be released.
    pub fn plan_release(&mut self, service: &Service) -> Plan<Step> {
        self.addressless.remove(&service.name);
        self.expect(&service.name, None);
        let observed = self.observe(&service.name);
        plan::release(service, &observed)
    }

    /// Carries out what happens in this process. Steps for the API server are not among it: they
    /// answer [`Applied::Done`] and change nothing.
    ///
    /// # Errors
    /// When another Service got the address in the meantime: plan again.
    pub fn apply(&mut self, step: &Step, now: Instant) -> Result<Applied, IpamError> {
        match step {
            Step::Allocate { service, uid, ip, .. } => {
                self.ipam.take(service, uid, *ip)?;
                self.ipam.expect(service, None);
                Ok(Applied::Done)
            }
            Step::Configure { service, listeners, .. } => {
                self.withdrawn.remove(service);
                self.document.put(service, listeners.clone());
                Ok(Applied::Done)
            }
            Step::AwaitProgrammed { service, .. } => Ok(self.await_programmed(service, now)),
            Step::Withdraw { service, .. } => {
                let since = self.document.remove(service);
                self.withdrawn.insert(service.clone(), since);
                Ok(Applied::Done)
            }
            Step::AwaitWithdrawn { service } => Ok(self.await_withdrawn(service, now)),
            Step::Record { .. } | Step::Publish { .. } | Step::ClearStatus { .. } | Step::LetGo { .. } => {
                Ok(Applied::Done)
            }
        }
    }

    /// The Service is gone, or not ours and without our finalizer: nothing of it stays.
    pub fn forget(&mut self, service: &ServiceName, now: Instant) {
        let removed = self.document.remove(service);
        let since = self.withdrawn.remove(service).unwrap_or(removed);
        self.ipam.free(service, since);
        self.expect(service, None);
        self.end_quarantines(now);
        self.addressless.remove(service);
        self.awaiting.remove(service);
        self.due.remove(service);
    }

    /// The nodes changed: whoever has, or may have now, an address that one of them came or left
    /// with is due.
    pub fn set_nodes(&mut self, nodes: Nodes) {
        self.document.set_nodes(nodes);
        let changed = self.ipam.set_machines(self.document.machines());
        if !changed.is_empty() {
            let holders = self.ipam.holders().filter(|(_, held)| changed.contains(&held.ip));
            self.due.extend(holders.map(|(name, _)| name.clone()));
            self.due.append(&mut self.addressless.clone());
        }
    }

    /// The pools changed: whoever has no address, or one outside of them, is due.
    pub fn set_pools(&mut self, pools: Vec<Pool>) {
        self.ipam.set_pools(pools);
        self.due.append(&mut self.addressless.clone());
        self.due.extend(self.ipam.holders().map(|(name, _)| name.clone()));
    }

    /// A host answered `GET /v1/state`. Answers what is worth telling a person.
    pub fn state_answered(
        &mut self,
        host: &str,
        answer: Result<HostState, String>,
        now: Instant,
    ) -> Option<String> {
        self.update(host, now, |view| view.state_answered(answer, now))
    }

    /// A host answered the document of that generation. Answers what is worth telling a person.
    pub fn put_answered(
        &mut self,
        host: &str,
        generation: Generation,
        answer: PutAnswer,
        now: Instant,
    ) -> Option<String> {
        self.update(host, now, |view| view.put_answered(generation, answer, now))
    }

    /// The generation of a host that runs, or insists on, a newer document than ours. It may be of
    /// a leader that replaced us, so that whoever calls [`Tier::raise`] makes sure first.
    pub fn ahead(&self, host: &str) -> Option<Generation> {
        self.hosts.host(host)?.ahead_of(self.document.generation()?)
    }

    /// Numbers our document above `theirs`.
    pub fn raise(&mut self, theirs: Generation) {
        self.document.raise(theirs);
    }

    fn update(&mut self, host: &str, now: Instant, change: impl FnOnce(&mut View)) -> Option<String> {
        let view = self.hosts.host_mut(host)?;
        let before = view.summary();
        change(view);
        let after = view.summary();
        let trouble = view.trouble().filter(|_| before != after);
        if self.document.generation().is_some() {
            if before != after {
                self.due.append(&mut self.awaiting);
            }
            self.end_quarantines(now);
        }
        trouble
    }

    /// Why a host does not take the document, and whose Service that is due to, if to one's. The
    /// number of the document is not in it: the same trouble reads the same.
    pub fn rejection(&self) -> Option<(String, Option<&ServiceName>)> {
        let (host, rejection) = self.hosts.rejections().next()?;
        let why = rejection.why();
        Some((format!("{host} refuses its configuration: {why}"), self.document.service_at(&rejection.path)))
    }

    /// Which hosts answer.
    pub fn reachable(&self) -> BTreeMap<String, bool> {
        self.hosts.reachable()
    }

    /// Whether no host can be reached at all.
    pub fn nobody_answers(&self) -> bool {
        self.hosts.nobody_answers()
    }

    /// Whether every host has answered once, or failed to.
    pub fn all_hosts_heard(&self) -> bool {
        self.hosts.all_heard()
    }

    pub fn holds_address(&self, service: &ServiceName) -> bool {
        self.ipam.held(service).is_some()
    }

    /// What each pool's status should show.
    pub fn pool_statuses(&self) -> BTreeMap<Box<str>, IPAddressPoolStatus> {
        let status = |pool: &Pool| {
            let (v4, v6) = (self.ipam.usage(pool, true), self.ipam.usage(pool, false));
            let number = |n: u128| i64::try_from(n).unwrap_or(i64::MAX);
            IPAddressPoolStatus {
                assigned_ipv4: number(v4.assigned),
                assigned_ipv6: number(v6.assigned),
                available_ipv4: number(v4.size.saturating_sub(v4.assigned)),
                available_ipv6: number(v6.size.saturating_sub(v6.assigned)),
                problem: pool.problem.clone(),
            }
        };
        self.ipam.pools().map(|p| (p.name.clone(), status(p))).collect()
    }

    pub fn has_due(&self) -> bool {
        !self.due.is_empty()
    }

    /// The Services that became due since the last call.
    pub fn take_due(&mut self) -> BTreeSet<ServiceName> {
        std::mem::take(&mut self.due)
    }

    pub fn document(&self) -> &Document {
        &self.document
    }

    pub fn hosts(&self) -> &Hosts {
        &self.hosts
    }

    pub fn ipam(&self) -> &Ipam {
        &self.ipam
    }

    /// Whoever waits for an address may have one of those that came free.
    fn end_quarantines(&mut self, now: Instant) {
        if self.ipam.acknowledge(self.hosts.acknowledged(now)) > 0 {
            self.due.append(&mut self.addressless.clone());
        }
    }

    /// A Service of the same name but another UID is another Service: the first one's address is
    /// given back.
    fn drop_namesake(&mut self, service: &Service, now: Instant) {
        if self.ipam.held(&service.name).is_some_and(|h| h.uid != service.uid) {
            self.forget(&service.name, now);
        }
    }

    fn observe<'a>(&'a self, service: &ServiceName) -> Observed<'a> {
        let held = self.ipam.held(service);
        let entry = self.document.entry(service);
        Observed {
            held,
            pool: held.and_then(|h| self.ipam.pool_of(h.ip)).map(|p| &*p.name),
            machine: held.and_then(|h| self.ipam.machine_at(h.ip)),
            has_nodes: self.document.has_nodes(),
            entry,
            next: self.document.next_generation(),
            programmed: entry.is_some_and(|e| self.hosts.programmed(&e.listeners, e.since)),
        }
    }

    fn await_programmed(&mut self, service: &ServiceName, now: Instant) -> Applied {
        let Some(entry) = self.document.entry(service) else {
            return Applied::Waiting("it is not in the document yet".to_owned());
        };
        if self.hosts.programmed(&entry.listeners, entry.since) {
            self.awaiting.remove(service);
            return Applied::Done;
        }
        let why = self.hosts.why_not(&entry.listeners, now);
        self.awaiting.insert(service.clone());
        Applied::Waiting(format!("no balancer host has programmed it ({why})"))
    }

    fn await_withdrawn(&mut self, service: &ServiceName, now: Instant) -> Applied {
        let Some(newest) = self.document.generation() else {
            return Applied::Waiting("the first document is not complete yet".to_owned());
        };
        let since = *self.withdrawn.entry(service.clone()).or_insert(newest);
        if self.hosts.acknowledged(now).is_none_or(|a| a >= since) {
            self.awaiting.remove(service);
            return Applied::Done;
        }
        self.awaiting.insert(service.clone());
        Applied::Waiting(format!("not every live balancer host runs generation {since} yet"))
    }
}

fn mark(set: &mut BTreeSet<ServiceName>, service: &ServiceName, on: bool) {
    if on {
        set.insert(service.clone());
    } else {
        set.remove(service);
    }
}
