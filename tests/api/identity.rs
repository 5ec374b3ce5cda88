//! Identities and mTLS: who is let in, who is called, and what a start without authority says.

use std::sync::Arc;
use std::time::Duration;

use mecha_identity::testing::Ca;
use mecha_identity::{Bundle, Expect, Live};
use mecha_tests::{Answer, Authority, Call, EchoClient, GrpcApp, HttpApp, Sidecar, SidecarBuilder, eventually};
use serde_json::json;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::Code;

use crate::support::{Pair, registry, series};

/// Longer than all tries of a start.
const START_LIMIT: Duration = Duration::from_secs(60);

async fn app() -> HttpApp {
    let answer = |call: Call| async move { Answer::json(&json!({"caller": call.header("dapr-caller-app-id")})) };
    HttpApp::builder().on_call("/hello", answer).start().await
}

async fn pair(authority: &Authority, callee: impl FnOnce(SidecarBuilder) -> SidecarBuilder) -> Pair {
    Pair::built(|b| authority.secure(b), |b| authority.secure(callee(b))).await
}

#[tokio::test]
async fn calls_between_sidecars_go_over_mtls() {
    let authority = Authority::start().await;
    let app = app().await;
    let pair = pair(&authority, |b| b.app(&app)).await;
    // A claim does not count beside the certificate.
    let request = pair.caller.http().get("/v1.0/invoke/callee/method/hello").header("dapr-caller-app-id", "somebody");
    assert_eq!(request.send().await.expect(200).json(), json!({"caller": "caller"}));
    let reply = pair.caller.http().post("/v1.0/invoke/callee/method/hello", vec![7; 300_000]).send().await;
    assert_eq!(reply.expect(200).json(), json!({"caller": "caller"}));
    assert!(pair.callee.log().contains("this workload is spiffe://public/ns/default/callee"));
    assert!(!pair.callee.log().contains("mTLS is disabled"));

    let metrics = pair.callee.metrics().await;
    assert_eq!(series(&metrics, "dapr_runtime_mtls_init_total", &[("app_id", "callee")]), Some(1.0));
    let left = series(&metrics, "mecha_identity_certificate_seconds_left", &[]).unwrap();
    // An hour, and what rounding to whole seconds adds.
    assert!(left > 3000.0 && left < 3660.0, "{left}");
}

#[tokio::test]
async fn grpc_calls_and_streams_go_over_mtls() {
    let authority = Authority::start().await;
    let app = GrpcApp::builder().start().await;
    let pair = pair(&authority, |b| b.grpc_app(&app)).await;
    let client = EchoClient::new(pair.caller.channel().await).with("dapr-app-id", "callee");
    assert_eq!(client.say("hello").await.unwrap().into_inner(), "hello");
    let texts = (0..200).map(|n| format!("{n},")).collect::<Vec<_>>();
    assert_eq!(client.join(texts.clone()).await.unwrap().into_inner(), texts.concat());
    let mut numbers = client.count(200).await.unwrap().into_inner();
    let mut count = 0;
    while numbers.message().await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 200);
}

#[tokio::test]
async fn the_authority_is_asked_as_the_contract_says() {
    let authority = Authority::start().await;
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), "a.jwt.token\n").unwrap();
    let builder = authority.secure(Sidecar::builder().app_id("orders").env("NAMESPACE", "shop"));
    let builder = builder.flag("sentry-request-jwt-audiences", "one,two");
    let sidecar = builder.env("DAPR_SENTRY_TOKEN_FILE", token.path().to_str().unwrap()).start().await;
    let asked = authority.last().unwrap();
    assert_eq!((asked.id.as_str(), asked.namespace.as_str()), ("orders", "shop"));
    assert_eq!((asked.token.as_str(), asked.token_validator), ("a.jwt.token", 3));
    assert_eq!(asked.jwt_audiences, ["one", "two"]);
    assert!(asked.certificate_signing_request.starts_with(b"-----BEGIN CERTIFICATE REQUEST-----"));
    assert!(!sidecar.log().contains("a.jwt.token"));
}

#[tokio::test]
async fn plain_text_and_foreign_certificates_end_at_the_handshake() {
    let authority = Authority::start().await;
    let app = app().await;
    let pair = pair(&authority, |b| b.app(&app)).await;
    let port = pair.callee.internal_port();
    let plain = h2_settings(TcpStream::connect(("127.0.0.1", port)).await.unwrap()).await;
    assert!(plain.is_err(), "plain text gets no answer: {plain:?}");
    // So does one whose certificate another authority has signed, whatever it says.
    let other = Ca::new("root");
    let live = Live::new(Bundle::from_pem(&authority.ca().root_pem()).unwrap());
    live.set_identity(other.identity("spiffe://public/ns/default/caller"));
    let foreign = tls_settings(port, &live).await;
    assert!(foreign.is_err(), "{foreign:?}");
    live.set_identity(authority.ca().identity("spiffe://public/ns/default/anybody"));
    assert!(tls_settings(port, &live).await.is_ok(), "the same with a certificate of ours");
    let log = pair.callee.log();
    assert!(log.contains("a connection to the peer port was refused: the peer does not speak TLS"), "{log}");
    assert!(log.contains("the peer's certificate leads to no root of our trust bundle"), "{log}");
    assert!(app.calls("/hello").is_empty());
}

