//! Mutual TLS for the control API, both ends, from files that may change under way.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use anyhow::Context;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// The three files, and the acceptor that was made of them.
pub struct TlsFiles {
    certificate: PathBuf,
    key: PathBuf,
    client_ca: PathBuf,
    made: Mutex<Option<(Vec<SystemTime>, TlsAcceptor)>>,
}

impl TlsFiles {
    /// # Errors
    /// When a file is missing or does not fit; the message names it.
    pub fn open(certificate: PathBuf, key: PathBuf, client_ca: PathBuf) -> anyhow::Result<Self> {
        let files = Self { certificate, key, client_ca, made: Mutex::new(None) };
        files.acceptor()?;
        Ok(files)
    }

    /// The acceptor of the files as they are now. Files that cannot be read leave the last one in use.
    ///
    /// # Errors
    /// When there is no earlier acceptor to fall back to.
    pub fn acceptor(&self) -> anyhow::Result<TlsAcceptor> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.times().and_then(|times| match &*made {
            Some((before, acceptor)) if *before == times => Ok((times, acceptor.clone())),
            _ => Ok((times, self.read()?)),
        });
        match (read, &*made) {
            (Ok(fresh), _) => {
                let acceptor = fresh.1.clone();
                *made = Some(fresh);
                Ok(acceptor)
            }
            (Err(error), Some((_, last))) => {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the TLS files cannot be read; using those read before"
                );
                Ok(last.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    fn times(&self) -> anyhow::Result<Vec<SystemTime>> {
        let time = |path: &PathBuf| {
            std::fs::metadata(path)
                .and_then(|m| m.modified())
                .with_context(|| format!("reading {}", path.display()))
        };
        [&self.certificate, &self.key, &self.client_ca].into_iter().map(time).collect()
    }

    fn read(&self) -> anyhow::Result<TlsAcceptor> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(
            Arc::new(authorities(&self.client_ca)?),
            Arc::clone(&provider),
        )
        .build()?;
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(certificates(&self.certificate)?, private_key(&self.key)?)
            .with_context(|| format!("{} and its key do not fit", self.certificate.display()))?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

/// The other end: a client that shows a certificate and trusts these authorities alone.
///
/// # Errors
/// When a file is missing or does not fit; the message names it.
pub fn client_config(certificate: &Path, key: &Path, authority: &Path) -> anyhow::Result<ClientConfig> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(authorities(authority)?)
        .with_client_auth_cert(certificates(certificate)?, private_key(key)?)
        .with_context(|| format!("{} and its key do not fit", certificate.display()))
}

/// Whether a certificate carries the DNS name among its subject alternative names.
pub fn has_dns_name(certificate: &CertificateDer<'_>, name: &str) -> bool {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else { return false };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return false };
    names.value.general_names.iter().any(|n| matches!(n, GeneralName::DNSName(dns) if *dns == name))
}

fn authorities(path: &Path) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).with_context(|| format!("{} holds a bad certificate", path.display()))?;
    }
    Ok(roots)
}

fn private_key(path: &Path) -> anyhow::Result<PrivateKeyDer<'static>> {
    PrivateKeyDer::from_pem_file(path).with_context(|| format!("{} holds no PEM private key", path.display()))
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    let read = || CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>();
    let certificates = read().with_context(|| format!("{} holds no PEM certificates", path.display()))?;
    anyhow::ensure!(!certificates.is_empty(), "{} holds no PEM certificates", path.display());
    Ok(certificates)
}

impl std::fmt::Debug for TlsFiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TlsFiles").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}
