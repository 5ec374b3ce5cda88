//! Calls to HTTP servers outside: declared endpoints and URLs.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Request, Response, Uri};
use http_body_util::BodyExt;
use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mecha_core::app::Body;
use mecha_core::invoke::{AddressGuard, Endpoint, EndpointTls, TransportError, grpc_code};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tower_service::Service;

use super::status::describe;

/// Limit for making a connection, TLS included.
const DIAL: Duration = Duration::from_secs(30);
/// Idle connections are closed after this time.
const MAX_IDLE: Duration = Duration::from_secs(90);
/// Idle connections kept to one host.
const IDLE_PER_HOST: usize = 32;
/// Clients kept; there is one for each way to trust and to identify.
const MAX_CLIENTS: usize = 64;

type Connector = HttpsConnector<HttpConnector<GuardedResolver>>;
type HttpClient = legacy::Client<Connector, Body>;

/// The HTTP clients for servers outside.
#[derive(Default)]
pub(super) struct Outside {
    clients: Mutex<HashMap<Key, HttpClient>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    strict: bool,
    tls: Option<EndpointTls>,
}

impl fmt::Debug for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Outside").finish_non_exhaustive()
    }
}

impl Outside {
    /// Calls `req` at its absolute URL. Redirects are answers.
    pub(super) async fn call(&self, endpoint: &Endpoint, req: Request<Body>) -> Result<Response<Body>, TransportError> {
        check_literal(endpoint.guard, req.uri())?;
        let client = self.client(endpoint)?;
        match client.request(req).await {
            Ok(answer) => Ok(answer.map(|b| b.map_err(Into::into).boxed_unsync())),
            Err(e) => Err(failure(&e)),
        }
    }

    fn client(&self, endpoint: &Endpoint) -> Result<HttpClient, TransportError> {
        let key = Key { strict: endpoint.guard == AddressGuard::Strict, tls: endpoint.tls.clone() };
        let mut clients = self.clients.lock();
        if let Some(client) = clients.get(&key) {
            return Ok(client.clone());
        }
        let client = build(endpoint).map_err(|e| {
            TransportError::unsent(
                grpc_code::INTERNAL,
                format!("TLS of endpoint {} cannot be used: {e}", endpoint.name),
            )
        })?;
        if clients.len() >= MAX_CLIENTS {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

fn build(endpoint: &Endpoint) -> Result<HttpClient, String> {
    let mut http = HttpConnector::new_with_resolver(GuardedResolver { guard: endpoint.guard });
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(DIAL));
    let tls = tls_config(endpoint.tls.as_ref())?;
    let https =
        HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions().wrap_connector(http);
    Ok(legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(MAX_IDLE)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        // A request is sent again only where core decides it.
        .retry_canceled_requests(false)
        .build(https))
}

fn tls_config(tls: Option<&EndpointTls>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?;
    let builder = match tls.and_then(|t| t.root_ca.as_deref()) {
        None => builder.with_native_roots().map_err(|e| format!("system roots: {e}"))?,
        Some(pem) => {
            let mut roots = RootCertStore::empty();
            for cert in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                roots.add(cert.map_err(|e| format!("rootCA: {e}"))?).map_err(|e| format!("rootCA: {e}"))?;
            }
            if roots.is_empty() {
                return Err("rootCA holds no certificate".to_owned());
            }
            builder.with_root_certificates(roots)
        }
    };
    match tls.map(|t| (t.certificate.as_deref(), t.private_key.as_deref())) {
        Some((Some(certificate), Some(key))) => {
            let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect();
            let chain = chain.map_err(|e| format!("certificate: {e}"))?;
            let key =
                PrivateKeyDer::from_pem_slice(key.as_bytes()).map_err(|_| "privateKey is no PEM key".to_owned())?;
            builder.with_client_auth_cert(chain, key).map_err(|e| format!("certificate and privateKey: {e}"))
        }
        Some((None, None)) | None => Ok(builder.with_no_client_auth()),
        Some(_) => Err("certificate and privateKey belong together".to_owned()),
    }
}

/// Addresses in URLs do not pass the resolver.
fn check_literal(guard: AddressGuard, uri: &Uri) -> Result<(), TransportError> {
    let host = uri.host().unwrap_or_default();
    match host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(ip) if !guard.allows(host, ip) => Err(refused(host)),
        _ => Ok(()),
    }
}

fn refused(host: &str) -> TransportError {
    TransportError::unsent(grpc_code::PERMISSION_DENIED, Refused(host.to_owned()).to_string())
}

fn failure(error: &legacy::Error) -> TransportError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(e) = cause {
        if let Some(io) = e.downcast_ref::<io::Error>()
            && let Some(refused) = io.get_ref().and_then(|e| e.downcast_ref::<Refused>())
        {
            return TransportError::unsent(grpc_code::PERMISSION_DENIED, refused.to_string());
        }
        cause = e.source();
    }
    if error.is_connect() {
        TransportError::unsent(grpc_code::UNAVAILABLE, describe(error))
    } else {
        TransportError::new(grpc_code::UNAVAILABLE, describe(error))
    }
}

/// A host that resolves only to addresses that may not be reached.
#[derive(Debug)]
struct Refused(String);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} is at an address that may not be invoked (link-local, metadata or hidden loopback)", self.0)
    }
}

impl std::error::Error for Refused {}

/// The system's resolver, whose answers pass the guard. What it lets through is what is
/// dialled, so a name that changes its address between check and use gains nothing.
#[derive(Clone, Copy, Debug)]
struct GuardedResolver {
    guard: AddressGuard,
}

impl Service<Name> for GuardedResolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let guard = self.guard;
        Box::pin(async move {
            let all: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            let some = !all.is_empty();
            let allowed: Vec<_> = all.into_iter().filter(|a| guard.allows(name.as_str(), a.ip())).collect();
            if some && allowed.is_empty() {
                return Err(io::Error::new(io::ErrorKind::PermissionDenied, Refused(name.as_str().to_owned())));
            }
            Ok(allowed.into_iter())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn call(url: &str, guard: AddressGuard) -> TransportError {
        let mut endpoint = Endpoint::new("e", url).unwrap();
        endpoint.guard = guard;
        let mut req = Request::new(mecha_core::invoke::empty());
        *req.uri_mut() = url.parse().unwrap();
        Outside::default().call(&endpoint, req).await.unwrap_err()
    }

    #[tokio::test]
    async fn strict_never_reaches_metadata_addresses() {
        for url in [
            "http://169.254.169.254/latest",
            "http://[::ffff:169.254.169.254]/latest",
            "http://[::ffff:a9fe:a9fe]/latest",
            // How inet_aton reads numbers; the system's resolver does so, too.
            "http://2852039166/latest",
            "http://0xa9fea9fe/latest",
            "http://[fe80::1]/",
            "http://0.0.0.0/",
        ] {
            let e = call(url, AddressGuard::Strict).await;
            // A resolver that takes no such number fails instead; nothing is reached either way.
            let unresolved = e.message.contains("dns error") && url.contains("//2852") | url.contains("//0xa9");
            assert!(e.code == grpc_code::PERMISSION_DENIED || unresolved, "{url}: {e}");
        }
    }

    #[test]
    fn half_an_identity_is_refused() {
        let tls = EndpointTls { certificate: Some("x".into()), ..EndpointTls::default() };
        assert!(tls_config(Some(&tls)).is_err());
        let tls = EndpointTls { root_ca: Some("no pem".into()), ..EndpointTls::default() };
        assert_eq!(tls_config(Some(&tls)).unwrap_err(), "rootCA holds no certificate");
    }
}
