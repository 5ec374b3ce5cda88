//! Health, and what it says while the app is not there yet.

use mecha_tests::{Answer, GrpcApp, HttpApp, Sidecar, eventually, free_port};
use tonic::Code;

#[tokio::test]
async fn a_ready_sidecar_answers_204() {
    let sidecar = Sidecar::builder().app_id("me").public().start().await;
    for client in [sidecar.http(), sidecar.public()] {
        for path in [
            "/v1.0/healthz",
            "/v1.0/healthz/outbound",
            "/v1.0/healthz?appid=me",
            "/v1.0/healthz/outbound?appid=me",
            "/v1.0/healthz?appid=me&appid=other",
            "/v1.0/healthz/",
        ] {
            let reply = client.get(path).send().await;
            assert_eq!((reply.status, reply.body.len()), (204, 0), "{path}: {reply:?}");
        }
        let reply = client.get("/v1.0/healthz?appid=other").send().await.expect(500);
        assert_eq!(reply.code(), "ERR_HEALTH_APPID_NOT_MATCH");
    }
}

#[tokio::test]
async fn output_works_before_the_app_is_there() {
    let port = free_port();
    let sidecar = Sidecar::builder()
        .flag("app-port", port.to_string())
        .component(crate::support::memory_store("store"))
        .start_outbound()
        .await;
    let reply = sidecar.http().get("/v1.0/healthz").send().await.expect(500);
    assert_eq!(reply.code(), "ERR_HEALTH_NOT_READY");
    assert!(reply.message().starts_with("dapr is not ready: ["), "{}", reply.text());
    for api in sidecar.apis().await {
        api.save("store", &[mecha_tests::Item::new("k", "1")]).await.unwrap();
    }
    let _app = HttpApp::builder().port(port).start().await;
    eventually("readiness", || async {
        (sidecar.http().get("/v1.0/healthz").send().await.status == 204).then_some(())
    })
    .await;
    assert!(sidecar.log().contains(&format!(
        "application protocol: http. waiting on port {port}.  This will block until the app is listening on that port."
    )));
    assert!(sidecar.log().contains(&format!("application discovered on port {port}")));
}

#[tokio::test]
async fn without_an_app_nothing_waits() {
    let sidecar = Sidecar::builder().start().await;
    assert!(!sidecar.log().contains("waiting on port"), "{}", sidecar.log());
    assert!(sidecar.log().contains("dapr initialized. Status: Running. Init Elapsed "));
}

#[tokio::test]
async fn an_unhealthy_app_is_left_alone_until_it_recovers() {
    let app = HttpApp::builder().on("GET /alive", Answer::status(500)).on("/hello", Answer::text("hi")).start().await;
    let sidecar = Sidecar::builder()
        .app_id("me")
        .app(&app)
        .switch("enable-app-health-check")
        .flag("app-health-check-path", "/alive")
        .flag("app-health-probe-interval", "1")
        .flag("app-health-threshold", "1")
        .start_outbound()
        .await;
    // It starts as unhealthy, until the first good probe.
    let reply = sidecar.http().get("/v1.0/invoke/me/method/hello").send().await.expect(500);
    assert_eq!(reply.code(), "ERR_DIRECT_INVOKE");
    assert!(reply.message().contains("app is not in a healthy state"), "{}", reply.text());
    assert!(app.calls("/hello").is_empty());
    app.set("GET /alive", Answer::status(204));
    sidecar.wait_log("App entered healthy status").await;
    eventually("calls to work", || async {
        (sidecar.http().get("/v1.0/invoke/me/method/hello").send().await.status == 200).then_some(())
    })
    .await;
    app.set("GET /alive", Answer::status(500));
    sidecar.wait_log("App entered un-healthy status").await;
    let reply = sidecar.http().get("/v1.0/invoke/me/method/hello").send().await.expect(500);
    assert!(reply.message().contains("app is not in a healthy state"), "{}", reply.text());
    // The sidecar itself stays healthy.
    sidecar.http().get("/v1.0/healthz").send().await.expect(204);
}

#[tokio::test]
async fn probes_carry_no_token_and_no_trace() {
    let app = HttpApp::builder().on("GET /healthz", Answer::status(200)).start().await;
    let _sidecar = Sidecar::builder()
        .app(&app)
        .env("APP_API_TOKEN", "canary")
        .configuration("tracing:\n  samplingRate: \"1\"\n")
        .switch("enable-app-health-check")
        .flag("app-health-probe-interval", "1")
        .start()
        .await;
    let probe = &app.wait_calls("GET /healthz", 1).await[0];
    assert_eq!(probe.header("dapr-api-token"), "");
    assert_eq!(probe.header("traceparent"), "");
}

#[tokio::test]
async fn a_grpc_app_is_probed_over_grpc() {
    let app = GrpcApp::builder().healthy().start().await;
    let sidecar = Sidecar::builder()
        .grpc_app(&app)
        .switch("enable-app-health-check")
        .flag("app-health-probe-interval", "1")
        .start()
        .await;
    sidecar.wait_log("App entered healthy status").await;
    assert!(app.probes() > 0);
}

#[tokio::test]
async fn the_public_port_has_health_and_metadata_only() {
    let sidecar = Sidecar::builder().env("DAPR_API_TOKEN", "secret").public().start().await;
    let public = sidecar.public();
    // No token is asked for here.
    public.get("/v1.0/healthz").send().await.expect(204);
    assert_eq!(public.get("/v1.0/metadata").send().await.expect(200).json()["id"], "app");
    for path in ["/v1.0/state/store/k", "/", "/v1.0/invoke/app/method/x", "/v1.0/secrets/a/b"] {
        let reply = public.get(path).send().await.expect(404);
        assert_eq!(reply.text().trim_end(), "404 page not found", "{path}");
    }
    public.post("/v1.0/healthz", "").send().await.expect(405);
    public.request("PUT", "/v1.0/metadata/k").body("v").send().await.expect(405);
    public.post("/v1.0/shutdown", "").send().await.expect(404);
}

#[tokio::test]
async fn grpc_health_of_a_running_sidecar() {
    let sidecar = Sidecar::builder().start().await;
    let mut grpc = sidecar.grpc().await;
    grpc.get_metadata(mecha_proto::runtime::GetMetadataRequest {}).await.unwrap();
    // What is not built answers so, and does not hang.
    let status = grpc.get_actor_state(mecha_proto::runtime::GetActorStateRequest::default()).await.unwrap_err();
    assert_ne!(status.code(), Code::Unknown, "{status:?}");
}
