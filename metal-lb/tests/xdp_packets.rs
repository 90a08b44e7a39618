//! Packet in, packet out: each rule of the XDP program through BPF_PROG_TEST_RUN.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb::desired::Mac;
use metal_lb::plan::Backend;
use support::*;

#[test]
fn a_syn_goes_to_a_node_from_the_vip_and_the_answer_comes_back_from_the_vip() {
    let bench = Bench::programmed(&desired(true, 3));
    let syn = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(*syn.source.ip(), VIP);
    assert!((22_528..28_672).contains(&syn.source.port()), "slot 1 of 8: {syn:?}");
    assert_eq!((syn.destination.port(), syn.ttl, syn.from), (30080, 63, HOST_MAC));
    assert_eq!(syn.to, Mac([2, 0, 0, 0, 1, syn.destination.ip().octets()[3] - 10]));

    let back = forwarded(&bench, answer(&syn, SYN | ACK));
    assert_eq!((back.source, back.destination, back.to), (vip(), client(40_000), CLIENT_MAC));
    let ack = forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
    assert_eq!((ack.source, ack.destination), (syn.source, syn.destination), "one flow, one translation");
}

#[test]
fn a_tcp_flow_is_half_open_until_the_node_and_then_the_client_answer() {
    let bench = Bench::programmed(&desired(true, 1));
    let syn = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    let again = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(again.source, syn.source, "a retransmitted SYN is the same connection");
    let early = Frame::tcp(client(40_000), vip(), ACK).build();
    assert_eq!(bench.run(&early).0, DROP, "nobody can acknowledge what the node has not sent");
    for flags in [SYN | ACK, SYN | ACK] {
        forwarded(&bench, answer(&syn, flags));
        assert_eq!((bench.entries("half_open"), bench.entries("connections")), (1, 0));
    }
    forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
    assert_eq!((bench.entries("half_open"), bench.entries("connections")), (0, 1));
    assert_eq!((bench.entries("half_open_flows"), bench.entries("flows")), (0, 1));
}

#[test]
fn a_udp_flow_is_half_open_until_the_node_answers() {
    let bench = Bench::programmed(&desired(true, 1));
    let first = forwarded(&bench, Frame::udp(client(5000), vip()));
    let second = forwarded(&bench, Frame::udp(client(5000), vip()));
    assert_eq!((second.source, bench.entries("connections")), (first.source, 0));
    forwarded(&bench, answer(&first, 0));
    assert_eq!((bench.entries("half_open"), bench.entries("connections")), (0, 1));
    assert_eq!(forwarded(&bench, Frame::udp(client(5000), vip())).source, first.source);
}

#[test]
fn a_node_that_refuses_is_heard_and_the_next_syn_begins_anew() {
    let bench = Bench::programmed(&desired(true, 1));
    let syn = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(forwarded(&bench, answer(&syn, RST | ACK)).destination, client(40_000));
    let early = Frame::tcp(client(40_000), vip(), ACK).build();
    assert_eq!(bench.run(&early).0, DROP, "there is no connection");
    establish(&bench, 40_000);
    assert_eq!((bench.entries("half_open"), bench.entries("connections")), (0, 1));
}

#[test]
fn a_flood_of_syns_evicts_no_established_connection() {
    let bench = Bench::programmed(&desired(true, 3));
    establish(&bench, 40_000);
    for source in 0..6000u32 {
        let from = SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + source), 1234);
        let (verdict, out) = bench.run(&Frame::tcp(from, vip(), SYN).build());
        // The nodes answer a flood, too; the forged clients never do.
        if verdict == TX {
            bench.run(&answer(&Frame::parse(&out), SYN | ACK).build());
        }
    }
    forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
    assert_eq!(bench.entries("connections"), 1);
}

#[test]
fn udp_flows_both_ways_with_and_without_a_checksum() {
    let bench = Bench::programmed(&desired(true, 2));
    for udp_checksum in [true, false] {
        let first = forwarded(&bench, Frame { udp_checksum, ..Frame::udp(client(5000), vip()) });
        assert_eq!((first.destination.port(), first.udp_checksum), (30081, udp_checksum));
        let back = forwarded(&bench, answer(&first, 0));
        assert_eq!((back.source, back.destination), (vip(), client(5000)));
    }
}

