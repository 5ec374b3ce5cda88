use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mecha_components_api::{Deliver, Delivery, ErrorKind, Metadata, Publish, Verdict};
use mecha_testkit::servers::Kafka;
use mecha_testkit::{Inbox, fresh_name};
use parking_lot::Mutex;

use crate::support::{PATIENCE, Running, attached, committed, make_topic, publish, publish_with, pubsub, until};

/// Fails every record once before it takes it, and notes what it took.
#[derive(Default)]
struct OnceMore {
    refused: Mutex<BTreeSet<String>>,
    taken: Mutex<Vec<(String, String)>>,
}

#[async_trait]
impl Deliver for OnceMore {
    async fn deliver(&self, msg: Delivery) -> Verdict {
        let text = String::from_utf8_lossy(&msg.data).into_owned();
        if self.refused.lock().insert(text.clone()) {
            return Verdict::Retry;
        }
        self.taken.lock().push((msg.metadata.get("__key").unwrap_or_default().to_owned(), text));
        Verdict::Ack
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_of_a_key_keep_their_order_through_retries() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    make_topic(&address, &topic, 4).await;
    let settings = [("brokers", address.as_str()), ("initialOffset", "oldest"), ("consumeRetryInterval", "5")];
    let (broker, to) = (pubsub(&topic, &settings).await.unwrap(), Arc::new(OnceMore::default()));
    for i in 0..120 {
        let key = format!("k{}", i % 6);
        publish_with(&*broker, &topic, &format!("{i:03}"), &[("partitionKey", &key)]).await.unwrap();
    }
    let running = Running::start(&broker, &topic, to.clone());
    until("everything is taken", async || to.taken.lock().len() >= 120).await;
    running.stop().await;
    let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (key, text) in to.taken.lock().iter() {
        by_key.entry(key.clone()).or_default().push(text.clone());
    }
    assert_eq!(by_key.len(), 6);
    for (key, texts) in by_key {
        assert!(texts.is_sorted() && texts.len() == 20, "{key}: {texts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_is_committed_after_its_verdict_only() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    let broker = pubsub(&topic, &[("brokers", &address)]).await.unwrap();
    let inbox = Arc::new(Inbox::new().held());
    let running = Running::start(&broker, &topic, inbox.clone());
    attached(&inbox, 1).await;
    for i in 0..5 {
        publish(&*broker, &topic, &i.to_string()).await.unwrap();
    }
    inbox.wait_for(1, PATIENCE).await.unwrap();
    // Several periods of commits.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(inbox.in_flight(), 1, "one of a partition at a time");
    assert_eq!(committed(&address, &topic, &topic, 0).await, Some(0));
    inbox.release(2);
    until("the first two are committed", async || committed(&address, &topic, &topic, 0).await == Some(2)).await;
    inbox.wait_for(3, PATIENCE).await.unwrap();
    inbox.release(3);
    running.stop().await;
    // On its way out it settled what was at the app, the third at least, and nothing else.
    let seen = inbox.seen().len();
    assert_eq!(committed(&address, &topic, &topic, 0).await, Some(i64::try_from(seen).unwrap()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_record_holds_back_the_position_of_a_batch() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    let settings = [("brokers", address.as_str()), ("initialOffset", "oldest"), ("consumeRetryInterval", "1h")];
    let broker = pubsub(&topic, &settings).await.unwrap();
    for i in 0..10 {
        publish(&*broker, &topic, &i.to_string()).await.unwrap();
    }
    // The first is refused, the others are taken; its position must wait for the next delivery.
    let inbox = Arc::new(Inbox::with_script([Verdict::Retry], Verdict::Ack));
    let bulk = Some((100, Duration::from_millis(10)));
    let running = Running::start_bulk(&broker, &topic, inbox.clone(), bulk);
    inbox.wait_for(10, PATIENCE).await.unwrap();
    running.stop().await;
    assert_eq!(committed(&address, &topic, &topic, 0).await, Some(0), "it waits before the refused one");

    let inbox = Arc::new(Inbox::new());
    let running = Running::start_bulk(&broker, &topic, inbox.clone(), bulk);
    inbox.wait_for(10, PATIENCE).await.unwrap();
    running.stop().await;
    assert_eq!(committed(&address, &topic, &topic, 0).await, Some(10));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bulk_subscription_gets_as_many_at_once_as_it_takes() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    let broker = pubsub(&topic, &[("brokers", &address), ("initialOffset", "oldest")]).await.unwrap();
    for i in 0..30 {
        publish(&*broker, &topic, &i.to_string()).await.unwrap();
    }
    let inbox = Arc::new(Inbox::new().held());
    let running = Running::start_bulk(&broker, &topic, inbox.clone(), Some((8, Duration::from_secs(1))));
    until("the window is full", async || inbox.in_flight() == 8).await;
    inbox.release(30);
    inbox.wait_for(30, PATIENCE).await.unwrap();
    assert_eq!((inbox.most_in_flight(), inbox.texts().is_sorted_by_key(|t| t.parse::<u32>().unwrap())), (8, true));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_partition_does_not_hold_up_the_others() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    make_topic(&address, &topic, 2).await;
    let settings = [("brokers", address.as_str()), ("initialOffset", "oldest"), ("channelBufferSize", "5")];
    let broker = pubsub(&topic, &settings).await.unwrap();
    struct Stuck(Inbox);
    #[async_trait]
    impl Deliver for Stuck {
        async fn deliver(&self, msg: Delivery) -> Verdict {
            if msg.metadata.get("__partition") == Some("0") {
                return std::future::pending().await;
            }
            self.0.deliver(msg).await
        }
    }
    for i in 0..200 {
        let partition = (i % 2).to_string();
        publish_with(&*broker, &topic, &i.to_string(), &[("partitionNumber", &partition)]).await.unwrap();
    }
    let to = Arc::new(Stuck(Inbox::new()));
    let running = Running::start(&broker, &topic, to.clone());
    to.0.wait_for(100, PATIENCE).await.unwrap();
    running.abort().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_headers_and_places_arrive() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    make_topic(&address, &topic, 3).await;
    let broker = pubsub(&topic, &[("brokers", &address), ("compression", "lz4")]).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, &topic, inbox.clone());
    attached(&inbox, 1).await;
    let md = [("partitionKey", "customer-7"), ("partitionNumber", "2"), ("traceparent", "00-01")];
    publish_with(&*broker, &topic, "x", &md).await.unwrap();
    inbox.wait_for(1, PATIENCE).await.unwrap();
    let seen = inbox.seen();
    let at = |key: &str| seen[0].metadata.get(key);
    assert_eq!((at("__key"), at("__partition"), at("__offset")), (Some("customer-7"), Some("2"), Some("0")));
    assert_eq!((at("__topic"), at("traceparent")), (Some(topic.as_str()), Some("00-01")));
    assert!(at("__timestamp").is_some_and(|t| t.parse::<u64>().is_ok()));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn equal_keys_go_to_the_partition_that_sarama_chooses() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    make_topic(&address, &topic, 8).await;
    let broker = pubsub(&topic, &[("brokers", &address), ("initialOffset", "oldest")]).await.unwrap();
    // FNV-1a, then the absolute value of the signed remainder.
    let chosen = |key: &str| {
        let hash = key.bytes().fold(0x811c_9dc5_u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        (hash as i32 % 8).abs().to_string()
    };
    let keys: Vec<String> = (0..40).map(|i| format!("key-{i}")).collect();
    for key in &keys {
        publish_with(&*broker, &topic, key, &[("partitionKey", key)]).await.unwrap();
    }
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, &topic, inbox.clone());
    inbox.wait_for(keys.len(), PATIENCE).await.unwrap();
    for seen in inbox.seen() {
        let key = seen.metadata.get("__key").unwrap();
        assert_eq!(seen.metadata.get("__partition"), Some(chosen(key).as_str()), "{key}");
    }
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_kafka_cannot_take_is_told() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    let broker = pubsub("app", &[("brokers", &address), ("maxMessageBytes", "2000")]).await.unwrap();
    let kind = async |topic: &str, text: &str, md: &[(&str, &str)]| {
        publish_with(&*broker, topic, text, md).await.map_err(|e| e.kind())
    };
    assert_eq!(kind(&topic, &"x".repeat(3000), &[]).await, Err(ErrorKind::TooLarge));
    assert_eq!(kind("no/topic", "x", &[]).await, Err(ErrorKind::InvalidArgument));
    assert_eq!(kind("", "x", &[]).await, Err(ErrorKind::InvalidArgument));
    assert_eq!(kind(&topic, "x", &[]).await, Ok(()));
    assert_eq!(kind(&topic, "x", &[("partitionNumber", "7")]).await, Err(ErrorKind::InvalidArgument));

    let (md, good) = (Metadata::new(), Bytes::from_static(b"x"));
    let entry = |topic, data| Publish { topic, data, content_type: None, metadata: &md };
    let large = Bytes::from(vec![b'x'; 3000]);
    let batch =
        vec![entry(&topic, good.clone()), entry(&topic, large), entry("no/topic", good.clone()), entry(&topic, good)];
    let failed = broker.bulk().unwrap().publish_many(batch).await.unwrap();
    let failed: Vec<_> = failed.iter().map(|f| (f.index, f.error.kind())).collect();
    assert_eq!(failed, [(1, ErrorKind::TooLarge), (2, ErrorKind::InvalidArgument)]);
}
