//! Frames by hand, and the program run on them by BPF_PROG_TEST_RUN.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "shared by test binaries; each uses its own part"
)]

use std::net::{Ipv4Addr, SocketAddrV4};

use libbpf_rs::{MapCore, MapFlags, Object, ProgramInput};
use metal_lb::desired::{Desired, DesiredListener, DesiredTarget, ListenerId, Mac, Timeouts};
use metal_lb::observed::Observed;
use metal_lb::plan::{Backend, plan, plan_host};
use metal_lb::xdp::layout::Settings;
use metal_lb::xdp::maps::Maps;
use metal_lb::xdp::{XdpBackend, object};
use metal_lb_api::{Generation, NatProtocol};

pub const DROP: u32 = 1;
pub const PASS: u32 = 2;
pub const TX: u32 = 3;

pub const VIP: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 200);
pub const OWN_ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 21);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 100);
pub const HOST_MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);
pub const CLIENT_MAC: Mac = Mac([2, 0, 0, 0, 0, 2]);

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

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
        settle(&mut self.backend, desired);
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

/// Plans and applies until nothing is left; a second round must find nothing to do.
pub fn settle(backend: &mut impl Backend, desired: &Desired) {
    for last in [false, true] {
        let observed = backend.observe().unwrap();
        let mut run = |make: &dyn Fn(&Observed) -> metal_lb::plan::Plan| {
            let plan = make(&backend.observe().unwrap());
            assert!(!last || plan.is_empty(), "does not settle:\n{plan}");
            plan.batches.iter().for_each(|batch| backend.apply(batch).unwrap());
        };
        run(&|observed| plan_host(desired, observed));
        let addresses: Vec<Ipv4Addr> = desired.vips.keys().copied().chain(observed.addresses()).collect();
        for vip in addresses {
            run(&|observed| plan(vip, desired, observed));
        }
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
        probe_address: Some(OWN_ADDRESS),
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
    Frame {
        to: HOST_MAC,
        from: sent.to,
        source: sent.destination,
        destination: sent.source,
        flags,
        ttl: 64,
        ..*sent
    }
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

/// A parsed, or to be built, frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    pub to: Mac,
    pub from: Mac,
    pub source: SocketAddrV4,
    pub destination: SocketAddrV4,
    pub protocol: u8,
    pub flags: u8,
    pub ttl: u8,
    pub udp_checksum: bool,
}

impl Frame {
    pub fn tcp(source: SocketAddrV4, destination: SocketAddrV4, flags: u8) -> Self {
        Self {
            to: HOST_MAC,
            from: CLIENT_MAC,
            source,
            destination,
            protocol: 6,
            flags,
            ttl: 64,
            udp_checksum: true,
        }
    }

    pub fn udp(source: SocketAddrV4, destination: SocketAddrV4) -> Self {
        Self { protocol: 17, flags: 0, ..Self::tcp(source, destination, 0) }
    }

    pub fn build(&self) -> Vec<u8> {
        // An odd length, so that the last byte of a checksum stands alone.
        let payload: &[u8] = b"hello";
        let mut l4 = Vec::new();
        l4.extend(self.source.port().to_be_bytes());
        l4.extend(self.destination.port().to_be_bytes());
        if self.protocol == 6 {
            l4.extend([0, 0, 0, 1, 0, 0, 0, 2, 0x50, self.flags, 0xff, 0xff, 0, 0, 0, 0]);
        } else {
            l4.extend((8 + payload.len() as u16).to_be_bytes());
            l4.extend([0, 0]);
        }
        l4.extend(payload);
        let checksum_at = if self.protocol == 6 { 16 } else { 6 };
        if self.protocol == 6 || self.udp_checksum {
            let sum = l4_checksum(&self.source, &self.destination, self.protocol, &l4);
            l4[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        let mut ip = vec![0x45, 0];
        ip.extend((20 + l4.len() as u16).to_be_bytes());
        ip.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol, 0, 0]);
        ip.extend(self.source.ip().octets());
        ip.extend(self.destination.ip().octets());
        let sum = checksum(&ip);
        ip[10..12].copy_from_slice(&sum.to_be_bytes());
        [&self.to.0[..], &self.from.0[..], &[8, 0], &ip, &l4].concat()
    }

    /// Reads a frame back; every checksum is recomputed in full.
    pub fn parse(frame: &[u8]) -> Self {
        let (ip, l4) = (&frame[14..34], &frame[34..]);
        assert_eq!(checksum(ip), 0, "the IP checksum is wrong");
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let port = |at: usize| u16::from_be_bytes([l4[at], l4[at + 1]]);
        let parsed = Self {
            to: Mac(frame[..6].try_into().unwrap()),
            from: Mac(frame[6..12].try_into().unwrap()),
            source: SocketAddrV4::new(address(12), port(0)),
            destination: SocketAddrV4::new(address(16), port(2)),
            protocol: ip[9],
            flags: if ip[9] == 6 { l4[13] } else { 0 },
            ttl: ip[8],
            udp_checksum: ip[9] == 6 || l4[6..8] != [0, 0],
        };
        if parsed.udp_checksum {
            let length = usize::from(u16::from_be_bytes([ip[2], ip[3]])) - 20;
            let sum = l4_checksum(&parsed.source, &parsed.destination, parsed.protocol, &l4[..length]);
            assert_eq!(sum, 0, "the TCP or UDP checksum is wrong");
        }
        parsed
    }
}

pub fn checksum(bytes: &[u8]) -> u16 {
    let word = |c: &[u8]| u32::from(c[0]) << 8 | c.get(1).map_or(0, |b| u32::from(*b));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn l4_checksum(source: &SocketAddrV4, destination: &SocketAddrV4, protocol: u8, l4: &[u8]) -> u16 {
    let mut pseudo = [&source.ip().octets()[..], &destination.ip().octets()[..], &[0, protocol]].concat();
    pseudo.extend((l4.len() as u16).to_be_bytes());
    pseudo.extend(l4);
    checksum(&pseudo)
}
