//! The app, as core sees it. The daemon implements [`AppChannel`] once for HTTP apps
//! and once for gRPC apps; core never knows which one it talks to.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use mecha_components_api::{BindingEvent, Error, Metadata};

use crate::cx::TraceHeaders;

/// Errors of body streams.
pub type BodyError = Box<dyn std::error::Error + Send + Sync>;
/// A streamed body.
pub type Body = UnsyncBoxBody<Bytes, BodyError>;

/// How the app speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppProtocol {
    /// HTTP/1.1.
    Http,
    /// HTTP/1.1 over TLS, certificate not verified.
    Https,
    /// HTTP/2 without TLS, prior knowledge.
    H2c,
    /// gRPC.
    Grpc,
    /// gRPC over TLS, certificate not verified.
    Grpcs,
}

impl AppProtocol {
    /// Value of the flag and of the metadata API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::H2c => "h2c",
            Self::Grpc => "grpc",
            Self::Grpcs => "grpcs",
        }
    }

    /// Whether the app is called by gRPC.
    #[must_use]
    pub const fn is_grpc(self) -> bool {
        matches!(self, Self::Grpc | Self::Grpcs)
    }

    /// Whether the app is called over TLS.
    #[must_use]
    pub const fn is_tls(self) -> bool {
        matches!(self, Self::Https | Self::Grpcs)
    }
}

/// One subscription, whatever its source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppSubscription {
    /// Pub/sub component.
    pub pubsub: String,
    /// Topic, without namespace prefix.
    pub topic: String,
    /// Subscription metadata.
    pub metadata: Metadata,
    /// Rules in order; an empty match is always true.
    pub rules: Vec<RouteRule>,
    /// Route without a rule; `None` when there is none.
    pub default_route: Option<String>,
    /// Dead-letter topic.
    pub dead_letter_topic: Option<String>,
    /// Bulk delivery.
    pub bulk: Option<BulkOptions>,
}

/// One routing rule.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// CEL expression over `event`; empty is always true.
    pub matches: String,
    /// Path on the app.
    pub path: String,
}

/// Limits of one bulk delivery.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BulkOptions {
    /// Messages at most.
    pub max_messages: usize,
    /// Time at most until the first message of a batch is handed over.
    pub max_await: Duration,
}

/// A CloudEvent (or raw message) on its way to the app.
#[derive(Clone, Debug, Default)]
pub struct TopicEvent {
    /// Pub/sub component.
    pub pubsub: String,
    /// Topic as the app knows it.
    pub topic: String,
    /// Route on the app.
    pub path: String,
    /// What an HTTP app gets as its body.
    pub body: Bytes,
    /// Content type of `body`.
    pub content_type: &'static str,
    /// The event's attributes as a JSON object; filled for gRPC apps and streams only.
    pub event: serde_json::Map<String, serde_json::Value>,
    /// JSON text of the member `data`, with the publisher's digits, which a number of
    /// `event["data"]` may have lost. Filled where `event` is.
    pub data: Option<Bytes>,
    /// Message metadata as the broker gave it; HTTP adds `pubsubName`.
    pub metadata: Metadata,
    /// Trace context of the delivery.
    pub trace: TraceHeaders,
}

/// One entry of a bulk delivery.
#[derive(Clone, Debug, Default)]
pub struct BulkEventEntry {
    /// Unique within the bulk.
    pub entry_id: String,
    /// The event; `None` for raw messages. Filled for gRPC apps, empty for HTTP apps.
    pub event: Option<serde_json::Map<String, serde_json::Value>>,
    /// See [`TopicEvent::data`].
    pub data: Option<Bytes>,
    /// Whether `body` is raw bytes rather than a CloudEvent.
    pub raw: bool,
    /// Serialized CloudEvent, or the raw bytes.
    pub body: Bytes,
    /// Content type of `body`.
    pub content_type: String,
    /// Message metadata.
    pub metadata: Metadata,
}

