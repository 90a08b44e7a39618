//! A small HTTP/1.1 server for probes and metrics: exact paths, GET only, bounded connections.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use nix::errno::Errno;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::ReadyToken;

pub type Response = hyper::Response<Full<Bytes>>;
pub type Request = hyper::http::request::Parts;

type Handler = Box<dyn Fn(&Request) -> Response + Send + Sync>;

/// Connections that the kernel keeps until they are accepted.
const BACKLOG: u32 = 1024;
/// Health checks of many load balancers come to one port, most of them without keep-alive.
const MAX_CONNECTIONS: usize = 256;
/// For the headers of a request, and for the silence between two requests on one connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// A connection that lives longer is not a probe's; a client that never reads its answer ends here.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(300);
/// How long answers that have begun may take after a stop.
const DRAIN: Duration = Duration::from_secs(1);
/// Until an address that is taken is tried again.
const BIND_RETRY: Duration = Duration::from_secs(1);
/// Between two failed accepts (no file descriptors left, most often).
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Handlers by exact path.
#[derive(Default)]
pub struct Router {
    routes: BTreeMap<&'static str, Handler>,
    fallback: Option<Handler>,
}

/// A bound listener that has not begun to answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    router: Arc<Router>,
}

/// The address cannot be bound.
#[derive(Debug, thiserror::Error)]
#[error(
    "cannot listen on {address}: {source}; is another instance running, or the address not on this host?"
)]
pub struct BindError {
    pub address: SocketAddr,
    pub source: std::io::Error,
}

impl Router {
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn get(
        mut self,
        path: &'static str,
        handler: impl Fn(&Request) -> Response + Send + Sync + 'static,
    ) -> Self {
        self.routes.insert(path, Box::new(handler));
        self
    }

    /// Answers every path that has no handler of its own; without it they get 404.
    #[must_use]
    pub fn otherwise(mut self, handler: impl Fn(&Request) -> Response + Send + Sync + 'static) -> Self {
        self.fallback = Some(Box::new(handler));
        self
    }

    fn answer(&self, request: &Request) -> Response {
        if request.method != Method::GET && request.method != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET is served here\n");
        }
        match self.routes.get(request.uri.path()).or(self.fallback.as_ref()) {
            Some(handler) => handler(request),
            None => text(StatusCode::NOT_FOUND, "not found\n"),
        }
    }
}

