//! What the controller knows of each balancer host, and what to do next about it. Sans-IO: time
//! and answers come in, an [`Action`] goes out.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use metal_lb_api::{Generation, HostState, Listener, ListenerKey};

/// While a document is being programmed.
const FAST_POLL: Duration = Duration::from_millis(50);
/// When nothing is expected to change.
const SLOW_POLL: Duration = Duration::from_secs(2);
const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(5);
/// How long a host that does not answer still counts: it may be serving all the same.
const LIVE_FOR: Duration = Duration::from_secs(10);
/// How long a host may keep a document unprogrammed before the polls slow down.
const FAST_FOR: Duration = Duration::from_secs(5);
/// After that time a host gets a document again that it refused: it may have been upgraded, or its
/// own configuration changed.
const TELL_AGAIN: Duration = Duration::from_secs(30);
/// Failures in a row after which a host counts as unreachable, for what people are told.
const GIVE_UP_AFTER: u32 = 3;

/// All hosts of the tier, by name.
#[derive(Debug, Clone)]
pub struct Hosts {
    hosts: BTreeMap<String, View>,
}

/// One host, as last seen.
#[derive(Debug, Clone)]
pub struct View {
    since: Instant,
    contact: Option<Instant>,
    failures: u32,
    last_try: Option<Instant>,
    /// The generation that it has programmed.
    generation: Option<Generation>,
    programmed: BTreeSet<ListenerKey>,
    vips: BTreeSet<IpAddr>,
    /// Why a listener is not programmed, in the host's words.
    refusals: BTreeMap<ListenerKey, String>,
    accepted: Option<(Generation, Instant)>,
    rejected: Option<Rejection>,
    rejected_at: Option<Instant>,
    /// The generation that it put forward against ours.
    conflict: Option<Generation>,
    error: Option<String>,
}

/// A document that a host answered with 400, or keeps refusing with 409.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub generation: Generation,
    /// JSON path of the mistake; empty for a refusal as a whole.
    pub path: String,
    pub message: String,
}

/// The part of a [`View`] that decisions about Services depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    generation: Option<Generation>,
    programmed: BTreeSet<ListenerKey>,
    refusals: BTreeSet<ListenerKey>,
    rejected: Option<Rejection>,
    reachable: bool,
    given_up: bool,
}

/// What to do about a host now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Put(Generation),
    Get,
    Wait(Duration),
}

/// How a PUT ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PutAnswer {
    Accepted,
    Invalid {
        path: String,
        message: String,
    },
    /// 409, with the generation that the host has.
    Older {
        generation: Generation,
        message: String,
    },
    Failed(String),
}

impl Hosts {
    pub fn new(names: impl IntoIterator<Item = String>, now: Instant) -> Self {
        Self { hosts: names.into_iter().map(|n| (n, View::new(now))).collect() }
    }

    pub fn host(&self, name: &str) -> Option<&View> {
        self.hosts.get(name)
    }

    pub fn host_mut(&mut self, name: &str) -> Option<&mut View> {
        self.hosts.get_mut(name)
    }

    /// Whether every host has answered once, or has had its chance.
    pub fn all_heard(&self) -> bool {
        self.hosts.values().all(|h| h.contact.is_some() || h.failures > 0)
    }

    /// The highest generation that any host has reported.
    pub fn highest(&self) -> Generation {
        self.hosts.values().filter_map(|h| h.generation).max().unwrap_or_default()
    }

    /// Every address that some host was last seen serving.
    pub fn vips(&self) -> BTreeSet<IpAddr> {
        self.hosts.values().flat_map(|h| &h.vips).copied().collect()
    }

    /// Whether some host has programmed all of these since that generation.
    pub fn programmed(&self, listeners: &[Listener], since: Generation) -> bool {
        self.hosts.values().any(|h| h.has_programmed(listeners, since))
    }

    /// The generation that every live host has programmed, at least. `None` without a live host:
    /// one that is gone serves nothing, and one that comes back takes the newest document first.
    pub fn acknowledged(&self, now: Instant) -> Option<Generation> {
        self.hosts.values().filter(|h| h.is_live(now)).map(|h| h.generation.unwrap_or_default()).min()
    }

    /// Why nobody has programmed these yet, host by host.
    pub fn why_not(&self, listeners: &[Listener], now: Instant) -> String {
        if self.hosts.is_empty() {
            return "there is no metal-lb host: pass --metal-endpoint".to_owned();
        }
        let of_host = |(name, host): (&String, &View)| format!("{name}: {}", host.why_not(listeners, now));
        self.hosts.iter().map(of_host).collect::<Vec<_>>().join("; ")
    }

