//! A broker that was replaced still holds events when something else happens: it is read to its end all the same.

use std::path::Path;
use std::time::Duration;

use mecha_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Ask;
use mecha_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Tell;
use mecha_proto::runtime::{
    SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1,
    SubscribeTopicEventsRequestProcessedAlpha1, TopicEventResponse,
};
use mecha_tests::{Api, Front, Grpc, HttpApp, Sidecar, SidecarBuilder, Signal, wait_until};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::ledger::Ledger;
use crate::load::Load;
use crate::support::{LIMIT, broker, wait_subscriptions};

/// What an event takes, and how many there are: some seconds of work.
const WORK: Duration = Duration::from_millis(100);
const EVENTS: usize = 60;

/// The receipts of the broker's changes.
async fn receipts(sidecar: &Sidecar) -> Vec<Value> {
    let swaps = sidecar.http().get("/v1.0-mecha/swaps").send().await.expect(200).json();
    let all = swaps["swaps"].as_array().cloned().unwrap_or_default();
    all.into_iter().filter(|r| r["kind"] == "Component").collect()
}

/// Publishes more than is delivered at once, and puts a broker in `next` in the place of the one that has it.
async fn leave_behind(sidecar: &Sidecar, ledger: &Ledger, next: &Path) {
    let mut load = Load::default();
    ledger.publisher(&mut load, "one", Api::new(Front::Http(sidecar.http())), Duration::from_millis(1));
    load.progress(EVENTS as u64).await;
    load.finish().await;
    std::fs::write(sidecar.resources().join("broker.yaml"), broker(next)).unwrap();
    wait_until(LIMIT, "the broker to be left", || async { !receipts(sidecar).await.is_empty() }).await;
    assert!(ledger.arrived() < EVENTS, "too fast to show anything");
}

async fn slow_app(ledger: &Ledger) -> HttpApp {
    ledger.app(WORK).await
}

fn sidecar(app: &HttpApp) -> SidecarBuilder {
    Sidecar::builder().app_id("me").app(app).flag("app-max-concurrency", "1")
}

#[tokio::test]
async fn a_stop_reads_it_to_its_end_and_then_waits_for_nothing() {
    let ledger = Ledger::default();
    let app = slow_app(&ledger).await;
    let builder = sidecar(&app).switch("mecha-strict").flag("dapr-graceful-shutdown-seconds", "0");
    let folder = builder.folder();
    let sidecar = builder.document("broker.yaml", &broker(&folder)).start().await;
    wait_subscriptions(&sidecar, 2).await;
    leave_behind(&sidecar, &ledger, &folder.join("next")).await;
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(!ended.log.contains("not read to its end"), "{}", ended.log);
    ledger.settle().await;
}

/// More than the time is enough for: the stop ends in time all the same, and says what it left.
#[tokio::test]
async fn a_stop_that_has_no_time_for_it_says_so_and_leaves_it_there() {
    let ledger = Ledger::default();
    let app = ledger.app(Duration::from_secs(1)).await;
    let builder = sidecar(&app).switch("mecha-strict");
    let folder = builder.folder();
    let mut sidecar = builder.document("broker.yaml", &broker(&folder)).start().await;
    wait_subscriptions(&sidecar, 2).await;
    leave_behind(&sidecar, &ledger, &folder.join("next")).await;
    sidecar.signal(Signal::Term);
    assert_eq!(sidecar.exited(LIMIT).await, Some(0), "{}", sidecar.log());
    assert!(sidecar.log().contains("not read to its end, the sidecar stopped before"), "{}", sidecar.log());
    assert!(ledger.arrived() < EVENTS);
    // A component that reads it again gets the rest.
    app.stop().await;
    let app = ledger.app(Duration::ZERO).await;
    let _next = Sidecar::builder().app_id("me").app(&app).component(broker(&folder)).start().await;
    ledger.settle().await;
}

