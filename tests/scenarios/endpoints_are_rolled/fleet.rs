//! As many endpoints as anybody wants, in one process: who asks is told whether the address that it
//! reached serves, and afterwards hears its own bytes.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::network::Host;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::runtime::Runtime;

pub(crate) const ADDRESSES: &str = "10.244.128.0/17";
pub(crate) const PORT: u16 = 8080;

/// What an address says that serves, before its address.
pub(crate) const SERVES: &str = "here is ";

#[derive(Debug)]
pub(crate) struct Fleet {
    serving: Arc<Mutex<Serving>>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Serving {
    /// Addresses that serve, and since when they should get no more connections, if so.
    addresses: BTreeMap<Ipv4Addr, Option<Instant>>,
    /// How long after that the last one came.
    latest: Duration,
}

/// The address of the nth endpoint.
pub(crate) fn address(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 128, 1)) + number)
}

impl Fleet {
    pub(crate) async fn start(host: &Host) -> Result<Self> {
        let runtime = host.netns.runtime()?;
        let serving = Arc::new(Mutex::new(Serving::default()));
        let shared = Arc::clone(&serving);
        let listening = runtime.spawn(async move {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, PORT)))?;
            let listener = socket.listen(1024)?;
            tokio::spawn(accept(listener, shared));
            anyhow::Ok(())
        });
        listening.await?.context("listening for all endpoints")?;
        Ok(Self { serving, runtime: Some(runtime) })
    }

    pub(crate) fn serve(&self, address: Ipv4Addr) {
        self.lock().addresses.insert(address, None);
    }

    /// The API server was told that it terminates.
    pub(crate) fn leaves(&self, address: Ipv4Addr) {
        self.lock().addresses.insert(address, Some(Instant::now()));
    }

    /// From now on a new connection to it fails.
    pub(crate) fn stop(&self, address: Ipv4Addr) {
        self.lock().addresses.remove(&address);
    }

    fn lock(&self) -> MutexGuard<'_, Serving> {
        self.serving.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Display for Fleet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latest = self.lock().latest.as_millis();
        write!(f, "the latest connection came {latest} ms after its endpoint had begun to leave")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn accept(listener: TcpListener, serving: Arc<Mutex<Serving>>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        // A client that goes away is no concern of the endpoint's.
        tokio::spawn(answer(stream, Arc::clone(&serving)));
    }
}

async fn answer(mut stream: TcpStream, serving: Arc<Mutex<Serving>>) -> Result<()> {
    let line = match stream.local_addr()?.ip() {
        IpAddr::V4(address) => serving.lock().unwrap_or_else(PoisonError::into_inner).line(address),
        IpAddr::V6(address) => format!("{address} is nobody\n"),
    };
    stream.write_all(line.as_bytes()).await?;
    let mut bytes = [0; 64];
    loop {
        let length = stream.read(&mut bytes).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&bytes[..length]).await?;
    }
}

impl Serving {
    fn line(&mut self, address: Ipv4Addr) -> String {
        match self.addresses.get(&address) {
            None => format!("{address} does not serve\n"),
            Some(leaving) => {
                self.latest = self.latest.max(leaving.map_or(Duration::ZERO, |since| since.elapsed()));
                format!("{SERVES}{address}\n")
            }
        }
    }
}
