//! What is not let through, and that it is counted by its reason.

use std::net::IpAddr;

use ipnet::IpNet;
use node_agent::metrics::denied;
use node_agent::nft::denial::Denial;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use service_model::{IpFamily, Protocol, TrafficPolicy};

use crate::hosts::Ground;
use crate::talk::{Reply, Server, ask, ask_in_vain};
use crate::worlds::{Shop, config};
use crate::{program, reprogram, to};

/// As a scrape reads them; `None` where the metric is missing.
fn counted(ground: &Ground, family: IpFamily) -> [Option<u64>; Denial::ALWAYS.len()] {
    let mut registry = Registry::default();
    denied::register(&config(), &mut registry);
    let mut text = String::new();
    ground.node.run(|| encode(&mut text, &registry)).unwrap();
    Denial::ALWAYS.map(|denial| {
        let labels = format!("{{ip_family=\"{family}\",reason=\"{denial}\",verdict=");
        let line = text.lines().find(|line| {
            line.strip_prefix("fairlead_node_agent_denied_packets_total")
                .is_some_and(|l| l.starts_with(&labels))
        });
        line?.rsplit_once(' ')?.1.parse().ok()
    })
}

#[test]
fn what_is_not_let_through_is_counted_by_its_reason() {
    let ground = Ground::new();
    let [a, b, ..] = &ground.pods;
    let _server = Server::start(b);
    let networks = ["10.96.0.0/16", "fd00:10:96::/112"];
    let networks: Vec<IpNet> = networks.iter().map(|network| network.parse().unwrap()).collect();
    let nobody = Shop { exposed: true, networks, ..Shop::default() };
    let mut engine = program(&ground, &nobody);
    let elsewhere = Shop {
        endpoints: vec![b],
        elsewhere: vec![b],
        external_policy: TrafficPolicy::Local,
        ..nobody.clone()
    };
    let for_others = Shop {
        endpoints: vec![b],
        sources: ["192.0.2.0/24", "2001:db8::/32"].map(|n| n.parse().unwrap()).to_vec(),
        ..nobody.clone()
    };
    for vip in nobody.cluster_ips() {
        let family = IpFamily::of(vip);
        let [_, balancer] = nobody.external_ips(vip);
        let unallocated: IpAddr =
            if vip.is_ipv4() { [10, 96, 7, 7].into() } else { "fd00:10:96::77".parse().unwrap() };
        let cases = [
            (&nobody, a, to(vip, 80), Denial::NoEndpoints),
            (&nobody, a, to(vip, 81), Denial::UndefinedPort),
            (&nobody, a, to(unallocated, 80), Denial::UnallocatedAddress),
            (&elsewhere, &ground.outside, to(balancer, 80), Denial::NoLocalEndpoints),
            (&for_others, &ground.outside, to(balancer, 80), Denial::OutsideSourceRanges),
        ];
        for (shop, client, address, denial) in cases {
            reprogram(&ground, &mut engine, shop);
            let before = counted(&ground, family);
            let reply = if denial.is_refusal() {
                ask(client, Protocol::Tcp, address)
            } else {
                ask_in_vain(client, Protocol::Tcp, address)
            };
            assert_eq!(reply, if denial.is_refusal() { Reply::Refused } else { Reply::Silence }, "{address}");
            let after = counted(&ground, family);
            for ((other, before), after) in Denial::ALWAYS.into_iter().zip(before).zip(after) {
                let (before, after) = (before.unwrap(), after.unwrap());
                assert_eq!(
                    after > before,
                    other == denial,
                    "{address}: {other} went from {before} to {after}"
                );
            }
        }
    }
}

/// A client that is refused tries again, and so do its neighbours.
#[test]
fn tcp_connections_are_refused_however_many_there_are() {
    let ground = Ground::new();
    let [a, ..] = &ground.pods;
    ground.node.run(|| {
        // As a host is when it has started.
        for (sysctl, value) in [("ipv4/icmp_ratelimit", "1000"), ("ipv6/icmp/ratelimit", "1000")] {
            std::fs::write(format!("/proc/sys/net/{sysctl}"), value).unwrap();
        }
    });
    let shop = Shop::default();
    let _engine = program(&ground, &shop);
    for vip in shop.cluster_ips() {
        for client in [a, &ground.outside, &ground.node] {
            for nth in 0..40 {
                // Less than a SYN takes to be sent again.
                let reply = ask_in_vain(client, Protocol::Tcp, to(vip, 80));
                assert_eq!(reply, Reply::Refused, "try {nth} of {} to {vip}", client.name);
            }
        }
    }
}
