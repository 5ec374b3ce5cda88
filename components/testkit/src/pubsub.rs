//! Cases of [`PubSub`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use mecha_components_api::{CancellationToken, Metadata, PubSub, PubSubCaps, Publish, Result, Subscribe, Verdict};
use tokio::task::JoinHandle;

use crate::case::{Case, Failure, Outcome, PATIENCE, check, check_eq, fresh_name, table, wait_until};
use crate::inbox::Inbox;

/// Time in which something that must not happen would have happened.
const QUIET: Duration = Duration::from_millis(300);

/// What a broker declares, beyond its capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PubSubProfile {
    /// Its capabilities.
    pub caps: PubSubCaps,
    /// Members of one consumer group share its messages.
    pub groups: bool,
    /// One publisher's messages reach a single subscriber in their order.
    pub ordered: bool,
    /// Request metadata of a publish arrives with the message.
    pub keeps_metadata: bool,
}

/// A broker to which members of consumer groups can be connected.
#[async_trait]
pub trait PubSubBench: Send + Sync + 'static {
    /// A member of `group`, with connections of its own. A broker without groups gives the
    /// same instance each time.
    async fn member(&self, group: &str) -> Result<Arc<dyn PubSub>>;
}

/// All cases.
pub const CASES: &[Case<dyn PubSubBench, PubSubProfile>] = table![Desk::new;
    a_published_message_is_delivered: any,
    the_subscription_says_when_it_is_in_place: any,
    every_byte_is_delivered: any,
    an_empty_payload_is_delivered: any,
    one_megabyte_is_delivered: any,
    topics_are_separate: any,
    one_subscriber_of_two_topics_gets_both: any,
    publishing_without_subscribers_succeeds: any,
    two_groups_each_get_every_message: any,
    members_of_a_group_share_the_messages: |p| p.groups,
    a_message_that_was_not_processed_comes_again: |p| p.caps.redelivers,
    a_refused_message_does_not_stop_the_others: |p| p.caps.redelivers,
    an_acknowledged_message_does_not_come_again: |p| p.caps.durable,
    a_released_message_goes_to_the_next_subscriber: |p| p.caps.durable && p.groups,
    a_late_subscriber_of_a_known_group_gets_what_it_missed: |p| p.caps.durable,
    messages_keep_their_order: |p| p.ordered,
    parallel_publishers_lose_nothing: any,
    an_idle_subscription_stops_at_once: any,
    stopping_waits_for_the_verdict: any,
    what_was_settled_while_stopping_does_not_come_again: |p| p.caps.durable,
    a_stopped_subscription_gets_nothing: any,
    a_topic_can_be_subscribed_again: any,
    a_dropped_publish_leaves_the_broker_usable: any,
    a_dropped_subscription_leaves_the_broker_usable: any,
    a_batch_is_delivered_whole: |p| p.caps.bulk,
    a_wildcard_subscription_gets_matching_topics: |p| p.caps.subscribe_wildcards,
    metadata_arrives_with_the_message: |p| p.keeps_metadata,
];

fn any(_: &PubSubProfile) -> bool {
    true
}

/// A bench, and a topic that nobody else uses.
struct Desk {
    bench: Arc<dyn PubSubBench>,
    topic: String,
    md: Metadata,
}

/// A running subscription.
struct Running {
    inbox: Arc<Inbox>,
    stop: CancellationToken,
    task: JoinHandle<Result<()>>,
}

impl Desk {
    fn new(bench: Arc<dyn PubSubBench>) -> Self {
        Self { bench, topic: fresh_name(), md: Metadata::new() }
    }

    async fn member(&self, group: &str) -> Result<Arc<dyn PubSub>> {
        // Groups belong to the case, as topics do.
        self.bench.member(&format!("{group}-{}", self.topic)).await
    }

    async fn publish(&self, broker: &Arc<dyn PubSub>, text: &str) -> Result<()> {
        self.publish_to(broker, &self.topic, Bytes::copy_from_slice(text.as_bytes())).await
    }

    async fn publish_to(&self, broker: &Arc<dyn PubSub>, topic: &str, data: Bytes) -> Result<()> {
        broker.publish(Publish { topic, data, content_type: None, metadata: &self.md }).await
    }

    async fn subscribe(&self, broker: &Arc<dyn PubSub>, inbox: Inbox) -> Result<Running, Failure> {
        self.subscribe_to(broker, &self.topic, inbox).await
    }

