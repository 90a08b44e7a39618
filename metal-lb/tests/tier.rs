//! Two hosts, two nodes and a client on one switch: real programs, real packets.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "support/certificates.rs"]
mod certificates;
#[path = "support/client.rs"]
mod client;
#[path = "support/net.rs"]
mod net;
#[path = "support/node.rs"]
mod node;
#[path = "support/process.rs"]
mod process;
#[path = "support/shipped.rs"]
mod shipped;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use certificates::Authority;
use hyper::StatusCode;
use metal_lb_api::TargetHealth;
use net::{Host, Lan};
use nix::sys::signal::Signal;
use node::{HEALTH_PORT, NODE_PORT, Node};
use process::Balancer;
use serde_json::{Value, json};

const CONTROLLER: &str = "fairlead-cloud-controller";
const VIPS: [Ipv4Addr; 2] = [Ipv4Addr::new(172, 30, 0, 200), Ipv4Addr::new(172, 30, 0, 201)];
const DEADLINE: Duration = Duration::from_secs(30);
/// How often the prober connects.
const PROBE: Duration = Duration::from_millis(10);
/// How long it waits when it measures…
const HASTY: Duration = Duration::from_millis(100);
/// … and when nothing may fail.
const PATIENT: Duration = Duration::from_secs(2);

struct World {
    balancers: Vec<Balancer>,
    nodes: Vec<Node>,
    client: Host,
    lan: Lan,
    _folder: tempfile::TempDir,
}

impl World {
    /// The tier, with both VIPs served and owned.
    fn new(test: &str) -> Self {
        let (folder, lan) = (tempfile::tempdir().unwrap(), Lan::new(test));
        let authority = Authority::new(&folder.path().join("tls"));
        let controller = authority.issue(CONTROLLER, None);
        let client = lan.host("client", Ipv4Addr::new(172, 30, 0, 100));
        let nodes = (1..=2).map(|n| Node::new(&lan, n)).collect();
        let start = |n| Balancer::start(&lan, test, n, &authority, &controller, folder.path().to_owned());
        let balancers = (1..=2).map(start).collect();
        let world = Self { balancers, nodes, client, lan, _folder: folder };
        // First one in which there is nothing to own: who does not know the other yet takes all there is.
        world.publish(&document(1, &[]));
        let knows_the_other = |l: &str| l.starts_with("metal_lb_peer_alive{") && l.ends_with(" 1");
        for balancer in &world.balancers {
            until("it knows the other", || balancer.probe("/metrics").lines().any(knows_the_other));
        }
        world.publish(&document(2, &VIPS));
        until("every VIP has an owner", || VIPS.iter().all(|vip| world.owner(*vip).is_some()));
        world
    }

    /// Gives all hosts a document, at once: who is a second behind the others is given nothing.
    fn publish(&self, document: &Value) {
        std::thread::scope(|scope| {
            for balancer in &self.balancers {
                scope.spawn(|| {
                    until("it takes a document", || balancer.put(document) == Some(StatusCode::OK));
                });
            }
        });
    }

    /// Whom all hosts that answer agree upon.
    fn owner(&self, vip: Ipv4Addr) -> Option<usize> {
        let states: Vec<_> = self.balancers.iter().filter_map(Balancer::state).collect();
        let owners: BTreeSet<Option<String>> =
            states.iter().map(|s| s.vips.iter().find(|v| v.vip == vip)?.owner.clone()).collect();
        let name = owners.first().cloned().flatten().filter(|_| owners.len() == 1)?;
        self.balancers.iter().position(|b| b.name == name)
    }

    /// A new connection through a VIP, and the node that answered.
    fn connect(&self, vip: Ipv4Addr) -> std::io::Result<(BufReader<TcpStream>, String)> {
        self.client.run(|| greet(vip, PATIENT))
    }

    /// Connects again and again while something happens.
    fn probed(&self, vip: Ipv4Addr, patience: Duration, happens: impl FnOnce()) -> Probed {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let prober = scope.spawn(|| self.client.run(|| probe(vip, patience, &done)));
            let happened = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
            done.store(true, Ordering::SeqCst);
            let probed = prober.join().unwrap();
            happened.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            probed
        })
    }
}

