//! Targets outside: full URLs and endpoint documents.

use mecha_tests::{Answer, HttpApp, Sidecar, escape};

#[tokio::test]
async fn a_url_is_a_target_outside_strict_mode() {
    let there = HttpApp::builder().on("/*", Answer::text("outside")).start().await;
    let sidecar = Sidecar::builder().start().await;
    let url = format!("http://127.0.0.1:{}", there.port());
    let path = format!("/v1.0/invoke/{}/method/a/b?q=1", escape(&url));
    assert_eq!(sidecar.http().get(path).send().await.expect(200).text(), "outside");
    assert_eq!(there.all_calls()[0].target, "/a/b?q=1");
    let reply = sidecar.http().get("/c").header("dapr-app-id", &url).send().await.expect(200);
    assert_eq!(reply.text(), "outside");
    let plain = sidecar.http().get(format!("/v1.0/invoke/{url}/method/d")).send().await;
    assert_eq!(plain.status, 200, "{}", plain.text());
}

#[tokio::test]
async fn strict_mode_takes_declared_targets_only() {
    let there = HttpApp::builder().on("/*", Answer::text("outside")).start().await;
    let url = format!("http://127.0.0.1:{}", there.port());
    let endpoint = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata:\n  name: declared\nspec:\n  baseUrl: {url}\n"
    );
    let sidecar = Sidecar::builder().switch("mecha-strict").component(endpoint).start().await;
    let undeclared = ["http://127.0.0.1:1", "http://169.254.169.254/latest", "http://[::ffff:169.254.169.254]"];
    for target in undeclared {
        let reply = sidecar.http().get(format!("/v1.0/invoke/{}/method/x", escape(target))).send().await;
        assert_eq!(reply.status, 403, "{target}: {}", reply.text());
    }
    assert!(there.all_calls().is_empty());
    // Declared ones may be private or loopback.
    sidecar.http().get("/v1.0/invoke/declared/method/x").send().await.expect(200);
}

#[tokio::test]
async fn a_declared_metadata_address_is_refused_in_strict_mode() {
    let endpoint = "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata:\n  name: bad\nspec:\n  baseUrl: \
                    http://169.254.169.254\n";
    let sidecar = Sidecar::builder().switch("mecha-strict").component(endpoint).start().await;
    let reply = sidecar.http().get("/v1.0/invoke/bad/method/latest/meta-data").send().await;
    assert!(reply.status == 403 || reply.status == 500, "{reply:?}");
    assert!(!reply.message().contains("after 3 retries"), "it was tried: {}", reply.text());
}

#[tokio::test]
async fn strict_mode_closes_routes_that_are_not_for_peers() {
    let app = HttpApp::builder()
        .subscribe(&serde_json::json!([{"pubsubname": "events", "topic": "t", "route": "/on-event"}]))
        .on("/*", Answer::text("seen"))
        .start()
        .await;
    let builder = |b: mecha_tests::SidecarBuilder| {
        b.app(&app).switch("mecha-strict").component(crate::support::memory_pubsub("events"))
    };
    let pair = crate::support::Pair::built(|b| b, builder).await;
    crate::support::wait_subscriptions(&pair.callee, 1).await;
    let http = pair.caller.http();
    for path in ["on-event", "on-event/", "%6Fn-event", "dapr/subscribe", "dapr/config"] {
        let reply = http.post(format!("/v1.0/invoke/callee/method/{path}"), "x").send().await;
        assert_eq!(reply.status, 403, "{path}: {}", reply.text());
    }
    http.get("/v1.0/invoke/callee/method/open").send().await.expect(200);
    assert!(app.calls("POST /on-event").is_empty());
}
