//! How a sidecar ends, and how it begins anew.

use std::time::{Duration, Instant};

use mecha_proto::runtime::ShutdownRequest;
use mecha_tests::{Answer, HttpApp, Item, Sidecar, Signal, eventually, wait_until};
use serde_json::json;
use tonic::Request;

use crate::support::{Pair, broker, memory_store, sqlite_store, wait_subscriptions};

const SOON: Duration = Duration::from_secs(15);

#[tokio::test]
async fn signals_end_it_gracefully() {
    for (signal, name) in [(Signal::Term, "terminated"), (Signal::Int, "interrupt")] {
        let sidecar = Sidecar::builder().component(memory_store("store")).start().await;
        sidecar.signal(signal);
        let ended = sidecar.ended(SOON).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
        for line in [
            format!("Received signal '{name}'; beginning shutdown"),
            "Dapr is shutting down".to_owned(),
            "Shutting down component store".to_owned(),
            "Dapr runtime stopped".to_owned(),
            "Daprd shutdown gracefully".to_owned(),
        ] {
            assert!(ended.log.contains(&line), "{line:?} in\n{}", ended.log);
        }
    }
}

#[tokio::test]
async fn the_api_ends_it_on_both_fronts() {
    let sidecar = Sidecar::builder().start().await;
    sidecar.http().post("/v1.0/shutdown", "").send().await.expect(204);
    let ended = sidecar.ended(SOON).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("Shutdown requested via API"));
    let sidecar = Sidecar::builder().start().await;
    sidecar.grpc().await.shutdown(ShutdownRequest {}).await.unwrap();
    assert_eq!(sidecar.ended(SOON).await.code, Some(0));
}

#[tokio::test]
async fn the_api_ends_it_by_force() {
    let line = "Force shutdown requested, exiting immediately without graceful shutdown";
    let sidecar = Sidecar::builder().start().await;
    let request = sidecar.http().post("/v1.0/shutdown", "").header("dapr-force-shutdown", "true");
    request.send().await.expect(204);
    let ended = sidecar.ended(SOON).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains(line), "{}", ended.log);
    let sidecar = Sidecar::builder().start().await;
    let mut request = Request::new(ShutdownRequest {});
    request.metadata_mut().insert("dapr-force-shutdown", "true".parse().unwrap());
    sidecar.grpc().await.shutdown(request).await.unwrap();
    assert_eq!(sidecar.ended(SOON).await.code, Some(1));
}

/// An app whose answer takes a while.
fn slow(millis: u64) -> mecha_tests::HttpAppBuilder {
    HttpApp::builder().on_call("/slow", move |_| async move {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        Answer::text("done")
    })
}

#[tokio::test]
async fn calls_in_flight_finish() {
    let app = slow(700).start().await;
    let pair = Pair::with(&app).await;
    let http = pair.caller.http();
    let call = tokio::spawn(async move { http.get("/v1.0/invoke/callee/method/slow").try_send().await });
    wait_until(SOON, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    // Both ends are told to stop while the call is on its way.
    pair.callee.signal(Signal::Term);
    pair.caller.signal(Signal::Term);
    let reply = call.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    let Pair { caller, callee, .. } = pair;
    for sidecar in [caller, callee] {
        let ended = sidecar.ended(SOON).await;
        assert_eq!(ended.code, Some(0), "{}", ended.log);
    }
}

#[tokio::test]
async fn time_over_means_exit_1() {
    let app = slow(60_000).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).flag("dapr-graceful-shutdown-seconds", "1").start().await;
    let http = sidecar.http();
    let call = tokio::spawn(async move { http.get("/v1.0/invoke/me/method/slow").try_send().await });
    wait_until(SOON, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    let begun = Instant::now();
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(SOON).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains("Graceful shutdown timeout exceeded, forcing shutdown"));
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    let _ = call.await;
}

#[tokio::test]
async fn a_second_signal_ends_it_at_once() {
    let app = slow(60_000).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).flag("dapr-graceful-shutdown-seconds", "60").start().await;
    let http = sidecar.http();
    let call = tokio::spawn(async move { http.get("/v1.0/invoke/me/method/slow").try_send().await });
    wait_until(SOON, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    sidecar.signal(Signal::Term);
    sidecar.wait_log("beginning shutdown").await;
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(SOON).await;
    assert!(ended.code.is_some_and(|code| code != 0), "{:?}", ended.code);
    assert!(ended.log.contains("during shutdown; exiting immediately"), "{}", ended.log);
    let _ = call.await;
}

#[tokio::test]
async fn the_stop_can_be_blocked_for_a_while() {
    let app = HttpApp::builder().on("/hello", Answer::text("hi")).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).flag("dapr-block-shutdown-duration", "2s").start().await;
    let begun = Instant::now();
    sidecar.signal(Signal::Term);
    sidecar.wait_log("Blocking graceful shutdown for 2s or until app reports unhealthy...").await;
    // All APIs go on, and health says that this one is going away.
    assert_eq!(sidecar.http().get("/v1.0/invoke/me/method/hello").send().await.expect(200).text(), "hi");
    sidecar.http().get("/v1.0/healthz").send().await.expect(500);
    let ended = sidecar.ended(SOON).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(begun.elapsed() >= Duration::from_secs(2));
    assert!(ended.log.contains("Block shutdown period expired, entering shutdown..."));
}

