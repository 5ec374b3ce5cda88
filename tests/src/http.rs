use std::path::PathBuf;

use ::http::header::HOST;
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::app::http::{Body, full_body};
use crate::wait::DEADLINE;

/// Unreserved characters of RFC 3986 stay.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Which HTTP a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 without TLS, by prior knowledge.
    H2c,
}

/// An HTTP client of one server; each request has a connection of its own.
#[derive(Clone, Debug)]
pub struct Http {
    place: Place,
    protocol: Protocol,
    headers: HeaderMap,
}

#[derive(Clone, Debug)]
enum Place {
    Tcp(u16),
    Unix(PathBuf),
}

/// A request to be sent.
#[derive(Debug)]
#[must_use]
pub struct Request {
    client: Http,
    method: Method,
    path: String,
    headers: HeaderMap,
    body: Body,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Reply {
    /// Status code.
    pub status: u16,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// Percent-encodes one path segment or query value.
#[must_use]
pub fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

impl Http {
    /// A client of `127.0.0.1:port`.
    #[must_use]
    pub fn tcp(port: u16) -> Self {
        Self { place: Place::Tcp(port), protocol: Protocol::Http1, headers: HeaderMap::new() }
    }

    /// A client of a unix socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { place: Place::Unix(path.into()), protocol: Protocol::Http1, headers: HeaderMap::new() }
    }

    /// The same client with another protocol.
    #[must_use]
    pub fn speaking(mut self, protocol: Protocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// A header on every request.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
        self
    }

    /// A request of any method; `path` is percent-encoded and may hold a query.
    pub fn request(&self, method: &str, path: impl Into<String>) -> Request {
        Request {
            client: self.clone(),
            method: Method::from_bytes(method.as_bytes()).unwrap(),
            path: path.into(),
            headers: self.headers.clone(),
            body: full_body(Bytes::new()),
        }
    }

    /// A GET.
    pub fn get(&self, path: impl Into<String>) -> Request {
        self.request("GET", path)
    }

    /// A POST with a body.
    pub fn post(&self, path: impl Into<String>, body: impl Into<Bytes>) -> Request {
        self.request("POST", path).body(body)
    }

    /// A POST of JSON.
    pub fn post_json(&self, path: impl Into<String>, body: &serde_json::Value) -> Request {
        self.request("POST", path).body(body.to_string()).header("content-type", "application/json")
    }

    /// A DELETE.
    pub fn delete(&self, path: impl Into<String>) -> Request {
        self.request("DELETE", path)
    }

    async fn connect(&self) -> std::io::Result<Box<dyn Connection>> {
        Ok(match &self.place {
            Place::Tcp(port) => Box::new(TcpStream::connect(("127.0.0.1", *port)).await?),
            Place::Unix(path) => Box::new(UnixStream::connect(path).await?),
        })
    }
}

trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

impl Request {
    /// One more header line.
    pub fn header(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::from_bytes(value.as_ref()).unwrap());
        self
    }

    /// A whole body.
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = full_body(body.into());
        self
    }

    /// A body of any kind.
    pub fn stream(mut self, body: Body) -> Self {
        self.body = body;
        self
    }

    /// Sends, and hands out the answer as it comes.
    ///
    /// # Errors
    /// What went wrong on the way, as text.
    pub async fn open(self) -> Result<::http::Response<Incoming>, String> {
        let authority = match &self.client.place {
            Place::Tcp(port) => format!("127.0.0.1:{port}"),
            Place::Unix(_) => "localhost".to_owned(),
        };
        let io = TokioIo::new(self.client.connect().await.map_err(|e| format!("connect: {e}"))?);
        let mut request = ::http::Request::new(self.body);
        *request.method_mut() = self.method;
        *request.headers_mut() = self.headers;
        match self.client.protocol {
            Protocol::Http1 => {
                if !request.headers().contains_key(HOST) {
                    request.headers_mut().insert(HOST, HeaderValue::try_from(authority).unwrap());
                }
                *request.uri_mut() = self.path.parse().map_err(|e| format!("{}: {e}", self.path))?;
                let (mut sender, connection) =
                    hyper::client::conn::http1::handshake(io).await.map_err(|e| format!("handshake: {e}"))?;
                tokio::spawn(connection);
                sender.send_request(request).await.map_err(|e| format!("{e:?}"))
            }
            Protocol::H2c => {
                *request.version_mut() = Version::HTTP_2;
                let uri = format!("http://{authority}{}", self.path);
                *request.uri_mut() = uri.parse().map_err(|e| format!("{uri}: {e}"))?;
                let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
                    .await
                    .map_err(|e| format!("handshake: {e}"))?;
                tokio::spawn(connection);
                sender.send_request(request).await.map_err(|e| format!("{e:?}"))
            }
        }
    }

    /// Sends and reads the whole answer.
    ///
    /// # Errors
    /// What went wrong on the way, as text; also when the answer is not there within [`DEADLINE`].
    pub async fn try_send(self) -> Result<Reply, String> {
        let whole = async {
            let (parts, body) = self.open().await?.into_parts();
            let body = body.collect().await.map_err(|e| format!("body: {e:?}"))?.to_bytes();
            Ok(Reply { status: parts.status.as_u16(), headers: parts.headers, body })
        };
        tokio::time::timeout(DEADLINE, whole).await.map_err(|_| format!("no answer within {DEADLINE:?}"))?
    }

    /// Sends and reads the whole answer.
    ///
    /// # Panics
    /// When there is none.
    pub async fn send(self) -> Reply {
        let line = format!("{} {}", self.method, self.path);
        self.try_send().await.unwrap_or_else(|e| panic!("{line}: {e}"))
    }
}

impl Reply {
    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in the answer {self:?}"))
    }

    /// A header's first value, or an empty text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("(no text)"))
    }

    /// Member `errorCode` of the body, or an empty text.
    #[must_use]
    pub fn code(&self) -> String {
        self.member("errorCode")
    }

    /// Member `message` of the body, or an empty text.
    #[must_use]
    pub fn message(&self) -> String {
        self.member("message")
    }

    /// The same reply, which must have this status.
    #[track_caller]
    #[allow(clippy::must_use_candidate, reason = "the check alone is often enough")]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(
            self.status,
            status,
            "{} instead of {status}: {}",
            StatusCode::from_u16(self.status).map_or_else(|_| self.status.to_string(), |s| s.to_string()),
            self.text()
        );
        self
    }

    fn member(&self, name: &str) -> String {
        let document: serde_json::Value = serde_json::from_slice(&self.body).unwrap_or_default();
        document[name].as_str().unwrap_or_default().to_owned()
    }
}
