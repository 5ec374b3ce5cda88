//! Limits: what is too large is refused, with the right words, and costs no memory.

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use mecha_proto::common::StateItem;
use mecha_proto::runtime::SaveStateRequest;
use mecha_tests::{Answer, Body, Fault, Item, Protocol, RawConnection, Sidecar};
use serde_json::json;
use tonic::Code;

use crate::support::{Pair, memory_pubsub, memory_store};

fn json_of(size: usize) -> String {
    format!("[{{\"key\":\"k\",\"value\":\"{}\"}}]", "x".repeat(size))
}

#[tokio::test]
async fn a_body_over_the_limit_is_413() {
    let sidecar = Sidecar::builder()
        .flag("max-body-size", "64Ki")
        .component(memory_store("store"))
        .component(memory_pubsub("events"))
        .start()
        .await;
    assert!(sidecar.log().contains("The request body size parameter is: 65536 bytes"));
    for client in [sidecar.http(), sidecar.http().speaking(Protocol::H2c)] {
        client.post("/v1.0/state/store", json_of(60 << 10)).send().await.expect(204);
        for path in ["/v1.0/state/store", "/v1.0/state/store/bulk", "/v1.0/publish/events/topic", "/v1.0/bindings/x"] {
            let reply = client.post(path, json_of(70 << 10)).header("content-type", "application/json").send().await;
            assert_eq!(reply.status, 413, "{path}: {}", reply.text());
        }
        let reply = client.post("/v1.0/state/store", json_of(70 << 10)).send().await;
        assert_eq!(reply.code(), "ERR_MALFORMED_REQUEST");
        // Also when the length is not announced.
        let reply = client.request("POST", "/v1.0/state/store").stream(chunked(70 << 10)).send().await;
        assert_eq!(reply.status, 413, "{}", reply.text());
        assert_eq!(client.get("/v1.0/state/store/k").send().await.expect(200).body.len(), (60 << 10) + 2);
    }
}

fn chunked(size: usize) -> Body {
    let chunks = futures_util::stream::iter((0..size >> 10).map(|_| Ok(Frame::data(Bytes::from(vec![b'x'; 1 << 10])))));
    StreamBody::new(chunks).boxed_unsync()
}

#[tokio::test]
async fn the_default_is_four_mebibytes() {
    let sidecar = Sidecar::builder().component(memory_store("store")).start().await;
    let http = sidecar.http();
    http.post("/v1.0/state/store", json_of((4 << 20) - 100)).send().await.expect(204);
    http.post("/v1.0/state/store", json_of(4 << 20)).send().await.expect(413);
}

#[tokio::test]
async fn the_old_flag_counts_in_mebibytes() {
    let sidecar =
        Sidecar::builder().flag("dapr-http-max-request-size", "1").component(memory_store("store")).start().await;
    sidecar.http().post("/v1.0/state/store", json_of(1 << 20)).send().await.expect(413);
    sidecar.http().post("/v1.0/state/store", json_of(1000 << 10)).send().await.expect(204);
}

#[tokio::test]
async fn a_grpc_message_over_the_limit_is_told_with_its_size() {
    let sidecar = Sidecar::builder().flag("max-body-size", "64Ki").component(memory_store("store")).start().await;
    let mut grpc = sidecar.grpc().await;
    let request = |size: usize| SaveStateRequest {
        store_name: "store".to_owned(),
        states: vec![StateItem { key: "k".to_owned(), value: vec![b'x'; size].into(), ..StateItem::default() }],
    };
    grpc.save_state(request(60 << 10)).await.unwrap();
    let status = grpc.save_state(request(70 << 10)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted, "{status:?}");
    let message = status.message();
    assert!(message.starts_with("grpc: received message larger than max ("), "{status:?}");
    assert!(message.ends_with(" vs. 65536)"), "{status:?}");
    grpc.save_state(request(1)).await.unwrap();
}

