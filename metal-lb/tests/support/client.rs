//! A client of the control API.
#![allow(unreachable_pub, clippy::unwrap_used, reason = "a part of test binaries")]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use metal_lb::tls;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::certificates::Identity;

pub fn config(identity: &Identity, authority: &Path) -> ClientConfig {
    tls::client_config(&identity.certificate, &identity.key, authority).unwrap()
}

pub async fn connect(address: SocketAddr, config: ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::from(address.ip());
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// One request on a connection of its own; the status and the JSON of the answer.
pub async fn send(
    address: SocketAddr,
    config: ClientConfig,
    (method, path): (Method, &str),
    body: impl Into<Bytes>,
) -> std::io::Result<(StatusCode, serde_json::Value)> {
    let stream = connect(address, config).await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(std::io::Error::other)?;
    let connection = tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("Host", "metal-lb");
    let request = request.body(Full::new(body.into())).unwrap();
    let answer = sender.send_request(request).await.map_err(std::io::Error::other)?;
    let status = answer.status();
    let body = answer.into_body().collect().await.map_err(std::io::Error::other)?.to_bytes();
    connection.abort();
    Ok((status, serde_json::from_slice(&body).unwrap()))
}