    async fn subscribe_to(&self, broker: &Arc<dyn PubSub>, topic: &str, inbox: Inbox) -> Result<Running, Failure> {
        let (inbox, stop) = (Arc::new(inbox), CancellationToken::new());
        let sub = Subscribe { topic: topic.to_owned(), metadata: Metadata::new(), bulk: None };
        let task = tokio::spawn({
            let (broker, inbox, stop) = (Arc::clone(broker), Arc::clone(&inbox), stop.clone());
            async move { broker.subscribe(sub, inbox, stop).await }
        });
        let in_place = || async { inbox.attachments() > 0 || task.is_finished() };
        wait_until(PATIENCE, "the subscription is in place", in_place).await?;
        check!(!task.is_finished(), "the subscription ended by itself: {:?}", task.await);
        Ok(Running { inbox, stop, task })
    }
}

impl Running {
    /// Stops and checks that the subscription ends well.
    async fn stop(self) -> Outcome {
        self.stop.cancel();
        match tokio::time::timeout(PATIENCE, self.task).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(e))) => Err(Failure::new(format!("a stopped subscription ended with {e}"))),
            Ok(Err(e)) => Err(Failure::new(format!("a stopped subscription panicked: {e}"))),
            Err(_) => Err(Failure::new(format!("the subscription did not stop within {PATIENCE:?}"))),
        }
    }
}

async fn deliver_exactly(d: &Desk, data: &[u8]) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    d.publish_to(&broker, &d.topic, Bytes::copy_from_slice(data)).await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    let seen = sub.inbox.seen();
    check_eq!(seen[0].data.len(), data.len(), "length of the payload");
    check!(seen[0].data == data, "the payload came changed");
    check_eq!(seen[0].topic.as_ref(), d.topic.as_str(), "topic of the delivery");
    sub.stop().await
}

async fn a_published_message_is_delivered(d: Desk) -> Outcome {
    deliver_exactly(&d, br#"{"order": 9007199254740993}"#).await
}

async fn the_subscription_says_when_it_is_in_place(d: Desk) -> Outcome {
    // A message published right after must not be lost, also where nothing is durable.
    let broker = d.member("g").await?;
    for round in 0..5 {
        let sub = d.subscribe(&broker, Inbox::new()).await?;
        d.publish(&broker, &round.to_string()).await?;
        sub.inbox.wait_for(1, PATIENCE).await?;
        sub.stop().await?;
    }
    Ok(())
}

async fn every_byte_is_delivered(d: Desk) -> Outcome {
    let all: Vec<u8> = (0..=255).collect();
    deliver_exactly(&d, &all).await
}

async fn an_empty_payload_is_delivered(d: Desk) -> Outcome {
    deliver_exactly(&d, b"").await
}

async fn one_megabyte_is_delivered(d: Desk) -> Outcome {
    let data: Vec<u8> = (0..1_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    deliver_exactly(&d, &data).await
}

async fn topics_are_separate(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    let neighbours = [format!("{}x", d.topic), format!("{}.x", d.topic), d.topic.to_uppercase()];
    for other in &neighbours {
        d.publish_to(&broker, other, Bytes::from_static(b"other")).await?;
    }
    d.publish(&broker, "mine").await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    tokio::time::sleep(QUIET).await;
    check_eq!(sub.inbox.texts(), ["mine"], "deliveries");
    sub.stop().await
}

async fn one_subscriber_of_two_topics_gets_both(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let other = format!("{}-2", d.topic);
    let one = d.subscribe(&broker, Inbox::new()).await?;
    let two = d.subscribe_to(&broker, &other, Inbox::new()).await?;
    d.publish(&broker, "one").await?;
    d.publish_to(&broker, &other, Bytes::from_static(b"two")).await?;
    one.inbox.wait_for(1, PATIENCE).await?;
    two.inbox.wait_for(1, PATIENCE).await?;
    check_eq!((one.inbox.texts(), two.inbox.texts()), (vec!["one".to_owned()], vec!["two".to_owned()]), "deliveries");
    one.stop().await?;
    two.stop().await
}

async fn publishing_without_subscribers_succeeds(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    for i in 0..20 {
        d.publish(&broker, &i.to_string()).await?;
    }
    Ok(())
}

async fn two_groups_each_get_every_message(d: Desk) -> Outcome {
    let (one, two) = (d.member("one").await?, d.member("two").await?);
    let (first, second) = (d.subscribe(&one, Inbox::new()).await?, d.subscribe(&two, Inbox::new()).await?);
    let sent: Vec<String> = (0..20).map(|i| i.to_string()).collect();
    for text in &sent {
        d.publish(&one, text).await?;
    }
    for sub in [&first, &second] {
        sub.inbox.wait_for(sent.len(), PATIENCE).await?;
        check_eq!(sorted(sub.inbox.texts()), sorted(sent.clone()), "deliveries of one group");
    }
    first.stop().await?;
    second.stop().await
}

fn sorted(mut texts: Vec<String>) -> Vec<String> {
    texts.sort();
    texts
}

async fn members_of_a_group_share_the_messages(d: Desk) -> Outcome {
    let (one, two) = (d.member("g").await?, d.member("g").await?);
    let (first, second) = (d.subscribe(&one, Inbox::new()).await?, d.subscribe(&two, Inbox::new()).await?);
    let sent: Vec<String> = (0..60).map(|i| i.to_string()).collect();
    for text in &sent {
        d.publish(&one, text).await?;
    }
    let total = || first.inbox.seen().len() + second.inbox.seen().len();
    wait_until(PATIENCE, "both members together got every message", || async { total() >= sent.len() }).await?;
    tokio::time::sleep(QUIET).await;
    let together = [first.inbox.texts(), second.inbox.texts()].concat();
    check_eq!(sorted(together), sorted(sent), "deliveries of both members");
    first.stop().await?;
    second.stop().await
}

async fn a_message_that_was_not_processed_comes_again(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::with_script([Verdict::Retry, Verdict::Retry], Verdict::Ack)).await?;
    d.publish(&broker, "again").await?;
    sub.inbox.wait_for(3, PATIENCE).await?;
    tokio::time::sleep(QUIET).await;
    check_eq!(sub.inbox.texts(), ["again", "again", "again"], "deliveries");
    sub.stop().await
}

async fn a_refused_message_does_not_stop_the_others(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::with_script([Verdict::Retry], Verdict::Ack)).await?;
    for i in 0..10 {
        d.publish(&broker, &i.to_string()).await?;
    }
    sub.inbox.wait_for(11, PATIENCE).await?;
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for text in sub.inbox.texts() {
        *counts.entry(text).or_default() += 1;
    }
    check_eq!(counts.len(), 10, "messages that arrived");
    check_eq!(counts.values().filter(|n| **n == 2).count(), 1, "messages that came twice");
    sub.stop().await
}