/// Without strict mode a hang-up builds everything anew, and nothing there names the broker that was left.
#[tokio::test]
async fn the_next_runtime_reads_it_to_its_end() {
    let ledger = Ledger::default();
    let app = slow_app(&ledger).await;
    let builder = sidecar(&app);
    let folder = builder.folder();
    let mut sidecar = builder.document("broker.yaml", &broker(&folder)).start().await;
    wait_subscriptions(&sidecar, 2).await;
    leave_behind(&sidecar, &ledger, &folder.join("next")).await;
    for round in 1..=2 {
        sidecar.signal(Signal::Hup);
        wait_until(LIMIT, "the next runtime", || async {
            sidecar.log().matches("Received signal 'hangup'; restarting").count() == round
        })
        .await;
        wait_subscriptions(&sidecar, 2).await;
    }
    ledger.settle().await;
    wait_until(LIMIT, "the end of the change", || async {
        receipts(&sidecar).await.iter().all(|r| r["outcome"] != "draining")
    })
    .await;
    let receipt = receipts(&sidecar).await.remove(0);
    assert_eq!((receipt["outcome"].as_str(), receipt["emptied"].as_bool()), (Some("applied"), Some(true)), "{receipt}");
    sidecar.signal(Signal::Term);
    assert_eq!(sidecar.exited(LIMIT).await, Some(0), "{}", sidecar.log());
}

/// Takes events until the stream ends, each for as long as an app that works.
async fn follow(client: &mut Grpc, ledger: &Ledger) -> Result<(), tonic::Status> {
    let initial = SubscribeTopicEventsRequestInitialAlpha1 {
        pubsub_name: "events".into(),
        topic: "orders".into(),
        ..SubscribeTopicEventsRequestInitialAlpha1::default()
    };
    let ask = |kind| SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(kind) };
    let (asks, receiver) = mpsc::channel(16);
    asks.send(ask(Ask::InitialRequest(initial))).await.unwrap();
    let mut tells = client.subscribe_topic_events_alpha1(ReceiverStream::new(receiver)).await?.into_inner();
    while let Some(message) = tells.message().await? {
        if let Some(Tell::EventMessage(event)) = message.subscribe_topic_events_response_type {
            tokio::time::sleep(WORK).await;
            ledger.saw(String::from_utf8_lossy(&event.data).trim_matches('"').to_owned());
            let status = Some(TopicEventResponse { status: 0 });
            let done = SubscribeTopicEventsRequestProcessedAlpha1 { id: event.id, status };
            if asks.send(ask(Ask::EventProcessed(done))).await.is_err() {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// The stream stays where it is until all has come, from both brokers, and is opened at the successor then.
#[tokio::test]
async fn a_hand_over_reads_it_to_its_end_for_streams_too() {
    let ledger = Ledger::default();
    let builder = Sidecar::builder().app_id("me").switch("mecha-strict");
    let folder = builder.folder();
    let door = folder.join("handover.sock");
    let builder = builder.flag("mecha-handover", door.to_str().unwrap());
    let mut sidecar = builder.document("broker.yaml", &broker(&folder)).start().await;
    let subscriber = {
        let (ledger, mut client) = (ledger.clone(), sidecar.grpc().await);
        tokio::spawn(async move {
            loop {
                // However it ends: it is opened again.
                let _ = follow(&mut client, &ledger).await;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    wait_subscriptions(&sidecar, 1).await;
    leave_behind(&sidecar, &ledger, &folder.join("next")).await;
    let mut load = Load::default();
    ledger.publisher(&mut load, "more", Api::new(Front::Http(sidecar.http())), Duration::from_millis(200));
    assert_eq!(sidecar.replace(&[]).await, Ok(Some(0)), "{}", sidecar.log());
    assert!(ledger.arrived() >= EVENTS, "{} had come when the old process ended", ledger.arrived());
    wait_subscriptions(&sidecar, 1).await;
    load.progress(10).await;
    load.finish().await;
    ledger.settle().await;
    subscriber.abort();
}
