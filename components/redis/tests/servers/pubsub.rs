use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::{CancellationToken, Metadata, PubSub, Result, Subscribe, Verdict};
use mecha_testkit::Inbox;
use mecha_testkit::servers::Redis;
use tokio::task::JoinHandle;

use crate::support::{PATIENCE, publish, pubsub, until};

async fn member(redis: &Redis, more: &[(&str, &str)]) -> Arc<dyn PubSub> {
    let address = redis.address();
    let quick = [("redisHost", address.as_str()), ("processingTimeout", "500ms"), ("redeliverInterval", "100ms")];
    pubsub(&[&quick[..], more].concat()).await.unwrap()
}

fn subscribe(broker: &Arc<dyn PubSub>, inbox: &Arc<Inbox>, stop: &CancellationToken) -> JoinHandle<Result<()>> {
    let (broker, inbox, stop) = (Arc::clone(broker), Arc::clone(inbox), stop.clone());
    let sub = Subscribe { topic: "t".to_owned(), metadata: Metadata::new(), bulk: None };
    tokio::spawn(async move { broker.subscribe(sub, inbox, stop).await })
}

async fn attached(inbox: &Inbox, times: usize) {
    until("the subscription is in place", async || inbox.attachments() >= times).await;
}

/// Entries that were delivered and not acknowledged.
fn pending(redis: &Redis) -> String {
    redis.command(&["XPENDING", "t", "app"]).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_that_is_gone_is_made_again() {
    let Some(redis) = Redis::start() else { return };
    let broker = member(&redis, &[]).await;
    let (inbox, stop) = (Arc::new(Inbox::new()), CancellationToken::new());
    let task = subscribe(&broker, &inbox, &stop);
    attached(&inbox, 1).await;
    publish(&*broker, "t", "before").await.unwrap();
    inbox.wait_for(1, PATIENCE).await.unwrap();

    redis.command(&["FLUSHALL"]);
    publish(&*broker, "t", "after").await.unwrap();
    until("delivery goes on", async || inbox.texts().contains(&"after".to_owned())).await;

    redis.command(&["XGROUP", "DESTROY", "t", "app"]);
    publish(&*broker, "t", "again").await.unwrap();
    // From the beginning: what the group had is not known any more.
    until("delivery goes on", async || inbox.texts().contains(&"again".to_owned())).await;
    assert_eq!(inbox.texts(), ["before", "after", "after", "again"]);
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_is_acknowledged_after_its_verdict_only() {
    let Some(redis) = Redis::start() else { return };
    let broker = member(&redis, &[]).await;
    let (inbox, stop) = (Arc::new(Inbox::new().held()), CancellationToken::new());
    let task = subscribe(&broker, &inbox, &stop);
    attached(&inbox, 1).await;
    publish(&*broker, "t", "x").await.unwrap();
    inbox.wait_for(1, PATIENCE).await.unwrap();
    assert_eq!(pending(&redis), "1");
    // Longer than the processing timeout: who still has it at the app does not get it twice.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!((inbox.texts().len(), pending(&redis).as_str()), (1, "1"));
    inbox.release(1);
    until("it is acknowledged", async || pending(&redis) == "0").await;
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_consumer_had_goes_to_another() {
    let Some(redis) = Redis::start() else { return };
    let (first, second) = (member(&redis, &[]).await, member(&redis, &[]).await);
    let (dead, alive) = (Arc::new(Inbox::new().held()), Arc::new(Inbox::new()));
    let stop = CancellationToken::new();
    let task = subscribe(&first, &dead, &stop);
    attached(&dead, 1).await;
    for i in 0..5 {
        publish(&*first, "t", &i.to_string()).await.unwrap();
    }
    dead.wait_for(5, PATIENCE).await.unwrap();
    task.abort();
    let _ = task.await;
    first.close().await;

    let task = subscribe(&second, &alive, &stop);
    alive.wait_for(5, PATIENCE).await.unwrap();
    until("all is acknowledged", async || pending(&redis) == "0").await;
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_consumers_of_their_own_and_leave_when_they_stop() {
    let Some(redis) = Redis::start() else { return };
    let (one, two) = (member(&redis, &[]).await, member(&redis, &[]).await);
    let (inbox, stop) = (Arc::new(Inbox::new()), CancellationToken::new());
    let tasks = [subscribe(&one, &inbox, &stop), subscribe(&two, &inbox, &stop)];
    attached(&inbox, 2).await;
    let consumers = || redis.command(&["XINFO", "CONSUMERS", "t", "app"]).lines().filter(|l| *l == "name").count();
    for i in 0..50 {
        publish(&*one, "t", &i.to_string()).await.unwrap();
    }
    inbox.wait_for(50, PATIENCE).await.unwrap();
    until("both read", async || consumers() == 2).await;
    stop.cancel();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!((consumers(), pending(&redis).as_str()), (0, "0"));
    // One connection for calls each; those that read are gone.
    let reading = || redis.command(&["CLIENT", "LIST"]).matches("cmd=xreadgroup").count();
    until("the readers are gone", async || reading() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_is_at_the_app_than_it_may_have() {
    let Some(redis) = Redis::start() else { return };
    let broker = member(&redis, &[("concurrency", "3"), ("processingTimeout", "60s")]).await;
    let (inbox, stop) = (Arc::new(Inbox::new().held()), CancellationToken::new());
    let task = subscribe(&broker, &inbox, &stop);
    attached(&inbox, 1).await;
    for i in 0..20 {
        publish(&*broker, "t", &i.to_string()).await.unwrap();
    }
    inbox.wait_for(3, PATIENCE).await.unwrap();
    assert_eq!((inbox.most_in_flight(), pending(&redis).as_str()), (3, "3"), "read ahead");
    inbox.release(20);
    inbox.wait_for(20, PATIENCE).await.unwrap();
    assert_eq!(inbox.most_in_flight(), 3);
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_released_is_free_for_others_at_once() {
    let Some(redis) = Redis::start() else { return };
    let slow = [("processingTimeout", "1h"), ("redeliverInterval", "1h")];
    let (first, second) = (member(&redis, &slow).await, member(&redis, &slow).await);
    let (leaving, next) = (Arc::new(Inbox::with_script([], Verdict::Release)), Arc::new(Inbox::new()));
    let stop = CancellationToken::new();
    let task = subscribe(&first, &leaving, &stop);
    attached(&leaving, 1).await;
    publish(&*first, "t", "x").await.unwrap();
    leaving.wait_for(1, PATIENCE).await.unwrap();
    stop.cancel();
    task.await.unwrap().unwrap();

    let stop = CancellationToken::new();
    let task = subscribe(&second, &next, &stop);
    next.wait_for(1, PATIENCE).await.unwrap();
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn delivery_goes_on_after_a_frozen_server() {
    let Some(redis) = Redis::start() else { return };
    let broker = member(&redis, &[("readTimeout", "500ms")]).await;
    let (inbox, stop) = (Arc::new(Inbox::new()), CancellationToken::new());
    let task = subscribe(&broker, &inbox, &stop);
    attached(&inbox, 1).await;
    redis.freeze();
    // Longer than a silent read is borne, so that the connection is given up.
    until("publishing fails", async || publish(&*broker, "t", "lost?").await.is_err()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    redis.thaw();
    until("publishing works again", async || publish(&*broker, "t", "after").await.is_ok()).await;
    until("delivery goes on", async || inbox.texts().contains(&"after".to_owned())).await;
    stop.cancel();
    task.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_stops_while_the_server_is_frozen() {
    let Some(redis) = Redis::start() else { return };
    let broker = member(&redis, &[("readTimeout", "500ms")]).await;
    let (inbox, stop) = (Arc::new(Inbox::new()), CancellationToken::new());
    let task = subscribe(&broker, &inbox, &stop);
    attached(&inbox, 1).await;
    redis.freeze();
    stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), task).await.expect("it stops").unwrap().unwrap();
}
