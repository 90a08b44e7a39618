//! Clients in a namespace.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;

const TIMEOUT: Duration = Duration::from_secs(3);

/// What a client saw.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Answers by pod.
    pub pods: BTreeMap<String, u32>,
    /// What went wrong, and how long after the start.
    pub failures: Vec<(Duration, String)>,
    /// The longest time from one answer to the next.
    pub longest_gap: Duration,
}

impl Seen {
    pub fn answers(&self) -> u32 {
        self.pods.values().sum()
    }

    fn note(&mut self, at: Duration, answer: std::io::Result<String>) {
        match answer {
            Ok(pod) => *self.pods.entry(pod).or_default() += 1,
            Err(error) => self.failures.push((at, error.to_string())),
        }
    }
}

/// One HTTP request on a new connection; the pod that answered and the client address that it saw.
///
/// # Errors
/// When the connection fails or the answer is not the pod program's.
pub fn get(target: SocketAddr, timeout: Duration) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&target, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    write!(stream, "GET / HTTP/1.0\r\nHost: lab\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    serde_json::from_str(body).map_err(std::io::Error::other)
}

/// What the pod program says of itself and its client.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct Answer {
    pub pod: String,
    pub node: String,
    pub client: String,
    pub env: BTreeMap<String, String>,
}

/// `count` new connections, one after the other.
///
/// # Errors
/// When the namespace is gone.
pub fn connections(namespace: &Path, target: SocketAddr, count: u32) -> anyhow::Result<Seen> {
    crate::netns::inside(namespace, || {
        let (start, mut seen) = (Instant::now(), Seen::default());
        for _ in 0..count {
            let answer = get(target, TIMEOUT).map(|a| a.pod);
            seen.note(start.elapsed(), answer);
        }
        seen
    })
}

/// One request; see [`get`].
///
/// # Errors
/// When the namespace is gone or the request fails.
pub fn request(namespace: &Path, target: SocketAddr) -> anyhow::Result<Answer> {
    crate::netns::inside(namespace, || get(target, TIMEOUT))?.with_context(|| format!("GET http://{target}/"))
}

/// One UDP datagram; the pod that answered.
///
/// # Errors
/// When the namespace is gone or nothing answers.
pub fn datagram(namespace: &Path, target: SocketAddr) -> anyhow::Result<String> {
    crate::netns::inside(namespace, || {
        let any: SocketAddr = if target.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
        let socket = UdpSocket::bind(any)?;
        socket.set_read_timeout(Some(TIMEOUT))?;
        socket.send_to(b"hello", target)?;
        let mut buffer = [0; 2048];
        let length = socket.recv(&mut buffer)?;
        let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
        Ok::<_, std::io::Error>(answer.split(' ').next().unwrap_or_default().to_owned())
    })?
    .with_context(|| format!("a datagram to {target}"))
}

/// A client that goes on until it is stopped.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<anyhow::Result<Seen>>,
}

impl Running {
    /// New connections without a pause but `every`.
    pub fn connecting(namespace: PathBuf, target: SocketAddr, every: Duration) -> Self {
        Self::start(namespace, move |stopped| {
            let (start, mut seen) = (Instant::now(), Seen::default());
            let mut last = Instant::now();
            while !stopped() {
                let answer = get(target, TIMEOUT).map(|a| a.pod);
                if answer.is_ok() {
                    seen.longest_gap = seen.longest_gap.max(last.elapsed());
                    last = Instant::now();
                }
                seen.note(start.elapsed(), answer);
                std::thread::park_timeout(every);
            }
            Ok(seen)
        })
    }

    /// One connection that asks and is answered, again and again. It is never reopened: its first
    /// failure is its last.
    pub fn established(namespace: PathBuf, target: SocketAddr, every: Duration) -> Self {
        Self::start(namespace, move |stopped| {
            let (start, mut seen) = (Instant::now(), Seen::default());
            let stream = TcpStream::connect_timeout(&target, TIMEOUT).context("the first connection")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.set_nodelay(true)?;
            let (mut writer, mut reader) = (stream.try_clone()?, BufReader::new(stream));
            while !stopped() {
                let asked = Instant::now();
                let mut line = String::new();
                let answer = writer.write_all(b"ping\n").and_then(|()| reader.read_line(&mut line));
                let answer = answer.and_then(|length| match length {
                    0 => Err(std::io::Error::other("closed by the server")),
                    _ => Ok(line.split(' ').next().unwrap_or_default().to_owned()),
                });
                seen.longest_gap = seen.longest_gap.max(asked.elapsed());
                let failed = answer.is_err();
                seen.note(start.elapsed(), answer);
                if failed {
                    break;
                }
                std::thread::park_timeout(every);
            }
            Ok(seen)
        })
    }

    fn start(
        namespace: PathBuf,
        work: impl FnOnce(&dyn Fn() -> bool) -> anyhow::Result<Seen> + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            crate::netns::inside(&namespace, || work(&|| told.load(Ordering::Relaxed)))?
        });
        Self { stop, thread }
    }

    /// Stops it; what it saw.
    ///
    /// # Errors
    /// When it could not even begin.
    pub fn stop(self) -> anyhow::Result<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the client panicked"))?
    }
}