/// What a prober saw.
#[derive(Debug, Default)]
struct Probed {
    connected: usize,
    failed: Vec<String>,
    /// The longest time without a success.
    gap: Duration,
}

fn probe(vip: Ipv4Addr, patience: Duration, done: &AtomicBool) -> Probed {
    let (mut probed, mut last) = (Probed::default(), Instant::now());
    while !done.load(Ordering::SeqCst) {
        let begun = Instant::now();
        match greet(vip, patience) {
            Ok(_) => {
                probed.connected += 1;
                probed.gap = probed.gap.max(last.elapsed());
                last = Instant::now();
            }
            Err(error) => probed.failed.push(error.to_string()),
        }
        std::thread::park_timeout(PROBE.saturating_sub(begun.elapsed()));
    }
    probed.gap = probed.gap.max(last.elapsed());
    probed
}

fn greet(vip: Ipv4Addr, patience: Duration) -> std::io::Result<(BufReader<TcpStream>, String)> {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((vip, 80)), patience)?;
    stream.set_read_timeout(Some(patience))?;
    let (mut stream, mut name) = (BufReader::new(stream), String::new());
    stream.read_line(&mut name)?;
    Ok((stream, name.trim().to_owned()))
}

fn exchange(stream: &mut BufReader<TcpStream>) {
    stream.get_mut().write_all(b"hello").unwrap();
    let mut back = [0; 5];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"hello");
}

