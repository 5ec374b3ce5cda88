use std::sync::Arc;

use bytes::Bytes;
use mecha_components_api::{ErrorKind, Metadata, PubSubCaps};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::codes::Code;
use crate::cx::{Cx, Front};
use crate::error::{ApiError, Detail, Shape};
use crate::pubsub::testing::*;
use crate::pubsub::{BulkPublishEntry, FailedEntry, PublishRequest};
use crate::store::Degraded;
use crate::store::{Block, Info};
use crate::trace::{FinishedSpan, Sampler, SpanKind, SpanSink, TraceContext, Tracer};

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn request(data: &str, metadata: &[(&str, &str)]) -> PublishRequest {
    PublishRequest {
        pubsub: "bus".into(),
        topic: "orders".into(),
        data: Bytes::copy_from_slice(data.as_bytes()),
        content_type: Some("application/json".into()),
        metadata: metadata.iter().copied().collect(),
    }
}

fn entry(id: &str, event: &str, metadata: &[(&str, &str)]) -> BulkPublishEntry {
    BulkPublishEntry {
        entry_id: id.into(),
        event: Bytes::copy_from_slice(event.as_bytes()),
        content_type: "application/json".into(),
        metadata: metadata.iter().copied().collect(),
    }
}

fn cx(front: Front) -> Cx {
    let mut cx = Cx::new(front);
    cx.trace.traceparent = Some(PARENT.into());
    cx.trace.tracestate = Some("a=1".into());
    cx
}

fn event(sent: &Sent) -> Value {
    serde_json::from_slice(&sent.data).unwrap()
}

