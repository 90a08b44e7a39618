//! One try of a flow, and as many of them as it takes to know its verdict.
//!
//! A Service draws an endpoint at random, so a verdict is never known for certain. Tries go on
//! until so many in a row told nothing new that a further outcome is unlikely; where the other twin
//! saw one more, they go on until it is seen here too, or its absence is beyond doubt.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use service_model::Protocol;
use socket2::{Domain, Socket, Type};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use crate::verdict::{Outcome, Verdict};

/// Tries without news after which a verdict is taken to be whole, for each outcome seen.
const QUIET: usize = 3;

/// The same where the other twin saw more. With N equally likely outcomes, one is missed in N·32
/// tries once in e³² times.
const BEYOND_DOUBT: usize = 32;

/// Silent tries after which what else was seen elsewhere is not waited for: each takes all the patience.
const SILENCES: usize = 8;

/// Where a try goes, and from which address of the namespace it runs in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Call {
    pub source: Option<IpAddr>,
    pub destination: SocketAddr,
    pub protocol: Protocol,
}

/// Tries until the verdict is whole, beginning with what was seen before. `elsewhere` is what the
/// other twin saw of the flow.
pub(crate) async fn verdict(call: Call, patience: Duration, before: Verdict, elsewhere: &Verdict) -> Verdict {
    let Verdict(mut seen) = before;
    let mut quiet = 0;
    let mut silences = 0;
    loop {
        let outcome = call.once(patience).await;
        silences += usize::from(outcome == Outcome::Silent);
        if seen.insert(outcome) {
            quiet = 0;
        } else {
            quiet += 1;
        }
        let known = seen.union(&elsewhere.0).count();
        let enough = match () {
            // Silence costs time and has one cause.
            () if elsewhere.0.is_subset(&seen) => quiet >= QUIET * seen.len() || silences > 0,
            () => quiet >= BEYOND_DOUBT * known || silences == SILENCES,
        };
        if enough {
            return Verdict(seen);
        }
    }
}

impl Call {
    /// One try.
    pub(crate) async fn once(self, patience: Duration) -> Outcome {
        let answer = async {
            match self.protocol {
                Protocol::Udp => self.datagram().await,
                Protocol::Tcp | Protocol::Sctp => self.connection().await,
            }
        };
        match timeout(patience, answer).await {
            Err(_) => Outcome::Silent,
            Ok(Ok(line)) => parse(&line).unwrap_or(Outcome::Broken(line)),
            Ok(Err(error)) => of_error(&error),
        }
    }

    async fn connection(self) -> io::Result<String> {
        let socket = self.socket(Type::STREAM)?;
        // Ends with a reset: no port waits for stray packets afterwards.
        socket.set_linger(Some(Duration::ZERO))?;
        let mut stream = TcpSocket::from_std_stream(socket.into()).connect(self.destination).await?;
        let mut line = String::new();
        stream.read_to_string(&mut line).await?;
        Ok(line)
    }

    async fn datagram(self) -> io::Result<String> {
        let socket = UdpSocket::from_std(self.socket(Type::DGRAM)?.into())?;
        socket.connect(self.destination).await?;
        socket.send(b"who?").await?;
        let mut datagram = [0; 128];
        let length = socket.recv(&mut datagram).await?;
        Ok(String::from_utf8_lossy(&datagram[..length]).into_owned())
    }

    fn socket(self, kind: Type) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(self.destination), kind, None)?;
        socket.set_nonblocking(true)?;
        if let Some(source) = self.source {
            socket.bind(&SocketAddr::new(source, 0).into())?;
        }
        Ok(socket)
    }
}

fn parse(line: &str) -> Option<Outcome> {
    let (endpoint, client) = line.split_once(' ')?;
    Some(Outcome::Reached { endpoint: endpoint.parse().ok()?, client: client.parse().ok()? })
}

/// The router's refusal (ICMP administratively prohibited) is EHOSTUNREACH for IPv4 and EACCES for
/// IPv6; a packet that is dropped on its way out of this host fails with EPERM.
fn of_error(error: &io::Error) -> Outcome {
    match (error.kind(), error.raw_os_error()) {
        (ErrorKind::ConnectionRefused, _) => Outcome::Refused,
        (_, Some(libc::EPERM)) => Outcome::Silent,
        (_, Some(libc::EHOSTUNREACH | libc::EACCES)) => Outcome::Unserved,
        _ => Outcome::Broken(error.to_string()),
    }
}
