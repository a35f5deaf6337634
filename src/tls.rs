//! TLS as every connection of ours speaks it: one provider of cryptography, in the versions that it supports by default.

use std::sync::Arc;

use tokio_rustls::rustls::{
    ClientConfig, ConfigBuilder, RootCertStore, ServerConfig, WantsVerifier,
    crypto::{CryptoProvider, ring},
};

/// The algorithms: those of ring.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Begins the settings of a client, which still has to say whom it trusts.
pub fn client() -> ConfigBuilder<ClientConfig, WantsVerifier> {
    ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect(DEFAULTS)
}

/// Begins the settings of a server, which still has to say whether it asks for certificates.
pub fn server() -> ConfigBuilder<ServerConfig, WantsVerifier> {
    ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions().expect(DEFAULTS)
}

/// The authorities that the system trusts. Reads files; one that cannot be read is logged and passed over.
pub fn system_roots() -> RootCertStore {
    let loaded = rustls_native_certs::load_native_certs();
    for error in &loaded.errors {
        tracing::warn!(%error, "some root certificates of the system cannot be read");
    }
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(loaded.certs);
    roots
}

const DEFAULTS: &str = "the provider supports the default versions";
