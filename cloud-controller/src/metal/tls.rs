//! Mutual TLS towards the hosts. The host's certificate must name the host (the NAME of
//! `--metal-endpoint NAME=IP:PORT`) or its IP address, and be signed by `--metal-ca`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// PEM files. Read again for every connection, so that rotated ones are taken up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
    pub ca: PathBuf,
}

impl TlsFiles {
    /// A client's configuration for the host at `address`.
    ///
    /// # Errors
    /// A file that cannot be read or used; the text names it.
    pub fn config(&self, address: IpAddr) -> anyhow::Result<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for cert in certificates(&self.ca)? {
            roots.add(cert).with_context(|| format!("{}: not a CA certificate", self.ca.display()))?;
        }
        let chain = certificates(&self.cert)?;
        let key = PrivateKeyDer::from_pem_file(&self.key)
            .with_context(|| format!("{}: cannot read a private key in PEM", self.key.display()))?;
        let provider = Arc::new(ring::default_provider());
        let by_name = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .with_context(|| format!("{}: not usable as a CA", self.ca.display()))?;
        let verifier = Arc::new(NameOrAddress { by_name, address: ServerName::from(address) });
        ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_auth_cert(chain, key)
            .with_context(|| {
                format!("{} and {} do not belong together", self.cert.display(), self.key.display())
            })
    }
}

fn certificates(path: &std::path::Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let found = read().with_context(|| format!("{}: cannot read certificates in PEM", path.display()))?;
    anyhow::ensure!(!found.is_empty(), "{}: holds no certificate", path.display());
    Ok(found)
}

/// rustls's own verification, for either of the two names that a host has. Chain, dates and usage
/// are verified all the same.
#[derive(Debug)]
struct NameOrAddress {
    by_name: Arc<WebPkiServerVerifier>,
    address: ServerName<'static>,
}

impl ServerCertVerifier for NameOrAddress {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verify = |name: &ServerName<'_>| {
            self.by_name.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
        };
        verify(server_name).or_else(|error| verify(&self.address).map_err(|_| error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_name.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_name.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_name.supported_verify_schemes()
    }
}

/// Random bytes from the one crypto provider.
///
/// # Errors
/// When the system has no randomness.
pub fn random_key() -> anyhow::Result<[u8; 32]> {
    let provider: CryptoProvider = ring::default_provider();
    let mut bytes = [0; 32];
    provider.secure_random.fill(&mut bytes).map_err(|_| anyhow::anyhow!("the system has no randomness"))?;
    Ok(bytes)
}
