//! Which path of the app an event goes to.

use mecha_tests::{Answer, HttpApp};
use serde_json::json;

use super::{EVENTS, subscribed, with_events};

/// `(event, path)` for the rules below.
const ROUTED: [(&str, &str); 6] = [
    (r#"{"type":"order.big","data":{"total":200}}"#, "/typed"),
    (r#"{"type":"x","data":{"total":200}}"#, "/big"),
    (r#"{"type":"x","source":"web","data":{"total":1}}"#, "/web"),
    (r#"{"type":"x","source":"cli","data":{"total":1,"tags":["a","vip"]}}"#, "/vip"),
    (r#"{"type":"x","source":"cli","data":{"total":1,"tags":[]}}"#, "/rest"),
    (r#"{"type":"x","source":"cli","data":{"total":100,"tags":[]}}"#, "/rest"),
];

#[tokio::test]
async fn the_first_rule_that_matches_wins() {
    let app = HttpApp::builder()
        .subscribe(&json!([{
            "pubsubname": EVENTS, "topic": "topic",
            "routes": {
                "rules": [
                    {"match": "event.type == 'order.big'", "path": "/typed"},
                    {"match": "event.data.total > 100", "path": "/big"},
                    {"match": "event.source == \"web\"", "path": "/web"},
                    {"match": "'vip' in event.data.tags", "path": "/vip"},
                ],
                "default": "/rest",
            },
        }]))
        .on("POST /*", Answer::status(200))
        .start()
        .await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    for api in sidecar.apis().await {
        for (event, path) in ROUTED {
            app.forget();
            api.publish(EVENTS, "topic", "application/cloudevents+json", event, &[]).await.unwrap();
            let calls = app.wait_calls("POST /*", 1).await;
            assert_eq!(calls[0].target, path, "{event}");
        }
    }
}

#[tokio::test]
async fn no_rule_and_no_default_means_dropped() {
    let app = HttpApp::builder()
        .subscribe(&json!([
            {
                "pubsubname": EVENTS, "topic": "topic", "deadLetterTopic": "dead",
                "routes": {"rules": [{"match": "event.type == 'wanted'", "path": "/wanted"}]},
            },
            {"pubsubname": EVENTS, "topic": "dead", "route": "/dead"},
        ]))
        .on("POST /*", Answer::status(200))
        .start()
        .await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    let [api, _] = sidecar.apis().await;
    let publish = |kind: &'static str| {
        let api = api.clone();
        let event = json!({"type": kind, "id": kind, "data": 1}).to_string();
        async move { api.publish(EVENTS, "topic", "application/cloudevents+json", event, &[]).await.unwrap() }
    };
    publish("unwanted").await;
    publish("wanted").await;
    assert_eq!(app.wait_calls("POST /wanted", 1).await[0].json()["id"], "wanted");
    assert_eq!(app.wait_calls("POST /dead", 1).await[0].json()["id"], "unwanted");
}

#[tokio::test]
async fn a_rule_that_cannot_be_evaluated_ends_the_search() {
    let app = HttpApp::builder()
        .subscribe(&json!([
            {
                "pubsubname": EVENTS, "topic": "topic", "deadLetterTopic": "dead",
                "routes": {"rules": [{"match": "event.data.absent > 5", "path": "/a"}], "default": "/rest"},
            },
            {"pubsubname": EVENTS, "topic": "dead", "route": "/dead"},
        ]))
        .on("POST /*", Answer::status(200))
        .start()
        .await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "topic", "application/json", r#"{"n":1}"#, &[]).await.unwrap();
    app.wait_calls("POST /dead", 1).await;
    assert!(app.calls("POST /rest").is_empty() && app.calls("POST /a").is_empty());
}
