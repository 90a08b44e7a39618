//! Servers that say who they are and whom they see, and clients that ask.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use service_model::Protocol;

use crate::hosts::Host;

/// Longer than any answer takes on this machine, and how long a dropped packet is waited for.
const PATIENCE: Duration = Duration::from_secs(5);
const SILENCE: Duration = Duration::from_millis(700);

/// A pod's server on TCP and UDP port 8080, IPv4 and IPv6. Its answer: its name, the client it sees,
/// and on UDP the question: who asks again can tell a late answer.
pub(crate) struct Server {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// What came of an attempt.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Reply {
    From { pod: String, seen: IpAddr },
    Refused,
    Silence,
}

impl Server {
    pub(crate) fn start(host: &Host) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let any: [IpAddr; 2] = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
        let mut threads = Vec::new();
        for address in any {
            let socket = host.run(|| bound(address));
            let (name, stopped) = (host.name, stop.clone());
            threads.push(std::thread::spawn(move || serve_tcp(&socket.0, name, &stopped)));
            let stopped = stop.clone();
            threads.push(std::thread::spawn(move || serve_udp(&socket.1, name, &stopped)));
        }
        Self { stop, threads }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A server that panicked shows in what the clients saw.
            let _ = thread.join();
        }
    }
}

fn bound(address: IpAddr) -> (TcpListener, UdpSocket) {
    let socket = |kind| {
        let domain = if address.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
        let socket = socket2::Socket::new(domain, kind, None).unwrap();
        if address.is_ipv6() {
            socket.set_only_v6(true).unwrap();
        }
        // How often a server looks whether it is stopped.
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket.bind(&SocketAddr::new(address, 8080).into()).unwrap();
        socket
    };
    let (tcp, udp) = (socket(socket2::Type::STREAM), socket(socket2::Type::DGRAM));
    tcp.listen(128).unwrap();
    (tcp.into(), udp.into())
}

/// What the socket yields next, until the server is stopped.
fn next<T>(stop: &AtomicBool, mut receive: impl FnMut() -> std::io::Result<T>) -> Option<T> {
    while !stop.load(Ordering::Relaxed) {
        match receive() {
            Ok(received) => return Some(received),
            // The socket's timeout, or an ICMP error about a client that left.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::ConnectionRefused) => {}
            Err(error) => panic!("a server's socket: {error}"),
        }
    }
    None
}

fn serve_tcp(listener: &TcpListener, name: &str, stop: &AtomicBool) {
    while let Some((mut stream, client)) = next(stop, || listener.accept()) {
        // The client may be gone: its loss.
        let _ = stream.write_all(format!("{name} {}", client.ip()).as_bytes());
    }
}

fn serve_udp(socket: &UdpSocket, name: &str, stop: &AtomicBool) {
    let mut question = [0; 16];
    while let Some((length, client)) = next(stop, || socket.recv_from(&mut question)) {
        let question = String::from_utf8_lossy(&question[..length]);
        let _ = socket.send_to(format!("{name} {} {question}", client.ip()).as_bytes(), client);
    }
}

/// One new connection (or datagram and its answer) from `host`.
pub(crate) fn ask(host: &Host, protocol: Protocol, to: SocketAddr) -> Reply {
    ask_patiently(host, protocol, to, PATIENCE)
}

/// What connections from the host's addresses to the frontends are answered: by whom, in order.
pub(crate) fn ask_from(host: &Host, protocol: Protocol, calls: &[(IpAddr, SocketAddr)]) -> Vec<String> {
    let ask = |(from, to): &(IpAddr, SocketAddr)| {
        if protocol == Protocol::Udp {
            return ask_udp(*from, *to, PATIENCE);
        }
        let domain = if from.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
        let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None)?;
        // No port waits for stray packets afterwards.
        socket.set_linger(Some(Duration::ZERO))?;
        socket.bind(&SocketAddr::new(*from, 0).into())?;
        socket.connect_timeout(&(*to).into(), PATIENCE)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut answer = String::new();
        TcpStream::from(socket).read_to_string(&mut answer)?;
        Ok(answer)
    };
    let pod = |call| {
        let answer: std::io::Result<String> = ask(call);
        answer.unwrap_or_else(|error| panic!("{call:?}: {error}")).split(' ').next().unwrap().to_owned()
    };
    host.run(|| calls.iter().map(pod).collect())
}

/// As [`ask`], where no answer is expected.
pub(crate) fn ask_in_vain(host: &Host, protocol: Protocol, to: SocketAddr) -> Reply {
    ask_patiently(host, protocol, to, SILENCE)
}

fn ask_patiently(host: &Host, protocol: Protocol, to: SocketAddr, patience: Duration) -> Reply {
    let answer = host.run(|| match protocol {
        Protocol::Tcp => ask_tcp(to, patience),
        Protocol::Udp => {
            let any = [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()];
            ask_udp(any[usize::from(to.is_ipv6())], to, patience)
        }
        Protocol::Sctp => unreachable!("no server speaks SCTP"),
    });
    match answer {
        Ok(text) => {
            let mut words = text.split(' ');
            let (pod, seen) = (words.next().unwrap(), words.next().unwrap());
            Reply::From { pod: pod.to_owned(), seen: seen.parse().unwrap() }
        }
        // A datagram of this host that the output hook refuses does not even leave `send`.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionRefused | ErrorKind::PermissionDenied) => {
            Reply::Refused
        }
        Err(error) if matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock) => Reply::Silence,
        Err(error) => panic!("{} to {to}: {error}", host.name),
    }
}

fn ask_tcp(to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&to, patience)?;
    stream.set_read_timeout(Some(patience))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

fn ask_udp(from: IpAddr, to: SocketAddr, patience: Duration) -> std::io::Result<String> {
    let socket = UdpSocket::bind((from, 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(patience))?;
    socket.send(b"who?")?;
    let mut answer = [0; 128];
    let length = socket.recv(&mut answer)?;
    Ok(String::from_utf8_lossy(&answer[..length]).into_owned())
}