    /// Which hosts answered when they were last asked.
    pub fn reachable(&self) -> BTreeMap<String, bool> {
        self.hosts.iter().map(|(n, h)| (n.clone(), h.contact.is_some() && h.error.is_none())).collect()
    }

    /// Whether waiting will not help: no host can be reached.
    pub fn nobody_answers(&self) -> bool {
        self.hosts.values().all(|h| h.failures >= GIVE_UP_AFTER)
    }

    pub fn rejections(&self) -> impl Iterator<Item = (&str, &Rejection)> {
        self.hosts.iter().filter_map(|(n, h)| Some((n.as_str(), h.rejected.as_ref()?)))
    }
}

impl View {
    fn new(now: Instant) -> Self {
        Self {
            since: now,
            contact: None,
            failures: 0,
            last_try: None,
            generation: None,
            programmed: BTreeSet::new(),
            vips: BTreeSet::new(),
            refusals: BTreeMap::new(),
            accepted: None,
            rejected: None,
            rejected_at: None,
            conflict: None,
            error: None,
        }
    }

    /// What to do now, when hosts should run `wanted`; without it only look.
    pub fn next(&self, wanted: Option<Generation>, now: Instant) -> Action {
        let since_try = self.last_try.map(|t| now.saturating_duration_since(t));
        if self.failures > 0 {
            let shift = (self.failures - 1).min(8);
            let delay = (FIRST_RETRY * (1 << shift)).min(LONGEST_RETRY);
            return match since_try {
                Some(waited) if waited < delay => Action::Wait(delay.saturating_sub(waited)),
                _ => self.put_or_get(wanted, now),
            };
        }
        match self.put_or_get(wanted, now) {
            Action::Get => {
                let poll = if self.is_programming(now) { FAST_POLL } else { SLOW_POLL };
                match since_try {
                    Some(waited) if waited < poll => Action::Wait(poll.saturating_sub(waited)),
                    _ => Action::Get,
                }
            }
            other => other,
        }
    }

    pub fn put_answered(&mut self, generation: Generation, answer: PutAnswer, now: Instant) {
        self.last_try = Some(now);
        match answer {
            PutAnswer::Accepted => {
                self.answered(now);
                self.accepted = Some((generation, now));
                self.rejected = None;
                // The next poll is due at once.
                self.last_try = None;
            }
            PutAnswer::Invalid { path, message } => {
                self.answered(now);
                self.refused(Rejection { generation, path, message }, now);
            }
            PutAnswer::Older { generation: has, message } => {
                self.answered(now);
                // A refusal that is not about the number does not go away by a higher number.
                if has < generation {
                    self.refused(Rejection { generation, path: String::new(), message }, now);
                } else {
                    self.conflict = Some(has);
                }
            }
            PutAnswer::Failed(error) => self.failed(error),
        }
    }

    pub fn state_answered(&mut self, answer: Result<HostState, String>, now: Instant) {
        self.last_try = Some(now);
        match answer {
            Ok(state) => {
                self.answered(now);
                self.generation = state.generation;
                self.vips = state.vips.iter().map(|v| v.vip).collect();
                (self.programmed, self.refusals) = (BTreeSet::new(), BTreeMap::new());
                for listener in state.listeners {
                    let key =
                        ListenerKey { vip: listener.vip, protocol: listener.protocol, port: listener.port };
                    if listener.programmed {
                        self.programmed.insert(key);
                    } else {
                        self.refusals.insert(key, listener.why);
                    }
                }
            }
            Err(error) => self.failed(error),
        }
    }

    /// What others decide from: two equal summaries need no new decision.
    pub fn summary(&self) -> Summary {
        Summary {
            generation: self.generation,
            programmed: self.programmed.clone(),
            refusals: self.refusals.keys().copied().collect(),
            rejected: self.rejected.clone(),
            reachable: self.error.is_none(),
            given_up: self.failures >= GIVE_UP_AFTER,
        }
    }

    /// What is wrong with the host, in words.
    pub fn trouble(&self) -> Option<String> {
        self.rejected.as_ref().map(ToString::to_string).or_else(|| self.error.clone())
    }

    /// The generation above which ours has to be for the host to take it, where it is not.
    pub fn ahead_of(&self, ours: Generation) -> Option<Generation> {
        let refused = self.conflict.filter(|c| *c >= ours);
        refused.max(self.generation.filter(|g| *g > ours))
    }

