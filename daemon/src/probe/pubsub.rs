//! Whether a broker does what it claims.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mecha_components_api::{CancellationToken, Deliver, Delivery, Metadata, PubSub, Publish, Subscribe, Verdict};
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// Time for one step.
const STEP: Duration = Duration::from_secs(10);
/// Events that must come before anything else is looked at.
const EVENTS: usize = 3;

type Proof = Result<(), String>;

/// What the driver says without being asked to show it.
pub(super) fn says(broker: &dyn PubSub, feature: &str) -> bool {
    match feature {
        "bulk" => broker.caps().bulk,
        "ttl" => broker.caps().message_ttl,
        "wildcards" => broker.caps().subscribe_wildcards,
        // What was published while nobody listened is delivered later.
        "replay" => broker.caps().durable,
        // The sidecar writes dead letters itself, and hands on in the broker's order.
        "deadLetter" | "ordered" => true,
        _ => false,
    }
}

/// Each feature, and why it does not work. Events lie below `topic`, which nobody else uses; whoever calls removes it.
pub(super) async fn prove(
    broker: &Arc<dyn PubSub>,
    topic: &str,
    features: &[String],
) -> BTreeMap<String, Result<(), String>> {
    let probe = Probe { broker, topic, none: Metadata::new() };
    let flows = probe.flows().await;
    let mut found = BTreeMap::new();
    for feature in features {
        let result = match (&flows, feature.as_str()) {
            _ if !says(&**broker, feature) => Err("the component does not have it".to_owned()),
            (Err(why), _) => Err(why.clone()),
            (Ok(()), "bulk") => probe.bulk().await,
            (Ok(()), "replay") => probe.replay().await,
            (Ok(()), "wildcards") => probe.wildcards().await,
            // What is left is the sidecar's work, or the driver's word, for events that come.
            (Ok(()), _) => Ok(()),
        };
        found.insert(feature.clone(), result);
    }
    found
}

struct Probe<'p> {
    broker: &'p Arc<dyn PubSub>,
    topic: &'p str,
    none: Metadata,
}

/// An app that takes everything.
struct Inbox {
    attached: Notify,
    events: mpsc::Sender<Bytes>,
}

#[async_trait]
impl Deliver for Inbox {
    fn attached(&self) {
        self.attached.notify_one();
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        // Nobody waits for more than the channel holds.
        let _ = self.events.try_send(msg.data);
        Verdict::Ack
    }
}

/// A subscription that runs; dropping it ends it without a goodbye.
struct Listening {
    stop: CancellationToken,
    task: JoinHandle<mecha_components_api::Result<()>>,
    inbox: mpsc::Receiver<Bytes>,
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.stop.cancel();
        self.task.abort();
    }
}

impl Listening {
    /// The next event.
    async fn next(&mut self) -> Result<Bytes, String> {
        match timeout(STEP, self.inbox.recv()).await {
            Ok(Some(event)) => Ok(event),
            _ => Err(format!("an event that was published did not come within {STEP:?}")),
        }
    }

    async fn end(mut self) -> Proof {
        self.stop.cancel();
        match timeout(STEP, &mut self.task).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(e))) => Err(format!("the subscription failed: {e}")),
            _ => Err(format!("the subscription did not end within {STEP:?}")),
        }
    }
}

