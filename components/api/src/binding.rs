use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{CancellationToken, Component, Metadata, Result};

/// Which ways a binding works, as its `direction` metadata may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Events come in.
    Input,
    /// Calls go out.
    Output,
    /// Both.
    Both,
}

/// One event from outside.
#[derive(Clone, Debug, Default)]
pub struct BindingEvent {
    /// Payload.
    pub data: Bytes,
    /// Event metadata; HTTP apps get it as headers.
    pub metadata: Metadata,
    /// Content type, when the source knows it.
    pub content_type: Option<String>,
}

/// The runtime's side of an input binding.
#[async_trait]
pub trait OnBindingEvent: Send + Sync + 'static {
    /// What is written from now on will come, although the source does not read yet: [`Self::attached`]
    /// follows once it does.
    fn secured(&self) {}

    /// The source is attached; called again after each reconnect.
    fn attached(&self) {}

    /// Hands one event to the app. `Err` means not processed: redeliver when the source can.
    async fn event(&self, event: BindingEvent) -> Result<Option<Bytes>>;
}

/// A source of events.
#[async_trait]
pub trait InputBinding: Component {
    /// Whether events wait at the source until somebody reads them, so that a source that is
    /// left should be read until it is empty.
    fn keeps_events(&self) -> bool {
        false
    }

    /// Reads until `stop` fires, then settles what is in flight and returns `Ok`.
    async fn read(&self, to: Arc<dyn OnBindingEvent>, stop: CancellationToken) -> Result<()>;
}

/// Arguments of [`OutputBinding::invoke`].
#[derive(Clone, Debug)]
pub struct Invoke<'a> {
    /// One of [`OutputBinding::operations`].
    pub operation: &'a str,
    /// Payload; empty when none was given.
    pub data: Bytes,
    /// Request metadata.
    pub metadata: &'a Metadata,
}

/// Answer of an output binding.
#[derive(Clone, Debug, Default)]
pub struct Reply {
    /// Payload; `None` answers with no content.
    pub data: Option<Bytes>,
    /// Response metadata.
    pub metadata: Metadata,
    /// Content type of the payload, when known.
    pub content_type: Option<String>,
}

/// A call to the outside.
#[async_trait]
pub trait OutputBinding: Component {
    /// The operations it knows; the runtime refuses others.
    fn operations(&self) -> &'static [&'static str];

    /// Runs one operation. Facts that the caller should see on failure travel in
    /// [`crate::Error::details`].
    async fn invoke(&self, req: Invoke<'_>) -> Result<Reply>;
}
