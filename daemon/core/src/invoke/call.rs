//! What core and the daemon exchange about one invocation.

use std::fmt;
use std::net::IpAddr;

use async_trait::async_trait;
use bytes::Bytes;
use http::HeaderMap;

use super::endpoint::Endpoint;
use super::method::Method;
use crate::app::Body;

/// gRPC status codes that invocations deal with.
pub mod grpc_code {
    #![allow(missing_docs, reason = "the names are the documentation")]
    pub const OK: i32 = 0;
    pub const CANCELLED: i32 = 1;
    pub const UNKNOWN: i32 = 2;
    pub const INVALID_ARGUMENT: i32 = 3;
    pub const DEADLINE_EXCEEDED: i32 = 4;
    pub const NOT_FOUND: i32 = 5;
    pub const ALREADY_EXISTS: i32 = 6;
    pub const PERMISSION_DENIED: i32 = 7;
    pub const RESOURCE_EXHAUSTED: i32 = 8;
    pub const FAILED_PRECONDITION: i32 = 9;
    pub const ABORTED: i32 = 10;
    pub const OUT_OF_RANGE: i32 = 11;
    pub const UNIMPLEMENTED: i32 = 12;
    pub const INTERNAL: i32 = 13;
    pub const UNAVAILABLE: i32 = 14;
    pub const DATA_LOSS: i32 = 15;
    pub const UNAUTHENTICATED: i32 = 16;
}

/// The verb of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verb {
    /// A gRPC caller gave no HTTP extension.
    Missing,
    /// A gRPC caller gave the verb `NONE`.
    None,
    /// A verb.
    Http(http::Method),
}

impl Verb {
    /// The verb of an HTTP call. One that `HTTPExtension.Verb` cannot name goes on as POST, to
    /// the own app as to others, so that an app sees the same wherever its caller sits.
    #[must_use]
    pub fn of(method: http::Method) -> Self {
        let named = [
            http::Method::GET,
            http::Method::HEAD,
            http::Method::PUT,
            http::Method::DELETE,
            http::Method::CONNECT,
            http::Method::OPTIONS,
            http::Method::TRACE,
            http::Method::PATCH,
        ];
        Self::Http(if named.contains(&method) { method } else { http::Method::POST })
    }

    /// Number in `HTTPExtension.Verb`; a verb that has none goes on as POST.
    #[must_use]
    pub fn number(&self) -> Option<i32> {
        let Self::Http(m) = self else {
            return matches!(self, Self::None).then_some(0);
        };
        Some(match m.as_str() {
            "GET" => 1,
            "HEAD" => 2,
            "PUT" => 4,
            "DELETE" => 5,
            "CONNECT" => 6,
            "OPTIONS" => 7,
            "TRACE" => 8,
            "PATCH" => 9,
            _ => 3,
        })
    }

    /// The verb with this number.
    #[must_use]
    pub fn from_number(number: i32) -> Self {
        Self::Http(match number {
            1 => http::Method::GET,
            2 => http::Method::HEAD,
            3 => http::Method::POST,
            4 => http::Method::PUT,
            5 => http::Method::DELETE,
            6 => http::Method::CONNECT,
            7 => http::Method::OPTIONS,
            8 => http::Method::TRACE,
            9 => http::Method::PATCH,
            _ => return Self::None,
        })
    }

    /// Whether sending the call twice does no more than sending it once (RFC 9110, 9.2.2).
    #[must_use]
    pub fn is_idempotent(&self) -> bool {
        matches!(self, Self::Http(m) if m.is_idempotent())
    }
}

/// Which API the caller used; header names differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The HTTP API.
    Http,
    /// `InvokeService` of the gRPC API.
    Grpc,
}

/// Everything of a call but its body; shared by the tries of one call.
#[derive(Clone, Debug)]
pub struct Head {
    /// Verb.
    pub verb: Verb,
    /// Method, normalised.
    pub method: Method,
    /// Query string as it came, without question mark.
    pub query: String,
    /// Headers or metadata; `-bin` values are base64.
    pub headers: HeaderMap,
    /// Type of the data, from gRPC callers that state one.
    pub type_url: String,
    /// API of the caller.
    pub origin: Origin,
}

/// A call as it comes in from a peer.
#[derive(Debug)]
pub struct Call {
    /// Head.
    pub head: Head,
    /// Body.
    pub body: Body,
}

