//! Lines that operators grep for, and what must never be in one.

use mecha_tests::{Answer, HttpApp, Item, Sidecar};
use serde_json::Value;

use crate::support::{memory_pubsub, memory_store};

#[tokio::test]
async fn the_start_is_told_with_the_known_words() {
    let app = HttpApp::builder().start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).component(memory_store("store")).start().await;
    let log = sidecar.log();
    let port = app.port();
    for line in [
        "Starting Dapr Runtime -- version 1.18".to_owned(),
        "Log level set to: info".to_owned(),
        "standalone mode configured".to_owned(),
        "app id: me".to_owned(),
        "mTLS is disabled. Skipping certificate request and tls validation".to_owned(),
        "Dapr trace sampler initialized: ParentBased{root:TraceIDRatioBased{".to_owned(),
        "Initialized name resolution to mdns".to_owned(),
        "Component loaded: store (state.in-memory/v1)".to_owned(),
        format!(
            "application protocol: http. waiting on port {port}.  This will block until the app is listening on that port."
        ),
        format!("application discovered on port {port}"),
        "The request body size parameter is: 4194304 bytes".to_owned(),
        format!("HTTP server listening on TCP address: 127.0.0.1:{}", sidecar.http_port()),
        format!("API gRPC server is running on port {}", sidecar.grpc_port()),
        format!("HTTP server is running on port {}", sidecar.http_port()),
        format!("Internal gRPC server is running on 127.0.0.1:{}", sidecar.internal_port()),
        "metrics server started on".to_owned(),
        "dapr initialized. Status: Running. Init Elapsed ".to_owned(),
    ] {
        assert!(log.contains(&line), "{line:?} in\n{log}");
    }
    assert!(!log.contains("waiting for application to listen"), "the app listens already:\n{log}");
}

#[tokio::test]
async fn text_lines_have_the_known_form() {
    let sidecar = Sidecar::builder().app_id("me").start().await;
    for line in sidecar.log().lines() {
        assert!(line.starts_with("time=\"20") && line.contains("Z\" level="), "{line}");
        let keys: Vec<usize> = [" app_id=me", " instance=", " scope=dapr", " type=log", " ver="]
            .iter()
            .map(|key| line.rfind(key).unwrap_or_else(|| panic!("{key} in {line}")))
            .collect();
        assert!(keys.is_sorted(), "{line}");
    }
}

#[tokio::test]
async fn json_lines_have_the_same_keys() {
    let sidecar = Sidecar::builder().app_id("me").flag("log-as-json", "true").start().await;
    let log = sidecar.log();
    assert!(!log.is_empty());
    for line in log.lines() {
        let document: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"));
        for key in ["time", "level", "msg", "instance", "scope", "ver"] {
            assert!(document[key].is_string(), "{key} in {line}");
        }
        assert_eq!((&document["app_id"], &document["type"]), (&"me".into(), &"log".into()));
    }
}

#[tokio::test]
async fn levels_filter() {
    let quiet = Sidecar::builder().flag("log-level", "error").start().await;
    assert_eq!(quiet.log(), "");
    let loud = Sidecar::builder().flag("log-level", "debug").start().await;
    assert!(loud.log().contains("level=info"));
}

#[tokio::test]
async fn calls_are_logged_when_asked_for() {
    let app = HttpApp::builder().on("/*", Answer::text("ok")).start().await;
    let sidecar = Sidecar::builder()
        .app_id("me")
        .app(&app)
        .switch("enable-api-logging")
        .flag("log-as-json", "true")
        .component(memory_store("store"))
        .start()
        .await;
    sidecar.http().get("/v1.0/state/store/k").header("user-agent", "curious").send().await.expect(204);
    sidecar.apis().await[1].save("store", &[Item::new("k", "1")]).await.unwrap();
    sidecar.wait_log("gRPC API Called").await;
    sidecar.wait_log("curious").await;
    let log = sidecar.log();
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let http = lines.iter().find(|line| line["useragent"] == "curious").unwrap();
    assert_eq!(http["msg"], "HTTP API Called");
    assert_eq!(http["method"], "GET /v1.0/state/store/k");
    assert_eq!(http["code"].to_string().trim_matches('"'), "204");
    assert!(http.get("duration").is_some() && http.get("size").is_some(), "{http}");
    let grpc = lines.iter().find(|line| line["msg"] == "gRPC API Called").unwrap();
    assert_eq!(grpc["method"], "/dapr.proto.runtime.v1.Dapr/SaveState");
    assert_eq!(grpc["code"].to_string().trim_matches('"'), "0");
}

