//! The HTTP client of the exporters.
//!
//! Exporters run on threads without a runtime; the connections live on the
//! program's.

use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;

/// Largest answer read; collectors answer with a few bytes.
const MAX_ANSWER: usize = 64 << 10;

/// A kept connection without use is closed after this long.
const IDLE: Duration = Duration::from_secs(60);

type Https = Client<HttpsConnector<HttpConnector>, Full<Bytes>>;

/// Sends the exports of one exporter over HTTP.
#[derive(Clone)]
pub struct ExportClient {
    runtime: Handle,
    client: Https,
    timeout: Duration,
}

impl ExportClient {
    /// A client for `url` whose connections live on `runtime`. Reads the system's roots only for `https` URLs: they
    /// cost memory.
    ///
    /// # Errors
    /// The system's roots cannot be read.
    pub fn new(url: &str, timeout: Duration, runtime: Handle) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(timeout));
        tcp.set_nodelay(true);
        let provider = rustls::crypto::ring::default_provider();
        let builder = HttpsConnectorBuilder::new();
        let connector = if url.starts_with("https:") {
            builder
                .with_provider_and_native_roots(provider)
                .map_err(|error| format!("cannot read the system's root certificates: {error}"))?
                .https_only()
                .enable_http1()
                .wrap_connector(tcp)
        } else {
            let config = rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(|error| error.to_string())?
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth();
            builder.with_tls_config(config).https_or_http().enable_http1().wrap_connector(tcp)
        };
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(1)
            .build(connector);
        Ok(Self { runtime, client, timeout })
    }

    /// Sends one request and reads the whole answer, within the time limit.
    ///
    /// # Errors
    /// There was no whole answer in time.
    pub async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let limit = self.timeout;
        let exchange = async move {
            let response = client.request(request.map(Full::new)).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        };
        let task = self.runtime.spawn(async move {
            match tokio::time::timeout(limit, exchange).await {
                Ok(result) => result,
                Err(_) => Err(HttpError::from(format!("no answer within {limit:?}"))),
            }
        });
        task.await?
    }
}

#[async_trait]
impl HttpClient for ExportClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        self.send(request).await
    }
}

impl fmt::Debug for ExportClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExportClient").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