/// In the extensions of a request to the app: facts that an HTTP request has no place for.
/// gRPC apps are called by this method, not by the URL path.
#[derive(Clone, Debug)]
pub struct Invocation {
    /// Method as it was judged.
    pub method: Method,
    /// Verb.
    pub verb: Verb,
    /// Query string, without question mark.
    pub query: String,
    /// Type of the data; may be empty.
    pub type_url: String,
}

/// One entry of a status' details: a `google.protobuf.Any`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatusDetail {
    /// Type.
    pub type_url: String,
    /// Encoded message.
    pub value: Bytes,
}

/// In the extensions of an answer: it comes from a gRPC app. The HTTP status of such an
/// answer means nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GrpcAnswer {
    /// gRPC status code.
    pub code: i32,
    /// Status message.
    pub message: String,
    /// Status details.
    pub details: Vec<StatusDetail>,
    /// Metadata that came after the message; `-bin` values are base64.
    pub trailers: HeaderMap,
    /// Type of the data; may be empty.
    pub type_url: String,
}

/// Who a peer is expected to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer<'a> {
    /// `host:port`.
    pub address: &'a str,
    /// App id.
    pub app_id: &'a str,
    /// Namespace.
    pub namespace: &'a str,
}

/// How far a failed try got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reached {
    /// Nothing left this process, or the peer says it processed nothing.
    No,
    /// The callee may have acted.
    Maybe,
}

/// A try that failed before an answer came.
#[derive(Clone, Debug)]
pub struct TransportError {
    /// gRPC code.
    pub code: i32,
    /// What happened.
    pub message: String,
    /// Details of the peer's status.
    pub details: Vec<StatusDetail>,
    /// How far it got.
    pub reached: Reached,
}

impl TransportError {
    /// A failure that may have reached the callee.
    #[must_use]
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new(), reached: Reached::Maybe }
    }

    /// A failure that did not reach the callee.
    #[must_use]
    pub fn unsent(code: i32, message: impl Into<String>) -> Self {
        Self { reached: Reached::No, ..Self::new(code, message) }
    }

    /// Whether the connection is to blame, so that another one may do.
    #[must_use]
    pub fn is_connection(&self) -> bool {
        matches!(self.code, grpc_code::UNAVAILABLE | grpc_code::UNAUTHENTICATED)
    }
}

impl fmt::Display for TransportError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rpc error: code = {} desc = {}", super::grpc::code_name(self.code), self.message)
    }
}

impl std::error::Error for TransportError {}

/// Calls that leave this process, other than those to the own app.
#[async_trait]
pub trait Transport: Send + Sync + fmt::Debug + 'static {
    /// Calls the app behind a peer. The answer has its headers already; its body streams.
    /// Dropping the future or the body ends the call.
    async fn call_peer(&self, peer: Peer<'_>, head: &Head, body: Body) -> Result<http::Response<Body>, TransportError>;

    /// Calls an HTTP server outside: `req` holds the absolute URL and final headers.
    /// Redirects are handed back.
    async fn call_endpoint(
        &self,
        endpoint: &Endpoint,
        req: http::Request<Body>,
    ) -> Result<http::Response<Body>, TransportError>;

    /// Forgets the kept connections to `address`, because a call over one failed.
    fn drop_connections(&self, address: &str);
}

/// Who calls, as a verified connection says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Trust domain.
    pub trust_domain: String,
    /// Namespace.
    pub namespace: String,
    /// App id.
    pub app_id: String,
}

/// What access control is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// Verified identity of the caller; `None` without mTLS.
    pub caller: Option<&'a PeerIdentity>,
    /// Network address of the caller.
    pub from: Option<IpAddr>,
    /// The method: exactly what goes to the app, or what the app reads in it.
    pub operation: &'a str,
    /// Verb; `None` for gRPC.
    pub verb: Option<&'a http::Method>,
    /// Whether the app speaks HTTP.
    pub http: bool,
}

/// Decides which calls from peers reach the app.
pub trait AccessControl: Send + Sync + fmt::Debug + 'static {
    /// Allows or refuses; the text goes to the caller.
    ///
    /// # Errors
    /// Why it is refused.
    fn check(&self, question: Question<'_>) -> Result<(), String>;
}

/// Without a document everybody may call everything.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAll;

impl AccessControl for AllowAll {
    fn check(&self, _: Question<'_>) -> Result<(), String> {
        Ok(())
    }
}
