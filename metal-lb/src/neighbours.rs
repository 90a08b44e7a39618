//! How frames reach the nodes: from the kernel's routes and its neighbour table.
//!
//! Events only say when to look again. The health probes keep the kernel's entries fresh; a node
//! that has none yet is poked. A node behind a router is reached by the router's address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use crate::desired::Mac;

/// Without an event, the kernel is asked this often all the same.
const REREAD: Duration = Duration::from_secs(5);
/// While a node has no link-layer address.
const POKE: Duration = Duration::from_millis(500);
/// Events come in bursts: one look is enough for those that follow within this time.
const BURST: Duration = Duration::from_millis(10);
/// The discard service (RFC 863): nobody has to listen there, the kernel resolves the address first.
const DISCARD_PORT: u16 = 9;
const GROUPS: [MulticastGroup; 4] =
    [MulticastGroup::Link, MulticastGroup::Neigh, MulticastGroup::Ipv4Route, MulticastGroup::Ipv4Ifaddr];

/// What the kernel knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbours {
    pub next_hops: BTreeMap<Ipv4Addr, NextHop>,
    /// The interface has a link.
    pub carrier: bool,
}

/// How an address is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextHop {
    /// Frames go to this address. It stays when the kernel forgets it: health is decided elsewhere.
    Mac(Mac),
    Unresolved,
    /// The route leaves by another interface.
    Elsewhere,
    /// The address is this host's own.
    Local,
    NoRoute,
}

/// Reports whenever something changed. `known`: what an earlier process had programmed.
///
/// # Errors
/// When no netlink socket can be opened, or the interface is gone, was made anew or has another
/// link-layer address: the program has to be attached again, or to be told.
pub async fn run(
    interface: String,
    mut nodes: watch::Receiver<BTreeSet<Ipv4Addr>>,
    known: BTreeMap<Ipv4Addr, Mac>,
    changes: mpsc::Sender<Neighbours>,
) -> anyhow::Result<()> {
    let (connection, handle, mut events) =
        rtnetlink::new_multicast_connection(&GROUPS).context("opening a netlink socket")?;
    let mut connections = JoinSet::new();
    connections.spawn(connection);
    let poker = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await.context("opening a UDP socket")?;
    let own = link(&handle, &interface).await?;
    let mut reader = Reader { handle, interface, own, known, routes: BTreeMap::new() };
    let mut told = None;
    loop {
        let wanted = nodes.borrow_and_update().clone();
        let now = reader.read(&wanted).await?;
        let mut pause = REREAD;
        for (address, _) in now.next_hops.iter().filter(|(_, hop)| **hop == NextHop::Unresolved) {
            pause = POKE;
            // Refused only while there is no route; then the next look says so.
            let _refused = poker.send_to(&[], (*address, DISCARD_PORT)).await;
        }
        if told.as_ref() != Some(&now) {
            told = Some(now.clone());
            if changes.send(now).await.is_err() {
                return Ok(());
            }
        }
        tokio::select! {
            () = changes.closed() => return Ok(()),
            event = events.next() => {
                let event = event.context("the netlink socket has closed")?;
                tokio::time::sleep(BURST).await;
                let rest = std::iter::from_fn(|| events.try_recv().ok());
                if std::iter::once(event).chain(rest).any(|(event, _)| !is_of_neighbour(&event)) {
                    reader.routes.clear();
                }
            }
            changed = nodes.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(pause) => reader.routes.clear(),
        }
    }
}

/// Neighbours change state all the time, and routes with none of it.
fn is_of_neighbour(event: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    use RouteNetlinkMessage::{DelNeighbour, NewNeighbour};
    matches!(event.payload, NetlinkPayload::InnerMessage(NewNeighbour(_) | DelNeighbour(_)))
}

struct Reader {
    handle: Handle,
    interface: String,
    /// As it was at the start.
    own: Link,
    known: BTreeMap<Ipv4Addr, Mac>,
    /// As they were when routes last changed.
    routes: BTreeMap<Ipv4Addr, Route>,
}