#[test]
fn connections_spread_over_all_nodes_and_no_two_share_a_tuple() {
    let bench = Bench::programmed(&desired(true, 3));
    let (mut nodes, mut tuples) = (BTreeSet::new(), BTreeSet::new());
    for port in 20_000..20_300 {
        let syn = forwarded(&bench, Frame::tcp(client(port), vip(), SYN));
        nodes.insert(*syn.destination.ip());
        assert!(tuples.insert((syn.source, syn.destination)), "two clients were given {syn:?}");
    }
    assert_eq!(nodes.len(), 3);
}

#[test]
fn an_established_connection_stays_with_a_node_that_left_the_table() {
    let mut bench = Bench::programmed(&desired(true, 2));
    let syn = establish(&bench, 40_000);
    bench.program(&without(2, &syn));
    let more = forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
    assert_eq!((more.source, more.destination), (syn.source, syn.destination));
    for port in 41_000..41_050 {
        let new = forwarded(&bench, Frame::tcp(client(port), vip(), SYN));
        assert_ne!(new.destination.ip(), syn.destination.ip(), "a new connection went to a node that left");
    }
}

#[test]
fn a_half_open_flow_on_a_node_that_left_is_tried_on_another() {
    let mut bench = Bench::programmed(&desired(true, 2));
    let syn = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    bench.program(&without(2, &syn));
    let again = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_ne!(again.destination.ip(), syn.destination.ip());
    let late = answer(&syn, SYN | ACK).build();
    assert_eq!(bench.run(&late).0, DROP, "the client is the other node's now");
}

#[test]
fn a_udp_flow_that_was_tried_on_another_node_stays_there_whatever_comes_late() {
    let mut bench = Bench::programmed(&desired(true, 2));
    let first = forwarded(&bench, Frame::udp(client(5000), vip()));
    bench.program(&without(2, &first));
    let moved = forwarded(&bench, Frame::udp(client(5000), vip()));
    assert_ne!(moved.destination.ip(), first.destination.ip());
    bench.run(&answer(&first, 0).build());
    assert_eq!(forwarded(&bench, Frame::udp(client(5000), vip())).destination, moved.destination);
}

#[test]
fn syns_that_nobody_answers_do_not_keep_a_connection_alive() {
    let bench = Bench::programmed(&desired(true, 1));
    establish(&bench, 40_000);
    for (seconds, half_open) in [(340, 0), (20, 1)] {
        bench.age("connections", seconds);
        forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
        assert_eq!(bench.entries("half_open"), half_open, "the last word was {seconds} s before the SYN");
    }
}

#[test]
fn a_flood_of_syns_takes_no_port_for_longer_than_a_handshake_needs() {
    let bench = Bench::programmed(&desired(true, 1));
    bench.change_settings(|s| s.ports = 4);
    let mut taken = BTreeSet::new();
    for port in 0..100 {
        let (verdict, out) = bench.run(&Frame::tcp(client(20_000 + port), vip(), SYN).build());
        if verdict == TX {
            taken.insert((Frame::parse(&out).source.port(), port));
        }
    }
    assert_eq!(taken.len(), 4);
    bench.age("half_open", 2);
    let syn = establish(&bench, 40_000);
    let robbed = taken.iter().find(|(source, _)| *source == syn.source.port()).unwrap().1;
    let late = Frame::tcp(client(20_000 + robbed), vip(), ACK).build();
    assert_eq!(bench.run(&late).0, DROP, "the tuple is another client's now");
}

#[test]
fn a_syn_follows_a_live_connection_but_opens_a_new_one_after_a_close() {
    let bench = Bench::programmed(&desired(true, 3));
    let syn = establish(&bench, 40_000);
    let stray = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(stray.source, syn.source, "the node decides what a SYN inside a connection means");

    forwarded(&bench, Frame::tcp(client(40_000), vip(), FIN | ACK));
    let stray = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(stray.source, syn.source, "the node may have more to send");
    forwarded(&bench, answer(&syn, FIN | ACK));
    let fresh = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_ne!(fresh.source.port(), syn.source.port(), "a closed flow's port rests");
    forwarded(&bench, answer(&fresh, SYN | ACK));
    let more = forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
    assert_eq!((more.source, more.destination), (fresh.source, fresh.destination));
}

