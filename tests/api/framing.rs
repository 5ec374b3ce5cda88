//! Bytes that no client would send: never two readings of one request.

use std::time::{Duration, Instant};

use mecha_tests::{Answer, HttpApp, RawConnection, Sidecar, wait_until};

use crate::support::memory_store;

async fn sidecar() -> (HttpApp, Sidecar) {
    let app = HttpApp::builder().on("/*", Answer::text("seen")).start().await;
    let sidecar = Sidecar::builder().app_id("me").app(&app).component(memory_store("store")).start().await;
    app.forget();
    (app, sidecar)
}

/// What must be refused with 400 and the end of the connection.
const REFUSED: [(&str, &str); 14] = [
    ("two lengths", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab"),
    ("two lengths in one", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 1, 2\r\n\r\nab"),
    ("a length that is no number", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: abc\r\n\r\n"),
    ("a negative length", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\n"),
    ("a signed length", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: +1\r\n\r\na"),
    ("a length beyond counting", "POST /x HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999999999999999\r\n\r\n"),
    (
        "a coding that is not the last",
        "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked, gzip\r\n\r\n0\r\n\r\n",
    ),
    ("an unknown coding", "POST /x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
    ("folding", "GET /x HTTP/1.1\r\nHost: h\r\nX-Folded: a\r\n b\r\n\r\n"),
    ("a space before the colon", "GET /x HTTP/1.1\r\nHost : h\r\n\r\n"),
    ("a bare CR in a value", "GET /x HTTP/1.1\r\nHost: h\r\nX-A: a\rb\r\n\r\n"),
    ("a NUL in a value", "GET /x HTTP/1.1\r\nHost: h\r\nX-A: a\0b\r\n\r\n"),
    ("no method", " /x HTTP/1.1\r\nHost: h\r\n\r\n"),
    ("a wrong version", "GET /x HTTP/9.9\r\nHost: h\r\n\r\n"),
];

#[tokio::test]
async fn bad_framing_is_refused_and_the_connection_ends() {
    let (app, sidecar) = sidecar().await;
    for (name, bytes) in REFUSED {
        let mut raw = RawConnection::open(sidecar.http_port()).await;
        // Something that would be a second request, were the first read another way.
        let whole = bytes.replace("/x", "/v1.0/invoke/me/method/x");
        raw.send(format!("{whole}GET /v1.0/invoke/me/method/smuggled HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let reply = raw.reply().await;
        let status = reply.as_ref().map(|reply| reply.status);
        assert!(matches!(status, Some(400 | 505) | None), "{name}: {reply:?}");
        assert!(raw.closed_within(Duration::from_secs(15)).await, "{name}: the connection stays open");
    }
    assert!(app.calls("/smuggled").is_empty(), "{:?}", app.all_calls());
    sidecar.http().get("/v1.0/healthz").send().await.expect(204);
}

/// A length beside chunks: refused, or read as chunks and nothing else, with the end of the connection.
const LENGTH_AND_CHUNKS: [&str; 2] = [
    "POST /v1.0/invoke/me/method/x HTTP/1.1\r\nHost: h\r\nContent-Length: 6\r\nTransfer-Encoding: \
     chunked\r\n\r\n0\r\n\r\n",
    "POST /v1.0/invoke/me/method/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: \
     6\r\n\r\n0\r\n\r\n",
];

#[tokio::test]
async fn a_length_beside_chunks_has_one_reading() {
    let (app, sidecar) = sidecar().await;
    for head in LENGTH_AND_CHUNKS {
        let mut raw = RawConnection::open(sidecar.http_port()).await;
        raw.send(format!("{head}GET /v1.0/invoke/me/method/smuggled HTTP/1.1\r\nHost: h\r\n\r\n")).await;
        let reply = raw.reply().await;
        assert!(reply.as_ref().is_none_or(|reply| matches!(reply.status, 200 | 400)), "{reply:?}");
        assert!(raw.closed_within(Duration::from_secs(15)).await, "the connection stays open");
    }
    assert!(app.calls("/smuggled").is_empty(), "{:?}", app.all_calls());
    for call in app.calls("/x") {
        assert!(call.body.is_empty() && call.headers.get_all("content-length").iter().count() <= 1, "{call:?}");
        assert!(
            !(call.headers.contains_key("content-length") && call.headers.contains_key("transfer-encoding")),
            "{call:?}"
        );
    }
}

#[tokio::test]
async fn chunks_are_read_exactly() {
    let (app, sidecar) = sidecar().await;
    let head = "POST /v1.0/invoke/me/method/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut raw = RawConnection::open(sidecar.http_port()).await;
    raw.send(format!("{head}5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Trailer: 1\r\n\r\n")).await;
    assert_eq!(raw.reply().await.unwrap().status, 200);
    assert_eq!(app.calls("/x")[0].text(), "hello world");
    // The connection is kept for the next request.
    raw.send("GET /v1.0/healthz HTTP/1.1\r\nHost: h\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 204);
    for bad in
        ["zz\r\nhello\r\n0\r\n\r\n", "5\r\nhelloXX0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "ffffffffffffffffff\r\n"]
    {
        app.forget();
        let mut raw = RawConnection::open(sidecar.http_port()).await;
        raw.send(format!("{head}{bad}")).await;
        let reply = raw.reply().await;
        assert!(reply.as_ref().is_none_or(|reply| reply.status >= 400), "{bad:?}: {reply:?}");
        assert!(raw.closed_within(Duration::from_secs(15)).await, "{bad:?}");
        assert!(app.calls("/x").is_empty(), "{bad:?}: a broken body looked whole: {:?}", app.calls("/x"));
    }
}

#[tokio::test]
async fn a_body_cut_short_saves_nothing() {
    let (_app, sidecar) = sidecar().await;
    let mut raw = RawConnection::open(sidecar.http_port()).await;
    raw.send(
        "POST /v1.0/state/store HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n[{\"key\":\"cut\",\"value\":1}]",
    )
    .await;
    raw.finish().await;
    let reply = raw.reply().await;
    assert!(reply.as_ref().is_none_or(|reply| reply.status >= 400), "{reply:?}");
    sidecar.http().get("/v1.0/state/store/cut").send().await.expect(204);
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let (_app, sidecar) = sidecar().await;
    let mut raw = RawConnection::open(sidecar.http_port()).await;
    raw.send(
        "GET /v1.0/healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /v1.0/nothing HTTP/1.1\r\nHost: h\r\n\r\nGET \
         /v1.0/state/store/k HTTP/1.1\r\nHost: h\r\n\r\n",
    )
    .await;
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(raw.reply().await.unwrap().status);
    }
    assert_eq!(statuses, [204, 404, 204]);
}

#[tokio::test]
async fn an_upgrade_is_ignored() {
    let (_app, sidecar) = sidecar().await;
    let mut raw = RawConnection::open(sidecar.http_port()).await;
    raw.send(
        "GET /v1.0/healthz HTTP/1.1\r\nHost: h\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: \
         h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n\r\n",
    )
    .await;
    assert_eq!(raw.reply().await.unwrap().status, 204);
}

#[tokio::test]
async fn an_http1_request_needs_a_host_but_http10_does_not() {
    let (_app, sidecar) = sidecar().await;
    let mut raw = RawConnection::open(sidecar.http_port()).await;
    raw.send("GET /v1.0/healthz HTTP/1.0\r\n\r\n").await;
    assert_eq!(raw.reply().await.unwrap().status, 204);
}

#[tokio::test]
async fn a_client_that_never_finishes_its_headers_is_cut_off() {
    let (_app, sidecar) = sidecar().await;
    let mut raw = RawConnection::open(sidecar.http_port()).await;
    raw.send("GET /v1.0/healthz HTTP/1.1\r\nHost: h\r\nX-Slow: ").await;
    let begun = Instant::now();
    assert!(raw.closed_within(Duration::from_secs(20)).await, "still open after {:?}", begun.elapsed());
    assert!(begun.elapsed() >= Duration::from_secs(5), "cut off after {:?} already", begun.elapsed());
}

#[tokio::test]
async fn slow_clients_do_not_hold_up_others() {
    let (_app, sidecar) = sidecar().await;
    let mut slow = Vec::new();
    for _ in 0..200 {
        let mut raw = RawConnection::open(sidecar.http_port()).await;
        raw.send("POST /v1.0/state/store HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\n[").await;
        slow.push(raw);
    }
    let begun = Instant::now();
    for _ in 0..20 {
        sidecar.http().get("/v1.0/state/store/k").send().await.expect(204);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    drop(slow);
    wait_until(Duration::from_secs(30), "health", || async {
        sidecar.http().get("/v1.0/healthz").send().await.status == 204
    })
    .await;
}

#[tokio::test]
async fn header_injection_through_metadata_is_impossible() {
    let (app, sidecar) = sidecar().await;
    // Line ends, as a query may carry them, in what becomes a header or a topic.
    let evil = "a%0d%0aX-Injected:%201";
    let http = sidecar.http();
    let paths = [
        format!("/v1.0/state/store/k?metadata.x={evil}"),
        format!("/v1.0/invoke/me/method/x?q={evil}"),
        format!("/v1.0/state/store/{evil}"),
    ];
    for path in paths {
        let reply = http.get(path).send().await;
        assert!(reply.headers.get("x-injected").is_none(), "{reply:?}");
    }
    let reply = http.request("PUT", format!("/v1.0/metadata/{evil}")).body("v").send().await;
    assert!(reply.status < 500, "{reply:?}");
    assert!(app.all_calls().iter().all(|call| call.headers.get("x-injected").is_none()));
}
