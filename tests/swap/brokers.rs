//! A broker moves to another one: consumers join the new one first, publishers switch, the old
//! one is read until it is empty. Nothing acknowledged is lost, nothing is buried.

use mecha_testkit::servers::{Kafka, Redis, absent};
use mecha_tests::{HttpApp, Sidecar, component, subscription};

use crate::load::{Events, Load, state};
use crate::support::{Documents, ended, generation, switched};

async fn moves(what: &str, documents_of: impl Fn(&std::path::Path) -> Vec<(&'static str, String)>) {
    let (events, app) = Events::app(HttpApp::builder());
    let app = app.start().await;
    let builder = Sidecar::builder().app_id("brokers").app(&app).switch("mecha-strict");
    let steps = documents_of(&builder.folder());
    let sidecar = builder
        .document("bus.yaml", &steps[0].1)
        .document("store.yaml", &component("store", "state.in-memory", &[]))
        .document("sub.yaml", &subscription("orders", "bus", "orders", "/events", "deadLetterTopic: dead\n"))
        .document("dead.yaml", &subscription("dead", "bus", "dead", "/dead", ""))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let calls = Load::start(sidecar.http_port(), 500, state("store"));
    let messages = events.publish(sidecar.http_port(), 200, "bus", "orders");
    messages.more(200).await;
    for (kind, document) in &steps[1..] {
        let before = generation(&http).await;
        documents.write("bus.yaml", document);
        let (receipt, took) = switched(&http, before, "Component", "bus").await;
        println!("{what}, to {kind}: seen after {took:?}, switched in {} ms", receipt["switchMs"]);
        messages.more(100).await;
        let receipt = ended(&http, before, "Component", "bus").await;
        assert_eq!((receipt["to"].as_str(), receipt["failed"].as_u64()), (Some(*kind), Some(0)), "{receipt}");
        assert_eq!(
            (receipt["outcome"].as_str(), receipt["emptied"].as_bool()),
            (Some("applied"), Some(true)),
            "{receipt}"
        );
        messages.more(100).await;
    }
    calls.end(&format!("state calls beside {what}")).await;
    messages.end(&format!("publishers over {what}")).await;
    events.all_arrived(what).await;
    assert!(events.taken() > 0);
}

fn embedded(folder: &std::path::Path) -> (&'static str, String) {
    let path = folder.join("broker");
    ("pubsub.mecha/v1", component("bus", "pubsub.mecha", &[("path", path.to_str().unwrap())]))
}

fn streams(redis: &Redis) -> (&'static str, String) {
    ("pubsub.redis/v1", component("bus", "pubsub.redis", &[("redisHost", &redis.address())]))
}

fn kafka_bus(kafka: &Kafka) -> (&'static str, String) {
    let metadata = [("brokers", &*kafka.address()), ("authType", "none"), ("initialOffset", "oldest")];
    ("pubsub.kafka/v1", component("bus", "pubsub.kafka", &metadata))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_gives_way_to_redis_streams_and_comes_back() {
    let Some(redis) = Redis::start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    moves("embedded broker and redis streams", |folder| vec![embedded(folder), streams(&redis), embedded(folder)])
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_broker_and_redis_streams_give_way_to_kafka_and_come_back() {
    let Some(redis) = Redis::start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let Some(kafka) = Kafka::shared() else {
        return absent("kafka", Kafka::missing().unwrap_or_default());
    };
    moves("embedded broker, kafka and redis streams", |folder| {
        vec![embedded(folder), kafka_bus(kafka), streams(&redis), kafka_bus(kafka)]
    })
    .await;
}
