//! An input binding is swapped: what the app is busy with ends, and a source that cannot be takes nothing away.

use std::time::Duration;

use mecha_testkit::servers::{Kafka, KafkaOptions, absent};
use mecha_tests::{Answer, Call, HttpApp, Sidecar, component, wait_until};

use crate::load::Events;
use crate::support::{Documents, LIMIT, ended, generation, refused, switched};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schedule_is_edited_while_the_app_handles_a_tick() {
    let app = HttpApp::builder()
        .on("OPTIONS /tick", Answer::status(200))
        .on_call("POST /tick", |_: Call| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Answer::status(200)
        })
        .on("OPTIONS /tock", Answer::status(200))
        .on("POST /tock", Answer::status(200))
        .start()
        .await;
    let tick =
        |schedule: &str, route: &str| component("tick", "bindings.cron", &[("schedule", schedule), ("route", route)]);
    let sidecar = Sidecar::builder()
        .app_id("schedule")
        .app(&app)
        .switch("mecha-strict")
        .document("tick.yaml", &tick("@every 1s", "/tick"))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    wait_until(LIMIT, "a tick", async || app.in_flight() > 0).await;
    let before = generation(&http).await;
    documents.write("tick.yaml", &tick("@every 200ms", "/tock"));
    let receipt = ended(&http, before, "Component", "tick").await;
    assert_eq!((receipt["outcome"].as_str(), receipt["failed"].as_u64()), (Some("applied"), Some(0)), "{receipt}");
    wait_until(LIMIT, "ticks of the new schedule", async || app.calls("POST /tock").len() > 2).await;
    // The old one is gone, and what the app had of it was waited for.
    let old = app.calls("POST /tick").len();
    let new = app.calls("POST /tock").len();
    wait_until(LIMIT, "more ticks of the new one", async || app.calls("POST /tock").len() > new + 10).await;
    assert_eq!(app.calls("POST /tick").len(), old, "the old schedule calls nobody any more");
    assert!(!sidecar.log().contains("error from app consumer"), "{}", sidecar.log());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_that_cannot_be_takes_nothing_away() {
    let app = HttpApp::builder().on("OPTIONS /tick", Answer::status(200)).on("POST /tick", Answer::status(200));
    let app = app.start().await;
    let sidecar = Sidecar::builder()
        .app_id("schedule")
        .app(&app)
        .switch("mecha-strict")
        .document("tick.yaml", &component("tick", "bindings.cron", &[("schedule", "@every 100ms")]))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let goes_on = async || {
        let before = app.calls("POST /tick").len();
        wait_until(LIMIT, "more ticks", async || app.calls("POST /tick").len() > before + 3).await;
    };
    goes_on().await;
    documents.write("tick.yaml", &component("tick", "bindings.cron", &[("schedule", "now and then")]));
    let reason = refused(&http, "Component", "tick").await;
    assert!(reason.contains("invalid schedule format"), "{reason}");
    goes_on().await;
    // Gone, and back.
    let before = generation(&http).await;
    documents.remove("tick.yaml");
    ended(&http, before, "Component", "tick").await;
    let (calls, before) = (app.calls("POST /tick").len(), generation(&http).await);
    documents.write("tick.yaml", &component("tick", "bindings.cron", &[("schedule", "@every 100ms")]));
    ended(&http, before, "Component", "tick").await;
    wait_until(LIMIT, "ticks again", async || app.calls("POST /tick").len() > calls).await;
}

/// What is written to the topic of before is read until nothing is left there, and what is written to the next one
/// comes although its group begins at the newest record and forms late.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_source_moves_to_another_topic_of_kafka_and_back_under_load() {
    let Some(kafka) = KafkaOptions::new().set("group.initial.rebalance.delay.ms", "3000").start() else {
        return absent("kafka", Kafka::missing().unwrap_or_default());
    };
    let address = kafka.address();
    let line = |topic: &str| {
        let metadata = [
            ("brokers", &*address),
            ("authType", "none"),
            ("topics", topic),
            ("publishTopic", topic),
            ("consumerGroup", topic),
            ("direction", "input,output"),
        ];
        component("line", "bindings.kafka", &metadata)
    };
    let (events, app) = Events::source(HttpApp::builder(), "line");
    let app = app.start().await;
    let builder = Sidecar::builder().app_id("lines").app(&app).switch("mecha-strict");
    let sidecar = builder.document("line.yaml", &line("one")).start().await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    // What is written before its group has begun is not for it.
    let first = serde_json::json!({"operation": "create", "data": {"id": 1_000_000}});
    let begun = async || {
        http.post_json("/v1.0/bindings/line", &first).send().await.expect(204);
        events.taken() > 0
    };
    wait_until(LIMIT, "the source to read", begun).await;
    let calls = events.create(sidecar.http_port(), 200, "line");
    calls.more(100).await;
    for topic in ["two", "three", "one"] {
        let before = generation(&http).await;
        documents.write("line.yaml", &line(topic));
        let (receipt, took) = switched(&http, before, "Component", "line").await;
        println!("a source to topic {topic}: seen after {took:?}, switched in {} ms", receipt["switchMs"]);
        calls.more(50).await;
    }
    let before = generation(&http).await;
    documents.write("line.yaml", &line("two"));
    let receipt = ended(&http, before, "Component", "line").await;
    assert_eq!((receipt["outcome"].as_str(), receipt["failed"].as_u64()), (Some("applied"), Some(0)), "{receipt}");
    calls.end("calls of a binding whose source moves").await;
    events.all_arrived("a source that moves").await;
}
