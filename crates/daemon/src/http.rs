//! A small HTTP/1.1 server for probes and metrics: exact paths, GET only, bounded connections.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Method, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::Readiness;

pub type Response = hyper::Response<Full<Bytes>>;
pub type Request = hyper::http::request::Parts;

type Handler = Box<dyn Fn(&Request) -> Response + Send + Sync>;

const MAX_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

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
    pub async fn bind(address: SocketAddr, router: Router) -> Result<Self, BindError> {
        let listener = TcpListener::bind(address).await.map_err(|source| BindError { address, source })?;
        Ok(Self { listener, router: Arc::new(router) })
    }

    /// # Errors
    /// When the socket is gone.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until cancelled.
    ///
    /// # Errors
    /// None so far; a failed accept is retried.
    pub async fn run(self, cancel: CancellationToken) -> anyhow::Result<()> {
        let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        loop {
            let slot = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                slot = Arc::clone(&slots).acquire_owned() => slot?,
            };
            let stream = tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "accepting a probe connection failed; trying again");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                },
            };
            let (router, cancel) = (Arc::clone(&self.router), cancel.clone());
            tokio::spawn(async move {
                serve_connection(stream, &router, cancel).await;
                drop(slot);
            });
        }
    }
}

async fn serve_connection(stream: tokio::net::TcpStream, router: &Router, cancel: CancellationToken) {
    let answer = |request: hyper::Request<Incoming>| {
        let (parts, _) = request.into_parts();
        let response = router.answer(&parts);
        async move { Ok::<_, Infallible>(response) }
    };
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service_fn(answer));
    tokio::select! {
        () = cancel.cancelled() => {}
        ended = connection => if let Err(error) = ended {
            tracing::debug!(%error, "a probe connection ended early");
        },
    }
}

/// Binds and answers until cancelled, in one call.
///
/// # Errors
/// When the address cannot be bound.
pub async fn serve(address: SocketAddr, router: Router, cancel: CancellationToken) -> anyhow::Result<()> {
    Server::bind(address, router).await?.run(cancel).await
}

/// `/livez`, `/readyz` and `/metrics`.
pub fn standard_routes(readiness: Readiness, registry: Arc<Mutex<Registry>>) -> Router {
    Router::new()
        .get("/livez", |_| text(StatusCode::OK, "ok\n"))
        .get("/readyz", move |_| match readiness.missing() {
            missing if missing.is_empty() => text(StatusCode::OK, "ok\n"),
            missing => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("waiting for: {}\n", missing.join(", ")))
            }
        })
        .get("/metrics", move |_| metrics(&registry))
}

/// The registry in the OpenMetrics text format.
pub fn metrics(registry: &Mutex<Registry>) -> Response {
    let mut body = String::new();
    let registry = registry.lock().unwrap_or_else(PoisonError::into_inner);
    match prometheus_client::encoding::text::encode(&mut body, &registry) {
        Ok(()) => {
            with_type(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", body)
        }
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, "text/plain; charset=utf-8", body)
}

pub fn json(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, "application/json", body)
}

fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn readyz_lists_what_is_missing_until_it_has_happened() {
        let readiness = Readiness::default();
        let token = readiness.task("first-plan");
        let router = standard_routes(readiness, Arc::new(Mutex::new(Registry::default())));
        let server = Server::bind("127.0.0.1:0".parse().unwrap(), router).await.unwrap();
        let (address, cancel) = (server.local_addr().unwrap(), CancellationToken::new());
        let running = tokio::spawn(server.run(cancel.clone()));

        let before = get(address, "/readyz").await;
        assert!(
            before.starts_with("HTTP/1.1 503") && before.ends_with("waiting for: first-plan\n"),
            "{before}"
        );
        token.done();
        assert!(get(address, "/readyz").await.starts_with("HTTP/1.1 200"));
        assert!(get(address, "/livez").await.ends_with("ok\n"));
        assert!(get(address, "/metrics").await.contains("# EOF"));
        assert!(get(address, "/nothing").await.starts_with("HTTP/1.1 404"));

        cancel.cancel();
        running.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_taken_port_is_an_error_that_names_it() {
        let first = Server::bind("127.0.0.1:0".parse().unwrap(), Router::new()).await.unwrap();
        let address = first.local_addr().unwrap();
        let error = Server::bind(address, Router::new()).await.unwrap_err();
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
