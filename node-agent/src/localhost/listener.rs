//! One listener, and the connections that came over it.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::choice::Choice;
use crate::nft::layout::Target;

/// For a connection to an endpoint; kube-proxy's.
const DIAL: Duration = Duration::from_secs(5);
/// After an error that is not one connection's, such as no descriptor left.
const PAUSE: Duration = Duration::from_secs(1);

pub(super) struct Listener {
    pub(super) listener: TcpListener,
    pub(super) choice: Arc<Mutex<Choice>>,
    /// One for each connection that may be.
    pub(super) slots: Arc<Semaphore>,
    /// No new connections.
    pub(super) stop: CancellationToken,
    /// No connections.
    pub(super) close: CancellationToken,
}

impl Listener {
    /// Until it is stopped and the last connection has ended, or it is closed.
    pub(super) async fn run(self) {
        let Self { listener, choice, slots, stop, close } = self;
        let random = RandomState::new();
        let mut connections = JoinSet::new();
        for count in 0_u64.. {
            let accepted = tokio::select! {
                () = close.cancelled() => return,
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = accept(&listener, &slots) => accepted,
            };
            match accepted {
                Ok((client, slot)) => {
                    let target = choice
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .pick(Instant::now(), random.hash_one(count));
                    connections.spawn(serve(client, target, slot));
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection on loopback; trying again");
                    sleep(PAUSE).await;
                }
            }
        }
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        close.run_until_cancelled(ended).await;
    }
}

/// Waits for a free slot first: until then clients wait in the kernel's backlog.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let slot = Arc::clone(slots).acquire_owned().await.map_err(io::Error::other)?;
    let (client, _) = listener.accept().await?;
    Ok((client, slot))
}

/// Until both sides have ended: each may end its half before the other. Holds two buffers of 8 KiB.
async fn serve(client: TcpStream, target: Option<Target>, _slot: OwnedSemaphorePermit) {
    let Some(target) = target else { return };
    if let Err(error) = relay(client, target).await {
        tracing::debug!(%target, %error, "a connection over loopback ended");
    }
}

async fn relay(mut client: TcpStream, target: Target) -> io::Result<()> {
    let mut endpoint = timeout(DIAL, TcpStream::connect((target.ip, target.port))).await??;
    // Whoever wrote decides how much goes at once.
    client.set_nodelay(true)?;
    endpoint.set_nodelay(true)?;
    copy_bidirectional(&mut client, &mut endpoint).await?;
    Ok(())
}
