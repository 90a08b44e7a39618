//! One UDP port that asks again and again, as resolvers and QUIC clients do.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::answer::Answer;

/// A resolver's patience with one server.
const PATIENCE: Duration = Duration::from_secs(1);

/// A socket that keeps its port.
#[derive(Debug)]
pub struct Dialogue {
    socket: UdpSocket,
    target: SocketAddr,
    asked: AtomicU32,
}

impl Dialogue {
    pub(super) async fn start(socket: UdpSocket, target: SocketAddr) -> Result<Self> {
        socket.connect(target).await?;
        Ok(Self { socket, target, asked: AtomicU32::new(0) })
    }

    /// One more datagram, and its own answer.
    ///
    /// # Errors
    /// When none comes in time, or the port is closed.
    pub async fn ask(&self) -> Result<Answer> {
        let target = self.target;
        let question = format!("question {}", self.asked.fetch_add(1, Ordering::Relaxed));
        self.socket.send(question.as_bytes()).await.with_context(|| format!("asking {target}"))?;
        let answered = async {
            let mut datagram = vec![0; 4096];
            loop {
                let length = self.socket.recv(&mut datagram).await?;
                let answer: Answer = serde_json::from_slice(&datagram[..length])?;
                // Others are late.
                if answer.heard == question {
                    return Ok(answer);
                }
            }
        };
        timeout(PATIENCE, answered)
            .await
            .with_context(|| format!("no answer from {target} within {PATIENCE:?}"))?
    }
}
