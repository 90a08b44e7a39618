//! Probes and hellos over UDP.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use metal_lb_api::{Config, MemberKey};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};

use super::hello::Hello;
use super::machine::PROBE_INTERVAL;
use crate::xdp::layout::{PROBE_ANSWER, PROBE_MAGIC, PROBE_REQUEST, Probe, Shared};

/// A hello goes out with every n-th probe, and at once when ownership changes.
const PROBES_PER_HELLO: u32 = 3;

/// What was heard of a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    Answer { peer: String, age: Duration },
    Hello { peer: String, owned: BTreeSet<Ipv4Addr> },
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
    mut owned: watch::Receiver<BTreeSet<Ipv4Addr>>,
    heard: mpsc::Sender<Heard>,
) -> anyhow::Result<()> {
    // Any number that differs between two lives of the process.
    let boot = std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64);
    loop {
        let Some(present) = tier.borrow_and_update().clone() else {
            if tier.changed().await.is_err() {
                return Ok(());
            }
            continue;
        };
        let socket = match UdpSocket::bind(present.own).await {
            Ok(socket) => Arc::new(socket),
            Err(error) => {
                tracing::warn!(%error, address = %present.own, "cannot bind the members' address; is it this host's?");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        tokio::select! {
            changed = tier.changed() => if changed.is_err() { return Ok(()) },
            () = send(&name, boot, &present, &socket, &mut owned) => return Ok(()),
            () = receive(&present, &socket, &heard) => return Ok(()),
        }
    }
}

async fn send(
    name: &str,
    boot: u64,
    tier: &Tier,
    socket: &UdpSocket,
    owned: &mut watch::Receiver<BTreeSet<Ipv4Addr>>,
) {
    let mut ticks = tokio::time::interval(PROBE_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut nonce, mut sequence) = (0u64, 0u64);
    loop {
        let say_hello = tokio::select! {
            _ = ticks.tick() => {
                nonce += 1;
                let probe = Probe {
                    magic: PROBE_MAGIC.to_be(), kind: PROBE_REQUEST.to_be(), nonce: nonce.to_be(), ..Probe::default()
                };
                send_all(socket, tier, probe.as_bytes()).await;
                nonce.is_multiple_of(u64::from(PROBES_PER_HELLO))
            }
            changed = owned.changed() => if changed.is_err() { return } else { true },
        };
        if say_hello {
            sequence += 1;
            let owned = owned.borrow_and_update().clone();
            let hello = Hello { host: name.to_owned(), boot, sequence, owned };
            send_all(socket, tier, &hello.seal(&tier.key)).await;
        }
    }
}

async fn send_all(socket: &UdpSocket, tier: &Tier, message: &[u8]) {
    for (address, peer) in &tier.peers {
        if let Err(error) = socket.send_to(message, address).await {
            tracing::debug!(%error, %peer, "a probe could not be sent");
        }
    }
}

async fn receive(tier: &Tier, socket: &UdpSocket, heard: &mpsc::Sender<Heard>) {
    let mut buffer = vec![0u8; 65_536];
    let mut lives: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
        let message = &buffer[..length];
        let Some(peer) = tier.peers.get(&from) else { continue };
        let event = match Probe::from_bytes(message).filter(|p| p.magic == PROBE_MAGIC.to_be()) {
            Some(probe) if probe.kind == PROBE_ANSWER.to_be() => {
                let age = Duration::from_millis(u64::from(u32::from_be(probe.control_age_ms)));
                Heard::Answer { peer: peer.clone(), age }
            }
            // A request that the program passed up: it is not attached yet.
            Some(_) => continue,
            None => {
                let Some(hello) = Hello::open(message, &tier.key).filter(|h| h.host == *peer) else {
                    continue;
                };
                let life = lives.entry(hello.host.clone()).or_default();
                if hello.boot < life.0 || (hello.boot == life.0 && hello.sequence <= life.1) {
                    continue;
                }
                *life = (hello.boot, hello.sequence);
                Heard::Hello { peer: hello.host, owned: hello.owned }
            }
        };
        if heard.send(event).await.is_err() {
            return;
        }
    }
}
