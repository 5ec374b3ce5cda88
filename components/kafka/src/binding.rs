//! `bindings.kafka`: records of some topics call the app, and calls become records of a topic.

use std::sync::Arc;

use async_trait::async_trait;
use mecha_components_api::{
    BindingEvent, BuildCx, CancellationToken, Component, ConfigErrors, Deliver, Delivery, Error, ErrorKind, Field,
    FieldType, InputBinding, Invoke, Metadata, OnBindingEvent, OutputBinding, Prepared, Registration, Reply, Result,
    Verdict,
};
use tracing::warn;

use crate::config::{KafkaConfig, kafka_fields};
use crate::producer::Producer;
use crate::record::{Outgoing, check_topic};
use crate::schemas::{self, Schemas};
use crate::subscription::Subscription;

const CREATE: &str = "create";
const SUMMARY: &str = "Topics of Apache Kafka as a source of events and as a destination of calls";

const FIELDS: &[Field] = kafka_fields!["false";
    Field::new("topics", FieldType::Text, "Topics whose records call the app, separated by commas; input."),
    Field::new("publishTopic", FieldType::Text, "Topic that calls are written to; output."),
    Field::new("valueSchemaType", FieldType::Text, "Avro: values of the topics are read by the schema registry; input.").default("None"),
];

/// How `register` makes it known as a source.
pub(crate) fn input() -> Registration<dyn InputBinding> {
    Registration {
        kind: "bindings.kafka",
        aliases: &[],
        versions: &["v1"],
        summary: SUMMARY,
        fields: FIELDS,
        prepare: prepare_input,
    }
}

/// How `register` makes it known as a destination.
pub(crate) fn output() -> Registration<dyn OutputBinding> {
    Registration {
        kind: "bindings.kafka",
        aliases: &[],
        versions: &["v1"],
        summary: SUMMARY,
        fields: FIELDS,
        prepare: prepare_output,
    }
}

struct PreparedBinding {
    config: KafkaConfig,
    /// What values are read by, if they have schemas.
    reader: Option<Arc<Schemas>>,
    topics: Vec<Arc<str>>,
    publish_topic: Option<String>,
}

/// The source.
#[derive(Debug)]
struct KafkaInput {
    config: Arc<KafkaConfig>,
    component: Arc<str>,
    group: Arc<str>,
    topics: Vec<Arc<str>>,
    schemas: Option<Arc<Schemas>>,
    /// Shows that the cluster is there; it sends nothing.
    link: Producer,
    closed: CancellationToken,
}

/// The destination.
#[derive(Debug)]
struct KafkaOutput {
    config: Arc<KafkaConfig>,
    producer: Producer,
    topic: Option<String>,
}

/// Records as events.
struct Events(Arc<dyn OnBindingEvent>);

impl PreparedBinding {
    fn read(md: &Metadata) -> std::result::Result<Self, ConfigErrors> {
        let mut errors = ConfigErrors::new();
        let config = KafkaConfig::read(md, &mut errors, false);
        let given = md.get_non_empty("topics").unwrap_or_default().split(',').map(str::trim).filter(|t| !t.is_empty());
        let mut topics: Vec<Arc<str>> = given.map(Arc::from).collect();
        topics.sort_unstable();
        topics.dedup();
        let publish_topic = md.get_non_empty("publishTopic").map(str::to_owned);
        for topic in &topics {
            if let Err(e) = check_topic(topic) {
                errors.push("topics", format!("'topics': {e}"));
            }
        }
        if let Some(Err(e)) = publish_topic.as_deref().map(check_topic) {
            errors.push("publishTopic", format!("'publishTopic': {e}"));
        }
        let reader = schemas::reader(config.schemas.as_ref(), md).unwrap_or_else(|e| {
            errors.push("valueSchemaType", e.to_string());
            None
        });
        errors.finish(Self { config, reader, topics, publish_topic })
    }
}

fn prepare_input(md: &Metadata, _: &str) -> std::result::Result<Box<dyn Prepared<dyn InputBinding>>, ConfigErrors> {
    Ok(Box::new(PreparedBinding::read(md)?))
}

