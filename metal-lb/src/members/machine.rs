//! The ownership rules. Time and events come in, owners come out; no clock, no I/O.
//!
//! * A VIP stays where it is while its owner is alive: nothing is pre-empted.
//! * A host is lost when its XDP program leaves three probes unanswered. Its VIPs move at once.
//! * A host whose program answers but whose control process has been silent for ten seconds is
//!   forwarding on stale tables: its VIPs move too. A restart takes less.
//! * A free VIP goes to the live host that ranks highest for it and is not over its fair share.
//! * If two hosts claim one VIP (a healed partition), the lower rank yields.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::Hasher;
use std::net::Ipv4Addr;
use std::time::Duration;

use siphasher::sip::SipHasher13;

/// Peers are probed this often.
pub(super) const PROBE_INTERVAL: Duration = Duration::from_millis(100);
/// Three unanswered probes, and half an interval for the last answer to arrive.
const HOST_LOST: Duration = Duration::from_millis(350);
/// A control process that is silent for longer has not just been restarted.
const CONTROL_LOST: Duration = Duration::from_secs(10);
/// A host that starts listens for this long before it claims anything.
const LISTEN_FIRST: Duration = Duration::from_millis(800);

/// Who owns a VIP, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ownership {
    pub owner: Option<String>,
    pub why: String,
}

/// One host's view of the tier. Times are since any fixed instant.
#[derive(Debug)]
pub struct Members {
    name: String,
    started: Duration,
    carrier: bool,
    vips: BTreeSet<Ipv4Addr>,
    mine: BTreeSet<Ipv4Addr>,
    peers: BTreeMap<String, Peer>,
}

#[derive(Debug, Default)]
struct Peer {
    answered: Option<Duration>,
    control_seen: Option<Duration>,
    claims: BTreeSet<Ipv4Addr>,
}

impl Members {
    /// `resumed`: the VIPs that the pinned maps say this host owned when its process ended.
    pub fn new(name: &str, resumed: BTreeSet<Ipv4Addr>, now: Duration) -> Self {
        Self {
            name: name.to_owned(),
            started: now,
            carrier: true,
            vips: resumed.clone(),
            mine: resumed,
            peers: BTreeMap::new(),
        }
    }

    /// The document's VIPs and the other hosts' names.
    pub fn set_document(&mut self, vips: BTreeSet<Ipv4Addr>, peers: &BTreeSet<String>) {
        self.mine.retain(|vip| vips.contains(vip));
        self.vips = vips;
        self.peers.retain(|name, _| peers.contains(name));
        for name in peers.iter().filter(|n| **n != self.name) {
            self.peers.entry(name.clone()).or_default();
        }
    }

    /// The peer's XDP program answered a probe; its control process was `age` old then.
    pub fn on_answer(&mut self, peer: &str, age: Duration, now: Duration) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.answered = Some(now);
            peer.control_seen = peer.control_seen.max(now.checked_sub(age));
        }
    }

    /// The peer's control process says what it owns.
    pub fn on_hello(&mut self, peer: &str, claims: BTreeSet<Ipv4Addr>, now: Duration) {
        if let Some(peer) = self.peers.get_mut(peer) {
            peer.control_seen = Some(now);
            peer.claims = claims;
        }
    }

    /// Whether the interface has a link. Without one this host can serve nobody.
    pub fn set_carrier(&mut self, up: bool, now: Duration) {
        if up && !self.carrier {
            self.started = now;
        }
        self.carrier = up;
    }

    pub fn mine(&self) -> &BTreeSet<Ipv4Addr> {
        &self.mine
    }

    /// Decides every VIP anew.
    pub fn decide(&mut self, now: Duration) -> BTreeMap<Ipv4Addr, Ownership> {
        if !self.carrier {
            self.mine.clear();
        }
        let mut live: Vec<String> =
            self.peers.iter().filter(|(_, p)| p.is_live(now)).map(|(name, _)| name.clone()).collect();
        if self.carrier {
            live.push(self.name.clone());
        }
        let listening = now < self.started + LISTEN_FIRST && !self.peers.is_empty();

        let mut load: BTreeMap<String, usize> = live.iter().map(|h| (h.clone(), 0)).collect();
        let mut owners = BTreeMap::new();
        let mut free = Vec::new();
        for vip in self.vips.clone() {
            match self.present_owner(vip, &live) {
                Some(owner) => {
                    *load.entry(owner.clone()).or_default() += 1;
                    owners.insert(
                        vip,
                        Ownership { why: format!("{owner} has it and is alive"), owner: Some(owner) },
                    );
                }
                None => free.push(vip),
            }
        }
        let share = self.vips.len().div_ceil(live.len().max(1));
        for vip in free {
            let decision = if !self.carrier {
                Ownership { owner: None, why: "the interface has no link".into() }
            } else if listening {
                Ownership { owner: None, why: "listening for peers before claiming anything".into() }
            } else {
                free_owner(vip, &live, &mut load, share)
            };
            owners.insert(vip, decision);
        }
        self.mine =
            owners.iter().filter(|(_, o)| o.owner.as_deref() == Some(&*self.name)).map(|(v, _)| *v).collect();
        owners
    }

    /// The live host that has the VIP now; of several claimants, the highest rank.
    fn present_owner(&self, vip: Ipv4Addr, live: &[String]) -> Option<String> {
        let claims = |host: &String| match self.peers.get(host) {
            Some(peer) => peer.claims.contains(&vip),
            None => self.mine.contains(&vip),
        };
        live.iter().filter(|h| claims(h)).max_by_key(|h| rank(h, vip)).cloned()
    }
}

impl Peer {
    fn is_live(&self, now: Duration) -> bool {
        let within = |seen: Option<Duration>, limit| seen.is_some_and(|at| now.saturating_sub(at) <= limit);
        within(self.answered, HOST_LOST) && within(self.control_seen, CONTROL_LOST)
    }
}

fn free_owner(vip: Ipv4Addr, live: &[String], load: &mut BTreeMap<String, usize>, share: usize) -> Ownership {
    let mut ranked: Vec<&String> = live.iter().collect();
    ranked.sort_by_key(|h| std::cmp::Reverse(rank(h, vip)));
    let room = |h: &&&String| load.get(h.as_str()).is_none_or(|n| *n < share);
    let Some(owner) = ranked.iter().find(room).or(ranked.first()).map(|h| (*h).clone()) else {
        return Ownership { owner: None, why: "no host is alive".into() };
    };
    *load.entry(owner.clone()).or_default() += 1;
    Ownership { why: format!("{owner} ranks highest of {} live hosts", live.len()), owner: Some(owner) }
}

/// Rendezvous: every host ranks the hosts alike for a VIP, and a lost host's VIPs spread.
fn rank(host: &str, vip: Ipv4Addr) -> (u64, String) {
    let mut hasher = SipHasher13::new();
    hasher.write(host.as_bytes());
    hasher.write(&vip.octets());
    (hasher.finish(), host.to_owned())
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
