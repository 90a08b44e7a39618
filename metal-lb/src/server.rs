//! The control API: `PUT /v1/config` and `GET /v1/state` over mutual TLS.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use daemon::http::{Response, json};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metal_lb_api::Config;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::programmed::Programmed;
use crate::store::{Refusal, Store};
use crate::tls::{TlsFiles, has_dns_name};

/// A document of 10,000 listeners is about 2.5 MB.
const MAX_DOCUMENT: usize = 64 << 20;
const MAX_CONNECTIONS: usize = 32;
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// For the headers of a request, and for the silence between two requests on one connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

const SERVED: &str = "PUT /v1/config and GET /v1/state are served";

/// What a request can reach.
#[derive(Debug)]
pub struct Control {
    pub store: Mutex<Store>,
    /// The file that is in force instead of a controller.
    pub file: Option<String>,
    pub controller_name: String,
    pub accepted: watch::Sender<Option<Arc<Config>>>,
    pub programmed: watch::Receiver<Arc<Programmed>>,
}

/// Serves until cancelled.
///
/// # Errors
/// When no TLS files could ever be read.
pub async fn serve(
    listener: TcpListener,
    tls: TlsFiles,
    control: Arc<Control>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let slot = tokio::select! {
            () = cancel.cancelled() => break,
            slot = Arc::clone(&slots).acquire_owned() => slot?,
        };
        let stream = tokio::select! {
            () = cancel.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accepting a control connection failed; trying again");
                    tokio::time::sleep(ACCEPT_RETRY).await;
                    continue;
                }
            },
        };
        let (acceptor, control) = (tls.acceptor()?, Arc::clone(&control));
        connections.spawn(async move {
            if let Err(error) = serve_connection(stream, acceptor, control).await {
                tracing::debug!(error = format!("{error:#}"), "a control connection ended");
            }
            drop(slot);
        });
        while connections.try_join_next().is_some() {}
    }
    connections.shutdown().await;
    Ok(())
}

async fn serve_connection(
    stream: TcpStream,
    acceptor: tokio_rustls::TlsAcceptor,
    control: Arc<Control>,
) -> anyhow::Result<()> {
    let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await??;
    let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
    let is_controller = certificate.is_some_and(|c| has_dns_name(c, &control.controller_name));
    let service = service_fn(move |request| {
        let control = Arc::clone(&control);
        async move {
            let response = if is_controller {
                answer(control, request).await
            } else {
                let expected = &control.controller_name;
                message(StatusCode::FORBIDDEN, &format!("the client's certificate is not for {expected:?}"))
            };
            Ok::<_, Infallible>(response)
        }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .serve_connection(TokioIo::new(stream), service)
        .await?;
    Ok(())
}

async fn answer(control: Arc<Control>, request: Request<Incoming>) -> Response {
    match (request.method(), request.uri().path()) {
        (&Method::PUT, "/v1/config") => {
            let body = match tokio::time::timeout(BODY_TIMEOUT, read_body(request.into_body())).await {
                Ok(Ok(body)) => body,
                Ok(Err(refusal)) => return refusal,
                Err(_) => return message(StatusCode::REQUEST_TIMEOUT, "the document did not arrive in time"),
            };
            // Reading a large document and syncing it to disk takes its time.
            let put = tokio::task::spawn_blocking(move || put_config(&control, &body)).await;
            put.unwrap_or_else(|error| message(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()))
        }
        (&Method::GET, "/v1/state") => {
            let programmed = Arc::clone(&control.programmed.borrow());
            match serde_json::to_vec(&programmed.state) {
                Ok(body) => json(StatusCode::OK, body),
                Err(error) => message(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
            }
        }
        (_, "/v1/config" | "/v1/state") => message(StatusCode::METHOD_NOT_ALLOWED, SERVED),
        _ => message(StatusCode::NOT_FOUND, SERVED),
    }
}

async fn read_body(body: Incoming) -> Result<Bytes, Response> {
    match Limited::new(body, MAX_DOCUMENT).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => Err(message(
            StatusCode::PAYLOAD_TOO_LARGE,
            &format!("a document is at most {MAX_DOCUMENT} bytes"),
        )),
        Err(error) => Err(message(StatusCode::BAD_REQUEST, &error.to_string())),
    }
}

fn put_config(control: &Control, body: &[u8]) -> Response {
    let config = match Config::parse(body) {
        Ok(config) => config,
        Err(error) => {
            let body = serde_json::json!({"path": error.path, "message": error.message});
            return json(StatusCode::BAD_REQUEST, body.to_string());
        }
    };
    // Documents are handed over in the order in which they are accepted.
    let mut store = control.store.lock().unwrap_or_else(PoisonError::into_inner);
    let accepted = match &control.file {
        Some(file) => Err(Refusal::FileInForce(file.clone())),
        None => store.accept(config),
    };
    match accepted {
        Ok(config) => {
            let body = serde_json::json!({"generation": config.generation});
            control.accepted.send_if_modified(|present| {
                let changed = present.as_ref() != Some(&config);
                *present = Some(config);
                changed
            });
            json(StatusCode::OK, body.to_string())
        }
        Err(Refusal::Disk(error)) => {
            tracing::error!(error = format!("{error:#}"), "a document could not be kept and is refused");
            message(StatusCode::INTERNAL_SERVER_ERROR, &format!("keeping the document failed: {error:#}"))
        }
        Err(refusal) => {
            let current = control.accepted.borrow().as_ref().map(|c| c.generation);
            let body = serde_json::json!({"message": refusal.to_string(), "generation": current});
            json(StatusCode::CONFLICT, body.to_string())
        }
    }
}

fn message(status: StatusCode, text: &str) -> Response {
    json(status, serde_json::json!({"message": text}).to_string())
}
