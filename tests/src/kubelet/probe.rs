//! Readiness probes, run from the pod's node.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// What to ask, and how often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Readiness {
    target: SocketAddr,
    /// `None` for a TCP probe.
    path: Option<String>,
    pub period: Duration,
    timeout: Duration,
    pub success_threshold: u32,
    pub failure_threshold: u32,
}

impl Readiness {
    /// `None` when the container has no readiness probe: it is ready once it runs.
    pub(super) fn of(container: &Container, ip: std::net::IpAddr) -> Option<Self> {
        let probe: &Probe = container.readiness_probe.as_ref()?;
        let number = |port: &IntOrString| match port {
            IntOrString::Int(number) => u16::try_from(*number).ok(),
            IntOrString::String(name) => {
                let named = container.ports.iter().flatten().find(|p| p.name.as_deref() == Some(name));
                named.and_then(|p| u16::try_from(p.container_port).ok())
            }
        };
        let (port, path) = match (&probe.http_get, &probe.tcp_socket) {
            (Some(get), _) => (number(&get.port)?, Some(get.path.clone().unwrap_or_else(|| "/".into()))),
            (None, Some(socket)) => (number(&socket.port)?, None),
            (None, None) => return None,
        };
        let seconds = |value: Option<i32>, default: u64| {
            Duration::from_secs(
                value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default),
            )
        };
        let count =
            |value: Option<i32>, default: u32| value.and_then(|v| u32::try_from(v).ok()).unwrap_or(default);
        Some(Self {
            target: SocketAddr::new(ip, port),
            path,
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            success_threshold: count(probe.success_threshold, 1),
            failure_threshold: count(probe.failure_threshold, 3),
        })
    }

    /// One probe from inside the node's namespace.
    pub(super) async fn ask(&self, namespace: &Path) -> bool {
        let (this, namespace) = (self.clone(), namespace.to_owned());
        let asked = tokio::task::spawn_blocking(move || crate::netns::inside(&namespace, || this.ask_here()));
        matches!(asked.await, Ok(Ok(Ok(true))))
    }

    fn ask_here(&self) -> std::io::Result<bool> {
        let mut stream = TcpStream::connect_timeout(&self.target, self.timeout)?;
        let Some(path) = &self.path else { return Ok(true) };
        stream.set_read_timeout(Some(self.timeout))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", self.target)?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer)?;
        let status = answer.split(' ').nth(1).and_then(|s| s.parse::<u16>().ok());
        Ok(status.is_some_and(|s| (200..400).contains(&s)))
    }
}
