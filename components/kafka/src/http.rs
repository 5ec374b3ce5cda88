//! Requests to other servers than the brokers: identity providers, schema registries.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

/// Largest answer that is read.
const ANSWER_LIMIT: usize = 1 << 20;

/// Keeps connections, in the runtime it is used in.
pub(crate) type Http = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

pub(crate) fn client(tls: rustls::ClientConfig) -> Http {
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1().build();
    Client::builder(TokioExecutor::new()).build(connector)
}

/// Sends a request and reads the answer. The caller sets the deadline.
///
/// # Errors
/// Says what went wrong on the way, with its causes.
pub(crate) async fn send(http: &Http, request: Request<Full<Bytes>>) -> Result<(StatusCode, Bytes), String> {
    let response = http.request(request).await.map_err(|e| format!("cannot be reached: {}", Chain(&e)))?;
    let status = response.status();
    let body = Limited::new(response.into_body(), ANSWER_LIMIT).collect().await;
    let body = body.map_err(|e| format!("the answer broke off or is larger than {ANSWER_LIMIT} bytes: {e}"))?;
    Ok((status, body.to_bytes()))
}

/// An error with its causes, which say what the outermost one leaves out.
struct Chain<'a>(&'a dyn std::error::Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(inner) = cause {
            write!(f, ": {inner}")?;
            cause = inner.source();
        }
        Ok(())
    }
}

/// Whether it is the URL of a server: http or https, with a host and without a login.
pub(crate) fn is_url(text: &str) -> bool {
    text.parse::<hyper::Uri>().is_ok_and(|url| {
        matches!(url.scheme_str(), Some("http" | "https")) && url.authority().is_some_and(|a| !a.as_str().contains('@'))
    })
}

/// Roots that a server's certificate is checked against: the system's, and `extra` (PEM).
///
/// # Errors
/// Says what is wrong with `extra`.
pub(crate) fn trust(extra: Option<&str>, insecure: bool) -> Result<rustls::ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    if insecure {
        let verifier = Arc::new(crate::unverified::Unverified::new(&provider));
        return Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth());
    }
    let mut roots = rustls::RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for certificate in CertificateDer::pem_slice_iter(extra.unwrap_or_default().as_bytes()) {
        let certificate = certificate.map_err(|e| format!("cannot be read: {e}"))?;
        roots.add(certificate).map_err(|e| format!("holds no certificate of an authority: {e}"))?;
    }
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}
