//! The pub/sub API: publishing, and the subscriptions that deliver to the app.

mod bulk;
pub(crate) mod busy;
mod check;
mod content;
mod envelope;
mod errors;
mod event;
#[doc(hidden)]
pub mod fuzzing;
mod line;
mod members;
mod moments;
mod publish;
mod quiet;
mod route;
mod run;
pub mod scopes;
mod sources;
mod stream;
mod subscriptions;
mod target;
#[cfg(test)]
mod testing;
mod time;

use std::sync::Arc;

use bytes::Bytes;
use mecha_components_api::{Clock, Metadata, SystemClock};

use crate::app::{AppChannel, AppSubscription, TopicEvent};
use crate::cx::Cx;
use crate::error::ApiError;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::store::Store;
use crate::tasks::Tasks;
use crate::trace::Tracer;

pub use route::check_rule;
pub use sources::{ask_app, bulk_options, from_document};
pub use stream::{StreamSubscription, StreamVerdicts};
use subscriptions::Parts;
pub use subscriptions::{Leave, Reading, Subscriptions, Swap};

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

impl Source {
    /// Word for logs.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Declarative => "declarative",
            Self::Programmatic => "programmatic",
            Self::Streaming => "streaming",
        }
    }
}

/// The pub/sub API.
#[derive(Debug)]
pub struct PubSubApi {
    store: Arc<Store>,
    me: Arc<Identity>,
    metrics: Arc<Metrics>,
    tracer: Tracer,
    clock: Arc<dyn Clock>,
    subscriptions: Arc<Subscriptions>,
}

impl PubSubApi {
    /// The API over the live snapshot.
    #[must_use]
    pub fn new(store: Arc<Store>, me: Arc<Identity>, metrics: Arc<Metrics>, tracer: Tracer, tasks: Tasks) -> Self {
        Self::with_clock(store, me, metrics, tracer, tasks, Arc::new(SystemClock))
    }

    /// Like [`PubSubApi::new`], with a clock for event times and expiry.
    #[must_use]
    pub fn with_clock(
        store: Arc<Store>,
        me: Arc<Identity>,
        metrics: Arc<Metrics>,
        tracer: Tracer,
        tasks: Tasks,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let subscriptions = Arc::new(Subscriptions::new(Parts {
            store: store.clone(),
            app_id: me.app_id.clone(),
            metrics: metrics.clone(),
            tracer: tracer.clone(),
            tasks,
            clock: clock.clone(),
        }));
        Self { store, me, metrics, tracer, clock, subscriptions }
    }

    /// Sets who takes the events of subscriptions.
    #[must_use]
    pub fn with_app(self, app: Option<Arc<dyn AppChannel>>) -> Self {
        if let Some(app) = app {
            self.subscriptions.set_app(app);
        }
        self
    }

    /// Opens a streaming subscription; it is in place when this returns.
    ///
    /// # Errors
    /// Unknown component, a scope that forbids it, or the broker's failure.
    pub async fn stream(&self, _cx: &Cx, req: StreamRequest) -> Result<StreamSubscription, ApiError> {
        self.subscriptions.stream(req).await
    }

    /// The subscriptions that are on, for the metadata API.
    #[must_use]
    pub fn subscriptions(&self) -> Vec<(AppSubscription, Source)> {
        self.subscriptions.list()
    }

    /// Starts, stops and moves subscriptions.
    #[must_use]
    pub fn manager(&self) -> &Arc<Subscriptions> {
        &self.subscriptions
    }
}
