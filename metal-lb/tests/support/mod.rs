//! Frames by hand, and the program run on them by BPF_PROG_TEST_RUN.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries; each uses its own part"
)]

mod frame;
pub mod plans;

use std::net::{Ipv4Addr, SocketAddrV4};

use libbpf_rs::{MapCore, MapFlags, Object, ProgramInput};
use metal_lb::desired::{Desired, DesiredListener, DesiredTarget, ListenerId, Mac, Timeouts};
use metal_lb::xdp::layout::Settings;
use metal_lb::xdp::maps::Maps;
use metal_lb::xdp::{XdpBackend, object};
use metal_lb_api::{Generation, NatProtocol};

pub use frame::*;

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const TX: u32 = 3;

pub const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 200);
pub const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 21);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 100);
/// The balancer loaded without pins.
pub struct Bench {
    object: Object,
    maps: Maps,
    pub backend: XdpBackend,
}

impl Bench {
    pub fn new() -> Self {
        let object = object::load(None, 4096).expect("the kernel takes the program");
        let backend = XdpBackend::new(Maps::of(&object).unwrap(), HOST_MAC).unwrap();
        let maps = Maps::of(&object).unwrap();
        Self { object, maps, backend }
    }

    pub fn programmed(desired: &Desired) -> Self {
        let mut bench = Self::new();
        bench.program(desired);
        bench
    }

    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        let mut settings = self.maps.settings().unwrap();
        change(&mut settings);
        self.maps.set_settings(&settings).unwrap();
    }

    pub fn beat(&self, generation: Generation) {
        self.maps.beat(generation).unwrap();
    }

    /// Plans and applies until nothing is left.
    pub fn program(&mut self, desired: &Desired) {
        plans::settle(&mut self.backend, desired);
    }

    /// What the program answers to a frame.
    pub fn run(&self, frame: &[u8]) -> (u32, Vec<u8>) {
        let mut out = vec![0u8; 2048];
        let program = object::program(&self.object).unwrap();
        let input = ProgramInput { data_in: Some(frame), data_out: Some(&mut out), ..Default::default() };
        let output = program.test_run(input).unwrap();
        let answer = output.return_value;
        let data = output.data.map(|d| d.to_vec()).unwrap_or_default();
        (answer, data)
    }

    pub fn entries(&self, map: &str) -> usize {
        self.object.maps().find(|m| m.name() == map).unwrap().keys().count()
    }

    /// Moves the last packet of every flow in a reverse map into the past.
    pub fn age(&self, map: &str, seconds: u64) {
        let map = self.object.maps().find(|m| m.name() == map).unwrap();
        for key in map.keys().collect::<Vec<_>>() {
            let mut value = map.lookup(&key, MapFlags::ANY).unwrap().unwrap();
            // seen_ns and replied_ns.
            for at in [0..8, 8..16] {
                let then = u64::from_ne_bytes(value[at.clone()].try_into().unwrap());
                value[at].copy_from_slice(&then.wrapping_sub(seconds * 1_000_000_000).to_ne_bytes());
            }
            map.update(&key, &value, MapFlags::ANY).unwrap();
        }
    }

    pub fn dropped(&self, reason: &str) -> u64 {
        self.backend.reasons().unwrap().find(|(name, _)| *name == reason).unwrap().1
    }
}

/// One VIP with a TCP and a UDP listener on port 80 and `nodes` targets each.
pub fn desired(owned: bool, nodes: u8) -> Desired {
    let target = |n: u8, port| DesiredTarget {
        address: SocketAddrV4::new(node_address(n), port),
        mac: Some(Mac([2, 0, 0, 0, 1, n])),
        weight: 1,
    };
    let listener = |port| DesiredListener {
        service: "shop/web".into(),
        targets: (1..=nodes).map(|n| (format!("node-{n}"), target(n, port))).collect(),
        timeouts: Timeouts::default(),
    };
    let id = |protocol| ListenerId { vip: VIP, protocol, port: 80 };
    Desired {
        host_slot: 1,
        seed: 7,
        probe_address: Some(SocketAddrV4::new(OWN_ADDRESS, 7947)),
        vips: [(VIP, owned)].into(),
        listeners: [(id(NatProtocol::Tcp), listener(30080)), (id(NatProtocol::Udp), listener(30081))].into(),
    }
}

pub fn node_address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(172, 30, 0, 10 + n)
}

pub fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(CLIENT, port)
}

pub fn vip() -> SocketAddrV4 {
    SocketAddrV4::new(VIP, 80)
}

/// Sends a frame that must be forwarded.
pub fn forwarded(bench: &Bench, frame: Frame) -> Frame {
    let (verdict, out) = bench.run(&frame.build());
    assert_eq!(verdict, TX, "{frame:?}");
    Frame::parse(&out)
}

/// The node's answer to what it was sent.
pub fn answer(sent: &Frame, flags: u8) -> Frame {
    Frame { flags, ..sent.answer(HOST_MAC) }
}

/// A handshake up to the client's ACK; what the node saw of the SYN.
pub fn establish(bench: &Bench, port: u16) -> Frame {
    let syn = forwarded(bench, Frame::tcp(client(port), vip(), SYN));
    forwarded(bench, answer(&syn, SYN | ACK));
    forwarded(bench, Frame::tcp(client(port), vip(), ACK));
    syn
}

/// `desired(true, nodes)` without the node that was sent this.
pub fn without(nodes: u8, sent: &Frame) -> Desired {
    let gone = format!("node-{}", sent.destination.ip().octets()[3] - 10);
    let mut less = desired(true, nodes);
    less.listeners.values_mut().for_each(|l| l.targets.retain(|node, _| *node != gone));
    less
}
