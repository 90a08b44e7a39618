//! A node: a health check and a service on a NodePort that says who answers.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "a part of test binaries")]

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;

use crate::net::{Host, Lan};

pub const NODE_PORT: u16 = 30080;
pub const HEALTH_PORT: u16 = 10256;

pub struct Node {
    pub name: String,
    pub address: Ipv4Addr,
    healthy: Arc<AtomicBool>,
    // The servers end before their network does.
    _servers: Runtime,
    _host: Host,
}

impl Node {
    pub fn new(lan: &Lan, number: u8) -> Self {
        let (name, address) = (format!("node-{number}"), Ipv4Addr::new(172, 30, 0, 10 + number));
        let host = lan.host(&name, address);
        let healthy = Arc::new(AtomicBool::new(true));
        let (health, own) = (Arc::clone(&healthy), name.clone());
        // Threads that are started inside stay inside.
        let servers = host.run(|| {
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
            runtime.block_on(async {
                let checks = TcpListener::bind((address, HEALTH_PORT)).await.unwrap();
                let service = TcpListener::bind((address, NODE_PORT)).await.unwrap();
                tokio::spawn(answer_checks(checks, health));
                tokio::spawn(serve(service, own));
            });
            runtime
        });
        Self { name, address, healthy, _servers: servers, _host: host }
    }

    pub fn set_healthy(&self, healthy: bool) {
        self.healthy.store(healthy, Ordering::SeqCst);
    }
}

async fn answer_checks(listener: TcpListener, healthy: Arc<AtomicBool>) {
    loop {
        let (mut stream, _) = listener.accept().await.unwrap();
        let status = if healthy.load(Ordering::SeqCst) { "200 OK" } else { "503 Service Unavailable" };
        tokio::spawn(async move {
            let mut request = [0; 512];
            let _length = stream.read(&mut request).await;
            let _sent = stream.write_all(format!("HTTP/1.1 {status}\r\n\r\n").as_bytes()).await;
        });
    }
}

/// Greets with a line that holds the node's name, then sends back what it gets.
async fn serve(listener: TcpListener, name: String) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        tokio::spawn(echo(stream, format!("{name}\n")));
    }
}

async fn echo(mut stream: TcpStream, greeting: String) -> std::io::Result<()> {
    stream.write_all(greeting.as_bytes()).await?;
    let mut buffer = [0; 4096];
    loop {
        let length = stream.read(&mut buffer).await?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
    }
}
