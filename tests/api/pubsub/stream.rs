//! Subscriptions that an app opens as a stream.

use mecha_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Ask;
use mecha_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Tell;
use mecha_proto::runtime::{
    SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1,
    SubscribeTopicEventsRequestProcessedAlpha1, SubscribeTopicEventsResponseAlpha1, TopicEventRequest,
    TopicEventResponse,
};
use mecha_tests::{DEADLINE, Sidecar};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::{EVENTS, KINDS, document};
use crate::support::wait_subscriptions;

/// An open stream.
struct Subscriber {
    asks: mpsc::Sender<SubscribeTopicEventsRequestAlpha1>,
    tells: Streaming<SubscribeTopicEventsResponseAlpha1>,
}

impl Subscriber {
    async fn open(sidecar: &Sidecar, first: Option<Ask>) -> Result<Self, Status> {
        let (asks, receiver) = mpsc::channel(16);
        if let Some(first) = first {
            asks.send(ask(first)).await.unwrap();
        }
        let stream = sidecar.grpc().await.subscribe_topic_events_alpha1(ReceiverStream::new(receiver)).await?;
        Ok(Self { asks, tells: stream.into_inner() })
    }

    /// Subscribes, and waits for the confirmation.
    async fn to(sidecar: &Sidecar, topic: &str, dead: Option<&str>) -> Self {
        let mut subscriber = Self::open(sidecar, Some(initial(EVENTS, topic, dead))).await.unwrap();
        let Some(Tell::InitialResponse(_)) = subscriber.next().await.unwrap() else { panic!("no confirmation") };
        subscriber
    }

    async fn next(&mut self) -> Result<Option<Tell>, Status> {
        let message = tokio::time::timeout(DEADLINE, self.tells.message()).await.expect("a message");
        Ok(message?.and_then(|message| message.subscribe_topic_events_response_type))
    }

    async fn event(&mut self) -> TopicEventRequest {
        match self.next().await.unwrap() {
            Some(Tell::EventMessage(event)) => event,
            other => panic!("no event: {other:?}"),
        }
    }

    async fn answer(&self, id: &str, status: i32) {
        let processed = SubscribeTopicEventsRequestProcessedAlpha1 {
            id: id.to_owned(),
            status: Some(TopicEventResponse { status }),
        };
        self.asks.send(ask(Ask::EventProcessed(processed))).await.unwrap();
    }
}

fn ask(kind: Ask) -> SubscribeTopicEventsRequestAlpha1 {
    SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(kind) }
}

fn initial(pubsub: &str, topic: &str, dead: Option<&str>) -> Ask {
    Ask::InitialRequest(SubscribeTopicEventsRequestInitialAlpha1 {
        pubsub_name: pubsub.to_owned(),
        topic: topic.to_owned(),
        dead_letter_topic: dead.map(str::to_owned),
        ..SubscribeTopicEventsRequestInitialAlpha1::default()
    })
}

async fn start(kind: &str) -> Sidecar {
    let builder = Sidecar::builder();
    let folder = builder.folder().join("broker");
    builder.component(document(kind, &folder)).start().await
}

#[tokio::test]
async fn events_come_and_are_answered() {
    for kind in KINDS {
        let sidecar = start(kind).await;
        let mut subscriber = Subscriber::to(&sidecar, "topic", None).await;
        let list = wait_subscriptions(&sidecar, 1).await;
        assert_eq!((&list[0]["type"], &list[0]["topic"]), (&"STREAMING".into(), &"topic".into()));
        for api in sidecar.apis().await {
            for n in 0..3 {
                let data = format!("{}-{n}", api.name());
                api.publish(EVENTS, "topic", "text/plain", data.clone(), &[]).await.unwrap();
                let event = subscriber.event().await;
                assert_eq!(event.data, data, "{kind}");
                assert_eq!(
                    (event.topic.as_str(), event.pubsub_name.as_str(), event.path.as_str()),
                    ("topic", EVENTS, "/")
                );
                subscriber.answer(&event.id, 0).await;
            }
        }
    }
}

