//! What the real kube-proxy is started with: a configuration file, as clusters have it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Lab;
use crate::control_plane::{ControlPlane, Identity};
use crate::network::{self, Host};
use crate::process::Program;
use crate::programs;
use crate::spawn::Spec;
use crate::sweep::Ground;

pub(super) fn write_config(mode: &str, ground: &Ground, control_plane: &ControlPlane) -> Result<PathBuf> {
    let path = file(ground);
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
         clientConnection:\n  kubeconfig: {}\nclusterCIDR: {}\nconntrack:\n  maxPerCore: 0\n",
        control_plane.kubeconfig(Identity::KubeProxy).display(),
        network::CLUSTER_CIDR,
    );
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

pub(super) fn flags(file: &Path, host: &Host) -> Vec<String> {
    vec![format!("--config={}", file.display()), format!("--hostname-override={}", host.name)]
}

fn file(ground: &Ground) -> PathBuf {
    ground.path().join("kube-proxy.yaml")
}

impl Lab {
    /// Starts node-agent on a node beside its kube-proxy, with the very command line of that.
    ///
    /// # Errors
    /// When there is no such node, or the program does not start.
    pub async fn start_beside_kube_proxy(&self, node: &str) -> Result<Program> {
        let host = &self.node(node)?.host;
        let name = format!("node-agent-{node}");
        let spec = Spec {
            program: programs::ours("node-agent")?,
            arguments: flags(&file(&self.ground), host).into_iter().map(Into::into).collect(),
            environment: BTreeMap::new(),
            netns: host.netns.clone(),
            hostname: Some(host.name.clone()),
            log: self.ground.log(&name),
        };
        Program::start(&name, &self.spawner, spec).await
    }
}