async fn an_acknowledged_message_does_not_come_again(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    d.publish(&broker, "first").await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    sub.stop().await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    d.publish(&broker, "second").await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    tokio::time::sleep(QUIET).await;
    check_eq!(sub.inbox.texts(), ["second"], "deliveries of the second subscription");
    sub.stop().await
}

async fn a_released_message_goes_to_the_next_subscriber(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::with_script([], Verdict::Release)).await?;
    d.publish(&broker, "handed on").await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    sub.stop().await?;
    let other = d.member("g").await?;
    let sub = d.subscribe(&other, Inbox::new()).await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    check_eq!(sub.inbox.texts(), ["handed on"], "deliveries of the next subscriber");
    sub.stop().await
}

async fn a_late_subscriber_of_a_known_group_gets_what_it_missed(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    d.subscribe(&broker, Inbox::new()).await?.stop().await?;
    let sent: Vec<String> = (0..10).map(|i| i.to_string()).collect();
    for text in &sent {
        d.publish(&broker, text).await?;
    }
    let late = d.member("g").await?;
    let sub = d.subscribe(&late, Inbox::new()).await?;
    sub.inbox.wait_for(sent.len(), PATIENCE).await?;
    check_eq!(sorted(sub.inbox.texts()), sorted(sent), "deliveries");
    sub.stop().await
}

async fn messages_keep_their_order(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    let sent: Vec<String> = (0..100).map(|i| i.to_string()).collect();
    for text in &sent {
        d.publish(&broker, text).await?;
    }
    sub.inbox.wait_for(sent.len(), PATIENCE).await?;
    check_eq!(sub.inbox.texts(), sent, "deliveries");
    sub.stop().await
}

async fn parallel_publishers_lose_nothing(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    let d = Arc::new(d);
    let mut tasks = tokio::task::JoinSet::new();
    for publisher in 0..8 {
        let (d, broker) = (Arc::clone(&d), Arc::clone(&broker));
        tasks.spawn(async move {
            for i in 0..25 {
                d.publish(&broker, &format!("{publisher}/{i}")).await?;
            }
            Ok::<_, Failure>(())
        });
    }
    while let Some(joined) = tasks.join_next().await {
        joined.map_err(|e| Failure::new(format!("a publisher panicked: {e}")))??;
    }
    sub.inbox.wait_for(200, PATIENCE).await?;
    let mut texts = sorted(sub.inbox.texts());
    texts.dedup();
    check_eq!(texts.len(), 200, "different messages");
    sub.stop().await
}

async fn an_idle_subscription_stops_at_once(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    let before = std::time::Instant::now();
    sub.stop().await?;
    check!(before.elapsed() < Duration::from_secs(20), "it took {:?}", before.elapsed());
    Ok(())
}

