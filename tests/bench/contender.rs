//! The two programs that are compared, each started in an empty namespace.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::control_plane::Identity;
use lab::network::{self, Host};
use lab::process::Program;
use lab::programs;
use lab::spawn::Spec;
use lab::traffic::Client;
use lab::wait;

use crate::cluster::{Cluster, NODE};
use crate::usage::Family;

/// Both programs listen there if not told otherwise.
const HEALTH_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// Both measure themselves under this name: from when everything is known until the kernel has it.
const SYNC: &str = "kubeproxy_sync_proxy_rules_duration_seconds";
const SYNC_ENDS_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contender {
    NodeAgent,
    KubeProxy,
}

pub(crate) const BOTH: [Contender; 2] = [Contender::NodeAgent, Contender::KubeProxy];

/// A contender that runs. It ends when it is dropped, its namespace too.
pub(crate) struct Running {
    pub(crate) program: Program,
    pub(crate) host: Host,
    pub(crate) started: Instant,
}

impl Contender {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::NodeAgent => "node-agent",
            Self::KubeProxy => "kube-proxy",
        }
    }

    /// Of two, ours and the peer's, this one's.
    pub(crate) fn of<T>(self, [ours, peer]: [T; 2]) -> T {
        match self {
            Self::NodeAgent => ours,
            Self::KubeProxy => peer,
        }
    }

    pub(crate) async fn start(self, cluster: &Cluster, run: usize) -> Result<Running> {
        let identity = self.of([Identity::NodeAgent, Identity::KubeProxy]);
        self.start_with(cluster, run, &cluster.control_plane.kubeconfig(identity)).await
    }

    /// At the API server that a kubeconfig names.
    pub(crate) async fn start_with(
        self,
        cluster: &Cluster,
        run: usize,
        kubeconfig: &Path,
    ) -> Result<Running> {
        let host = cluster.machine(run).await?;
        let name = format!("{}-{run}", self.name());
        let (program, arguments) = match self {
            Self::NodeAgent => {
                let arguments = vec![
                    "run".to_owned(),
                    format!("--kubeconfig={}", kubeconfig.display()),
                    format!("--hostname-override={NODE}"),
                    format!("--cluster-cidr={}", network::CLUSTER_CIDR),
                ];
                (programs::ours("node-agent")?, arguments)
            }
            Self::KubeProxy => {
                let file = cluster.ground.path().join("kube-proxy.yaml");
                fs::write(&file, kube_proxy_configuration(kubeconfig))?;
                (programs::kubernetes("kube-proxy")?, vec![format!("--config={}", file.display())])
            }
        };
        let spec = Spec {
            program,
            arguments: arguments.into_iter().map(Into::into).collect(),
            environment: BTreeMap::new(),
            netns: host.netns.clone(),
            hostname: None,
            log: cluster.ground.log(&name),
        };
        let started = Instant::now();
        let program = Program::start(&name, &cluster.spawner, spec).await?;
        Ok(Running { program, host, started })
    }
}

/// The defaults, but for the least time between two syncs, which no flag sets, and for what a
/// namespace may not change.
fn kube_proxy_configuration(kubeconfig: &Path) -> String {
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
hostnameOverride: {NODE}
clusterCIDR: {}
clientConnection: {{kubeconfig: {}}}
nftables: {{minSyncPeriod: 10ms}}
conntrack: {{maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}}
",
        network::CLUSTER_CIDR,
        kubeconfig.display()
    )
}

impl Running {
    pub(crate) fn family(&self) -> Result<Family> {
        let pid = self.program.state().pid.with_context(|| format!("{} ended", self.program.name()))?;
        Ok(Family(pid))
    }

    /// Starts a program that was killed again, in its namespace. Returns the moment of the start.
    pub(crate) async fn resume(&self) -> Result<Instant> {
        let started = Instant::now();
        self.program.resume().await?;
        Ok(started)
    }

    /// `/healthz` says 200.
    pub(crate) async fn healthy(&self) -> Result<()> {
        let address = (Ipv4Addr::LOCALHOST, HEALTH_PORT).into();
        Client::in_netns(self.host.netns.clone()).request(address, "GET", "/healthz").await.map(drop)
    }

    /// Seconds that IPv4's syncs have taken, of which one has ended or is about to.
    pub(crate) async fn in_syncs(&self) -> Result<f64> {
        let address = (Ipv4Addr::LOCALHOST, METRICS_PORT).into();
        let client = Client::in_netns(self.host.netns.clone());
        wait::until("a sync has been measured", SYNC_ENDS_WITHIN, async || {
            let (_, page) = client.answer(address, "/metrics").await?;
            let value = |what: &str| -> Result<f64> {
                let name = format!("{SYNC}_{what}{{ip_family=\"IPv4\"}} ");
                let line = page.lines().find_map(|line| line.strip_prefix(&name));
                Ok(line.with_context(|| format!("no {name}"))?.parse()?)
            };
            ensure!(value("count")? > 0.0, "none has ended");
            value("sum")
        })
        .await
    }
}
