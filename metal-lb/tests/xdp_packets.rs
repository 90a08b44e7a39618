//! Packet in, packet out: each rule of the XDP program through BPF_PROG_TEST_RUN.

mod support;

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb::desired::{Desired, Mac};
use support::*;

fn client(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(CLIENT, port)
}

fn vip() -> SocketAddrV4 {
    SocketAddrV4::new(VIP, 80)
}

fn programmed(owned: bool, nodes: u8) -> Bench {
    let mut bench = Bench::new();
    bench.program(&desired(owned, nodes));
    bench
}

/// Sends a frame that must be forwarded.
fn forwarded(bench: &Bench, frame: Frame) -> Frame {
    let (verdict, out) = bench.run(&frame.build());
    assert_eq!(verdict, TX, "{frame:?}");
    Frame::parse(&out)
}

/// The node's answer to what it was sent.
fn answer(sent: &Frame, flags: u8) -> Frame {
    Frame { to: HOST_MAC, from: sent.to, source: sent.destination, destination: sent.source, flags, ttl: 64, ..*sent }
}

/// A handshake up to the client's ACK; what the node saw of the SYN.
fn establish(bench: &Bench, port: u16) -> Frame {
    let syn = forwarded(bench, Frame::tcp(client(port), vip(), SYN));
    forwarded(bench, answer(&syn, SYN | ACK));
    forwarded(bench, Frame::tcp(client(port), vip(), ACK));
    syn
}

#[test]
fn a_syn_goes_to_a_node_from_the_vip_and_the_answer_comes_back_from_the_vip() {
    let bench = programmed(true, 3);
    let syn = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(*syn.source.ip(), VIP);
    assert!((1024..1024 + 8064).contains(&syn.source.port()), "{syn:?}");
    assert_eq!((syn.destination.port(), syn.ttl, syn.from), (30080, 63, HOST_MAC));
    assert_eq!(syn.to, Mac([2, 0, 0, 0, 1, syn.destination.ip().octets()[3] - 10]));

    let back = forwarded(&bench, answer(&syn, SYN | ACK));
    assert_eq!((back.source, back.destination, back.to), (vip(), client(40_000), CLIENT_MAC));
    let ack = forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
    assert_eq!((ack.source, ack.destination), (syn.source, syn.destination), "one flow, one translation");
}

#[test]
fn a_flow_is_half_open_until_the_node_answers() {
    let bench = programmed(true, 1);
    let syn = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    let again = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(again.source, syn.source, "a retransmitted SYN is the same connection");
    assert_eq!((bench.entries("half_reverse"), bench.entries("reverse")), (1, 0));
    forwarded(&bench, answer(&syn, SYN | ACK));
    assert_eq!((bench.entries("half_reverse"), bench.entries("reverse")), (0, 1));
    assert_eq!((bench.entries("half_forward"), bench.entries("forward")), (0, 1));
}

#[test]
fn a_flood_of_syns_evicts_no_established_connection() {
    let bench = programmed(true, 3);
    establish(&bench, 40_000);
    for source in 0..6000u32 {
        let from = SocketAddrV4::new(Ipv4Addr::from(0x0a00_0000 + source), 1234);
        bench.run(&Frame::tcp(from, vip(), SYN).build());
    }
    forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
}

#[test]
fn udp_flows_both_ways_with_and_without_a_checksum() {
    let bench = programmed(true, 2);
    for udp_checksum in [true, false] {
        let first = forwarded(&bench, Frame { udp_checksum, ..Frame::udp(client(5000), vip()) });
        assert_eq!((first.destination.port(), first.udp_checksum), (30081, udp_checksum));
        let back = forwarded(&bench, answer(&first, 0));
        assert_eq!((back.source, back.destination), (vip(), client(5000)));
    }
}

#[test]
fn connections_spread_over_all_nodes_and_no_two_share_a_tuple() {
    let bench = programmed(true, 3);
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
    let mut bench = programmed(true, 2);
    let syn = establish(&bench, 40_000);
    let gone = format!("node-{}", syn.destination.ip().octets()[3] - 10);
    let mut less = desired(true, 2);
    for listener in less.listeners.values_mut() {
        listener.targets.remove(&gone);
    }
    bench.program(&less);
    let more = forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
    assert_eq!((more.source, more.destination), (syn.source, syn.destination));
    for port in 41_000..41_050 {
        let new = forwarded(&bench, Frame::tcp(client(port), vip(), SYN));
        assert_ne!(new.destination.ip(), syn.destination.ip(), "a new connection went to a node that left");
    }
}