#[tokio::test]
async fn an_unhealthy_app_ends_the_block() {
    let app = HttpApp::builder().on("GET /healthz", Answer::status(200)).start().await;
    let sidecar = Sidecar::builder()
        .app(&app)
        .flag("dapr-block-shutdown-duration", "60s")
        .switch("enable-app-health-check")
        .flag("app-health-probe-interval", "1")
        .flag("app-health-threshold", "1")
        .start()
        .await;
    sidecar.wait_log("App entered healthy status").await;
    sidecar.signal(Signal::Term);
    sidecar.wait_log("Blocking graceful shutdown for").await;
    app.set("GET /healthz", Answer::status(500));
    let ended = sidecar.ended(SOON).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("App reported unhealthy, entering shutdown..."));
}

#[tokio::test]
async fn an_event_in_flight_is_finished_and_not_delivered_twice() {
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": "events", "topic": "topic", "route": "/in"}]))
        .on_call("POST /in", |_| async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Answer::status(200)
        })
        .start()
        .await;
    let builder = Sidecar::builder().app(&app);
    let folder = builder.folder().join("broker");
    let mut sidecar = builder.component(broker("events", &folder)).start().await;
    wait_subscriptions(&sidecar, 1).await;
    let [api, _] = sidecar.apis().await;
    api.publish("events", "topic", "", "once", &[]).await.unwrap();
    wait_until(SOON, "the delivery", || async { app.in_flight() == 1 }).await;
    sidecar.signal(Signal::Term);
    eventually("the end", || std::future::ready((!sidecar.runs()).then_some(()))).await;
    assert!(sidecar.log().contains("Daprd shutdown gracefully"), "{}", sidecar.log());
    sidecar.again().await;
    wait_subscriptions(&sidecar, 1).await;
    api.publish("events", "topic", "", "after", &[]).await.unwrap();
    let calls = app.wait_calls("POST /in", 2).await;
    let seen: Vec<_> = calls.iter().map(|call| call.json()["data"].clone()).collect();
    assert_eq!(seen, [json!("once"), json!("after")]);
}

#[tokio::test]
async fn a_hangup_rebuilds_in_place() {
    let builder = Sidecar::builder();
    let file = builder.folder().join("state.db");
    let sidecar = builder.component(memory_store("memory")).component(sqlite_store("sqlite", &file)).start().await;
    let pid = sidecar.pid();
    for api in sidecar.apis().await {
        api.save("sqlite", &[Item::new("k", "1")]).await.unwrap();
    }
    let saved = "dapr_component_state_count";
    let labels = [("component", "sqlite"), ("operation", "set")];
    let before = crate::support::series(&sidecar.metrics().await, saved, &labels).unwrap();
    std::fs::write(sidecar.resources().join("new.yaml"), memory_store("added")).unwrap();
    sidecar.signal(Signal::Hup);
    sidecar.wait_log("Received signal 'hangup'; restarting").await;
    eventually("the new component", || async {
        let document = sidecar.metadata().await;
        document["components"].as_array()?.iter().any(|c| c["name"] == "added").then_some(())
    })
    .await;
    assert_eq!(sidecar.pid(), pid);
    for api in sidecar.apis().await {
        assert_eq!(api.get("sqlite", "k").await.unwrap().unwrap().text(), "1");
        api.save("added", &[Item::new("k", "1")]).await.unwrap();
    }
    // Metrics go on counting.
    let after = crate::support::series(&sidecar.metrics().await, saved, &labels).unwrap();
    assert!(after >= before, "{after} after {before}");
}

#[tokio::test]
async fn a_hangup_loses_no_call() {
    let app = slow(300).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).component(memory_store("store")).start().await;
    let http = sidecar.http();
    let call = {
        let http = http.clone();
        tokio::spawn(async move { http.get("/v1.0/invoke/me/method/slow").try_send().await })
    };
    wait_until(SOON, "the call to reach the app", || async { app.in_flight() == 1 }).await;
    sidecar.signal(Signal::Hup);
    let mut asked = 0;
    while !sidecar.log().contains("restarting") || asked < 50 {
        let reply = http.get("/v1.0/healthz").send().await;
        assert_eq!(reply.status, 204, "health during a rebuild: {}", reply.text());
        http.get("/v1.0/state/store/k").send().await.expect(204);
        asked += 1;
    }
    assert_eq!(call.await.unwrap().unwrap().status, 200);
}

#[tokio::test]
async fn many_rebuilds_cost_nothing() {
    let sidecar = Sidecar::builder().component(memory_store("store")).start().await;
    let count = if std::env::var_os("MECHA_TEST_LONG").is_some() { 200 } else { 10 };
    let lines = |sidecar: &Sidecar| sidecar.log().matches("dapr initialized. Status: Running.").count();
    let rebuild = |sidecar: &Sidecar| {
        let before = lines(sidecar);
        sidecar.signal(Signal::Hup);
        before
    };
    // The first ones fill pools and caches.
    for _ in 0..3 {
        let before = rebuild(&sidecar);
        wait_until(SOON, "the rebuild", || async { lines(&sidecar) > before }).await;
    }
    let descriptors = || std::fs::read_dir(format!("/proc/{}/fd", sidecar.pid())).unwrap().count();
    let (kib, open) = (sidecar.resident_kib(), descriptors());
    for _ in 0..count {
        let before = rebuild(&sidecar);
        wait_until(SOON, "the rebuild", || async { lines(&sidecar) > before }).await;
    }
    wait_until(SOON, "descriptors to be closed", || async { descriptors() <= open + 4 }).await;
    let grown = sidecar.resident_kib().saturating_sub(kib);
    assert!(grown < 8 << 10, "grew by {grown} KiB in {count} rebuilds");
}
