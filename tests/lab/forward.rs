//! A door from the machine's own network into the lab's: `127.0.0.1:PORT` leads to one address inside.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

use crate::netns::Netns;
use crate::traffic;

/// Closes with this value, with every connection through it.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Door {
    /// # Errors
    /// When no loopback port is free.
    pub async fn open(inside: Arc<Netns>, target: SocketAddr) -> Result<Self> {
        let listener =
            TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("opening a loopback port")?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                if let Ok((outer, _)) = listener.accept().await {
                    connections.spawn(carry(outer, Arc::clone(&inside), target));
                }
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A refused connection inside ends the outer one too: the caller sees a reset and tries again.
async fn carry(mut outer: TcpStream, inside: Arc<Netns>, target: SocketAddr) {
    if let Ok(mut inner) = traffic::connect(&inside, None, target).await {
        let _ = copy_bidirectional(&mut outer, &mut inner).await;
    }
}
