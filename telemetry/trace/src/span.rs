use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use super::context::TraceContext;
use super::ids::SpanId;
use super::tracer::SpanSink;

/// Most attributes per span; more are counted, not kept.
const MAX_ATTRIBUTES: usize = 64;

/// Longest text of an attribute or status, bytes; longer ones are cut.
const MAX_TEXT: usize = 4096;

/// Names of the attributes the daemon sets.
pub mod attribute {
    /// What was called: HTTP verb and path, or gRPC full method.
    pub const DAPR_API: &str = "dapr.api";
    /// `http` or `grpc`.
    pub const DAPR_PROTOCOL: &str = "dapr.protocol";
    /// Status of the answer.
    pub const DAPR_STATUS_CODE: &str = "dapr.status_code";
    /// Invoked method of the callee.
    pub const DAPR_INVOKE_METHOD: &str = "dapr.invoke_method";
    /// Actor type and id.
    pub const DAPR_ACTOR: &str = "dapr.actor";
    /// Verb.
    pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
    /// Full URL.
    pub const URL_FULL: &str = "url.full";
    /// Host of the server.
    pub const SERVER_ADDRESS: &str = "server.address";
    /// Port of the server.
    pub const SERVER_PORT: &str = "server.port";
    /// [`RPC_SERVICE_INVOCATION`] or [`RPC_SERVICE_DAPR`].
    pub const RPC_SERVICE: &str = "rpc.service";
    /// The callee's app id.
    pub const NET_PEER_NAME: &str = "net.peer.name";
    /// Kind of building block.
    pub const DB_SYSTEM: &str = "db.system";
    /// Component name.
    pub const DB_NAME: &str = "db.name";
    /// Verb and path, or gRPC method.
    pub const DB_STATEMENT: &str = "db.statement";
    /// Kind of building block or binding url.
    pub const DB_CONNECTION_STRING: &str = "db.connection_string";
    /// [`MESSAGING_PUBSUB`].
    pub const MESSAGING_SYSTEM: &str = "messaging.system";
    /// Topic.
    pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";

    /// Value of [`RPC_SERVICE`] for service invocation.
    pub const RPC_SERVICE_INVOCATION: &str = "ServiceInvocation";
    /// Value of [`RPC_SERVICE`] for every other API.
    pub const RPC_SERVICE_DAPR: &str = "Dapr";
    /// Value of [`MESSAGING_SYSTEM`].
    pub const MESSAGING_PUBSUB: &str = "pubsub";

    /// Whether a request header becomes an attribute under its own name.
    pub fn is_header(name: &str) -> bool {
        let name = name.as_bytes();
        name.len() > 5
            && name[..5].eq_ignore_ascii_case(b"dapr-")
            && !name.to_ascii_lowercase().ends_with(b"-bin")
            && !name.eq_ignore_ascii_case(b"dapr-api-token")
            && !name.eq_ignore_ascii_case(b"dapr-app-token")
    }
}

/// Who calls whom.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum SpanKind {
    /// Work inside one program.
    Internal,
    /// The daemon serves a call of a peer.
    Server,
    /// An API call of the app.
    Client,
    /// A published message.
    Producer,
    /// A delivered message.
    Consumer,
}

/// How the work ended.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub enum SpanStatus {
    /// Nothing was said.
    #[default]
    Unset,
    /// Explicit success.
    Ok,
    /// Failure with a text.
    Error(Cow<'static, str>),
}

