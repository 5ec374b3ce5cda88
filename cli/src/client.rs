//! A small HTTP/1.1 client for the sidecars on this machine, over TCP and unix sockets.

use crate::error::{CliError, Result};
use crate::registry::Record;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC};
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

/// A listener on this machine accepts within microseconds; more than this means it does not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Bound of answers that are shown as a whole.
const MAX_ANSWER_BYTES: usize = 64 * 1024 * 1024;

/// Everything that could end or split a path segment is encoded.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Where a sidecar's HTTP API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp(u16),
    Unix(PathBuf),
}

impl Endpoint {
    /// The API of a running app's sidecar.
    pub(crate) fn of(record: &Record) -> Result<Self> {
        match (&record.unix_domain_socket, record.http_port) {
            (Some(folder), _) => Ok(Self::socket(folder, &record.app_id)),
            (None, Some(port)) => Ok(Self::Tcp(port)),
            (None, None) => Err(CliError::new(
                "sidecar-unreachable",
                format!("{} names no API port in its run file", record.app_id),
            )),
        }
    }

    /// The API socket of an app in this folder.
    pub(crate) fn socket(folder: &Path, app_id: &str) -> Self {
        Self::Unix(folder.join(format!("dapr-{app_id}-http.socket")))
    }

    fn authority(&self) -> String {
        match self {
            Self::Tcp(port) => format!("127.0.0.1:{port}"),
            Self::Unix(_) => "localhost".to_owned(),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(port) => write!(f, "http://127.0.0.1:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

/// A sidecar's answer with its whole body.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    /// The body of a successful answer; else an error with the sidecar's code and message.
    pub(crate) fn ok(self) -> Result<Self> {
        if self.status.is_success() { Ok(self) } else { Err(self.error()) }
    }

    /// The failure the sidecar reported.
    pub(crate) fn error(&self) -> CliError {
        let text = String::from_utf8_lossy(&self.body);
        let message = match serde_json::from_slice::<serde_json::Value>(&self.body) {
            Ok(body) => match (body["errorCode"].as_str(), body["message"].as_str()) {
                (Some(code), Some(message)) => format!("{code}: {message}"),
                (None, Some(message)) => message.to_owned(),
                _ => text.into_owned(),
            },
            Err(_) => text.into_owned(),
        };
        let error =
            CliError::new("sidecar-refused", format!("the sidecar answered {}: {}", self.status, message.trim()));
        if self.status == StatusCode::UNAUTHORIZED && message.contains("api token") {
            return error.hint("set DAPR_API_TOKEN to the token the sidecar was started with");
        }
        error
    }
}

/// One segment of a request path.
pub(crate) fn segment(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, SEGMENT).to_string()
}

/// A request to a sidecar, with the API token of `DAPR_API_TOKEN`.
#[derive(Debug)]
pub(crate) struct Call {
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// `path` starts with a slash and is percent-encoded already.
    pub(crate) fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: HeaderMap::new(), body: Bytes::new() }
    }

    pub(crate) fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.append(name, value);
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Sends the request and reads the whole answer within `limit`.
    pub(crate) async fn send(self, endpoint: &Endpoint, limit: Duration) -> Result<Answer> {
        let exchange = async {
            let response = self.start(endpoint).await?;
            let (parts, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER_BYTES)
                .collect()
                .await
                .map_err(|error| CliError::new("sidecar-answer", format!("the answer broke off: {error}")))?;
            Ok(Answer { status: parts.status, headers: parts.headers, body: body.to_bytes() })
        };
        within(limit, endpoint, exchange).await
    }

    /// Sends the request and waits at most `limit` for the head of the answer; the body is the caller's to read.
    pub(crate) async fn stream(self, endpoint: &Endpoint, limit: Duration) -> Result<Response<Incoming>> {
        within(limit, endpoint, self.start(endpoint)).await
    }

    async fn start(mut self, endpoint: &Endpoint) -> Result<Response<Incoming>> {
        let host = HeaderValue::try_from(endpoint.authority()).map_err(|error| {
            CliError::new("sidecar-unreachable", format!("{endpoint} is no usable address: {error}"))
        })?;
        self.headers.insert(http::header::HOST, host);
        if let Some(token) = std::env::var("DAPR_API_TOKEN").ok().filter(|token| !token.is_empty()) {
            let mut value = HeaderValue::try_from(token)
                .map_err(|_| CliError::usage("api-token", "DAPR_API_TOKEN holds characters no HTTP header may have"))?;
            value.set_sensitive(true);
            self.headers.insert("dapr-api-token", value);
        }
        let mut request = Request::new(Full::new(self.body));
        *request.method_mut() = self.method;
        *request.uri_mut() = self
            .path
            .parse()
            .map_err(|error| CliError::usage("path", format!("{:?} is no request path: {error}", self.path)))?;
        *request.headers_mut() = self.headers;
        let refused = |error: std::io::Error| {
            CliError::new("sidecar-unreachable", format!("no sidecar answers on {endpoint}: {error}"))
                .hint("`mecha list` shows what runs here")
        };
        let late = || {
            CliError::new("sidecar-unreachable", format!("{endpoint} accepts no connection within {CONNECT_TIMEOUT:?}"))
        };
        match endpoint {
            Endpoint::Tcp(port) => {
                let connection = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(("127.0.0.1", *port))).await;
                exchange(connection.map_err(|_| late())?.map_err(refused)?, request).await
            }
            Endpoint::Unix(path) => {
                let connection = tokio::time::timeout(CONNECT_TIMEOUT, UnixStream::connect(path)).await;
                exchange(connection.map_err(|_| late())?.map_err(refused)?, request).await
            }
        }
    }
}

async fn exchange<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Response<Incoming>>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let failed = |error: hyper::Error| CliError::new("sidecar-answer", format!("the sidecar gave no answer: {error}"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
    // Ends with the connection, at the latest with this process; its errors reach us through the request.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(failed)
}

async fn within<T>(limit: Duration, endpoint: &Endpoint, work: impl Future<Output = Result<T>>) -> Result<T> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(CliError::new("timeout", format!("{endpoint} gave no answer within {limit:?}"))
            .hint("--timeout gives it longer")),
    }
}
