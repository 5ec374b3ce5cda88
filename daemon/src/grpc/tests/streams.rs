use bytes::Bytes;
use mecha_components_api::Changes;
use mecha_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Said;
use mecha_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Told;
use mecha_proto::runtime::*;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{Rig, item, reason};

fn initial(pubsub: &str, topic: &str) -> SubscribeTopicEventsRequestAlpha1 {
    said(Said::InitialRequest(SubscribeTopicEventsRequestInitialAlpha1 {
        pubsub_name: pubsub.into(),
        topic: topic.into(),
        ..SubscribeTopicEventsRequestInitialAlpha1::default()
    }))
}

fn processed(id: &str, status: i32) -> SubscribeTopicEventsRequestAlpha1 {
    let status = Some(TopicEventResponse { status });
    said(Said::EventProcessed(SubscribeTopicEventsRequestProcessedAlpha1 { id: id.into(), status }))
}

fn said(what: Said) -> SubscribeTopicEventsRequestAlpha1 {
    SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(what) }
}

struct Subscriber {
    say: mpsc::Sender<SubscribeTopicEventsRequestAlpha1>,
    told: Streaming<SubscribeTopicEventsResponseAlpha1>,
}

impl Subscriber {
    async fn open(rig: &Rig, first: SubscribeTopicEventsRequestAlpha1) -> Result<Self, Status> {
        let (say, messages) = mpsc::channel(8);
        say.send(first).await.unwrap();
        let res = rig.client().subscribe_topic_events_alpha1(ReceiverStream::new(messages)).await?;
        let mut me = Self { say, told: res.into_inner() };
        match me.next().await? {
            Some(Told::InitialResponse(_)) => Ok(me),
            other => panic!("{other:?}"),
        }
    }

    async fn next(&mut self) -> Result<Option<Told>, Status> {
        let message = tokio::time::timeout(std::time::Duration::from_secs(20), self.told.message()).await.unwrap()?;
        Ok(message.and_then(|m| m.subscribe_topic_events_response_type))
    }

    async fn event(&mut self) -> TopicEventRequest {
        match self.next().await.unwrap() {
            Some(Told::EventMessage(event)) => event,
            other => panic!("{other:?}"),
        }
    }
}

async fn publish(rig: &Rig, data: &'static str) {
    let event = PublishEventRequest {
        pubsub_name: "bus".into(),
        topic: "orders".into(),
        data: Bytes::from_static(data.as_bytes()),
        data_content_type: "application/json".into(),
        ..PublishEventRequest::default()
    };
    rig.client().publish_event(event).await.unwrap();
}

#[tokio::test]
async fn events_come_with_their_attributes_and_wait_for_a_verdict() {
    let rig = Rig::start().await;
    let mut sub = Subscriber::open(&rig, initial("bus", "orders")).await.unwrap();
    publish(&rig, r#"{"n": 1.50}"#).await;
    let event = sub.event().await;
    assert_eq!((event.pubsub_name.as_str(), event.topic.as_str(), event.path.as_str()), ("bus", "orders", "/"));
    assert_eq!((event.data_content_type.as_str(), event.source.as_str()), ("application/json", "shop"));
    let value: serde_json::Value = serde_json::from_slice(&event.data).unwrap();
    assert_eq!(value, serde_json::json!({"n": 1.5}));
    assert!(std::str::from_utf8(&event.data).unwrap().contains("1.50"), "digits stay");
    let extensions = event.extensions.unwrap().fields;
    assert!(extensions.contains_key("time") && !extensions.contains_key("data"));
    // An id nobody waits for is no reason to end the stream.
    sub.say.send(processed("unknown", 0)).await.unwrap();
    sub.say.send(processed(&event.id, 0)).await.unwrap();
    publish(&rig, "2").await;
    assert_eq!(sub.event().await.data, "2");
    let subscriptions = rig.client().get_metadata(GetMetadataRequest {}).await.unwrap().into_inner().subscriptions;
    assert_eq!(subscriptions[0].r#type(), PubsubSubscriptionType::Streaming);
}

#[tokio::test]
async fn the_first_message_must_be_right() {
    let rig = Rig::start().await;
    for (first, text) in [
        (processed("1", 0), "initial request is required"),
        (SubscribeTopicEventsRequestAlpha1::default(), "initial request is required"),
        (initial("", "t"), "pubsubName is required"),
        (initial("bus", ""), "topic is required"),
    ] {
        let status = Subscriber::open(&rig, first).await.err().unwrap();
        assert_eq!((status.code(), status.message()), (Code::Unknown, text));
    }
    let missing = Subscriber::open(&rig, initial("nope", "t")).await.err().unwrap();
    assert_eq!((missing.code(), reason(&missing).as_str()), (Code::InvalidArgument, "DAPR_PUBSUB_NOT_FOUND"));
    let mut sub = Subscriber::open(&rig, initial("bus", "t")).await.unwrap();
    sub.say.send(initial("bus", "t")).await.unwrap();
    let status = sub.next().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "duplicate initial request received"));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_subscription() {
    let rig = Rig::start().await;
    let sub = Subscriber::open(&rig, initial("bus", "orders")).await.unwrap();
    assert_eq!(rig.core.pubsub.subscriptions().len(), 1);
    drop(sub);
    crate::peer::testing::eventually(|| rig.core.pubsub.subscriptions().is_empty()).await;
}

#[tokio::test]
async fn a_stop_waits_for_the_verdict_on_what_is_out() {
    let rig = Rig::start().await;
    let mut sub = Subscriber::open(&rig, initial("bus", "orders")).await.unwrap();
    publish(&rig, "1").await;
    let event = sub.event().await;
    rig.core.tasks.stopping().cancel();
    sub.say.send(processed(&event.id, 0)).await.unwrap();
    assert!(sub.next().await.unwrap().is_none(), "the stream ends in order");
}

#[tokio::test]
async fn configuration_changes_follow_the_id() {
    let rig = Rig::start().await;
    let req = SubscribeConfigurationRequest { store_name: "conf".into(), ..SubscribeConfigurationRequest::default() };
    let mut updates = rig.client().subscribe_configuration(req).await.unwrap().into_inner();
    let first = updates.message().await.unwrap().unwrap();
    assert!(!first.id.is_empty() && first.items.is_empty());
    rig.watched.send(Changes::from([("a".to_owned(), item("1"))])).await.unwrap();
    let second = updates.message().await.unwrap().unwrap();
    assert_eq!((second.id.as_str(), second.items["a"].value.as_str()), (first.id.as_str(), "1"));
    let end = UnsubscribeConfigurationRequest { store_name: "conf".into(), id: first.id };
    assert!(rig.client().unsubscribe_configuration(end).await.unwrap().into_inner().ok);
    assert!(updates.message().await.unwrap().is_none());
}
