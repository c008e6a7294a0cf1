//! The files that the configuration's `web` names: a token, a certificate and its key.
//!
//! Invariant: what is wrong with one is told with its key path, before anything listens.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::config::{Tls, Web, cannot_read};

/// A token that can be guessed is none.
const SHORTEST: usize = 16;

/// What is in the files.
#[derive(Clone)]
pub struct Secrets {
    pub token: Option<Arc<str>>,
    pub tls: Option<TlsAcceptor>,
}

/// A file that won't do.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// Of the configuration.
    pub key: &'static str,
    pub message: String,
}

fn wrong(key: &'static str, path: &Path, why: impl std::fmt::Display) -> Wrong {
    Wrong { key, message: format!("{}: {why}", path.display()) }
}

impl Secrets {
    pub fn read(web: &Web) -> Result<Secrets, Wrong> {
        let token = web.token.as_deref().map(token).transpose()?;
        let tls = web.tls.as_ref().map(acceptor).transpose()?;
        Ok(Secrets { token, tls })
    }
}

fn read(key: &'static str, path: &Path) -> Result<Vec<u8>, Wrong> {
    fs::read(path).map_err(|error| wrong(key, path, cannot_read(&error)))
}

fn token(path: &Path) -> Result<Arc<str>, Wrong> {
    let key = Web::TOKEN;
    let text = String::from_utf8(read(key, path)?).map_err(|_| wrong(key, path, "is not text in UTF-8"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    let right = format!("expected one line of at least {SHORTEST} letters, digits or signs");
    if let Some(odd) = text.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(wrong(key, path, format!("holds {odd:?}; {right}")));
    }
    if text.len() < SHORTEST {
        return Err(wrong(key, path, format!("holds {} characters; {right}", text.len())));
    }
    Ok(text.into())
}

fn acceptor(tls: &Tls) -> Result<TlsAcceptor, Wrong> {
    let text = read(Web::CERTIFICATE, &tls.certificate)?;
    let no_certificate = |why: &dyn std::fmt::Display| {
        wrong(Web::CERTIFICATE, &tls.certificate, format!("holds no certificate ({why}); expected PEM"))
    };
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let chain = chain.map_err(|error| no_certificate(&error))?;
    if chain.is_empty() {
        return Err(no_certificate(&"there is no CERTIFICATE section"));
    }
    let text = read(Web::KEY, &tls.key)?;
    let key = PrivateKeyDer::from_pem_slice(&text)
        .map_err(|error| wrong(Web::KEY, &tls.key, format!("holds no private key ({error}); expected PEM")))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, key))
        .map_err(|error| {
            wrong(Web::KEY, &tls.key, format!("doesn't go with {}: {error}", tls.certificate.display()))
        })?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