/// Several messages in one call.
#[derive(Clone, Debug, Default)]
pub struct BulkTopicEvent {
    /// Random id of the call.
    pub id: String,
    /// Pub/sub component.
    pub pubsub: String,
    /// Topic as the app knows it.
    pub topic: String,
    /// Route on the app.
    pub path: String,
    /// Metadata of the call.
    pub metadata: Metadata,
    /// The messages.
    pub entries: Vec<BulkEventEntry>,
    /// Trace context of the delivery.
    pub trace: TraceHeaders,
}

/// What the app says of one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AppVerdict {
    /// Done.
    Success,
    /// Try again.
    Retry,
    /// Give up: to the dead-letter topic when there is one.
    Drop,
    /// Give up without dead-letter topic (gRPC Unimplemented).
    Discard,
}

/// What the app says of an input binding's event.
#[derive(Clone, Debug, Default)]
pub struct BindingReply {
    /// Payload of the answer.
    pub data: Bytes,
    /// State to save.
    pub store_name: String,
    /// Items to save there.
    pub states: Vec<crate::state::SaveItem>,
    /// Output bindings to call with `data`, operation `create`.
    pub to: Vec<String>,
    /// Call them at the same time.
    pub parallel: bool,
}

/// The app's own settings (`/dapr/config`), as far as they are used.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AppConfig {
    /// Actor types it hosts.
    pub entities: Vec<String>,
    /// The document as it came, for blocks that read more of it.
    pub raw: serde_json::Value,
}

/// A failure of the app or on the way to it.
#[derive(Debug)]
pub struct AppError {
    /// What happened, as a component error: kind and retryability.
    pub error: Error,
    /// HTTP status the app answered, when it did.
    pub http_status: Option<u16>,
    /// gRPC code the app answered, when it did.
    pub grpc_code: Option<i32>,
}

impl AppError {
    /// A failure on the way to the app.
    #[must_use]
    pub fn transport(error: Error) -> Self {
        Self { error, http_status: None, grpc_code: None }
    }
}

impl fmt::Display for AppError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for AppError {}

/// Calls to the app. Implementations count every call but the health probe against
/// `app-max-concurrency`, add the app token, and dial again when the app restarts.
#[async_trait]
pub trait AppChannel: Send + Sync + fmt::Debug + 'static {
    /// How the app speaks.
    fn protocol(&self) -> AppProtocol;

    /// `/dapr/config`; `None` when the app has none.
    async fn config(&self) -> Result<Option<AppConfig>, AppError>;

    /// The app's programmatic subscriptions; `None` when the app has no such route or service.
    /// Items that cannot be used are left out with a log line.
    async fn subscriptions(&self) -> Result<Option<Vec<AppSubscription>>, AppError>;

    /// Delivers one event. An answer that is a verdict is `Ok`; anything else is `Err`
    /// and counts as retry, but for HTTP status 404, which drops the event.
    async fn topic_event(&self, event: &TopicEvent) -> Result<AppVerdict, AppError>;

    /// Delivers several events; one verdict per entry, in the order of the entries.
    async fn bulk_topic_event(&self, event: &BulkTopicEvent) -> Result<Vec<AppVerdict>, AppError>;

    /// Whether the app takes events of this input binding. `Err` is no definite answer.
    async fn takes_binding(&self, name: &str, route: &str, limit: Duration) -> Result<bool, AppError>;

    /// Delivers one input binding event.
    async fn binding_event(
        &self,
        name: &str,
        route: &str,
        event: &BindingEvent,
        trace: &TraceHeaders,
    ) -> Result<BindingReply, AppError>;

    /// Pushes one configuration change: store, subscription id, key and its item.
    async fn configuration_event(
        &self,
        store: &str,
        id: &str,
        key: &str,
        items: &BTreeMap<String, mecha_components_api::ConfigItem>,
    ) -> Result<(), AppError>;

    /// One health probe; `Ok` when the app says it is well.
    async fn probe(&self, path: &str, limit: Duration) -> Result<(), AppError>;

    /// Invokes a method of the app: method, URI path and query, headers and body are final.
    /// For gRPC apps this is `AppCallback.OnInvoke`.
    async fn invoke(&self, req: http::Request<Body>) -> Result<http::Response<Body>, AppError>;
}
