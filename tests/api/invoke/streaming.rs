//! Bodies of any size, both ways, in flat memory.

use std::convert::Infallible;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::StreamExt as _;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use mecha_tests::{Body, HttpApp, Protocol, full_body, wait_until};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use crate::support::Pair;

const CHUNK: usize = 64 << 10;
/// Well over any buffer, and quick enough on a small machine.
const CHUNKS: usize = 1024;
/// What a sidecar may grow by while so much goes through it.
const GROWTH_KIB: u64 = 24 << 10;

/// A body of known content whose length is not announced.
fn long_body() -> Body {
    let chunks = futures_util::stream::iter((0..CHUNKS).map(|number| {
        let byte = u8::try_from(number % 251).unwrap();
        Ok(Frame::data(Bytes::from(vec![byte; CHUNK])))
    }));
    StreamBody::new(chunks).boxed_unsync()
}

/// Reads a body of [`long_body`] to its end.
async fn check(mut body: hyper::body::Incoming) -> usize {
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.unwrap().into_data() else { continue };
        for (offset, byte) in data.iter().enumerate() {
            assert_eq!(usize::from(*byte), ((total + offset) / CHUNK) % 251);
        }
        total += data.len();
    }
    total
}

fn app() -> mecha_tests::HttpAppBuilder {
    HttpApp::builder()
        .on_stream("/up", |request| async move {
            let total = check(request.into_body()).await;
            http::Response::new(full_body(total.to_string()))
        })
        .on_stream("/down", |_| async move { http::Response::new(long_body()) })
        .on_stream("/both", |request| async move {
            let body = request.into_body().map_err(|e| std::io::Error::other(e.to_string()));
            http::Response::new(body.boxed_unsync())
        })
}

