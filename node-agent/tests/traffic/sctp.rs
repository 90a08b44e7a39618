//! SCTP, on kernels that have no sockets for it: packets are made and read here (RFC 9260), and what
//! lies between is what every association meets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use node_agent::nft::evaluate::Fate;
use node_agent::nft::layout::Target;
use service_model::{Protocol, TrafficPolicy};
use socket2::{Domain, Socket, Type};

use crate::hosts::{Ground, Host};
use crate::worlds::Shop;
use crate::{foretold, program, reprogram, to};

const SCTP: i32 = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
/// Far more than it takes.
const DEADLINE: Duration = Duration::from_secs(5);

/// The first chunk of a packet, with what NAT may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Packet {
    source_port: u16,
    destination_port: u16,
    kind: u8,
    /// The receiver's; none yet in an INIT.
    tag: u32,
    /// The sender's, which tells one association from another.
    own_tag: u32,
}

impl Packet {
    fn encode(self) -> Vec<u8> {
        let mut bytes = [self.source_port.to_be_bytes(), self.destination_port.to_be_bytes()].concat();
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, 0, 0, 20]);
        bytes.extend(self.own_tag.to_be_bytes());
        // Window, streams out and in, the first number.
        bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }

    /// `None` where the checksum is not that of the packet as it came.
    fn decode(bytes: &[u8]) -> Option<Self> {
        let word = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        let (mut unsummed, sum) = (bytes.to_vec(), bytes[8..12].to_vec());
        unsummed[8..12].fill(0);
        (crc32c(&unsummed).to_le_bytes()[..] == sum).then(|| Self {
            source_port: (word(0) >> 16) as u16,
            destination_port: word(0) as u16,
            kind: bytes[12],
            tag: word(4),
            own_tag: word(16),
        })
    }
}

fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, _| if sum & 1 == 1 { (sum >> 1) ^ 0x82f6_3b78 } else { sum >> 1 };
    !bytes.iter().fold(!0, |sum, byte| (0..8).fold(sum ^ u32::from(*byte), step))
}

/// Everything over SCTP that is addressed to the host.
struct Raw(UdpSocket);

impl Raw {
    fn open(host: &Host, like: IpAddr) -> Self {
        let domain = if like.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = host.run(|| Socket::new(domain, Type::RAW, Some(SCTP.into())).unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        // Of its calls, those that know addresses and no ports do as well.
        Self(socket.into())
    }

    fn send(&self, to: IpAddr, packet: Packet) {
        self.0.send_to(&packet.encode(), (to, 0)).unwrap();
    }

    /// The next packet that is asked for, and whose it is.
    fn receive(&self, what: &str, is_it: impl Fn(&Packet) -> bool) -> (IpAddr, Packet) {
        let (deadline, mut bytes) = (Instant::now() + DEADLINE, [0; 256]);
        loop {
            assert!(Instant::now() < deadline, "{what} did not come");
            let Ok((length, from)) = self.0.recv_from(&mut bytes) else { continue };
            // Of IPv4 the header comes too.
            let header = if from.is_ipv4() { usize::from(bytes[0] & 15) * 4 } else { 0 };
            let packet = Packet::decode(&bytes[header..length]);
            let packet = packet.unwrap_or_else(|| panic!("{what}: the checksum is not that of what came"));
            if is_it(&packet) {
                return (from.ip(), packet);
            }
        }
    }
}

/// Clients, and the frontends that they ask.
struct Scene<'a> {
    ground: &'a Ground,
    /// The endpoint, at port 8080.
    pod: &'a Host,
    associations: u32,
}

impl Scene<'_> {
    /// Begins an association and has it answered: as whom the endpoint sees the client. The rest is as
    /// the evaluator foretells.
    fn associate(&mut self, client: &Host, frontend: SocketAddr) -> IpAddr {
        self.associations += 1;
        let what = |step: &str| format!("{step} of {} to {frontend}", client.name);
        let (asking, serving) = (Raw::open(client, frontend.ip()), Raw::open(self.pod, frontend.ip()));
        let source_port = 20_000 + self.associations as u16;
        let (source, destination_port) = (client.address(frontend.ip()), frontend.port());
        let tags = [0x0c11_0000 + self.associations, 0x5e4e_0000 + self.associations];
        let init = Packet { source_port, destination_port, kind: INIT, tag: 0, own_tag: tags[0] };
        asking.send(frontend.ip(), init);

        let (seen, came) = serving.receive(&what("INIT"), |p| (p.kind, p.own_tag) == (INIT, tags[0]));
        assert_eq!(came, Packet { source_port: came.source_port, destination_port: 8080, ..init });
        let target = Target { ip: self.pod.address(frontend.ip()), port: 8080 };
        let fate = |masqueraded| BTreeSet::from([Fate::Endpoint { target, masqueraded }]);
        if client.name != "node" {
            let foretold = foretold(self.ground, client, Protocol::Sctp, frontend);
            assert_eq!(foretold, fate(seen != source), "{}: seen as {seen}", what("INIT"));
        }

        let answer = Packet {
            source_port: 8080,
            destination_port: came.source_port,
            kind: INIT_ACK,
            tag: tags[0],
            own_tag: tags[1],
        };
        serving.send(seen, answer);
        let (from, answered) =
            asking.receive(&what("INIT ACK"), |p| (p.kind, p.own_tag) == (INIT_ACK, tags[1]));
        let (source_port, destination_port) = (frontend.port(), source_port);
        assert_eq!(answered, Packet { source_port, destination_port, ..answer }, "{}", what("INIT ACK"));
        assert_eq!(from, frontend.ip(), "it comes from whom was asked");
        seen
    }
}

#[test]
fn an_association_over_sctp_is_translated_both_ways_and_masqueraded_like_any_connection() {
    let ground = Ground::new();
    let [a, _, c] = &ground.pods;
    let shop = Shop { endpoints: vec![a], exposed: true, sctp: true, ..Shop::default() };
    let mut engine = program(&ground, &shop);
    let mut scene = Scene { ground: &ground, pod: a, associations: 0 };
    for vip in shop.cluster_ips() {
        let node_port = to(ground.node.address(vip), 30080);
        let frontends = [to(vip, 80), to(shop.external_ips(vip)[0], 80), node_port];
        for frontend in frontends {
            let seen = scene.associate(&ground.outside, frontend);
            assert_eq!(seen, ground.node.address(vip), "from outside to {frontend}");
            scene.associate(&ground.node, frontend);
        }
        assert_eq!(scene.associate(c, to(vip, 80)), c.address(vip), "a pod's address is kept: {vip}");
        let seen = scene.associate(a, to(vip, 80));
        assert_ne!(seen, a.address(vip), "what comes back to its source is masqueraded: {vip}");
    }
    let local = Shop { external_policy: TrafficPolicy::Local, ..shop.clone() };
    reprogram(&ground, &mut engine, &local);
    for ip in shop.cluster_ips() {
        let frontend = to(ground.node.address(ip), 30080);
        let seen = scene.associate(&ground.outside, frontend);
        assert_eq!(seen, ground.outside.address(ip), "the policy keeps the client's address: {frontend}");
    }
}
