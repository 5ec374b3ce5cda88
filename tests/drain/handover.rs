//! A sidecar is replaced in place: its successor takes the listening sockets over.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use mecha_tests::{Api, Front, HttpApp, Item, Sidecar, SidecarBuilder, Signal, component, eventually};

use crate::ledger::Ledger;
use crate::load::{Ask, Load, To};
use crate::support::{LIMIT, broker, names, rounds, store, wait_subscriptions};

fn door(builder: SidecarBuilder) -> (SidecarBuilder, PathBuf) {
    let path = builder.folder().join("handover.sock");
    (builder.flag("mecha-handover", path.to_str().unwrap()), path)
}

async fn grpc(sidecar: &Sidecar) -> Api {
    Api::new(Front::Grpc(Box::new(sidecar.grpc().await)))
}

/// Replaces the sidecar and checks that the one before ended well.
async fn replace(sidecar: &mut Sidecar) {
    let before = sidecar.pid();
    let ended = sidecar.replace(&[]).await;
    assert_eq!(ended, Ok(Some(0)), "{}", sidecar.log());
    assert_ne!(sidecar.pid(), before);
}

#[tokio::test]
async fn nothing_fails_and_nothing_is_lost_while_a_sidecar_is_replaced() {
    let ledger = Ledger::default();
    let app = ledger.app(Duration::from_millis(3)).await;
    let (builder, _) = door(Sidecar::builder().app_id("me").app(&app).public());
    let folder = builder.folder();
    let mut sidecar = builder.component(store(&folder)).component(broker(&folder)).start().await;
    wait_subscriptions(&sidecar, 2).await;
    grpc(&sidecar).await.save("store", &[Item::new("k", "1")]).await.unwrap();

    let mut load = Load::default();
    let http = To::Tcp(sidecar.http_port());
    let asks = vec![
        Ask::get("/v1.0/state/store/k", 200),
        Ask::post("/v1.0/state/store", r#"[{"key": "other", "value": 1}]"#, 204),
        Ask::get("/v1.0/invoke/me/method/hello", 200),
        Ask::get("/v1.0/healthz", 204),
    ];
    for _ in 0..4 {
        load.keep_alive("HTTP, busy", http.clone(), Duration::from_millis(5), asks.clone());
    }
    load.keep_alive("HTTP, seldom", http.clone(), Duration::from_millis(300), asks.clone());
    load.fresh("HTTP, new connections", http, Duration::from_millis(5), Ask::get("/v1.0/state/store/k", 200));
    for _ in 0..2 {
        let client = Arc::new(grpc(&sidecar).await);
        load.worker("gRPC", Duration::from_millis(5), move |_| {
            let client = Arc::clone(&client);
            async move { client.get("store", "k").await.map(drop).map_err(|e| format!("{e:?}")) }
        });
    }
    ledger.publisher(&mut load, "http", Api::new(Front::Http(sidecar.http())), Duration::from_millis(10));
    ledger.publisher(&mut load, "grpc", grpc(&sidecar).await, Duration::from_millis(10));

    load.progress(200).await;
    for _ in 0..rounds(3, 20) {
        replace(&mut sidecar).await;
        load.progress(200).await;
        // Deliveries go on, too.
        wait_subscriptions(&sidecar, 2).await;
    }
    load.finish().await;
    ledger.settle().await;
    // All servers belong to the successor.
    assert!(sidecar.metrics().await.contains("dapr_"));
    sidecar.public().get("/v1.0/healthz").send().await.expect(204);
    sidecar.signal(Signal::Term);
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(0), "{}", ended.log);
}

