//! The ownership rules. Time and events come in, owners come out; no clock, no I/O.
//!
//! * A VIP stays where it is while its owner is alive: nothing is pre-empted.
//! * A host is lost when its XDP program leaves three probes unanswered. Its VIPs move at once.
//! * A host whose program answers but whose control process has been silent for ten seconds is
//!   forwarding on stale tables: its VIPs move too. A restart takes less.
//! * A host that has missed newer documents for ten seconds owns nothing.
//! * A free VIP goes to the live host that ranks highest for it and is not over its fair share.
//! * If two hosts claim one VIP (a healed partition), the lower rank yields. A claim that was only
//!   resumed from the maps of an earlier process yields to any other.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::Ipv4Addr;
use std::time::Duration;

use metal_lb_api::Generation;
use siphasher::sip::SipHasher13;

/// Peers are probed this often.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Three unanswered probes, and half an interval for the last answer to arrive.
const HOST_LOST: Duration = Duration::from_millis(350);
/// Decisions come more often than this. If one is late, this process did not run, and silence
/// meanwhile proves nothing.
const ASLEEP: Duration = Duration::from_millis(150);
/// A control process that is silent for longer has not just been restarted.
const CONTROL_LOST: Duration = Duration::from_secs(10);
/// A host that starts, or whose link comes back, listens for this long before it claims anything.
const LISTEN_FIRST: Duration = Duration::from_millis(800);
/// To a host that is new here, hellos can come before any probe is answered: ours wait for ARP, which
/// tries again each second. Until then what they say holds for this long.
const GREETING: Duration = Duration::from_secs(1);
/// How long a host may run an older document than another before it is given no more VIPs…
const CATCH_UP: Duration = Duration::from_secs(1);
/// … and before it owns none.
const LEFT_BEHIND: Duration = Duration::from_secs(10);

/// Who owns a VIP, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    pub owner: Option<String>,
    pub why: String,
}

/// The VIPs of one host, each with the number of the claim: a new number is announced anew.
/// [`RESUMED`] claims are not announced.
pub type Claims = BTreeMap<Ipv4Addr, u64>;

/// The number of a claim that an earlier process of the host made. It yields to any other, until
/// the new process has listened for peers.
pub const RESUMED: u64 = 0;

/// One host's view of the tier. Times are since any fixed instant.
#[derive(Debug)]
pub struct Members {
    name: String,
    listening_since: Duration,
    decided: Duration,
    carrier: bool,
    vips: BTreeSet<Ipv4Addr>,
    generation: Generation,
    mine: Claims,
    claims_made: u64,
    peers: BTreeMap<String, Peer>,
    /// A peer has come, or come back: switches may have learned its port for what is ours.
    greeted: bool,
    /// The newest document that a live host runs, and since when.
    newest: (Generation, Duration),
}

#[derive(Debug, Default)]
struct Peer {
    answered: Option<Duration>,
    control_seen: Option<Duration>,
    /// Of the document that its program serves, as it answered.
    serves: Generation,
    /// Its last hello, and when that was; nothing from before it was lost.
    said: Option<(Generation, Claims)>,
    said_at: Duration,
}

impl Members {
    /// `resumed`: the VIPs that the pinned maps say this host owned when its process ended.
    pub fn new(name: &str, resumed: BTreeSet<Ipv4Addr>, now: Duration) -> Self {
        Self {
            name: name.to_owned(),
            listening_since: now,
            decided: now,
            carrier: true,
            vips: resumed.clone(),
            generation: Generation::default(),
            mine: resumed.into_iter().map(|vip| (vip, RESUMED)).collect(),
            claims_made: 0,
            peers: BTreeMap::new(),
            greeted: false,
            newest: (Generation::default(), now),
        }
    }

    /// The document's VIPs, and the names of the tier's hosts.
    pub fn set_document(
        &mut self,
        generation: Generation,
        vips: BTreeSet<Ipv4Addr>,
        hosts: &BTreeSet<String>,
        now: Duration,
    ) {
        if self.peers.is_empty() {
            self.listening_since = now;
        }
        self.generation = generation;
        self.mine.retain(|vip, _| vips.contains(vip));
        self.vips = vips;
        self.peers.retain(|name, _| hosts.contains(name));
        for name in hosts.iter().filter(|n| **n != self.name) {
            self.peers.entry(name.clone()).or_default();
        }
    }

