//! Topics that are made to try a cluster.

use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::{Error, Result, Trial};
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication, TopicResult};
use rdkafka::error::KafkaResult;

use crate::context::{Context, Health};
use crate::error::{classify, convert};
use crate::producer::apart;
use crate::pubsub::KafkaPubSub;
use crate::record::check_topic;

/// Longest wait for the brokers.
const LIMIT: Duration = Duration::from_secs(10);

/// Asks the controller; closed where nobody waits for it.
struct Admin(Option<AdminClient<Context>>);

impl Drop for Admin {
    fn drop(&mut self) {
        if let Some(inner) = self.0.take() {
            apart("kafka-admin", move || drop(inner));
        }
    }
}

impl KafkaPubSub {
    fn admin(&self) -> Result<Admin> {
        let context = Context::plain(Health::new(&self.component), self.config.tokens().cloned());
        let made = self.config.client().create_with_context(context);
        Ok(Admin(Some(made.map_err(|e| convert("connect to Kafka", &e, None))?)))
    }
}

impl Admin {
    fn inner(&self) -> Result<&AdminClient<Context>> {
        self.0.as_ref().ok_or_else(|| Error::internal("the client is closed"))
    }
}

fn options() -> AdminOptions {
    AdminOptions::new().request_timeout(Some(LIMIT)).operation_timeout(Some(LIMIT))
}

/// What became of the one topic that was asked about.
fn outcome(what: &str, answer: KafkaResult<Vec<TopicResult>>) -> Result<()> {
    match answer.map_err(|e| convert(what, &e, None))?.pop() {
        Some(Ok(_)) => Ok(()),
        Some(Err((_, code))) => Err(classify(what, code, None)),
        None => Err(Error::internal(format!("{what}: the brokers did not say what became of it"))),
    }
}

#[async_trait]
impl Trial for KafkaPubSub {
    async fn make(&self, topic: &str) -> Result<()> {
        check_topic(topic)?;
        let admin = self.admin()?;
        // As many replicas as the brokers give a topic by themselves.
        let new = NewTopic::new(topic, 1, TopicReplication::Fixed(-1));
        outcome("make a topic", admin.inner()?.create_topics([&new], &options()).await)
    }

    /// Positions of groups go with the topic, and a group without positions goes by itself.
    async fn remove(&self, topic: &str) -> Result<()> {
        let admin = self.admin()?;
        outcome("remove a topic", admin.inner()?.delete_topics(&[topic], &options()).await)
    }
}
