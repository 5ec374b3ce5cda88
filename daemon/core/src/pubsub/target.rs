//! Who takes the events of a subscription.

use std::sync::Arc;

use mecha_components_api::CancellationToken;
use serde_json::{Map, Value};

use super::stream::Wire;
use crate::app::{AppChannel, AppError, AppVerdict, BulkTopicEvent, TopicEvent};

/// Where events go.
#[derive(Clone, Debug)]
pub(super) enum Target {
    /// The app.
    App(Arc<dyn AppChannel>),
    /// A client's stream.
    Stream(Arc<Wire>),
}

/// No verdict.
#[derive(Debug)]
pub(super) enum Failed {
    /// The app failed, or the way to it.
    App(AppError),
    /// The stream ended or the subscription stops; nobody was asked, or nobody answered.
    Gone,
}

impl Target {
    /// Whether events are needed as objects rather than as bytes.
    pub(super) fn wants_object(&self) -> bool {
        match self {
            Self::App(app) => app.protocol().is_grpc(),
            Self::Stream(_) => true,
        }
    }

    /// Adds what the target cannot do without.
    pub(super) fn complete(&self, event: &mut Map<String, Value>) {
        if let Self::Stream(_) = self {
            let id = event.entry("id").or_insert(Value::Null);
            // The client answers by the id, so there must be one.
            if !id.is_string() {
                *id = Value::String(uuid::Uuid::new_v4().to_string());
            }
        }
    }

    /// Hands one event over and waits for the verdict.
    pub(super) async fn deliver(&self, event: &TopicEvent, stopping: &CancellationToken) -> Result<AppVerdict, Failed> {
        match self {
            Self::App(app) => app.topic_event(event).await.map_err(Failed::App),
            Self::Stream(wire) => wire.deliver(event, stopping).await.ok_or(Failed::Gone),
        }
    }

    /// Hands several events over; one verdict for each.
    pub(super) async fn deliver_bulk(&self, event: &BulkTopicEvent) -> Result<Vec<AppVerdict>, Failed> {
        match self {
            Self::App(app) => app.bulk_topic_event(event).await.map_err(Failed::App),
            Self::Stream(_) => Err(Failed::Gone),
        }
    }
}
