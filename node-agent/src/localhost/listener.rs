//! One listener, and the connections that came over it.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
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
/// Seconds of silence before a peer is asked whether it is still there, and between two questions; Go's,
/// hence kube-proxy's.
const KEEP_ALIVE: u32 = 15;

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
                accepted = listener.accept() => accepted,
            };
            let client = match accepted {
                Ok((client, _)) => client,
                Err(error) => {
                    tracing::warn!(%error, "accepting a connection on loopback; trying again");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            // Taken by who has a client, so that listeners nobody asks take none. Further clients wait in the
            // kernel's backlog.
            let slot = tokio::select! {
                () = close.cancelled() => return,
                () = stop.cancelled() => break,
                slot = Arc::clone(&slots).acquire_owned() => slot.expect("the slots are never closed"),
            };
            let mut choice = choice.lock().unwrap_or_else(PoisonError::into_inner);
            let target = choice.pick(Instant::now(), random.hash_one(count));
            connections.spawn(serve(client, target, slot));
        }
        drop(listener);
        let ended = async { while connections.join_next().await.is_some() {} };
        close.run_until_cancelled(ended).await;
    }
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
    for side in [&client, &endpoint] {
        // Whoever wrote decides how much goes at once.
        side.set_nodelay(true)?;
        // A peer that is gone without a word does not hold its slot for ever.
        setsockopt(side, sockopt::KeepAlive, &true)?;
        setsockopt(side, sockopt::TcpKeepIdle, &KEEP_ALIVE)?;
        setsockopt(side, sockopt::TcpKeepInterval, &KEEP_ALIVE)?;
    }
    copy_bidirectional(&mut client, &mut endpoint).await?;
    Ok(())
}
