//! The order of a stop as clients, streams and messages see it.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use mecha_proto::runtime::subscribe_topic_events_request_alpha1::SubscribeTopicEventsRequestType;
use mecha_proto::runtime::{SubscribeTopicEventsRequestAlpha1, SubscribeTopicEventsRequestInitialAlpha1};
use mecha_tests::{Answer, Api, Call, Front, HttpApp, Sidecar, Signal, component, wait_until};
use serde_json::json;
use tokio::net::TcpStream;

use crate::ledger::Ledger;
use crate::load::{Ask, Load, To};
use crate::support::{LIMIT, broker, names, store, wait_subscriptions};

/// An app with a slow call.
async fn slow(limit: Duration) -> HttpApp {
    HttpApp::builder()
        .on_call("/slow", move |_: Call| async move {
            tokio::time::sleep(limit).await;
            Answer::text("done")
        })
        .start()
        .await
}

#[tokio::test]
async fn http2_clients_get_a_goaway_and_their_calls_finish() {
    let app = slow(Duration::from_secs(1)).await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).start().await;
    let io = TokioIo::new(TcpStream::connect(("127.0.0.1", sidecar.http_port())).await.unwrap());
    let (mut send, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
    let connection = tokio::spawn(connection);
    let uri = format!("http://localhost:{}/v1.0/invoke/me/method/slow", sidecar.http_port());
    let request = hyper::Request::get(uri).body(Empty::<Bytes>::new()).unwrap();
    let answer = tokio::spawn(send.send_request(request));
    wait_until(LIMIT, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    sidecar.signal(Signal::Term);
    let response = answer.await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
    drop(send);
    // GOAWAY with no error, not a connection that was cut.
    connection.await.unwrap().unwrap();
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn an_http1_client_hears_that_its_connection_closes() {
    let app = slow(Duration::from_millis(700)).await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).start().await;
    let http = sidecar.http();
    let call = tokio::spawn(async move { http.get("/v1.0/invoke/me/method/slow").try_send().await });
    wait_until(LIMIT, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    sidecar.signal(Signal::Term);
    let reply = call.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.header("connection")), (200, "close"));
    assert_eq!(sidecar.ended(LIMIT).await.code, Some(0));
}

#[tokio::test]
async fn idle_connections_do_not_hold_a_stop_up() {
    let sidecar = Sidecar::builder().flag("dapr-graceful-shutdown-seconds", "30").start().await;
    let mut idle = Vec::new();
    for port in [sidecar.http_port(), sidecar.grpc_port(), sidecar.internal_port(), sidecar.metrics_port()] {
        idle.push(TcpStream::connect(("127.0.0.1", port)).await.unwrap());
    }
    let mut load = Load::default();
    let ask = Ask::get("/v1.0/healthz/outbound", 204);
    load.keep_alive("kept", To::Tcp(sidecar.http_port()), Duration::from_millis(1), vec![ask]);
    load.progress(5).await;
    load.finish().await;
    let begun = Instant::now();
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    drop(idle);
}

#[tokio::test]
async fn streams_get_a_clean_end() {
    let builder = Sidecar::builder();
    let folder = builder.folder();
    let sidecar = builder.component(broker(&folder)).component(store(&folder)).start().await;
    let mut client = sidecar.grpc().await;
    let initial = SubscribeTopicEventsRequestInitialAlpha1 {
        pubsub_name: "events".into(),
        topic: "orders".into(),
        dead_letter_topic: Some("dead".into()),
        ..Default::default()
    };
    let kind = SubscribeTopicEventsRequestType::InitialRequest(initial);
    let first = SubscribeTopicEventsRequestAlpha1 { subscribe_topic_events_request_type: Some(kind) };
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    sender.send(first).await.unwrap();
    let requests = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut events = client.subscribe_topic_events_alpha1(requests).await.unwrap().into_inner();
    assert!(events.message().await.unwrap().is_some(), "the subscription is confirmed");
    sidecar.signal(Signal::Term);
    let end = tokio::time::timeout(LIMIT, events.message()).await.unwrap();
    match end {
        Ok(None) => {}
        Err(status) => assert_eq!(status.code(), tonic::Code::Unavailable, "{status:?}"),
        Ok(Some(event)) => panic!("{event:?}"),
    }
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    drop(sender);
}