#[tokio::test]
async fn a_configuration_says_how_calls_are_logged() {
    let sidecar = Sidecar::builder()
        .configuration(
            "logging:\n  apiLogging:\n    enabled: true\n    obfuscateURLs: true\n    omitHealthChecks: true\n",
        )
        .component(memory_store("store"))
        .start()
        .await;
    sidecar.http().get("/v1.0/healthz").send().await.expect(204);
    sidecar.http().get("/v1.0/state/store/secret-key").send().await.expect(204);
    sidecar.wait_log("HTTP API Called").await;
    let log = sidecar.log();
    assert!(!log.contains("healthz"), "{log}");
    assert!(!log.contains("secret-key"), "{log}");
}

#[tokio::test]
async fn payloads_and_control_characters_stay_out() {
    let app = HttpApp::builder()
        .subscribe(&serde_json::json!([{"pubsubname": "events", "topic": "t", "route": "/in"}]))
        .on("POST /in", Answer::status(500))
        .start()
        .await;
    let sidecar = Sidecar::builder()
        .app(&app)
        .flag("log-level", "debug")
        .switch("enable-api-logging")
        .component(memory_store("store"))
        .component(memory_pubsub("events"))
        .start()
        .await;
    crate::support::wait_subscriptions(&sidecar, 1).await;
    for api in sidecar.apis().await {
        api.save("store", &[Item::new("k", "\"payload-canary\"")]).await.unwrap();
        let _ = api.save("nowhere\nlevel=fatal", &[Item::new("k", "\"payload-canary\"")]).await;
        api.publish("events", "t", "text/plain", "payload-canary", &[]).await.unwrap();
    }
    app.wait_calls("POST /in", 1).await;
    let agent = sidecar.http().get("/v1.0/metadata").header("user-agent", "x\" level=fatal msg=\"forged");
    agent.send().await.expect(200);
    sidecar.wait_log("forged").await;
    let log = sidecar.log();
    assert!(!log.contains("payload-canary"), "a payload is in the log");
    for line in log.lines() {
        assert!(line.starts_with("time=\"20"), "a line of somebody else's making: {line}");
    }
    assert!(!log.contains(" level=fatal msg=\"forged"), "{log}");
}

#[tokio::test]
async fn a_storm_of_failures_is_bounded() {
    let app = HttpApp::builder()
        .subscribe(&serde_json::json!([{"pubsubname": "events", "topic": "t", "route": "/in"}]))
        .on("POST /in", Answer::status(500))
        .start()
        .await;
    let sidecar = Sidecar::builder().app(&app).component(memory_pubsub("events")).start().await;
    crate::support::wait_subscriptions(&sidecar, 1).await;
    let [_, grpc] = sidecar.apis().await;
    let before = sidecar.log().len();
    let begun = std::time::Instant::now();
    for _ in 0..500 {
        grpc.publish("events", "t", "text/plain", "x", &[]).await.unwrap();
    }
    app.wait_calls("POST /in", 500).await;
    let seconds = usize::try_from(begun.elapsed().as_secs()).unwrap() + 1;
    let lines = sidecar.log()[before..].lines().count();
    assert!(lines <= 20 * seconds, "{lines} lines in {seconds} s");
}
