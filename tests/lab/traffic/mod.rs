//! Clients: what a person or a program outside, or in a pod, sees of a Service.

mod curler;
mod dialogue;
mod heartbeat;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::StreamExt;
use socket2::{Domain, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

pub use curler::{Curler, Story};
pub use dialogue::Dialogue;
pub use heartbeat::{Heartbeat, Pulse};

use crate::answer::Answer;
use crate::netns::Netns;
use crate::wait;

/// How long a client waits for a whole request. Longer than the kernel's first retransmissions,
/// so that only what a user would call broken counts as a failure.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// How long a change may take to reach the nodes on a loaded machine.
const SETTLE: Duration = Duration::from_secs(10);

/// Someone in a namespace who opens connections.
#[derive(Debug, Clone)]
pub struct Client {
    netns: Arc<Netns>,
    source: Option<IpAddr>,
}

/// The answers to several requests.
#[derive(Debug, Default)]
pub struct Answers {
    pub all: Vec<Answer>,
    pub failures: Vec<String>,
}

impl Client {
    pub fn in_netns(netns: Arc<Netns>) -> Self {
        Self { netns, source: None }
    }

    /// The same client, always speaking from this address.
    #[must_use]
    pub fn from_address(&self, source: IpAddr) -> Self {
        Self { source: Some(source), ..self.clone() }
    }

    /// One HTTP request on a connection of its own.
    ///
    /// # Errors
    /// When there is no good answer in time; with the step that failed.
    pub async fn get(&self, target: SocketAddr) -> Result<Answer> {
        let body = self.request(target, "GET", "/").await?;
        serde_json::from_str(&body).with_context(|| format!("{target} said {body:?}"))
    }

    /// One request on a connection of its own; the body of its answer.
    ///
    /// # Errors
    /// When there is no answer in time, or its status is not 200.
    pub async fn request(&self, target: SocketAddr, method: &str, path: &str) -> Result<String> {
        let exchange = async {
            let mut stream = connect(&self.netns, self.source, target).await.context("connecting")?;
            let request = format!("{method} {path} HTTP/1.1\r\nHost: {target}\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).await.context("sending the request")?;
            let mut response = String::new();
            stream.read_to_string(&mut response).await.context("reading the answer")?;
            let (head, body) = response.split_once("\r\n\r\n").context("the answer ended early")?;
            ensure!(
                head.starts_with("HTTP/1.1 200 "),
                "answered {}",
                head.lines().next().unwrap_or_default()
            );
            Ok(body.to_owned())
        };
        timeout(PATIENCE, exchange)
            .await
            .with_context(|| format!("no answer from {target} within {PATIENCE:?}"))?
    }

    /// The whole answer to a GET, whatever its status: its head, and its body in one piece.
    ///
    /// # Errors
    /// When there is no answer in time.
    pub async fn answer(&self, target: SocketAddr, path: &str) -> Result<(String, String)> {
        let exchange = async {
            let mut stream = connect(&self.netns, self.source, target).await.context("connecting")?;
            // HTTP/1.0 knows no chunks.
            let request = format!("GET {path} HTTP/1.0\r\nHost: {target}\r\n\r\n");
            stream.write_all(request.as_bytes()).await.context("sending the request")?;
            let mut response = String::new();
            stream.read_to_string(&mut response).await.context("reading the answer")?;
            let (head, body) = response.split_once("\r\n\r\n").context("the answer ended early")?;
            Ok((head.to_owned(), body.to_owned()))
        };
        timeout(PATIENCE, exchange)
            .await
            .with_context(|| format!("no answer from {target} within {PATIENCE:?}"))?
    }

    /// That many HTTP requests, each on a new connection, a few at a time.
    pub async fn http(&self, target: SocketAddr, count: usize) -> Answers {
        let requests = futures::stream::iter((0..count).map(|_| self.get(target)));
        gather(requests.buffer_unordered(8)).await
    }

    /// Waits until the target answers at all, and then asks that often, with every request a success.
    ///
    /// # Errors
    /// When it does not answer in time, or a later request fails.
    pub async fn http_eventually(&self, target: SocketAddr, count: usize) -> Result<Answers> {
        wait::until(&format!("{target} answers"), SETTLE, async || self.get(target).await).await?;
        self.http(target, count).await.complete()
    }

    /// Asks that often, again and again until so many pods answer and no request fails: a ready
    /// pod is in the API before it is in the nodes' rules.
    ///
    /// # Errors
    /// With the last answers, when that does not happen in time.
    pub async fn http_spread(&self, target: SocketAddr, count: usize, pods: usize) -> Result<Answers> {
        wait::until(&format!("{target} is answered by {pods} pods"), SETTLE, async || {
            let answers = self.http(target, count).await.complete()?;
            ensure!(answers.by_pod().len() == pods, "answered by {answers}");
            Ok(answers)
        })
        .await
    }

    /// That many datagrams, each from a new port, and their answers.
    pub async fn udp(&self, target: SocketAddr, count: usize) -> Answers {
        let requests = futures::stream::iter((0..count).map(|_| self.ask_by_udp(target, "hello")));
        gather(requests.buffer_unordered(8)).await
    }

    /// One datagram and its answer.
    ///
    /// # Errors
    /// When none comes in time, or the port is closed.
    pub async fn ask_by_udp(&self, target: SocketAddr, text: &str) -> Result<Answer> {
        let socket = udp_socket(&self.netns, self.source, target)?;
        socket.connect(target).await?;
        socket.send(text.as_bytes()).await.context("sending the datagram")?;
        let mut datagram = vec![0; 4096];
        let length = timeout(PATIENCE, socket.recv(&mut datagram))
            .await
            .with_context(|| format!("no datagram from {target} within {PATIENCE:?}"))?
            .with_context(|| format!("waiting for a datagram from {target}"))?;
        serde_json::from_slice(&datagram[..length]).context("reading the datagram")
    }

    /// Datagrams that all leave from one port.
    ///
    /// # Errors
    /// When there is no socket to be had.
    pub async fn converse(&self, target: SocketAddr) -> Result<Dialogue> {
        Dialogue::start(udp_socket(&self.netns, self.source, target)?, target).await
    }

    /// Requests again and again, each on a new connection, until the story is asked for.
    pub fn curl_along(&self, target: SocketAddr) -> Curler {
        Curler::start(self.clone(), target)
    }

    /// One connection that stays open and is used all the time.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub async fn stay_connected(&self, target: SocketAddr) -> Result<Heartbeat> {
        let stream = timeout(PATIENCE, connect(&self.netns, self.source, target))
            .await
            .with_context(|| format!("connecting to {target} took longer than {PATIENCE:?}"))??;
        Heartbeat::start(stream).await
    }
}

impl Answers {
    /// How many answers came from each pod.
    pub fn by_pod(&self) -> BTreeMap<&str, usize> {
        self.all.iter().fold(BTreeMap::new(), |mut counts, answer| {
            *counts.entry(answer.pod.as_str()).or_default() += 1;
            counts
        })
    }

    /// The pods that answered; an error if any request failed.
    ///
    /// # Errors
    /// With the first failures.
    pub fn complete(self) -> Result<Self> {
        let asked = self.all.len() + self.failures.len();
        ensure!(self.failures.is_empty(), "{} of {asked} requests failed: {self}", self.failures.len());
        Ok(self)
    }
}

impl fmt::Display for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (pod, count) in self.by_pod() {
            write!(f, "{pod}: {count}  ")?;
        }
        self.failures.iter().take(3).try_for_each(|failure| write!(f, "failure: {failure}  "))
    }
}

async fn gather(answers: impl StreamExt<Item = Result<Answer>>) -> Answers {
    answers
        .fold(Answers::default(), async |mut answers, next| {
            match next {
                Ok(answer) => answers.all.push(answer),
                Err(error) => answers.failures.push(format!("{error:#}")),
            }
            answers
        })
        .await
}

/// A TCP connection out of a namespace.
///
/// # Errors
/// When it is refused, or there is no route.
pub async fn connect(netns: &Netns, source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = netns.socket(Domain::for_address(target), Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(target).await
}

fn udp_socket(netns: &Netns, source: Option<IpAddr>, target: SocketAddr) -> Result<UdpSocket> {
    let socket = netns.socket(Domain::for_address(target), Type::DGRAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    UdpSocket::from_std(socket.into()).context("handing the socket to tokio")
}
