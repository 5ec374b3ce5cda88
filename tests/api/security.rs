//! Tokens, allowed and refused APIs, cross-origin rules, and strict mode's checks.

use mecha_proto::runtime::{GetMetadataRequest, GetStateRequest};
use mecha_tests::{Answer, EchoClient, GrpcApp, HttpApp, Item, RawConnection, Sidecar, status_details};
use tonic::{Code, Request};

use crate::support::memory_store;

const TOKEN: &str = "token-canary-4711";

async fn with_token() -> Sidecar {
    Sidecar::builder().env("DAPR_API_TOKEN", TOKEN).component(memory_store("store")).spawn_ready().await
}

trait SpawnReady {
    async fn spawn_ready(self) -> Sidecar;
}

impl SpawnReady for mecha_tests::SidecarBuilder {
    async fn spawn_ready(self) -> Sidecar {
        let mut sidecar = self.spawn();
        sidecar.ready().await;
        sidecar
    }
}

#[tokio::test]
async fn http_needs_the_token() {
    let sidecar = with_token().await;
    let http = sidecar.http();
    for (name, value) in
        [("x", "y"), ("dapr-api-token", "wrong"), ("dapr-api-token", ""), ("dapr-api-token", "TOKEN-CANARY-4711")]
    {
        for path in ["/v1.0/state/store/k", "/v1.0/metadata", "/v1.0/unknown", "/"] {
            let reply = http.get(path).header(name, value).send().await.expect(401);
            assert_eq!(reply.text(), "invalid api token", "{path}");
            assert!(reply.header("content-type").starts_with("text/plain"), "{reply:?}");
        }
    }
    http.get("/v1.0/state/store/k").header("dapr-api-token", TOKEN).send().await.expect(204);
}

#[tokio::test]
async fn health_alone_is_exempt_and_by_its_whole_path() {
    let sidecar = with_token().await;
    let http = sidecar.http();
    for path in ["/v1.0/healthz", "/v1.0/healthz/outbound", "/v1.0/healthz/"] {
        http.get(path).send().await.expect(204);
    }
    let around = [
        "/v1.0/state/store/v1.0/healthz",
        "/v1.0/metadata?x=/v1.0/healthz",
        "/v1.0/metadata?/v1.0/healthz/outbound",
        "/v1.0/healthz/../metadata",
        "/v1.0/healthz%2F..%2Fmetadata",
        "/v1.0/healthz;/metadata",
        "/v1.0/healthzz",
        "/v1.0/healthz/x",
        "/v1.0/invoke/app/method/v1.0/healthz",
    ];
    for path in around {
        let reply = http.get(path).send().await;
        assert_eq!(reply.status, 401, "{path}: {}", reply.text());
    }
    for verb in ["POST", "PUT", "DELETE"] {
        http.request(verb, "/v1.0/healthz").send().await.expect(401);
    }
}

#[tokio::test]
async fn grpc_needs_the_token() {
    let sidecar = with_token().await;
    let client = sidecar.grpc().await;
    let ask = |token: Option<&str>| {
        let mut request = Request::new(GetMetadataRequest {});
        if let Some(token) = token {
            request.metadata_mut().insert("dapr-api-token", token.parse().unwrap());
        }
        let mut client = client.clone();
        async move { client.get_metadata(request).await }
    };
    ask(Some(TOKEN)).await.unwrap();
    for (token, text) in
        [(None, "missing api token in request metadata"), (Some("wrong"), "authentication error: api token mismatch")]
    {
        let status = ask(token).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "Unauthorized"));
        let details = status_details(&status);
        assert_eq!(details[0]["reason"], "Unauthorized", "{details:?}");
        assert_eq!(details[0]["metadata"]["http.code"], "401");
        assert_eq!(details[0]["metadata"]["http.error_message"], text);
    }
    // Services of others behind the same port are closed as well.
    let status = EchoClient::new(sidecar.channel().await).with("dapr-app-id", "app").say("x").await.unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn tokens_go_no_further() {
    let app = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let sidecar = Sidecar::builder()
        .app_id("me")
        .app(&app)
        .env("DAPR_API_TOKEN", TOKEN)
        .env("APP_API_TOKEN", "app-canary")
        .flag("log-level", "debug")
        .switch("enable-api-logging")
        .spawn_ready()
        .await;
    let http = sidecar.http();
    let reply = http.get("/v1.0/invoke/me/method/x").header("dapr-api-token", TOKEN).send().await.expect(200);
    assert!(!format!("{:?}", reply.headers).contains("canary"), "{:?}", reply.headers);
    let call = &app.calls("/x")[0];
    let tokens: Vec<_> = call.headers.get_all("dapr-api-token").iter().collect();
    assert_eq!(tokens, ["app-canary"]);
    let wrong = http.get("/v1.0/metadata").header("dapr-api-token", "wrong-canary").send().await;
    assert_eq!(wrong.status, 401);
    assert!(!sidecar.log().contains("canary"), "a token is in the log");
}

