//! The pub/sub API: publishing, and the subscriptions that deliver to the app.

pub mod scopes;

use std::sync::Arc;

use bytes::Bytes;
use mecha_components_api::Metadata;
use tokio::sync::mpsc;

use crate::app::{AppSubscription, AppVerdict, TopicEvent};
use crate::cx::Cx;
use crate::error::ApiError;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::trace::Tracer;

/// One event to publish.
#[derive(Clone, Debug)]
pub struct PublishRequest {
    /// Pub/sub component.
    pub pubsub: String,
    /// Topic, without namespace prefix.
    pub topic: String,
    /// Payload as the caller sent it.
    pub data: Bytes,
    /// Content type; `None` when the caller named none.
    pub content_type: Option<String>,
    /// Request metadata.
    pub metadata: Metadata,
}

/// One entry of a bulk publish.
#[derive(Clone, Debug)]
pub struct BulkPublishEntry {
    /// Unique within the request.
    pub entry_id: String,
    /// Payload, already decoded from its transport form.
    pub event: Bytes,
    /// Content type.
    pub content_type: String,
    /// Entry metadata.
    pub metadata: Metadata,
}

/// An entry that was not published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedEntry {
    /// Its id.
    pub entry_id: String,
    /// Why.
    pub error: String,
}

/// What a streaming subscriber asks for.
#[derive(Clone, Debug)]
pub struct StreamRequest {
    /// Pub/sub component.
    pub pubsub: String,
    /// Topic.
    pub topic: String,
    /// Subscription metadata.
    pub metadata: Metadata,
    /// Dead-letter topic.
    pub dead_letter_topic: Option<String>,
}

/// An event on a stream.
#[derive(Debug)]
pub struct StreamEvent {
    /// Id that the client answers with.
    pub id: String,
    /// The event; its path is `/`.
    pub event: TopicEvent,
}

/// Where a subscription comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// A Subscription document.
    Declarative,
    /// The app's own list.
    Programmatic,
    /// An open stream.
    Streaming,
}

/// The pub/sub API.
#[derive(Debug)]
pub struct PubSubApi {
    store: Arc<Store>,
    me: Arc<Identity>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    tasks: Tasks,
}

/// An open stream: events come out, verdicts go in. Dropping it ends the subscription; events
/// without a verdict are redelivered.
#[derive(Debug)]
pub struct StreamSubscription {
    /// The events.
    pub events: mpsc::Receiver<StreamEvent>,
}

impl StreamSubscription {
    /// Takes the client's verdict on one event. `false` when the id is unknown.
    pub fn processed(&self, _id: &str, _verdict: AppVerdict) -> bool {
        false
    }
}

impl PubSubApi {
    /// The API over the live snapshot.
    #[must_use]
    pub fn new(store: Arc<Store>, me: Arc<Identity>, metrics: Arc<Metrics>, tracer: Tracer, tasks: Tasks) -> Self {
        Self { store, me, metrics, tracer, tasks }
    }

    /// Publishes one event; `Ok` after the broker confirmed.
    ///
    /// # Errors
    /// Bad input, a scope that forbids it, or the broker's failure.
    pub async fn publish(&self, _cx: &Cx, _req: PublishRequest) -> Result<(), ApiError> {
        let _ = (&self.store, &self.me, &self.metrics, &self.tracer, &self.tasks);
        Err(ApiError::unimplemented())
    }

    /// Publishes several events, each with its own envelope. What is not in the answer is stored.
    ///
    /// # Errors
    /// Input that concerns the whole request.
    pub async fn publish_bulk(
        &self,
        _cx: &Cx,
        _pubsub: &str,
        _topic: &str,
        _entries: Vec<BulkPublishEntry>,
        _metadata: Metadata,
    ) -> Result<Vec<FailedEntry>, ApiError> {
        Err(ApiError::unimplemented())
    }

    /// Opens a streaming subscription.
    ///
    /// # Errors
    /// Unknown component, or a scope that forbids it.
    pub async fn stream(&self, _cx: &Cx, _req: StreamRequest) -> Result<StreamSubscription, ApiError> {
        Err(ApiError::unimplemented())
    }

    /// The subscriptions that are on, for the metadata API.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<(AppSubscription, Source)> {
        Vec::new()
    }
}
