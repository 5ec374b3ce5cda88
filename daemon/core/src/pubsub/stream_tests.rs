use std::time::Duration;

use mecha_components_api::Verdict;

use super::*;
use crate::app::AppVerdict;
use crate::codes::Code;
use crate::cx::{Cx, Front};
use crate::error::ApiError;
use crate::pubsub::testing::*;
use crate::pubsub::{Source, StreamRequest};

fn request() -> StreamRequest {
    StreamRequest {
        pubsub: "bus".into(),
        topic: "orders".into(),
        metadata: [("k", "v")].into_iter().collect(),
        dead_letter_topic: None,
    }
}

async fn open(rig: &Rig, edit: impl FnOnce(&mut StreamRequest)) -> Result<StreamSubscription, ApiError> {
    let mut req = request();
    edit(&mut req);
    rig.api.stream(&Cx::new(Front::Grpc), req).await
}

#[tokio::test(start_paused = true)]
async fn events_go_out_and_verdicts_come_back() {
    let rig = Rig::new(Setup { prefix: Some("ns"), ..Setup::default() }).await;
    let mut stream = open(&rig, |_| {}).await.unwrap();
    assert_eq!(rig.broker.requests()[0].topic, "nsorders");
    assert_eq!(rig.broker.requests()[0].metadata.get("k"), Some("v"));
    for (verdict, end) in
        [(AppVerdict::Success, Verdict::Ack), (AppVerdict::Retry, Verdict::Retry), (AppVerdict::Drop, Verdict::Ack)]
    {
        let client = async {
            let event = stream.events.recv().await.unwrap();
            assert_eq!((event.id.as_str(), event.event.path.as_str()), ("7", "/"));
            assert_eq!(event.event.data.as_deref(), Some(b"1.50".as_slice()));
            assert!(!stream.processed("other", AppVerdict::Success));
            assert!(stream.processed(&event.id, verdict));
            assert!(!stream.processed(&event.id, verdict));
        };
        let (got, ()) = tokio::join!(rig.broker.deliver("nsorders", br#"{"id":"7","data":1.50}"#), client);
        assert_eq!(got, end);
    }
    let listed = rig.api.subscriptions();
    assert_eq!((listed.len(), listed[0].1, listed[0].0.topic.as_str()), (1, Source::Streaming, "orders"));
}

#[tokio::test(start_paused = true)]
async fn an_event_without_id_gets_one_and_equal_ids_do_not_mix() {
    let rig = Rig::new(Setup::default()).await;
    let mut stream = open(&rig, |_| {}).await.unwrap();
    let client = async {
        let event = stream.events.recv().await.unwrap();
        assert_eq!(event.event.event["id"], event.id.as_str());
        assert!(stream.processed(&event.id, AppVerdict::Success));
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", b"{}"), client);
    assert_eq!(verdict, Verdict::Ack);

    let client = async {
        for verdict in [AppVerdict::Success, AppVerdict::Retry] {
            let event = stream.events.recv().await.unwrap();
            assert!(stream.processed(&event.id, verdict));
        }
    };
    let (one, two, ()) = tokio::join!(
        rig.broker.deliver("orders", b"{\"id\":\"x\"}"),
        rig.broker.deliver("orders", b"{\"id\":\"x\"}"),
        client
    );
    assert_eq!([one, two], [Verdict::Ack, Verdict::Retry]);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_loses_nothing() {
    let rig = Rig::new(Setup::default()).await;
    let mut stream = open(&rig, |r| r.dead_letter_topic = Some("poison".into())).await.unwrap();
    let client = async {
        stream.events.recv().await.unwrap();
        drop(stream);
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", b"{}"), client);
    assert_eq!((verdict, rig.sent().len()), (Verdict::Release, 0));
    rig.broker.wait_for_subscribers(0).await;
    assert!(rig.api.subscriptions().is_empty());
}

#[tokio::test(start_paused = true)]
async fn several_streams_have_their_own_subscriptions() {
    let rig = Rig::new(Setup::default()).await;
    let (mut one, mut two) = (open(&rig, |_| {}).await.unwrap(), open(&rig, |_| {}).await.unwrap());
    assert_eq!(rig.broker.topics(), ["orders", "orders"]);
    let answer = async |stream: &mut StreamSubscription, verdict| {
        let event = stream.events.recv().await.unwrap();
        assert!(stream.processed(&event.id, verdict));
    };
    let (first, second, (), ()) = tokio::join!(
        rig.broker.hand_nth(0, message("orders", b"{\"id\":\"1\"}")),
        rig.broker.hand_nth(1, message("orders", b"{\"id\":\"1\"}")),
        answer(&mut one, AppVerdict::Retry),
        answer(&mut two, AppVerdict::Success),
    );
    assert_eq!([first, second], [Verdict::Retry, Verdict::Ack]);
}

#[tokio::test(start_paused = true)]
async fn an_unanswered_event_does_not_hold_up_the_stop() {
    let rig = Rig::new(Setup::default()).await;
    let mut stream = open(&rig, |r| r.dead_letter_topic = Some("poison".into())).await.unwrap();
    let started = tokio::time::Instant::now();
    let stop = async {
        stream.events.recv().await.unwrap();
        rig.api.manager().stop(Duration::from_secs(30)).await
    };
    let (verdict, finished) = tokio::join!(rig.broker.deliver("orders", b"{}"), stop);
    assert_eq!((verdict, finished, rig.sent().len()), (Verdict::Release, true, 0));
    assert_eq!(started.elapsed(), STOP_GRACE);
    assert!(open(&rig, |_| {}).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_policy_sends_an_event_again() {
    let policies = Some("{retries: {r: {policy: constant, duration: 1s, maxRetries: 5}}}");
    let rig = Rig::new(Setup { policies, ..Setup::default() }).await;
    let mut stream = open(&rig, |_| {}).await.unwrap();
    let client = async {
        for verdict in [AppVerdict::Retry, AppVerdict::Retry, AppVerdict::Success] {
            let event = stream.events.recv().await.unwrap();
            assert!(stream.processed(&event.id, verdict));
        }
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", b"{}"), client);
    assert_eq!(verdict, Verdict::Ack);
}

#[tokio::test(start_paused = true)]
async fn streams_that_cannot_be_opened() {
    let rig = Rig::new(Setup { scopes: vec![("subscriptionScopes", "shop=orders")], ..Setup::default() }).await;
    let code = async |edit: &dyn Fn(&mut StreamRequest)| open(&rig, edit).await.unwrap_err().code();
    assert_eq!(code(&|r| r.pubsub = "other".into()).await, Code::PubSubNotFound);
    assert_eq!(code(&|r| r.pubsub.clear()).await, Code::PubSubEmpty);
    assert_eq!(code(&|r| r.topic.clear()).await, Code::TopicNameEmpty);
    assert_eq!(code(&|r| r.topic = "secret".into()).await, Code::PubSubForbidden);
    rig.broker.start_failures.store(1, std::sync::atomic::Ordering::SeqCst);
    assert!(open(&rig, |_| {}).await.unwrap_err().message().contains("broker not there yet"));
    rig.broker.wait_for_subscribers(0).await;
    assert!(rig.api.subscriptions().is_empty());
}