impl Probe<'_> {
    async fn listen(&self, topic: &str) -> Result<Listening, String> {
        let (events, inbox) = mpsc::channel(EVENTS * 4);
        let to = Arc::new(Inbox { attached: Notify::new(), events });
        let (broker, deliver, stop) = (Arc::clone(self.broker), Arc::clone(&to), CancellationToken::new());
        let sub = Subscribe { topic: topic.to_owned(), metadata: Metadata::new(), bulk: None };
        let token = stop.clone();
        let task = tokio::spawn(async move { broker.subscribe(sub, deliver, token).await });
        let mut listening = Listening { stop, task, inbox };
        tokio::select! {
            attached = timeout(STEP, to.attached.notified()) => match attached {
                Ok(()) => Ok(listening),
                Err(_) => Err(format!("no subscription was in place within {STEP:?}")),
            },
            ended = &mut listening.task => Err(match ended {
                Ok(Err(e)) => format!("it cannot be subscribed to: {e}"),
                _ => "the subscription ended by itself".to_owned(),
            }),
        }
    }

    fn event(&self, text: &str) -> Publish<'_> {
        Publish {
            topic: self.topic,
            data: Bytes::copy_from_slice(text.as_bytes()),
            content_type: None,
            metadata: &self.none,
        }
    }

    async fn publish(&self, text: &str) -> Proof {
        let published = timeout(STEP, self.broker.publish(self.event(text))).await;
        let published = published.map_err(|_| format!("an event was not taken within {STEP:?}"))?;
        published.map_err(|e| format!("an event cannot be published: {e}"))
    }

    /// What is published comes. One after the other: a driver may hand out several at once.
    async fn flows(&self) -> Proof {
        let mut listening = self.listen(self.topic).await?;
        for n in 0..EVENTS {
            self.publish(&n.to_string()).await?;
            if listening.next().await? != n.to_string() {
                return Err("another event comes than was published".to_owned());
            }
        }
        listening.end().await
    }

    async fn bulk(&self) -> Proof {
        let bulk = self.broker.bulk().ok_or("the component does not have it")?;
        let mut listening = self.listen(self.topic).await?;
        let batch = vec![self.event("one"), self.event("two")];
        let failed = timeout(STEP, bulk.publish_many(batch)).await;
        let failed = failed.map_err(|_| format!("a batch was not taken within {STEP:?}"))?;
        match failed.map_err(|e| format!("a batch cannot be published: {e}"))?.first() {
            Some(entry) => return Err(format!("a part of a batch was refused: {}", entry.error)),
            None => {
                listening.next().await?;
                listening.next().await?;
            }
        }
        listening.end().await
    }

    /// What is published while nobody listens comes later.
    async fn replay(&self) -> Proof {
        self.publish("later").await?;
        let mut listening = self.listen(self.topic).await?;
        if listening.next().await? != "later" {
            return Err("another event comes than was published while nobody listened".to_owned());
        }
        listening.end().await
    }

    async fn wildcards(&self) -> Proof {
        let (all_but_last, _) = self.topic.split_at(self.topic.len() - 1);
        let mut listening = self.listen(&format!("{all_but_last}*")).await?;
        self.publish("any").await?;
        listening.next().await?;
        listening.end().await
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use mecha_components_api::{BuildCx, Component, Error, Lookup, PubSubCaps, Registry, Result};

    use super::*;

    async fn memory() -> Arc<dyn PubSub> {
        let mut registry = Registry::new();
        mecha_components::register_all(&mut registry);
        let Lookup::Found(found) = Registry::find(&registry.pubsub, "pubsub.in-memory", "v1") else { panic!() };
        let prepared = (found.prepare)(&Metadata::new(), "v1").unwrap();
        prepared.build(&BuildCx::for_app("probe", "probe", "/tmp")).await.unwrap()
    }

    /// A broker that says it keeps events, and does not; or takes none.
    #[derive(Debug)]
    struct Liar {
        inner: Arc<dyn PubSub>,
        takes: bool,
    }

    #[async_trait]
    impl Component for Liar {}

    #[async_trait]
    impl PubSub for Liar {
        fn caps(&self) -> PubSubCaps {
            PubSubCaps { durable: true, bulk: true, ..self.inner.caps() }
        }

        async fn publish(&self, msg: Publish<'_>) -> Result<()> {
            if self.takes { self.inner.publish(msg).await } else { Err(Error::unavailable("full")) }
        }

        async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()> {
            self.inner.subscribe(sub, to, stop).await
        }
    }

    fn words(features: &[&str]) -> Vec<String> {
        features.iter().map(|feature| (*feature).to_owned()).collect()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_broker_shows_what_it_has() {
        let found = prove(&memory().await, "probe-1", &words(&["ordered", "wildcards", "replay", "nosuch"])).await;
        assert_eq!((&found["ordered"], &found["wildcards"]), (&Ok(()), &Ok(())));
        assert!(found["replay"].is_err() && found["nosuch"].is_err());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_lying_broker_is_found_out() {
        let liar: Arc<dyn PubSub> = Arc::new(Liar { inner: memory().await, takes: true });
        let found = prove(&liar, "probe-1", &words(&["ordered", "replay", "bulk"])).await;
        assert_eq!(found["ordered"], Ok(()));
        assert!(found["replay"].as_ref().unwrap_err().contains("did not come"), "{found:?}");
        assert!(found["bulk"].is_err());
        let full: Arc<dyn PubSub> = Arc::new(Liar { inner: memory().await, takes: false });
        let found = prove(&full, "probe-1", &words(&["ordered"])).await;
        assert!(found["ordered"].as_ref().unwrap_err().contains("full"), "{found:?}");
    }
}
