//! A client for the API server.

use std::path::Path;

use anyhow::Context;
use kube::config::{KubeConfigOptions, Kubeconfig};

/// What the API server's audit log and its priority-and-fairness rules see.
const USER_AGENT: &str = concat!("fairlead/", env!("CARGO_PKG_VERSION"));

/// A client from a kubeconfig file, or from the pod's service account without one.
///
/// # Errors
/// When the file, or the service account, cannot be read or used.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<kube::Client> {
    client_to(kubeconfig, None).await
}

/// As [`client`]; `server`, a URL, stands in place of the one in the file.
///
/// # Errors
/// As [`client`]; when the URL is none.
pub async fn client_to(kubeconfig: Option<&Path>, server: Option<&str>) -> anyhow::Result<kube::Client> {
    let mut config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path).with_context(|| {
                format!("reading {}: pass a readable file with --kubeconfig", path.display())
            })?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("{} does not describe a usable cluster", path.display()))?
        }
        None => kube::Config::incluster()
            .context("no service account is mounted here: outside a pod, pass --kubeconfig FILE")?,
    };
    if let Some(server) = server {
        config.cluster_url = server.parse().with_context(|| format!("{server:?} is not a URL"))?;
    }
    config.headers.push(("user-agent".parse()?, USER_AGENT.parse()?));
    // A watch is idle for minutes; its own timeout ends it. Connecting must not hang that long.
    config.connect_timeout = Some(std::time::Duration::from_secs(5));
    kube::Client::try_from(config).context("building the API client")
}