    /// The peer's XDP program answered a probe; its control process last beat `age` before. A host
    /// that was taken out of the tier hears no hellos, but this: that the others serve a newer document.
    pub fn on_answer(&mut self, peer: &str, age: Duration, serves: Generation, now: Duration) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.serves = serves;
            peer.answered = Some(now);
            peer.control_seen = peer.control_seen.max(now.checked_sub(age));
        }
    }

    /// The peer's control process says which document it runs and what it owns.
    pub fn on_hello(&mut self, peer: &str, generation: Generation, claims: Claims, now: Duration) {
        let is_new_here = self.is_new_here(now);
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.control_seen = Some(now);
            if !peer.is_live(now) && !is_new_here {
                // Its process speaks and its packet path does not: it cannot serve.
                return;
            }
            self.greeted |= peer.said.is_none();
            peer.said = Some((generation, claims));
            peer.said_at = now;
        }
    }

    /// Whether the interface has a link. Without one this host can serve nobody.
    pub fn set_carrier(&mut self, up: bool, now: Duration) {
        if up && !self.carrier {
            self.listening_since = now;
        }
        self.carrier = up;
    }

    /// What this host owns since the last decision.
    pub fn mine(&self) -> &Claims {
        &self.mine
    }

    /// The other hosts of the tier, and whether each is alive.
    pub fn peers(&self, now: Duration) -> impl Iterator<Item = (&str, bool)> {
        self.peers.iter().map(move |(name, peer)| (name.as_str(), peer.is_live(now)))
    }

    /// Decides every VIP anew.
    pub fn decide(&mut self, now: Duration) -> BTreeMap<Ipv4Addr, Ownership> {
        if !self.carrier {
            self.mine.clear();
        }
        let slept = now.saturating_sub(std::mem::replace(&mut self.decided, now));
        if slept > ASLEEP {
            self.peers.values_mut().for_each(|peer| peer.was_heard_later(slept, now));
        }
        if slept > CONTROL_LOST && !self.peers.is_empty() {
            // Taken for lost meanwhile; who has taken over keeps it.
            self.mine.values_mut().for_each(|claim| *claim = RESUMED);
            self.listening_since = now;
        }
        let is_new_here = self.is_new_here(now);
        self.peers.values_mut().for_each(|peer| peer.forget_if_lost(is_new_here, now));
        let live: Vec<String> = self.live(now);
        self.note_newest(&live, now);
        let unheard = self.unheard(now);
        // Someone must serve: a tier that is behind as a whole is not.
        let greeting = self.peers.iter().filter(|(_, p)| p.is_greeting()).map(|(name, _)| name.clone());
        let holders: Vec<String> = live.iter().cloned().chain(greeting).collect();
        let holders = self.not_behind(&holders, LEFT_BEHIND, now);
        let takers = self.not_behind(&live, CATCH_UP, now);

        let mut load: BTreeMap<&str, usize> = takers.iter().map(|h| (h.as_str(), 0)).collect();
        let (mut owners, mut free) = (BTreeMap::new(), Vec::new());
        for vip in &self.vips {
            match self.present_owner(*vip, &holders) {
                Some(owner) => {
                    *load.entry(owner).or_default() += 1;
                    let why = format!("{owner} has it and is alive");
                    owners.insert(*vip, Ownership { owner: Some(owner.to_owned()), why });
                }
                None => free.push(*vip),
            }
        }
        let share = self.vips.len().div_ceil(takers.len().max(1));
        for vip in free {
            let nobody = |why: &str| Ownership { owner: None, why: why.to_owned() };
            let decision = match &unheard {
                _ if !self.carrier => nobody("the interface has no link"),
                Some(why) => nobody(why),
                None => free_owner(vip, &takers, &mut load, share),
            };
            owners.insert(vip, decision);
        }
        self.take(&owners, unheard.is_none());
        owners
    }

    fn live(&self, now: Duration) -> Vec<String> {
        let peers = self.peers.iter().filter(|(_, p)| p.is_live(now)).map(|(name, _)| name);
        peers.chain(self.carrier.then_some(&self.name)).cloned().collect()
    }

    fn generation_of(&self, host: &str) -> Generation {
        match self.peers.get(host) {
            Some(peer) => peer.said.as_ref().map_or(peer.serves, |(said, _)| peer.serves.max(*said)),
            None => self.generation,
        }
    }

    fn note_newest(&mut self, live: &[String], now: Duration) {
        let newest = live.iter().map(|h| self.generation_of(h)).max().unwrap_or_default();
        if self.newest.0 != newest {
            self.newest = (newest, now);
        }
    }

    /// The live hosts that run the newest document, or have not had it for long.
    fn not_behind(&self, live: &[String], grace: Duration, now: Duration) -> Vec<String> {
        let (newest, since) = self.newest;
        let in_grace = now.saturating_sub(since) <= grace;
        live.iter().filter(|h| in_grace || self.generation_of(h) == newest).cloned().collect()
    }

    /// This host has just begun to listen: its own probes may wait for ARP.
    fn is_new_here(&self, now: Duration) -> bool {
        now.saturating_sub(self.listening_since) <= CONTROL_LOST
    }

    /// Why nothing may be claimed yet: a peer may own what looks free.
    fn unheard(&self, now: Duration) -> Option<String> {
        let listening = now.saturating_sub(self.listening_since);
        if self.peers.is_empty() || !self.is_new_here(now) {
            return None;
        }
        if listening < LISTEN_FIRST {
            return Some("listening for peers before claiming anything".to_owned());
        }
        let silent = self.peers.iter().find(|(_, p)| p.is_live(now) && p.said.is_none());
        silent.map(|(name, _)| format!("{name} is alive and has not said yet what it owns"))
    }

    /// The live host that has the VIP now; of several claimants, the highest rank.
    fn present_owner<'a>(&self, vip: Ipv4Addr, holders: &'a [String]) -> Option<&'a str> {
        let claim = |host: &str| match self.peers.get(host) {
            Some(peer) => peer.claim(vip),
            None => self.mine.get(&vip).copied(),
        };
        let claimants = holders.iter().filter_map(|h| Some((claim(h)? != RESUMED, rank(h, vip))));
        claimants.max().map(|(_, (_, host))| host)
    }

    /// Numbers the new claims; all of them when a peer has come back. `confirmed`: peers have been
    /// heard, so resumed claims are claims.
    fn take(&mut self, owners: &BTreeMap<Ipv4Addr, Ownership>, confirmed: bool) {
        let again = std::mem::take(&mut self.greeted);
        let mut mine = Claims::new();
        for (vip, _) in owners.iter().filter(|(_, o)| o.owner.as_deref() == Some(&*self.name)) {
            let number = match self.mine.get(vip) {
                Some(&RESUMED) if !confirmed => RESUMED,
                Some(number) if *number != RESUMED && !again => *number,
                _ => {
                    self.claims_made += 1;
                    self.claims_made
                }
            };
            mine.insert(*vip, number);
        }
        self.mine = mine;
    }
}

