//! HTTP probes, one task a check.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use metal_lb_api::HealthCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Machine, Verdict};

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(1);

/// A node's address and what is asked of it.
pub(super) type Check = (IpAddr, HealthCheck);

/// The last verdict of every check, with its reason in words.
pub type Checks = BTreeMap<Check, (Verdict, Arc<str>)>;

/// A verdict or its reason changed.
#[derive(Debug, Clone)]
pub struct HealthReport {
    pub check: Check,
    pub verdict: Verdict,
    pub why: Arc<str>,
}

/// The running probes.
#[derive(Debug)]
pub struct Probers {
    running: BTreeMap<Check, tokio::task::AbortHandle>,
    tasks: JoinSet<()>,
    reports: mpsc::Sender<HealthReport>,
}

impl Probers {
    pub fn new(reports: mpsc::Sender<HealthReport>) -> Self {
        Self { running: BTreeMap::new(), tasks: JoinSet::new(), reports }
    }

    /// Starts what is wanted and does not run; stops the rest.
    pub fn set(&mut self, wanted: &BTreeSet<Check>) {
        self.running.retain(|check, task| {
            let keep = wanted.contains(check);
            if !keep {
                task.abort();
            }
            keep
        });
        for (position, check) in wanted.iter().enumerate() {
            if !self.running.contains_key(check) {
                // Spread over the interval, so that a thousand nodes are not asked at once.
                let delay = INTERVAL.mul_f64((position % 16) as f64 / 16.0) / 4;
                let task = self.tasks.spawn(probe_forever(check.clone(), delay, self.reports.clone()));
                self.running.insert(check.clone(), task);
            }
        }
        while self.tasks.try_join_next().is_some() {}
    }
}

async fn probe_forever(check: Check, delay: Duration, reports: mpsc::Sender<HealthReport>) {
    tokio::time::sleep(delay).await;
    let mut machine = Machine::default();
    let mut told = None;
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let result = match tokio::time::timeout(TIMEOUT, ask(&check)).await {
            Ok(Ok(200)) => Ok(()),
            Ok(Ok(status)) => Err(format!("answered {status}")),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("no answer within {} s", TIMEOUT.as_secs())),
        };
        let verdict = machine.result(result.is_ok());
        let url = format!("http://{}{}", SocketAddr::new(check.0, check.1.port), check.1.path);
        let why: Arc<str> = match result {
            Ok(()) => format!("{url} answered 200").into(),
            Err(error) => format!("{url}: {error}").into(),
        };
        if told.as_ref() != Some(&(verdict, Arc::clone(&why))) {
            told = Some((verdict, Arc::clone(&why)));
            if reports.send(HealthReport { check: check.clone(), verdict, why }).await.is_err() {
                return;
            }
        }
    }
}

/// The status of an HTTP/1.0 GET.
async fn ask((address, check): &Check) -> std::io::Result<u16> {
    let mut stream = TcpStream::connect((*address, check.port)).await?;
    let request =
        format!("GET {} HTTP/1.0\r\nHost: {address}\r\nUser-Agent: fairlead-metal-lb\r\n\r\n", check.path);
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::with_capacity(64);
    while head.len() < 12 {
        if stream.read_buf(&mut head).await? == 0 {
            break;
        }
    }
    let status = head.get(9..12).and_then(|s| std::str::from_utf8(s).ok()).and_then(|s| s.parse().ok());
    let answer = status.filter(|_| head.starts_with(b"HTTP/1."));
    answer.ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "the answer is not HTTP"))
}