#[tokio::test]
async fn events_that_fail_during_a_stop_are_not_dead_letters() {
    let shared = tempfile::tempdir().unwrap();
    let ledger = Ledger::default();
    let (asked, stopping) =
        (std::sync::Arc::new(tokio::sync::Semaphore::new(0)), std::sync::Arc::new(tokio::sync::Notify::new()));
    // It fails what is in flight once the stop has begun, as an app does that stops itself.
    let app = {
        let (asked, stopping) = (asked.clone(), stopping.clone());
        HttpApp::builder()
            .subscribe(
                &json!([{"pubsubname": "events", "topic": "orders", "route": "/order", "deadLetterTopic": "dead"}]),
            )
            .on_call("POST /order", move |_: Call| {
                let (asked, stopping) = (asked.clone(), stopping.clone());
                async move {
                    asked.add_permits(1);
                    stopping.notified().await;
                    Answer::status(500)
                }
            })
            .start()
            .await
    };
    let builder = Sidecar::builder().app_id("me").app(&app).flag("dapr-graceful-shutdown-seconds", "20");
    let mut sidecar = builder.component(broker(shared.path())).start().await;
    wait_subscriptions(&sidecar, 1).await;
    let mut load = Load::default();
    ledger.publisher(&mut load, "one", Api::new(Front::Http(sidecar.http())), Duration::from_secs(60));
    asked.acquire().await.unwrap().forget();
    sidecar.signal(Signal::Term);
    sidecar.wait_log("Dapr is shutting down").await;
    stopping.notify_waiters();
    assert_eq!(sidecar.exited(LIMIT).await, Some(0), "{}", sidecar.log());
    drop(sidecar);
    app.stop().await;
    load.finish().await;
    let app = ledger.app(Duration::ZERO).await;
    let _next = Sidecar::builder().app_id("me").app(&app).component(broker(shared.path())).start().await;
    ledger.settle().await;
}

#[tokio::test]
async fn a_blocked_stop_serves_everybody_but_takes_no_events() {
    let shared = tempfile::tempdir().unwrap();
    let folder = shared.path();
    let ledger = Ledger::default();
    let app = ledger.app(Duration::ZERO).await;
    let builder = Sidecar::builder().app_id("callee").app(&app).flag("dapr-block-shutdown-duration", "20s");
    let mut callee = builder.configuration(&names(folder)).component(broker(folder)).start().await;
    wait_subscriptions(&callee, 2).await;
    let caller = Sidecar::builder().app_id("caller").configuration(&names(folder));
    let caller = caller.component(broker(folder)).start().await;
    callee.signal(Signal::Term);
    callee.wait_log("Blocking graceful shutdown for 20s or until app reports unhealthy...").await;
    let mut load = Load::default();
    // Published from here on: nobody takes it before the callee is back.
    wait_until(LIMIT, "the subscriptions to end", || async {
        let reply = callee.http().get("/v1.0/healthz").try_send().await;
        reply.is_ok_and(|reply| reply.status == 500)
    })
    .await;
    load.keep_alive(
        "invoke",
        To::Tcp(caller.http_port()),
        Duration::from_millis(5),
        vec![Ask::get("/v1.0/invoke/callee/method/hello", 200)],
    );
    let own = Ask::get("/v1.0/healthz/outbound", 204);
    load.keep_alive("own API", To::Tcp(callee.http_port()), Duration::from_millis(5), vec![own]);
    // Over well before the block is, also where many share the machine.
    load.progress(50).await;
    load.finish().await;
    assert_eq!(callee.exited(LIMIT).await, Some(0), "{}", callee.log());
    let mut load = Load::default();
    ledger.publisher(&mut load, "later", Api::new(Front::Http(caller.http())), Duration::from_millis(5));
    load.progress(10).await;
    load.finish().await;
    callee.again().await;
    ledger.settle().await;
}

#[tokio::test]
async fn an_input_binding_finishes_its_event() {
    let app = HttpApp::builder()
        .on("OPTIONS /tick", Answer::status(200))
        .on_call("POST /tick", |_: Call| async {
            tokio::time::sleep(Duration::from_millis(1200)).await;
            Answer::status(200)
        })
        .start()
        .await;
    let tick = component("tick", "bindings.cron", &[("schedule", "@every 1s")]);
    let mut sidecar = Sidecar::builder().app(&app).component(tick).start().await;
    wait_until(LIMIT, "an event", || async { app.in_flight() == 1 }).await;
    sidecar.signal(Signal::Term);
    assert_eq!(sidecar.exited(LIMIT).await, Some(0), "{}", sidecar.log());
    assert_eq!(app.in_flight(), 0, "the stop waited for the app's answer");
    assert!(!sidecar.log().contains("error from app consumer"), "{}", sidecar.log());
}
