//! `pubsub.kafka`: topics of a Kafka cluster, read by consumer groups.

use std::sync::Arc;

use async_trait::async_trait;
use mecha_components_api::{
    BuildCx, BulkPublish, BulkReply, CancellationToken, Component, ConfigErrors, Deliver, Field, FieldType, Metadata,
    Prepared, PubSub, PubSubCaps, Publish, Registration, Result, Subscribe, Trial,
};

use crate::config::{KafkaConfig, kafka_fields};
use crate::producer::Producer;
use crate::record::{Outgoing, check_topic};
use crate::schemas;
use crate::subscription::{Gate, Subscription};

/// Most records of one partition at an app that takes bulk deliveries.
const LARGEST_BATCH: usize = 1000;

const FIELDS: &[Field] = kafka_fields!["true";];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn PubSub> {
    Registration {
        kind: "pubsub.kafka",
        aliases: &[],
        versions: &["v1"],
        summary: "Topics of Apache Kafka, each partition in its order, with consumer groups",
        fields: FIELDS,
        prepare,
    }
}

struct PreparedKafka(KafkaConfig);

/// The broker.
#[derive(Debug)]
pub(crate) struct KafkaPubSub {
    pub(crate) config: Arc<KafkaConfig>,
    pub(crate) component: Arc<str>,
    group: Arc<str>,
    producer: Producer,
    closed: CancellationToken,
    gate: Arc<Gate>,
}

fn prepare(md: &Metadata, _version: &str) -> std::result::Result<Box<dyn Prepared<dyn PubSub>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let config = KafkaConfig::read(md, &mut errors, true);
    errors.finish(Box::new(PreparedKafka(config)) as Box<dyn Prepared<dyn PubSub>>)
}

#[async_trait]
impl Prepared<dyn PubSub> for PreparedKafka {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn PubSub>> {
        let config = Arc::new(self.0);
        Ok(Arc::new(KafkaPubSub {
            group: config.group(&cx.app_id).into(),
            component: Arc::clone(&cx.name),
            producer: Producer::open(Arc::clone(&config), &cx.name).await?,
            closed: CancellationToken::new(),
            gate: Arc::default(),
            config,
        }))
    }
}

#[async_trait]
impl Component for KafkaPubSub {
    async fn ping(&self) -> Result<()> {
        self.producer.ping().await
    }

    fn place(&self) -> Option<String> {
        Some(format!("{} {}", self.config.place(), self.group))
    }

    async fn close(&self) {
        self.closed.cancel();
        self.producer.close();
    }
}

#[async_trait]
impl PubSub for KafkaPubSub {
    fn caps(&self) -> PubSubCaps {
        PubSubCaps { subscribe_wildcards: false, message_ttl: false, bulk: true, durable: true, redelivers: true }
    }

    async fn publish(&self, msg: Publish<'_>) -> Result<()> {
        let value = schemas::encode(self.config.schemas.as_deref(), msg.topic, &msg.data, msg.metadata).await?;
        let out = Outgoing::new(msg.topic, value, msg.metadata, &self.config.headers)?;
        self.producer.send(out).await
    }

    async fn subscribe(&self, sub: Subscribe, to: Arc<dyn Deliver>, stop: CancellationToken) -> Result<()> {
        check_topic(&sub.topic)?;
        let schemas = schemas::reader(self.config.schemas.as_ref(), &sub.metadata)?;
        let subscription = Subscription {
            config: Arc::clone(&self.config),
            component: Arc::clone(&self.component),
            group: Arc::clone(&self.group),
            topics: vec![sub.topic.into()],
            schemas,
            window: sub.bulk.map_or(1, |(messages, _)| messages.clamp(1, LARGEST_BATCH)),
            to,
            stop,
            closed: self.closed.clone(),
            gate: Arc::clone(&self.gate),
        };
        subscription.run().await;
        Ok(())
    }

    fn bulk(&self) -> Option<&dyn BulkPublish> {
        Some(self)
    }

    fn trial(&self) -> Option<&dyn Trial> {
        Some(self)
    }
}

#[async_trait]
impl BulkPublish for KafkaPubSub {
    async fn publish_many(&self, batch: Vec<Publish<'_>>) -> Result<BulkReply> {
        let (rules, schemas) = (&self.config.headers, self.config.schemas.as_deref());
        let mut records = Vec::with_capacity(batch.len());
        for msg in &batch {
            let value = schemas::encode(schemas, msg.topic, &msg.data, msg.metadata).await;
            records.push(value.and_then(|value| Outgoing::new(msg.topic, value, msg.metadata, rules)));
        }
        Ok(self.producer.send_all(records.into_iter()).await)
    }
}
