//! Who the server is allowed to be.

use std::path::Path;
use std::sync::Arc;

use mecha_components_api::{Error, Result};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore, SignatureScheme,
};
use tokio_postgres_rustls::MakeRustlsConnect;

use crate::config::{Tls, Trust};

/// Makes TLS connections as `tls` says. Reads files.
pub(crate) fn connector(tls: &Tls) -> Result<MakeRustlsConnect> {
    let provider = Arc::new(ring::default_provider());
    let versions = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|e| Error::internal(format!("cannot set up TLS: {e}")))?;
    let trusting = match tls.trust {
        Trust::Full => versions.with_root_certificates(roots(tls)?),
        Trust::Chain => {
            let inner = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(tls)?), provider)
                .build()
                .map_err(|e| Error::invalid(format!("'sslRootCert' holds no usable authority: {e}")))?;
            versions.dangerous().with_custom_certificate_verifier(Arc::new(ChainOnly(inner)))
        }
        Trust::Anybody => versions.dangerous().with_custom_certificate_verifier(Arc::new(Anybody(provider))),
    };
    let config = match &tls.identity {
        None => trusting.with_no_client_auth(),
        Some((cert, key)) => {
            let chain = certificates(cert, "sslcert")?;
            let key = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| Error::invalid(format!("cannot read the private key that 'sslkey' names: {e}")))?;
            trusting
                .with_client_auth_cert(chain, key)
                .map_err(|e| Error::invalid(format!("'sslcert' and 'sslkey' do not fit: {e}")))?
        }
    };
    Ok(MakeRustlsConnect::new(config))
}

fn roots(tls: &Tls) -> Result<RootCertStore> {
    let mut store = RootCertStore::empty();
    match &tls.roots {
        Some(text) => {
            for cert in certificates(text, "sslRootCert")? {
                store.add(cert).map_err(|e| {
                    Error::invalid(format!("'sslRootCert' holds a certificate that is no authority: {e}"))
                })?;
            }
        }
        None => {
            let found = rustls_native_certs::load_native_certs();
            store.add_parsable_certificates(found.certs);
            if store.is_empty() {
                tracing::warn!("no certificate authorities were found on this system; set 'sslRootCert'");
            }
        }
    }
    Ok(store)
}

/// Certificates from a file, or from the text itself.
fn certificates(text: &str, key: &str) -> Result<Vec<CertificateDer<'static>>> {
    let read = if text.contains("-----BEGIN") {
        CertificateDer::pem_slice_iter(text.as_bytes()).collect()
    } else {
        CertificateDer::pem_file_iter(Path::new(text)).and_then(Iterator::collect)
    };
    match read {
        Ok(certs) => {
            let certs: Vec<_> = certs;
            if certs.is_empty() { Err(Error::invalid(format!("'{key}' holds no certificate"))) } else { Ok(certs) }
        }
        Err(e) => Err(Error::invalid(format!("cannot read the certificates that '{key}' names: {e}"))),
    }
}

/// `verify-ca`: signed by a known authority, for whatever name.
#[derive(Debug)]
struct ChainOnly(Arc<WebPkiServerVerifier>);

/// Encrypts, and trusts whoever answers.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for ChainOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        // The name is looked at last: whoever fails there has passed everything else.
        match self.0.verify_server_cert(end_entity, intermediates, name, ocsp, now) {
            Err(TlsError::InvalidCertificate(
                CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
            )) => Ok(ServerCertVerified::assertion()),
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> std::result::Result<ServerCertVerified, TlsError> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> std::result::Result<HandshakeSignatureValid, TlsError> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
