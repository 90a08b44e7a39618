//! Clients that keep asking from one port while the pods behind a Service come and go.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use nfnetlink::Family;
use nfnetlink::conntrack::{Conntrack, Flow};
use node_agent::nft::plan::GRACE;
use service_model::Change;

use crate::agents::{KINDS, apply, list, with_agent};
use crate::hosts::{Ground, Host};
use crate::talk::Server;
use crate::to;
use crate::worlds::Shop;

/// Far more than it takes; a flow that is not ended is kept for ever by its packets.
const DEADLINE: Duration = Duration::from_secs(15);
/// Between two questions of who waits for another answer…
const BRISK: Duration = Duration::from_millis(50);
/// … and longer than any answer takes on this machine: none within it is one that was lost.
const PATIENT: Duration = Duration::from_secs(5);
const TCP: u8 = 6;
const UDP: u8 = 17;

/// A client that asks from one port.
struct Asker {
    socket: UdpSocket,
    asked: Cell<u32>,
}

impl Asker {
    fn new(host: &Host, to: SocketAddr) -> Self {
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = host.run(|| UdpSocket::bind((any, 0))).unwrap();
        socket.connect(to).unwrap();
        Self { socket, asked: Cell::new(0) }
    }

    /// The pod that answers this question, if one does in time.
    fn ask(&self, patience: Duration) -> Option<String> {
        let (number, until) = (self.asked.get() + 1, Instant::now() + patience);
        self.asked.set(number);
        let question = number.to_string();
        // The first may tell of an earlier datagram's ICMP error instead.
        self.socket.send(question.as_bytes()).or_else(|_| self.socket.send(question.as_bytes())).ok()?;
        let mut answer = [0; 128];
        loop {
            let left = until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            self.socket.set_read_timeout(Some(left)).unwrap();
            // Neither is another ICMP error an answer, nor what comes late to an earlier question.
            let Ok(length) = self.socket.recv(&mut answer) else { continue };
            let text = String::from_utf8_lossy(&answer[..length]);
            if let [pod, _, answered] = text.split(' ').collect::<Vec<_>>()[..]
                && answered == question
            {
                return Some(pod.to_owned());
            }
        }
    }

    fn is_answered_by(&self, pod: &str) {
        assert_eq!(self.ask(PATIENT).as_deref(), Some(pod), "{:?}", self.socket.peer_addr());
    }

    /// Asks on until that pod answers.
    fn until_answered_by(&self, pod: &str) {
        let deadline = Instant::now() + DEADLINE;
        let mut last = None;
        while last.as_deref() != Some(pod) {
            assert!(Instant::now() < deadline, "{:?}: {last:?} instead of {pod}", self.socket.peer_addr());
            last = self.ask(BRISK);
        }
    }

    fn is_of(&self, flow: &Flow) -> bool {
        self.socket.local_addr().is_ok_and(|local| local.port() == flow.original.source.port())
    }
}

fn flows(ground: &Ground, protocol: u8) -> BTreeSet<Flow> {
    ground.node.run(|| {
        let (mut table, mut flows) = (Conntrack::open().unwrap(), BTreeSet::new());
        for family in [Family::Ip, Family::Ip6] {
            table.visit(family, protocol, |flow| flows.extend([*flow])).unwrap();
        }
        flows
    })
}

fn flow_of(ground: &Ground, asker: &Asker) -> Flow {
    let mut of_asker = flows(ground, UDP).into_iter().filter(|flow| asker.is_of(flow));
    of_asker.next().expect("the asker's entry")
}

#[test]
fn a_client_that_keeps_its_port_is_answered_by_another_pod_once_its_own_is_gone() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let shop = Shop { exposed: true, endpoints: vec![a], ..Shop::default() };
    let (only_a, only_b) = (shop.clone(), Shop { endpoints: vec![b], ..shop.clone() });
    let both = Shop { endpoints: vec![a, b], ..shop.clone() };
    with_agent(&ground, |tx| {
        list(tx, &ground, &only_a);
        let mut askers = Vec::new();
        for ip in shop.cluster_ips() {
            askers.push(Asker::new(c, to(ip, 80)));
            let [external, balancer] = shop.external_ips(ip);
            let node_port = to(ground.node.address(ip), 30080);
            for frontend in [to(external, 80), to(balancer, 80), node_port] {
                askers.push(Asker::new(&ground.outside, frontend));
            }
        }
        askers.iter().for_each(|asker| asker.until_answered_by(a.name));
        let _tcp = c.run(|| TcpStream::connect(to(shop.cluster_ips()[0], 80))).unwrap();
        let of_tcp = flows(&ground, TCP);
        assert!(!of_tcp.is_empty());

        apply(tx, &ground, &both);
        // One that goes to b keeps going there, by the very same entry.
        let vip = to(shop.cluster_ips()[0], 80);
        let deadline = Instant::now() + DEADLINE;
        let at_b = loop {
            let asker = Asker::new(c, vip);
            if asker.ask(BRISK).as_deref() == Some(b.name) {
                break asker;
            }
            assert!(Instant::now() < deadline, "b is an endpoint by now");
        };
        // Their pod is there.
        askers.iter().for_each(|asker| asker.is_answered_by(a.name));
        let before = flow_of(&ground, &at_b);

        apply(tx, &ground, &only_b);
        askers.iter().for_each(|asker| asker.until_answered_by(b.name));
        at_b.is_answered_by(b.name);
        assert_eq!(flow_of(&ground, &at_b), before);
        let names = |flows: &BTreeSet<Flow>| flows.iter().map(|f| f.original).collect::<BTreeSet<_>>();
        assert!(names(&flows(&ground, TCP)).is_superset(&names(&of_tcp)), "TCP is left alone");
    });
}

