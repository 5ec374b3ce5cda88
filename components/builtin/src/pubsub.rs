use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mecha_components_api::{
    BuildCx, CancellationToken, Component, Deliver, Delivery, Error, ErrorKind, Prepared, PubSub, PubSubCaps, Publish,
    Registration, Result, Subscribe, Verdict, async_trait,
};
use parking_lot::RwLock;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

use crate::quiet::Quiet;

/// Events that wait for one subscriber, before publishers wait for it.
const QUEUE_EVENTS: usize = 1024;
/// Bytes that wait for one subscriber. One larger event alone still passes.
const QUEUE_BYTES: u32 = 64 * 1024 * 1024;
/// What an event costs beside its payload.
const EVENT_OVERHEAD: usize = 256;
/// How long a publisher waits for a full queue.
const PUBLISH_WAIT: Duration = Duration::from_secs(5);
/// How long a stopped subscription goes on with what was accepted before.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

pub(crate) fn registration() -> Registration<dyn PubSub> {
    Registration {
        kind: "pubsub.in-memory",
        aliases: &[],
        versions: &["v1"],
        summary: "Publish and subscribe inside this process; failed events are forgotten",
        fields: &[],
        prepare: |_, _| Ok(Box::new(Config)),
    }
}

struct Config;

#[async_trait]
impl Prepared<dyn PubSub> for Config {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn PubSub>> {
        Ok(Arc::new(InMemoryPubSub { name: cx.name.clone(), subscribers: RwLock::default(), quiet: Quiet::default() }))
    }
}

/// `pubsub.in-memory`: a bounded queue per subscriber.
///
/// An event is accepted by all subscribers of its topic or by none: room is
/// reserved in every queue first. A full queue holds its publishers back.
struct InMemoryPubSub {
    name: Arc<str>,
    subscribers: RwLock<Vec<Arc<Subscriber>>>,
    quiet: Quiet,
}

struct Subscriber {
    topic: String,
    queue: mpsc::Sender<Queued>,
    bytes: Arc<Semaphore>,
}

struct Queued {
    msg: Delivery,
    _bytes: OwnedSemaphorePermit,
}

impl Subscriber {
    fn wants(&self, topic: &str) -> bool {
        match self.topic.strip_suffix('*') {
            Some(prefix) => topic.len() > prefix.len() && topic.starts_with(prefix),
            None => self.topic == topic,
        }
    }

    /// Room for one event, or `None` when the subscriber is gone.
    async fn reserve(&self, cost: u32) -> Option<(mpsc::OwnedPermit<Queued>, OwnedSemaphorePermit)> {
        let bytes = self.bytes.clone().acquire_many_owned(cost).await.ok()?;
        let slot = self.queue.clone().reserve_owned().await.ok()?;
        Some((slot, bytes))
    }
}

impl fmt::Debug for InMemoryPubSub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("InMemoryPubSub")
            .field("name", &self.name)
            .field("subscribers", &self.subscribers.read().len())
            .finish_non_exhaustive()
    }
}

/// Takes the subscriber off the list, also when the subscription's future is dropped.
struct Attached<'a> {
    bus: &'a InMemoryPubSub,
    subscriber: Arc<Subscriber>,
}

impl Attached<'_> {
    fn detach(&self) {
        self.bus.subscribers.write().retain(|s| !Arc::ptr_eq(s, &self.subscriber));
        // Publishers that wait for this queue go on with the others.
        self.subscriber.bytes.close();
    }
}

impl Drop for Attached<'_> {
    fn drop(&mut self) {
        self.detach();
    }
}

impl InMemoryPubSub {
    fn attach(&self, topic: String) -> (Attached<'_>, mpsc::Receiver<Queued>) {
        let (queue, events) = mpsc::channel(QUEUE_EVENTS);
        let bytes = Arc::new(Semaphore::new(QUEUE_BYTES as usize));
        let subscriber = Arc::new(Subscriber { topic, queue, bytes });
        self.subscribers.write().push(subscriber.clone());
        (Attached { bus: self, subscriber }, events)
    }

    async fn hand(&self, queued: Queued, to: &dyn Deliver) -> Verdict {
        let topic = queued.msg.topic.clone();
        let verdict = to.deliver(queued.msg).await;
        if verdict == Verdict::Retry
            && let Some(held_back) = self.quiet.pass()
        {
            tracing::error!(
                component = %self.name, %topic, held_back,
                "event failed and is forgotten: nothing stands behind pubsub.in-memory, a durable pub/sub redelivers",
            );
        }
        verdict
    }

    /// Goes on with the events that publishers were told are accepted.
    async fn drain(&self, mut events: mpsc::Receiver<Queued>, to: &dyn Deliver) {
        events.close();
        let deadline = Instant::now() + DRAIN_WAIT;
        // `recv` ends once the queue is empty and no publisher holds a slot any more.
        while let Ok(Some(queued)) = timeout_at(deadline, events.recv()).await {
            if self.hand(queued, to).await == Verdict::Release || Instant::now() >= deadline {
                break;
            }
        }
        let left = events.len();
        if left > 0 {
            tracing::warn!(component = %self.name, left, "subscription stopped, events still queued are forgotten");
        }
    }
}

impl Component for InMemoryPubSub {}

#[async_trait]
impl PubSub for InMemoryPubSub {
    fn caps(&self) -> PubSubCaps {
        PubSubCaps { subscribe_wildcards: true, ..PubSubCaps::default() }
    }

    async fn publish(&self, msg: Publish<'_>) -> Result<()> {
        let to: Vec<Arc<Subscriber>> = self.subscribers.read().iter().filter(|s| s.wants(msg.topic)).cloned().collect();
        if to.is_empty() {
            return Ok(());
        }
        let cost = u32::try_from(msg.data.len() + EVENT_OVERHEAD).unwrap_or(u32::MAX).min(QUEUE_BYTES);
        let reserve = async {
            let mut room = Vec::with_capacity(to.len());
            for subscriber in &to {
                room.extend(subscriber.reserve(cost).await);
            }
            room
        };
        let room = timeout(PUBLISH_WAIT, reserve).await.map_err(|_| {
            Error::new(ErrorKind::Overloaded, "a subscriber of this topic is too slow: its queue stayed full for 5s")
        })?;
        let event = Delivery {
            topic: msg.topic.into(),
            data: msg.data,
            metadata: msg.metadata.clone(),
            content_type: msg.content_type.map(str::to_owned),
        };
        for (slot, bytes) in room {
            slot.send(Queued { msg: event.clone(), _bytes: bytes });
        }
        Ok(())
    }

    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()> {
        let (attached, mut events) = self.attach(sub.topic);
        to.attached();
        // One event at a time, unless the runtime gathers batches: then as many as fit in one.
        let at_once = sub.bulk.map_or(1, |(messages, _)| messages.max(1));
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                next = events.recv(), if running.len() < at_once => match next {
                    Some(queued) => running.push(self.hand(queued, &*to)),
                    None => break,
                },
                Some(verdict) = running.next() => {
                    if verdict == Verdict::Release {
                        break;
                    }
                }
                () = stop.cancelled() => break,
            }
        }
        while running.next().await.is_some() {}
        attached.detach();
        self.drain(events, &*to).await;
        Ok(())
    }
}

#[cfg(test)]
#[path = "pubsub_tests.rs"]
mod tests;
