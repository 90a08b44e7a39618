//! Readiness probes, for real: over HTTP or TCP, from the node.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::{sleep, timeout};

use crate::netns::Netns;
use crate::traffic::connect;

/// While a container is not ready, a kubelet may look more often than `periodSeconds`; so do we.
const IMPATIENT: Duration = Duration::from_millis(200);

/// A probe with its defaults filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    check: Check,
    initial_delay: Duration,
    period: Duration,
    patience: Duration,
    successes: u32,
    failures: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Check {
    Http {
        port: u16,
        path: String,
    },
    Tcp {
        port: u16,
    },
    /// `exec` and `grpc` ask the real image, which the lab does not run.
    AlwaysGood,
}

impl Plan {
    /// The container's readiness probe; a container without one is ready once it runs.
    pub(super) fn of(container: &Container) -> Self {
        let Some(probe) = &container.readiness_probe else {
            return Self::from_probe(&Probe::default(), Check::AlwaysGood);
        };
        let check = match (&probe.http_get, &probe.tcp_socket) {
            (Some(http), _) => port_of(container, &http.port)
                .map(|port| Check::Http { port, path: http.path.clone().unwrap_or_else(|| "/".to_owned()) }),
            (None, Some(tcp)) => port_of(container, &tcp.port).map(|port| Check::Tcp { port }),
            (None, None) => None,
        };
        Self::from_probe(probe, check.unwrap_or(Check::AlwaysGood))
    }

    fn from_probe(probe: &Probe, check: Check) -> Self {
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(value.and_then(|value| u64::try_from(value).ok()).unwrap_or(default))
        };
        let count = |value: Option<i32>, default: u32| {
            value.and_then(|value| u32::try_from(value).ok()).filter(|value| *value > 0).unwrap_or(default)
        };
        Self {
            check,
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds.filter(|period| *period > 0), 10),
            patience: seconds(probe.timeout_seconds.filter(|limit| *limit > 0), 1),
            successes: count(probe.success_threshold, 1),
            failures: count(probe.failure_threshold, 3),
        }
    }

    /// Probes for ever, and calls `changed` whenever the verdict changes; the first verdict is
    /// "not ready", which is not announced.
    pub(super) async fn watch<F: Future<Output = ()>>(
        self,
        netns: Arc<Netns>,
        address: IpAddr,
        changed: impl Fn(bool) -> F,
    ) {
        sleep(self.initial_delay).await;
        let mut verdict = Verdict::default();
        loop {
            let good = timeout(self.patience, self.check.run(&netns, address))
                .await
                .is_ok_and(|result| result.is_ok());
            if let Some(ready) = verdict.after(good, &self) {
                changed(ready).await;
            }
            sleep(if verdict.ready { self.period } else { self.period.min(IMPATIENT) }).await;
        }
    }
}

/// How many results in a row agree, and what was concluded from them.
#[derive(Debug, Default)]
struct Verdict {
    ready: bool,
    last: Option<bool>,
    in_a_row: u32,
}

impl Verdict {
    /// The new verdict, if this result changes it.
    fn after(&mut self, good: bool, plan: &Plan) -> Option<bool> {
        self.in_a_row = if self.last == Some(good) { self.in_a_row + 1 } else { 1 };
        self.last = Some(good);
        let threshold = if good { plan.successes } else { plan.failures };
        (self.ready != good && self.in_a_row >= threshold).then(|| {
            self.ready = good;
            good
        })
    }
}

impl Check {
    async fn run(&self, netns: &Netns, address: IpAddr) -> Result<()> {
        match self {
            Self::AlwaysGood => Ok(()),
            Self::Tcp { port } => {
                connect(netns, None, SocketAddr::new(address, *port)).await.map(drop).context("connecting")
            }
            Self::Http { port, path } => {
                let mut stream = connect(netns, None, SocketAddr::new(address, *port)).await?;
                let request = format!(
                    "GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nUser-Agent: kube-probe/1.37\r\nConnection: close\r\n\r\n"
                );
                stream.write_all(request.as_bytes()).await?;
                let mut response = Vec::new();
                stream.read_to_end(&mut response).await?;
                let status = std::str::from_utf8(response.get(9..12).context("no status line")?)?;
                ensure!(("200".."400").contains(&status), "status {status}");
                Ok(())
            }
        }
    }
}

fn port_of(container: &Container, port: &IntOrString) -> Option<u16> {
    match port {
        IntOrString::Int(number) => u16::try_from(*number).ok(),
        IntOrString::String(name) => container
            .ports
            .iter()
            .flatten()
            .find(|port| port.name.as_ref() == Some(name))
            .and_then(|port| u16::try_from(port.container_port).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(yaml: &str) -> Plan {
        Plan::of(&serde_yaml_ng::from_str(yaml).unwrap())
    }

    #[test]
    fn probes_have_the_defaults_of_the_api() {
        let probe = plan(
            "{name: web, ports: [{name: http, containerPort: 8080}], readinessProbe: {httpGet: {port: http}}}",
        );
        assert_eq!(probe.check, Check::Http { port: 8080, path: "/".to_owned() });
        assert_eq!((probe.period.as_secs(), probe.patience.as_secs()), (10, 1));
        assert_eq!((probe.successes, probe.failures), (1, 3));
        assert_eq!(plan("{name: web}").check, Check::AlwaysGood);
        assert_eq!(
            plan("{name: web, readinessProbe: {tcpSocket: {port: 5432}}}").check,
            Check::Tcp { port: 5432 }
        );
    }

    #[test]
    fn a_verdict_changes_after_the_threshold_in_a_row() {
        let plan = plan(
            "{name: web, readinessProbe: {tcpSocket: {port: 80}, successThreshold: 2, failureThreshold: 3}}",
        );
        let mut verdict = Verdict::default();
        let changes: Vec<Option<bool>> =
            [true, false, true, true, false, false, true, false, false, false, false]
                .into_iter()
                .map(|good| verdict.after(good, &plan))
                .collect();
        let mut expected = vec![None; 11];
        expected[3] = Some(true);
        expected[9] = Some(false);
        assert_eq!(changes, expected);
    }
}