#[tokio::test]
async fn what_was_not_answered_comes_again() {
    let sidecar = start("broker").await;
    let [api, _] = sidecar.apis().await;
    let mut first = Subscriber::to(&sidecar, "topic", None).await;
    api.publish(EVENTS, "topic", "text/plain", "kept", &[]).await.unwrap();
    let event = first.event().await;
    assert_eq!(event.data, "kept");
    drop(first);
    let mut second = Subscriber::to(&sidecar, "topic", None).await;
    let again = second.event().await;
    assert_eq!((again.data, again.id), (event.data, event.id));
}

#[tokio::test]
async fn a_dropped_event_goes_to_the_dead_letter_topic() {
    let sidecar = start("broker").await;
    let [api, _] = sidecar.apis().await;
    let mut dead = Subscriber::to(&sidecar, "dead", None).await;
    let mut live = Subscriber::to(&sidecar, "topic", Some("dead")).await;
    api.publish(EVENTS, "topic", "text/plain", "unwanted", &[]).await.unwrap();
    let event = live.event().await;
    // An id nobody knows does not end the stream.
    live.answer("unknown", 0).await;
    live.answer(&event.id, 2).await;
    let letter = dead.event().await;
    assert_eq!((letter.data.as_ref(), letter.id), (&b"unwanted"[..], event.id));
}

#[tokio::test]
async fn the_first_message_says_what_is_wanted() {
    let sidecar = start("memory").await;
    let processed = Ask::EventProcessed(SubscribeTopicEventsRequestProcessedAlpha1::default());
    let cases = [
        (processed, Code::Unknown, "initial request is required"),
        (initial("", "topic", None), Code::Unknown, "pubsubName is required"),
        (initial(EVENTS, "", None), Code::Unknown, "topic is required"),
        (initial("nowhere", "topic", None), Code::InvalidArgument, "pubsub nowhere is not found"),
    ];
    for (first, code, message) in cases {
        let status = match Subscriber::open(&sidecar, Some(first)).await {
            Ok(mut subscriber) => subscriber.next().await.unwrap_err(),
            Err(status) => status,
        };
        assert_eq!((status.code(), status.message()), (code, message));
    }
    let mut subscriber = Subscriber::to(&sidecar, "topic", None).await;
    subscriber.asks.send(ask(initial(EVENTS, "topic", None))).await.unwrap();
    let status = subscriber.next().await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unknown, "duplicate initial request received"));
}

#[tokio::test]
async fn two_streams_on_a_topic_are_two_subscriptions() {
    let sidecar = start("memory").await;
    let [api, _] = sidecar.apis().await;
    let mut one = Subscriber::to(&sidecar, "topic", None).await;
    let mut two = Subscriber::to(&sidecar, "topic", None).await;
    api.publish(EVENTS, "topic", "text/plain", "both", &[]).await.unwrap();
    for subscriber in [&mut one, &mut two] {
        let event = subscriber.event().await;
        assert_eq!(event.data, "both");
        subscriber.answer(&event.id, 0).await;
    }
}

#[tokio::test]
async fn a_closed_stream_leaves_the_metadata() {
    let sidecar = start("memory").await;
    let subscriber = Subscriber::to(&sidecar, "topic", None).await;
    wait_subscriptions(&sidecar, 1).await;
    drop(subscriber);
    mecha_tests::eventually("no subscription", || async {
        sidecar.metadata().await.get("subscriptions").is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_unanswered_event_does_not_hold_up_the_stop() {
    let sidecar = start("memory").await;
    let [api, _] = sidecar.apis().await;
    let mut subscriber = Subscriber::to(&sidecar, "topic", None).await;
    api.publish(EVENTS, "topic", "text/plain", "x", &[]).await.unwrap();
    subscriber.event().await;
    sidecar.signal(mecha_tests::Signal::Term);
    let ended = sidecar.ended(std::time::Duration::from_secs(30)).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}