fn prepare_output(md: &Metadata, _: &str) -> std::result::Result<Box<dyn Prepared<dyn OutputBinding>>, ConfigErrors> {
    Ok(Box::new(PreparedBinding::read(md)?))
}

#[async_trait]
impl Prepared<dyn InputBinding> for PreparedBinding {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn InputBinding>> {
        let config = Arc::new(self.config);
        Ok(Arc::new(KafkaInput {
            group: config.group(&cx.app_id).into(),
            component: Arc::clone(&cx.name),
            topics: self.topics,
            schemas: self.reader,
            link: Producer::open(Arc::clone(&config), &cx.name).await?,
            closed: CancellationToken::new(),
            config,
        }))
    }
}

#[async_trait]
impl Prepared<dyn OutputBinding> for PreparedBinding {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn OutputBinding>> {
        let config = Arc::new(self.config);
        let producer = Producer::open(Arc::clone(&config), &cx.name).await?;
        Ok(Arc::new(KafkaOutput { config, producer, topic: self.publish_topic }))
    }
}

#[async_trait]
impl Component for KafkaInput {
    async fn ping(&self) -> Result<()> {
        self.link.ping().await
    }

    fn place(&self) -> Option<String> {
        Some(format!("{} {} {}", self.config.place(), self.group, self.topics.join(",")))
    }

    async fn close(&self) {
        self.closed.cancel();
        self.link.close();
    }
}

#[async_trait]
impl InputBinding for KafkaInput {
    fn keeps_events(&self) -> bool {
        true
    }

    async fn read(&self, to: Arc<dyn OnBindingEvent>, stop: CancellationToken) -> Result<()> {
        if self.topics.is_empty() {
            warn!(component = %self.component, "no topic is named, so nothing is read; set 'topics'");
            stop.cancelled().await;
            return Ok(());
        }
        let subscription = Subscription {
            config: Arc::clone(&self.config),
            component: Arc::clone(&self.component),
            group: Arc::clone(&self.group),
            topics: self.topics.clone(),
            schemas: self.schemas.clone(),
            window: 1,
            to: Arc::new(Events(to)),
            stop,
            closed: self.closed.clone(),
            gate: Arc::default(),
        };
        subscription.run().await;
        Ok(())
    }
}

#[async_trait]
impl Deliver for Events {
    fn secured(&self) {
        self.0.secured();
    }

    fn attached(&self) {
        self.0.attached();
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        let event = BindingEvent { data: msg.data, metadata: msg.metadata, content_type: msg.content_type };
        match self.0.event(event).await {
            Ok(_) => Verdict::Ack,
            Err(_) => Verdict::Retry,
        }
    }
}

#[async_trait]
impl Component for KafkaOutput {
    async fn ping(&self) -> Result<()> {
        self.producer.ping().await
    }

    async fn close(&self) {
        self.producer.close();
    }
}

#[async_trait]
impl OutputBinding for KafkaOutput {
    fn operations(&self) -> &'static [&'static str] {
        &[CREATE]
    }

    async fn invoke(&self, req: Invoke<'_>) -> Result<Reply> {
        if req.operation != CREATE {
            return Err(Error::unsupported(format!("operation '{}' is not known; only {CREATE} is", req.operation)));
        }
        let Some(topic) = &self.topic else {
            let text = "the component does not say which topic to write to; set 'publishTopic'";
            return Err(Error::new(ErrorKind::FailedPrecondition, text));
        };
        let value = schemas::encode(self.config.schemas.as_deref(), topic, &req.data, req.metadata).await?;
        self.producer.send(Outgoing::new(topic, value, req.metadata, &self.config.headers)?).await?;
        Ok(Reply::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_read_or_refused() {
        let read = |key, value| {
            let md = [("brokers", "a:1"), ("authType", "none"), (key, value)].into_iter().collect();
            PreparedBinding::read(&md)
        };
        let topics = read("topics", " a, b ,,a").unwrap().topics;
        assert_eq!(topics.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), ["a", "b"]);
        for key in ["topics", "publishTopic"] {
            let text = read(key, "a/b").err().map(|e| e.to_string()).unwrap_or_default();
            assert!(text.contains(key), "{text}");
        }
    }
}