#[test]
fn a_reset_closes_from_either_side() {
    for from_client in [true, false] {
        let bench = Bench::programmed(&desired(true, 1));
        let syn = establish(&bench, 40_000);
        let reset = if from_client { Frame::tcp(client(40_000), vip(), RST) } else { answer(&syn, RST) };
        forwarded(&bench, reset);
        assert_ne!(forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN)).source, syn.source);
    }
}

#[test]
fn an_idle_flow_expires_lazily_in_both_directions() {
    let bench = Bench::programmed(&desired(true, 1));
    let syn = establish(&bench, 40_000);
    bench.age("connections", 340);
    forwarded(&bench, answer(&syn, ACK));
    bench.age("connections", 360);
    assert_eq!(bench.run(&Frame::tcp(client(40_000), vip(), ACK).build()).0, DROP);
    assert_eq!(bench.run(&answer(&syn, ACK).build()).0, DROP);
    assert_eq!(bench.dropped("expired"), 2);
    forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
}

/// State, idle seconds, and whether a node's packet still reaches the client then.
#[test]
fn a_flow_that_closes_expires_sooner() {
    let table = [
        (0, 300, true),
        (0, 351, false),
        (FIN, 59, true),
        (FIN, 61, false),
        (RST, 9, true),
        (RST, 11, false),
    ];
    for (flags, idle, lives) in table {
        let bench = Bench::programmed(&desired(true, 1));
        let syn = establish(&bench, 40_000);
        forwarded(&bench, Frame::tcp(client(40_000), vip(), flags | ACK));
        bench.age("connections", idle);
        let verdict = bench.run(&answer(&syn, ACK).build()).0;
        assert_eq!(verdict == TX, lives, "flags {flags}, {idle} s");
    }
}

#[test]
fn a_udp_flow_moves_on_from_a_node_that_left_and_answers_no_more() {
    let mut bench = Bench::programmed(&desired(true, 2));
    let first = forwarded(&bench, Frame::udp(client(5000), vip()));
    forwarded(&bench, answer(&first, 0));
    bench.program(&without(2, &first));
    assert_eq!(forwarded(&bench, Frame::udp(client(5000), vip())).destination, first.destination);
    bench.age("connections", 6);
    let moved = forwarded(&bench, Frame::udp(client(5000), vip()));
    assert_ne!(moved.destination.ip(), first.destination.ip());
    forwarded(&bench, answer(&moved, 0));
    assert_eq!(forwarded(&bench, Frame::udp(client(5000), vip())).source, moved.source);
}

#[test]
fn a_closed_flows_port_is_lent_again_when_no_other_can_be_had() {
    let bench = Bench::programmed(&desired(true, 1));
    bench.change_settings(|s| s.ports = 1);
    let syn = establish(&bench, 40_000);
    let other = Frame::tcp(client(41_000), vip(), SYN);
    assert_eq!(bench.run(&other.build()).0, DROP, "in use");
    forwarded(&bench, Frame::tcp(client(40_000), vip(), RST));
    assert_eq!(bench.run(&other.build()).0, DROP, "closed just now");
    bench.age("connections", 2);
    assert_eq!(forwarded(&bench, other).source, syn.source);
    let late = Frame::tcp(client(40_000), vip(), ACK);
    assert_eq!(bench.run(&late.build()).0, DROP, "the tuple is another client's now");
}

#[test]
fn a_connection_to_a_target_that_is_forgotten_ends() {
    let mut bench = Bench::programmed(&desired(true, 1));
    establish(&bench, 40_000);
    let mut gone = desired(true, 1);
    gone.listeners.clear();
    bench.program(&gone);
    assert_eq!(bench.run(&Frame::tcp(client(40_000), vip(), ACK).build()).0, DROP);
    assert_eq!(bench.dropped("target_gone"), 1);
}

#[test]
fn replies_follow_a_client_to_its_new_link_address() {
    let bench = Bench::programmed(&desired(true, 1));
    let syn = establish(&bench, 40_000);
    let roamed = Mac([2, 0, 0, 0, 9, 9]);
    forwarded(&bench, Frame { from: roamed, ..Frame::tcp(client(40_000), vip(), ACK) });
    assert_eq!(forwarded(&bench, answer(&syn, ACK)).to, roamed);
}

