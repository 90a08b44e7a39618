//! The first signal drains, the second ends.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Listens for SIGTERM and SIGINT, for as long as the process runs: dropping this does not give the
/// signals back their default of ending the process.
#[derive(Debug, Clone)]
pub struct Shutdown {
    graceful: CancellationToken,
    forced: CancellationToken,
}

impl Shutdown {
    /// Starts listening. Must be called inside a runtime.
    ///
    /// # Errors
    /// When the handlers cannot be installed.
    pub fn listen() -> std::io::Result<Self> {
        let shutdown = Self { graceful: CancellationToken::new(), forced: CancellationToken::new() };
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let told = shutdown.clone();
        tokio::spawn(async move {
            for token in [told.graceful, told.forced] {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                token.cancel();
            }
        });
        Ok(shutdown)
    }

    /// Cancelled by the first signal.
    pub fn token(&self) -> CancellationToken {
        self.graceful.clone()
    }

    /// Whether a second signal has come.
    pub fn is_forced(&self) -> bool {
        self.forced.is_cancelled()
    }

    /// Resolves at the second signal: stop waiting for anything.
    pub async fn forced(&self) {
        self.forced.cancelled().await;
    }
}
