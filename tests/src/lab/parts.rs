//! The network, and what stands on it.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use anyhow::Context;

use super::link;
use crate::kubelet::HostNode;
use crate::netns::Namespace;

pub const NODES: u8 = 3;
pub(super) const HOSTS: u8 = 2;
pub(super) const CONTROL: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 10);
pub(super) const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 100);

/// Who programs the nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeProxy {
    NodeAgent,
    /// The peer, in nftables mode.
    KubeProxy,
}

/// Who serves LoadBalancer Services.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    None,
    Metal,
    Aws,
}

pub(super) struct Network {
    pub switch: Namespace,
    pub control: Namespace,
    pub client: Namespace,
    pub nodes: Vec<Namespace>,
    pub hosts: Vec<Namespace>,
}

/// Node `n`'s address, counted from 1.
pub fn node_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + n)
}

/// Balancer host `n`'s address, counted from 1.
pub fn host_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 20 + n)
}

pub(super) fn network(prefix: &str) -> anyhow::Result<Network> {
    let switch = Namespace::new(format!("{prefix}switch"))?;
    switch.ip("link add br0 type bridge\nlink set br0 up")?;
    let attach = |name: &str, address: Ipv4Addr| -> anyhow::Result<Namespace> {
        let host = Namespace::new(format!("{prefix}{name}"))?;
        link((&switch, name), (&host, "eth0"))?;
        switch.ip(&format!("link set {name} master br0"))?;
        host.ip(&format!(
            "addr add {address}/24 dev eth0\naddr add fd00:172:30::{}/64 dev eth0 nodad",
            address.octets()[3]
        ))?;
        // XDP sees packets as they are in memory: checksums must be complete.
        host.run("ethtool", &["-K", "eth0", "tx", "off"])?;
        Ok(host)
    };
    let control = attach("control", CONTROL)?;
    let client = attach("client", CLIENT)?;
    // Many short connections: more addresses and ports than one host has.
    client.run("sysctl", &["-qw", "net.ipv4.ip_local_port_range=2000 65000", "net.ipv4.tcp_tw_reuse=1"])?;
    let nodes = (1..=NODES).map(|n| {
        let node = attach(&format!("node-{n}"), node_address(n))?;
        prepare_node(&node, n)?;
        Ok(node)
    });
    let nodes = nodes.collect::<anyhow::Result<Vec<_>>>()?;
    let hosts = (1..=HOSTS).map(|n| attach(&format!("lb-{n}"), host_address(n)));
    let hosts = hosts.collect::<anyhow::Result<Vec<_>>>()?;
    Ok(Network { switch, control, client, nodes, hosts })
}

/// What a network plug-in does: a bridge for pods, and routes to the other nodes' pods.
fn prepare_node(node: &Namespace, n: u8) -> anyhow::Result<()> {
    let forwarding =
        ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0"];
    node.run("sysctl", &[&["-qw"][..], &forwarding].concat())?;
    let mut script = format!(
        "link add cni0 type bridge\naddr add 10.244.{n}.1/24 dev cni0\naddr add fd00:10:244:{n}::1/64 dev cni0 nodad\n\
         link set cni0 up\n"
    );
    for other in (1..=NODES).filter(|other| *other != n) {
        let via = node_address(other);
        script += &format!("route add 10.244.{other}.0/24 via {via}\n");
        script += &format!("route add fd00:10:244:{other}::/64 via fd00:172:30::{}\n", via.octets()[3]);
    }
    // A route for Service addresses, so that a node itself can reach them too.
    script += "route add default dev eth0\n";
    node.ip(&script)
}

pub(super) fn host_node(n: u8, namespace: &Namespace, provider: Provider) -> HostNode {
    let address = node_address(n);
    HostNode {
        name: format!("node-{n}"),
        namespace: namespace.name().to_owned(),
        address,
        address6: Ipv6Addr::new(
            0xfd00,
            0x172,
            0x30,
            0,
            0,
            0,
            0,
            u16::from_str_radix(&address.octets()[3].to_string(), 16).unwrap_or(0),
        ),
        number: n,
        provider_id: (provider == Provider::Aws).then(String::new),
        zone: format!("zone-{}", (b'a' + n - 1) as char),
    }
}

/// A program of this workspace, beside the one that runs.
///
/// # Errors
/// When it has not been built.
pub(super) fn program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|p| p.exists());
    found.with_context(|| format!("{name} is not built: run cargo build --workspace --bins"))
}