/// Configuration, an HTTP call it refuses, and one it leaves.
const HTTP_RULES: [(&str, &str, &str); 5] = [
    ("api:\n  denied:\n    - {name: state, version: v1, protocol: http}\n", "/v1.0/state/store/k", "/v1.0/metadata"),
    ("api:\n  denied:\n    - {name: state, version: v1.0, protocol: http}\n", "/v1.0/state/store/k", "/v1.0/metadata"),
    ("api:\n  allowed:\n    - {name: state, version: v1, protocol: http}\n", "/v1.0/metadata", "/v1.0/state/store/k"),
    (
        "api:\n  allowed:\n    - {name: state, version: v1, protocol: http}\n    - {name: metadata, version: v1, protocol: \
         http}\n  denied:\n    - {name: metadata, version: v1, protocol: http}\n",
        "/v1.0/metadata",
        "/v1.0/state/store/k",
    ),
    ("api:\n  denied:\n    - {name: metadata, version: v1, protocol: http}\n", "/v1.0/metadata", "/v1.0/state/store/k"),
];

#[tokio::test]
async fn a_refused_http_api_looks_unknown() {
    for (spec, refused, left) in HTTP_RULES {
        let sidecar = Sidecar::builder().configuration(spec).component(memory_store("store")).start().await;
        let http = sidecar.http();
        let reply = http.get(refused).send().await;
        // It falls through to invocation, unless that is refused too.
        if spec.contains("allowed") {
            assert_eq!((reply.status, reply.text().trim_end()), (404, "404 page not found"), "{spec}");
        } else {
            assert_eq!((reply.status, reply.code().as_str()), (404, "ERR_DIRECT_INVOKE"), "{spec}: {}", reply.text());
        }
        let reply = http.get(left).send().await;
        assert!(reply.status == 200 || reply.status == 204, "{spec}: {}", reply.text());
        http.get("/v1.0/healthz").send().await.expect(204);
        // The rules of one protocol leave the other open.
        let mut grpc = sidecar.grpc().await;
        grpc.get_metadata(GetMetadataRequest {}).await.unwrap();
        let ask = GetStateRequest { store_name: "store".to_owned(), key: "k".to_owned(), ..GetStateRequest::default() };
        grpc.get_state(ask).await.unwrap();
    }
}

#[tokio::test]
async fn a_refused_grpc_api_is_unimplemented() {
    let spec = "api:\n  denied:\n    - {name: state, version: v1, protocol: grpc}\n";
    let sidecar = Sidecar::builder().configuration(spec).component(memory_store("store")).start().await;
    let mut grpc = sidecar.grpc().await;
    let ask = GetStateRequest { store_name: "store".to_owned(), key: "k".to_owned(), ..GetStateRequest::default() };
    let status = grpc.get_state(ask).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unimplemented, "Not Implemented"));
    let details = status_details(&status);
    assert_eq!(details[0]["metadata"]["http.code"], "501", "{details:?}");
    assert_eq!(details[0]["metadata"]["http.error_message"], "requested endpoint is not available");
    grpc.get_metadata(GetMetadataRequest {}).await.unwrap();
    sidecar.http().get("/v1.0/state/store/k").send().await.expect(204);
}

#[tokio::test]
async fn a_rule_without_version_matches_only_in_strict_mode() {
    let spec = "api:\n  denied:\n    - {name: metadata}\n";
    let bare = Sidecar::builder().configuration(spec).start().await;
    bare.http().get("/v1.0/metadata").send().await.expect(200);
    let strict = Sidecar::builder().configuration(spec).switch("mecha-strict").start().await;
    strict.http().get("/v1.0/metadata").send().await.expect(404);
}

