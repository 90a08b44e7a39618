//! HTTP probes, one task a check.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use metal_lb_api::HealthCheck;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::{Machine, Verdict};

const INTERVAL: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(1);
/// New checks begin in as many groups, so that a thousand nodes are not asked at once.
const GROUPS: usize = 16;
/// Between the first and the last group.
const SPREAD: Duration = Duration::from_millis(250);

/// A node's address and what is asked of it.
pub type Check = (IpAddr, HealthCheck);

/// The last verdict of every check, with its reason in words.
pub type Checks = BTreeMap<Check, (Verdict, Arc<str>)>;

/// A verdict or its reason changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthReport {
    pub check: Check,
    pub verdict: Verdict,
    pub why: Arc<str>,
}

/// Runs the wanted checks until either end is gone.
///
/// # Errors
/// None: a probe that fails is a result.
pub async fn run(
    mut wanted: watch::Receiver<BTreeSet<Check>>,
    reports: mpsc::Sender<HealthReport>,
) -> anyhow::Result<()> {
    let mut running: BTreeMap<Check, AbortHandle> = BTreeMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        running.retain(|check, task| {
            let keep = now.contains(check);
            if !keep {
                task.abort();
            }
            keep
        });
        let new = now.into_iter().filter(|check| !running.contains_key(check)).collect::<Vec<_>>();
        for (position, check) in new.into_iter().enumerate() {
            let delay = SPREAD.mul_f64((position % GROUPS) as f64 / GROUPS as f64);
            running.insert(check.clone(), tasks.spawn(probe_forever(check, delay, reports.clone())));
        }
        while tasks.try_join_next().is_some() {}
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return Ok(()) },
            () = reports.closed() => return Ok(()),
        }
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
        let why: Arc<str> = reason(&check, &result, &machine).into();
        if told.as_ref() != Some(&(verdict, Arc::clone(&why))) {
            told = Some((verdict, Arc::clone(&why)));
            if reports.send(HealthReport { check: check.clone(), verdict, why }).await.is_err() {
                return;
            }
        }
    }
}

/// The last result in words, and how far it is from changing the verdict.
fn reason((address, check): &Check, result: &Result<(), String>, machine: &Machine) -> String {
    let url = format!("http://{}{}", SocketAddr::new(*address, check.port), check.path);
    let last = match result {
        Ok(()) => format!("{url} answered 200"),
        Err(error) => format!("{url}: {error}"),
    };
    match machine.against() {
        None => last,
        Some((so_far, needed)) => format!("{last} ({so_far} of {needed} that change the verdict)"),
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
    status(&head)
        .ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "the answer is not HTTP"))
}

/// `HTTP/1.1 200 …` (RFC 9112 §4).
fn status(head: &[u8]) -> Option<u16> {
    let digits = head.strip_prefix(b"HTTP/1.")?.get(2..5)?;
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use tokio::net::TcpListener;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn only_an_http_status_line_is_an_answer() {
        let table: &[(&[u8], Option<u16>)] = &[
            (b"HTTP/1.1 200 OK\r\n", Some(200)),
            (b"HTTP/1.0 503", Some(503)),
            (b"HTTP/1.1 2", None),
            (b"HTTP/1.1 abc", None),
            (b"SSH-2.0-Open", None),
            (b"", None),
        ];
        for (head, expected) in table {
            assert_eq!(status(head), *expected, "{}", String::from_utf8_lossy(head));
        }
    }

    /// A server that answers each connection with the next of these, and the last one for ever.
    async fn server(answers: &'static [&'static str]) -> (Check, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut left = answers.iter();
            let mut answer = "";
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                answer = left.next().unwrap_or(&answer);
                let mut request = [0; 256];
                let _length = stream.read(&mut request).await.unwrap();
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let check = HealthCheck { port, path: "/healthz".into() };
        ((IpAddr::V4(Ipv4Addr::LOCALHOST), check), tasks)
    }

    #[tokio::test]
    async fn a_check_is_reported_when_it_changes_and_no_more_once_it_is_not_wanted() {
        let (check, _server) = server(&["HTTP/1.1 503 no\r\n\r\n", "HTTP/1.1 200 OK\r\n\r\n"]).await;
        let (wanted_tx, wanted) = watch::channel(BTreeSet::from([check.clone()]));
        let (reports_tx, mut reports) = mpsc::channel(16);
        let task = tokio::spawn(run(wanted, reports_tx));
        let mut told = Vec::new();
        while told.last().is_none_or(|r: &HealthReport| r.verdict != Verdict::Healthy) {
            let report = tokio::time::timeout(DEADLINE, reports.recv()).await.expect("a report").unwrap();
            assert_eq!(report.check, check);
            told.push(report);
        }
        let whys: Vec<&str> = told.iter().map(|r| r.why.rsplit("/healthz").next().unwrap()).collect();
        assert_eq!(
            whys,
            [": answered 503", " answered 200 (1 of 2 that change the verdict)", " answered 200"]
        );

        drop(wanted_tx);
        tokio::time::timeout(DEADLINE, task).await.expect("it ends").unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_closed_port_is_a_reason_not_a_crash() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let check = (IpAddr::V4(Ipv4Addr::LOCALHOST), HealthCheck { port, path: "/healthz".into() });
        let (_wanted, wanted) = watch::channel(BTreeSet::from([check]));
        let (reports_tx, mut reports) = mpsc::channel(16);
        let task = tokio::spawn(run(wanted, reports_tx));
        let report = tokio::time::timeout(DEADLINE, reports.recv()).await.expect("a report").unwrap();
        assert_eq!(report.verdict, Verdict::Unhealthy);
        assert!(report.why.contains("refused"), "{}", report.why);
        task.abort();
    }
}
