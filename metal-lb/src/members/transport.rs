//! Probes and hellos over UDP.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use metal_lb_api::{Config, Generation, MemberKey};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

use super::hello::Hello;
use super::machine::PROBE_INTERVAL;
use super::{Claims, Standing};
use crate::xdp::layout::{PROBE_ANSWER, PROBE_MAGIC, PROBE_REQUEST, Probe, Shared};

/// A hello goes out with every n-th probe, and at once when there is news.
const PROBES_PER_HELLO: u64 = 3;
/// Answers to older probes come too late to prove anything.
const PROBES_IN_FLIGHT: u64 = 3;
const BIND_RETRY: Duration = Duration::from_secs(1);
/// A peer that has been silent for so long may begin anew with lower numbers: a machine without a
/// clock of its own starts in the past.
const LIFE_ENDS: Duration = Duration::from_secs(5);

/// What was heard of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Answer { peer: String, age: Duration, serves: Generation },
    Hello { peer: String, generation: Generation, owned: Claims },
}

/// The tier as the transport needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tier {
    pub own: SocketAddr,
    pub peers: BTreeMap<SocketAddr, String>,
    pub key: MemberKey,
}

impl Tier {
    /// `None` when the host is not in the document.
    pub fn of(config: &Config, name: &str) -> Option<Self> {
        let own = config.hosts.iter().find(|h| h.name == name)?.address;
        let peers = config.hosts.iter().filter(|h| h.name != name).map(|h| (h.address, h.name.clone()));
        Some(Self { own, peers: peers.collect(), key: config.member_key.clone() })
    }
}

/// Speaks with the peers of the present tier until the receivers are gone.
///
/// # Errors
/// None so far: a socket that cannot be bound is tried again.
pub async fn run(
    name: String,
    mut tier: watch::Receiver<Option<Tier>>,
    mut standing: watch::Receiver<Standing>,
    heard: mpsc::Sender<Heard>,
) -> anyhow::Result<()> {
    // Any number that differs between two lives of the process, and grows.
    let boot = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64);
    // A change of the tier begins no new life: peers that have not heard of it go on counting.
    let (sent, mut sequence, mut lives) = (AtomicU64::new(boot), 0, Lives::default());
    let mut told = None;
    loop {
        let Some(present) = tier.borrow_and_update().clone() else {
            if tier.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        let socket = match UdpSocket::bind(present.own).await {
            Ok(socket) => socket,
            Err(error) => {
                if told.replace(present.own) != Some(present.own) {
                    tracing::error!(%error, address = %present.own, "cannot bind the members' address, trying again: is it this host's?");
                }
                tokio::time::sleep(BIND_RETRY).await;
                continue;
            }
        };
        let speaker = Speaker { name: &name, boot, tier: &present, socket: &socket, sent: &sent };
        tokio::select! {
            changed = tier.changed() => if changed.is_err() { return Ok(()) },
            () = speaker.send(&mut standing, &mut sequence) => return Ok(()),
            () = speaker.receive(&heard, &mut lives) => return Ok(()),
        }
    }
}

/// The newest hello of each peer, by life and sequence, and when it came.
#[derive(Debug, Default)]
struct Lives(BTreeMap<String, (u64, u64, Instant)>);

impl Lives {
    /// Whether it is to be heard: none is heard twice.
    fn is_news(&mut self, hello: &Hello, now: Instant) -> bool {
        let said = (hello.boot, hello.sequence);
        let is_older =
            |(boot, sequence, at): &(u64, u64, Instant)| said <= (*boot, *sequence) && now - *at < LIFE_ENDS;
        let is_news = !self.0.get(&hello.host).is_some_and(is_older);
        if is_news {
            self.0.insert(hello.host.clone(), (hello.boot, hello.sequence, now));
        }
        is_news
    }
}

/// Both directions on one socket.
struct Speaker<'a> {
    name: &'a str,
    boot: u64,
    tier: &'a Tier,
    socket: &'a UdpSocket,
    /// The last probe's nonce.
    sent: &'a AtomicU64,
}

