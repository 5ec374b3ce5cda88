//! What was acknowledged is delivered after any number of crashes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mecha_testkit::Inbox;
use mecha_testkit::servers::{Kafka, KafkaOptions};
use parking_lot::Mutex;

use crate::support::{Running, attached, make_topic, publish_with, pubsub, until};

/// Publishers at once.
const WRITERS: usize = 4;

/// Acknowledged records to reach, and crashes of the broker on the way.
fn size() -> (usize, usize) {
    if std::env::var_os("MECHA_TEST_LONG").is_some_and(|v| v == "1") { (10_000, 20) } else { (1000, 2) }
}

fn missing(acknowledged: &[String], inbox: &Inbox) -> usize {
    let seen: BTreeSet<String> = inbox.texts().into_iter().collect();
    acknowledged.iter().filter(|name| !seen.contains(*name)).count()
}

/// Each key's records were delivered in their order, but for replays of what was seen before.
fn check_order(inbox: &Inbox) {
    let mut highest: BTreeMap<String, u64> = BTreeMap::new();
    let mut replayed = 0;
    for delivery in inbox.seen() {
        let partition = delivery.metadata.get("__partition").unwrap().to_owned();
        let offset: u64 = delivery.metadata.get("__offset").unwrap().parse().unwrap();
        let next = highest.get(&partition).map_or(0, |h| h + 1);
        assert!(offset <= next, "{partition}: {offset} came before {next}");
        replayed += usize::from(offset < next);
        highest.insert(partition, offset.max(next.saturating_sub(1)));
    }
    eprintln!("replayed records: {replayed} of {}", inbox.seen().len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_record_is_lost() {
    let Some(mut kafka): Option<Kafka> = KafkaOptions::new().start() else { return };
    let (enough, crashes) = size();
    let address = kafka.address();
    make_topic(&address, "ledger", 3).await;
    let quick = [("sessionTimeout", "3s"), ("heartbeatInterval", "500ms"), ("initialOffset", "oldest")];
    let broker = pubsub("app", &[&[("brokers", address.as_str())], &quick[..]].concat()).await.unwrap();
    let inbox = Arc::new(Inbox::new());
    let running = Running::start(&broker, "ledger", inbox.clone());
    attached(&inbox, 1).await;

    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let (acknowledged, next, broker) = (Arc::clone(&acknowledged), Arc::clone(&next), Arc::clone(&broker));
        writers.spawn(async move {
            let key = writer.to_string();
            while acknowledged.lock().len() < enough {
                let name = format!("n{}", next.fetch_add(1, Ordering::Relaxed));
                if publish_with(&*broker, "ledger", &name, &[("partitionKey", &key)]).await.is_ok() {
                    acknowledged.lock().push(name);
                }
                tokio::task::yield_now().await;
            }
        });
    }
    for crash in 1..=crashes {
        until("records are acknowledged", async || acknowledged.lock().len() >= crash * enough / (crashes + 1)).await;
        kafka.kill();
        kafka.restart();
    }
    while let Some(joined) = writers.join_next().await {
        joined.unwrap();
    }
    let acknowledged = acknowledged.lock().clone();
    until("every acknowledged record is delivered", async || missing(&acknowledged, &inbox) == 0).await;
    running.stop().await;
    check_order(&inbox);
}