#[tokio::test]
async fn the_limit_holds_for_invocation_requests_but_not_for_answers() {
    let app = mecha_tests::HttpApp::builder()
        .on("/up", Answer::text("ok"))
        .on("/down", Answer::text("x".repeat(200 << 10)))
        .start()
        .await;
    let pair = Pair::built(|b| b.flag("max-body-size", "64Ki"), |b| b.app(&app).flag("max-body-size", "64Ki")).await;
    let http = pair.caller.http();
    http.post("/v1.0/invoke/callee/method/up", "x".repeat(60 << 10)).send().await.expect(200);
    http.post("/v1.0/invoke/callee/method/up", "x".repeat(70 << 10)).send().await.expect(413);
    let reply = http.request("POST", "/v1.0/invoke/callee/method/up").stream(chunked(70 << 10)).send().await;
    assert_eq!((reply.status, reply.code().as_str()), (413, "ERR_MALFORMED_REQUEST"), "{}", reply.text());
    assert_eq!(http.get("/v1.0/invoke/callee/method/down").send().await.expect(200).body.len(), 200 << 10);
}

#[tokio::test]
async fn a_huge_body_costs_no_memory() {
    let sidecar = Sidecar::builder().component(memory_store("store")).start().await;
    let http = sidecar.http();
    http.post("/v1.0/state/store", json_of(3 << 20)).send().await.expect(204);
    let before = sidecar.resident_kib();
    for _ in 0..4 {
        // A server that refuses early may also break the connection off.
        let outcome = http.request("POST", "/v1.0/state/store").stream(chunked(64 << 20)).try_send().await;
        assert!(outcome.is_err() || outcome.is_ok_and(|reply| reply.status == 413));
    }
    let grown = sidecar.resident_kib().saturating_sub(before);
    assert!(grown < 16 << 10, "grew by {grown} KiB");
}

#[tokio::test]
async fn headers_over_the_limit_are_431() {
    let sidecar = Sidecar::builder().component(memory_store("store")).start().await;
    // The default is 4 KiB, and 4 KiB more.
    let fits = "x".repeat(7 << 10);
    sidecar.http().get("/v1.0/state/store/k").header("x-large", &fits).send().await.expect(204);
    let mut raw = RawConnection::open(sidecar.http_port()).await;
    let large = "x".repeat(9 << 10);
    raw.send(format!("GET /v1.0/healthz HTTP/1.1\r\nHost: localhost\r\nX-Large: {large}\r\n\r\n")).await;
    assert_eq!(raw.reply().await.expect("an answer").status, 431);
    let wide = Sidecar::builder().flag("read-buffer-size", "32Ki").component(memory_store("store")).start().await;
    wide.http().get("/v1.0/state/store/k").header("x-large", large).send().await.expect(204);
}

#[tokio::test]
async fn deep_json_is_refused_or_kept_but_never_a_crash() {
    let sidecar = Sidecar::builder().component(memory_store("store")).start().await;
    let deep = format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000));
    for body in [deep.clone(), format!("[{{\"key\":\"k\",\"value\":{deep}}}]")] {
        let reply = sidecar.http().post("/v1.0/state/store", body).send().await;
        assert!(reply.status == 400 || reply.status == 204, "{}", reply.text());
    }
    let reply = sidecar.http().post("/v1.0/publish/none/topic", deep).header("content-type", "application/json");
    reply.send().await.expect(404);
    sidecar.http().get("/v1.0/healthz").send().await.expect(204);
}

#[tokio::test]
async fn a_value_may_be_as_large_as_the_limit_allows() {
    let builder = Sidecar::builder().flag("max-body-size", "32Mi");
    let file = builder.folder().join("s.db");
    let sidecar = builder
        .component(memory_store("memory"))
        .component(crate::support::sqlite_store("sqlite", &file))
        .start()
        .await;
    let value = json!("x".repeat(16 << 20)).to_string();
    for store in ["memory", "sqlite"] {
        for api in sidecar.apis().await {
            api.save(store, &[Item::new("large", value.clone())]).await.unwrap();
            let got = api.get(store, "large").await.unwrap().unwrap();
            assert_eq!(got.value.len(), value.len(), "{store} over {}", api.name());
        }
    }
    let over: Result<_, Fault> = sidecar.apis().await[0].save("memory", &[Item::new("k", json_of(33 << 20))]).await;
    assert_eq!(over.unwrap_err().http, Some(413), "told although it was still being sent");
}