#[test]
fn a_half_open_flow_on_a_node_that_left_is_tried_on_another() {
    let mut bench = programmed(true, 2);
    let syn = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    let mut less = desired(true, 2);
    let gone = format!("node-{}", syn.destination.ip().octets()[3] - 10);
    less.listeners.values_mut().for_each(|l| drop(l.targets.remove(&gone)));
    bench.program(&less);
    let again = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_ne!(again.destination.ip(), syn.destination.ip());
}

#[test]
fn a_syn_follows_a_live_connection_but_opens_a_new_one_after_a_close() {
    let bench = programmed(true, 3);
    let syn = establish(&bench, 40_000);
    let stray = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_eq!(stray.source, syn.source, "the node decides what a SYN inside a connection means");

    forwarded(&bench, Frame::tcp(client(40_000), vip(), FIN | ACK));
    forwarded(&bench, answer(&syn, FIN | ACK));
    let fresh = forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN));
    assert_ne!(fresh.source.port(), syn.source.port(), "a closed flow's port rests");
}

#[test]
fn a_reset_closes_from_either_side() {
    for from_client in [true, false] {
        let bench = programmed(true, 1);
        let syn = establish(&bench, 40_000);
        let reset = if from_client { Frame::tcp(client(40_000), vip(), RST) } else { answer(&syn, RST) };
        forwarded(&bench, reset);
        assert_ne!(forwarded(&bench, Frame::tcp(client(40_000), vip(), SYN)).source, syn.source);
    }
}

#[test]
fn an_idle_flow_expires_lazily_in_both_directions() {
    let bench = programmed(true, 1);
    let syn = establish(&bench, 40_000);
    bench.age("reverse", 400);
    assert_eq!(bench.run(&Frame::tcp(client(40_000), vip(), ACK).build()).0, DROP);
    assert_eq!(bench.run(&answer(&syn, ACK).build()).0, DROP);
    assert_eq!(bench.dropped("no_connection"), 2);
}

#[test]
fn a_packet_without_a_connection_is_dropped_and_counted() {
    let bench = programmed(true, 3);
    assert_eq!(bench.run(&Frame::tcp(client(1), vip(), ACK).build()).0, DROP);
    let stray = Frame::tcp(SocketAddrV4::new(node_address(1), 30080), SocketAddrV4::new(VIP, 2000), ACK);
    assert_eq!(bench.run(&stray.build()).0, DROP);
    assert_eq!(bench.dropped("no_connection"), 2);
    assert_eq!(bench.run(&Frame::tcp(client(1), SocketAddrV4::new(VIP, 65_000), SYN).build()).0, DROP);
    assert_eq!(bench.dropped("no_listener"), 1);
}

#[test]
fn a_listener_without_targets_drops_and_counts() {
    let bench = programmed(true, 0);
    assert_eq!(bench.run(&Frame::tcp(client(1), vip(), SYN).build()).0, DROP);
    assert_eq!(bench.dropped("no_target"), 1);
}

#[test]
fn when_every_source_port_is_taken_a_new_flow_is_refused_not_mixed_up() {
    let bench = programmed(true, 1);
    bench.set_control(|c| c.port_count = 4);
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
    id.port = 1025;
    both.listeners.insert(id, listener);
    bench.program(&both);
    bench.set_control(|c| c.port_count = 2);
    for port in 0..20 {
        let (verdict, out) = bench.run(&Frame::tcp(client(20_000 + port), vip(), SYN).build());
        assert!(verdict == DROP || Frame::parse(&out).source.port() == 1024);
    }
}

#[test]
fn only_the_owner_takes_new_connections_but_existing_ones_go_on() {
    let mut bench = programmed(true, 1);
    establish(&bench, 40_000);
    bench.program(&desired(false, 1));
    assert_eq!(bench.run(&Frame::tcp(client(40_001), vip(), SYN).build()).0, DROP);
    assert_eq!(bench.dropped("not_owner"), 1);
    forwarded(&bench, Frame::tcp(client(40_000), vip(), ACK));
}

#[test]
fn what_is_not_for_a_vip_passes_untouched() {
    let bench = programmed(true, 1);
    let other = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 99), 80);
    let frame = Frame::tcp(client(1), other, SYN).build();
    assert_eq!(bench.run(&frame), (PASS, frame.clone()));
    let ipv6 = [&HOST_MAC.0[..], &CLIENT_MAC.0, &[0x86, 0xdd], &[0; 40]].concat();
    assert_eq!(bench.run(&ipv6).0, PASS);
}

