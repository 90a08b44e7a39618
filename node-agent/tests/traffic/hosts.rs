//! Hosts as network namespaces, joined by veth pairs.
//!
//! ```text
//! outside 172.30.0.100 ── 172.30.0.11 node ─┬─ 10.244.1.2 pod-a
//!                                           ├─ 10.244.1.3 pod-b
//!                                           └─ 10.244.1.4 pod-c
//! ```

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};

static GROUNDS: AtomicU32 = AtomicU32::new(0);

/// A node with three pods on it and a client outside. Its namespaces go when it does.
pub(crate) struct Ground {
    pub(crate) node: Host,
    pub(crate) outside: Host,
    pub(crate) pods: [Host; 3],
}

pub(crate) struct Host {
    namespace: String,
    pub(crate) name: &'static str,
    pub(crate) v4: Ipv4Addr,
    pub(crate) v6: Ipv6Addr,
}

impl Ground {
    pub(crate) fn new() -> Self {
        let prefix = format!("fl-na-{}-{}", std::process::id(), GROUNDS.fetch_add(1, Ordering::Relaxed));
        let host = |name, v4: [u8; 4], v6: &str| Host::new(&prefix, name, v4.into(), v6.parse().unwrap());
        let ground = Self {
            node: host("node", [172, 30, 0, 11], "fd00:172:30::11"),
            outside: host("outside", [172, 30, 0, 100], "fd00:172:30::100"),
            pods: [
                host("pod-a", [10, 244, 1, 2], "fd00:10:244:1::2"),
                host("pod-b", [10, 244, 1, 3], "fd00:10:244:1::3"),
                host("pod-c", [10, 244, 1, 4], "fd00:10:244:1::4"),
            ],
        };
        ground.node.run(|| {
            for (sysctl, value) in [
                ("ipv4/ip_forward", "1"),
                ("ipv6/conf/all/forwarding", "1"),
                // Refusals are ICMP errors, of which a host sends few a second; and a redirect to
                // the same client counts against it.
                ("ipv4/icmp_ratelimit", "0"),
                ("ipv6/icmp/ratelimit", "0"),
                ("ipv4/conf/all/send_redirects", "0"),
                ("ipv4/conf/default/send_redirects", "0"),
            ] {
                std::fs::write(format!("/proc/sys/net/{sysctl}"), value).unwrap();
            }
        });
        for host in ground.pods.iter().chain([&ground.outside]) {
            ground.node.link(host);
        }
        // A packet needs a route before its destination is translated.
        for gateway in [IpAddr::from(ground.outside.v4), IpAddr::from(ground.outside.v6)] {
            ip(&format!("-n {} route add default via {gateway} dev outside", ground.node.namespace));
        }
        ground
    }
}

/// The host's `nft` can list whatever ruleset the test left on the node.
impl Drop for Ground {
    fn drop(&mut self) {
        // A second panic would hide the first.
        if !std::thread::panicking() {
            let done = self.node.run(|| Command::new("nft").args(["list", "ruleset"]).output().unwrap());
            let complaints = String::from_utf8_lossy(&done.stderr);
            assert!(done.status.success() && complaints.is_empty(), "nft: {}: {complaints}", done.status);
        }
    }
}

impl Host {
    fn new(prefix: &str, name: &'static str, v4: Ipv4Addr, v6: Ipv6Addr) -> Self {
        let host = Self { namespace: format!("{prefix}-{name}"), name, v4, v6 };
        // A run that was killed left its own; the pid is ours now.
        let _ = Command::new("ip").args(["netns", "delete", &host.namespace]).output();
        ip(&format!("netns add {}", host.namespace));
        ip(&format!("-n {} link set lo up", host.namespace));
        host
    }

    pub(crate) fn address(&self, like: IpAddr) -> IpAddr {
        if like.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    /// Gives the host more addresses, which its peer finds there.
    pub(crate) fn add_addresses(&self, network: IpNet, addresses: &[IpAddr], peer: &Host) {
        for address in addresses {
            let length = if address.is_ipv4() { "/32" } else { "/128 nodad" };
            ip(&format!("-n {} addr add dev eth0 {address}{length}", self.namespace));
        }
        ip(&format!("-n {} route add {network} dev {}", peer.namespace, self.name));
    }

    /// A point-to-point link; each end routes to the other alone, the peer sends all to us.
    fn link(&self, peer: &Host) {
        let (here, there) = (&self.namespace, &peer.namespace);
        let name = peer.name;
        ip(&format!("-n {here} link add {name} type veth peer name eth0 netns {there}"));
        for (namespace, device, host) in [(here, name, self), (there, "eth0", peer)] {
            ip(&format!("-n {namespace} link set {device} up"));
            ip(&format!("-n {namespace} addr add {}/32 dev {device}", host.v4));
            ip(&format!("-n {namespace} addr add {}/128 dev {device} nodad", host.v6));
        }
        for family in [IpAddr::from(self.v4), IpAddr::from(self.v6)] {
            let (ours, theirs) = (self.address(family), peer.address(family));
            ip(&format!("-n {here} route add {theirs} dev {name}"));
            ip(&format!("-n {there} route add {ours} dev eth0"));
            ip(&format!("-n {there} route add default via {ours} dev eth0"));
        }
    }

    pub(crate) fn add_address(&self, address: IpAddr, device: &str) {
        ip(&format!("-n {} addr add {address} dev {device}", self.namespace));
    }

    /// Puts the host's end of the peer's link behind a new bridge.
    pub(crate) fn bridge(&self, bridge: &str, peer: &Host) {
        let (here, name) = (&self.namespace, peer.name);
        ip(&format!("-n {here} link add {bridge} type bridge"));
        ip(&format!("-n {here} link set {bridge} up"));
        ip(&format!("-n {here} addr add {}/32 dev {bridge}", self.v4));
        ip(&format!("-n {here} addr add {}/128 dev {bridge} nodad", self.v6));
        for theirs in [IpAddr::from(peer.v4), IpAddr::from(peer.v6)] {
            ip(&format!("-n {here} route del {theirs} dev {name}"));
            ip(&format!("-n {here} route add {theirs} dev {bridge}"));
        }
        ip(&format!("-n {here} link set {name} master {bridge}"));
    }

    /// Runs a function in the host's namespace. Sockets that it opens stay there.
    pub(crate) fn run<R: Send>(&self, function: impl FnOnce() -> R + Send) -> R {
        let namespace = File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(namespace, CloneFlags::CLONE_NEWNET).expect("network namespaces need root");
                function()
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // Best effort: a second panic would hide the first.
        let _ = Command::new("ip").args(["netns", "delete", &self.namespace]).status();
    }
}

fn ip(arguments: &str) {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2 is installed");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
}
