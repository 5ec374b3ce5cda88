//! Rolling restarts: a steady caller through its own sidecar, two replicas of the callee, one restarted at a time.

use std::time::Duration;

use mecha_proto::common::{HttpExtension, InvokeRequest, http_extension::Verb};
use mecha_proto::runtime::InvokeServiceRequest;
use mecha_tests::{Api, Front, HttpApp, HttpAppBuilder, Sidecar, Signal};
use serde_json::json;

use crate::ledger::Ledger;
use crate::load::{Ask, Load, To};
use crate::support::{LIMIT, broker, names, rounds, wait_subscriptions};

fn invoke(id: &str) -> InvokeServiceRequest {
    let http = HttpExtension { verb: Verb::Post.into(), querystring: String::new() };
    let message = InvokeRequest { method: "hello".into(), http_extension: Some(http), ..InvokeRequest::default() };
    InvokeServiceRequest { id: id.into(), message: Some(message) }
}

#[tokio::test]
async fn restarts_under_load_fail_no_request_and_lose_no_message() {
    let shared = tempfile::tempdir().unwrap();
    let folder = shared.path();
    let ledger = Ledger::default();
    let mut replicas = Vec::new();
    for _ in 0..2 {
        // Slow enough that something is in flight at each stop.
        let app = ledger.app(Duration::from_millis(5)).await;
        let builder = Sidecar::builder().app_id("callee").app(&app).configuration(&names(folder));
        let sidecar = builder.component(broker(folder)).start().await;
        wait_subscriptions(&sidecar, 2).await;
        replicas.push((sidecar, app));
    }
    let caller = Sidecar::builder().app_id("caller").configuration(&names(folder));
    let caller = caller.component(broker(folder)).start().await;

    let mut load = Load::default();
    let asks = vec![
        Ask::get("/v1.0/invoke/callee/method/hello", 200),
        Ask::post("/v1.0/invoke/callee/method/hello", r#"{"n": 1}"#, 200),
    ];
    for _ in 0..6 {
        load.keep_alive("HTTP invoke", To::Tcp(caller.http_port()), Duration::from_millis(10), asks.clone());
    }
    for _ in 0..2 {
        let client = caller.grpc().await;
        load.worker("gRPC invoke", Duration::from_millis(10), move |_| {
            let mut client = client.clone();
            async move { client.invoke_service(invoke("callee")).await.map(drop).map_err(|s| format!("{s:?}")) }
        });
    }
    let [http, grpc] = caller.apis().await;
    ledger.publisher(&mut load, "http", http, Duration::from_millis(10));
    ledger.publisher(&mut load, "grpc", grpc, Duration::from_millis(10));
    load.progress(200).await;

    for round in 0..rounds(10, 100) {
        let (sidecar, _) = &mut replicas[round % 2];
        sidecar.signal(Signal::Term);
        let code = sidecar.exited(LIMIT).await;
        assert_eq!(code, Some(0), "{}", sidecar.log());
        load.progress(50).await;
        sidecar.again().await;
        wait_subscriptions(sidecar, 2).await;
        load.progress(50).await;
    }
    load.finish().await;
    ledger.settle().await;
    for (_, app) in &replicas {
        assert!(!app.calls("/hello").is_empty(), "both replicas are called");
    }
}

#[tokio::test]
async fn an_app_that_is_gone_before_its_sidecar_leaves_its_events_to_others() {
    let shared = tempfile::tempdir().unwrap();
    let folder = shared.path();
    let ledger = Ledger::default();
    // With a dead letter topic, what an absent app does not take belongs there, stop or no stop.
    let plain =
        |app: HttpAppBuilder| app.subscribe(&json!([{"pubsubname": "events", "topic": "orders", "route": "/order"}]));
    let app = plain(ledger.subscribe(HttpApp::builder(), Duration::ZERO)).start().await;
    let builder = Sidecar::builder().app_id("callee").app(&app);
    let mut sidecar = builder.component(broker(folder)).start().await;
    wait_subscriptions(&sidecar, 1).await;
    let port = app.port();
    app.stop().await;
    let mut load = Load::default();
    ledger.publisher(&mut load, "one", Api::new(Front::Http(sidecar.http())), Duration::from_millis(5));
    load.progress(20).await;
    load.finish().await;
    sidecar.signal(Signal::Term);
    assert_eq!(sidecar.exited(LIMIT).await, Some(0), "{}", sidecar.log());
    // With its app back, everything comes; nothing was given up meanwhile.
    let app = plain(ledger.subscribe(HttpApp::builder(), Duration::ZERO)).port(port).start().await;
    sidecar.again().await;
    ledger.settle().await;
    assert!(app.calls("POST /order").len() >= 20);
}