#[test]
fn fragments_and_ip_options_to_a_vip_are_dropped_and_counted() {
    let bench = programmed(true, 1);
    let mut fragment = Frame::tcp(client(1), vip(), SYN).build();
    fragment[20] = 0x20;
    assert_eq!(bench.run(&fragment).0, DROP);
    let mut options = Frame::tcp(client(1), vip(), SYN).build();
    options[14] = 0x46;
    assert_eq!(bench.run(&options).0, DROP);
    assert_eq!((bench.dropped("fragment"), bench.dropped("ip_options")), (1, 1));
}

fn arp_request(address: Ipv4Addr, sender: Ipv4Addr) -> Vec<u8> {
    let head = [&[0xff; 6][..], &CLIENT_MAC.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &CLIENT_MAC.0].concat();
    [&head[..], &sender.octets(), &[0; 6], &address.octets()].concat()
}

#[test]
fn arp_is_answered_for_owned_addresses_only() {
    let mut bench = programmed(true, 1);
    let (verdict, out) = bench.run(&arp_request(VIP, CLIENT));
    assert_eq!(verdict, TX);
    assert_eq!((&out[..6], &out[6..12], &out[20..22]), (&CLIENT_MAC.0[..], &HOST_MAC.0[..], &[0, 2][..]));
    assert_eq!((&out[22..28], &out[28..32]), (&HOST_MAC.0[..], &VIP.octets()[..]));
    assert_eq!((&out[32..38], &out[38..42]), (&CLIENT_MAC.0[..], &CLIENT.octets()[..]));

    assert_eq!(bench.run(&arp_request(CLIENT, VIP)).0, PASS, "not ours");
    assert_eq!(bench.run(&arp_request(VIP, VIP)).0, PASS, "an announcement asks nothing");
    bench.program(&desired(false, 1));
    assert_eq!(bench.run(&arp_request(VIP, CLIENT)).0, PASS, "another host owns it");
}

#[test]
fn echo_is_answered_for_owned_addresses() {
    let bench = programmed(true, 1);
    let mut frame = Frame::udp(client(0), vip()).build();
    frame[23] = 1;
    let icmp = [8, 0, 0, 0, 0x12, 0x34, 0, 1, b'p', b'i', b'n', b'g', b'!'];
    frame[34..47].copy_from_slice(&icmp);
    let sum = checksum(&frame[34..47]);
    frame[36..38].copy_from_slice(&sum.to_be_bytes());
    let (verdict, out) = bench.run(&frame);
    assert_eq!((verdict, out[34], checksum(&out[34..47])), (TX, 0, 0));
    assert_eq!((&out[26..30], &out[30..34]), (&VIP.octets()[..], &CLIENT.octets()[..]));
}

#[test]
fn a_peers_probe_is_answered_with_the_age_of_the_control_process() {
    let bench = Bench::new();
    bench.set_control(|c| (c.heartbeat_ns, c.generation_term, c.generation_counter) = (1, 3, 9));
    let own = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 21), 7947);
    let mut frame = Frame::udp(client(7947), own).build();
    frame.truncate(42);
    frame.extend(0x464c_5042u32.to_be_bytes());
    frame.extend(1u32.to_be_bytes());
    frame.extend(77u64.to_be_bytes());
    frame.extend([0; 24]);
    let (verdict, out) = bench.run(&frame);
    assert_eq!(verdict, TX);
    let field = |at: usize| u64::from_be_bytes(out[at..at + 8].try_into().unwrap());
    assert_eq!(out[46..50], 2u32.to_be_bytes());
    assert_eq!((field(50), field(58), field(66)), (77, 3, 9));
    assert!(u32::from_be_bytes(out[74..78].try_into().unwrap()) > 0, "the age of a heartbeat at boot");
    frame[46..50].copy_from_slice(&2u32.to_be_bytes());
    assert_eq!(bench.run(&frame).0, PASS, "answers go to the socket");
}

#[test]
fn the_last_hop_is_dropped_not_forwarded() {
    let bench = programmed(true, 1);
    assert_eq!(bench.run(&Frame { ttl: 1, ..Frame::tcp(client(1), vip(), SYN) }.build()).0, DROP);
    assert_eq!(bench.dropped("ttl"), 1);
}

#[test]
fn a_service_that_is_gone_leaves_nothing_but_its_counters() {
    let mut bench = programmed(true, 3);
    bench.program(&Desired::default());
    for map in ["vips", "listeners"] {
        assert_eq!(bench.entries(map), 0, "{map}");
    }
    assert_eq!(bench.backend.observe().unwrap(), metal_lb::observed::Observed::default());
}
