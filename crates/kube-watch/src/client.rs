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

/// As [`client`]; `server`, a URL, stands in place of the one in the file. Without a file it is asked
/// as nobody, as client-go does: the pod's service account is not shown to whoever a flag names.
///
/// # Errors
/// As [`client`]; when the URL is none.
pub async fn client_to(kubeconfig: Option<&Path>, server: Option<&str>) -> anyhow::Result<kube::Client> {
    let mut config = match (kubeconfig, server) {
        (Some(path), _) => {
            let file = Kubeconfig::read_from(path).with_context(|| {
                format!("reading {}: pass a readable file with --kubeconfig", path.display())
            })?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("{} does not describe a usable cluster", path.display()))?
        }
        // Its URL comes below.
        (None, Some(_)) => kube::Config::new(Default::default()),
        (None, None) => kube::Config::incluster()
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_server_without_a_kubeconfig_is_asked_as_nobody() {
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", server.local_addr().unwrap());
        let client = client_to(None, Some(&url)).await.unwrap();
        let asked = async {
            let (mut stream, _) = server.accept().await.unwrap();
            let (mut request, mut chunk) = (String::new(), [0; 1024]);
            while !request.contains("\r\n\r\n") {
                let read = stream.read(&mut chunk).await.unwrap();
                request.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
            }
            stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").await.unwrap();
            request.to_lowercase()
        };
        let (request, answer) = tokio::join!(asked, client.apiserver_version());
        assert!(answer.is_err() && request.starts_with("get /version"), "{request}");
        assert!(!request.contains("authorization:"), "{request}");
        assert!(client_to(None, Some("https://10.0.0.1:6443")).await.is_ok(), "by the host's authorities");
        let error = client_to(None, Some("no url")).await.err().unwrap().to_string();
        assert!(error.contains("\"no url\" is not a URL"), "{error}");
    }
}
