//! A balancer host on loopback: [`FakeHost`] behind real mutual TLS.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use cloud_controller::metal::hosts::PutAnswer;
use cloud_controller::metal::tls::TlsFiles;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::FakeHost;

/// A CA, and what it signed.
pub(crate) struct Ca {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// Answers until dropped.
pub(crate) struct TlsHost {
    pub(crate) address: SocketAddr,
    pub(crate) host: Arc<Mutex<FakeHost>>,
    serving: JoinHandle<()>,
}

impl Ca {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    /// Writes the client's three files.
    pub(crate) fn client_files(&self, folder: &Path, name: &str) -> TlsFiles {
        let key = KeyPair::generate().unwrap();
        let cert =
            CertificateParams::new(vec![name.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let path = |end: &str| folder.join(format!("{name}.{end}"));
        std::fs::write(path("crt"), cert.pem()).unwrap();
        std::fs::write(path("key"), key.serialize_pem()).unwrap();
        std::fs::write(path("ca"), self.issuer.pem()).unwrap();
        TlsFiles { cert: path("crt"), key: path("key"), ca: path("ca") }
    }

    /// Starts a host whose certificate names `san`.
    pub(crate) async fn host(&self, name: &'static str, san: &str) -> TlsHost {
        let key = KeyPair::generate().unwrap();
        let cert =
            CertificateParams::new(vec![san.to_owned()]).unwrap().signed_by(&key, &self.issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut roots = RootCertStore::empty();
        roots.add(self.issuer.der().clone()).unwrap();
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .unwrap();
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(vec![cert.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let host = Arc::new(Mutex::new(FakeHost::default()));
        let serving =
            tokio::spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), name, Arc::clone(&host)));
        TlsHost { address, host, serving }
    }
}

impl Drop for TlsHost {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn serve(listener: TcpListener, tls: TlsAcceptor, name: &'static str, host: Arc<Mutex<FakeHost>>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (tls, host) = (tls.clone(), Arc::clone(&host));
        tokio::spawn(async move {
            // A client that is refused sees the alert; there is nobody to tell here.
            let Ok(stream) = tls.accept(stream).await else { return };
            let service = service_fn(move |request| answer(name, Arc::clone(&host), request));
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

async fn answer(
    name: &'static str,
    host: Arc<Mutex<FakeHost>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let put = request.method() == Method::PUT;
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let mut host = host.lock().unwrap();
    let (status, body) = if put {
        match host.put(&body) {
            PutAnswer::Accepted => {
                (200, serde_json::json!({"generation": host.document.as_ref().unwrap().generation}))
            }
            PutAnswer::Invalid { path, message } => {
                (400, serde_json::json!({"path": path, "message": message}))
            }
            PutAnswer::Older { generation, message } => {
                (409, serde_json::json!({"generation": generation, "message": message}))
            }
            PutAnswer::Failed(error) => (503, error.into()),
        }
    } else {
        match host.state(name) {
            Ok(state) => (200, serde_json::to_value(state).unwrap()),
            Err(error) => (503, error.into()),
        }
    };
    Ok(Response::builder().status(status).body(Full::from(body.to_string())).unwrap())
}
