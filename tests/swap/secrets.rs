//! A secret that changes in its store is a change of every document that refers to it.

use mecha_testkit::servers::{Redis, RedisOptions, absent};
use mecha_tests::{Answer, HttpApp, Sidecar, component, wait_until};

use crate::load::{Load, state};
use crate::support::{LIMIT, ended, generation, nothing_refused, refused};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rotated_password_is_taken_up_and_no_call_fails() {
    let Some(redis) = RedisOptions::new().password("first").start() else {
        return absent("redis-server", Redis::missing().unwrap_or_default());
    };
    let builder = Sidecar::builder().app_id("rotation").switch("mecha-strict");
    let file = builder.folder().join("secrets.json");
    let put = |password: &str| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, serde_json::json!({"redis": {"password": password}}).to_string()).unwrap();
        std::fs::rename(beside, &file).unwrap();
    };
    put("first");
    let store = component("store", "state.redis", &[("redisHost", &redis.address())])
        + "  - name: redisPassword\n    secretKeyRef: {name: 'redis:password', key: 'redis:password'}\n\
           auth: {secretStore: secrets}\n";
    let sidecar = builder
        .document(
            "secrets.yaml",
            &component("secrets", "secretstores.local.file", &[("secretsFile", file.to_str().unwrap())]),
        )
        .document("store.yaml", &store)
        .start()
        .await;
    let http = sidecar.http();
    let calls = Load::start(sidecar.http_port(), 500, state("store"));
    calls.more(200).await;
    let etag = {
        http.post("/v1.0/state/store", r#"[{"key":"mine","value":1}]"#).send().await.expect(204);
        http.get("/v1.0/state/store/mine").send().await.expect(200).header("etag").to_owned()
    };
    for password in ["second", "third"] {
        let before = generation(&http).await;
        // Both passwords are good for a while, as rotations are done.
        redis.command(&["ACL", "SETUSER", "default", &format!(">{password}")]);
        put(password);
        let receipt = ended(&http, before, "Component", "store").await;
        assert_eq!((receipt["change"].as_str(), receipt["failed"].as_u64()), (Some("updated"), Some(0)));
        calls.more(200).await;
    }
    redis.command(&["ACL", "SETUSER", "default", "<first", "<second"]);
    calls.more(200).await;
    // The data is the same, so an ETag from before still counts.
    let body = format!(r#"[{{"key":"mine","value":2,"etag":"{etag}"}}]"#);
    http.post("/v1.0/state/store", body).send().await.expect(204);
    calls.end("state calls over two rotations").await;
    for password in ["first", "second", "third"] {
        assert!(!sidecar.log().contains(&format!("\"{password}\"")), "a password is in the log");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_of_endpoints_and_of_the_span_exporter_follow_their_secret() {
    let app = HttpApp::builder().on("/who", Answer::text("me")).on("/*", Answer::status(200)).start().await;
    let builder = Sidecar::builder().app_id("headers").switch("mecha-strict");
    let file = builder.folder().join("secrets.json");
    let put = |secrets: serde_json::Value| {
        let beside = file.with_extension("new");
        std::fs::write(&beside, secrets.to_string()).unwrap();
        std::fs::rename(beside, &file).unwrap();
    };
    let key = |value: &str| serde_json::json!({"api": {"key": value}});
    put(key("first"));
    let header = "{name: x-key, secretKeyRef: {name: 'api:key', key: 'api:key'}}";
    let port = app.port();
    let endpoint = format!(
        "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {{name: outside}}\nspec:\n  \
         baseUrl: 'http://127.0.0.1:{port}'\n  headers: [{header}]\nauth: {{secretStore: secrets}}\n"
    );
    let spec = format!(
        "tracing:\n  samplingRate: \"1\"\n  otel:\n    endpointAddress: 127.0.0.1:{port}\n    isSecure: false\n    \
         protocol: http\n    headers: [{header}]\n"
    );
    let file = file.to_str().unwrap();
    let sidecar = builder
        .configuration(&spec)
        .document("secrets.yaml", &component("secrets", "secretstores.local.file", &[("secretsFile", file)]))
        .document("outside.yaml", &endpoint)
        .start()
        .await;
    let http = sidecar.http();
    let endpoint_sends = async || {
        let before = app.calls("/who").len();
        http.get("/v1.0/invoke/outside/method/who").send().await.expect(200);
        app.calls("/who")[before].header("x-key").to_owned()
    };
    let exporter_sends = async |value: &str| {
        wait_until(LIMIT, "spans with the header", async || {
            http.get("/v1.0/invoke/outside/method/who").send().await.expect(200);
            app.calls("POST /v1/traces").iter().any(|call| call.header("x-key") == value)
        })
        .await;
    };
    assert_eq!(endpoint_sends().await, "first");
    exporter_sends("first").await;
    let before = generation(&http).await;
    put(key("second"));
    let receipt = ended(&http, before, "HTTPEndpoint", "outside").await;
    assert_eq!((receipt["change"].as_str(), receipt["outcome"].as_str()), (Some("updated"), Some("applied")));
    assert_eq!(endpoint_sends().await, "second");
    exporter_sends("second").await;

    // Gone: the headers of before stay, which is told once and shown for as long as it lasts.
    put(serde_json::json!({"other": "x"}));
    let reason = refused(&http, "HTTPEndpoint", "outside").await;
    assert!(reason.contains("api:key"), "{reason}");
    assert_eq!(endpoint_sends().await, "second");
    let told = || sidecar.log().matches("HTTPEndpoint outside stays as it was").count();
    wait_until(LIMIT, "the line about it", async || told() > 0).await;
    let before = generation(&http).await;
    put(key("third"));
    nothing_refused(&http).await;
    let receipt = ended(&http, before, "HTTPEndpoint", "outside").await;
    assert_eq!(receipt["outcome"], "applied", "{receipt}");
    assert_eq!(endpoint_sends().await, "third");
    exporter_sends("third").await;
    assert_eq!(told(), 1, "{}", sidecar.log());
}
