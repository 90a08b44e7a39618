//! The program inside every lab pod, whatever its image is named.
//!
//! On each container port it answers HTTP, a line protocol on TCP, and UDP, always with who it is
//! and whom it sees ([`lab::answer::Answer`]). `POST /ready?value=false` makes its readiness
//! probes fail from then on. After SIGTERM it serves for five more seconds, as a well-behaved
//! server does while balancers learn that it leaves.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result};
use bytes::Bytes;
use clap::Parser;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use lab::answer::{Answer, Protocol};
use lab::sweep::MARK;
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{sleep, timeout};

const DRAIN: Duration = Duration::from_secs(5);

/// A client that says nothing for so long is waiting for us to speak first: it is not merely slow.
const SILENCE: Duration = Duration::from_secs(2);

#[derive(Debug, Parser)]
struct Args {
    #[arg(long)]
    pod: String,
    #[arg(long)]
    namespace: String,
    #[arg(long)]
    node: String,
    /// A TCP port to serve HTTP and lines on; repeatable.
    #[arg(long)]
    tcp: Vec<u16>,
    /// A UDP port to answer on; repeatable.
    #[arg(long)]
    udp: Vec<u16>,
}

#[derive(Debug)]
struct Pod {
    args: Args,
    hostname: String,
    environment: BTreeMap<String, String>,
    ready: AtomicBool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    let mut terminate = signal(SignalKind::terminate())?;
    // UDP first: where TCP is reached, a probe takes all to be there.
    let sockets = args.udp.iter().map(|port| udp_socket(*port)).collect::<Result<Vec<_>>>()?;
    let listeners = args.tcp.iter().map(|port| tcp_listener(*port)).collect::<Result<Vec<_>>>()?;
    let pod = Arc::new(Pod {
        hostname: std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim_end().to_owned(),
        environment: std::env::vars().filter(|(name, _)| name != MARK).collect(),
        ready: AtomicBool::new(true),
        args,
    });
    for listener in listeners {
        tokio::spawn(serve_tcp(listener, Arc::clone(&pod)));
    }
    for socket in sockets {
        tokio::spawn(serve_udp(socket, Arc::clone(&pod)));
    }
    terminate.recv().await;
    sleep(DRAIN).await;
    Ok(())
}

/// Both address families on one socket.
fn any(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))
}

fn tcp_listener(port: u16) -> Result<TcpListener> {
    let open = || -> std::io::Result<TcpListener> {
        let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_reuse_address(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&any(port).into())?;
        socket.listen(1024)?;
        TcpListener::from_std(socket.into())
    };
    open().with_context(|| format!("listening on TCP port {port}"))
}

fn udp_socket(port: u16) -> Result<UdpSocket> {
    let open = || -> std::io::Result<UdpSocket> {
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, None)?;
        socket.set_only_v6(false)?;
        socket.set_nonblocking(true)?;
        socket.bind(&any(port).into())?;
        UdpSocket::from_std(socket.into())
    };
    open().with_context(|| format!("listening on UDP port {port}"))
}

async fn serve_tcp(listener: TcpListener, pod: Arc<Pod>) {
    loop {
        // Accepting fails for a connection that is gone again, or without file handles: go on.
        if let Ok((stream, client)) = listener.accept().await {
            tokio::spawn(converse(stream, client, Arc::clone(&pod)));
        }
    }
}

/// HTTP if the client speaks HTTP, lines otherwise.
async fn converse(stream: TcpStream, client: SocketAddr, pod: Arc<Pod>) -> Result<()> {
    let server = canonical(stream.local_addr()?);
    let client = canonical(client);
    let mut start = [0; 8];
    let seen = timeout(SILENCE, stream.peek(&mut start)).await.unwrap_or(Ok(0))?;
    if !looks_like_http(&start[..seen]) {
        return lines(stream, seen == 0, client, server, &pod).await;
    }
    let answer = |request: Request<Incoming>| {
        let response = pod.respond(&request, client, server);
        async move { Ok::<_, Infallible>(response) }
    };
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service_fn(answer))
        .await
        .context("serving HTTP")
}

fn looks_like_http(start: &[u8]) -> bool {
    const METHODS: [&[u8]; 7] = [b"GET ", b"POST ", b"PUT ", b"HEAD ", b"DELETE ", b"PATCH ", b"OPTIONS "];
    METHODS.iter().any(|method| start.starts_with(method))
}

/// A banner to whom waits for one, then an answer to each line.
async fn lines(
    stream: TcpStream,
    banner: bool,
    client: SocketAddr,
    server: SocketAddr,
    pod: &Pod,
) -> Result<()> {
    let mut stream = BufReader::new(stream);
    let mut heard = String::new();
    let mut speak = banner;
    loop {
        if speak {
            let line = pod.answer(Protocol::Tcp, client, server, heard.trim_end()).to_line() + "\n";
            stream.get_mut().write_all(line.as_bytes()).await?;
        }
        speak = true;
        heard.clear();
        if stream.read_line(&mut heard).await? == 0 {
            return Ok(());
        }
    }
}

async fn serve_udp(socket: UdpSocket, pod: Arc<Pod>) -> Result<()> {
    let server = canonical(socket.local_addr()?);
    let mut datagram = [0; 2048];
    loop {
        // An earlier answer that met a closed port comes back as an error here: go on.
        let Ok((length, client)) = socket.recv_from(&mut datagram).await else { continue };
        let heard = String::from_utf8_lossy(&datagram[..length]);
        let answer = pod.answer(Protocol::Udp, canonical(client), server, heard.trim_end());
        let _ = socket.send_to(answer.to_line().as_bytes(), client).await;
    }
}

fn canonical(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V6(v6) if v6.is_unspecified() => address,
        ip => SocketAddr::new(ip.to_canonical(), address.port()),
    }
}

impl Pod {
    fn answer(&self, protocol: Protocol, client: SocketAddr, server: SocketAddr, heard: &str) -> Answer {
        Answer {
            pod: self.args.pod.clone(),
            namespace: self.args.namespace.clone(),
            node: self.args.node.clone(),
            hostname: self.hostname.clone(),
            client,
            server,
            protocol,
            heard: heard.to_owned(),
            environment: BTreeMap::new(),
        }
    }

    fn respond(
        &self,
        request: &Request<Incoming>,
        client: SocketAddr,
        server: SocketAddr,
    ) -> Response<Full<Bytes>> {
        let uri = request.uri();
        if uri.path() == "/ready" && request.method() == Method::POST {
            let ready = uri.query() != Some("value=false");
            self.ready.store(ready, Ordering::Relaxed);
            return text(StatusCode::OK, format!("ready: {ready}\n"));
        }
        let from_kubelet = request
            .headers()
            .get(header::USER_AGENT)
            .and_then(|agent| agent.to_str().ok())
            .is_some_and(|agent| agent.starts_with("kube-probe/"));
        if from_kubelet || matches!(uri.path(), "/healthz" | "/ready") {
            return match self.ready.load(Ordering::Relaxed) {
                true => text(StatusCode::OK, "ok\n".to_owned()),
                false => text(StatusCode::SERVICE_UNAVAILABLE, "not ready\n".to_owned()),
            };
        }
        let mut answer = self.answer(Protocol::Http, client, server, uri.path());
        answer.environment.clone_from(&self.environment);
        let mut response = text(StatusCode::OK, answer.to_line() + "\n");
        response
            .headers_mut()
            .insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
        response
    }
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response
}
