//! The cables: one switch, and every host on it with an address of each family.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::netns::Netns;

/// The number of a host is the last part of both its addresses.
pub const ROUTER: u8 = 1;
pub const CONTROL_PLANE: u8 = 10;
pub const FIRST_NODE: u8 = 11;
pub const FIRST_BALANCER: u8 = 21;
pub const CLIENT: u8 = 100;

/// Addresses of the client beyond its first: one address runs out of ports under load.
pub const CLIENT_ADDRESSES: u8 = 8;

/// The interface of every host.
pub const UPLINK: &str = "eth0";

pub fn v4(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, number)
}

/// Reads like the IPv4 address: `fd00:172:30::11` belongs to the host at `172.30.0.11`.
pub fn v6(number: u8) -> Ipv6Addr {
    let digits = u16::from(number / 100) << 8 | u16::from(number / 10 % 10) << 4 | u16::from(number % 10);
    Ipv6Addr::new(0xfd00, 0x172, 0x30, 0, 0, 0, 0, digits)
}

/// The pods of the Nth node, from 1.
#[derive(Debug, Clone, Copy)]
pub struct PodNetwork(pub u8);

impl PodNetwork {
    pub fn v4(self, pod: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.0, pod)
    }

    pub fn v6(self, pod: u8) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, u16::from(self.0), 0, 0, 0, u16::from(pod))
    }

    /// `spec.podCIDRs` of the node.
    pub fn cidrs(self) -> [String; 2] {
        [format!("{}/24", self.v4(0)), format!("{}/64", self.v6(0))]
    }
}

pub const CLUSTER_CIDR: &str = "10.244.0.0/16,fd00:10:244::/56";
pub const SERVICE_CIDR: &str = "10.96.0.0/12,fd00:10:96::/112";

/// A machine on the switch.
#[derive(Debug, Clone)]
pub struct Host {
    pub name: String,
    pub netns: Arc<Netns>,
    pub number: u8,
}

impl Host {
    pub fn v4(&self) -> Ipv4Addr {
        v4(self.number)
    }

    pub fn v6(&self) -> Ipv6Addr {
        v6(self.number)
    }

    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4().into(), self.v6().into()]
    }
}

/// The switch, which is the router of the segment too, with a port per host.
#[derive(Debug)]
pub struct Switch {
    pub netns: Arc<Netns>,
    lab_id: String,
    /// Begins the names of its hosts' namespaces, after the lab's.
    prefix: String,
}

impl Switch {
    /// # Errors
    /// Without root, or without the kernel's bridge.
    pub fn create(lab_id: &str) -> Result<Self> {
        Self::with_prefix(lab_id, "")
    }

    /// One of several in a lab, which differ in how the names of their hosts' namespaces begin.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn with_prefix(lab_id: &str, prefix: &str) -> Result<Self> {
        let netns = Netns::create(lab_id, &format!("{prefix}switch"))?;
        netns.ip(&format!(
            "link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0
             link set br0 up
             addr add {}/24 dev br0
             addr add {}/64 dev br0 nodad",
            v4(ROUTER),
            v6(ROUTER),
        ))?;
        netns.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv4/conf/all/send_redirects", "0"),
            ("ipv4/conf/br0/send_redirects", "0"),
        ])?;
        // A switch looks at no IP packet. The parameters exist where br_netfilter does.
        let _ = netns
            .sysctl(&[("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")]);
        Ok(Self { netns, lab_id: lab_id.to_owned(), prefix: prefix.to_owned() })
    }

    /// A new host on a port of its own, which is named after it. Both ends of the cable have one
    /// queue, which native XDP on veth asks for, and packets leave the host with whole checksums,
    /// which XDP on their way needs.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn attach(&self, name: &str, number: u8) -> Result<Host> {
        let netns = Netns::create(&self.lab_id, &format!("{}{name}", self.prefix))?;
        let queues = "numrxqueues 1 numtxqueues 1";
        self.netns.ip(&format!(
            "link add {name} {queues} type veth peer name {UPLINK} netns {} {queues}
             link set {name} master br0 up",
            netns.name()
        ))?;
        netns.ip(&format!(
            "addr add {}/24 dev {UPLINK}
             addr add {}/64 dev {UPLINK} nodad
             link set {UPLINK} up
             route add default via {}
             route add default via {}",
            v4(number),
            v6(number),
            v4(ROUTER),
            v6(ROUTER),
        ))?;
        whole_checksums(&netns, UPLINK)?;
        Ok(Host { name: name.to_owned(), netns, number })
    }

    /// Pulls or plugs the cable of a host, at the switch.
    ///
    /// # Errors
    /// When there is no such host.
    pub fn set_cable(&self, host: &str, plugged: bool) -> Result<()> {
        self.netns.ip(&format!("link set {host} {}", if plugged { "up" } else { "down" }))
    }

    /// Tells the router how to reach every node's pods.
    ///
    /// # Errors
    /// When the kernel refuses a route.
    pub fn route_pods(&self, nodes: &[Host]) -> Result<()> {
        self.netns.ip(&pod_routes(nodes, None))
    }
}

