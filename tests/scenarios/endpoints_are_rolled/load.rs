//! Clients of one address: some connect again and again, some stay.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::network::Host;
use lab::{traffic, wait};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream};
use tokio::runtime::Runtime;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::fleet::SERVES;

const WORKERS: usize = 8;
/// Between two requests of a worker.
const PACE: Duration = Duration::from_millis(12);

const STAYING: usize = 20;
/// Between two words on a connection that stays.
const BEAT: Duration = Duration::from_millis(100);

const SETTLE: Duration = Duration::from_secs(30);

/// No port is used twice. What a connection left behind in the node's connection table would lead the
/// next one from its port: to nobody for two minutes, if that one came before the node knew the
/// Service, or to its own endpoint for ten seconds after its end. That is the kernel's to decide.
#[derive(Debug, Clone)]
struct Door {
    vip: SocketAddr,
    next_port: Arc<AtomicU16>,
}

const FIRST_PORT: u16 = 1024;

#[derive(Debug)]
pub(crate) struct Load {
    door: Door,
    story: Arc<Mutex<Story>>,
    runtime: Option<Runtime>,
}

#[derive(Debug, Default)]
struct Story {
    requests: usize,
    beats: usize,
    slowest: Duration,
    failures: Vec<String>,
    /// Endpoints that answered lately: since somebody asked.
    seen: BTreeSet<Ipv4Addr>,
}

impl Load {
    /// Returns once the address answers.
    pub(crate) async fn start(host: &Host, vip: SocketAddr) -> Result<Self> {
        let runtime = host.netns.runtime()?;
        let door = Door { vip, next_port: Arc::new(AtomicU16::new(FIRST_PORT)) };
        wait::until(&format!("{vip} answers"), SETTLE, async || {
            let door = door.clone();
            runtime.spawn(async move { door.enter().await.map(drop) }).await?
        })
        .await?;
        let load = Self { door, story: Arc::default(), runtime: Some(runtime) };
        for _ in 0..WORKERS {
            load.spawn(come_and_go(load.door.clone(), Arc::clone(&load.story)));
        }
        for _ in 0..STAYING {
            load.spawn(stay(load.door.clone(), Arc::clone(&load.story)));
        }
        Ok(load)
    }

    fn spawn(&self, client: impl Future<Output = ()> + Send + 'static) {
        self.runtime.as_ref().expect("only the end takes it").spawn(client);
    }

    /// Waits for that many more requests.
    pub(crate) async fn requests(&self, count: usize) -> Result<()> {
        let goal = self.lock().requests + count;
        wait::until(&format!("{count} more requests"), SETTLE, async || {
            let seen = self.lock().requests;
            ensure!(seen >= goal, "{seen} of {goal}");
            Ok(())
        })
        .await
    }

    /// Waits until nine tenths of the endpoints have answered, and nobody else does.
    pub(crate) async fn spread_over(&self, endpoints: &BTreeSet<Ipv4Addr>) -> Result<()> {
        wait::until("all endpoints and no other answer", SETTLE, async || {
            if !self.lock().seen.is_subset(endpoints) {
                self.lock().seen.clear();
            }
            self.requests(200).await?;
            let seen = self.lock().seen.clone();
            let others = seen.difference(endpoints).count();
            ensure!(
                others == 0 && seen.len() * 10 >= endpoints.len() * 9,
                "{} of {}, and {others} others",
                seen.len(),
                endpoints.len()
            );
            Ok(())
        })
        .await
    }

    pub(crate) fn nothing_failed(&self, what: &str) -> Result<()> {
        ensure!(self.lock().failures.is_empty(), "{what}: {self}");
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Story> {
        lock(&self.story)
    }
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Story { requests, beats, slowest, failures, .. } = &*self.lock();
        let slowest = slowest.as_millis();
        write!(
            f,
            "{requests} requests, the slowest took {slowest} ms, {beats} beats, {} failed",
            failures.len()
        )?;
        failures.iter().take(5).try_for_each(|failure| write!(f, "; {failure}"))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn lock(story: &Mutex<Story>) -> MutexGuard<'_, Story> {
    story.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn come_and_go(door: Door, story: Arc<Mutex<Story>>) {
    let started = Instant::now();
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        pace.tick().await;
        let asked = Instant::now();
        let answered = door.enter().await;
        let mut story = lock(&story);
        story.requests += 1;
        story.slowest = story.slowest.max(asked.elapsed());
        match answered {
            Ok((_, endpoint)) => drop(story.seen.insert(endpoint)),
            Err(error) => {
                story.failures.push(format!("after {:.3} s: {error:#}", started.elapsed().as_secs_f64()));
            }
        }
    }
}

async fn stay(door: Door, story: Arc<Mutex<Story>>) {
    let mut pace = interval(BEAT);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let beats = async {
        let (mut stream, endpoint) = door.enter().await?;
        loop {
            pace.tick().await;
            let beat = async {
                stream.write_all(b"beat").await?;
                stream.read_exact(&mut [0; 4]).await
            };
            let beat = timeout(traffic::PATIENCE, beat).await.context("silence").and_then(|beat| Ok(beat?));
            beat.with_context(|| format!("the connection to {endpoint}, which stayed"))?;
            lock(&story).beats += 1;
        }
    };
    let Err(error): Result<Infallible> = beats.await;
    lock(&story).failures.push(format!("{error:#}"));
}

impl Door {
    /// A new connection, and the endpoint that serves it.
    async fn enter(&self) -> Result<(BufReader<TcpStream>, Ipv4Addr)> {
        let port = self.next_port.fetch_add(1, Ordering::Relaxed);
        ensure!(port >= FIRST_PORT, "every port has been used");
        let connecting = async {
            let socket = TcpSocket::new_v4()?;
            socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))?;
            // Ends with a reset: no port waits for stray packets afterwards.
            socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO))?;
            let mut stream = BufReader::new(socket.connect(self.vip).await.context("connecting")?);
            let mut line = String::new();
            stream.read_line(&mut line).await.context("reading a line")?;
            let endpoint = line.trim_end().strip_prefix(SERVES);
            Ok((stream, endpoint.with_context(|| format!("was told {line:?}"))?.parse()?))
        };
        timeout(traffic::PATIENCE, connecting).await.context("silence")?
    }
}
