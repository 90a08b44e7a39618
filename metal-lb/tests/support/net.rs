//! Hosts as network namespaces on one switch; gone at the end, also after a panic.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "a part of test binaries")]

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;

use metal_lb::desired::Mac;
use metal_lb::xdp::pass;
use nix::sched::{CloneFlags, setns};

/// A switch and its hosts, each with one link `eth0` and an address in 172.30.0.0/24.
pub struct Lan {
    name: String,
    switch: Host,
}

/// A network namespace.
pub struct Host {
    namespace: String,
}

impl Lan {
    pub fn new(test: &str) -> Self {
        let name = format!("fl-{test}-{}", std::process::id());
        let switch = Host::new(format!("{name}-switch"));
        switch.ip("link add br0 type bridge");
        switch.ip("link set br0 up");
        Self { name, switch }
    }

    /// A host whose senders fill in whole checksums, as the packet path needs.
    pub fn host(&self, name: &str, address: Ipv4Addr) -> Host {
        let host = self.link(name, address);
        host.sh("ethtool -K eth0 tx off");
        host
    }

    /// A host for the packet path: one queue on either end, and a program on the far end.
    pub fn balancer(&self, name: &str, address: Ipv4Addr) -> Host {
        let host = self.link(name, address);
        self.switch.run(|| pass::attach(name).unwrap());
        host
    }

    /// Takes a host off the switch, which keeps its carrier up; or puts it back.
    pub fn set_connected(&self, name: &str, connected: bool) {
        let master = if connected { "master br0" } else { "nomaster" };
        self.switch.ip(&format!("link set {name} {master}"));
    }

    /// Takes the carrier of a host's link away; or gives it back.
    pub fn set_carrier(&self, name: &str, up: bool) {
        self.switch.ip(&format!("link set {name} {}", if up { "up" } else { "down" }));
    }

    fn link(&self, name: &str, address: Ipv4Addr) -> Host {
        let host = Host::new(format!("{}-{name}", self.name));
        let queues = "numrxqueues 1 numtxqueues 1";
        self.switch.ip(&format!(
            "link add {name} {queues} type veth peer name eth0 {queues} netns {}",
            host.namespace
        ));
        self.switch.ip(&format!("link set {name} master br0 up"));
        host.ip(&format!("addr add {address}/24 dev eth0"));
        host.ip("link set lo up");
        host.ip("link set eth0 up");
        host
    }
}

impl Host {
    fn new(namespace: String) -> Self {
        let host = Self { namespace };
        // A run that was killed left its own; the pid is ours now.
        host.delete();
        sh(&format!("ip netns add {}", host.namespace));
        host
    }

    /// Runs in the namespace, on a thread of its own.
    pub fn run<T: Send>(&self, task: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/run/netns/{}", self.namespace)).unwrap();
        std::thread::scope(|scope| {
            let entered = scope.spawn(move || {
                setns(OwnedFd::from(namespace), CloneFlags::CLONE_NEWNET).unwrap();
                task()
            });
            entered.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    pub fn mac(&self) -> Mac {
        let text = self.output("link show eth0");
        let mac = text.split("link/ether ").nth(1).unwrap().split(' ').next().unwrap();
        let bytes: Vec<u8> = mac.split(':').map(|b| u8::from_str_radix(b, 16).unwrap()).collect();
        Mac(bytes.try_into().unwrap())
    }

    /// What `ip` prints, without line breaks.
    pub fn output(&self, arguments: &str) -> String {
        let ip = ["-n", &self.namespace, "-o"].into_iter().chain(arguments.split(' '));
        String::from_utf8(Command::new("ip").args(ip).output().unwrap().stdout).unwrap()
    }

    pub fn ip(&self, arguments: &str) {
        sh(&format!("ip -n {} {arguments}", self.namespace));
    }

    fn sh(&self, command: &str) {
        self.run(|| sh(command));
    }

    fn delete(&self) {
        let _ = Command::new("ip").args(["netns", "del", &self.namespace]).output();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.delete();
    }
}

fn sh(command: &str) {
    let words: Vec<&str> = command.split(' ').collect();
    let output = Command::new(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A folder on a BPF filesystem for pins.
pub struct Pins(pub PathBuf);

impl Pins {
    pub fn new(test: &str) -> Self {
        let pins = Self(format!("/sys/fs/bpf/fl-{test}-{}", std::process::id()).into());
        pins.remove();
        pins
    }

    fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.remove();
    }
}
