//! What was acknowledged is there after any number of crashes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use mecha_components_api::{CancellationToken, Metadata, Subscribe};
use mecha_testkit::Inbox;
use mecha_testkit::servers::{Redis, RedisOptions};
use parking_lot::Mutex;

use crate::support::{PATIENCE, get, publish, pubsub, put, state, until};

/// Acknowledged writes to reach.
const ACKNOWLEDGED: usize = 1000;
/// Writers at once.
const WRITERS: usize = 8;
/// Crashes of the server on the way.
const CRASHES: usize = 5;

/// Runs writers until enough is acknowledged, while the server crashes. `write` gets a fresh
/// name each time; gives the names that were acknowledged.
async fn under_crashes<F>(redis: &mut Redis, write: impl Fn(String) -> F + Clone + Send + 'static) -> Vec<String>
where
    F: Future<Output = bool> + Send,
{
    let acknowledged = Arc::new(Mutex::new(Vec::new()));
    let next = Arc::new(AtomicUsize::new(0));
    let mut writers = tokio::task::JoinSet::new();
    for _ in 0..WRITERS {
        let (acknowledged, next, write) = (Arc::clone(&acknowledged), Arc::clone(&next), write.clone());
        writers.spawn(async move {
            while acknowledged.lock().len() < ACKNOWLEDGED {
                let name = format!("n{}", next.fetch_add(1, Ordering::Relaxed));
                if write(name.clone()).await {
                    acknowledged.lock().push(name);
                }
            }
        });
    }
    for crash in 1..=CRASHES {
        let enough = crash * ACKNOWLEDGED / (CRASHES + 1);
        until("writes are acknowledged", async || acknowledged.lock().len() >= enough).await;
        redis.kill();
        redis.restart();
    }
    while let Some(joined) = writers.join_next().await {
        joined.unwrap();
    }
    redis.kill();
    redis.restart();
    let names = acknowledged.lock().clone();
    assert!(names.len() >= ACKNOWLEDGED);
    names
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_state_is_lost() {
    let Some(mut redis) = RedisOptions::new().durable().start() else { return };
    let store = state(&[("redisHost", &redis.address())]).await.unwrap();
    let writer = Arc::clone(&store);
    let names = under_crashes(&mut redis, move |name| {
        let store = Arc::clone(&writer);
        async move { store.set(put(&Metadata::new(), &name, &format!("\"{name}\""))).await.is_ok() }
    })
    .await;
    let mut lost = Vec::new();
    until("the store works again", async || store.ping().await.is_ok()).await;
    for name in names {
        match get(&*store, &name).await.unwrap() {
            Some((value, _)) => assert_eq!(value, format!("\"{name}\"")),
            None => lost.push(name),
        }
    }
    assert!(lost.is_empty(), "lost: {lost:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_message_is_lost() {
    let Some(mut redis) = RedisOptions::new().durable().start() else { return };
    let address = redis.address();
    let settings = [("redisHost", address.as_str()), ("processingTimeout", "1s"), ("redeliverInterval", "200ms")];
    let broker = pubsub(&settings).await.unwrap();
    let (inbox, stop) = (Arc::new(Inbox::new()), CancellationToken::new());
    let subscription = tokio::spawn({
        let (broker, inbox, stop) = (Arc::clone(&broker), Arc::clone(&inbox), stop.clone());
        let sub = Subscribe { topic: "ledger".to_owned(), metadata: Metadata::new(), bulk: None };
        async move { broker.subscribe(sub, inbox, stop).await }
    });
    let publisher = Arc::clone(&broker);
    let names = under_crashes(&mut redis, move |name| {
        let broker = Arc::clone(&publisher);
        async move { publish(&*broker, "ledger", &name).await.is_ok() }
    })
    .await;
    let missing = || {
        let seen: BTreeSet<String> = inbox.texts().into_iter().collect();
        names.iter().filter(|n| !seen.contains(*n)).count()
    };
    until("every acknowledged message is delivered", async || missing() == 0).await;
    stop.cancel();
    tokio::time::timeout(PATIENCE, subscription).await.unwrap().unwrap().unwrap();
}
