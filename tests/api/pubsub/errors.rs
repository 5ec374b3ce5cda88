//! What a publisher is told when something is wrong.

use mecha_proto::runtime::{BulkPublishRequest, PublishEventRequest};
use mecha_tests::{Expect, Sidecar};
use serde_json::json;
use tonic::Code;

use super::EVENTS;
use crate::support::{memory_pubsub, memory_store};

async fn with_pubsub() -> Sidecar {
    Sidecar::with("app", &[memory_pubsub(EVENTS)]).await
}

#[tokio::test]
async fn an_unknown_pubsub_is_named() {
    // Also when there is none at all.
    for documents in [vec![memory_pubsub(EVENTS)], vec![memory_store("store")]] {
        let sidecar = Sidecar::with("app", &documents).await;
        for api in sidecar.apis().await {
            let expected = Expect {
                http: 404,
                grpc: Code::InvalidArgument,
                code: "ERR_PUBSUB_NOT_FOUND",
                reason: "DAPR_PUBSUB_NOT_FOUND",
                message: "pubsub nowhere is not found",
            };
            let fault = api.publish("nowhere", "topic", "", "x", &[]).await.unwrap_err();
            fault.is(&expected);
            assert!(fault.detail("ResourceInfo").is_none(), "{fault:?}");
            assert_eq!(fault.detail("ErrorInfo").unwrap()["metadata"]["appID"], "app");
            api.bulk_publish("nowhere", "topic", &[("1", "text/plain", "x")], &[]).await.unwrap_err().is(&expected);
        }
    }
}

#[tokio::test]
async fn a_topic_is_needed() {
    let sidecar = with_pubsub().await;
    let expected = Expect {
        http: 404,
        grpc: Code::InvalidArgument,
        code: "ERR_TOPIC_NAME_EMPTY",
        reason: "DAPR_PUBSUB_TOPIC_NAME_EMPTY",
        message: "topic is empty in pubsub events",
    };
    let reply = sidecar.http().post(format!("/v1.0/publish/{EVENTS}/"), "x").send().await.expect(404);
    assert_eq!((reply.code(), reply.message()), (expected.code.to_owned(), expected.message.to_owned()));
    for api in sidecar.apis().await {
        if !api.is_http() {
            api.publish(EVENTS, "", "", "x", &[]).await.unwrap_err().is(&expected);
            api.bulk_publish(EVENTS, "", &[("1", "text/plain", "x")], &[]).await.unwrap_err().is(&expected);
        }
    }
    let mut grpc = sidecar.grpc().await;
    let status = grpc.publish_event(PublishEventRequest::default()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::InvalidArgument, "pubsub name is empty"));
}

#[tokio::test]
async fn metadata_is_checked() {
    let sidecar = with_pubsub().await;
    for api in sidecar.apis().await {
        for metadata in
            [("rawPayload", "yes"), ("rawPayload", "maybe"), ("ttlInSeconds", "soon"), ("ttlInSeconds", "1.5")]
        {
            let fault = api.publish(EVENTS, "topic", "", "x", &[metadata]).await.unwrap_err();
            fault.is(&Expect {
                http: 400,
                grpc: Code::InvalidArgument,
                code: "ERR_PUBSUB_REQUEST_METADATA",
                reason: "DAPR_PUBSUB_METADATA_DESERIALIZATION",
                message: "failed deserializing metadata. Error: …",
            });
        }
        for fine in [("rawPayload", "1"), ("rawPayload", "F"), ("rawPayload", "false"), ("ttlInSeconds", "5")] {
            api.publish(EVENTS, "topic", "", "x", &[fine]).await.unwrap();
        }
        let fault = api.publish(EVENTS, "topic", "", "x", &[("key", "a\r\nb")]).await.unwrap_err();
        assert!(fault.http == Some(400) || fault.grpc == Some(Code::InvalidArgument), "{fault:?}");
    }
}

#[tokio::test]
async fn an_event_must_be_an_object() {
    let sidecar = with_pubsub().await;
    for api in sidecar.apis().await {
        for text in ["5", "[]", "\"text\"", "{broken", "null"] {
            let fault = api.publish(EVENTS, "topic", "application/cloudevents+json", text, &[]).await.unwrap_err();
            fault.is(&Expect {
                http: 500,
                grpc: Code::InvalidArgument,
                code: "ERR_PUBSUB_CLOUD_EVENTS_SER",
                reason: "DAPR_PUBSUB_CLOUD_EVENT_CREATION",
                message: "cannot create cloudevent…",
            });
        }
    }
}

#[tokio::test]
async fn entries_of_a_bulk_are_checked_before_any_is_published() {
    let sidecar = with_pubsub().await;
    let entry = |id: &str, content_type: &str, event: serde_json::Value| json!({"entryId": id, "contentType": content_type, "event": event});
    let good = entry("good", "text/plain", json!("x"));
    let lists = [
        json!({"not": "a list"}),
        json!([good, {"contentType": "text/plain", "event": "x"}]),
        json!([good, {"entryId": "2", "event": "x"}]),
        json!([good, entry("", "text/plain", json!("x"))]),
        json!([good, entry("good", "text/plain", json!("x"))]),
        json!([good, entry("2", "text/plain", json!({"no": "text"}))]),
        json!([good, entry("2", "application/octet-stream", json!("no base64!"))]),
        json!([good, entry("2", "application/cloudevents+json", json!("no object"))]),
        json!([good, entry("2", "image/png", json!("x"))]),
    ];
    for list in lists {
        let reply = sidecar.http().post_json(format!("/v1.0/publish/bulk/{EVENTS}/topic"), &list).send().await;
        assert_eq!(reply.status, 400, "{list}: {}", reply.text());
        assert_eq!(reply.code(), "ERR_PUBSUB_EVENTS_SER", "{list}");
    }
    let [_, grpc] = sidecar.apis().await;
    for entries in [&[("", "text/plain", "x")][..], &[("1", "text/plain", "x"), ("1", "text/plain", "y")][..]] {
        let fault = grpc.bulk_publish(EVENTS, "topic", entries, &[]).await.unwrap_err();
        assert_eq!(fault.grpc, Some(Code::InvalidArgument), "{fault:?}");
    }
    let labels = [("component", EVENTS), ("topic", "topic")];
    let metrics = sidecar.metrics().await;
    assert_eq!(crate::support::series(&metrics, "dapr_component_pubsub_egress_bulk_count", &labels), None);
}

#[tokio::test]
async fn the_alpha_name_of_bulk_publish_works_too() {
    let sidecar = with_pubsub().await;
    let list = json!([{"entryId": "1", "contentType": "text/plain", "event": "x"}]);
    sidecar.http().post_json(format!("/v1.0-alpha1/publish/bulk/{EVENTS}/topic"), &list).send().await.expect(204);
    let request = BulkPublishRequest {
        pubsub_name: EVENTS.to_owned(),
        topic: "topic".to_owned(),
        ..BulkPublishRequest::default()
    };
    sidecar.grpc().await.bulk_publish_event_alpha1(request).await.unwrap();
}