#[tokio::test]
async fn unix_sockets_are_taken_over_too() {
    let (builder, path) = door(Sidecar::builder().app_id("me").sockets());
    let folder = builder.folder();
    let mut sidecar = builder.component(store(&folder)).start().await;
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "only this user may ask");
    let mut load = Load::default();
    let to = To::Unix(folder.join("sockets/dapr-me-http.socket"));
    let ask = Ask::get("/v1.0/state/store/none", 204);
    load.keep_alive("kept", to.clone(), Duration::from_millis(5), vec![ask.clone()]);
    load.fresh("new", to, Duration::from_millis(5), ask);
    load.progress(50).await;
    replace(&mut sidecar).await;
    load.progress(50).await;
    load.finish().await;
    assert!(sidecar.grpc().await.get_metadata(mecha_proto::runtime::GetMetadataRequest {}).await.is_ok());
    sidecar.signal(Signal::Term);
    assert_eq!(sidecar.ended(LIMIT).await.code, Some(0));
}

#[tokio::test]
async fn callers_of_a_replaced_callee_notice_nothing() {
    let shared = tempfile::tempdir().unwrap();
    let app = HttpApp::builder().on("/hello", mecha_tests::Answer::text("hi")).start().await;
    let (builder, _) = door(Sidecar::builder().app_id("callee").app(&app).configuration(&names(shared.path())));
    let mut callee = builder.start().await;
    let caller = Sidecar::builder().app_id("caller").configuration(&names(shared.path())).start().await;
    let mut load = Load::default();
    for _ in 0..4 {
        load.keep_alive(
            "invoke",
            To::Tcp(caller.http_port()),
            Duration::from_millis(5),
            vec![
                Ask::get("/v1.0/invoke/callee/method/hello", 200),
                Ask::post("/v1.0/invoke/callee/method/hello", "{}", 200),
            ],
        );
    }
    load.progress(50).await;
    for _ in 0..rounds(2, 10) {
        replace(&mut callee).await;
        load.progress(100).await;
    }
    // Longer than a name that nobody renews is known.
    let until = std::time::Instant::now() + Duration::from_secs(6);
    while std::time::Instant::now() < until {
        load.progress(50).await;
    }
    load.finish().await;
}

#[tokio::test]
async fn a_successor_that_fails_leaves_the_sidecar_as_it_is() {
    let (builder, path) = door(Sidecar::builder().app_id("me"));
    let folder = builder.folder();
    let mut sidecar = builder.component(store(&folder)).start().await;
    let pid = sidecar.pid();
    let broken = folder.join("broken");
    std::fs::create_dir(&broken).unwrap();
    let document = component("broken", "state.sqlite", &[("connectionString", "")]);
    std::fs::write(broken.join("broken.yaml"), document).unwrap();
    let broken = broken.to_str().unwrap();
    let mut load = Load::default();
    let ask = Ask::get("/v1.0/state/store/none", 204);
    load.keep_alive("kept", To::Tcp(sidecar.http_port()), Duration::from_millis(5), vec![ask.clone()]);
    load.fresh("new", To::Tcp(sidecar.http_port()), Duration::from_millis(5), ask);
    assert_eq!(sidecar.replace(&["--resources-path", broken]).await, Err(Some(1)), "{}", sidecar.log());
    sidecar.wait_log("this process goes on").await;
    // Strict mode serves without what fails, but not in place of a daemon that has it.
    let strict = ["--resources-path", broken, "--mecha-strict"];
    assert_eq!(sidecar.replace(&strict).await, Err(Some(1)), "{}", sidecar.log());
    sidecar.wait_log("component broken does not start here").await;
    // Another app's daemon is no successor.
    assert_eq!(sidecar.replace(&["--app-id", "other"]).await, Err(Some(1)), "{}", sidecar.log());
    sidecar.wait_log("the running daemon refuses to hand over").await;
    load.progress(50).await;
    assert_eq!(sidecar.pid(), pid);
    // Each of them counts; the last may be counted a moment after its process has ended.
    eventually("three failed hand-overs", || async {
        sidecar.metrics().await.contains("mecha_handover_total{app_id=\"me\",outcome=\"failed\"} 3").then_some(())
    })
    .await;
    replace(&mut sidecar).await;
    load.progress(50).await;
    load.finish().await;
    sidecar.signal(Signal::Term);
    assert_eq!(sidecar.ended(LIMIT).await.code, Some(0));
    assert!(!path.exists());
}