impl Server {
    /// Binds at once, so that a taken port is an error at start.
    ///
    /// # Errors
    /// [`BindError`], which names the address.
    pub fn bind(address: SocketAddr, router: Router) -> Result<Self, BindError> {
        let listener = listen(address).map_err(|source| BindError { address, source })?;
        Ok(Self { listener, router: Arc::new(router) })
    }

    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until cancelled; then answers that have begun are finished, for a second at most.
    ///
    /// # Errors
    /// None so far; a failed accept is retried.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let limits = Limits { header: HEADER_TIMEOUT, connection: CONNECTION_TIMEOUT };
        self.run_within(limits, cancel).await
    }

    async fn run_within(self, limits: Limits, cancel: CancellationToken) -> anyhow::Result<()> {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut connections = JoinSet::new();
        while let Some((stream, slot)) = cancel.run_until_cancelled(self.accept(&slots)).await {
            let (router, cancel) = (Arc::clone(&self.router), cancel.clone());
            connections.spawn(async move {
                serve_connection(stream, &router, limits, cancel).await;
                drop(slot);
            });
            while connections.try_join_next().is_some() {}
        }
        let finished = async { while connections.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, finished).await.is_err() {
            tracing::debug!(left = connections.len(), "some probe connections were cut");
        }
        Ok(())
    }

    /// The next connection, once there is room for one.
    async fn accept(&self, slots: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
        let slot = Arc::clone(slots).acquire_owned().await.expect("the slots are never closed");
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => return (stream, slot),
                Err(error) => {
                    tracing::warn!(%error, "accepting a probe connection failed; trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    header: Duration,
    connection: Duration,
}

async fn serve_connection(stream: TcpStream, router: &Router, limits: Limits, cancel: CancellationToken) {
    let answer = |request: hyper::Request<Incoming>| {
        let (parts, _) = request.into_parts();
        let response = router.answer(&parts);
        async move { Ok::<_, Infallible>(response) }
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    let served = async {
        let mut connection = pin!(connection);
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    match tokio::time::timeout(limits.connection, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a probe connection ended early"),
        Err(_) => tracing::debug!("a probe connection was open for too long and is closed"),
    }
}

/// An unspecified address, of either family, answers both, as in Go (`favoriteAddrFamily`): also where
/// `net.ipv6.bindv6only` says otherwise. Where the kernel has no IPv6, `0.0.0.0` answers IPv4 alone.
///
/// # Errors
/// When the address is taken or not on this host.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    listen_by(TcpSocket::new_v6, address)
}

fn listen_by(new_v6: impl FnOnce() -> io::Result<TcpSocket>, address: SocketAddr) -> io::Result<TcpListener> {
    let (socket, address) = match address {
        address if address.ip().is_unspecified() => of_both_families(new_v6, address)?,
        SocketAddr::V4(_) => (TcpSocket::new_v4()?, address),
        SocketAddr::V6(_) => (new_v6()?, address),
    };
    // Connections of an earlier server may be in TIME_WAIT.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// A socket, with what it is to be bound to.
fn of_both_families(
    new_v6: impl FnOnce() -> io::Result<TcpSocket>,
    every: SocketAddr,
) -> io::Result<(TcpSocket, SocketAddr)> {
    match new_v6() {
        Ok(socket) => {
            setsockopt(&socket, sockopt::Ipv6V6Only, &false)?;
            Ok((socket, (Ipv6Addr::UNSPECIFIED, every.port()).into()))
        }
        Err(error) if every.is_ipv4() && error.raw_os_error() == Some(Errno::EAFNOSUPPORT as i32) => {
            Ok((TcpSocket::new_v4()?, every))
        }
        Err(error) => Err(error),
    }
}

/// As [`serve`]; while the address is taken, or not on this host, it is tried again.
/// The token is done once we listen.
///
/// # Errors
/// None so far.
pub async fn serve_once_free(
    address: SocketAddr,
    router: Router,
    listening: ReadyToken,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let mut refused = false;
    let bound = async {
        loop {
            match listen(address) {
                Ok(listener) => return listener,
                Err(source) if refused => tracing::debug!(%address, error = %source, "still not listening"),
                Err(source) => {
                    refused = true;
                    let error = BindError { address, source };
                    tracing::warn!(%error, "trying again until it can be listened on");
                }
            }
            tokio::time::sleep(BIND_RETRY).await;
        }
    };
    let Some(listener) = cancel.run_until_cancelled(bound).await else { return Ok(()) };
    listening.done();
    Server { listener, router: Arc::new(router) }.run(cancel).await
}

/// Binds and answers until cancelled, in one call.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, router: Router, cancel: CancellationToken) -> anyhow::Result<()> {
    Server::bind(address, router)?.run(cancel).await
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, "text/plain; charset=utf-8", body)
}

pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, "application/json", body)
}

pub(crate) fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

impl std::fmt::Debug for Router {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.routes.keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::Mutex;

    use prometheus_client::registry::Registry;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::Readiness;
    use crate::routes::standard_routes;

    const DEADLINE: Duration = Duration::from_secs(10);

    struct Running {
        address: SocketAddr,
        cancel: CancellationToken,
        task: JoinHandle<anyhow::Result<()>>,
    }

    impl Running {
        async fn start(router: Router, limits: Limits) -> Self {
            let server = Server::bind("127.0.0.1:0".parse().unwrap(), router).unwrap();
            let (address, cancel) = (server.local_addr().unwrap(), CancellationToken::new());
            let task = tokio::spawn(server.run_within(limits, cancel.clone()));
            Self { address, cancel, task }
        }

        async fn connect(&self) -> TcpStream {
            TcpStream::connect(self.address).await.unwrap()
        }

        async fn ask(&self, request: &str) -> String {
            let mut stream = self.connect().await;
            stream.write_all(request.as_bytes()).await.unwrap();
            rest(stream).await
        }

