//! NodePorts on loopback that no proxy serves.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use node_agent::config::Config;
use node_agent::engine::Engine;
use node_agent::nft::denial::Denial;
use node_agent::nft::evaluate::Fate;
use node_agent::nft::kernel::Kernel;
use node_agent::nft::ruleset::ChainName;
use service_model::{IpFamily, Protocol, World};

use crate::hosts::Ground;
use crate::talk::{Reply, Server, ask};
use crate::worlds::{Shop, config};
use crate::{answers, foretold_by, names, program_as, to};

#[test]
fn a_datagram_to_a_node_port_on_loopback_is_refused_and_counted_where_loopback_is_named() {
    let ground = Ground::new();
    let [a, ..] = &ground.pods;
    let _server = Server::start(a);
    let shop = Shop { endpoints: vec![a], exposed: true, ..Shop::default() };
    let config = Config { nodeport_addresses: "primary,localhost".parse().unwrap(), ..config() };
    let _engine = program_as(&ground, &shop, config.clone());
    let loopbacks: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let counted = |ip: IpAddr| {
        let chain = ChainName::Denied(Denial::OnLoopback(Protocol::Udp));
        ground.node.run(|| Kernel::open().unwrap().counted(IpFamily::of(ip), chain).unwrap())
    };
    for ip in loopbacks {
        for times in 1..=3 {
            assert_eq!(ask(&ground.node, Protocol::Udp, to(ip, 30080)), Reply::Refused, "{ip}");
            assert_eq!(counted(ip), times, "{ip}");
        }
        let foretold = foretold_by(&ground, &config, &ground.node, None, Protocol::Udp, to(ip, 30080));
        assert_eq!(foretold, BTreeSet::from([Fate::Refused]));
    }
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let (pods, _) = answers(&ground, &ground.outside, protocol, to(ground.node.v4, 30080));
        assert_eq!(pods, names(&[a]), "the node's own address answers as before");
    }

    let mut world = World::default();
    shop.changes(&ground.node).into_iter().for_each(|change| world.apply(change));
    let again =
        ground.node.run(|| Engine::new(config.clone()).unwrap().sync(&world, Instant::now()).unwrap());
    assert_eq!(again.steps, 0, "what was counted is no difference");
    assert_eq!(counted(loopbacks[0]), 3, "and stays");
}
