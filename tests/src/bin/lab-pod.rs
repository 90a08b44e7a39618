//! What runs in every pod of the lab, whatever its image is called: answers on each container port,
//! over HTTP, plain TCP and UDP, who it is and whom it saw.
//!
//! * HTTP `GET /`: a JSON object with `pod`, `node`, `client` and `env`
//! * HTTP `GET /healthz`: 200, or 503 after `POST /ready?value=false`
//! * TCP without HTTP: each line is answered with `pod node client line`
//! * UDP: each datagram is answered with `pod node client datagram`
//!
//! After SIGTERM it goes on serving for five seconds, as well-behaved servers do.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};

const LINGER: Duration = Duration::from_secs(5);

struct Pod {
    name: String,
    node: String,
    ready: AtomicBool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let variable = |name| std::env::var(name).unwrap_or_default();
    let pod = Arc::new(Pod {
        name: variable("POD_NAME"),
        node: variable("NODE_NAME"),
        ready: AtomicBool::new(true),
    });
    for port in variable("LAB_PORTS").split(',').filter(|p| !p.is_empty()) {
        let (number, protocol) = port.split_once('/').unwrap_or((port, "TCP"));
        let address: SocketAddr = format!("[::]:{number}").parse()?;
        if protocol == "UDP" {
            tokio::spawn(serve_udp(UdpSocket::bind(address).await?, Arc::clone(&pod)));
        } else {
            tokio::spawn(serve_tcp(TcpListener::bind(address).await?, Arc::clone(&pod)));
        }
    }
    terminate.recv().await;
    tokio::time::sleep(LINGER).await;
    Ok(())
}

async fn serve_udp(socket: UdpSocket, pod: Arc<Pod>) {
    let mut buffer = vec![0u8; 65_536];
    while let Ok((length, client)) = socket.recv_from(&mut buffer).await {
        let head = format!("{} {} {} ", pod.name, pod.node, canonical(client));
        let answer = [head.as_bytes(), &buffer[..length]].concat();
        drop(socket.send_to(&answer, client).await);
    }
}

async fn serve_tcp(listener: TcpListener, pod: Arc<Pod>) {
    while let Ok((stream, client)) = listener.accept().await {
        tokio::spawn(serve_connection(stream, canonical(client), Arc::clone(&pod)));
    }
}

async fn serve_connection(stream: TcpStream, client: SocketAddr, pod: Arc<Pod>) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (reader, mut writer) = stream.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = String::new();
    while reader.read_line(&mut line).await? > 0 {
        let words: Vec<&str> = line.split_whitespace().collect();
        let answer = match words[..] {
            [method, path, version] if version.starts_with("HTTP/") => {
                let (close, length) = read_headers(&mut reader, version == "HTTP/1.0").await?;
                let mut body = vec![0; length];
                reader.read_exact(&mut body).await?;
                writer.write_all(http_answer(method, path, client, &pod).as_bytes()).await?;
                if close {
                    return Ok(());
                }
                String::new()
            }
            _ => format!("{} {} {client} {line}", pod.name, pod.node),
        };
        writer.write_all(answer.as_bytes()).await?;
        line.clear();
    }
    Ok(())
}

/// Whether the connection closes after the answer, and the body's length.
async fn read_headers(
    reader: &mut (impl AsyncBufReadExt + Unpin),
    close: bool,
) -> std::io::Result<(bool, usize)> {
    let (mut close, mut length) = (close, 0);
    loop {
        let mut header = String::new();
        if reader.read_line(&mut header).await? == 0 || header.trim().is_empty() {
            return Ok((close, length));
        }
        let header = header.to_lowercase();
        if let Some(value) = header.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap_or(0);
        }
        if let Some(value) = header.strip_prefix("connection:") {
            close = value.trim() == "close";
        }
    }
}

fn http_answer(method: &str, path: &str, client: SocketAddr, pod: &Pod) -> String {
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let (status, body) = match (method, path) {
        ("POST", "/ready") => {
            pod.ready.store(query != "value=false", Ordering::Relaxed);
            ("200 OK", "ok\n".to_owned())
        }
        (_, "/healthz") if pod.ready.load(Ordering::Relaxed) => ("200 OK", "ok\n".to_owned()),
        (_, "/healthz") => ("503 Service Unavailable", "not ready\n".to_owned()),
        _ => {
            let env: BTreeMap<String, String> = std::env::vars().filter(|(k, _)| k != "PATH").collect();
            let body = serde_json::json!({"pod": pod.name, "node": pod.node, "client": client.to_string(), "env": env});
            ("200 OK", format!("{body}\n"))
        }
    };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// An IPv4 client as such, not mapped into IPv6.
fn canonical(client: SocketAddr) -> SocketAddr {
    SocketAddr::new(client.ip().to_canonical(), client.port())
}