impl Peer {
    fn is_live(&self, now: Duration) -> bool {
        let within = |seen: Option<Duration>, limit| seen.is_some_and(|at| now.saturating_sub(at) <= limit);
        within(self.answered, HOST_LOST) && within(self.control_seen, CONTROL_LOST)
    }

    /// It speaks, and we do not know yet whether it hears us.
    fn is_greeting(&self) -> bool {
        self.answered.is_none() && self.said.is_some()
    }

    /// As if it had been heard by so much later, but not after now.
    fn was_heard_later(&mut self, time: Duration, now: Duration) {
        let heard = [&mut self.answered, &mut self.control_seen].into_iter().flatten();
        heard.chain([&mut self.said_at]).for_each(|at| *at = (*at + time).min(now));
    }

    /// What a lost host owned is no longer its own, also when it comes back.
    fn forget_if_lost(&mut self, we_are_new: bool, now: Duration) {
        let greets = we_are_new && self.is_greeting() && now.saturating_sub(self.said_at) <= GREETING;
        if !self.is_live(now) && !greets {
            (self.answered, self.said) = (None, None);
        }
    }

    fn claim(&self, vip: Ipv4Addr) -> Option<u64> {
        self.said.as_ref().and_then(|(_, claims)| claims.get(&vip).copied())
    }
}

fn free_owner<'a>(
    vip: Ipv4Addr,
    takers: &'a [String],
    load: &mut BTreeMap<&'a str, usize>,
    share: usize,
) -> Ownership {
    let mut ranked: Vec<&str> = takers.iter().map(String::as_str).collect();
    ranked.sort_by_key(|h| std::cmp::Reverse(rank(h, vip)));
    let has_room = |h: &&&str| load.get(**h).is_none_or(|n| *n < share);
    let Some(owner) = ranked.iter().find(has_room).or(ranked.first()).copied() else {
        return Ownership { owner: None, why: "no host is alive".into() };
    };
    *load.entry(owner).or_default() += 1;
    Ownership {
        why: format!("{owner} ranks highest of {} live hosts", takers.len()),
        owner: Some(owner.to_owned()),
    }
}

/// Rendezvous: every host ranks the hosts alike for a VIP, and a lost host's VIPs spread.
fn rank(host: &str, vip: Ipv4Addr) -> (u64, &str) {
    let mut hasher = SipHasher13::new();
    hasher.write(host.as_bytes());
    hasher.write(&vip.octets());
    (hasher.finish(), host)
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