#[tokio::test]
async fn calls_and_events_in_flight_finish_in_the_process_that_began_them() {
    let ledger = Ledger::default();
    let app = ledger
        .subscribe(HttpApp::builder(), Duration::from_millis(1500))
        .on_call("/slow", |_| async {
            tokio::time::sleep(Duration::from_millis(1500)).await;
            mecha_tests::Answer::text("done")
        })
        .start()
        .await;
    let (builder, _) = door(Sidecar::builder().app_id("me").app(&app));
    let folder = builder.folder();
    let mut sidecar = builder.component(broker(&folder)).start().await;
    wait_subscriptions(&sidecar, 2).await;
    let http = sidecar.http();
    let call = tokio::spawn(async move { http.get("/v1.0/invoke/me/method/slow").try_send().await });
    let mut load = Load::default();
    ledger.publisher(&mut load, "one", Api::new(Front::Http(sidecar.http())), Duration::from_secs(60));
    eventually("call and event in flight", || async { (app.in_flight() >= 2).then_some(()) }).await;
    replace(&mut sidecar).await;
    let reply = call.await.unwrap().unwrap();
    assert_eq!((reply.status, reply.text().as_str()), (200, "done"));
    ledger.settle().await;
    assert_eq!(app.calls("POST /order").len(), 1, "what was in flight is not delivered again");
}

/// What a broker still holds that was left a moment ago: the successor knows nothing of it.
#[tokio::test]
async fn a_broker_that_was_left_is_read_to_its_end_by_the_process_that_left_it() {
    let ledger = Ledger::default();
    let app = ledger.app(Duration::from_millis(100)).await;
    let (builder, _) = door(Sidecar::builder().app_id("me").app(&app).switch("mecha-strict"));
    let builder = builder.flag("app-max-concurrency", "1");
    let folder = builder.folder();
    let mut sidecar = builder.document("broker.yaml", &broker(&folder)).start().await;
    wait_subscriptions(&sidecar, 2).await;
    let mut load = Load::default();
    ledger.publisher(&mut load, "one", Api::new(Front::Http(sidecar.http())), Duration::from_millis(1));
    load.progress(60).await;
    load.finish().await;
    std::fs::write(sidecar.resources().join("broker.yaml"), broker(&folder.join("next"))).unwrap();
    let http = sidecar.http();
    eventually("the broker to be left", || async {
        let swaps = http.get("/v1.0-mecha/swaps").send().await.expect(200).json();
        swaps["swaps"].as_array()?.iter().any(|r| r["kind"] == "Component").then_some(())
    })
    .await;
    println!("{} have arrived when the successor is started", ledger.arrived());
    replace(&mut sidecar).await;
    ledger.settle().await;
}

#[tokio::test]
async fn who_takes_over_from_nobody_is_told() {
    let (builder, _) = door(Sidecar::builder());
    let sidecar = builder.switch("mecha-takeover").spawn();
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(1), "{}", ended.log);
    assert!(ended.log.contains("no daemon hands its sockets over at"), "{}", ended.log);
    let ended = Sidecar::builder().switch("mecha-takeover").spawn().ended(LIMIT).await;
    assert_eq!(ended.code, Some(2), "{}", ended.log);
    assert!(ended.log.contains("--mecha-takeover needs --mecha-handover"), "{}", ended.log);
}

#[tokio::test]
async fn a_killed_daemon_does_not_stop_its_successor() {
    let (builder, path) = door(Sidecar::builder().app_id("me"));
    let folder = builder.folder();
    let mut sidecar = builder.component(store(&folder)).start().await;
    sidecar.kill().await;
    assert!(path.exists(), "a killed process cleans nothing up");
    // A plain start replaces the stale file.
    sidecar.again().await;
    replace(&mut sidecar).await;
    sidecar.http().get("/v1.0/state/store/none").send().await.expect(204);
}
