use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;

use crate::{CancellationToken, Component, Metadata, Result};

/// What a broker declares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PubSubCaps {
    /// `SUBSCRIBE_WILDCARDS`.
    pub subscribe_wildcards: bool,
    /// The broker expires messages itself (`MESSAGE_TTL`).
    pub message_ttl: bool,
    /// `BULK_PUBSUB`: batches are handed to the broker as one.
    pub bulk: bool,
    /// What was published while no subscriber was there is delivered later.
    pub durable: bool,
    /// A nack leads to redelivery by the broker.
    pub redelivers: bool,
}

/// Arguments of [`PubSub::publish`].
#[derive(Clone, Debug)]
pub struct Publish<'a> {
    /// Topic as the broker knows it (namespace prefix included).
    pub topic: &'a str,
    /// What the broker stores.
    pub data: Bytes,
    /// Content type of `data`.
    pub content_type: Option<&'a str>,
    /// Request metadata.
    pub metadata: &'a Metadata,
}

/// Arguments of [`PubSub::subscribe`].
#[derive(Clone, Debug)]
pub struct Subscribe {
    /// Topic as the broker knows it (namespace prefix included).
    pub topic: String,
    /// Subscription metadata.
    pub metadata: Metadata,
    /// Set when the app takes bulk deliveries; a hint for batching.
    pub bulk: Option<(usize, Duration)>,
}

/// One message on its way to the app.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// Topic as the broker knows it.
    pub topic: Arc<str>,
    /// What the broker stored, unchanged.
    pub data: Bytes,
    /// Message metadata (headers, key, partition, offset…).
    pub metadata: Metadata,
    /// Content type, when the broker keeps it.
    pub content_type: Option<String>,
}

/// What becomes of a delivered message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Done: success, a drop, or a confirmed dead-letter write. Acknowledge.
    Ack,
    /// Not done: leave it un-acked or negatively acknowledge, the broker redelivers.
    Retry,
    /// The runtime is stopping and did not process it. Release it un-acked; it must
    /// count neither as a failure nor toward a delivery limit.
    Release,
}

/// The runtime's side of a subscription.
#[async_trait]
pub trait Deliver: Send + Sync + 'static {
    /// The broker keeps what is published from now on for the subscription, which does not read yet:
    /// [`Self::attached`] follows once it does. For brokers that are slow to let a reader in.
    fn secured(&self) {}

    /// The subscription is in place at the broker; called again after each reconnect.
    fn attached(&self) {}

    /// Hands one message over and waits for its verdict. May be called for
    /// several messages at once; the component bounds how many.
    async fn deliver(&self, msg: Delivery) -> Verdict;
}

/// A message broker.
#[async_trait]
pub trait PubSub: Component {
    /// What the broker can do; constant over its life.
    fn caps(&self) -> PubSubCaps;

    /// `Ok` only after the broker confirmed.
    async fn publish(&self, msg: Publish<'_>) -> Result<()>;

    /// Runs one subscription until `stop` fires, then settles what is in flight and
    /// returns `Ok`. A lost connection is re-made inside, with backoff, for ever.
    /// Returns an error only when the subscription cannot work at all.
    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()>;

    /// Batches. Without it the runtime publishes in parallel, bounded.
    fn bulk(&self) -> Option<&dyn BulkPublish> {
        None
    }

    /// Topics to try the broker with.
    fn trial(&self) -> Option<&dyn Trial> {
        None
    }
}

/// Topics that are made to try a broker, and leave nothing behind.
#[async_trait]
pub trait Trial: Send + Sync {
    /// Makes a topic, where that is not done by using it.
    async fn make(&self, topic: &str) -> Result<()>;

    /// Removes a topic with all that it holds, and what the broker keeps of those who read it. Nobody reads it any more.
    async fn remove(&self, topic: &str) -> Result<()>;
}

/// One entry that a batch could not store.
#[derive(Debug)]
pub struct FailedEntry {
    /// Index into the batch.
    pub index: usize,
    /// Why.
    pub error: crate::Error,
}

/// Entries that failed; the others are stored.
pub type BulkReply = Vec<FailedEntry>;

/// Batches handed to the broker as one.
#[async_trait]
pub trait BulkPublish: Send + Sync {
    /// `Err` means that no entry is known to be stored.
    async fn publish_many(&self, batch: Vec<Publish<'_>>) -> Result<BulkReply>;
}
