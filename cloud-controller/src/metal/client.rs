//! One host's API: `PUT /v1/config` and `GET /v1/state` over one kept connection.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use metal_lb_api::{Generation, HostState};
use rustls::pki_types::ServerName;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::hosts::PutAnswer;
use super::tls::TlsFiles;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// A state has some hundred bytes a listener and target.
const LARGEST_ANSWER: usize = 64 << 20;

#[derive(Debug)]
pub struct HostClient {
    name: String,
    address: SocketAddr,
    tls: TlsFiles,
    connection: Option<SendRequest<Full<Bytes>>>,
}

impl HostClient {
    pub fn new(name: &str, address: SocketAddr, tls: TlsFiles) -> Self {
        Self { name: name.to_owned(), address, tls, connection: None }
    }

    pub async fn put(&mut self, document: Bytes) -> PutAnswer {
        match self.request(Method::PUT, "/v1/config", document).await {
            Ok((status, body)) => put_answer(status, &body),
            Err(error) => PutAnswer::Failed(format!("{error:#}")),
        }
    }

    /// # Errors
    /// In words, for people.
    pub async fn state(&mut self) -> Result<HostState, String> {
        let (status, body) =
            self.request(Method::GET, "/v1/state", Bytes::new()).await.map_err(|e| format!("{e:#}"))?;
        if status != StatusCode::OK {
            return Err(format!("GET /v1/state answered {status}: {}", text(&body)));
        }
        let state: HostState =
            serde_json::from_slice(&body).map_err(|e| format!("GET /v1/state: not a state: {e}"))?;
        if state.host != self.name {
            return Err(format!(
                "it calls itself {:?} (metal-lb run --name), so it would not find itself in its configuration:                  correct the name in --metal-endpoint {}={}, or there",
                state.host, self.name, self.address
            ));
        }
        Ok(state)
    }

    async fn request(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let sent = tokio::time::timeout(REQUEST_TIMEOUT, self.exchange(method, path, body)).await;
        let answer = sent.context("no answer in time").flatten();
        if answer.is_err() {
            self.connection = None;
        }
        answer
    }

    async fn exchange(
        &mut self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.address.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))?;
        let mut connection = match self.ready_connection().await {
            Some(kept) => kept,
            None => tokio::time::timeout(CONNECT_TIMEOUT, self.connect())
                .await
                .with_context(|| format!("connecting to {} took too long", self.address))??,
        };
        let response = connection.send_request(request).await.context("the connection broke")?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_ANSWER).collect().await;
        let body = body.map_err(|e| anyhow::anyhow!("reading the answer: {e}"))?.to_bytes();
        self.connection = Some(connection);
        Ok((status, body))
    }

    /// The kept connection, unless it was closed meanwhile.
    async fn ready_connection(&mut self) -> Option<SendRequest<Full<Bytes>>> {
        let mut kept = self.connection.take()?;
        kept.ready().await.is_ok().then_some(kept)
    }

    async fn connect(&self) -> anyhow::Result<SendRequest<Full<Bytes>>> {
        let config = self.tls.config(self.address.ip())?;
        let name =
            ServerName::try_from(self.name.clone()).unwrap_or_else(|_| ServerName::from(self.address.ip()));
        let stream = TcpStream::connect(self.address)
            .await
            .with_context(|| format!("connecting to {}", self.address))?;
        stream.set_nodelay(true)?;
        let stream = TlsConnector::from(Arc::new(config))
            .connect(name, stream)
            .await
            .with_context(|| format!("TLS with {} (certificate for {:?}?)", self.address, self.name))?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        // Ends when `sender` is dropped, or the host closes.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a balancer host ended");
            }
        });
        Ok(sender)
    }
}

fn put_answer(status: StatusCode, body: &Bytes) -> PutAnswer {
    #[derive(Deserialize)]
    struct Invalid {
        path: String,
        message: String,
    }
    #[derive(Deserialize)]
    struct Older {
        message: String,
        generation: Option<Generation>,
    }
    match status {
        StatusCode::OK => PutAnswer::Accepted,
        StatusCode::BAD_REQUEST => match serde_json::from_slice::<Invalid>(body) {
            Ok(Invalid { path, message }) => PutAnswer::Invalid { path, message },
            Err(_) => PutAnswer::Invalid { path: String::new(), message: text(body) },
        },
        StatusCode::CONFLICT => match serde_json::from_slice::<Older>(body) {
            Ok(Older { message, generation }) => {
                PutAnswer::Older { generation: generation.unwrap_or_default(), message }
            }
            Err(_) => PutAnswer::Failed(format!("PUT /v1/config answered {status}: {}", text(body))),
        },
        other => PutAnswer::Failed(format!("PUT /v1/config answered {other}: {}", text(body))),
    }
}

fn text(body: &Bytes) -> String {
    String::from_utf8_lossy(&body[..body.len().min(300)]).trim().to_owned()
}
