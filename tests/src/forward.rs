//! A port on the machine's loopback that leads into a namespace, so that kubectl works outside.

use std::net::{SocketAddr, TcpStream as StdTcpStream};
use std::path::PathBuf;
use std::sync::mpsc;

use anyhow::Context;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

type Dial = oneshot::Sender<std::io::Result<StdTcpStream>>;

/// Forwards connections for as long as it lives.
#[derive(Debug)]
pub struct Forwarder {
    pub address: SocketAddr,
    task: tokio::task::JoinHandle<()>,
}

impl Forwarder {
    /// Listens on `listen` and leads to `target` inside the namespace.
    ///
    /// # Errors
    /// When the port is taken.
    pub async fn start(listen: SocketAddr, namespace: PathBuf, target: SocketAddr) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("listening on {listen}"))?;
        let address = listener.local_addr()?;
        let (dial, dials) = mpsc::channel::<Dial>();
        // One thread lives inside the namespace and makes the sockets.
        std::thread::spawn(move || {
            let served = crate::netns::inside(&namespace, move || {
                while let Ok(answer) = dials.recv() {
                    drop(answer.send(StdTcpStream::connect(target)));
                }
            });
            if let Err(error) = served {
                tracing::warn!("forwarding to {target}: {error:#}");
            }
        });
        let task = tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let (answer, far) = oneshot::channel();
                if dial.send(answer).is_err() {
                    return;
                }
                tokio::spawn(async move {
                    if let Ok(Ok(far)) = far.await {
                        drop(copy(near, far).await);
                    }
                });
            }
        });
        Ok(Self { address, task })
    }
}

async fn copy(mut near: TcpStream, far: StdTcpStream) -> std::io::Result<()> {
    far.set_nonblocking(true)?;
    let mut far = TcpStream::from_std(far)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    tokio::io::copy_bidirectional(&mut near, &mut far).await?;
    Ok(())
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.task.abort();
    }
}
