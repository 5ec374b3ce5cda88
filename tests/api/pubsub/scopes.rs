//! Which app may use which topic.

use mecha_tests::{Answer, Expect, HttpApp, Sidecar, component};
use serde_json::json;
use tonic::Code;

use super::EVENTS;
use crate::support::wait_subscriptions;

/// `(metadata, allowed topics, refused topics)` for app `app`.
type Case = (&'static [(&'static str, &'static str)], &'static [&'static str], &'static [&'static str]);

const PUBLISHING: [Case; 5] = [
    (&[("allowedTopics", "a,b")], &["a", "b"], &["c"]),
    (&[("publishingScopes", "app=a,b;other=c")], &["a", "b"], &["c"]),
    (&[("publishingScopes", "app=;other=c")], &[], &["a", "c"]),
    (&[("protectedTopics", "a"), ("publishingScopes", "other=a")], &["b"], &["a"]),
    (&[("protectedTopics", "a,b"), ("publishingScopes", "app=a")], &["a"], &["b"]),
];

#[tokio::test]
async fn publishers_are_held_to_their_topics() {
    for (metadata, allowed, refused) in PUBLISHING {
        let sidecar = Sidecar::with("app", &[component(EVENTS, "pubsub.in-memory", metadata)]).await;
        for api in sidecar.apis().await {
            for topic in allowed {
                api.publish(EVENTS, topic, "", "x", &[]).await.unwrap();
            }
            for topic in refused {
                let message = format!("topic {topic} is not allowed for app id app");
                let expected = Expect {
                    http: 403,
                    grpc: Code::PermissionDenied,
                    code: "ERR_PUBSUB_FORBIDDEN",
                    reason: "DAPR_PUBSUB_FORBIDDEN",
                    message: message.leak(),
                };
                api.publish(EVENTS, topic, "", "x", &[]).await.unwrap_err().is(&expected);
                let bulk = api.bulk_publish(EVENTS, topic, &[("1", "text/plain", "x")], &[]).await;
                bulk.unwrap_err().is(&expected);
            }
        }
    }
}

#[tokio::test]
async fn subscribers_are_held_to_their_topics() {
    let app = HttpApp::builder()
        .subscribe(&json!([
            {"pubsubname": EVENTS, "topic": "mine", "route": "/mine"},
            {"pubsubname": EVENTS, "topic": "other", "route": "/other"},
        ]))
        .on("POST /*", Answer::status(200))
        .start()
        .await;
    let document = component(EVENTS, "pubsub.in-memory", &[("subscriptionScopes", "app=mine")]);
    let sidecar = Sidecar::builder().app(&app).component(document).start().await;
    wait_subscriptions(&sidecar, 1).await;
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "other", "", "x", &[]).await.unwrap();
    api.publish(EVENTS, "mine", "", "x", &[]).await.unwrap();
    app.wait_calls("POST /mine", 1).await;
    assert!(app.calls("POST /other").is_empty());
}

#[tokio::test]
async fn topics_may_be_kept_apart_by_namespace() {
    let shared = tempfile::tempdir().unwrap();
    let path = shared.path().to_str().unwrap();
    let namespaced = component(EVENTS, "pubsub.mecha", &[("path", path), ("consumerID", "{namespace}")]);
    let plain = component(EVENTS, "pubsub.mecha", &[("path", path)]);
    let app = super::taking("topic").start().await;
    let inside = Sidecar::builder().app(&app).env("NAMESPACE", "blue").component(&namespaced).start().await;
    wait_subscriptions(&inside, 1).await;
    let outside = Sidecar::with("outside", &[plain]).await;
    let ([inside_api, _], [outside_api, _]) = (inside.apis().await, outside.apis().await);
    outside_api.publish(EVENTS, "topic", "", "not for blue", &[]).await.unwrap();
    inside_api.publish(EVENTS, "topic", "", "for blue", &[]).await.unwrap();
    outside_api.publish(EVENTS, "bluetopic", "", "also for blue", &[]).await.unwrap();
    let calls = app.wait_calls("POST /in", 2).await;
    let mut got: Vec<String> = calls.iter().map(|call| call.json()["data"].as_str().unwrap().to_owned()).collect();
    got.sort();
    assert_eq!(got, ["also for blue", "for blue"]);
    // The app sees the bare topic.
    let own = calls.iter().find(|call| call.json()["data"] == "for blue").unwrap();
    assert_eq!(own.json()["topic"], "topic");
}
