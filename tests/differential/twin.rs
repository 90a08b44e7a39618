//! A node with everything around it, in a world of its own.
//!
//! ```text
//!   client .100 ────┐                                   ┌─ pod-1 10.244.1.2
//!   (outside)       │      switch,                      ├─ pod-2 10.244.1.3
//!                   ├── the router .1 ── node-1 .11 ────┴─ pod-3 10.244.1.4
//!   node-2 .12 ─────┤   172.30.0.0/24        │
//!   10.244.2.*      │                        └─ the API server, by a cable of its own
//!   node-3 .13 ─────┘
//!   10.244.3.2
//! ```
//!
//! node-2 has all endpoints that are elsewhere, node-3 has a pod that asks. Only node-1 translates:
//! everybody sends what goes to a Service over it, and what comes back takes the same way. The
//! router refuses what node-1 leaves alone, in words that no Service uses.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use lab::control_plane::ControlPlane;
use lab::netns::Netns;
use lab::network::{self, Host, PodNetwork, Switch};
use tokio::runtime::{Handle, Runtime};

use crate::endpoints::{self, PORTS};

/// The name of the Node object.
pub(crate) const NODE: &str = "node-1";
pub(crate) const ELSEWHERE: &str = "node-2";

const LOCAL_PODS: PodNetwork = PodNetwork(1);
const REMOTE_PODS: PodNetwork = PodNetwork(2);
const ASKING_PODS: PodNetwork = PodNetwork(3);

/// Endpoints on the node, each in a namespace of its own, and elsewhere, all in one.
pub(crate) const LOCAL: u8 = 3;
pub(crate) const REMOTE: u8 = 8;

/// Where Services can be, beside what the API server allocates.
pub(crate) const VIPS: [&str; 2] = ["198.18.0.0/15", "fd00:198:18::/64"];
const CLUSTER_IPS: [&str; 2] = ["10.96.0.0/12", "fd00:10:96::/112"];

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// On the node, and perhaps an endpoint; from 1.
    Pod(u8),
    /// A pod of another node, which sends its question over this one.
    PodElsewhere,
    Node,
    Outside,
}

impl Source {
    pub(crate) const ALL: [Self; 5] =
        [Self::Pod(1), Self::Pod(2), Self::PodElsewhere, Self::Node, Self::Outside];
}

/// The address of an endpoint. Numbers from 0: first those on the node, then those elsewhere.
pub(crate) fn endpoint(number: u8) -> [IpAddr; 2] {
    let (network, host) = if number < LOCAL {
        (LOCAL_PODS, network::GATEWAY + 1 + number)
    } else {
        (REMOTE_PODS, network::GATEWAY + 1 + number - LOCAL)
    };
    [network.v4(host).into(), network.v6(host).into()]
}

/// One of the two.
#[derive(Debug)]
pub(crate) struct Twin {
    pub node: Host,
    stations: BTreeMap<Source, Station>,
    _answering: Vec<Station>,
    _switch: Switch,
}

/// A namespace, and the thread that does everything in it.
#[derive(Debug)]
struct Station {
    runtime: Option<Runtime>,
    _netns: Arc<Netns>,
}

impl Twin {
    /// `nth` tells the cables to the API server apart, from 1.
    ///
    /// # Errors
    /// When the kernel refuses a part of it.
    pub(crate) async fn create(
        lab_id: &str,
        name: &str,
        nth: u8,
        control_plane: &ControlPlane,
    ) -> Result<Self> {
        let switch = Switch::with_prefix(lab_id, &format!("{name}-"))?;
        let node = switch.attach(NODE, network::FIRST_NODE)?;
        let elsewhere = switch.attach(ELSEWHERE, network::FIRST_NODE + 1)?;
        let asking = switch.attach("node-3", network::FIRST_NODE + 2)?;
        let client = switch.attach("client", network::CLIENT)?;
        let nodes = [node.clone(), elsewhere.clone(), asking.clone()];
        for host in &nodes {
            network::make_node(host, &nodes)?;
        }
        network::make_client(&client)?;
        switch.route_pods(&nodes)?;
        elsewhere.netns.ip(&addresses((0..REMOTE).flat_map(|n| endpoint(LOCAL + n)), "lo"))?;
        let pod_elsewhere = [ASKING_PODS.v4(2).into(), ASKING_PODS.v6(2).into()];
        asking.netns.ip(&addresses(pod_elsewhere.into_iter(), "lo"))?;
        route_over_the_node(&switch, &node, &elsewhere, [&asking, &client])?;
        plug_api_server(&node, control_plane, name, nth)?;

        let mut stations = BTreeMap::new();
        for number in 1..=LOCAL {
            let netns = Netns::create(lab_id, &format!("{name}-pod-{number}"))?;
            let host = network::GATEWAY + number;
            network::plug_pod(&node, LOCAL_PODS, host, &netns, &format!("pod-{number}"))?;
            let station = Station::new(netns)?;
            station.answer_at(endpoint(number - 1)).await?;
            stations.insert(Source::Pod(number), station);
        }
        let answering = Station::new(elsewhere.netns.clone())?;
        answering.answer_at((0..REMOTE).flat_map(|n| endpoint(LOCAL + n))).await?;
        stations.insert(Source::PodElsewhere, Station::new(asking.netns.clone())?);
        stations.insert(Source::Node, Station::new(node.netns.clone())?);
        stations.insert(Source::Outside, Station::new(client.netns.clone())?);
        for station in stations.values().chain([&answering]) {
            station.tell_everything()?;
        }
        for host in [&client, &asking, &elsewhere] {
            host.netns.sysctl(&[("ipv6/conf/all/accept_redirects", "0")])?;
            host.netns.sysctl(&[("ipv6/conf/eth0/accept_redirects", "0")])?;
        }
        switch.netns.sysctl(&UNLIMITED)?;
        Ok(Self { node, stations, _answering: vec![answering], _switch: switch })
    }

