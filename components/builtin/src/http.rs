use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, USER_AGENT};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use mecha_components_api::{
    BuildCx, Bytes, Component, ConfigErrors, Error, ErrorKind, Field, FieldType, Invoke, Metadata, OutputBinding,
    Prepared, Registration, Reply, Result, Retry, async_trait, parse_bool,
};
use tower_service::Service;
use zeroize::Zeroizing;

use crate::http_target::Target;
use crate::http_tls::Tls;

const OPERATIONS: &[&str] = &["create", "get", "head", "post", "put", "patch", "delete", "options", "trace"];
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const DEFAULT_MAX_BODY: u64 = 100 * 1024 * 1024;
const JSON: HeaderValue = HeaderValue::from_static("application/json; charset=utf-8");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("mecha/", env!("CARGO_PKG_VERSION")));
const TRACE_HEADERS: [&str; 3] = ["traceparent", "tracestate", "baggage"];

const FIELDS: &[Field] = &[
    Field::new("url", FieldType::Text, "Base address, http or https; requests can only add a path below it.")
        .required(),
    Field::new(
        "responseTimeout",
        FieldType::Duration,
        "Limit for the whole call, connecting and reading the body included; a bare number is seconds.",
    )
    .default("5m"),
    Field::new(
        "maxResponseBodySize",
        FieldType::Quantity,
        "Largest body that is accepted; a larger one is an error. 0 lifts the limit.",
    )
    .default("100Mi"),
    Field::new("MTLSRootCA", FieldType::Text, "CA certificates trusted instead of the machine's: PEM text or a path."),
    Field::new("MTLSClientCert", FieldType::Text, "Client certificate with its chain: PEM text or a path."),
    Field::new("MTLSClientKey", FieldType::Text, "Key of the client certificate: PEM text or a path.").secret(),
    Field::new(
        "MTLSRenegotiation",
        FieldType::Text,
        "RenegotiateNever, RenegotiateOnceAsClient or RenegotiateFreelyAsClient; accepted, but TLS is never renegotiated.",
    )
    .default("RenegotiateNever"),
    Field::new("securityToken", FieldType::Text, "Sent with every request in the header securityTokenHeader.").secret(),
    Field::new("securityTokenHeader", FieldType::Text, "Header that carries securityToken; requests cannot set it."),
    Field::new("errorIfNot2XX", FieldType::Boolean, "Whether an answer outside 200 to 299 is an error.").default("true"),
    Field::new("direction", FieldType::Text, "Only output is possible.").default("output"),
];

pub(crate) fn registration() -> Registration<dyn OutputBinding> {
    Registration {
        kind: "bindings.http",
        aliases: &[],
        versions: &["v1"],
        summary: "Calls an HTTP endpoint",
        fields: FIELDS,
        prepare,
    }
}

fn prepare(md: &Metadata, _: &str) -> Result<Box<dyn Prepared<dyn OutputBinding>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let url = errors.required(md, "url");
    let target = (!url.is_empty())
        .then(|| errors.keep("url", Target::parse(&url).map(Some).map_err(|m| format!("'url' {m}")), None))
        .flatten();
    let timeout = errors.duration(md, "responseTimeout", Duration::from_secs(1), DEFAULT_TIMEOUT);
    if timeout.is_zero() {
        errors.push("responseTimeout", "'responseTimeout' must be above zero");
    }
    let max_body = errors.quantity(md, "maxResponseBodySize", DEFAULT_MAX_BODY);
    let tls = Tls {
        root_ca: md.get_non_empty("MTLSRootCA").map(str::to_owned),
        client: match (md.get_non_empty("MTLSClientCert"), md.get_non_empty("MTLSClientKey")) {
            (Some(certificate), Some(key)) => Some((certificate.to_owned(), Zeroizing::new(key.to_owned()))),
            (None, None) => None,
            (one, _) => {
                let missing = if one.is_some() { "MTLSClientKey" } else { "MTLSClientCert" };
                errors.push(missing, format!("'{missing}' is missing: a client certificate and its key go together"));
                None
            }
        },
    };
    if let Some(mode) = md.get_non_empty("MTLSRenegotiation")
        && !matches!(mode, "RenegotiateNever" | "RenegotiateOnceAsClient" | "RenegotiateFreelyAsClient")
    {
        errors.push(
            "MTLSRenegotiation",
            "'MTLSRenegotiation' must be RenegotiateNever, RenegotiateOnceAsClient or RenegotiateFreelyAsClient",
        );
    }
    let security = match (md.get_non_empty("securityTokenHeader"), md.get_non_empty("securityToken")) {
        (Some(name), Some(token)) => {
            let name = errors.keep(
                "securityTokenHeader",
                HeaderName::try_from(name).map_err(|_| "'securityTokenHeader' is no header name".into()),
                HOST,
            );
            let value = HeaderValue::try_from(token).map(|mut v| {
                v.set_sensitive(true);
                v
            });
            let value = value.map_err(|_| "'securityToken' holds characters that no header can carry".into());
            Some((name, errors.keep("securityToken", value, HeaderValue::from_static(""))))
        }
        _ => None,
    };
    let error_if_not_2xx = errors.bool(md, "errorIfNot2XX", true);
    errors.finish(())?;
    let target = target.ok_or_else(|| ConfigErrors::one("url", "metadata key 'url' is required"))?;
    Ok(Box::new(Config { target, timeout, max_body, tls, security, error_if_not_2xx }))
}

