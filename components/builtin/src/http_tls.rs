use std::sync::Arc;

use hyper_rustls::ConfigBuilderExt as _;
use mecha_components_api::{Error, ErrorKind, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ConfigBuilder, RootCertStore, WantsVerifier};
use zeroize::Zeroizing;

/// PEM text, or the path of a file that holds it.
#[derive(Clone, Default)]
pub(crate) struct Tls {
    /// Trusted instead of the machine's certificates.
    pub(crate) root_ca: Option<String>,
    /// Client certificate with its chain, and its key.
    pub(crate) client: Option<(String, Zeroizing<String>)>,
}

impl Tls {
    /// A configuration that trusts nobody, for a binding that never uses TLS.
    pub(crate) fn none() -> Result<ClientConfig> {
        Ok(builder()?.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
    }

    /// The client side of TLS 1.2 and 1.3, server certificates verified. Reads files.
    pub(crate) fn config(&self) -> Result<ClientConfig> {
        let builder = builder()?;
        // The machine's certificates and not a list compiled in: an operator's own CA is there, as for the incumbent.
        let builder = match &self.root_ca {
            Some(pem) => builder.with_root_certificates(roots(pem)?),
            None => match builder.clone().with_native_roots() {
                Ok(builder) => builder,
                Err(e) => {
                    tracing::warn!(error = %e, "no CA certificates on this machine: every https server will be refused; install ca-certificates or set MTLSRootCA");
                    builder.with_root_certificates(RootCertStore::empty())
                }
            },
        };
        let Some((certificate, key)) = &self.client else {
            return Ok(builder.with_no_client_auth());
        };
        let chain = certificates("MTLSClientCert", certificate)?;
        let pem = pem("MTLSClientKey", key)?;
        let key = PrivateKeyDer::from_pem_slice(&pem).map_err(|_| bad("MTLSClientKey", "holds no private key"))?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|_| bad("MTLSClientCert", "and MTLSClientKey do not belong together or cannot be used"))
    }
}

fn builder() -> Result<ConfigBuilder<ClientConfig, WantsVerifier>> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal("no usable TLS version").with_source(e))
}

fn bad(key: &str, what: &str) -> Error {
    Error::new(ErrorKind::FailedPrecondition, format!("{key} {what}"))
}

fn roots(text: &str) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    for certificate in certificates("MTLSRootCA", text)? {
        store.add(certificate).map_err(|_| bad("MTLSRootCA", "holds a certificate that cannot be used"))?;
    }
    Ok(store)
}

fn certificates(key: &str, text: &str) -> Result<Vec<CertificateDer<'static>>> {
    let pem = pem(key, text)?;
    let found: std::result::Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        _ => Err(bad(key, "holds no certificate in PEM form")),
    }
}

fn pem(key: &str, text: &str) -> Result<Zeroizing<Vec<u8>>> {
    if text.contains("-----BEGIN") {
        return Ok(Zeroizing::new(text.as_bytes().to_vec()));
    }
    let what = "is neither PEM text nor the path of a file that can be read";
    std::fs::read(text.trim()).map(Zeroizing::new).map_err(|e| bad(key, what).with_source(e.kind().to_string()))
}
