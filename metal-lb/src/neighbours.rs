//! The link-layer addresses of the nodes, from the kernel's routes and neighbour table.
//!
//! The health probes keep the entries fresh: whoever is probed is resolved. A node behind a router
//! is reached through the router's address.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context;
use futures::TryStreamExt;
use netlink_packet_route::link::{LinkAttribute, LinkFlags};
use netlink_packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use netlink_packet_route::route::{RouteAddress, RouteAttribute};
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::sync::{mpsc, watch};

use crate::desired::Mac;

/// The table is read this often; one dump, however many nodes.
const POLL: Duration = Duration::from_millis(200);

/// What the kernel knows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Neighbours {
    pub macs: BTreeMap<Ipv4Addr, Mac>,
    /// The interface has a link.
    pub carrier: bool,
}

/// Reports the nodes' addresses and the interface's carrier whenever they change.
///
/// # Errors
/// When no netlink socket can be opened.
pub async fn run(
    interface: String,
    nodes: watch::Receiver<BTreeSet<Ipv4Addr>>,
    changes: mpsc::Sender<Neighbours>,
) -> anyhow::Result<()> {
    let (connection, handle, _) = rtnetlink::new_connection().context("opening a netlink socket")?;
    let connection = tokio::spawn(connection);
    let mut told = None;
    let mut ticks = tokio::time::interval(POLL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    while !changes.is_closed() {
        ticks.tick().await;
        let wanted = nodes.borrow().clone();
        match read(&handle, &interface, &wanted).await {
            Ok(now) if told.as_ref() != Some(&now) => {
                told = Some(now.clone());
                if changes.send(now).await.is_err() {
                    break;
                }
            }
            Ok(_) => {}
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "reading neighbours failed; trying again")
            }
        }
    }
    connection.abort();
    Ok(())
}

async fn read(handle: &Handle, interface: &str, wanted: &BTreeSet<Ipv4Addr>) -> anyhow::Result<Neighbours> {
    let table = table(handle).await?;
    let mut macs = BTreeMap::new();
    for node in wanted {
        let mac = match table.get(node) {
            Some(mac) => Some(*mac),
            None => match gateway(handle, *node).await {
                Some(gateway) => table.get(&gateway).copied(),
                None => None,
            },
        };
        macs.extend(mac.map(|mac| (*node, mac)));
    }
    Ok(Neighbours { macs, carrier: has_carrier(handle, interface).await? })
}

async fn table(handle: &Handle) -> anyhow::Result<BTreeMap<Ipv4Addr, Mac>> {
    let mut table = BTreeMap::new();
    let mut entries =
        handle.neighbours().get().set_address_family(netlink_packet_route::AddressFamily::Inet).execute();
    while let Some(entry) = entries.try_next().await.context("listing neighbours")? {
        if matches!(
            entry.header.state,
            NeighbourState::Failed | NeighbourState::Incomplete | NeighbourState::None
        ) {
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

/// The router on the way to an address; `None` where it is on the link, or unreachable.
async fn gateway(handle: &Handle, address: Ipv4Addr) -> Option<Ipv4Addr> {
    let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, 32).build();
    let mut request = handle.route().get(route);
    // A look-up, not a dump: the kernel's answer for this one destination.
    request.message_mut().header.destination_prefix_length = 32;
    let found = request.execute().try_next().await.ok()??;
    found.attributes.into_iter().find_map(|a| match a {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(ip),
        _ => None,
    })
}

async fn has_carrier(handle: &Handle, interface: &str) -> anyhow::Result<bool> {
    let mut links = handle.link().get().match_name(interface.to_owned()).execute();
    let link = links.try_next().await.context("reading the interface")?;
    Ok(link.is_some_and(|l| {
        let carrier = l.attributes.iter().any(|a| matches!(a, LinkAttribute::Carrier(1)));
        carrier && l.header.flags.contains(LinkFlags::Up)
    }))
}