impl Speaker<'_> {
    async fn send(&self, standing: &mut watch::Receiver<Standing>, sequence: &mut u64) {
        let mut ticks = tokio::time::interval(PROBE_INTERVAL);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let say_hello = tokio::select! {
                _ = ticks.tick() => {
                    let nonce = self.sent.fetch_add(1, Ordering::Relaxed) + 1;
                    self.to_all(request(nonce).as_bytes()).await;
                    nonce.is_multiple_of(PROBES_PER_HELLO)
                }
                changed = standing.changed() => if changed.is_err() { return } else { true },
            };
            if !say_hello {
                continue;
            }
            let Standing { generation, claims } = standing.borrow_and_update().clone();
            // Before the first document there is nothing to say.
            if let Some(generation) = generation {
                *sequence += 1;
                let host = self.name.to_owned();
                let hello = Hello { host, boot: self.boot, sequence: *sequence, generation, owned: claims };
                self.to_all(&hello.seal(&self.tier.key)).await;
            }
        }
    }

    async fn to_all(&self, message: &[u8]) {
        for (address, peer) in &self.tier.peers {
            if let Err(error) = self.socket.send_to(message, address).await {
                tracing::debug!(%error, %peer, "a probe could not be sent");
            }
        }
    }

    async fn receive(&self, heard: &mpsc::Sender<Heard>, lives: &mut Lives) {
        let mut buffer = vec![0u8; 65_536];
        loop {
            // An error here is an ICMP answer to an earlier probe: the peer is starting.
            let Ok((length, from)) = self.socket.recv_from(&mut buffer).await else { continue };
            let Some(peer) = self.tier.peers.get(&from) else { continue };
            let message = &buffer[..length];
            let event = match Probe::from_bytes(message).filter(|p| p.magic == PROBE_MAGIC.to_be()) {
                Some(probe) if probe.kind == PROBE_REQUEST.to_be() => {
                    // Over IPv4 the program answers, or the host cannot serve.
                    if from.is_ipv6() {
                        self.answer(&probe, from).await;
                    }
                    None
                }
                Some(probe) => self.answered(peer, &probe),
                None => self.hello(peer, message, lives),
            };
            let Some(event) = event else { continue };
            if heard.send(event).await.is_err() {
                return;
            }
        }
    }

    /// In the place of the program, which passes up probes over IPv6.
    async fn answer(&self, request: &Probe, from: SocketAddr) {
        let answer = Probe { kind: PROBE_ANSWER.to_be(), control_age_ms: 0, ..*request };
        if let Err(error) = self.socket.send_to(answer.as_bytes(), from).await {
            tracing::debug!(%error, %from, "a probe could not be answered");
        }
    }

    /// `None` for an answer that comes late.
    fn answered(&self, peer: &str, probe: &Probe) -> Option<Heard> {
        let behind = self.sent.load(Ordering::Relaxed).checked_sub(u64::from_be(probe.nonce))?;
        if probe.kind != PROBE_ANSWER.to_be() || behind >= PROBES_IN_FLIGHT {
            return None;
        }
        let age = Duration::from_millis(u64::from(u32::from_be(probe.control_age_ms)));
        let serves = Generation {
            term: u64::from_be(probe.generation_term),
            counter: u64::from_be(probe.generation_counter),
        };
        Some(Heard::Answer { peer: peer.to_owned(), age, serves })
    }

    fn hello(&self, peer: &str, message: &[u8], lives: &mut Lives) -> Option<Heard> {
        let hello = Hello::open(message, &self.tier.key).filter(|h| h.host == peer)?;
        lives.is_news(&hello, Instant::now()).then_some(Heard::Hello {
            peer: hello.host,
            generation: hello.generation,
            owned: hello.owned,
        })
    }
}

fn request(nonce: u64) -> Probe {
    Probe {
        magic: PROBE_MAGIC.to_be(),
        kind: PROBE_REQUEST.to_be(),
        nonce: nonce.to_be(),
        ..Probe::default()
    }
}

#[cfg(test)]
#[path = "transport_tests.rs"]
mod tests;
