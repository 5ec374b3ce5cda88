//! Publishing and subscribing.

use dapr::appcallback::TopicEventResponse;
use dapr::dapr::proto::runtime::v1::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Say;
use dapr::dapr::proto::runtime::v1::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Hear;
use dapr::dapr::proto::runtime::v1::topic_event_response::TopicEventResponseStatus as Verdict;
use dapr::dapr::proto::runtime::v1::{
    BulkPublishRequest, BulkPublishRequestEntry, SubscribeTopicEventsRequestAlpha1,
    SubscribeTopicEventsRequestInitialAlpha1, SubscribeTopicEventsRequestProcessedAlpha1, TopicEventRequest,
};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;

use crate::stage::{DEADLINE, fails, metadata, new_id, raw, sdk, stage};

async fn publish(topic: &str, data: &str) {
    let data = data.as_bytes().to_vec();
    sdk().await.publish_event("pubsub", topic, "application/json", data, None).await.expect("published");
}

#[tokio::test]
async fn publish_to_grpc_app() {
    let (id, app) = (new_id(), &stage().await.app);
    let data = format!(r#"{{"id":"{id}"}}"#);
    publish("plain", &data).await;
    let event = app.received("plain", &id, 1).await;
    assert_eq!(event.data, data.as_bytes());
    assert_eq!((event.source.as_str(), event.r#type.as_str()), ("tester", "com.dapr.event.sent"));
    assert_eq!((event.pubsub_name.as_str(), event.topic.as_str()), ("pubsub", "plain"));
    assert_eq!((event.data_content_type.as_str(), event.spec_version.as_str()), ("application/json", "1.0"));
    assert!(!event.id.is_empty());
}

#[tokio::test]
async fn publish_bulk() {
    let (id, app) = (new_id(), &stage().await.app);
    let entries = (0..20)
        .map(|n| BulkPublishRequestEntry {
            entry_id: n.to_string(),
            event: format!("{id}{n}-").into_bytes(),
            content_type: "text/plain".to_owned(),
            ..Default::default()
        })
        .collect();
    let request = BulkPublishRequest {
        pubsub_name: "pubsub".to_owned(),
        topic: "plain".to_owned(),
        entries,
        ..Default::default()
    };
    let answer = raw().await.bulk_publish_event(request).await.expect("published").into_inner();
    assert_eq!(answer.failed_entries, []);
    for n in 0..20 {
        app.received("plain", &format!("{id}{n}-"), 1).await;
    }
}

#[tokio::test]
async fn publish_cloud_event() {
    let (id, app) = (new_id(), &stage().await.app);
    let event =
        format!(r#"{{"specversion":"1.0","id":"{id}","source":"elsewhere","type":"order.made","data":"of {id}"}}"#);
    let kind = "application/cloudevents+json";
    sdk().await.publish_event("pubsub", "plain", kind, event.into_bytes(), None).await.expect("published");
    let got = app.received("plain", &id, 1).await;
    assert_eq!((got.id, got.source, got.r#type), (id, "elsewhere".to_owned(), "order.made".to_owned()));
}

#[tokio::test]
async fn publish_raw() {
    let (id, app) = (new_id(), &stage().await.app);
    let raw = metadata("rawPayload", "true");
    sdk().await.publish_event("pubsub", "raw", "text/plain", id.clone().into_bytes(), raw).await.expect("published");
    assert_eq!(app.received("raw", &id, 1).await.data, id.as_bytes());
}

#[tokio::test]
async fn publish_retry() {
    let (id, app) = (new_id(), &stage().await.app);
    publish("flaky", &format!("{id:?}")).await;
    app.received("flaky", &id, 2).await;
}

#[tokio::test]
async fn publish_drop() {
    let (id, app) = (new_id(), &stage().await.app);
    publish("poison", &format!("{id:?}")).await;
    app.received("poison", &id, 1).await;
    app.received("graveyard", &id, 1).await;
}

#[tokio::test]
async fn publish_unknown_pubsub() {
    let answer = sdk().await.publish_event("nowhere", "plain", "text/plain", vec![], None).await;
    fails(answer, "InvalidArgument", "pubsub nowhere is not found");
}

#[tokio::test]
async fn subscribe_stream() {
    let id = new_id();
    let (say, words) = mpsc::channel(4);
    let wrap = |word| SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(word) };
    let begin = SubscribeTopicEventsRequestInitialAlpha1 {
        pubsub_name: "pubsub".to_owned(),
        topic: "streamed".to_owned(),
        ..Default::default()
    };
    say.send(wrap(Say::InitialRequest(begin))).await.expect("an open stream");
    let answer = raw().await.subscribe_topic_events_alpha1(ReceiverStream::new(words)).await.expect("a stream");
    let mut heard = answer.into_inner();
    let mut next = async || {
        let word = tokio::time::timeout(DEADLINE, heard.next()).await.expect("in time")?;
        word.expect("no error").subscribe_topic_events_response_type
    };
    assert!(matches!(next().await, Some(Hear::InitialResponse(_))));
    publish("streamed", &format!("{id:?}")).await;
    for verdict in [Verdict::Retry, Verdict::Success] {
        let Some(Hear::EventMessage(TopicEventRequest { id: event, data, .. })) = next().await else {
            panic!("no event")
        };
        assert_eq!(data, format!("{id:?}").as_bytes());
        let status = Some(TopicEventResponse { status: verdict.into() });
        let done = SubscribeTopicEventsRequestProcessedAlpha1 { id: event, status };
        say.send(wrap(Say::EventProcessed(done))).await.expect("an open stream");
    }
    drop(say);
    assert_eq!(next().await, None);
}
