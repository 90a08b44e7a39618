//! The node's connection table is full: the kernel drops what is new, whoever programs it.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::process::{Command, Stdio};

use super::*;

/// The kernel compares every namespace's own count with the one limit, which only the host may set.
fn fill_connection_table(node: &Host) {
    let read = |name: &str| -> usize {
        let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).unwrap();
        text.trim().parse().unwrap()
    };
    node.run(|| {
        let mut commands = String::new();
        for number in 0..=read("nf_conntrack_max") {
            let (host, port) = (number / 50_000, 1024 + number % 50_000);
            writeln!(
                commands,
                "-I -p tcp -s 192.0.2.{host} -d {NOWHERE} --sport {port} --dport 80 --state ESTABLISHED -u ASSURED -t 3600"
            )
            .unwrap();
        }
        let mut conntrack = Command::new("conntrack")
            .args(["-R", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("conntrack is installed: scripts/setup");
        // It ends early, at the first connection that does not fit.
        let _ = conntrack.stdin.take().unwrap().write_all(commands.as_bytes());
        conntrack.wait().unwrap();
        assert_eq!(read("nf_conntrack_count"), read("nf_conntrack_max"));
    });
}

const NOWHERE: &str = "198.51.100.1";

fn empty_connection_table(node: &Host) {
    let done = node.run(|| Command::new("conntrack").args(["-D", "-d", NOWHERE]).output().unwrap());
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_full_connection_table_hinders_no_commit_and_nothing_established() {
    let ground = Ground::new();
    let [a, b, c] = &ground.pods;
    let _servers = [a, b].map(Server::start);
    let echo = a.run(|| TcpListener::bind((a.v4, 9090)).unwrap());
    let echoing = Shop { endpoints: vec![a], target_port: 9090, ..Shop::default() };
    let mut engine = program(&ground, &echoing);
    let vip = to(echoing.cluster_ips()[0], 80);
    let mut client = c.run(|| std::net::TcpStream::connect(vip).unwrap());
    let (mut server, _) = echo.accept().unwrap();

    fill_connection_table(&ground.node);
    reprogram(&ground, &mut engine, &Shop { endpoints: vec![b], ..Shop::default() });
    client.write_all(b"still there?").unwrap();
    let mut heard = [0; 12];
    server.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"still there?");
    assert_eq!(ask_in_vain(c, Protocol::Tcp, vip), Reply::Silence, "the table has no room");
    let foretold = foretold(&ground, c, Protocol::Tcp, vip);
    let there: Vec<_> = foretold
        .iter()
        .map(|fate| matches!(fate, Fate::Endpoint { target, .. } if target.ip == b.v4))
        .collect();
    assert_eq!(there, [true], "the change is in force: {foretold:?}");

    empty_connection_table(&ground.node);
    assert_eq!(answers(&ground, c, Protocol::Tcp, vip).0, names(&[b]), "once there is room");
}