/// Says hello in HTTP/2 over TLS, and waits for an answer.
async fn tls_settings(port: u16, live: &Arc<Live>) -> Result<(), String> {
    let connector = TlsConnector::from(Arc::new(live.client_config(Expect::Any)));
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let stream = connector.connect("localhost".try_into().unwrap(), stream).await.map_err(|e| e.to_string())?;
    h2_settings(stream).await
}

/// Says hello in HTTP/2, and waits for the server's settings.
async fn h2_settings(mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) -> Result<(), String> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.map_err(|e| e.to_string())?;
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.map_err(|e| e.to_string())?;
    if head[3] == 4 { Ok(()) } else { Err(format!("no settings: {head:?}")) }
}

#[tokio::test]
async fn another_app_at_a_known_address_gets_no_call() {
    let authority = Authority::start().await;
    let (meant, other) = (app().await, app().await);
    let mut pair = pair(&authority, |b| b.app(&meant)).await;
    let call = || pair.caller.http().get("/v1.0/invoke/callee/method/hello").send();
    call().await.expect(200);
    // It ends without a word, so its address stays known; somebody else gets it.
    let port = pair.callee.internal_port();
    pair.callee.kill().await;
    let thief = authority.secure(Sidecar::builder().app_id("thief").app(&other));
    let thief = thief.flag("dapr-internal-grpc-port", port.to_string()).start().await;
    let text = eventually("the refusal", || async {
        let reply = pair.caller.http().get("/v1.0/invoke/callee/method/hello").send().await;
        assert_ne!(reply.status, 200);
        reply.text().contains("the peer is").then(|| reply.text())
    })
    .await;
    let refusal = "the peer is spiffe://public/ns/default/thief, expected was app callee in namespace default";
    assert!(text.contains(refusal), "{text}");
    assert!(other.calls("/hello").is_empty());
    drop(thief);
}

#[tokio::test]
async fn access_control_judges_the_certificate() {
    let authority = Authority::start().await;
    let app = app().await;
    let names = tempfile::tempdir().unwrap();
    let rules = "accessControl:\n  defaultAction: deny\n  trustDomain: public\n  policies:\n    - appId: friend\n      \
                 defaultAction: allow\n      trustDomain: public\n      namespace: default\n";
    let spec = format!("{}{rules}", registry(names.path()));
    let callee = Sidecar::builder().app_id("callee").app(&app).configuration(&spec);
    let _callee = authority.secure(callee).start().await;
    for (name, status) in [("friend", 200), ("stranger", 403)] {
        let caller = Sidecar::builder().app_id(name).configuration(&registry(names.path()));
        let caller = authority.secure(caller).start().await;
        let request = caller.http().get("/v1.0/invoke/callee/method/hello").header("dapr-caller-app-id", "friend");
        let reply = request.send().await;
        assert_eq!(reply.status, status, "{}", reply.text());
    }
}

#[tokio::test]
async fn a_start_without_a_certificate_ends_and_says_why() {
    let authority = Authority::start().await;
    authority.refuse(Some((Code::PermissionDenied, "this token is of another pod")));
    let refused = authority.secure(Sidecar::builder()).spawn();
    let impostor = Authority::start().await;
    impostor.appear_as(impostor.ca().identity("spiffe://cluster.local/ns/mecha-system/dapr-operator"));
    let deceived = impostor.secure(Sidecar::builder()).spawn();
    let foreign = Authority::start().await;
    foreign.publish(&[&Ca::new("root")]);
    let untrusted = foreign.secure(Sidecar::builder()).spawn();
    let ends = |sidecar: Sidecar, texts: &'static [&'static str]| async move {
        let ended = sidecar.ended(START_LIMIT).await;
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        for text in texts {
            assert!(ended.log.contains(text), "{text}\n{}", ended.log);
        }
    };
    tokio::join!(
        ends(
            refused,
            &[
                "no certificate at try 4 of 5, trying again in 3s",
                "Fatal error from runtime: failed to retrieve the initial identity",
                "this token is of another pod",
            ]
        ),
        ends(
            deceived,
            &["the peer is spiffe://cluster.local/ns/mecha-system/dapr-operator, expected was \
               spiffe://cluster.local/ns/mecha-system/dapr-sentry"]
        ),
        ends(untrusted, &["the peer's certificate leads to no root of our trust bundle"]),
    );
}

#[tokio::test]
async fn an_authority_that_comes_late_is_waited_for() {
    let authority = Authority::start().await;
    authority.stop();
    let mut sidecar = authority.secure(Sidecar::builder()).spawn();
    sidecar.wait_log("no certificate at try 1 of 5").await;
    authority.serve().await;
    sidecar.ready().await;
}

#[tokio::test]
async fn mtls_without_anchors_or_authority_is_no_start() {
    let anchors = Ca::new("root").root_pem();
    let kubernetes = || Sidecar::builder().flag("mode", "kubernetes").without("resources-path");
    for (builder, text) in [
        (Sidecar::builder().switch("enable-mtls"), "trust anchors are required"),
        (kubernetes(), "trust anchors are required"),
        (Sidecar::builder().switch("enable-mtls").env("DAPR_TRUST_ANCHORS", &anchors), "--sentry-address"),
        (
            Sidecar::builder().switch("enable-mtls").flag("sentry-address", "a:1").env("DAPR_TRUST_ANCHORS", "none"),
            "DAPR_TRUST_ANCHORS: the trust bundle holds no certificate",
        ),
    ] {
        let ended = builder.spawn().ended(START_LIMIT).await;
        assert_eq!(ended.code, Some(1), "{}", ended.log);
        assert!(ended.log.contains(text), "{text}\n{}", ended.log);
    }
}
