//! Streams of a sidecar that is replaced in place: each ends well where it is, and is opened again at the successor.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use mecha_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType as Ask;
use mecha_proto::runtime::subscribe_topic_events_response_alpha1::SubscribeTopicEventsResponseType as Tell;
use mecha_proto::runtime::{
    SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1,
    SubscribeTopicEventsRequestProcessedAlpha1, TopicEventResponse,
};
use mecha_tests::{Api, Front, Grpc, Sidecar, Signal, wait_until};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use crate::ledger::Ledger;
use crate::load::{Ask as Call, Load, To};
use crate::support::{LIMIT, broker, rounds, wait_subscriptions};

/// Pause of a client before it opens a stream again.
const AGAIN: Duration = Duration::from_millis(20);

/// Takes events until the stream ends.
async fn follow(client: &mut Grpc, ledger: &Ledger, opened: &AtomicU32) -> Result<(), Status> {
    let initial = SubscribeTopicEventsRequestInitialAlpha1 {
        pubsub_name: "events".into(),
        topic: "orders".into(),
        dead_letter_topic: Some("dead".into()),
        ..SubscribeTopicEventsRequestInitialAlpha1::default()
    };
    let ask = |kind| SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(kind) };
    let (asks, receiver) = mpsc::channel(16);
    asks.send(ask(Ask::InitialRequest(initial))).await.unwrap();
    let mut tells = client.subscribe_topic_events_alpha1(ReceiverStream::new(receiver)).await?.into_inner();
    while let Some(message) = tells.message().await? {
        match message.subscribe_topic_events_response_type {
            Some(Tell::EventMessage(event)) => {
                let text = String::from_utf8_lossy(&event.data);
                ledger.saw(text.trim_matches('"').to_owned());
                let status = Some(TopicEventResponse { status: 0 });
                let done = SubscribeTopicEventsRequestProcessedAlpha1 { id: event.id, status };
                // A stream that has ended takes no answer; the event comes again.
                if asks.send(ask(Ask::EventProcessed(done))).await.is_err() {
                    return Ok(());
                }
            }
            Some(Tell::InitialResponse(_)) => drop(opened.fetch_add(1, Ordering::SeqCst)),
            None => {}
        }
    }
    Ok(())
}

#[tokio::test]
async fn streams_end_well_and_go_on_at_the_successor() {
    let builder = Sidecar::builder().app_id("me");
    let path = builder.folder().join("handover.sock");
    let folder = builder.folder();
    let builder = builder.flag("mecha-handover", path.to_str().unwrap());
    let mut sidecar = builder.component(broker(&folder)).start().await;
    let (ledger, opened, stop) = (Ledger::default(), Arc::new(AtomicU32::new(0)), watch::Sender::new(false));
    let subscriber = {
        let (ledger, opened, mut stop) = (ledger.clone(), opened.clone(), stop.subscribe());
        let mut client = sidecar.grpc().await;
        tokio::spawn(async move {
            let mut ends = Vec::new();
            loop {
                let end = tokio::select! {
                    end = follow(&mut client, &ledger, &opened) => end,
                    _ = stop.wait_for(|stop| *stop) => return ends,
                };
                ends.push(end.err());
                tokio::time::sleep(AGAIN).await;
            }
        })
    };
    wait_subscriptions(&sidecar, 1).await;
    let mut load = Load::default();
    ledger.publisher(&mut load, "http", Api::new(Front::Http(sidecar.http())), Duration::from_millis(5));
    let grpc = Api::new(Front::Grpc(Box::new(sidecar.grpc().await)));
    ledger.publisher(&mut load, "grpc", grpc, Duration::from_millis(5));
    let kept = Call::get("/v1.0/healthz", 204);
    load.keep_alive("HTTP", To::Tcp(sidecar.http_port()), Duration::from_millis(5), vec![kept]);
    load.progress(100).await;
    for round in 0..rounds(3, 20) {
        let (before, streams) = (sidecar.pid(), opened.load(Ordering::SeqCst));
        let ended = sidecar.replace(&[]).await;
        assert_eq!(ended, Ok(Some(0)), "{}", sidecar.log());
        assert_ne!(sidecar.pid(), before);
        wait_until(LIMIT, "the stream at the successor", || async { opened.load(Ordering::SeqCst) > streams }).await;
        let arrived = ledger.arrived();
        load.progress(100).await;
        wait_until(LIMIT, "events on the new stream", || async { ledger.arrived() > arrived }).await;
        let text = sidecar.metrics().await;
        assert!(text.contains("mecha_handover_total{app_id=\"me\",outcome=\"takenOver\"} 1"), "{round}: {text}");
        assert!(text.contains("mecha_handover_latencies_count{app_id=\"me\",stage=\"serving\"} 1"), "{round}: {text}");
    }
    load.finish().await;
    ledger.settle().await;
    stop.send_replace(true);
    let ends = subscriber.await.unwrap();
    // By its end, or by one that says: elsewhere.
    let bad: Vec<_> = ends.iter().flatten().filter(|status| status.code() != Code::Unavailable).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    println!("{} streams, {} ends", opened.load(Ordering::SeqCst), ends.len());
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}
