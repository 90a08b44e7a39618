//! The two programs that are compared, each started in an empty namespace.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result};
use lab::control_plane::Identity;
use lab::network::{self, Host};
use lab::process::Program;
use lab::programs;
use lab::spawn::Spec;
use nix::unistd::{SysconfVar, sysconf};

use crate::cluster::{Cluster, NODE};

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

    pub(crate) async fn start(self, cluster: &Cluster, run: usize) -> Result<Running> {
        let host = cluster.machine(run).await?;
        let name = format!("{}-{run}", self.name());
        let (program, arguments) = match self {
            Self::NodeAgent => {
                let kubeconfig = cluster.control_plane.kubeconfig(Identity::NodeAgent);
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
                fs::write(&file, kube_proxy_configuration(cluster))?;
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
fn kube_proxy_configuration(cluster: &Cluster) -> String {
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
        cluster.control_plane.kubeconfig(Identity::KubeProxy).display()
    )
}

impl Running {
    fn folder(&self) -> Result<PathBuf> {
        let pid = self.program.state().pid.with_context(|| format!("{} ended", self.program.name()))?;
        Ok(PathBuf::from(format!("/proc/{pid}")))
    }

    /// Processor seconds so far, with children that have ended: fields 14 to 17 of proc_pid_stat(5).
    pub(crate) fn processor_seconds(&self) -> Result<f64> {
        let stat = fs::read_to_string(self.folder()?.join("stat"))?;
        let (_, fields) = stat.rsplit_once(") ").context("a stat line has a command's name")?;
        let ticks: u32 =
            fields.split(' ').skip(11).take(4).filter_map(|field| field.parse::<u32>().ok()).sum();
        let per_second = sysconf(SysconfVar::CLK_TCK)?.context("the clock has ticks")?;
        #[allow(clippy::cast_precision_loss, reason = "a hundred or a thousand")]
        Ok(f64::from(ticks) / per_second as f64)
    }

    /// Bytes of `VmRSS` or `VmHWM`, with the children that run.
    pub(crate) fn memory(&self, field: &str) -> Result<f64> {
        let folder = self.folder()?;
        let main = folder.file_name().and_then(|pid| pid.to_str()).unwrap_or_default().to_owned();
        let children =
            fs::read_to_string(folder.join("task").join(&main).join("children")).unwrap_or_default();
        let mut bytes = 0.0;
        for pid in children.split_whitespace().chain([main.as_str()]) {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            let kibibytes = line.and_then(|text| text.trim().trim_end_matches(" kB").parse::<u32>().ok());
            bytes += f64::from(kibibytes.unwrap_or_default()) * 1024.0;
        }
        Ok(bytes)
    }
}