#[tokio::test]
async fn cors_is_off_unless_asked_for() {
    let sidecar = Sidecar::builder().start().await;
    let reply = sidecar.http().get("/v1.0/metadata").header("origin", "http://page.test").send().await.expect(200);
    assert_eq!(reply.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn cors_follows_the_origins_given() {
    let sidecar = Sidecar::builder()
        .flag("allowed-origins", "http://one.test,http://two.test")
        .env("DAPR_API_TOKEN", TOKEN)
        .spawn_ready()
        .await;
    let http = sidecar.http();
    let preflight = |origin: &'static str| {
        let request = http.request("OPTIONS", "/v1.0/state/store").header("origin", origin);
        request.header("access-control-request-method", "PUT").header("access-control-request-headers", "X-One, X-Two")
    };
    // A preflight needs no token.
    let reply = preflight("http://two.test").send().await.expect(200);
    assert!(reply.body.is_empty());
    assert_eq!(reply.header("access-control-allow-origin"), "http://two.test");
    assert!(reply.header("access-control-allow-methods").contains("PUT"), "{:?}", reply.headers);
    assert!(reply.header("access-control-allow-headers").to_lowercase().contains("x-one"), "{:?}", reply.headers);
    let reply = preflight("http://foreign.test").send().await;
    assert_eq!(reply.header("access-control-allow-origin"), "");
    // A listed origin is echoed also on a refusal; a foreign one is served without.
    let reply = http.get("/v1.0/metadata").header("origin", "http://one.test").send().await.expect(401);
    assert_eq!(reply.header("access-control-allow-origin"), "http://one.test");
    let asked = http.get("/v1.0/metadata").header("origin", "http://foreign.test").header("dapr-api-token", TOKEN);
    let reply = asked.send().await.expect(200);
    assert_eq!(reply.header("access-control-allow-origin"), "");
}

#[tokio::test]
async fn cors_for_everybody() {
    let sidecar = Sidecar::builder().flag("allowed-origins", "*").start().await;
    assert!(sidecar.log().contains("Enabled CORS HTTP middleware"));
    let reply = sidecar.http().get("/v1.0/metadata").header("origin", "http://any.test").send().await.expect(200);
    assert_eq!(reply.header("access-control-allow-origin"), "*");
}

#[tokio::test]
async fn strict_mode_checks_host_and_origin() {
    let sidecar = Sidecar::builder().switch("mecha-strict").component(memory_store("store")).start().await;
    let port = sidecar.http_port();
    for (host, status) in [
        (format!("127.0.0.1:{port}"), 204),
        (format!("localhost:{port}"), 204),
        (format!("[::1]:{port}"), 204),
        ("evil.test".to_owned(), 403),
        (format!("evil.test:{port}"), 403),
    ] {
        let mut raw = RawConnection::open(port).await;
        raw.send(format!("GET /v1.0/state/store/k HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(raw.reply().await.unwrap().status, status, "{host}");
    }
    let http = sidecar.http();
    let body = "[{\"key\":\"k\",\"value\":1}]";
    let reply = http.post("/v1.0/state/store", body).header("origin", "http://evil.test").send().await;
    assert_eq!(reply.status, 403, "{}", reply.text());
    let same = format!("http://localhost:{port}");
    http.post("/v1.0/state/store", body).header("origin", same).send().await.expect(204);
    http.post("/v1.0/state/store", body).send().await.expect(204);
}

#[tokio::test]
async fn strict_mode_listens_on_loopback_only() {
    let bare = Sidecar::builder().without("dapr-listen-addresses").start().await;
    let strict = Sidecar::builder().without("dapr-listen-addresses").switch("mecha-strict").start().await;
    assert!(listens_everywhere(bare.http_port()) && listens_everywhere(bare.grpc_port()));
    assert!(!listens_everywhere(strict.http_port()) && !listens_everywhere(strict.grpc_port()));
    let [api, _] = strict.apis().await;
    assert!(api.save("none", &[Item::new("k", "1")]).await.is_err());
}

/// Whether a port is bound to all addresses, as the system says.
fn listens_everywhere(port: u16) -> bool {
    let hex = format!("{port:04X}");
    ["/proc/net/tcp", "/proc/net/tcp6"].iter().any(|table| {
        let text = std::fs::read_to_string(table).unwrap_or_default();
        text.lines().skip(1).any(|line| {
            let mut columns = line.split_whitespace().skip(1);
            let (Some(local), Some(_), Some(state)) = (columns.next(), columns.next(), columns.next()) else {
                return false;
            };
            let Some((address, found)) = local.split_once(':') else { return false };
            state == "0A" && found == hex && address.chars().all(|c| c == '0')
        })
    })
}

#[tokio::test]
async fn the_app_token_reaches_a_grpc_app() {
    let app = GrpcApp::builder().on_invoke(|_| Ok(mecha_proto::common::InvokeResponse::default())).start().await;
    let sidecar = Sidecar::builder().app_id("me").grpc_app(&app).env("APP_API_TOKEN", "app-canary").start().await;
    sidecar.http().get("/v1.0/invoke/me/method/x").header("dapr-api-token", "forged").send().await.expect(200);
    let (_, metadata) = app.invocations().pop().unwrap();
    let tokens: Vec<_> = metadata.get_all("dapr-api-token").iter().collect();
    assert_eq!(tokens, ["app-canary"]);
}
