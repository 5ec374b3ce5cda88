//! Events for an app on gRPC.

use mecha_proto::runtime::{TopicRoutes, TopicRule, TopicSubscription};
use mecha_tests::{GrpcApp, Sidecar};
use tonic::Status;

use super::{EVENTS, KINDS, document};
use crate::support::wait_subscriptions;

async fn start(kind: &str, app: &GrpcApp) -> Sidecar {
    let builder = Sidecar::builder().grpc_app(app);
    let folder = builder.folder().join("broker");
    let sidecar = builder.component(document(kind, &folder)).start().await;
    wait_subscriptions(&sidecar, 1).await;
    sidecar
}

#[tokio::test]
async fn events_are_taken_apart() {
    for kind in KINDS {
        let app = GrpcApp::builder().topic(EVENTS, "topic", "/path").start().await;
        let sidecar = start(kind, &app).await;
        // `(content type, published, data)`
        let payloads: [(&str, &[u8], &[u8]); 6] = [
            ("application/json", br#"{"big":12345678901234567890,"n":1}"#, br#"{"big":12345678901234567890,"n":1}"#),
            ("text/plain", b"text", b"text"),
            ("application/xml", b"<a/>", b"<a/>"),
            ("application/octet-stream", b"\x00\xff", b"\x00\xff"),
            ("application/vnd.me+json", br#"{"n":1}"#, br#"{"n":1}"#),
            ("image/x-odd", b"odd", b"odd"),
        ];
        let mut seen = 0;
        for api in sidecar.apis().await {
            for (content_type, published, data) in payloads {
                api.publish(EVENTS, "topic", content_type, published, &[("cloudevent.subject", "s")]).await.unwrap();
                seen += 1;
                let call = app.wait_topics(seen).await.pop().unwrap();
                let event = &call.event;
                assert_eq!(event.data, data, "{kind} over {}: {content_type}", api.name());
                assert_eq!(event.data_content_type, content_type);
                assert_eq!((event.topic.as_str(), event.pubsub_name.as_str()), ("topic", EVENTS));
                assert_eq!(event.path, "/path");
                assert_eq!((event.source.as_str(), event.spec_version.as_str()), ("app", "1.0"));
                assert_eq!(event.r#type, "com.dapr.event.sent");
                assert!(!event.id.is_empty());
                let extensions = &event.extensions.as_ref().unwrap().fields;
                for name in ["topic", "pubsubname", "time", "traceid", "subject"] {
                    assert!(extensions.contains_key(name), "{name} in {extensions:?}");
                }
                for name in ["id", "source", "type", "specversion", "datacontenttype", "data", "data_base64"] {
                    assert!(!extensions.contains_key(name), "{name} in {extensions:?}");
                }
            }
        }
    }
}

#[tokio::test]
async fn rules_choose_the_path() {
    let app = GrpcApp::builder()
        .subscription(TopicSubscription {
            pubsub_name: EVENTS.to_owned(),
            topic: "topic".to_owned(),
            routes: Some(TopicRoutes {
                rules: vec![TopicRule { r#match: "event.data.n > 5".to_owned(), path: "/big".to_owned() }],
                default: "/small".to_owned(),
            }),
            ..TopicSubscription::default()
        })
        .start()
        .await;
    let sidecar = start("memory", &app).await;
    let [api, _] = sidecar.apis().await;
    for (data, path, count) in [(r#"{"n":9}"#, "/big", 1), (r#"{"n":1}"#, "/small", 2)] {
        api.publish(EVENTS, "topic", "application/json", data, &[]).await.unwrap();
        assert_eq!(app.wait_topics(count).await[count - 1].event.path, path);
    }
}

const POLICY: &str = "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata:\n  name: quick\nspec:\n  policies:\n    \
                      retries:\n      quick: {policy: constant, duration: 10ms, maxRetries: 2}\n  targets:\n    \
                      components:\n      events:\n        inbound: {retry: quick}\n";

/// `(what the app says to the first topic, attempts, dead letters)`
const VERDICTS: [(&str, usize, usize); 6] =
    [("success", 1, 0), ("retry", 3, 1), ("drop", 1, 1), ("unknown", 3, 1), ("error", 3, 1), ("unimplemented", 1, 0)];

#[tokio::test]
async fn the_verdict_decides() {
    for (verdict, attempts, dead) in VERDICTS {
        let app = GrpcApp::builder()
            .subscription(TopicSubscription {
                pubsub_name: EVENTS.to_owned(),
                topic: "topic".to_owned(),
                dead_letter_topic: "dead".to_owned(),
                ..TopicSubscription::default()
            })
            .topic(EVENTS, "dead", "/dead")
            .on_topic(move |event| match verdict {
                _ if event.path == "/dead" || event.data == "marker" => Ok(0),
                "success" => Ok(0),
                "retry" => Ok(1),
                "drop" => Ok(2),
                "unknown" => Ok(99),
                "unimplemented" => Err(Status::unimplemented("no")),
                _ => Err(Status::internal("no")),
            })
            .start()
            .await;
        let builder = Sidecar::builder().grpc_app(&app).component(POLICY);
        let sidecar = builder.component(crate::support::memory_pubsub(EVENTS)).start().await;
        wait_subscriptions(&sidecar, 2).await;
        let [api, _] = sidecar.apis().await;
        api.publish(EVENTS, "topic", "text/plain", "first", &[]).await.unwrap();
        api.publish(EVENTS, "topic", "text/plain", "marker", &[]).await.unwrap();
        let calls = app.wait_topics(attempts + dead + 1).await;
        let count =
            |path: &str| calls.iter().filter(|call| call.event.path == path && call.event.data == "first").count();
        assert_eq!((count(""), count("/dead")), (attempts, dead), "{verdict}");
    }
}

#[tokio::test]
async fn an_app_with_a_part_of_the_callbacks_is_fine() {
    let app = GrpcApp::builder().start().await;
    let sidecar = Sidecar::builder().grpc_app(&app).component(crate::support::memory_pubsub(EVENTS)).start().await;
    sidecar.http().get("/v1.0/healthz").send().await.expect(204);
}