fn reason(e: &ApiError) -> (&str, Vec<(&str, &str)>) {
    match e.details().last().unwrap() {
        Detail::ErrorInfo { reason, metadata } => {
            let facts = metadata.as_ref().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
            (reason, facts)
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_published_event_carries_its_trace_and_the_broker_gets_the_metadata() {
    let rig = Rig::new(Setup { prefix: Some("ns"), ..Setup::default() }).await;
    rig.api.publish(&cx(Front::Http), request("{\"a\":1.50}", &[("key", "k")])).await.unwrap();
    let sent = rig.sent().pop().unwrap();
    let e = event(&sent);
    assert_eq!((sent.topic.as_str(), &e["topic"], sent.content_type.clone()), ("nsorders", &json!("orders"), None));
    assert_eq!((&e["traceparent"], &e["traceid"], &e["tracestate"]), (&json!(PARENT), &json!(PARENT), &json!("a=1")));
    assert!(std::str::from_utf8(&sent.data).unwrap().contains(r#""data":{"a":1.50}"#));
    assert_eq!(sent.metadata.get("key"), Some("k"));
    rig.api.publish(&Cx::new(Front::Http), request("1", &[])).await.unwrap();
    assert_eq!(event(&rig.sent()[1])["traceparent"], json!(""));
    assert_eq!(rig.value("dapr_component_pubsub_egress_count", r#"success="true",topic="orders""#), 2);
}

#[tokio::test]
async fn raw_payloads_are_untouched_and_grpc_adds_the_trace() {
    let rig = Rig::new(Setup::default()).await;
    let raw = || request("\u{0}x", &[("rawPayload", "true")]);
    rig.api.publish(&cx(Front::Http), raw()).await.unwrap();
    rig.api.publish(&cx(Front::Grpc), raw()).await.unwrap();
    let sent = rig.sent();
    assert!(sent.iter().all(|s| s.data == "\u{0}x"));
    assert_eq!(sent[0].metadata.get("traceid"), None);
    assert_eq!((sent[1].metadata.get("traceid"), sent[1].metadata.get("tracestate")), (Some(PARENT), Some("a=1")));
}

#[tokio::test]
async fn an_expiry_is_written_only_for_brokers_that_do_not_expire() {
    for (message_ttl, there) in [(false, true), (true, false)] {
        let rig =
            Rig::new(Setup { caps: PubSubCaps { message_ttl, ..PubSubCaps::default() }, ..Setup::default() }).await;
        rig.api.publish(&cx(Front::Http), request("1", &[("ttlInSeconds", "60")])).await.unwrap();
        assert_eq!(event(&rig.sent()[0]).get("expiration").is_some(), there);
        assert_eq!(rig.sent()[0].metadata.get("ttlInSeconds"), Some("60"));
    }
}

#[tokio::test]
async fn the_errors_of_the_contract() {
    let caps = PubSubCaps { subscribe_wildcards: true, ..PubSubCaps::default() };
    let scopes = vec![("protectedTopics", "secret")];
    let rig = Rig::new(Setup { caps, scopes, ..Setup::default() }).await;
    let publish = async |edit: &dyn Fn(&mut PublishRequest)| {
        let mut req = request("1", &[]);
        edit(&mut req);
        rig.api.publish(&cx(Front::Http), req).await.unwrap_err()
    };
    let facts = |e: &ApiError| (e.code(), e.kind(), e.status(), e.message().to_owned());

    let e = publish(&|r| r.pubsub.clear()).await;
    assert_eq!(
        facts(&e),
        (Code::PubSubEmpty, ErrorKind::InvalidArgument, Some((404, 3)), "pubsub name is empty".into())
    );
    assert_eq!((e.shape(), e.details().len()), (Shape::Rich, 2));
    assert_eq!(reason(&e), ("DAPR_PUBSUB_NAME_EMPTY", vec![("appID", "shop")]));

    let e = publish(&|r| r.pubsub = "other".into()).await;
    assert_eq!(
        facts(&e),
        (Code::PubSubNotFound, ErrorKind::InvalidArgument, Some((404, 3)), "pubsub other is not found".into())
    );
    assert_eq!((e.details().len(), reason(&e).0), (1, "DAPR_PUBSUB_NOT_FOUND"));

    let e = publish(&|r| r.topic.clear()).await;
    assert_eq!(facts(&e).3, "topic is empty in pubsub bus");
    assert_eq!((e.status(), reason(&e).0), (Some((404, 3)), "DAPR_PUBSUB_TOPIC_NAME_EMPTY"));

    let e = publish(&|r| r.topic = "a/#".into()).await;
    assert_eq!((e.code(), e.kind()), (Code::MalformedRequest, ErrorKind::InvalidArgument));

    for (key, value) in [("rawPayload", "yes"), ("ttlInSeconds", "1.5"), ("x", "a\r\nb")] {
        let e = publish(&|r| r.metadata.insert(key, value)).await;
        assert_eq!((e.code(), e.kind(), e.status()), (Code::PubSubRequestMetadata, ErrorKind::InvalidArgument, None));
        assert!(e.message().starts_with("failed deserializing metadata. Error: "), "{e}");
        assert_eq!(reason(&e).0, "DAPR_PUBSUB_METADATA_DESERIALIZATION");
    }

    let e = publish(&|r| r.content_type = Some("application/cloudevents+json".into())).await;
    assert_eq!(
        facts(&e),
        (Code::PubSubCloudEventsSer, ErrorKind::InvalidArgument, Some((500, 3)), "cannot create cloudevent".into())
    );

    let e = publish(&|r| r.topic = "secret".into()).await;
    let text = "topic secret is not allowed for app id shop";
    assert_eq!(facts(&e), (Code::PubSubForbidden, ErrorKind::PermissionDenied, None, text.into()));
    assert_eq!(reason(&e), ("DAPR_PUBSUB_FORBIDDEN", vec![("appID", "shop"), ("error", text), ("topic", "secret")]));
    assert!(
        matches!(&e.details()[0], Detail::ResourceInfo { resource_type: "pubsub", description, .. } if description == text)
    );
    assert_eq!(rig.value("dapr_component_pubsub_egress_count", r#"success="false",topic="secret""#), 1);

    *rig.broker.publishing.lock() = Publishing::Fails(ErrorKind::Unavailable);
    let e = publish(&|_| {}).await;
    assert_eq!(
        facts(&e),
        (
            Code::PubSubPublishMessage,
            ErrorKind::Internal,
            None,
            "error when publishing to topic orders in pubsub bus: broker down".into()
        )
    );
    *rig.broker.publishing.lock() = Publishing::Fails(ErrorKind::TooLarge);
    assert_eq!(publish(&|_| {}).await.kind(), ErrorKind::TooLarge);
    assert!(rig.sent().is_empty());
}

#[tokio::test]
async fn without_any_component_and_with_one_that_is_not_ready() {
    let rig = Rig::new(Setup::default()).await;
    rig.store.edit(|s| s.pubsub.clear()).await;
    let e = rig.api.publish(&cx(Front::Http), request("1", &[])).await.unwrap_err();
    assert_eq!(e.code(), Code::PubSubNotFound);
    let info = Info { name: "bus".into(), kind: "pubsub.x".into(), version: "v1".into(), capabilities: vec![] };
    let degraded = Degraded { info, block: Block::PubSub, cause: "no route to host".into() };
    rig.store.edit(|s| s.degraded.insert("bus".into(), degraded)).await;
    let e = rig.api.publish(&cx(Front::Http), request("1", &[])).await.unwrap_err();
    assert_eq!((e.code(), e.kind()), (Code::PubSubPublishMessage, ErrorKind::Unavailable));
    assert!(e.message().contains("no route to host"));
}

#[tokio::test]
async fn each_entry_of_a_bulk_has_its_own_envelope_and_metadata() {
    for bulk in [true, false] {
        let caps = PubSubCaps { bulk, ..PubSubCaps::default() };
        let rig = Rig::new(Setup { caps, prefix: Some("ns"), ..Setup::default() }).await;
        let entries = vec![entry("1", "1", &[("a", "own"), ("cloudevent.type", "t")]), entry("2", "2", &[])];
        let whole: Metadata = [("a", "whole"), ("b", "whole")].into_iter().collect();
        let failed = rig.api.publish_bulk(&cx(Front::Http), "bus", "orders", entries, whole).await.unwrap();
        assert_eq!(failed, []);
        let mut sent = rig.sent();
        sent.sort_by_key(|s| event(s)["data"].as_i64());
        assert!(sent.iter().all(|s| s.topic == "nsorders"));
        assert_eq!(sent.iter().map(|s| s.metadata.get("a").unwrap()).collect::<Vec<_>>(), ["own", "whole"]);
        assert!(sent.iter().all(|s| s.metadata.get("b") == Some("whole")));
        assert_eq!((&event(&sent[0])["type"], &event(&sent[1])["type"]), (&json!("t"), &json!("com.dapr.event.sent")));
        assert_ne!(event(&sent[0])["id"], event(&sent[1])["id"]);
        assert_eq!(rig.value("dapr_component_pubsub_egress_bulk_count", r#"success="true""#), 1);
        assert_eq!(rig.value("dapr_component_pubsub_egress_bulk_event_count", r#"success="true""#), 2);
    }
}

#[tokio::test]
async fn entries_that_failed_are_named_and_the_others_stay_published() {
    for bulk in [true, false] {
        let caps = PubSubCaps { bulk, ..PubSubCaps::default() };
        let rig = Rig::new(Setup { caps, ..Setup::default() }).await;
        *rig.broker.bad_payload.lock() = Some(Bytes::from_static(b"\"bad\""));
        let entries = (0..5).map(|n| entry(&n.to_string(), if n % 2 == 1 { "\"bad\"" } else { "0" }, &[])).collect();
        let failed = rig.api.publish_bulk(&cx(Front::Http), "bus", "t", entries, Metadata::new()).await.unwrap();
        let bad = |id: &str| FailedEntry { entry_id: id.into(), error: "broker refused".into() };
        assert_eq!(failed, [bad("1"), bad("3")]);
        assert_eq!(rig.sent().len(), 3);
    }
    let caps = PubSubCaps { bulk: true, ..PubSubCaps::default() };
    let rig = Rig::new(Setup { caps, ..Setup::default() }).await;
    *rig.broker.publishing.lock() = Publishing::Fails(ErrorKind::Unavailable);
    let entries = vec![entry("1", "1", &[]), entry("2", "2", &[])];
    let failed = rig.api.publish_bulk(&cx(Front::Http), "bus", "t", entries, Metadata::new()).await.unwrap();
    assert_eq!(failed.iter().map(|f| f.entry_id.as_str()).collect::<Vec<_>>(), ["1", "2"]);
}

#[tokio::test]
async fn single_publishes_in_place_of_a_batch_are_bounded() {
    let rig = Rig::new(Setup::default()).await;
    let entries = (0..500).map(|n| entry(&n.to_string(), "1", &[])).collect();
    let failed = rig.api.publish_bulk(&cx(Front::Http), "bus", "t", entries, Metadata::new()).await.unwrap();
    assert_eq!((failed.len(), rig.sent().len()), (0, 500));
    let most = rig.broker.most_publishing.load(std::sync::atomic::Ordering::SeqCst);
    assert!((2..=32).contains(&most), "{most} at the same time");
}

#[tokio::test]
async fn errors_that_concern_a_whole_bulk_publish_nothing() {
    let rig = Rig::new(Setup { scopes: vec![("publishingScopes", "shop=orders")], ..Setup::default() }).await;
    let publish = async |topic: &str, entries: Vec<BulkPublishEntry>, metadata: &[(&str, &str)]| {
        let metadata = metadata.iter().copied().collect();
        rig.api.publish_bulk(&cx(Front::Http), "bus", topic, entries, metadata).await.unwrap_err()
    };
    for ids in [["1", "1"], ["", "2"]] {
        let e = publish("orders", ids.iter().map(|id| entry(id, "1", &[])).collect(), &[]).await;
        assert_eq!(
            e.message(),
            "error marshaling events to bytes for topic orders pubsub bus. \
             error: entryId is duplicated or not present for entry"
        );
        assert_eq!((e.code(), e.kind()), (Code::PubSubEventsSer, ErrorKind::InvalidArgument));
        assert_eq!(reason(&e).0, "DAPR_PUBSUB_MARSHAL_EVENTS");
    }
    assert_eq!(publish("other", vec![entry("1", "1", &[])], &[]).await.code(), Code::PubSubForbidden);
    assert_eq!(publish("orders", vec![], &[("rawPayload", "x")]).await.code(), Code::PubSubRequestMetadata);
    let bad = vec![entry("1", "1", &[]), entry("2", "1", &[("ttlInSeconds", "x")])];
    assert_eq!(publish("orders", bad, &[]).await.code(), Code::PubSubRequestMetadata);
    let mut own = entry("1", "[]", &[]);
    own.content_type = "application/cloudevents+json".into();
    assert_eq!(publish("orders", vec![own], &[]).await.code(), Code::PubSubCloudEventsSer);
    assert!(rig.sent().is_empty());
    let none = rig.api.publish_bulk(&cx(Front::Http), "bus", "orders", vec![], Metadata::new()).await.unwrap();
    assert_eq!(none, []);
}

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<FinishedSpan>>);

impl SpanSink for Kept {
    fn export(&self, span: FinishedSpan) {
        self.0.lock().push(span);
    }
}

#[tokio::test]
async fn each_entry_of_a_bulk_is_a_producer_span() {
    let sink = Arc::new(Kept::default());
    let shared: Arc<dyn SpanSink> = sink.clone();
    let rig = Rig::new(Setup { tracer: Tracer::on(Sampler::new(1.0), Some(shared)), ..Setup::default() }).await;
    let entries = vec![entry("1", "1", &[]), entry("2", "2", &[])];
    rig.api.publish_bulk(&cx(Front::Http), "bus", "orders", entries, Metadata::new()).await.unwrap();
    let spans = sink.0.lock();
    assert_eq!(spans.len(), 2);
    let mut ids: Vec<_> = spans.iter().map(|s| s.context.traceparent()).collect();
    assert!(spans.iter().all(|s| s.kind == SpanKind::Producer && s.parent.unwrap().to_string() == "00f067aa0ba902b7"));
    let mut sent: Vec<_> = rig.sent().iter().map(|s| event(s)["traceparent"].as_str().unwrap().to_owned()).collect();
    ids.sort();
    sent.sort();
    assert_eq!(ids, sent);
    assert!(TraceContext::parse(&sent[0], None).is_some());
}