        async fn get(&self, path: &str) -> String {
            self.ask(&format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await
        }

        async fn stop(self) {
            self.cancel.cancel();
            tokio::time::timeout(DEADLINE, self.task).await.expect("the server stops").unwrap().unwrap();
        }
    }

    /// Everything until the server closes.
    async fn rest(mut stream: TcpStream) -> String {
        let mut answer = String::new();
        tokio::time::timeout(DEADLINE, stream.read_to_string(&mut answer)).await.expect("it closes").unwrap();
        answer
    }

    const PATIENT: Limits = Limits { header: DEADLINE, connection: DEADLINE };
    const HASTY: Duration = Duration::from_millis(50);

    #[tokio::test]
    async fn readyz_lists_what_is_missing_until_it_has_happened() {
        let readiness = Readiness::default();
        let token = readiness.task("first-plan");
        let router = standard_routes(readiness, Arc::new(Mutex::new(Registry::default())));
        let server = Running::start(router, PATIENT).await;

        let before = server.get("/readyz").await;
        assert!(
            before.starts_with("HTTP/1.1 503") && before.ends_with("waiting for: first-plan\n"),
            "{before}"
        );
        token.done();
        assert!(server.get("/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(server.get("/livez").await.ends_with("ok\n"));
        assert!(server.get("/metrics").await.contains("# EOF"));
        server.stop().await;
    }

    #[tokio::test]
    async fn a_path_is_matched_as_a_whole_and_only_get_and_head_are_answered() {
        let router = Router::new().get("/healthz", |_| text(StatusCode::OK, "fine\n"));
        let server = Running::start(router, PATIENT).await;
        let table = [
            ("GET /healthz", "200"),
            ("GET /healthz?verbose", "200"),
            ("HEAD /healthz", "200"),
            ("GET /healthz/", "404"),
            ("GET /", "404"),
            ("PUT /healthz", "405"),
        ];
        for (line, status) in table {
            let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
            let answer = server.ask(&request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{line}: {answer}");
            assert_eq!(
                answer.ends_with("fine\n"),
                line.starts_with("GET") && status == "200",
                "{line}: {answer}"
            );
        }
        server.stop().await;
    }

    /// In a network namespace with these sysctls: which loopback addresses a listener there can be reached by.
    fn reached_by(
        sysctls: &[(&str, &str)],
        listen: impl FnOnce() -> io::Result<TcpListener> + Send,
    ) -> Vec<IpAddr> {
        let reached = || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("needs root");
            let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
            assert!(up.success(), "lo is up");
            for (name, value) in sysctls {
                std::fs::write(format!("/proc/sys/net/ipv6/{name}"), value).unwrap();
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _entered = runtime.enter();
            let listener = listen().unwrap();
            let port = listener.local_addr().unwrap().port();
            let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
            let reached = |ip: &IpAddr| std::net::TcpStream::connect((*ip, port)).is_ok();
            loopback.into_iter().filter(reached).collect()
        };
        std::thread::scope(|scope| scope.spawn(reached).join().unwrap())
    }

    #[test]
    fn every_address_is_of_both_families_whoever_asks_for_it_and_whatever_the_sysctl_says() {
        let both: [IpAddr; 2] = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        for every in ["0.0.0.0:0", "[::]:0"] {
            for bindv6only in ["0", "1"] {
                let sysctls = [("bindv6only", bindv6only)];
                let reached = reached_by(&sysctls, || listen(every.parse().unwrap()));
                assert_eq!(reached, both, "{every} with bindv6only={bindv6only}");
            }
        }
    }

    #[test]
    fn one_address_is_of_its_family_alone() {
        for one in ["127.0.0.1:0", "[::1]:0"] {
            let address: SocketAddr = one.parse().unwrap();
            assert_eq!(reached_by(&[], || listen(address)), [address.ip()]);
        }
    }

    #[test]
    fn without_ipv6_every_address_is_ipv4s() {
        let v4: [IpAddr; 1] = [Ipv4Addr::LOCALHOST.into()];
        let every: SocketAddr = "0.0.0.0:0".parse().unwrap();
        assert_eq!(reached_by(&[("conf/all/disable_ipv6", "1")], || listen(every)), v4, "switched off");
        let lacking = || Err(Errno::EAFNOSUPPORT.into());
        assert_eq!(reached_by(&[], || listen_by(lacking, every)), v4, "not in the kernel");
        let out_of_files = || Err(Errno::EMFILE.into());
        let error = listen_by(out_of_files, every).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::EMFILE as i32), "says nothing of IPv6");
    }

    #[tokio::test]
    async fn otherwise_answers_what_no_route_does() {
        let router = Router::new().otherwise(|request| text(StatusCode::OK, request.uri.path().to_owned()));
        let server = Running::start(router, PATIENT).await;
        assert!(server.get("/any/path").await.ends_with("/any/path"));
        server.stop().await;
    }

    #[tokio::test]
    async fn one_connection_carries_many_requests_and_a_stop_closes_it_while_idle() {
        let server =
            Running::start(Router::new().get("/livez", |_| text(StatusCode::OK, "ok\n")), PATIENT).await;
        let mut stream = server.connect().await;
        for _ in 0..2 {
            stream.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let (mut answer, mut chunk) = (String::new(), [0; 512]);
            while !answer.ends_with("\r\n\r\nok\n") {
                let read = tokio::time::timeout(DEADLINE, stream.read(&mut chunk)).await.unwrap().unwrap();
                assert_ne!(read, 0, "closed after {answer:?}");
                answer.push_str(std::str::from_utf8(&chunk[..read]).unwrap());
            }
        }
        server.stop().await;
        assert_eq!(rest(stream).await, "");
    }

    #[tokio::test]
    async fn a_client_that_says_nothing_and_one_that_never_finishes_are_closed() {
        for (limits, sent) in [
            (Limits { header: HASTY, connection: DEADLINE }, ""),
            (Limits { header: HASTY, connection: DEADLINE }, "GET /livez HTTP/1.1\r\nHost:"),
            (Limits { header: DEADLINE, connection: HASTY }, ""),
        ] {
            let server = Running::start(Router::new(), limits).await;
            let answer = server.ask(sent).await;
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{limits:?}: {answer}");
            server.stop().await;
        }
    }

    #[tokio::test]
    async fn beyond_the_limit_connections_wait_for_room() {
        let router = Router::new().get("/livez", |_| text(StatusCode::OK, "ok\n"));
        let server = Running::start(router, PATIENT).await;
        let mut idle = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            idle.push(server.connect().await);
        }
        let mut waiting = Box::pin(server.get("/livez"));
        assert!(tokio::time::timeout(HASTY, waiting.as_mut()).await.is_err(), "there is no room");
        idle.pop();
        assert!(tokio::time::timeout(DEADLINE, waiting).await.expect("there is room").ends_with("ok\n"));
        server.stop().await;
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_it() {
        let first = Server::bind("127.0.0.1:0".parse().unwrap(), Router::new()).unwrap();
        let address = first.local_addr().unwrap();
        let error = serve(address, Router::new(), CancellationToken::new()).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }

    #[tokio::test]
    async fn an_address_that_is_taken_is_served_once_it_is_free() {
        let other = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, cancel) = (other.local_addr().unwrap(), CancellationToken::new());
        let readiness = Readiness::default();
        let router = Router::new().get("/", |_| text(StatusCode::OK, "here"));
        let task =
            tokio::spawn(serve_once_free(address, router, readiness.task("listening"), cancel.clone()));
        // The other one still has the port: what connects is its.
        let connected = TcpStream::connect(address).await.unwrap();
        other.accept().await.unwrap();
        assert_eq!(readiness.missing(), ["listening"]);
        drop((connected, other));
        let running = Running { address, cancel, task };
        let answered = async {
            while !readiness.missing().is_empty() {
                tokio::task::yield_now().await;
            }
            running.get("/").await
        };
        let answer = tokio::time::timeout(DEADLINE, answered).await.expect("it is served");
        assert!(answer.ends_with("here"), "{answer}");
        running.stop().await;
    }
}
