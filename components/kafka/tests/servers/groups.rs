//! Members of a consumer group come, go and die.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use mecha_components_api::{Deliver, Delivery, PubSub, Verdict};
use mecha_testkit::servers::{Kafka, KafkaOptions};
use mecha_testkit::{Inbox, fresh_name};

use crate::support::{PATIENCE, Running, attached, committed, grow_topic, make_topic, publish_with, pubsub, until};

/// Settings that find a dead member soon.
const QUICK: [(&str, &str); 2] = [("sessionTimeout", "3s"), ("heartbeatInterval", "500ms")];

async fn member(address: &str, group: &str, more: &[(&str, &str)]) -> Arc<dyn PubSub> {
    pubsub(group, &[&[("brokers", address)], &QUICK[..], more].concat()).await.unwrap()
}

fn seen(inboxes: &[&Inbox]) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for text in inboxes.iter().flat_map(|i| i.texts()) {
        *counts.entry(text).or_default() += 1;
    }
    counts
}

/// Publishes in the background, records of six keys over all partitions.
fn flow(broker: &Arc<dyn PubSub>, topic: &str, count: usize) -> tokio::task::JoinHandle<()> {
    let (broker, topic) = (Arc::clone(broker), topic.to_owned());
    tokio::spawn(async move {
        for i in 0..count {
            let key = format!("k{}", i % 6);
            publish_with(&*broker, &topic, &format!("{i:04}"), &[("partitionKey", &key)]).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
}

async fn nothing_is_lost_or_doubled_while_members_come_and_go(assignment: &str) {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    make_topic(&address, &topic, 6).await;
    let more = [("mecha.assignment", assignment)];
    let (one, two) = (member(&address, &topic, &more).await, member(&address, &topic, &more).await);
    let inboxes = [Arc::new(Inbox::new()), Arc::new(Inbox::new()), Arc::new(Inbox::new())];
    let first = Running::start(&one, &topic, inboxes[0].clone());
    attached(&inboxes[0], 1).await;

    let publishing = flow(&one, &topic, 600);
    inboxes[0].wait_for(50, PATIENCE).await.unwrap();
    let second = Running::start(&two, &topic, inboxes[1].clone());
    inboxes[1].wait_for(20, PATIENCE).await.unwrap();
    first.stop().await;
    let third = Running::start(&one, &topic, inboxes[2].clone());
    inboxes[2].wait_for(20, PATIENCE).await.unwrap();
    publishing.await.unwrap();
    let all: Vec<&Inbox> = inboxes.iter().map(AsRef::as_ref).collect();
    until("everything is delivered", async || seen(&all).len() == 600).await;
    second.stop().await;
    third.stop().await;
    // Nobody died, so the hand-over loses nothing and doubles nothing.
    let doubled: Vec<_> = seen(&all).into_iter().filter(|(_, n)| *n > 1).collect();
    assert!(doubled.is_empty(), "{doubled:?}");
    for inbox in &inboxes {
        let mut by_key: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for delivery in inbox.seen() {
            let text = String::from_utf8_lossy(&delivery.data).into_owned();
            by_key.entry(delivery.metadata.get("__key").unwrap().to_owned()).or_default().push(text);
        }
        assert!(by_key.values().all(|texts| texts.is_sorted()), "{by_key:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_by_range_assignment() {
    nothing_is_lost_or_doubled_while_members_come_and_go("range").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_doubled_by_cooperative_assignment() {
    nothing_is_lost_or_doubled_while_members_come_and_go("cooperative-sticky").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_not_acknowledged_comes_again_after_a_restart() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    let broker = member(&address, &topic, &[]).await;
    // Takes three, refuses the rest.
    let script = [Verdict::Ack, Verdict::Ack, Verdict::Ack];
    let inbox = Arc::new(Inbox::with_script(script, Verdict::Retry));
    let running = Running::start(&broker, &topic, inbox.clone());
    attached(&inbox, 1).await;
    for i in 0..8 {
        publish_with(&*broker, &topic, &i.to_string(), &[]).await.unwrap();
    }
    inbox.wait_for(6, PATIENCE).await.unwrap();
    running.abort().await;
    broker.close().await;

    let (other, inbox) = (member(&address, &topic, &[]).await, Arc::new(Inbox::new()));
    let running = Running::start(&other, &topic, inbox.clone());
    inbox.wait_for(5, PATIENCE).await.unwrap();
    running.stop().await;
    assert_eq!(inbox.texts(), ["3", "4", "5", "6", "7"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_finish_before_its_partition_moves() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    make_topic(&address, &topic, 2).await;
    let (one, two) = (member(&address, &topic, &[]).await, member(&address, &topic, &[]).await);
    let (slow, quick) = (Arc::new(Inbox::new().held()), Arc::new(Inbox::new()));
    let first = Running::start(&one, &topic, slow.clone());
    attached(&slow, 1).await;
    for partition in ["0", "1"] {
        publish_with(&*one, &topic, partition, &[("partitionNumber", partition)]).await.unwrap();
    }
    until("both partitions are at work", async || slow.in_flight() == 2).await;
    let second = Running::start(&two, &topic, quick.clone());
    // Longer than the rebalance would take without them.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!((quick.attachments(), slow.in_flight()), (0, 2), "nobody else has the partitions yet");
    slow.release(2);
    attached(&quick, 1).await;
    attached(&slow, 2).await;
    for partition in ["0", "1"] {
        publish_with(&*one, &topic, "later", &[("partitionNumber", partition)]).await.unwrap();
    }
    slow.release(2);
    let all = [slow.as_ref(), quick.as_ref()];
    until("both later ones are delivered", async || seen(&all).get("later") == Some(&2)).await;
    let want = BTreeMap::from([("0".to_owned(), 1), ("1".to_owned(), 1), ("later".to_owned(), 2)]);
    assert_eq!(seen(&all), want);
    assert_eq!(quick.texts(), ["later"], "one partition moved");
    first.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_that_was_added_is_read_from_its_beginning() {
    let Some(kafka) = Kafka::shared() else { return };
    let (address, topic) = (kafka.address(), fresh_name());
    make_topic(&address, &topic, 1).await;
    let refresh = [("clientConnectionTopicMetadataRefreshInterval", "1s")];
    let (reader, writer) = (member(&address, &topic, &refresh).await, member(&address, "writer", &refresh).await);
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&reader, &topic, inbox.clone());
    attached(&inbox, 1).await;
    grow_topic(&address, &topic, 3).await;
    let mut sent = BTreeSet::new();
    until("the new partition can be written to", async || {
        let text = format!("n{}", sent.len());
        let written = publish_with(&*writer, &topic, &text, &[("partitionNumber", "2")]).await.is_ok();
        if written {
            sent.insert(text);
        }
        sent.len() >= 3
    })
    .await;
    until("all of them arrive", async || sent.iter().all(|text| inbox.texts().contains(text))).await;
    running.stop().await;
}

/// An app that notes how often the broker promised to keep what is published for it.
struct Promised {
    inbox: Inbox,
    secured: AtomicUsize,
}

#[async_trait]
impl Deliver for Promised {
    fn secured(&self) {
        self.secured.fetch_add(1, Ordering::SeqCst);
    }

    fn attached(&self) {
        self.inbox.attached();
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        self.inbox.deliver(msg).await
    }
}

impl Promised {
    fn new() -> Arc<Self> {
        Arc::new(Self { inbox: Inbox::new(), secured: AtomicUsize::new(0) })
    }

    fn secured(&self) -> usize {
        self.secured.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn positions_are_fixed_before_a_group_forms_and_never_replaced() {
    // Long enough that nobody takes it for the time of a rebalance.
    let Some(kafka) = KafkaOptions::new().set("group.initial.rebalance.delay.ms", "3000").start() else { return };
    let (address, topic, other) = (kafka.address(), fresh_name(), fresh_name());
    for topic in [&topic, &other] {
        make_topic(&address, topic, 2).await;
    }
    let broker = member(&address, &topic, &[]).await;
    let publish = async |topic: &str, text: &str| {
        publish_with(&*broker, topic, text, &[("partitionNumber", "0")]).await.unwrap();
    };
    publish(&topic, "before").await;

    let app = Promised::new();
    let running = Running::start(&broker, &topic, app.clone());
    until("the positions are fixed", async || app.secured() > 0).await;
    assert_eq!(app.inbox.attachments(), 0, "the group has not formed yet");
    assert_eq!(
        (committed(&address, &topic, &topic, 0).await, committed(&address, &topic, &topic, 1).await),
        (Some(1), Some(0))
    );
    publish(&topic, "one").await;
    app.inbox.wait_for(1, PATIENCE).await.unwrap();

    // A group with members takes positions from them only.
    let late = Promised::new();
    let more = Running::start(&broker, &other, late.clone());
    until("the other topic is read", async || late.inbox.attachments() > 0).await;
    assert_eq!(late.secured(), 0);
    publish(&other, "two").await;
    late.inbox.wait_for(1, PATIENCE).await.unwrap();
    running.stop().await;
    more.stop().await;

    // What was published while nobody was there is not skipped.
    publish(&topic, "three").await;
    let again = Promised::new();
    let running = Running::start(&broker, &topic, again.clone());
    until("the positions are found", async || again.secured() > 0).await;
    publish(&topic, "four").await;
    again.inbox.wait_for(2, PATIENCE).await.unwrap();
    running.stop().await;
    assert_eq!((app.inbox.texts(), late.inbox.texts()), (vec!["one".to_owned()], vec!["two".to_owned()]));
    assert_eq!(again.inbox.texts(), ["three", "four"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_first_group_of_a_new_cluster_was_promised_outlives_its_member() {
    for initial in ["newest", "oldest"] {
        // Brokers choose the first coordinator when they are asked, and make these partitions for it.
        let options = KafkaOptions::new().set("offsets.topic.num.partitions", "50");
        let Some(kafka) = options.set("group.initial.rebalance.delay.ms", "3000").start() else { return };
        let (address, topic) = (kafka.address(), fresh_name());
        let more = [("initialOffset", initial)];
        let broker = member(&address, &topic, &more).await;
        // Takes it and never says that it is done, should the group form in time.
        let app = Arc::new(Promised { inbox: Inbox::new().held(), secured: AtomicUsize::new(0) });
        let running = Running::start(&broker, &topic, app.clone());
        until("the positions are fixed", async || app.secured() > 0).await;
        publish_with(&*broker, &topic, initial, &[]).await.unwrap();
        running.abort().await;
        broker.close().await;

        let (next, inbox) = (member(&address, &topic, &more).await, Arc::new(Inbox::new()));
        let running = Running::start(&next, &topic, inbox.clone());
        inbox.wait_for(1, PATIENCE).await.unwrap();
        running.stop().await;
        assert_eq!(inbox.texts(), [initial]);
    }
}
