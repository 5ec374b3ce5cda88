use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use mecha_components_api::{Error, ErrorKind};

use crate::codes::Code;

/// One entry of the `details` list of a rich error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detail {
    /// `google.rpc.ErrorInfo`, domain `dapr.io`.
    ErrorInfo {
        /// Machine reason.
        reason: Cow<'static, str>,
        /// Facts; `None` is JSON `null`.
        metadata: Option<BTreeMap<String, String>>,
    },
    /// `google.rpc.ResourceInfo`.
    ResourceInfo {
        /// `state`, `pubsub`, …
        resource_type: &'static str,
        /// Name of the component.
        resource_name: String,
        /// What is wrong with it.
        description: String,
    },
    /// `google.rpc.BadRequest` with one violation.
    BadRequest {
        /// The offending field.
        field: String,
        /// What is wrong with it.
        description: String,
    },
    /// `google.rpc.Help` with one link.
    Help {
        /// Address.
        url: &'static str,
        /// What is found there.
        description: &'static str,
    },
}

/// How much of an error the HTTP body shows. The gRPC status is never poorer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// HTTP: `errorCode` and `message`; gRPC: code and message.
    Plain,
    /// HTTP: `errorCode` and `message`; gRPC: details too.
    PlainHttp,
    /// Details on both fronts.
    Rich,
}

struct Inner {
    code: Code,
    kind: ErrorKind,
    message: String,
    http_message: Option<String>,
    details: Vec<Detail>,
    shape: Shape,
    /// HTTP status and gRPC code of a component or peer that carries its own.
    status: Option<(u16, i32)>,
    /// Response metadata of a failed output binding.
    headers: BTreeMap<String, String>,
}

/// An error of the API: a stable code, the kind that decides the status, a message
/// that clients may match, and details. One file in the daemon turns it into HTTP
/// and gRPC.
pub struct ApiError(Box<Inner>);

impl ApiError {
    /// A plain error.
    #[must_use]
    pub fn new(code: Code, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self(Box::new(Inner {
            code,
            kind,
            message: message.into(),
            http_message: None,
            details: Vec::new(),
            shape: Shape::Plain,
            status: None,
            headers: BTreeMap::new(),
        }))
    }

    /// A request that could not be decoded, or lacks something.
    #[must_use]
    pub fn malformed(message: impl Into<String>) -> Self {
        Self::new(Code::MalformedRequest, ErrorKind::InvalidArgument, message)
    }

    /// A body over the limit.
    #[must_use]
    pub fn too_large(limit: u64) -> Self {
        Self::new(
            Code::MalformedRequest,
            ErrorKind::TooLarge,
            format!("the request body is larger than the limit of {limit} bytes (max-body-size)"),
        )
    }

    /// An API that is not built yet.
    #[must_use]
    pub fn unimplemented() -> Self {
        Self::new(Code::ApiUnimplemented, ErrorKind::Unsupported, "this API is currently not implemented")
    }

    /// The message HTTP callers get, where it differs.
    #[must_use]
    pub fn with_http_message(mut self, message: impl Into<String>) -> Self {
        self.0.http_message = Some(message.into());
        self
    }

    /// Appends a detail; errors with details are rich unless a shape is set after it.
    #[must_use]
    pub fn with_detail(mut self, detail: Detail) -> Self {
        self.0.details.push(detail);
        if self.0.shape == Shape::Plain {
            self.0.shape = Shape::Rich;
        }
        self
    }

    /// Sets which fronts show the details.
    #[must_use]
    pub fn with_shape(mut self, shape: Shape) -> Self {
        self.0.shape = shape;
        self
    }

    /// Keeps the HTTP status and gRPC code that a component or peer decided.
    #[must_use]
    pub fn with_status(mut self, http: u16, grpc: i32) -> Self {
        self.0.status = Some((http, grpc));
        self
    }

    /// Response metadata that goes out although the call failed.
    #[must_use]
    pub fn with_headers(mut self, headers: BTreeMap<String, String>) -> Self {
        self.0.headers = headers;
        self
    }

    /// The code.
    #[must_use]
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The kind.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The message of gRPC, and of HTTP unless that differs.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// The message of HTTP.
    #[must_use]
    pub fn http_message(&self) -> &str {
        self.0.http_message.as_deref().unwrap_or(&self.0.message)
    }

    /// The details, in wire order.
    #[must_use]
    pub fn details(&self) -> &[Detail] {
        &self.0.details
    }

    /// Which fronts show the details.
    #[must_use]
    pub fn shape(&self) -> Shape {
        self.0.shape
    }

    /// HTTP status and gRPC code decided elsewhere.
    #[must_use]
    pub fn status(&self) -> Option<(u16, i32)> {
        self.0.status
    }

    /// Response metadata of a failed output binding.
    #[must_use]
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.0.headers
    }

    /// Wraps a component error: its kind is kept, its text becomes part of `message`.
    #[must_use]
    pub fn component(code: Code, cause: &Error, message: impl Into<String>) -> Self {
        Self::new(code, cause.kind(), message).with_headers(cause.details().clone())
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.0.code.as_str(), self.0.message)
    }
}

impl fmt::Debug for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiError")
            .field("code", &self.0.code.as_str())
            .field("kind", &self.0.kind)
            .field("message", &self.0.message)
            .finish_non_exhaustive()
    }
}

impl std::error::Error for ApiError {}
