//! Real traffic: a client, a balancer and a node as network namespaces on one switch.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/net.rs"]
mod net;
#[path = "support/plans.rs"]
mod plans;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use metal_lb::desired::{Desired, ListenerId};
use metal_lb::plan::Backend;
use metal_lb::xdp::{Attachment, Mode, Settings, XdpBackend, object};
use metal_lb_api::NatProtocol;
use net::{Host, Lan, Pins};
use plans::{settle, web};

const VIP: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 200), 80);
const NODE: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 11), 30080);
const PATIENCE: Duration = Duration::from_secs(5);

struct World {
    client: Host,
    balancer: Host,
    node: Host,
    settings: Settings,
    _pins: Pins,
    _lan: Lan,
}

impl World {
    fn new(test: &str, mode: Mode) -> Self {
        let lan = Lan::new(test);
        let pins = Pins::new(test);
        let settings =
            Settings { interface: "eth0".into(), bpf_dir: pins.0.clone(), max_connections: 4096, mode };
        Self {
            client: lan.host("client", Ipv4Addr::new(172, 30, 0, 100)),
            balancer: lan.balancer("lb", Ipv4Addr::new(172, 30, 0, 21)),
            node: lan.host("node", *NODE.ip()),
            settings,
            _pins: pins,
            _lan: lan,
        }
    }

    fn open(&self) -> (XdpBackend, Attachment) {
        self.balancer.run(|| XdpBackend::open(&self.settings)).unwrap()
    }

    /// Port 80 of the VIP by TCP and UDP, at port 30080 of the node.
    fn desired(&self) -> Desired {
        let mut wish = web(&[("node-1", 1)]);
        let tcp = ListenerId { vip: *VIP.ip(), protocol: NatProtocol::Tcp, port: VIP.port() };
        let mac = Some(self.node.mac());
        wish.listeners.get_mut(&tcp).unwrap().targets.get_mut("node-1").unwrap().mac = mac;
        wish.listeners.insert(ListenerId { protocol: NatProtocol::Udp, ..tcp }, wish.listeners[&tcp].clone());
        wish
    }

    /// Runs a client against TCP and UDP echo servers on the node.
    fn with_echo<T: Send>(&self, client: impl FnOnce() -> T + Send) -> T {
        let (tcp, udp) = self.node.run(|| (TcpListener::bind(NODE).unwrap(), UdpSocket::bind(NODE).unwrap()));
        let done = AtomicBool::new(false);
        udp.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                tcp.incoming().take_while(|_| !done.load(Ordering::SeqCst)).for_each(|stream| {
                    scope.spawn(move || echo(&mut stream.unwrap()));
                });
            });
            scope.spawn(|| {
                let mut buffer = [0; 2048];
                while !done.load(Ordering::SeqCst) {
                    if let Ok((length, from)) = udp.recv_from(&mut buffer) {
                        udp.send_to(&buffer[..length], from).unwrap();
                    }
                }
            });
            let answer = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.client.run(client)));
            done.store(true, Ordering::SeqCst);
            // Wakes the accept; the connection itself is of no interest.
            self.node.run(|| drop(TcpStream::connect(NODE)));
            answer.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

fn echo(stream: &mut TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..length]).is_err() {
            return;
        }
    }
}

fn connect() -> TcpStream {
    let stream = TcpStream::connect_timeout(&VIP.into(), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends and gets back.
fn exchange(stream: &mut TcpStream, data: &[u8]) {
    stream.write_all(data).unwrap();
    let mut back = vec![0; data.len()];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(back, data);
}

fn exchange_udp(socket: &UdpSocket, number: u32) {
    socket.send_to(&number.to_be_bytes(), VIP).unwrap();
    let mut back = [0; 4];
    let (_, from) = socket.recv_from(&mut back).unwrap_or_else(|e| panic!("datagram {number}: {e}"));
    assert_eq!((u32::from_be_bytes(back), from), (number, VIP.into()));
}

#[test]
fn a_client_reaches_a_node_through_the_vip() {
    for mode in [Mode::Native, Mode::Generic] {
        let world = World::new("reach", mode);
        let (mut backend, attachment) = world.open();
        assert_eq!(attachment, Attachment::New);
        settle(&mut backend, &world.desired());
        world.with_echo(|| {
            for _ in 0..20 {
                let mut stream = connect();
                assert_eq!(stream.peer_addr().unwrap(), VIP.into());
                exchange(&mut stream, b"hello");
            }
            // More than one segment, so that sums over full frames are seen too.
            exchange(&mut connect(), &[7; 60_000]);
            let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
            udp.set_read_timeout(Some(PATIENCE)).unwrap();
            (0..20).for_each(|n| exchange_udp(&udp, n));
        });
        let dropped: Vec<_> = backend.reasons().unwrap().filter(|(_, count)| *count > 0).collect();
        assert_eq!(dropped, [], "{mode:?}");
        let observed = backend.observe().unwrap();
        let flows: u64 =
            observed.tables.keys().map(|t| backend.listener_counters(*t).unwrap().new_flows).sum();
        assert_eq!(flows, 22, "{mode:?}");
    }
}

#[test]
fn a_connection_to_a_listener_without_targets_times_out() {
    let world = World::new("empty", Mode::Native);
    let (mut backend, _) = world.open();
    let mut wish = world.desired();
    wish.listeners.values_mut().for_each(|l| l.targets.clear());
    settle(&mut backend, &wish);
    // Time for ARP and a SYN, each sent again after a second if it was lost.
    let answer = world.client.run(|| TcpStream::connect_timeout(&VIP.into(), Duration::from_millis(2500)));
    assert_eq!(answer.unwrap_err().kind(), ErrorKind::TimedOut);
    assert!(backend.reasons().unwrap().any(|(reason, count)| reason == "no_target" && count > 0));
}

#[test]
fn a_restart_keeps_connections_and_loses_no_packet() {
    let world = World::new("restart", Mode::Native);
    let wish = world.desired();
    settle(&mut world.open().0, &wish);
    world.with_echo(|| {
        let mut stream = connect();
        exchange(&mut stream, b"before");
        let udp = UdpSocket::bind("0.0.0.0:0").unwrap();
        // A lost datagram is not sent again: it would be missing here.
        udp.set_read_timeout(Some(PATIENCE)).unwrap();
        let restarts = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let replacer = scope.spawn(|| {
                for _ in 0..5 {
                    let (mut backend, attachment) = world.open();
                    assert_eq!(attachment, Attachment::Replaced);
                    let left = plans::next_plan(&mut backend, &wish);
                    assert!(left.is_none(), "a restart has nothing to do, not:\n{}", left.unwrap());
                }
                restarts.store(true, Ordering::SeqCst);
            });
            let mut number = 0;
            while !restarts.load(Ordering::SeqCst) && !replacer.is_finished() {
                exchange_udp(&udp, number);
                number += 1;
            }
        });
        exchange(&mut stream, b"after");
    });
}

