use std::path::PathBuf;
use std::sync::Arc;

use mecha_components_api::{
    BuildCx, BulkPublish, BulkReply, CancellationToken, Component, ConfigErrors, Deliver, Error, ErrorKind,
    FailedEntry, Metadata, Prepared, PubSub, PubSubCaps, Publish, Result, Subscribe, Trial, async_trait,
};

use crate::client::Store;
use crate::clock::Clocks;
use crate::config::{BrokerConfig, ttl};
use crate::log::Record;
use crate::schema::Folder;
use crate::subscription::Subscription;

/// Longest name of a topic or group, in bytes.
const NAME_BYTES: usize = 255;
/// Group of a process without an app id.
const NAMELESS_GROUP: &str = "default";

/// Reads the metadata of a component document.
pub(crate) fn prepare(md: &Metadata, _version: &str) -> Result<Box<dyn Prepared<dyn PubSub>>, ConfigErrors> {
    let config = BrokerConfig::decode(md)?;
    if let Some(consumer) = &config.consumer
        && consumer.len() > NAME_BYTES
    {
        return Err(ConfigErrors::one("consumerID", format!("'consumerID' must not exceed {NAME_BYTES} bytes")));
    }
    Ok(Box::new(PreparedBroker(config)))
}

struct PreparedBroker(BrokerConfig);

#[async_trait]
impl Prepared<dyn PubSub> for PreparedBroker {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn PubSub>> {
        let config = self.0;
        let path: PathBuf = config.path.clone().unwrap_or_else(|| cx.home.join("data").join("broker"));
        let group = match &config.consumer {
            Some(consumer) => consumer.as_str().into(),
            None if cx.app_id.is_empty() => NAMELESS_GROUP.into(),
            None => cx.app_id.clone(),
        };
        let store = Store::open(Folder::new(path), Clocks::new(cx.clock.clone()), config.limits).await?;
        Ok(Arc::new(MechaBroker { store, config, group }))
    }
}

/// The broker as a component.
#[derive(Debug)]
struct MechaBroker {
    store: Store,
    config: BrokerConfig,
    group: Arc<str>,
}

impl MechaBroker {
    fn record(&self, msg: &Publish<'_>) -> Result<Record> {
        check_topic(msg.topic)?;
        if msg.data.len() as u64 > self.config.max_message {
            return Err(Error::new(
                ErrorKind::TooLarge,
                format!(
                    "message of {} bytes exceeds the broker's limit of {} bytes (maxMessageBytes)",
                    msg.data.len(),
                    self.config.max_message
                ),
            ));
        }
        let ttl = ttl(msg.metadata).map_err(Error::invalid)?.or(self.config.ttl);
        Ok(Record {
            topic: msg.topic.into(),
            data: msg.data.clone(),
            content_type: msg.content_type.map(Into::into),
            metadata: encode(msg.metadata)?,
            ttl,
        })
    }
}

/// Keys and values as a JSON list of pairs. The TTL is left out: it was for us, and a
/// copy in a dead-letter topic must not inherit it.
fn encode(md: &Metadata) -> Result<Option<Box<str>>> {
    let pairs: Vec<(&str, &str)> = md.iter().filter(|(k, _)| !k.eq_ignore_ascii_case("ttlInSeconds")).collect();
    if pairs.is_empty() {
        return Ok(None);
    }
    let text = serde_json::to_string(&pairs)
        .map_err(|e| Error::internal("cannot encode the message's metadata").with_source(e))?;
    Ok(Some(text.into()))
}

fn check_topic(topic: &str) -> Result<()> {
    match topic.len() {
        0 => Err(Error::invalid("the topic must not be empty")),
        n if n > NAME_BYTES => Err(Error::invalid(format!("the topic has {n} bytes, the broker allows {NAME_BYTES}"))),
        _ => Ok(()),
    }
}

#[async_trait]
impl Component for MechaBroker {
    async fn ping(&self) -> Result<()> {
        self.store.ping().await
    }

    fn place(&self) -> Option<String> {
        Some(format!("{} {}", self.store.path().display(), self.group))
    }

    async fn close(&self) {
        self.store.close().await;
    }
}

#[async_trait]
impl PubSub for MechaBroker {
    fn caps(&self) -> PubSubCaps {
        PubSubCaps { subscribe_wildcards: false, message_ttl: true, bulk: true, durable: true, redelivers: true }
    }

    async fn publish(&self, msg: Publish<'_>) -> Result<()> {
        self.store.publish(vec![self.record(&msg)?]).await
    }

    /// Settings in the subscription's metadata win over the component's.
    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()> {
        check_topic(&sub.topic)?;
        let mut errors = ConfigErrors::new();
        let mut consume = self.config.consume.overlaid(&sub.metadata, &mut errors);
        errors.finish(()).map_err(|e| Error::invalid(format!("subscription metadata: {e}")))?;
        if let Some((messages, _)) = sub.bulk {
            // Or a batch would never fill up.
            consume.max_in_flight = consume.max_in_flight.max(messages.min(1000));
        }
        Subscription { store: &self.store, topic: sub.topic.into(), group: self.group.clone(), consume, to, stop }
            .run()
            .await
    }

    fn bulk(&self) -> Option<&dyn BulkPublish> {
        Some(self)
    }

    fn trial(&self) -> Option<&dyn Trial> {
        Some(self)
    }
}

#[async_trait]
impl Trial for MechaBroker {
    /// Topics are made by using them.
    async fn make(&self, topic: &str) -> Result<()> {
        check_topic(topic)
    }

    async fn remove(&self, topic: &str) -> Result<()> {
        self.store.forget(topic.into()).await
    }
}

#[async_trait]
impl BulkPublish for MechaBroker {
    /// Entries with mistakes of their own are reported; all others are stored in one transaction or none is.
    async fn publish_many(&self, batch: Vec<Publish<'_>>) -> Result<BulkReply> {
        let mut failed = Vec::new();
        let mut records = Vec::with_capacity(batch.len());
        for (index, msg) in batch.iter().enumerate() {
            match self.record(msg) {
                Ok(record) => records.push(record),
                Err(error) => failed.push(FailedEntry { index, error }),
            }
        }
        if !records.is_empty() {
            self.store.publish(records).await?;
        }
        Ok(failed)
    }
}