#[test]
fn an_entry_that_a_packet_under_way_makes_after_the_look_is_ended_too() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let both = Shop { endpoints: vec![a, b], ..Shop::default() };
    let only_b = Shop { endpoints: vec![b], ..Shop::default() };
    let vip = to(both.cluster_ips()[0], 80);
    with_agent(&ground, |tx| {
        list(tx, &ground, &both);
        // On a machine that stalls, the second is over before the entry is there.
        for port in 1..=5 {
            let deadline = Instant::now() + DEADLINE;
            let asker = loop {
                assert!(Instant::now() < deadline, "a is an endpoint");
                let asker = Asker::new(c, vip);
                if asker.ask(BRISK).as_deref() == Some(a.name) {
                    break asker;
                }
            };
            // There is one look a second: the next shall not have to wait.
            let rested = Instant::now() + 3 * GRACE;
            while Instant::now() < rested {
                asker.ask(BRISK);
            }
            let began = Instant::now();
            apply(tx, &ground, &only_b);
            asker.until_answered_by(b.name);
            let client = to(c.v4, port);
            let original = nfnetlink::conntrack::Tuple::udp(client, vip);
            let reply = nfnetlink::conntrack::Tuple::udp(to(a.v4, 8080), client);
            let late = Flow { original, reply, ..flow_of(&ground, &asker) };
            let created = ground.node.run(|| Conntrack::open().unwrap().create(&[late], DEADLINE * 10));
            assert_eq!(created.unwrap(), 1);
            if began.elapsed() < GRACE {
                let deadline = Instant::now() + DEADLINE;
                while flows(&ground, UDP).iter().any(|flow| flow.original == original) {
                    asker.ask(BRISK);
                    assert!(Instant::now() < deadline, "nobody looked again");
                }
                return;
            }
            apply(tx, &ground, &both);
        }
        panic!("this machine is too slow for this test");
    });
}

#[test]
fn a_client_that_asked_before_there_was_a_service_is_answered_once_there_is() {
    let ground = Ground::new();
    let [a, _, c] = &ground.pods;
    let _server = Server::start(a);
    let shop = Shop { endpoints: vec![a], ..Shop::default() };
    let askers = shop.cluster_ips().map(|ip| Asker::new(c, to(ip, 80)));
    with_agent(&ground, |tx| {
        let (begin, end) = (KINDS.map(Change::ListStarted), KINDS.map(Change::ListEnded));
        begin.into_iter().chain(end).for_each(|change| tx.blocking_send(change).unwrap());
        let deadline = Instant::now() + DEADLINE;
        // Untranslated entries come into being as soon as the table tracks connections.
        while !askers.iter().all(|asker| flows(&ground, UDP).iter().any(|flow| asker.is_of(flow))) {
            askers.iter().for_each(|asker| assert_eq!(asker.ask(BRISK), None));
            assert!(Instant::now() < deadline, "the datagrams are tracked");
        }
        apply(tx, &ground, &shop);
        askers.iter().for_each(|asker| asker.until_answered_by(a.name));
    });
}

#[test]
fn a_long_flow_survives_a_restart_of_the_agent() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let shop = Shop { endpoints: vec![a, b], ..Shop::default() };
    let askers = with_agent(&ground, |tx| {
        list(tx, &ground, &Shop { endpoints: vec![a], ..shop.clone() });
        let askers = shop.cluster_ips().map(|ip| Asker::new(c, to(ip, 80)));
        askers.iter().for_each(|asker| asker.until_answered_by(a.name));
        askers
    });
    let before = [flow_of(&ground, &askers[0]), flow_of(&ground, &askers[1])];
    with_agent(&ground, |tx| {
        // While it was away, b came, and a dead entry was left behind.
        let client = "172.30.0.100:9".parse().unwrap();
        let gone = nfnetlink::conntrack::Tuple::udp(client, to(shop.cluster_ips()[0], 80));
        let reply = nfnetlink::conntrack::Tuple::udp("10.244.1.99:8080".parse().unwrap(), client);
        let dead = Flow { original: gone, reply, ..before[0] };
        let created = ground.node.run(|| Conntrack::open().unwrap().create(&[dead], DEADLINE * 10)).unwrap();
        assert_eq!(created, 1);
        list(tx, &ground, &shop);
        let deadline = Instant::now() + DEADLINE;
        while flows(&ground, UDP).iter().any(|flow| flow.original == gone) {
            askers.iter().for_each(|asker| asker.is_answered_by(a.name));
            assert!(Instant::now() < deadline, "the start looks through the table");
        }
    });
    askers.iter().for_each(|asker| asker.is_answered_by(a.name));
    assert_eq!([flow_of(&ground, &askers[0]), flow_of(&ground, &askers[1])], before);
}