impl Reader {
    async fn read(&mut self, wanted: &BTreeSet<Ipv4Addr>) -> anyhow::Result<Neighbours> {
        let Link { index, mac, carrier } = link(&self.handle, &self.interface).await?;
        if index != self.own.index {
            bail!("{} was made anew; starting again attaches the packet path to it", self.interface);
        }
        if mac != self.own.mac {
            bail!("{} has another link-layer address; starting again announces it", self.interface);
        }
        let table = self.table().await?;
        let mut next_hops = BTreeMap::new();
        for node in wanted {
            let route = match self.routes.get(node) {
                Some(route) => *route,
                None => self.route(*node).await,
            };
            self.routes.insert(*node, route);
            let hop = match route {
                Route::OnLink(neighbour) => self.resolve(*node, table.get(&neighbour).copied()),
                Route::Elsewhere => NextHop::Elsewhere,
                Route::Local => NextHop::Local,
                Route::None => NextHop::NoRoute,
            };
            next_hops.insert(*node, hop);
        }
        self.routes.retain(|node, _| wanted.contains(node));
        self.known.retain(|node, _| wanted.is_empty() || wanted.contains(node));
        Ok(Neighbours { next_hops, carrier })
    }

    fn resolve(&mut self, node: Ipv4Addr, found: Option<Mac>) -> NextHop {
        if let Some(mac) = found {
            self.known.insert(node, mac);
        }
        self.known.get(&node).map_or(NextHop::Unresolved, |mac| NextHop::Mac(*mac))
    }

    /// The interface's resolved neighbours.
    async fn table(&self) -> anyhow::Result<BTreeMap<Ipv4Addr, Mac>> {
        let mut table = BTreeMap::new();
        let mut entries = self.handle.neighbours().get().set_address_family(AddressFamily::Inet).execute();
        while let Some(entry) = entries.try_next().await.context("listing neighbours")? {
            let unresolved = matches!(
                entry.header.state,
                NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None
            );
            if unresolved || entry.header.ifindex != self.own.index {
                continue;
            }
            let (mut address, mut mac) = (None, None);
            for attribute in entry.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => address = Some(ip),
                    NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.try_into().ok().map(Mac),
                    _ => {}
                }
            }
            table.extend(address.zip(mac));
        }
        Ok(table)
    }

    async fn route(&self, address: Ipv4Addr) -> Route {
        // With a destination this is a look-up, not a dump.
        let question = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
        let answer = self.handle.route().get(question).execute().try_next().await;
        let Ok(Some(found)) = answer else { return Route::None };
        let (mut gateway, mut interface) = (None, None);
        for attribute in found.attributes {
            match attribute {
                RouteAttribute::Gateway(RouteAddress::Inet(ip)) => gateway = Some(ip),
                RouteAttribute::Oif(index) => interface = Some(index),
                _ => {}
            }
        }
        match found.header.kind {
            RouteType::Local => Route::Local,
            RouteType::Unicast if interface == Some(self.own.index) => {
                Route::OnLink(gateway.unwrap_or(address))
            }
            RouteType::Unicast => Route::Elsewhere,
            _ => Route::None,
        }
    }
}

/// What the kernel's routes say of an address.
#[derive(Clone, Copy)]
enum Route {
    /// It is reached by this neighbour on our interface.
    OnLink(Ipv4Addr),
    Elsewhere,
    Local,
    None,
}

/// The interface that the packet path is on.
struct Link {
    index: u32,
    mac: Option<Mac>,
    /// It has a link.
    carrier: bool,
}

async fn link(handle: &Handle, interface: &str) -> anyhow::Result<Link> {
    let mut links = handle.link().get().match_name(interface.to_owned()).execute();
    let found = links.try_next().await.with_context(|| format!("reading the state of {interface}"))?;
    let found = found.with_context(|| format!("there is no interface {interface}"))?;
    let mut link = Link { index: found.header.index, mac: None, carrier: false };
    for attribute in &found.attributes {
        match attribute {
            LinkAttribute::Address(bytes) => link.mac = bytes.as_slice().try_into().ok().map(Mac),
            LinkAttribute::Carrier(1) => link.carrier = found.header.flags.contains(LinkFlags::Up),
            _ => {}
        }
    }
    Ok(link)
}