/// Routes of every node's pods over that node, except from the node itself.
pub fn pod_routes(nodes: &[Host], except: Option<&str>) -> String {
    let mut lines = String::new();
    for (nth, node) in (1..).zip(nodes).filter(|(_, node)| Some(node.name.as_str()) != except) {
        let [v4, v6] = PodNetwork(nth).cidrs();
        for (cidr, via) in [(v4, node.addresses()[0]), (v6, node.addresses()[1])] {
            writeln!(lines, "route add {cidr} via {via}").expect("a String takes everything");
        }
    }
    lines
}

/// Turns the host into a node: it forwards, and knows the way to the other nodes' pods.
///
/// # Errors
/// When the kernel refuses a parameter or a route.
pub fn make_node(host: &Host, nodes: &[Host]) -> Result<()> {
    host.netns.sysctl(&[
        ("ipv4/ip_forward", "1"),
        ("ipv6/conf/all/forwarding", "1"),
        ("ipv4/conf/all/rp_filter", "0"),
        ("ipv4/conf/default/rp_filter", "0"),
        ("ipv4/conf/all/send_redirects", "0"),
        ("ipv4/conf/default/send_redirects", "0"),
        ("ipv4/conf/eth0/send_redirects", "0"),
    ])?;
    host.netns.ip(&pod_routes(nodes, Some(&host.name)))
}

/// The node's end of every pod's cable has this number in the pod network.
pub const GATEWAY: u8 = 1;

/// Plugs a pod into its node, by a cable that is named so at the node: a routed point-to-point
/// link, as with Calico or kindnet. All that the pod sends, also to a pod beside it, is forwarded
/// by its node, so Services work between neighbours without br_netfilter.
///
/// # Errors
/// When the kernel refuses the cable, an address or a route.
pub fn plug_pod(node: &Host, pods: PodNetwork, number: u8, pod: &Netns, cable: &str) -> Result<()> {
    let (v4, v6) = (pods.v4(number), pods.v6(number));
    let (gateway4, gateway6) = (pods.v4(GATEWAY), pods.v6(GATEWAY));
    node.netns.ip(&format!(
        "link add {cable} numrxqueues 1 numtxqueues 1 type veth peer name {UPLINK} netns {} numrxqueues 1 numtxqueues 1
         addr add {gateway4}/32 dev {cable}
         addr add {gateway6}/128 dev {cable} nodad
         link set {cable} up
         route add {v4}/32 dev {cable}
         route add {v6}/128 dev {cable}",
        pod.name(),
    ))?;
    pod.ip(&format!(
        "addr add {v4}/32 dev {UPLINK}
         addr add {v6}/128 dev {UPLINK} nodad
         link set {UPLINK} up
         route add {gateway4} dev {UPLINK} scope link
         route add {gateway6} dev {UPLINK}
         route add default via {gateway4} src {v4}
         route add default via {gateway6} src {v6}"
    ))?;
    whole_checksums(pod, UPLINK)
}

/// Gives the client its further addresses, and ports enough for many short connections.
///
/// # Errors
/// When the kernel refuses one.
pub fn make_client(host: &Host) -> Result<()> {
    let further: String = (1..=CLIENT_ADDRESSES)
        .map(|nth| {
            let number = host.number + nth;
            format!(
                "addr add {}/24 dev {UPLINK}\naddr add {}/64 dev {UPLINK} nodad\n",
                v4(number),
                v6(number)
            )
        })
        .collect();
    host.netns.ip(&further)?;
    host.netns.sysctl(&[("ipv4/ip_local_port_range", "1024 65535"), ("ipv4/tcp_tw_reuse", "1")])
}

/// Makes the kernel fill in checksums before a packet leaves the interface.
///
/// # Errors
/// When ethtool is missing.
pub fn whole_checksums(netns: &Netns, interface: &str) -> Result<()> {
    netns.tool("ethtool", &["-K", interface, "tx", "off"]).map(drop).context("turning off checksum offload")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_addresses_of_a_host_read_alike() {
        for (number, v4_text, v6_text) in
            [(11, "172.30.0.11", "fd00:172:30::11"), (100, "172.30.0.100", "fd00:172:30::100")]
        {
            assert_eq!(
                (v4(number).to_string().as_str(), v6(number).to_string().as_str()),
                (v4_text, v6_text)
            );
        }
        assert_eq!(PodNetwork(2).cidrs(), ["10.244.2.0/24", "fd00:10:244:2::/64"]);
    }
}