    /// Where the tasks of a source run.
    ///
    /// # Panics
    /// For a pod that there is not.
    pub(crate) fn handle(&self, source: Source) -> &Handle {
        self.stations[&source].handle()
    }

    /// Forgets all connections, so that a Service which gets a used address is a new one.
    ///
    /// # Errors
    /// When `conntrack` is missing.
    pub(crate) fn forget_connections(&self) -> Result<()> {
        self.node.netns.tool("conntrack", &["-F"]).map(drop)
    }
}

/// The address that a source speaks from, where the kernel would choose another or has a choice.
pub(crate) fn own_address(source: Source, to: IpAddr) -> Option<IpAddr> {
    let [v4, v6] = match source {
        Source::Pod(_) | Source::Node | Source::Outside => return None,
        Source::PodElsewhere => [ASKING_PODS.v4(2).into(), ASKING_PODS.v6(2).into()],
    };
    Some(if to.is_ipv4() { v4 } else { v6 })
}

/// The address that the node sees a source speak from.
pub(crate) fn address_of(twin: &Twin, source: Source, to: IpAddr) -> IpAddr {
    let [v4, v6] = match source {
        Source::Pod(number) => endpoint(number - 1),
        Source::PodElsewhere => [ASKING_PODS.v4(2).into(), ASKING_PODS.v6(2).into()],
        Source::Node => twin.node.addresses(),
        Source::Outside => [network::v4(network::CLIENT).into(), network::v6(network::CLIENT).into()],
    };
    if to.is_ipv4() { v4 } else { v6 }
}

impl Station {
    fn new(netns: Arc<Netns>) -> Result<Self> {
        Ok(Self { runtime: Some(netns.runtime()?), _netns: netns })
    }

    fn handle(&self) -> &Handle {
        self.runtime.as_ref().expect("only the end takes it").handle()
    }

    async fn answer_at(&self, addresses: impl IntoIterator<Item = IpAddr>) -> Result<()> {
        for address in addresses {
            for port in PORTS {
                let answering = endpoints::answer_at(SocketAddr::new(address, port));
                self.handle().spawn(answering).await??;
            }
        }
        Ok(())
    }

    /// Every refusal is told: the kernel keeps many to itself otherwise.
    fn tell_everything(&self) -> Result<()> {
        self._netns.sysctl(&UNLIMITED)
    }
}

/// By nftables, because the kernel limits the refusals of its routes.
const REFUSE: &str = "
table inet router {
    chain prerouting {
        type filter hook prerouting priority 0;
        ip daddr { 10.96.0.0/12, 198.18.0.0/15 } reject with icmp admin-prohibited
        ip6 daddr { fd00:10:96::/112, fd00:198:18::/64 } reject with icmpv6 admin-prohibited
    }
}";

const UNLIMITED: [(&str, &str); 3] =
    [("ipv4/icmp_ratemask", "0"), ("ipv6/icmp/ratelimit", "0"), ("ipv6/icmp/ratemask", "3-127")];

impl Drop for Station {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn addresses(addresses: impl Iterator<Item = IpAddr>, interface: &str) -> String {
    let line = |address: IpAddr| match address {
        IpAddr::V4(v4) => format!("addr add {v4}/32 dev {interface}\n"),
        IpAddr::V6(v6) => format!("addr add {v6}/128 dev {interface} nodad\n"),
    };
    addresses.map(line).collect()
}

/// What goes to a Service, and what comes back from the endpoints elsewhere.
fn route_over_the_node(switch: &Switch, node: &Host, elsewhere: &Host, asking: [&Host; 2]) -> Result<()> {
    let over = |cidr: &str| {
        let [v4, v6] = node.addresses();
        format!("route replace {cidr} via {}\n", if cidr.contains(':') { v6 } else { v4 })
    };
    let services = || CLUSTER_IPS.into_iter().chain(VIPS);
    for host in asking {
        host.netns.ip(&services().map(over).collect::<String>())?;
    }
    let [asking4, asking6] = ASKING_PODS.cidrs();
    let back = [&asking4, &asking6, "172.30.0.96/28", "fd00:172:30::100/120"];
    elsewhere.netns.ip(&back.into_iter().map(over).collect::<String>())?;
    switch.netns.tool("nft", &[REFUSE]).map(drop)
}

/// The API server has an address of the node's own network, in the other world.
fn plug_api_server(node: &Host, control_plane: &ControlPlane, name: &str, nth: u8) -> Result<()> {
    let api = &control_plane.host;
    let cable = format!("to-{name}");
    api.netns
        .ip(&format!(
            "link add {cable} type veth peer name api netns {}
             addr add 100.64.{nth}.1/30 dev {cable}
             link set {cable} up",
            node.netns.name()
        ))
        .context("plugging the API server")?;
    node.netns.ip(&format!(
        "addr add 100.64.{nth}.2/30 dev api
         link set api up
         route add {}/32 via 100.64.{nth}.1",
        api.v4()
    ))
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pod(number) => write!(f, "pod-{number}"),
            Self::PodElsewhere => f.write_str("a pod elsewhere"),
            Self::Node => f.write_str("the node"),
            Self::Outside => f.write_str("outside"),
        }
    }
}
