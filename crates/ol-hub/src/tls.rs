//! TLS with the machine's own certificate authorities.

use std::sync::{Arc, OnceLock};

use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

/// TLS for `ureq` agents: rustls, and the certificate authorities that the
/// machine trusts (`SSL_CERT_FILE` and `SSL_CERT_DIR` are heeded).
#[must_use]
pub fn tls_config() -> TlsConfig {
    TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .root_certs(RootCerts::Specific(Arc::clone(roots())))
        .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// Read once: it takes milliseconds.
pub(crate) fn roots() -> &'static Arc<Vec<Certificate<'static>>> {
    static ROOTS: OnceLock<Arc<Vec<Certificate<'static>>>> = OnceLock::new();
    ROOTS.get_or_init(|| {
        // A certificate that cannot be read is one that is not trusted.
        let found = rustls_native_certs::load_native_certs().certs;
        let own = |der: &_| Certificate::from_der(AsRef::<[u8]>::as_ref(der)).to_owned();
        Arc::new(found.iter().map(own).collect())
    })
}
