//! Many events at once, out and in.

use mecha_proto::runtime::topic_event_bulk_request_entry::Event;
use mecha_proto::runtime::{
    BulkSubscribeConfig, TopicEventBulkResponse, TopicEventBulkResponseEntry, TopicRoutes, TopicSubscription,
};
use mecha_tests::{Answer, Call, GrpcApp, HttpApp, Sidecar, eventually};
use serde_json::{Value, json};

use super::{EVENTS, document, event, subscribed, taking, with_events};
use crate::support::wait_subscriptions;

#[tokio::test]
async fn a_bulk_is_published_event_by_event() {
    for kind in super::KINDS {
        let app = taking("topic").start().await;
        let sidecar = subscribed(with_events(kind, &app)).await;
        for api in sidecar.apis().await {
            app.forget();
            let entries = [
                ("1", "text/plain", "one"),
                ("2", "application/json", r#"{"n":2}"#),
                ("3", "application/octet-stream", "AP8="),
                ("4", "application/cloudevents+json", r#"{"id":"four","data":4}"#),
            ];
            let failed = api.bulk_publish(EVENTS, "topic", &entries, &[("cloudevent.subject", "all")]).await.unwrap();
            assert!(failed.is_empty(), "{failed:?}");
            let mut calls: Vec<Value> = app.wait_calls("POST /in", 4).await.iter().map(event).collect();
            calls.sort_by_key(|got| got["datacontenttype"].to_string() + &got["id"].to_string());
            let find = |content_type: &str| {
                calls.iter().find(|got| got["datacontenttype"] == content_type).unwrap_or_else(|| panic!("{calls:?}"))
            };
            assert_eq!(find("text/plain")["data"], "one");
            assert_eq!(find("application/json")["data"], json!({"n": 2}));
            assert_eq!(find("application/octet-stream")["data_base64"], "AP8=");
            assert!(calls.iter().any(|got| got["id"] == "four"), "{calls:?}");
            // Request metadata reaches every entry.
            assert_eq!(find("text/plain")["subject"], "all", "{kind} over {}", api.name());
            let mut ids: Vec<String> = calls.iter().map(|got| got["id"].to_string()).collect();
            ids.dedup();
            assert_eq!(ids.len(), 4, "an event each");
        }
    }
}

/// An app that takes many at once and answers entry by entry.
fn bulk_app(answer: fn(&str) -> Value) -> mecha_tests::HttpAppBuilder {
    HttpApp::builder()
        .subscribe(&json!([
            {
                "pubsubname": EVENTS, "topic": "topic", "route": "/bulk", "deadLetterTopic": "dead",
                "bulkSubscribe": {"enabled": true, "maxMessagesCount": 5, "maxAwaitDurationMs": 200},
            },
            {"pubsubname": EVENTS, "topic": "dead", "route": "/dead"},
        ]))
        .on_call("POST /bulk", move |call: Call| async move {
            let statuses: Vec<Value> = call.json()["entries"]
                .as_array()
                .unwrap()
                .iter()
                .map(|entry| {
                    let data = entry["event"]["data"].as_str().unwrap_or_default();
                    json!({"entryId": entry["entryId"], "status": answer(data)})
                })
                .collect();
            Answer::json(&json!({"statuses": statuses}))
        })
        .on("POST /dead", Answer::status(200))
}

fn entries_of(calls: &[Call]) -> Vec<Value> {
    calls.iter().flat_map(|call| call.json()["entries"].as_array().cloned().unwrap()).collect()
}

#[tokio::test]
async fn events_arrive_in_bulk() {
    let app = bulk_app(|_| json!("SUCCESS")).start().await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    let [api, _] = sidecar.apis().await;
    for n in 0..12 {
        api.publish(EVENTS, "topic", "text/plain", format!("{n}"), &[]).await.unwrap();
    }
    let calls = eventually("all entries", || async {
        let calls = app.calls("POST /bulk");
        (entries_of(&calls).len() >= 12).then_some(calls)
    })
    .await;
    assert!(calls.iter().all(|call| call.json()["entries"].as_array().unwrap().len() <= 5));
    let body = calls[0].json();
    assert_eq!(calls[0].header("content-type"), "application/json");
    assert_eq!(body["type"], "com.dapr.event.sent.bulk");
    assert_eq!((&body["topic"], &body["pubsubname"]), (&json!("topic"), &json!(EVENTS)));
    assert!(body["id"].is_string());
    let entry = &body["entries"][0];
    assert_eq!(entry["contentType"], "application/cloudevents+json");
    assert_eq!(entry["event"]["data"], "0");
    assert!(entry["entryId"].is_string());
}

#[tokio::test]
async fn verdicts_count_per_entry() {
    let policy = "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata:\n  name: quick\nspec:\n  policies:\n    \
                  retries:\n      quick: {policy: constant, duration: 10ms, maxRetries: 2}\n  targets:\n    \
                  components:\n      events:\n        inbound: {retry: quick}\n";
    let app = bulk_app(|data| json!(if data == "bad" { "RETRY" } else { "SUCCESS" })).start().await;
    let sidecar = subscribed(with_events("memory", &app).component(policy)).await;
    let [api, _] = sidecar.apis().await;
    for text in ["good", "bad", "good"] {
        api.publish(EVENTS, "topic", "text/plain", text, &[]).await.unwrap();
    }
    let dead = app.wait_calls("POST /dead", 1).await;
    assert_eq!(event(&dead[0])["data"], "bad");
    let seen = |data: &str| entries_of(&app.calls("POST /bulk")).iter().filter(|e| e["event"]["data"] == data).count();
    assert_eq!((seen("bad"), seen("good")), (3, 2));
}

#[tokio::test]
async fn a_missing_status_is_a_retry() {
    let app = bulk_app(|_| json!("")).start().await;
    let policy = "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata:\n  name: quick\nspec:\n  policies:\n    \
                  retries:\n      quick: {policy: constant, duration: 10ms, maxRetries: 1}\n  targets:\n    \
                  components:\n      events:\n        inbound: {retry: quick}\n";
    let sidecar = subscribed(with_events("memory", &app).component(policy)).await;
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "topic", "text/plain", "x", &[]).await.unwrap();
    app.wait_calls("POST /dead", 1).await;
    assert_eq!(app.calls("POST /bulk").len(), 2);
}

#[tokio::test]
async fn a_grpc_app_gets_bulks_too() {
    let folder = tempfile::tempdir().unwrap();
    let app = GrpcApp::builder()
        .subscription(TopicSubscription {
            pubsub_name: EVENTS.to_owned(),
            topic: "topic".to_owned(),
            routes: Some(TopicRoutes { rules: Vec::new(), default: "/bulk".to_owned() }),
            bulk_subscribe: Some(BulkSubscribeConfig {
                enabled: true,
                max_messages_count: 10,
                max_await_duration_ms: 100,
            }),
            ..TopicSubscription::default()
        })
        .on_bulk(|events| {
            let statuses = events
                .entries
                .iter()
                .map(|entry| TopicEventBulkResponseEntry { entry_id: entry.entry_id.clone(), status: 0 })
                .collect();
            Ok(TopicEventBulkResponse { statuses })
        })
        .start()
        .await;
    let sidecar = Sidecar::builder().grpc_app(&app).component(document("memory", folder.path())).start().await;
    wait_subscriptions(&sidecar, 1).await;
    let [api, _] = sidecar.apis().await;
    for n in 0..4 {
        api.publish(EVENTS, "topic", "application/json", format!("{{\"n\":{n}}}"), &[]).await.unwrap();
    }
    let bulks = eventually("four entries", || async {
        let bulks = app.bulks();
        (bulks.iter().map(|bulk| bulk.entries.len()).sum::<usize>() >= 4).then_some(bulks)
    })
    .await;
    assert_eq!(
        (bulks[0].topic.as_str(), bulks[0].pubsub_name.as_str(), bulks[0].path.as_str()),
        ("topic", EVENTS, "/bulk")
    );
    let Some(Event::CloudEvent(first)) = &bulks[0].entries[0].event else { panic!("{bulks:?}") };
    assert_eq!(first.data, "{\"n\":0}");
    assert_eq!(first.data_content_type, "application/json");
}