    /// Answered lately, or has not had the time to.
    pub fn is_live(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.contact.unwrap_or(self.since)) < LIVE_FOR
    }

    fn put_or_get(&self, wanted: Option<Generation>, now: Instant) -> Action {
        // A host is looked at before it is told anything: its generation decides ours.
        let (Some(wanted), Some(_)) = (wanted, self.contact) else { return Action::Get };
        let has = self.accepted.map(|(g, _)| g);
        let lately = self.rejected_at.is_some_and(|at| now.saturating_duration_since(at) < TELL_AGAIN);
        let refused = self.rejected.as_ref().filter(|_| lately).map(|r| r.generation);
        let told = has.max(refused) >= Some(wanted);
        // Only a raised generation can change that a host is ahead.
        let pointless = (told && !self.has_forgotten(wanted, now)) || self.ahead_of(wanted).is_some();
        if pointless { Action::Get } else { Action::Put(wanted) }
    }

    /// The host accepted the document and still does not run it: its state is lost, or it is stuck.
    fn has_forgotten(&self, wanted: Generation, now: Instant) -> bool {
        self.accepted.is_some_and(|(g, at)| g == wanted && now.saturating_duration_since(at) >= FAST_FOR)
            && self.generation < Some(wanted)
    }

    fn is_programming(&self, now: Instant) -> bool {
        self.accepted.is_some_and(|(generation, at)| {
            now.saturating_duration_since(at) < FAST_FOR
                && (self.generation < Some(generation) || !self.refusals.is_empty())
        })
    }

    fn has_programmed(&self, listeners: &[Listener], since: Generation) -> bool {
        self.generation >= Some(since) && listeners.iter().all(|l| self.programmed.contains(&l.key()))
    }

    fn why_not(&self, listeners: &[Listener], now: Instant) -> String {
        if let Some(rejection) = &self.rejected {
            return rejection.to_string();
        }
        if let Some(error) = &self.error {
            return error.clone();
        }
        if let Some(why) = listeners.iter().find_map(|l| self.refusals.get(&l.key())) {
            return why.clone();
        }
        match self.accepted {
            Some((generation, at)) => {
                let waited = now.saturating_duration_since(at).as_millis();
                format!("accepted generation {generation} {waited} ms ago and is programming it")
            }
            None => "not told yet".to_owned(),
        }
    }

    fn answered(&mut self, now: Instant) {
        (self.contact, self.failures, self.error) = (Some(now), 0, None);
    }

    fn refused(&mut self, rejection: Rejection, now: Instant) {
        (self.rejected, self.rejected_at) = (Some(rejection), Some(now));
    }

    fn failed(&mut self, error: String) {
        self.failures += 1;
        self.error = Some(error);
    }
}

impl Rejection {
    /// What is wrong with the document, whatever its number.
    pub fn why(&self) -> String {
        if self.path.is_empty() { self.message.clone() } else { format!("{}: {}", self.path, self.message) }
    }
}

impl std::fmt::Display for Rejection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "refused generation {}: {}", self.generation, self.why())
    }
}

#[cfg(test)]
mod tests {
    use metal_lb_api::{ListenerState, NatProtocol};

    use super::*;
    use crate::metal::listeners::ALL_NODES;

    const G: Generation = Generation { term: 3, counter: 1 };

    fn listener() -> Listener {
        Listener {
            service: "shop/web".to_owned(),
            port_name: String::new(),
            vip: "10.0.0.200".parse().unwrap(),
            protocol: NatProtocol::Tcp,
            port: 80,
            node_set: ALL_NODES.to_owned(),
            node_port: 30080,
            health: metal_lb_api::HealthCheck { port: 10256, path: "/healthz".to_owned() },
        }
    }

    fn state(generation: Option<Generation>, programmed: Option<bool>) -> HostState {
        let l = listener();
        let listener = programmed.map(|programmed| ListenerState {
            service: l.service,
            vip: l.vip,
            protocol: l.protocol,
            port: l.port,
            programmed,
            why: "the map is full".to_owned(),
            targets: Vec::new(),
        });
        HostState {
            host: "lb-1".to_owned(),
            schemas: vec![1],
            generation,
            owner: None,
            vips: Vec::new(),
            listeners: listener.into_iter().collect(),
        }
    }

