//! Pods that are known by the interface of their packets.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use node_agent::config::Config;
use node_agent::local::{DetectLocal, InterfaceName};
use node_agent::nft::evaluate::Fate;
use service_model::{Protocol, TrafficPolicy};

use crate::hosts::{Ground, Host};
use crate::talk::Server;
use crate::worlds::{Shop, config};
use crate::{asked, foretold_by, names, program_as, to};

/// A node in one of the modes, with one client of each kind.
struct Scene<'a> {
    ground: &'a Ground,
    config: Config,
    /// A client, and the interface by which its packets come in.
    clients: [(&'a Host, Option<InterfaceName>); 3],
}

impl Scene<'_> {
    /// Whom each client reaches, and whether it is seen as itself: as the evaluator foretells.
    fn answers(&self, address: SocketAddr) -> [(BTreeSet<String>, BTreeSet<bool>); 3] {
        self.clients.each_ref().map(|(client, interface)| {
            let (pods, seen) = asked(client, Protocol::Tcp, address);
            let own = client.address(address.ip());
            let as_itself: BTreeSet<bool> = seen.iter().map(|ip| *ip == own).collect();
            let fates = foretold_by(self.ground, &self.config, client, *interface, Protocol::Tcp, address);
            let (mut there, mut kept) = (BTreeSet::new(), BTreeSet::new());
            for fate in fates {
                let Fate::Endpoint { target, masqueraded } = fate else { panic!("{fate:?}") };
                let pod = self.ground.pods.iter().find(|pod| pod.address(target.ip) == target.ip).unwrap();
                there.insert(pod.name.to_owned());
                kept.insert(!masqueraded);
            }
            let what = format!("{} to {address} with {:?}", client.name, self.config.detect_local);
            assert_eq!(pods, there, "{what}");
            if client.name != "node" {
                assert_eq!(as_itself, kept, "{what}: {seen:?}");
            }
            (pods, as_itself)
        })
    }

    fn holds(&self, shop: &Shop<'_>, here: &Host, all: &[&Host]) {
        for ip in shop.cluster_ips() {
            let [pod, node, outside] = self.answers(to(ip, 80));
            assert_eq!(pod, (names(all), BTreeSet::from([true])), "a pod is not masqueraded: {ip}");
            assert_eq!(node.0, names(all), "{ip}");
            assert_eq!(outside, (names(all), BTreeSet::from([false])), "from outside: {ip}");
            for frontend in [to(shop.external_ips(ip)[0], 80), to(self.ground.node.address(ip), 30080)] {
                let [pod, node, outside] = self.answers(frontend);
                assert_eq!(pod, (names(all), BTreeSet::from([true])), "the short circuit: {frontend}");
                assert_eq!(node.0, names(all), "{frontend}");
                assert_eq!(outside, (names(&[here]), BTreeSet::from([true])), "from outside: {frontend}");
            }
        }
    }
}

/// Programs the node in the mode and asks everything. The client's packets come in by `interface`.
fn check(ground: &Ground, detect_local: DetectLocal, interface: &str) {
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let external_policy = TrafficPolicy::Local;
    let shop =
        Shop { endpoints: vec![a, b], elsewhere: vec![b], exposed: true, external_policy, ..Shop::default() };
    let config = Config { detect_local, ..config() };
    let _engine = program_as(ground, &shop, config.clone());
    let by = |name: &str| Some(name.parse().unwrap());
    let clients = [(c, by(interface)), (&ground.node, None), (&ground.outside, by("outside"))];
    Scene { ground, config, clients }.holds(&shop, a, &[a, b]);
}

#[test]
fn pods_are_known_by_the_beginning_of_their_interfaces_names() {
    let ground = Ground::new();
    check(&ground, DetectLocal::InterfaceNamePrefix("pod-".parse().unwrap()), "pod-c");
}

#[test]
fn pods_are_known_by_the_bridge_that_they_are_behind() {
    let ground = Ground::new();
    ground.node.bridge("cni0", &ground.pods[2]);
    check(&ground, DetectLocal::BridgeInterface("cni0".parse().unwrap()), "cni0");
}

/// The output hook knows no interface: for a rule against names, the name is empty.
#[test]
fn what_the_node_itself_sends_to_a_cluster_ip_is_masqueraded_where_pods_are_known_by_interfaces() {
    let ground = Ground::new();
    let [a, ..] = &ground.pods;
    let _server = Server::start(a);
    let shop = Shop { endpoints: vec![a], ..Shop::default() };
    let extra: IpAddr = "172.30.0.77".parse().unwrap();
    ground.node.add_address(extra, "lo");
    for (detect_local, keeps) in [
        (DetectLocal::InterfaceNamePrefix("pod-".parse().unwrap()), false),
        (DetectLocal::ClusterCidr("172.30.0.0/24".parse().unwrap()), true),
    ] {
        let _engine = program_as(&ground, &shop, Config { detect_local, ..config() });
        let seen = ground.node.run(|| ask_from(extra, to(shop.cluster_ips()[0], 80)));
        assert_eq!(seen == extra, keeps, "{detect_local:?}: {seen}");
    }
}

/// As whom the server sees a client that has bound its socket.
fn ask_from(source: IpAddr, address: SocketAddr) -> IpAddr {
    use std::io::Read;
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::new(source, 0).into()).unwrap();
    socket.connect(&address.into()).unwrap();
    let mut answer = String::new();
    std::net::TcpStream::from(socket).read_to_string(&mut answer).unwrap();
    answer.split_once(' ').unwrap().1.parse().unwrap()
}