fn until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < DEADLINE, "after {DEADLINE:?}, not yet: {what}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn until_shown(look: impl Fn() -> String, wanted: impl Fn(&str) -> bool) {
    let begun = Instant::now();
    loop {
        let text = look();
        if wanted(&text) {
            return;
        }
        assert!(begun.elapsed() < DEADLINE, "after {DEADLINE:?}, still:\n{text}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn document(counter: u64, vips: &[Ipv4Addr]) -> Value {
    let listener = |vip: &Ipv4Addr| {
        json!({
            "service": format!("shop/web-{}", vip.octets()[3]), "vip": vip, "protocol": "TCP", "port": 80,
            "node_set": "all", "node_port": NODE_PORT, "health": {"port": HEALTH_PORT, "path": "/healthz"}
        })
    };
    json!({
        "schema": 1, "owner": "test", "generation": {"term": 1, "counter": counter}, "member_key": "5a".repeat(32),
        "hosts": [
            {"name": "lb-1", "address": "172.30.0.21:7947", "slot": 0},
            {"name": "lb-2", "address": "172.30.0.22:7947", "slot": 1}
        ],
        "nodes": [
            {"name": "node-1", "addresses": ["172.30.0.11"]}, {"name": "node-2", "addresses": ["172.30.0.12"]}
        ],
        "node_sets": [{"name": "all", "nodes": ["node-1", "node-2"]}],
        "listeners": vips.iter().map(listener).collect::<Vec<_>>()
    })
}

#[test]
fn a_document_becomes_vips_that_are_shared_out_and_answer_from_every_node() {
    let world = World::new("road");
    assert_ne!(world.owner(VIPS[0]), world.owner(VIPS[1]), "each host owns one");
    for vip in VIPS {
        let nodes = (0..40).map(|_| world.connect(vip).unwrap().1).collect::<BTreeSet<String>>();
        assert_eq!(nodes, ["node-1", "node-2"].map(String::from).into());
    }
    for balancer in &world.balancers {
        until_shown(|| balancer.probe("/readyz"), |text| text.starts_with("HTTP/1.1 200"));
        let flows = "metal_lb_listener_new_flows_total{service=\"shop/web-";
        let counted = |metrics: &str| metrics.lines().any(|l| l.starts_with(flows) && l.ends_with(" 40"));
        until_shown(|| balancer.probe("/metrics"), counted);
        for line in [
            "TCP 172.30.0.200:80 shop/web-200: 2 of 2 targets take connections",
            "in  node-1 172.30.0.11:30080 healthy: http://172.30.0.11:10256",
        ] {
            until_shown(|| balancer.state_verb(), |text| text.contains(line));
        }
    }
}

#[test]
fn an_unhealthy_node_gets_no_new_connections_and_keeps_those_it_has() {
    let world = World::new("health");
    let (mut old, name) = world.connect(VIPS[0]).unwrap();
    let node = world.nodes.iter().find(|n| n.name == name).unwrap();
    node.set_healthy(false);
    let is_out = |b: &Balancer| {
        let targets = b.state().map(|s| s.listeners[0].targets.clone()).unwrap_or_default();
        targets.iter().any(|t| t.node == name && t.health == TargetHealth::Unhealthy && !t.in_table)
    };
    until("both hosts have taken it out", || world.balancers.iter().all(is_out));
    for _ in 0..20 {
        assert_ne!(world.connect(VIPS[0]).unwrap().1, name);
    }
    exchange(&mut old);
    node.set_healthy(true);
    until("it is back", || !world.balancers.iter().any(is_out));
    until("it gets connections again", || world.connect(VIPS[0]).is_ok_and(|(_, n)| n == name));
}

#[test]
fn a_process_that_is_killed_or_stopped_leaves_everything_running_and_its_vips_in_place() {
    let mut world = World::new("restart");
    let vip = VIPS[0];
    let owner = world.owner(vip).unwrap();
    let mut balancer = world.balancers.remove(owner);
    let mut connections: Vec<_> = (0..10).map(|_| world.connect(vip).unwrap().0).collect();
    let name = balancer.name.clone();
    let owns = |balancer: &Balancer| {
        let owner = balancer.state().and_then(|s| s.vips.iter().find(|v| v.vip == vip)?.owner.clone());
        owner.as_ref() == Some(&name)
    };
    for signal in [Signal::SIGKILL, Signal::SIGTERM] {
        let probed = world.probed(vip, PATIENT, || {
            balancer.end(signal);
            connections.iter_mut().for_each(exchange);
            balancer.spawn();
            // Without another document: it is replayed.
            until("it serves again", || {
                let state = balancer.state().filter(|s| s.generation.is_some());
                state.is_some_and(|s| s.listeners.iter().all(|l| l.programmed))
            });
            connections.iter_mut().for_each(exchange);
        });
        assert!(probed.failed.is_empty() && probed.connected > 0, "{signal}: {probed:?}");
        assert!(owns(&balancer) && owns(&world.balancers[0]), "the VIP stays where it is");
    }
}

#[test]
fn a_host_that_is_lost_is_replaced_and_does_not_take_its_vips_back() {
    let world = World::new("lost");
    let (vip, other_vip) = (VIPS[0], VIPS[1]);
    let lost = world.owner(vip).unwrap();
    let name = &world.balancers[lost].name;
    let connect = |what: &str, vip| until(what, || world.connect(vip).is_ok());

    let Probed { gap, .. } = world.probed(vip, HASTY, || {
        world.lan.set_carrier(name, false);
        connect("the other host serves the VIP", vip);
    });
    eprintln!("carrier lost: {gap:?} without a new connection");
    world.lan.set_carrier(name, true);
    until("the tier agrees again", || world.owner(vip).is_some_and(|owner| owner != lost));
    connect("the VIP is served", vip);
    connect("the other VIP is served", other_vip);
}

#[test]
fn a_partition_heals_to_one_owner_that_the_network_knows() {
    let world = World::new("split");
    let vip = VIPS[0];
    let apart = world.owner(vip).unwrap();
    let name = &world.balancers[apart].name;
    let Probed { gap, .. } = world.probed(vip, HASTY, || {
        world.lan.set_connected(name, false);
        until("the other host serves the VIP", || world.connect(vip).is_ok());
    });
    eprintln!("cut off: {gap:?} without a new connection");
    let owns_everything = |host: &Balancer| {
        let vips = host.state().map(|s| s.vips).unwrap_or_default();
        vips.len() == 2 && vips.iter().all(|v| v.owner.as_ref() == Some(&host.name))
    };
    let survivor = &world.balancers[1 - apart];
    until("the other host owns everything", || owns_everything(survivor));
    until("the one that is cut off does too", || owns_everything(&world.balancers[apart]));

    world.lan.set_connected(name, true);
    for vip in VIPS {
        until("one owner is left", || world.owner(vip).is_some());
        until("the client reaches it", || world.connect(vip).is_ok());
    }
}
