//! Building components as the daemon does, and waiting for conditions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use mecha_components_api::{
    BuildCx, CancellationToken, Deliver, InputBinding, Lookup, Metadata, OutputBinding, PubSub, Publish, Registration,
    Registry, Result, Subscribe,
};
use mecha_testkit::Inbox;
use rdkafka::ClientConfig;
use rdkafka::Message as _;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use tokio::task::JoinHandle;

/// Longest wait for something that a test expects; a test that passes never waits for it.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

async fn build<C: ?Sized + 'static>(
    list: &[Registration<C>],
    kind: &str,
    app: &str,
    pairs: &[(&str, &str)],
) -> Result<Arc<C>> {
    let mut md: Metadata = [("authType", "none")].into_iter().collect();
    md.extend(pairs.iter().copied());
    let Lookup::Found(registration) = Registry::find(list, kind, "v1") else { panic!("{kind} is not registered") };
    let prepared = (registration.prepare)(&md, "v1").unwrap_or_else(|e| panic!("{kind}: {e}"));
    prepared.build(&BuildCx::for_app(app, "test", "/nonexistent")).await
}

fn registry() -> Registry {
    let mut registry = Registry::new();
    mecha_kafka::register(&mut registry);
    registry
}

/// A member of the group `app`.
pub(crate) async fn pubsub(app: &str, pairs: &[(&str, &str)]) -> Result<Arc<dyn PubSub>> {
    build(&registry().pubsub, "pubsub.kafka", app, pairs).await
}

pub(crate) async fn input(app: &str, pairs: &[(&str, &str)]) -> Result<Arc<dyn InputBinding>> {
    build(&registry().input, "bindings.kafka", app, pairs).await
}

pub(crate) async fn output(pairs: &[(&str, &str)]) -> Result<Arc<dyn OutputBinding>> {
    build(&registry().output, "bindings.kafka", "app", pairs).await
}

pub(crate) async fn publish(broker: &dyn PubSub, topic: &str, text: &str) -> Result<()> {
    publish_with(broker, topic, text, &[]).await
}

pub(crate) async fn publish_with(broker: &dyn PubSub, topic: &str, text: &str, md: &[(&str, &str)]) -> Result<()> {
    let (md, data) = (md.iter().copied().collect(), Bytes::copy_from_slice(text.as_bytes()));
    broker.publish(Publish { topic, data, content_type: None, metadata: &md }).await
}

/// A subscription that runs.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Running {
    pub(crate) fn start(broker: &Arc<dyn PubSub>, topic: &str, to: Arc<dyn Deliver>) -> Self {
        Self::start_bulk(broker, topic, to, None)
    }

    pub(crate) fn start_bulk(
        broker: &Arc<dyn PubSub>,
        topic: &str,
        to: Arc<dyn Deliver>,
        bulk: Option<(usize, Duration)>,
    ) -> Self {
        Self::run(broker, to, Subscribe { topic: topic.to_owned(), metadata: Metadata::new(), bulk })
    }

    /// With metadata of the subscription.
    pub(crate) fn start_with(broker: &Arc<dyn PubSub>, topic: &str, to: Arc<dyn Deliver>, metadata: Metadata) -> Self {
        Self::run(broker, to, Subscribe { topic: topic.to_owned(), metadata, bulk: None })
    }

    fn run(broker: &Arc<dyn PubSub>, to: Arc<dyn Deliver>, sub: Subscribe) -> Self {
        let stop = CancellationToken::new();
        let (broker, token) = (Arc::clone(broker), stop.clone());
        Self { stop, task: tokio::spawn(async move { broker.subscribe(sub, to, token).await }) }
    }

    /// Ends it the way a runtime does.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").unwrap().unwrap();
    }

    /// Ends it without a goodbye.
    pub(crate) async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// Waits until the subscription was put in place so many times.
pub(crate) async fn attached(inbox: &Inbox, times: usize) {
    until("the subscription is in place", async || inbox.attachments() >= times).await;
}

/// Looks at a condition until it holds.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn admin(address: &str) -> AdminClient<DefaultClientContext> {
    ClientConfig::new().set("bootstrap.servers", address).create().unwrap()
}

/// Makes a topic with so many partitions.
pub(crate) async fn make_topic(address: &str, topic: &str, partitions: i32) {
    let new = NewTopic::new(topic, partitions, TopicReplication::Fixed(1));
    let made = admin(address).create_topics([&new], &AdminOptions::new()).await.unwrap();
    made[0].as_ref().unwrap();
}

/// Gives a topic more partitions.
pub(crate) async fn grow_topic(address: &str, topic: &str, partitions: usize) {
    let more = NewPartitions::new(topic, partitions);
    let made = admin(address).create_partitions([&more], &AdminOptions::new()).await.unwrap();
    made[0].as_ref().unwrap();
}

/// What a group has committed of a partition.
pub(crate) async fn committed(address: &str, group: &str, topic: &str, partition: i32) -> Option<i64> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address).set("group.id", group);
    let topic = topic.to_owned();
    let ask = move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic, partition);
        let list = consumer.committed_offsets(list, Duration::from_secs(5)).ok()?;
        match list.elements().first()?.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        }
    };
    tokio::task::spawn_blocking(ask).await.unwrap()
}

/// The value of the last record of a topic with one partition; empty where it has none.
pub(crate) async fn last_value(address: &str, topic: &str) -> Vec<u8> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", address).set("group.id", "look");
    let topic = topic.to_owned();
    let look = move || {
        let consumer: BaseConsumer = config.create().unwrap();
        let (_, next) = consumer.fetch_watermarks(&topic, 0, PATIENCE).unwrap();
        let mut list = TopicPartitionList::new();
        list.add_partition_offset(&topic, 0, Offset::Offset(next - 1)).unwrap();
        consumer.assign(&list).unwrap();
        let record = consumer.poll(PATIENCE).expect("a record in time").unwrap();
        record.payload().unwrap_or_default().to_vec()
    };
    tokio::task::spawn_blocking(look).await.unwrap()
}
