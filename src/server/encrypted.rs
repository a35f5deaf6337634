//! What TLS, HTTPS and QUIC need to begin with: the certificate that proves who we are, and the protocols offered.

use std::{path::PathBuf, sync::Arc};

use arc_swap::ArcSwapOption;
use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        self,
        pki_types::pem,
        server::{ClientHello, ResolvesServerCert},
        sign::CertifiedKey,
    },
};

use super::{Config, Service, tcp::Spoken};
use crate::{files, tls};

/// What encrypted listeners show to prove who we are. A reload replaces it under them.
#[derive(Debug, Default)]
pub struct Identity(ArcSwapOption<CertifiedKey>);

/// A certificate with the chain to its authority, and its private key.
pub type Certificate = Arc<CertifiedKey>;

/// What is wrong with the files that prove who we are.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file that cannot be read, or is not what it should be.
    #[error("{file}: {error}; {key} is the path of {what} in PEM format, readable for this user")]
    File {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        error: pem::Error,
        /// The key of the configuration that names it.
        key: &'static str,
        /// What should be in it.
        what: &'static str,
    },
    /// Files that do not belong together, or a key that is not supported.
    #[error(
        "{certificate} and {private_key} cannot be used: {error}; take the certificate that was issued for this key"
    )]
    Pair {
        /// The certificate's file.
        certificate: PathBuf,
        /// The key's file.
        private_key: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
}

impl Identity {
    /// Shows this certificate from now on; connections that are open keep theirs.
    pub fn set(&self, certificate: Option<Certificate>) {
        self.0.store(certificate);
    }
}

impl ResolvesServerCert for Identity {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// Reads the certificate of a configuration, if it names one.
pub fn load_certificate(config: &Config) -> Result<Option<Certificate>, CertificateError> {
    let (Some(certificate), Some(private_key)) = (&config.certificate, &config.private_key) else { return Ok(None) };
    let fault = |file: &PathBuf, key, what| {
        let file = file.clone();
        move |error| CertificateError::File { file, error, key, what }
    };
    let chain = files::read_certificates(certificate).map_err(fault(
        certificate,
        "certificate",
        "our certificate and those between it and its authority",
    ))?;
    let key = files::read_private_key(private_key).map_err(fault(
        private_key,
        "private_key",
        "the private key of the certificate",
    ))?;
    match CertifiedKey::from_der(chain, key, &tls::provider()) {
        Ok(certified) => Ok(Some(Arc::new(certified))),
        Err(error) => {
            Err(CertificateError::Pair { certificate: certificate.clone(), private_key: private_key.clone(), error })
        }
    }
}

/// What a TCP listener needs to speak what it shall.
pub fn spoken(service: Service, identity: Arc<Identity>) -> Spoken {
    let acceptor = |protocol: &[u8]| {
        let mut config = tls::server().with_no_client_auth().with_cert_resolver(identity);
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    };
    match service {
        // QUIC has no connections of TCP.
        Service::Plain | Service::Quic => Spoken::Plain,
        Service::Tls => Spoken::Tls(acceptor(b"dot")),
        Service::Https => Spoken::Https(acceptor(b"h2")),
    }
}

#[cfg(test)]
#[path = "encrypted_tests.rs"]
pub(super) mod tests;