#[test]
fn a_target_without_a_neighbour_drops_and_counts() {
    let mut wish = desired(true, 1);
    wish.listeners.values_mut().flat_map(|l| l.targets.values_mut()).for_each(|t| t.mac = None);
    let mut bench = Bench::programmed(&wish);
    assert_eq!(bench.run(&Frame::tcp(client(40_000), vip(), SYN).build()).0, DROP);
    assert_eq!(bench.dropped("no_neighbour"), 1);
    bench.program(&desired(true, 1));
    forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
}

#[test]
fn packets_bytes_and_flows_are_counted_per_listener_and_per_target() {
    let mut bench = Bench::programmed(&desired(true, 1));
    let syn = establish(&bench, 40_000);
    let length = Frame::tcp(client(1), vip(), 0).build().len() as u64;
    let observed = bench.backend.observe().unwrap();
    let target = observed.targets.iter().find(|(_, t)| t.address == syn.destination).unwrap();
    let counters = [
        bench.backend.listener_counters(observed.listeners[&target.1.listener].table).unwrap(),
        bench.backend.target_counters(*target.0).unwrap(),
    ];
    for counters in counters {
        assert_eq!((counters.packets, counters.bytes, counters.new_flows), (3, 3 * length, 1));
    }
}

#[test]
fn a_packet_without_a_connection_is_dropped_and_counted() {
    let bench = Bench::programmed(&desired(true, 3));
    assert_eq!(bench.run(&Frame::tcp(client(1), vip(), ACK).build()).0, DROP);
    let stray = Frame::tcp(SocketAddrV4::new(node_address(1), 30080), SocketAddrV4::new(VIP, 2000), ACK);
    assert_eq!(bench.run(&stray.build()).0, DROP);
    assert_eq!(bench.dropped("no_connection"), 2);
    assert_eq!(bench.run(&Frame::tcp(client(1), SocketAddrV4::new(VIP, 65_000), SYN).build()).0, DROP);
    assert_eq!(bench.dropped("no_listener"), 1);
}

#[test]
fn a_listener_without_targets_drops_and_counts() {
    let bench = Bench::programmed(&desired(true, 0));
    assert_eq!(bench.run(&Frame::tcp(client(1), vip(), SYN).build()).0, DROP);
    assert_eq!(bench.dropped("no_target"), 1);
}

#[test]
fn when_every_source_port_is_taken_a_new_flow_is_refused_not_mixed_up() {
    let bench = Bench::programmed(&desired(true, 1));
    bench.change_settings(|s| s.ports = 4);
    let mut ports = BTreeSet::new();
    for port in 0..200 {
        let (verdict, out) = bench.run(&Frame::tcp(client(20_000 + port), vip(), SYN).build());
        if verdict == TX {
            assert!(ports.insert(Frame::parse(&out).source.port()), "two flows share a port");
        }
    }
    assert_eq!(ports.len(), 4);
    assert_eq!(bench.dropped("no_source_port"), 196);
}

#[test]
fn a_source_port_is_never_a_listeners() {
    let mut bench = Bench::new();
    let mut both = desired(true, 1);
    let (mut id, listener) = both.listeners.first_key_value().map(|(k, v)| (*k, v.clone())).unwrap();
    id.port = 30_001;
    both.listeners.insert(id, listener);
    bench.program(&both);
    bench.change_settings(|s| (s.first_port, s.ports) = (30_000, 2));
    for port in 0..20 {
        let (verdict, out) = bench.run(&Frame::tcp(client(20_000 + port), vip(), SYN).build());
        assert!(verdict == DROP || Frame::parse(&out).source.port() == 30_000);
    }
}

#[test]
fn only_the_owner_takes_new_connections_but_existing_ones_go_on() {
    let mut bench = Bench::programmed(&desired(true, 1));
    establish(&bench, 40_000);
    bench.program(&desired(false, 1));
    assert_eq!(bench.run(&Frame::tcp(client(40_001), vip(), SYN).build()).0, DROP);
    assert_eq!(bench.dropped("not_owner"), 1);
    forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
}

#[test]
fn the_last_hop_is_dropped_not_forwarded() {
    let bench = Bench::programmed(&desired(true, 1));
    assert_eq!(bench.run(&Frame { ttl: 1, ..Frame::tcp(client(1), vip(), SYN) }.build()).0, DROP);
    assert_eq!(bench.dropped("ttl"), 1);
}