struct Config {
    target: Target,
    timeout: Duration,
    max_body: u64,
    tls: Tls,
    security: Option<(HeaderName, HeaderValue)>,
    error_if_not_2xx: bool,
}

#[async_trait]
impl Prepared<dyn OutputBinding> for Config {
    async fn build(self: Box<Self>, _: &BuildCx) -> Result<Arc<dyn OutputBinding>> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        tcp.set_nodelay(true);
        // A peer that vanished is found within 15 s.
        tcp.set_keepalive(Some(Duration::from_secs(6)));
        tcp.set_keepalive_interval(Some(Duration::from_secs(3)));
        tcp.set_keepalive_retries(Some(3));
        let tls = if self.target.is_tls() {
            let tls = self.tls.clone();
            tokio::task::spawn_blocking(move || tls.config())
                .await
                .map_err(|_| Error::internal("reading the certificates was cut short"))??
        } else {
            // Never used: no https address can be reached from an http base.
            Tls::none()?
        };
        let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions();
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(90))
            .http1_title_case_headers(true)
            .build(Bounded(connector.wrap_connector(tcp)));
        let Self { target, timeout, max_body, security, error_if_not_2xx, .. } = *self;
        Ok(Arc::new(HttpBinding { client, target, timeout, max_body, security, error_if_not_2xx }))
    }
}

/// Ends connecting, the TLS handshake included, after [`CONNECT_TIMEOUT`].
#[derive(Clone)]
struct Bounded(HttpsConnector<HttpConnector>);

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl Service<Uri> for Bounded {
    type Response = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = self.0.call(uri);
        Box::pin(async move {
            let limited = tokio::time::timeout(CONNECT_TIMEOUT, connect).await;
            limited.unwrap_or_else(|_| Err("no connection within 15s".into()))
        })
    }
}

/// `bindings.http`.
struct HttpBinding {
    client: Client<Bounded, Full<Bytes>>,
    target: Target,
    timeout: Duration,
    max_body: u64,
    security: Option<(HeaderName, HeaderValue)>,
    error_if_not_2xx: bool,
}

impl fmt::Debug for HttpBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpBinding").field("target", &self.target).finish_non_exhaustive()
    }
}

impl Component for HttpBinding {}

#[async_trait]
impl OutputBinding for HttpBinding {
    fn operations(&self) -> &'static [&'static str] {
        OPERATIONS
    }

    async fn invoke(&self, req: Invoke<'_>) -> Result<Reply> {
        let request = self.request(&req)?;
        let call = self.call(request, error_if_not_2xx(req.metadata).unwrap_or(self.error_if_not_2xx));
        match tokio::time::timeout(self.timeout, call).await {
            Ok(outcome) => outcome,
            Err(_) => Err(Error::timeout(format!("no complete answer within {:?}", self.timeout))),
        }
    }
}

/// Request metadata in exactly this spelling: a capital letter makes a key a header.
fn exact<'m>(md: &'m Metadata, key: &str) -> Option<&'m str> {
    md.iter().find(|(k, v)| *k == key && !v.is_empty()).map(|(_, v)| v)
}

fn error_if_not_2xx(md: &Metadata) -> Option<bool> {
    exact(md, "errorIfNot2XX").map(parse_bool)
}