    #[test]
    fn a_host_is_asked_before_it_is_told_then_polled_fast_until_programmed() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut host = View::new(start);
        assert_eq!(host.next(Some(G), at(0)), Action::Get);
        host.state_answered(Ok(state(None, None)), at(1));
        assert_eq!(host.next(None, at(2)), Action::Wait(Duration::from_millis(1999)));
        assert_eq!(host.next(Some(G), at(2)), Action::Put(G));
        host.put_answered(G, PutAnswer::Accepted, at(3));
        assert_eq!(host.next(Some(G), at(3)), Action::Get);
        host.state_answered(Ok(state(None, Some(false))), at(4));
        assert_eq!(host.next(Some(G), at(4)), Action::Wait(FAST_POLL));
        assert!(!host.has_programmed(&[listener()], G));
        host.state_answered(Ok(state(Some(G), Some(true))), at(54));
        assert!(host.has_programmed(&[listener()], G));
        assert!(!host.has_programmed(&[listener()], G.after(3)), "an older document does not count");
        assert_eq!(host.next(Some(G), at(54)), Action::Wait(SLOW_POLL));
    }

    #[test]
    fn a_host_that_does_not_answer_is_tried_with_growing_pauses() {
        let start = Instant::now();
        let mut host = View::new(start);
        let mut pauses = Vec::new();
        for _ in 0..7 {
            host.state_answered(Err("connection refused".to_owned()), start);
            let Action::Wait(pause) = host.next(Some(G), start) else { panic!("must wait") };
            pauses.push(pause.as_millis());
        }
        assert_eq!(pauses, [200, 400, 800, 1600, 3200, 5000, 5000]);
    }

    #[test]
    fn a_document_that_a_host_rejects_is_not_sent_again_but_the_next_one_is() {
        let now = Instant::now();
        let mut host = View::new(now);
        host.state_answered(Ok(state(None, None)), now);
        let rejection = PutAnswer::Invalid { path: "listeners[0].vip".into(), message: "no".into() };
        host.put_answered(G, rejection, now);
        assert!(matches!(host.next(Some(G), now), Action::Wait(_)));
        assert_eq!(host.why_not(&[listener()], now), "refused generation 3.1: listeners[0].vip: no");
        assert_eq!(host.next(Some(G.after(3)), now), Action::Put(G.after(3)));
    }

    #[test]
    fn a_host_that_was_put_right_since_it_refused_a_document_gets_it_although_nothing_changed() {
        let now = Instant::now();
        let mut host = View::new(now);
        host.state_answered(Ok(state(None, None)), now);
        let refusal = PutAnswer::Older { generation: Generation::default(), message: "--config".into() };
        host.put_answered(G, refusal, now);
        let later = now + TELL_AGAIN;
        host.state_answered(Ok(state(None, None)), later - Duration::from_millis(1));
        assert!(matches!(host.next(Some(G), later - Duration::from_millis(1)), Action::Wait(_)));
        assert_eq!(host.next(Some(G), later), Action::Put(G));
        host.put_answered(G, PutAnswer::Accepted, later);
        assert_eq!(host.trouble(), None);
    }

    #[test]
    fn a_host_that_is_ahead_waits_for_a_higher_generation() {
        let now = Instant::now();
        let mut host = View::new(now);
        host.state_answered(Ok(state(None, None)), now);
        let ahead = Generation { term: 3, counter: 9 };
        host.put_answered(G, PutAnswer::Older { generation: ahead, message: String::new() }, now);
        assert_eq!(host.ahead_of(G), Some(ahead));
        assert!(matches!(host.next(Some(G), now), Action::Wait(_)));
        assert_eq!(host.next(Some(ahead.after(3)), now), Action::Put(ahead.after(3)));
    }

    #[test]
    fn a_host_that_lost_its_state_is_told_again() {
        let now = Instant::now();
        let mut host = View::new(now);
        host.state_answered(Ok(state(None, None)), now);
        host.put_answered(G, PutAnswer::Accepted, now);
        host.state_answered(Ok(state(None, None)), now);
        assert_eq!(host.next(Some(G), now + FAST_FOR), Action::Put(G));
    }

    #[test]
    fn only_live_hosts_have_to_acknowledge() {
        let start = Instant::now();
        let mut hosts = Hosts::new(["lb-1".to_owned(), "lb-2".to_owned()], start);
        assert_eq!(hosts.acknowledged(start), Some(Generation::default()), "not heard of yet");
        hosts.host_mut("lb-1").unwrap().state_answered(Ok(state(Some(G), None)), start);
        assert_eq!(hosts.acknowledged(start), Some(Generation::default()));
        let later = start + LIVE_FOR;
        hosts.host_mut("lb-1").unwrap().state_answered(Ok(state(Some(G), None)), later);
        assert_eq!(hosts.acknowledged(later), Some(G), "lb-2 never answered and is given up");
        assert_eq!(hosts.acknowledged(later + LIVE_FOR), None);
    }
}
