//! A broker moves to another one: consumers join the new one first, publishers switch, the old
//! one is read until it is empty. Nothing acknowledged is lost, nothing is buried.

use mecha_testkit::servers::{Kafka, Redis, absent};
use mecha_tests::{HttpApp, Sidecar, component, subscription};

use crate::load::{Events, Load, state};
use crate::support::{Documents, ended, generation, switched};

/// Topics beside the first one.
const TOPICS: [&str; 1] = ["parcels"];

/// Another app with a sidecar of its own, on the same broker: its groups are new wherever it comes.
struct Auditors {
    sidecar: Sidecar,
    _app: HttpApp,
}

impl Auditors {
    /// It takes what `ledgers` hold, and has ledgers of its own.
    async fn start(bus: &str, ledgers: &[(&str, &Events)]) -> (Self, Vec<Events>) {
        let (mut app, mut own) = (HttpApp::builder(), Vec::new());
        let mut builder = Sidecar::builder().app_id("auditors").switch("mecha-strict").document("bus.yaml", bus);
        for (topic, events) in ledgers {
            let route = format!("/{topic}");
            let (mine, next) = events.again_at(app, &route);
            (app, builder) =
                (next, builder.document(&format!("{topic}.yaml"), &subscription(topic, "bus", topic, &route, "")));
            own.push(mine);
        }
        let app = app.start().await;
        let sidecar = builder.app(&app).start().await;
        (Self { sidecar, _app: app }, own)
    }
}

/// Leads the broker of a sidecar, and of one more app, from document to document.
async fn moves(what: &str, documents_of: impl Fn(&std::path::Path) -> Vec<(&'static str, String)>) {
    let (events, mut app) = Events::app(HttpApp::builder());
    let mut more = Vec::new();
    for topic in TOPICS {
        let (events, next) = Events::at(app, &format!("/{topic}"));
        (app, more) = (next, more.into_iter().chain([events]).collect::<Vec<_>>());
    }
    let app = app.start().await;
    let mut builder = Sidecar::builder().app_id("brokers").app(&app).switch("mecha-strict");
    let steps = documents_of(&builder.folder());
    for topic in TOPICS {
        let document = subscription(topic, "bus", topic, &format!("/{topic}"), "");
        builder = builder.document(&format!("{topic}.yaml"), &document);
    }
    let sidecar = builder
        .document("bus.yaml", &steps[0].1)
        .document("store.yaml", &component("store", "state.in-memory", &[]))
        .document("sub.yaml", &subscription("orders", "bus", "orders", "/events", "deadLetterTopic: dead\n"))
        .document("dead.yaml", &subscription("dead", "bus", "dead", "/dead", ""))
        .start()
        .await;
    let ledgers: Vec<_> = [("orders", &events)].into_iter().chain(TOPICS.into_iter().zip(&more)).collect();
    let (auditors, audited) = Auditors::start(&steps[0].1, &ledgers).await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let (their_http, their_documents) = (auditors.sidecar.http(), Documents::of(&auditors.sidecar));
    let calls = Load::start(sidecar.http_port(), 500, state("store"));
    let messages = events.publish(sidecar.http_port(), 200, "bus", "orders");
    let others: Vec<_> = TOPICS.into_iter().zip(&more).collect();
    let others: Vec<_> =
        others.into_iter().map(|(topic, events)| events.publish(sidecar.http_port(), 20, "bus", topic)).collect();
    messages.more(200).await;
    for (kind, document) in &steps[1..] {
        let (before, theirs) = (generation(&http).await, generation(&their_http).await);
        documents.write("bus.yaml", document);
        let (receipt, took) = switched(&http, before, "Component", "bus").await;
        println!("{what}, to {kind}: seen after {took:?}, switched in {} ms", receipt["switchMs"]);
        // Once publishers have switched: nothing comes to the old one that they would leave behind.
        their_documents.write("bus.yaml", document);
        messages.more(100).await;
        for (http, before) in [(&http, before), (&their_http, theirs)] {
            let receipt = ended(http, before, "Component", "bus").await;
            assert_eq!((receipt["to"].as_str(), receipt["failed"].as_u64()), (Some(*kind), Some(0)), "{receipt}");
            assert_eq!(
                (receipt["outcome"].as_str(), receipt["emptied"].as_bool()),
                (Some("applied"), Some(true)),
                "{receipt}"
            );
        }
        messages.more(100).await;
    }
    calls.end(&format!("state calls beside {what}")).await;
    messages.end(&format!("publishers over {what}")).await;
    for others in others {
        others.end(&format!("publishers to other topics over {what}")).await;
    }
    assert!(events.taken() > 0);
    for events in [&events].into_iter().chain(&more).chain(&audited) {
        events.all_arrived(what).await;
    }
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

/// The broker that is left is in use again before it was read to its end: who read it leaves it to the ones that came
/// with the way back, and neither change holds the other up.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_that_is_left_and_taken_up_again_at_once_loses_nothing() {
    let Some(redis) = Redis::start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let (events, app) = Events::app(HttpApp::builder());
    let app = app.start().await;
    let builder = Sidecar::builder().app_id("to-and-fro").app(&app).switch("mecha-strict");
    let steps = [streams(&redis), embedded(&builder.folder())];
    let sidecar = builder
        .document("bus.yaml", &steps[1].1)
        .document("sub.yaml", &subscription("orders", "bus", "orders", "/events", "deadLetterTopic: dead\n"))
        .document("dead.yaml", &subscription("dead", "bus", "dead", "/dead", ""))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let messages = events.publish(sidecar.http_port(), 200, "bus", "orders");
    messages.more(200).await;
    let mut changes = Vec::new();
    for (kind, document) in &steps {
        let before = generation(&http).await;
        documents.write("bus.yaml", document);
        switched(&http, before, "Component", "bus").await;
        changes.push((before, kind));
        messages.more(50).await;
    }
    for (before, kind) in changes {
        let receipt = ended(&http, before, "Component", "bus").await;
        println!("to {kind}: {} ms in all, emptied {}", receipt["durationMs"], receipt["emptied"]);
        assert_eq!((receipt["to"].as_str(), receipt["failed"].as_u64()), (Some(*kind), Some(0)), "{receipt}");
        assert_eq!(receipt["outcome"], "applied", "{receipt}");
        // Nobody waits until the embedded broker is silent, which under load would be never.
        let taken_over = receipt["reason"].as_str().is_some_and(|reason| reason.contains("came back to it"));
        assert_eq!(taken_over, *kind == steps[0].0, "{receipt}");
        assert!(receipt["durationMs"].as_f64() < Some(60_000.0), "{receipt}");
    }
    messages.end("publishers to and fro").await;
    events.all_arrived("a way to and fro").await;
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
