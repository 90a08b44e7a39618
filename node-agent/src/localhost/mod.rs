//! NodePorts on loopback, for TCP: a proxy in this process, since the kernel translates nothing that
//! was sent to 127.0.0.1 without `route_localnet` (CVE-2020-8558). Only where `--nodeport-addresses`
//! names loopback (KEP-6032; kube-proxy's pkg/proxy/localnodeportproxy).
//!
//! ```text
//! client ──▶ 127.0.0.1:30080 ──▶ [accept] ──▶ [relay] ──▶ endpoint
//!            one listener a NodePort and family, while it has endpoints
//! ```
//!
//! Its connections are this process's: they end with it, with their Service, and when its last
//! endpoint goes.

mod choice;
mod listener;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use daemon::http::listen;
use nix::sys::resource::{Resource, getrlimit};
use service_model::{IpFamily, Protocol, ServiceName, SessionAffinity, World};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::metrics::Metrics;
use crate::nft::desired::{DesiredFrontend, DesiredService};
use crate::nft::layout::{FAMILIES, Frontend, Group};
use crate::select::Place;
use choice::{Choice, Endpoints};

/// More connections at once would be more than a proxy for this host alone is for.
const MOST_CONNECTIONS: u64 = 1 << 16;

/// A NodePort of one family.
type Port = (IpFamily, u16);

/// The listeners. Dropping it ends them and their connections.
#[derive(Debug)]
pub struct LocalhostNodePorts {
    /// Where loopback is named.
    families: Vec<IpFamily>,
    metrics: Metrics,
    /// What each Service asks for. A port that several ask for is the first one's by name.
    wanted: BTreeMap<Port, BTreeMap<ServiceName, Endpoints>>,
    ports_of: BTreeMap<ServiceName, BTreeSet<Port>>,
    running: BTreeMap<Port, Running>,
    /// Ports that could not be bound: tried again with the next update.
    unbound: BTreeSet<Port>,
    /// No new connections; established ones go on.
    stop: CancellationToken,
    slots: Arc<Semaphore>,
    tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Running {
    choice: Arc<Mutex<Choice>>,
    close: CancellationToken,
}

impl LocalhostNodePorts {
    pub fn new(config: &Config, metrics: Metrics) -> Self {
        Self {
            families: FAMILIES.into_iter().filter(|family| config.answers_on_loopback(*family)).collect(),
            metrics,
            wanted: BTreeMap::new(),
            ports_of: BTreeMap::new(),
            running: BTreeMap::new(),
            unbound: BTreeSet::new(),
            stop: CancellationToken::new(),
            slots: Arc::new(Semaphore::new(most_connections())),
            tasks: JoinSet::new(),
        }
    }

    /// Starts, updates and stops what these Services need. Must run on the runtime, in the network
    /// namespace whose loopback is meant.
    pub fn update(&mut self, services: &BTreeSet<ServiceName>, world: &World, place: Place<'_>) {
        if self.families.is_empty() {
            return;
        }
        while self.tasks.try_join_next().is_some() {}
        let mut touched = std::mem::take(&mut self.unbound);
        let again = touched.clone();
        for name in services {
            let wanted = world.service(name).map(|service| {
                let desired = DesiredService::of(service, world, place);
                endpoints(&desired, &self.families, service.session_affinity.map(SessionAffinity::timeout))
            });
            touched.extend(self.want(name, wanted.unwrap_or_default()));
        }
        for port in touched {
            self.settle(port, !again.contains(&port));
        }
        for family in &self.families {
            let listeners = self.running.keys().filter(|(of, _)| of == family).count();
            self.metrics.theirs.localhost_listeners(*family, listeners);
        }
    }

    /// Whether a port could not be bound: another update is wanted.
    pub fn lacks_a_port(&self) -> bool {
        !self.unbound.is_empty()
    }

    /// Stops listening; gives connections so long to end.
    pub async fn drain(mut self, patience: Duration) {
        self.stop.cancel();
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
    }

    /// Takes what a Service asks for; returns the ports for which anything may have changed.
    fn want(&mut self, name: &ServiceName, wanted: BTreeMap<Port, Endpoints>) -> BTreeSet<Port> {
        let ports: BTreeSet<Port> = wanted.keys().copied().collect();
        let mut touched = self.ports_of.remove(name).unwrap_or_default();
        for port in &touched {
            if let Some(askers) = self.wanted.get_mut(port) {
                askers.remove(name);
                if askers.is_empty() {
                    self.wanted.remove(port);
                }
            }
        }
        for (port, endpoints) in wanted {
            self.wanted.entry(port).or_default().insert(name.clone(), endpoints);
        }
        touched.extend(&ports);
        if !ports.is_empty() {
            self.ports_of.insert(name.clone(), ports);
        }
        touched
    }

    /// Makes one listener what it should be.
    fn settle(&mut self, port: Port, is_news: bool) {
        let Some((name, endpoints)) = self.wanted.get(&port).and_then(BTreeMap::first_key_value) else {
            self.running.remove(&port);
            return;
        };
        if let Some(running) = self.running.get(&port) {
            running.choice.lock().unwrap_or_else(PoisonError::into_inner).set(endpoints.clone());
            return;
        }
        match listen(address(port)) {
            Ok(listener) => {
                let choice = Arc::new(Mutex::new(Choice::new(endpoints.clone())));
                let close = CancellationToken::new();
                let serving = listener::Listener {
                    listener,
                    choice: Arc::clone(&choice),
                    slots: Arc::clone(&self.slots),
                    stop: self.stop.clone(),
                    close: close.clone(),
                };
                self.tasks.spawn(serving.run());
                self.running.insert(port, Running { choice, close });
            }
            Err(error) => {
                // Once, not at every try.
                if is_news {
                    let address = address(port);
                    tracing::warn!(service = %name, %address, %error, "no NodePort on loopback; trying again");
                }
                self.metrics.theirs.localhost_listener_failed(port.0);
                self.unbound.insert(port);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.close.cancel();
    }
}

/// What a Service asks of loopback: its TCP NodePorts that have an endpoint.
fn endpoints(
    desired: &DesiredService,
    families: &[IpFamily],
    affinity: Option<Duration>,
) -> BTreeMap<Port, Endpoints> {
    let of_frontend = |(frontend, desired): (&Frontend, &DesiredFrontend)| match *frontend {
        Frontend::NodePort { family, protocol: Protocol::Tcp, port } if families.contains(&family) => {
            // What comes over loopback is no pod's and from no node: the policy holds.
            let targets = match desired.groups.contains(Group::ExternalLocal) {
                true => &desired.local,
                false => &desired.cluster,
            };
            let targets = targets.clone();
            (!targets.is_empty()).then_some(((family, port), Endpoints { targets, affinity }))
        }
        _ => None,
    };
    desired.frontends.iter().filter_map(of_frontend).collect()
}

fn address((family, port): Port) -> SocketAddr {
    let ip: IpAddr = match family {
        IpFamily::V4 => Ipv4Addr::LOCALHOST.into(),
        IpFamily::V6 => Ipv6Addr::LOCALHOST.into(),
    };
    (ip, port).into()
}

/// Each takes two descriptors: half of those that the process may have are left to the rest of it.
fn most_connections() -> usize {
    let descriptors = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
    (descriptors / 4).clamp(1, MOST_CONNECTIONS) as usize
}

#[cfg(test)]
mod tests;