/// Headers that frame the message or belong to one connection; the client makes them itself.
fn is_framing(name: &HeaderName) -> bool {
    const FRAMING: [&str; 11] = [
        "connection",
        "content-length",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    FRAMING.contains(&name.as_str())
}

impl HttpBinding {
    fn request(&self, req: &Invoke<'_>) -> Result<Request<Full<Bytes>>> {
        let (method, has_body) = match req.operation {
            "create" | "post" => (Method::POST, true),
            "put" => (Method::PUT, true),
            "patch" => (Method::PATCH, true),
            "get" => (Method::GET, false),
            "head" => (Method::HEAD, false),
            "delete" => (Method::DELETE, false),
            "options" => (Method::OPTIONS, false),
            "trace" => (Method::TRACE, false),
            other => return Err(Error::invalid(format!("invalid operation: {other}"))),
        };
        let uri = self
            .target
            .uri(exact(req.metadata, "path"))
            .map_err(|m| Error::invalid(format!("request metadata 'path' {m}")))?;
        let mut request = Request::new(Full::new(if has_body { req.data.clone() } else { Bytes::new() }));
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = self.headers(req.metadata, has_body)?;
        Ok(request)
    }

    fn headers(&self, md: &Metadata, has_body: bool) -> Result<HeaderMap> {
        let mut headers = HeaderMap::new();
        if has_body {
            headers.insert(CONTENT_TYPE, JSON);
        }
        headers.insert(ACCEPT, JSON);
        headers.insert(USER_AGENT, AGENT);
        if let Some(credentials) = &self.target.credentials {
            headers.insert(AUTHORIZATION, credentials.clone());
        }
        for (key, value) in md.iter().filter(|(k, _)| k.starts_with(|c: char| c.is_ascii_uppercase())) {
            let name = HeaderName::try_from(key).map_err(|_| {
                Error::invalid(format!("request metadata '{}' is no header name", key.escape_default()))
            })?;
            let value = HeaderValue::try_from(value).map_err(|_| {
                Error::invalid(format!("the value of request metadata '{key}' cannot stand in a header"))
            })?;
            if !is_framing(&name) {
                headers.insert(name, value);
            }
        }
        for name in TRACE_HEADERS {
            if let Some(value) = exact(md, name) {
                let value = HeaderValue::try_from(value)
                    .map_err(|_| Error::invalid(format!("the value of '{name}' cannot stand in a header")))?;
                headers.insert(name, value);
            }
        }
        // Last, so that no request can replace it.
        if let Some((name, token)) = &self.security {
            headers.insert(name, token.clone());
        }
        Ok(headers)
    }

    async fn call(&self, request: Request<Full<Bytes>>, error_if_not_2xx: bool) -> Result<Reply> {
        let response = self.client.request(request).await.map_err(|e| {
            let retry = if e.is_connect() { Retry::Always } else { Retry::IfIdempotent };
            Error::unavailable("the HTTP endpoint could not be called").with_retry(retry).with_source(Chain(e.into()))
        })?;
        let (head, body) = response.into_parts();
        let data = if self.max_body == 0 {
            body.collect().await.map_err(|e| broken(e.into()))?.to_bytes()
        } else {
            let limit = usize::try_from(self.max_body).unwrap_or(usize::MAX);
            Limited::new(body, limit).collect().await.map_err(broken)?.to_bytes()
        };
        let metadata = answer_metadata(head.status, &head.headers);
        if error_if_not_2xx && !head.status.is_success() {
            return Err(refused(head.status, metadata));
        }
        let content_type = head.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        Ok(Reply { data: Some(data), metadata, content_type })
    }
}

/// A failed call with its causes, which hyper leaves out of its own text.
#[derive(Debug)]
struct Chain(BoxError);

impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(e) = cause {
            write!(f, ": {e}")?;
            cause = e.source();
        }
        Ok(())
    }
}

impl std::error::Error for Chain {}

fn broken(e: BoxError) -> Error {
    if e.is::<LengthLimitError>() {
        return Error::new(ErrorKind::TooLarge, "the answer is larger than maxResponseBodySize");
    }
    Error::unavailable("the answer broke off").with_retry(Retry::IfIdempotent).with_source(Chain(e))
}

fn refused(status: StatusCode, metadata: Metadata) -> Error {
    let passes = status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429);
    let error = Error::internal(format!("received status code {}", status.as_u16())).with_retry(if passes {
        Retry::IfIdempotent
    } else {
        Retry::Never
    });
    metadata.into_inner().into_iter().fold(error, |e, (k, v)| e.with_detail(k, v))
}

fn answer_metadata(status: StatusCode, headers: &HeaderMap) -> Metadata {
    let mut metadata = Metadata::new();
    for name in headers.keys() {
        let values: Vec<_> = headers.get_all(name).iter().map(|v| String::from_utf8_lossy(v.as_bytes())).collect();
        metadata.insert(canonical(name.as_str()), values.join(", "));
    }
    // After the headers, so that a header called "status" cannot stand in for it.
    metadata.insert("statusCode", status.as_str());
    metadata
        .insert("status", format!("{} {}", status.as_str(), status.canonical_reason().unwrap_or_default()).trim_end());
    metadata
}

/// `content-type` as `Content-Type`: apps look response headers up in this form.
fn canonical(name: &str) -> String {
    let mut start = true;
    name.chars()
        .map(|c| {
            let c = if start { c.to_ascii_uppercase() } else { c };
            start = c == '-';
            c
        })
        .collect()
}

#[cfg(test)]
#[path = "http_tests.rs"]
mod tests;