async fn stopping_waits_for_the_verdict(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new().held()).await?;
    d.publish(&broker, "slow").await?;
    wait_until(PATIENCE, "the message is with the app", || async { sub.inbox.in_flight() == 1 }).await?;
    sub.stop.cancel();
    tokio::time::sleep(QUIET).await;
    check!(!sub.task.is_finished(), "the subscription ended while the app was still at work");
    check_eq!(sub.inbox.in_flight(), 1, "deliveries that were not cancelled");
    sub.inbox.release(1);
    sub.stop().await
}

async fn what_was_settled_while_stopping_does_not_come_again(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new().held()).await?;
    d.publish(&broker, "slow").await?;
    wait_until(PATIENCE, "the message is with the app", || async { sub.inbox.in_flight() == 1 }).await?;
    sub.stop.cancel();
    sub.inbox.release(1);
    sub.stop().await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    d.publish(&broker, "next").await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    tokio::time::sleep(QUIET).await;
    check_eq!(sub.inbox.texts(), ["next"], "deliveries after the restart");
    sub.stop().await
}

async fn a_stopped_subscription_gets_nothing(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    let inbox = Arc::clone(&sub.inbox);
    sub.stop().await?;
    d.publish(&broker, "too late").await?;
    tokio::time::sleep(QUIET).await;
    check_eq!(inbox.texts(), Vec::<String>::new(), "deliveries after the stop");
    Ok(())
}

async fn a_topic_can_be_subscribed_again(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    for round in 0..3 {
        let sub = d.subscribe(&broker, Inbox::new()).await?;
        let text = round.to_string();
        d.publish(&broker, &text).await?;
        let arrived = || async { sub.inbox.texts().contains(&text) };
        wait_until(PATIENCE, "the message of this round", arrived).await?;
        sub.stop().await?;
    }
    Ok(())
}

async fn a_dropped_publish_leaves_the_broker_usable(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    for i in 0..40_u64 {
        let _ = tokio::time::timeout(Duration::from_micros(i * i), d.publish(&broker, "dropped")).await;
    }
    d.publish(&broker, "kept").await?;
    let arrived = || async { sub.inbox.texts().iter().any(|t| t == "kept") };
    wait_until(PATIENCE, "the message after the dropped ones", arrived).await?;
    sub.stop().await
}

async fn a_dropped_subscription_leaves_the_broker_usable(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    sub.task.abort();
    let _ = sub.task.await;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    d.publish(&broker, "after").await?;
    let arrived = || async { sub.inbox.texts().iter().any(|t| t == "after") };
    wait_until(PATIENCE, "the message after the dropped subscription", arrived).await?;
    sub.stop().await
}

async fn a_batch_is_delivered_whole(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    let sent: Vec<String> = (0..50).map(|i| i.to_string()).collect();
    let bulk = broker.bulk().ok_or_else(|| Failure::new("the broker takes no batches"))?;
    let batch = sent
        .iter()
        .map(|text| Publish {
            topic: &d.topic,
            data: Bytes::copy_from_slice(text.as_bytes()),
            content_type: None,
            metadata: &d.md,
        })
        .collect();
    let failed = bulk.publish_many(batch).await?;
    check!(failed.is_empty(), "failed entries: {failed:?}");
    sub.inbox.wait_for(sent.len(), PATIENCE).await?;
    check_eq!(sorted(sub.inbox.texts()), sorted(sent), "deliveries");
    sub.stop().await
}

async fn a_wildcard_subscription_gets_matching_topics(d: Desk) -> Outcome {
    let broker = d.member("g").await?;
    let sub = d.subscribe_to(&broker, &format!("{}-*", d.topic), Inbox::new()).await?;
    for topic in ["-a", "-b/c", "x"] {
        d.publish_to(&broker, &format!("{}{topic}", d.topic), Bytes::copy_from_slice(topic.as_bytes())).await?;
    }
    d.publish_to(&broker, &format!("{}-end", d.topic), Bytes::from_static(b"-end")).await?;
    sub.inbox.wait_for(3, PATIENCE).await?;
    tokio::time::sleep(QUIET).await;
    check_eq!(sorted(sub.inbox.texts()), ["-a", "-b/c", "-end"], "deliveries");
    sub.stop().await
}

async fn metadata_arrives_with_the_message(mut d: Desk) -> Outcome {
    d.md.insert("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
    d.md.insert("note", "é漢");
    let broker = d.member("g").await?;
    let sub = d.subscribe(&broker, Inbox::new()).await?;
    d.publish(&broker, "with metadata").await?;
    sub.inbox.wait_for(1, PATIENCE).await?;
    let seen = sub.inbox.seen();
    for (key, value) in d.md.iter() {
        check_eq!(seen[0].metadata.get(key), Some(value), "metadata {key}");
    }
    sub.stop().await
}
