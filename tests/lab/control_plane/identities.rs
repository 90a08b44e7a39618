//! Who may talk to the API server, and the kubeconfig that says so.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A caller that the API server knows by a token. What it may do is RBAC's business.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Identity {
    /// The person at kubectl, and the scenarios.
    Admin,
    ControllerManager,
    Scheduler,
    /// All kubelets of the lab.
    Kubelet,
    /// Real kube-proxy, where it stands in for our node-agent.
    KubeProxy,
    /// Our programs have exactly the rights that `deploy/rbac` binds to these accounts.
    NodeAgent,
    CloudController,
}

impl Identity {
    pub const ALL: [Self; 7] = [
        Self::Admin,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Kubelet,
        Self::KubeProxy,
        Self::NodeAgent,
        Self::CloudController,
    ];

    pub fn file_name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Kubelet => "kubelet",
            Self::KubeProxy => "kube-proxy",
            Self::NodeAgent => "node-agent",
            Self::CloudController => "cloud-controller",
        }
    }

    fn user(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::ControllerManager => "system:kube-controller-manager",
            Self::Scheduler => "system:kube-scheduler",
            Self::Kubelet => "lab-kubelet",
            Self::KubeProxy => "system:kube-proxy",
            Self::NodeAgent => "system:serviceaccount:fairlead-system:node-agent",
            Self::CloudController => "system:serviceaccount:fairlead-system:cloud-controller",
        }
    }

    fn groups(self) -> &'static str {
        match self {
            Self::Admin | Self::Kubelet => "system:masters",
            // The controllers share one process here, which real clusters split into accounts.
            Self::ControllerManager => "system:masters",
            Self::Scheduler | Self::KubeProxy => "",
            Self::NodeAgent | Self::CloudController => {
                "system:serviceaccounts,system:serviceaccounts:fairlead-system"
            }
        }
    }

    /// The lab ends with its tokens, and nothing outside the machine can reach it.
    fn token(self) -> String {
        format!("lab-{}", self.file_name())
    }
}

/// What kube-apiserver reads from `--token-auth-file`.
pub(super) fn token_file() -> String {
    Identity::ALL.iter().fold(String::new(), |mut text, identity| {
        writeln!(
            text,
            "{},{},{},\"{}\"",
            identity.token(),
            identity.user(),
            identity.file_name(),
            identity.groups()
        )
        .expect("a String takes everything");
        text
    })
}

/// Writes a kubeconfig for `identity` that reaches the API server at `server`.
///
/// # Errors
/// When the folder cannot be written.
pub(super) fn write_kubeconfig(
    folder: &Path,
    identity: Identity,
    server: SocketAddr,
    authority: &Path,
) -> Result<PathBuf> {
    let path = folder.join(format!("{}.kubeconfig", identity.file_name()));
    let text = format!(
        "apiVersion: v1
kind: Config
clusters:
- name: lab
  cluster: {{server: \"https://{server}\", certificate-authority: \"{}\"}}
users:
- name: {user}
  user: {{token: \"{}\"}}
contexts:
- name: lab
  context: {{cluster: lab, user: {user}}}
current-context: lab
",
        authority.display(),
        identity.token(),
        user = identity.file_name(),
    );
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}
