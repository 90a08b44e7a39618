//! The connection table: what is listed, and that nothing but what was named is ended.

#![expect(clippy::unwrap_used, reason = "a test's helpers fail by panicking, too")]

#[path = "support/namespace.rs"]
mod namespace;

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use namespace::in_fresh_namespace;
use nfnetlink::Family;
use nfnetlink::conntrack::{Conntrack, Flow, Tuple, Zone};

const UDP: u8 = libc::IPPROTO_UDP as u8;
const TCP: u8 = libc::IPPROTO_TCP as u8;
const LONG: Duration = Duration::from_secs(600);

/// From a client's port to a VIP, answered by that endpoint.
fn flow(client_port: u16, endpoint: &str) -> Flow {
    let client = SocketAddr::from(([172, 30, 0, 9], client_port));
    let original = Tuple::udp(client, "10.96.0.10:53".parse().unwrap());
    let reply = Tuple::udp(endpoint.parse().unwrap(), client);
    Flow { original, reply, zone: Zone::Usual, id: 0 }
}

fn listed(table: &mut Conntrack, family: Family, protocol: u8) -> Vec<Flow> {
    let mut flows = Vec::new();
    table.visit(family, protocol, |flow| flows.push(*flow)).unwrap();
    flows.sort_unstable();
    flows
}

/// Those of the flows, but for their ids.
fn names(flows: &[Flow]) -> Vec<Flow> {
    flows.iter().map(|flow| Flow { id: 0, ..*flow }).collect()
}

#[test]
fn entries_of_a_protocol_and_family_are_listed_in_every_zone() {
    in_fresh_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        let v6 = {
            let (client, vip) = ("[fd00::9]:5000".parse().unwrap(), "[fd00:10:96::10]:53".parse().unwrap());
            let original = Tuple::udp(client, vip);
            Flow { original, reply: original.reversed(), ..flow(0, "10.244.1.5:53") }
        };
        // The answers of the third are in the usual zone.
        let udp: Vec<Flow> = [(Zone::Usual, 5000), (Zone::Both(7), 5000), (Zone::Original(9), 5001)]
            .into_iter()
            .map(|(zone, port)| Flow { zone, ..flow(port, "10.244.1.5:5353") })
            .collect();
        for part in [&udp[..], &[v6]] {
            assert_eq!(table.create(part, LONG).unwrap(), part.len());
            assert_eq!(table.create(part, LONG).unwrap(), 0, "they are there");
        }
        let tcp = "-I -p tcp -s 172.30.0.9 -d 10.96.0.10 --sport 5000 --dport 53 --state ESTABLISHED -t 600";
        assert!(Command::new("conntrack").args(tcp.split(' ')).status().unwrap().success());

        assert_eq!(names(&listed(&mut table, Family::Ip, UDP)), udp);
        assert_eq!(names(&listed(&mut table, Family::Ip6, UDP)), [v6]);
        assert_eq!(listed(&mut table, Family::Ip, TCP).len(), 1);
        assert_eq!(listed(&mut table, Family::Ip6, TCP).len(), 0);
        let handed_over = table.visit(Family::Ip, UDP, |_| {}).unwrap();
        assert_eq!(handed_over, udp.len(), "the kernel leaves out TCP by itself (Linux 5.8)");
        for zone in [Zone::Usual, Zone::Both(7), Zone::Original(9)] {
            let flows = listed(&mut table, Family::Ip, UDP);
            let one: Vec<Flow> = flows.iter().copied().filter(|flow| flow.zone == zone).collect();
            assert_eq!(table.delete(&one).unwrap(), 1, "{zone:?}");
            assert_eq!(listed(&mut table, Family::Ip, UDP).len(), flows.len() - 1, "{zone:?} alone");
        }
        assert_eq!(listed(&mut table, Family::Ip, TCP).len(), 1, "another protocol stays");
    });
}

#[test]
fn an_entry_that_was_made_anew_is_not_ended_in_place_of_the_old_one() {
    in_fresh_namespace(|| {
        let mut table = Conntrack::open().unwrap();
        table.create(&[flow(5000, "10.244.1.5:53")], LONG).unwrap();
        let old = listed(&mut table, Family::Ip, UDP);
        assert_eq!(table.delete(&old).unwrap(), 1);
        table.create(&[flow(5000, "10.244.1.6:53")], LONG).unwrap();
        assert_eq!(table.delete(&old).unwrap(), 0);
        let now = listed(&mut table, Family::Ip, UDP);
        assert_eq!(names(&now), [flow(5000, "10.244.1.6:53")]);
    });
}

#[test]
fn thousands_of_entries_are_listed_and_half_of_them_ended() {
    in_fresh_namespace(|| {
        let (mut table, mut other) = (Conntrack::open().unwrap(), Conntrack::open().unwrap());
        let all: Vec<Flow> = (1..=20_000).map(|port| flow(port, "10.244.1.5:53")).collect();
        assert_eq!(table.create(&all, LONG).unwrap(), all.len());
        let mut ended = 0;
        // While the other socket is listing, as a cleaner does.
        table
            .visit(Family::Ip, UDP, |flow| {
                if flow.original.source.port() % 2 == 0 {
                    ended += other.delete(&[*flow]).unwrap();
                }
            })
            .unwrap();
        assert_eq!(ended, 10_000);
        let rest = listed(&mut table, Family::Ip, UDP);
        assert_eq!(rest.len(), 10_000);
        assert!(rest.iter().all(|flow| flow.original.source.port() % 2 == 1));
    });
}
