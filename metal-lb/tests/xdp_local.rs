//! What the host answers itself, what it leaves to the kernel, and ICMP errors, through
//! BPF_PROG_TEST_RUN.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::net::{Ipv4Addr, SocketAddrV4};

use metal_lb::desired::Mac;
use metal_lb::xdp::layout::PROBE_MAGIC;
use metal_lb_api::Generation;
use support::*;

#[test]
fn what_is_not_for_a_vip_passes_untouched() {
    let bench = Bench::programmed(&desired(true, 1));
    let other = SocketAddrV4::new(Ipv4Addr::new(172, 30, 0, 99), 80);
    let frame = Frame::tcp(client(1), other, SYN).build();
    assert_eq!(bench.run(&frame), (PASS, frame.clone()));
    let ipv6 = [&HOST_MAC.0[..], &CLIENT_MAC.0, &[0x86, 0xdd], &[0; 40]].concat();
    assert_eq!(bench.run(&ipv6).0, PASS);
    let flooded = Frame { to: Mac([2, 0, 0, 0, 0, 9]), ..Frame::tcp(client(1), vip(), SYN) }.build();
    assert_eq!(bench.run(&flooded), (PASS, flooded.clone()), "a frame to another host's link address");
}

#[test]
fn fragments_and_ip_options_to_a_vip_are_dropped_and_counted() {
    let bench = Bench::programmed(&desired(true, 1));
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
    let mut bench = Bench::programmed(&desired(true, 1));
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

fn announcement(address: Ipv4Addr, operation: u8, mac: Mac) -> Vec<u8> {
    let head = [&[0xff; 6][..], &mac.0, &[8, 6, 0, 1, 8, 0, 6, 4, 0, operation], &mac.0].concat();
    [&head[..], &address.octets(), &[0; 6], &address.octets()].concat()
}

/// Its process is gone, so nobody withdraws what it owned; the successor's announcement does.
#[test]
fn a_program_that_nobody_controls_gives_an_address_up_to_its_successor() {
    let successor = Mac([2, 0, 0, 0, 9, 9]);
    for operation in [1, 2] {
        let bench = Bench::programmed(&desired(true, 1));
        let answers = |bench: &Bench| bench.run(&arp_request(VIP, CLIENT)).0 == TX;
        bench.beat(Generation { term: 1, counter: 1 });
        assert_eq!(bench.run(&announcement(VIP, operation, successor)).0, PASS);
        assert!(answers(&bench), "the process lives: it decides");
        bench.age("liveness", 9);
        bench.run(&announcement(VIP, operation, successor));
        assert!(answers(&bench), "it may be restarting");
        bench.age("liveness", 2);
        for mac in [HOST_MAC, successor] {
            assert!(answers(&bench), "nobody else has it");
            assert_eq!(bench.run(&announcement(VIP, operation, mac)).0, PASS);
        }
        assert!(!answers(&bench));
        assert_eq!(bench.run(&Frame::tcp(client(1), vip(), SYN).build()).0, DROP);
        assert_eq!(bench.dropped("not_owner"), 1);
    }
}

#[test]
fn echo_is_answered_for_owned_addresses() {
    let bench = Bench::programmed(&desired(true, 1));
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

fn probe(kind: u32) -> Vec<u8> {
    let mut frame = Frame::udp(client(7947), SocketAddrV4::new(OWN_ADDRESS, 7947)).build();
    frame.truncate(42);
    frame.extend(PROBE_MAGIC.to_be_bytes());
    frame.extend(kind.to_be_bytes());
    frame.extend(77u64.to_be_bytes());
    frame.extend([0; 24]);
    frame
}

#[test]
fn a_host_whose_control_process_never_beat_says_so() {
    let bench = Bench::programmed(&desired(true, 1));
    let (verdict, out) = bench.run(&probe(1));
    assert_eq!((verdict, &out[74..78]), (TX, &[0xff; 4][..]));
}

#[test]
fn a_peers_probe_is_answered_with_the_age_of_the_control_process() {
    let bench = Bench::programmed(&desired(true, 1));
    bench.beat(Generation { term: 3, counter: 9 });
    let frame = probe(1);
    let (verdict, out) = bench.run(&frame);
    assert_eq!(verdict, TX);
    let field = |at: usize| u64::from_be_bytes(out[at..at + 8].try_into().unwrap());
    assert_eq!(out[46..50], 2u32.to_be_bytes());
    assert_eq!((field(50), field(58), field(66)), (77, 3, 9));
    assert!(u32::from_be_bytes(out[74..78].try_into().unwrap()) < 10_000, "milliseconds since the beat");
    assert_eq!(out[78..82], 1u32.to_be_bytes(), "the slot of the host that answers");
    assert_eq!(bench.run(&probe(2)).0, PASS, "answers go to the socket");

    let mut elsewhere = desired(true, 1);
    elsewhere.probe_address = Some(SocketAddrV4::new(OWN_ADDRESS, 7000));
    let mut bench = bench;
    bench.program(&elsewhere);
    assert_eq!(bench.run(&frame).0, PASS, "the document says at which port");
}

/// An ICMP error that quotes a packet, from a router at 172.30.0.1.
fn icmp_error(about: &Frame) -> Vec<u8> {
    let quoted = &about.build()[14..42];
    let mut icmp = [&[3, 4, 0, 0, 0, 0, 0x05, 0x78][..], quoted].concat();
    let sum = checksum(&icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    let mut ip = vec![0x45, 0, 0, 20 + icmp.len() as u8, 0, 1, 0, 0, 64, 1, 0, 0, 172, 30, 0, 1];
    ip.extend(about.source.ip().octets());
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&HOST_MAC.0[..], &[2, 0, 0, 0, 0, 7], &[8, 0], &ip, &icmp].concat()
}

/// Where a returned error goes and what it quotes; all its checksums are checked.
fn quoted(frame: &[u8]) -> (Mac, Ipv4Addr, SocketAddrV4, SocketAddrV4) {
    assert_eq!(checksum(&frame[14..34]), 0, "outer IP");
    assert_eq!(checksum(&frame[34..]), 0, "ICMP");
    assert_eq!(checksum(&frame[42..62]), 0, "quoted IP");
    let address = |at: usize| Ipv4Addr::from(<[u8; 4]>::try_from(&frame[at..at + 4]).unwrap());
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let (source, destination) =
        (SocketAddrV4::new(address(54), port(62)), SocketAddrV4::new(address(58), port(64)));
    (Mac(frame[..6].try_into().unwrap()), address(30), source, destination)
}

#[test]
fn an_icmp_error_goes_to_the_end_that_sent_the_packet() {
    let bench = Bench::programmed(&desired(true, 3));
    let to_node = establish(&bench, 40_000);
    let (verdict, out) = bench.run(&icmp_error(&to_node));
    assert_eq!(verdict, TX);
    assert_eq!(quoted(&out), (CLIENT_MAC, CLIENT, client(40_000), vip()));

    let to_client = Frame::tcp(vip(), client(40_000), ACK);
    let (verdict, out) = bench.run(&icmp_error(&to_client));
    assert_eq!(verdict, TX);
    assert_eq!(quoted(&out), (to_node.to, *to_node.destination.ip(), to_node.destination, to_node.source));
}

/// A node refuses so when the Service has no endpoints.
#[test]
fn an_icmp_error_about_the_first_packet_reaches_the_client() {
    let bench = Bench::programmed(&desired(true, 1));
    for first in [Frame::tcp(client(40_000), vip(), SYN), Frame::udp(client(5000), vip())] {
        let to_node = forwarded(&bench, first);
        let (verdict, out) = bench.run(&icmp_error(&to_node));
        assert_eq!(verdict, TX, "{first:?}");
        assert_eq!(quoted(&out), (CLIENT_MAC, CLIENT, first.source, vip()));
    }
}

#[test]
fn an_icmp_error_about_nothing_of_ours_is_passed_and_counted() {
    let bench = Bench::programmed(&desired(true, 1));
    assert_eq!(bench.run(&icmp_error(&Frame::tcp(vip(), client(1), ACK))).0, PASS);
    assert_eq!(bench.dropped("icmp_passed"), 1);
}