/// The limit on bodies holds for invocations too, so it has to be lifted for large ones.
async fn unlimited(app: &HttpApp) -> Pair {
    Pair::built(|b| b.flag("max-body-size", "1Gi"), |b| b.app(app).flag("max-body-size", "1Gi")).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_stream_both_ways_in_flat_memory() {
    let app = app().start().await;
    let pair = unlimited(&app).await;
    let sidecars = [&pair.caller, &pair.callee];
    let before = sidecars.map(mecha_tests::Sidecar::resident_kib);
    for client in [pair.caller.http(), pair.caller.http().speaking(Protocol::H2c)] {
        let up = client.request("POST", "/v1.0/invoke/callee/method/up").stream(long_body()).send().await.expect(200);
        assert_eq!(up.text(), (CHUNK * CHUNKS).to_string());
        let down = client.get("/v1.0/invoke/callee/method/down").open().await.unwrap();
        assert_eq!(check(down.into_body()).await, CHUNK * CHUNKS);
        let both = client.request("POST", "/v1.0/invoke/callee/method/both").stream(long_body()).open().await.unwrap();
        assert_eq!(check(both.into_body()).await, CHUNK * CHUNKS);
    }
    for (sidecar, before) in sidecars.into_iter().zip(before) {
        let grown = sidecar.resident_kib().saturating_sub(before);
        assert!(grown < GROWTH_KIB, "{} grew by {grown} KiB from {before}", sidecar.app_id());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_slows_the_writer() {
    let app = app().start().await;
    let pair = Pair::with(&app).await;
    let before = pair.caller.resident_kib() + pair.callee.resident_kib();
    let (sender, receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(1);
    let down = pair.caller.http().get("/v1.0/invoke/callee/method/down").open().await.unwrap();
    drop((sender, receiver));
    let mut body = down.into_body();
    // Nobody reads for a while: nothing may pile up in between.
    let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
    assert!(!first.is_empty());
    let stopped = Instant::now();
    wait_until(Duration::from_secs(2), "a pause", || async { stopped.elapsed() > Duration::from_millis(500) }).await;
    let grown = (pair.caller.resident_kib() + pair.callee.resident_kib()).saturating_sub(before);
    assert!(grown < 2 * GROWTH_KIB, "{grown} KiB pile up");
    let mut total = first.len();
    while let Some(frame) = body.frame().await {
        total += frame.unwrap().into_data().map_or(0, |data| data.len());
    }
    assert_eq!(total, CHUNK * CHUNKS);
}

/// A body whose chunks a test hands in one by one.
fn channel_body() -> (mpsc::Sender<Bytes>, Body) {
    let (sender, receiver) = mpsc::channel::<Bytes>(1);
    let frames = ReceiverStream::new(receiver).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    (sender, StreamBody::new(frames).map_err(|never| match never {}).boxed_unsync())
}

#[tokio::test]
async fn chunks_arrive_as_they_are_written() {
    let app = app().start().await;
    let pair = Pair::with(&app).await;
    let (sender, body) = channel_body();
    let client = pair.caller.http();
    sender.send(Bytes::from_static(b"first")).await.unwrap();
    let request = client.request("POST", "/v1.0/invoke/callee/method/both").stream(body);
    let mut answer = request.open().await.unwrap().into_body();
    for text in ["first", "second", "third"] {
        if text != "first" {
            sender.send(Bytes::from_static(text.as_bytes())).await.unwrap();
        }
        let mut got = Vec::new();
        while got.len() < text.len() {
            let frame = tokio::time::timeout(Duration::from_secs(10), answer.frame()).await.expect("a chunk");
            got.extend_from_slice(&frame.unwrap().unwrap().into_data().unwrap());
        }
        assert_eq!(got, text.as_bytes());
    }
    drop(sender);
    assert!(answer.frame().await.is_none());
}

#[tokio::test]
async fn server_sent_events_flow_and_a_client_that_leaves_ends_the_call() {
    let (gone, mut left) = mpsc::channel::<()>(1);
    let app = HttpApp::builder()
        .on_stream("/events", move |_| {
            let gone = gone.clone();
            async move {
                let (sender, body) = channel_body();
                tokio::spawn(async move {
                    let mut number = 0;
                    while sender.send(Bytes::from(format!("data: {number}\n\n"))).await.is_ok() {
                        number += 1;
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    let _ = gone.send(()).await;
                });
                http::Response::builder().header("content-type", "text/event-stream").body(body).unwrap()
            }
        })
        .start()
        .await;
    let pair = Pair::with(&app).await;
    let client = pair.caller.http();
    let request = client.get("/v1.0/invoke/callee/method/events").header("accept", "text/event-stream");
    let answer = request.open().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut body = answer.into_body();
    let mut got = String::new();
    while !got.contains("data: 3\n\n") {
        let frame = tokio::time::timeout(Duration::from_secs(10), body.frame()).await.expect("an event");
        got.push_str(std::str::from_utf8(&frame.unwrap().unwrap().into_data().unwrap()).unwrap());
    }
    drop(body);
    tokio::time::timeout(Duration::from_secs(10), left.recv()).await.expect("the app's call to end");
}

#[tokio::test]
async fn a_callee_that_breaks_off_is_not_a_clean_end() {
    let app = HttpApp::builder()
        .on_stream("/cut", |_| async move {
            let chunks = futures_util::stream::iter([
                Ok(Frame::data(Bytes::from_static(b"begin"))),
                Err(std::io::Error::other("cut")),
            ]);
            http::Response::new(StreamBody::new(chunks).boxed_unsync())
        })
        .start()
        .await;
    let pair = Pair::with(&app).await;
    for client in [pair.caller.http(), pair.caller.http().speaking(Protocol::H2c)] {
        let outcome = client.get("/v1.0/invoke/callee/method/cut").try_send().await;
        // Either the status tells it, when nothing was sent yet, or the connection breaks.
        if let Ok(reply) = outcome {
            assert!(reply.status >= 500, "a cut body looked whole: {reply:?}");
        }
    }
    // The next call is not affected.
    let ok = HttpApp::builder().on("/x", mecha_tests::Answer::text("ok")).start().await;
    drop(ok);
}

#[tokio::test]
async fn many_calls_at_once() {
    let app = HttpApp::builder()
        .on_call("/slow", |_| async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            mecha_tests::Answer::text("done")
        })
        .start()
        .await;
    let pair = Pair::with(&app).await;
    let client = pair.caller.http();
    // More than the streams of one connection between sidecars.
    let calls = (0..300).map(|_| client.get("/v1.0/invoke/callee/method/slow").try_send());
    let replies = futures_util::future::join_all(calls).await;
    let failed: Vec<_> = replies.iter().filter(|reply| !reply.as_ref().is_ok_and(|r| r.status == 200)).collect();
    assert!(failed.is_empty(), "{} failed: {:?}", failed.len(), failed.first());
}
