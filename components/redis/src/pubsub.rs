//! `pubsub.redis`: a stream per topic, a consumer group per app.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::{
    BuildCx, CancellationToken, Clock, Component, ConfigErrors, Deliver, Error, Field, FieldType, Metadata, Prepared,
    PubSub, PubSubCaps, Publish, Registration, Result, Subscribe,
};

use crate::client::Client;
use crate::config::{Block, RedisConfig, redis_fields, span};
use crate::stream::{self, Trim};
use crate::subscription::{Consume, Subscription};

/// Most handlers a bulk subscription asks for at once.
const LARGEST_BATCH: usize = 1000;
/// Group of a process without an app id.
const NAMELESS_GROUP: &str = "default";

const FIELDS: &[Field] = redis_fields![min_retry: "8ms";
    Field::new("consumerID", FieldType::Text, "Name of the consumer group; default is the app id."),
    Field::new("redeliverInterval", FieldType::Duration, "Period in which messages that were not processed are looked for; bare numbers are milliseconds, 0 never.").default("15s"),
    Field::new("processingTimeout", FieldType::Duration, "A message without a verdict for this long is delivered again; bare numbers are milliseconds, 0 never.").default("60s"),
    Field::new("queueDepth", FieldType::Integer, "Most messages that are read at once.").default("100"),
    Field::new("concurrency", FieldType::Integer, "Most messages of one subscription that are processed at once.").default("10"),
    Field::new("maxLenApprox", FieldType::Integer, "About so many messages are kept in a stream; wins over streamTTL. 0 keeps all."),
    Field::new("streamTTL", FieldType::Duration, "About the messages of this time are kept in a stream; bare numbers are milliseconds."),
];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn PubSub> {
    Registration {
        kind: "pubsub.redis",
        aliases: &[],
        versions: &["v1"],
        summary: "Topics as Redis streams, with consumer groups and redelivery",
        fields: FIELDS,
        prepare,
    }
}

struct RedisPubSubConfig {
    redis: RedisConfig,
    group: Option<String>,
    consume: Consume,
    trim: Trim,
}

/// The broker.
#[derive(Debug)]
struct RedisPubSub {
    client: Arc<Client>,
    group: Arc<str>,
    consume: Consume,
    trim: Trim,
    clock: Arc<dyn Clock>,
}

fn prepare(md: &Metadata, _version: &str) -> std::result::Result<Box<dyn Prepared<dyn PubSub>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let redis = RedisConfig::read(md, &mut errors, Block::PubSub);
    let every = span(md, &mut errors, "redeliverInterval", Duration::from_secs(15)).unwrap_or_default();
    let after = span(md, &mut errors, "processingTimeout", Duration::from_secs(60)).unwrap_or_default();
    let consume = Consume {
        redeliver: (!every.is_zero() && !after.is_zero()).then_some((every, after)),
        concurrency: count(md, &mut errors, "concurrency", 10),
        depth: count(md, &mut errors, "queueDepth", 100),
    };
    let entries = errors.int(md, "maxLenApprox", 0);
    let age = span(md, &mut errors, "streamTTL", Duration::ZERO).unwrap_or_default();
    let trim = Trim { entries: u64::try_from(entries).ok().filter(|n| *n > 0), age: (!age.is_zero()).then_some(age) };
    let group = md.get_non_empty("consumerID").map(str::to_owned);
    errors.finish(Box::new(RedisPubSubConfig { redis, group, consume, trim }) as Box<dyn Prepared<dyn PubSub>>)
}

fn count(md: &Metadata, errors: &mut ConfigErrors, key: &str, default: u16) -> usize {
    match u16::try_from(errors.int(md, key, default.into())) {
        Ok(n) if n > 0 => n.into(),
        _ => {
            errors.push(key, format!("'{key}' must be between 1 and 65535"));
            default.into()
        }
    }
}

#[async_trait]
impl Prepared<dyn PubSub> for RedisPubSubConfig {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn PubSub>> {
        let group = match self.group {
            Some(group) => group.into(),
            None if cx.app_id.is_empty() => NAMELESS_GROUP.into(),
            None => Arc::clone(&cx.app_id),
        };
        Ok(Arc::new(RedisPubSub {
            client: Client::open(self.redis).await?,
            group,
            consume: self.consume,
            trim: self.trim,
            clock: Arc::clone(&cx.clock),
        }))
    }
}

#[async_trait]
impl Component for RedisPubSub {
    async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    fn place(&self) -> Option<String> {
        Some(format!("{} {}", self.client.place(), self.group))
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[async_trait]
impl PubSub for RedisPubSub {
    fn caps(&self) -> PubSubCaps {
        PubSubCaps {
            subscribe_wildcards: false,
            message_ttl: false,
            bulk: false,
            durable: true,
            redelivers: self.consume.redeliver.is_some(),
        }
    }

    async fn publish(&self, msg: Publish<'_>) -> Result<()> {
        check_topic(msg.topic)?;
        let cmd = stream::add(&msg, self.trim, self.clock.now())?;
        self.client.call(self.client.write("publish"), &cmd).await.map(drop)
    }

    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()> {
        check_topic(&sub.topic)?;
        let mut consume = self.consume;
        if let Some((messages, _)) = sub.bulk {
            // Or a batch would never fill up.
            consume.concurrency = consume.concurrency.max(messages.min(LARGEST_BATCH));
        }
        Subscription::new(&self.client, sub.topic.into(), &self.group, consume, to, stop).run().await;
        Ok(())
    }
}

fn check_topic(topic: &str) -> Result<()> {
    if topic.is_empty() { Err(Error::invalid("the topic must not be empty")) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(pairs: &[(&str, &str)]) -> String {
        let md: Metadata = std::iter::once(&("redisHost", "r")).chain(pairs).copied().collect();
        prepare(&md, "v1").err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn mistakes_are_told_together() {
        let text = refused(&[("concurrency", "0"), ("queueDepth", "x"), ("processingTimeout", "soon")]);
        for key in ["concurrency", "queueDepth", "processingTimeout"] {
            assert!(text.contains(key), "{key} is not in {text}");
        }
        assert_eq!(refused(&[("redeliverInterval", "250"), ("processingTimeout", "1m30s"), ("streamTTL", "1h")]), "");
    }
}