#[test]
fn cleanup_detaches_and_removes_every_pin() {
    let world = World::new("cleanup", Mode::Native);
    settle(&mut world.open().0, &world.desired());
    assert!(world.settings.folder().join("link-native").exists());
    object::cleanup(&world.settings).unwrap();
    assert!(!world.settings.bpf_dir.join("eth0").exists());
    assert_eq!(world.open().1, Attachment::New, "nothing is attached any more");
    object::cleanup(&world.settings).unwrap();
    object::cleanup(&world.settings).unwrap();
}

#[test]
fn a_pinned_map_of_another_size_is_refused_with_the_way_out() {
    let world = World::new("size", Mode::Native);
    world.open();
    let larger = Settings { max_connections: 8192, ..world.settings.clone() };
    let error = world.balancer.run(|| XdpBackend::open(&larger)).unwrap_err();
    assert!(format!("{error:#}").contains("metal-lb cleanup"), "{error:#}");
}

#[test]
fn an_interface_that_was_made_anew_is_attached_again() {
    let world = World::new("anew", Mode::Native);
    settle(&mut world.open().0, &world.desired());
    let mac = world.balancer.mac();
    world.balancer.ip("link del eth0");
    world.balancer.ip(
        "link add eth0 numrxqueues 1 numtxqueues 1 type veth peer name other numrxqueues 1 numtxqueues 1",
    );
    let (mut backend, attachment) = world.open();
    assert_eq!(attachment, Attachment::New);
    assert_ne!(backend.mac(), mac);
    assert!(plans::next_plan(&mut backend, &world.desired()).is_none(), "the maps live on");
}

#[test]
fn a_name_that_another_interface_has_by_now_is_attached_there() {
    let world = World::new("renamed", Mode::Native);
    settle(&mut world.open().0, &world.desired());
    for command in [
        "link set eth0 down",
        "link set eth0 name old",
        "link add eth0 numrxqueues 1 numtxqueues 1 type veth peer name other numrxqueues 1 numtxqueues 1",
    ] {
        world.balancer.ip(command);
    }
    assert_eq!(world.open().1, Attachment::New);
    let is_attached = |interface| world.balancer.output(&format!("link show {interface}")).contains("xdp");
    assert!(is_attached("eth0") && !is_attached("old"));
}

#[test]
fn another_mode_takes_effect_at_a_restart() {
    let world = World::new("mode", Mode::Native);
    world.open();
    let generic = Settings { mode: Mode::Generic, ..world.settings.clone() };
    world.balancer.run(|| XdpBackend::open(&generic)).unwrap();
    assert!(world.balancer.output("link show eth0").contains("xdpgeneric"));
    object::cleanup(&generic).unwrap();
    assert!(!world.balancer.output("link show eth0").contains("xdp"));
}

/// Its maps have another shape, so they cannot be taken over; its program can be replaced.
#[test]
fn an_older_releases_program_is_replaced_and_its_maps_go() {
    let world = World::new("upgrade", Mode::Native);
    settle(&mut world.open().0, &world.desired());
    let older = world.settings.folder().join("v0");
    std::fs::rename(world.settings.pins(), &older).unwrap();
    let (mut backend, attachment) = world.open();
    assert_eq!(attachment, Attachment::Replaced);
    assert!(!older.exists());
    settle(&mut backend, &world.desired());
    world.with_echo(|| exchange(&mut connect(), b"hello"));
}

#[test]
fn a_refusal_to_attach_names_the_way_out() {
    let world = World::new("refusal", Mode::Native);
    world
        .balancer
        .ip("link add many numrxqueues 1 numtxqueues 1 type veth peer name peer numrxqueues 4 numtxqueues 4");
    world
        .balancer
        .ip("link add own numrxqueues 1 numtxqueues 1 type veth peer name peer2 numrxqueues 1 numtxqueues 1");
    world.balancer.run(|| metal_lb::xdp::pass::attach("own").unwrap());
    world.balancer.ip("link set peer up");
    world.balancer.ip("link set many up");
    for (interface, text) in
        [("many", "numrxqueues 1"), ("own", "xdp off"), ("absent", "no interface absent"), ("lo", "generic")]
    {
        let settings = Settings { interface: interface.into(), ..world.settings.clone() };
        let error = world.balancer.run(|| XdpBackend::open(&settings)).unwrap_err();
        assert!(format!("{error:#}").contains(text), "{interface}: {error:#}");
    }
}