/// An attribute's value.
#[derive(Clone, Debug, PartialEq)]
pub enum AttributeValue {
    /// Text.
    Text(Cow<'static, str>),
    /// Number.
    Int(i64),
    /// Truth.
    Bool(bool),
}

/// What an exporter gets.
#[derive(Clone, Debug)]
pub struct FinishedSpan {
    /// The span's own place in its trace.
    pub context: TraceContext,
    /// The caller's span.
    pub parent: Option<SpanId>,
    /// Whether the parent is in another process.
    pub parent_is_remote: bool,
    /// Low-cardinality name.
    pub name: Cow<'static, str>,
    /// Who calls whom.
    pub kind: SpanKind,
    /// Wall clock.
    pub start: SystemTime,
    /// From the monotonic clock, so clock jumps do not show.
    pub elapsed: Duration,
    /// In the order they were set.
    pub attributes: Vec<(Cow<'static, str>, AttributeValue)>,
    /// Attributes over the limit.
    pub dropped_attributes: u32,
    /// How it ended.
    pub status: SpanStatus,
}

/// A piece of work being traced. Ends when dropped or by [`Span::end`].
/// The default is a span that is not recorded and has no context.
#[derive(Debug, Default)]
pub struct Span {
    pub(super) context: Option<TraceContext>,
    pub(super) recording: Option<Box<Recording>>,
}

#[derive(Debug)]
pub(super) struct Recording {
    pub(super) sink: Arc<dyn SpanSink>,
    pub(super) started: Instant,
    pub(super) span: FinishedSpan,
}

impl Span {
    /// What to send on: to the app, to peers, in the answer. `None`: send no
    /// trace headers.
    pub fn context(&self) -> Option<&TraceContext> {
        self.context.as_ref()
    }

    /// Whether attributes have an effect; ask before computing costly ones.
    pub fn is_recording(&self) -> bool {
        self.recording.is_some()
    }

    /// Sets an attribute; empty texts are left out. A key set twice keeps the last value.
    pub fn set(&mut self, key: impl Into<Cow<'static, str>>, value: impl Into<AttributeValue>) {
        let Some(recording) = &mut self.recording else { return };
        let mut value = value.into();
        if let AttributeValue::Text(text) = &mut value {
            if text.is_empty() {
                return;
            }
            cut(text);
        }
        let key = key.into();
        let span = &mut recording.span;
        if let Some(slot) = span.attributes.iter_mut().find(|(known, _)| *known == key) {
            slot.1 = value;
        } else if span.attributes.len() < MAX_ATTRIBUTES {
            span.attributes.push((key, value));
        } else {
            span.dropped_attributes += 1;
        }
    }

    /// Marks the span as failed. The text must hold no payload and no secret.
    pub fn fail(&mut self, text: impl Into<Cow<'static, str>>) {
        if let Some(recording) = &mut self.recording {
            let mut text = text.into();
            cut(&mut text);
            recording.span.status = SpanStatus::Error(text);
        }
    }

    /// Records the answer of an HTTP call: the status attribute, and an error from 500 on.
    pub fn http_status(&mut self, status: u16) {
        if !self.is_recording() {
            return;
        }
        self.set(attribute::DAPR_STATUS_CODE, i64::from(status));
        if status >= 500 {
            self.fail(format!("HTTP {status}"));
        }
    }

    /// Records the answer of an RPC: the status attribute, and an error
    /// unless the code is 0. `name` is the code's name.
    pub fn grpc_status(&mut self, code: i32, name: &'static str) {
        if !self.is_recording() {
            return;
        }
        self.set(attribute::DAPR_STATUS_CODE, i64::from(code));
        if code != 0 {
            self.fail(name);
        }
    }

    /// Ends the span now.
    pub fn end(self) {}

    /// Forgets the span: it turned out that nothing was done.
    pub fn discard(mut self) {
        self.recording = None;
    }
}

impl Drop for Span {
    fn drop(&mut self) {
        if let Some(recording) = self.recording.take() {
            let Recording { sink, started, mut span } = *recording;
            span.elapsed = started.elapsed();
            sink.export(span);
        }
    }
}

impl From<&'static str> for AttributeValue {
    fn from(text: &'static str) -> Self {
        AttributeValue::Text(Cow::Borrowed(text))
    }
}

impl From<String> for AttributeValue {
    fn from(text: String) -> Self {
        AttributeValue::Text(Cow::Owned(text))
    }
}

impl From<i64> for AttributeValue {
    fn from(number: i64) -> Self {
        AttributeValue::Int(number)
    }
}

impl From<bool> for AttributeValue {
    fn from(truth: bool) -> Self {
        AttributeValue::Bool(truth)
    }
}

fn cut(text: &mut Cow<'static, str>) {
    if text.len() > MAX_TEXT {
        let mut end = MAX_TEXT;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.to_mut().truncate(end);
    }
}
