use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mecha_components_api::Error;
use mecha_core::app::{AppError, AppProtocol, Body, BodyError};
use mecha_core::invoke::{
    GrpcAnswer, GrpcCall, Head, Invocation, Method, Origin, StatusDetail, Target, Verb, empty, full, grpc_code,
};
use mecha_core::{Cx, Front};
use mecha_proto::{common, internals};
use proptest::prelude::*;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::testing::{Names, Sidecar, TestApp, bytes, eventually, serve};
use super::{PoolSettings, status, wire};
use crate::proxy::OwnApp;

fn cx() -> Cx {
    Cx::new(Front::Http)
}

fn target(id: &str, method: &str) -> Target {
    Target { id: id.into(), method: Method::from_http(method).unwrap() }
}

fn request(verb: &str, uri: &str, body: Body) -> Request<Body> {
    Request::builder().method(verb).uri(uri).body(body).unwrap()
}

async fn pair(app: Arc<dyn mecha_core::app::AppChannel>) -> (Sidecar, Sidecar, Names) {
    let names = Names::default();
    let a = Sidecar::start("a", &names, None, OwnApp::None).await;
    let b = Sidecar::start("b", &names, Some(app), OwnApp::Other("http")).await;
    (a, b, names)
}

fn channel() -> (mpsc::Sender<Bytes>, Body) {
    let (tx, rx) = mpsc::channel(1);
    let frames = ReceiverStream::new(rx).map(|b| Ok::<_, BodyError>(Frame::data(b)));
    (tx, StreamBody::new(frames).boxed_unsync())
}

#[tokio::test]
async fn a_request_arrives_as_it_was_sent_and_so_does_its_answer() {
    let (a, _b, _names) = pair(TestApp::echo()).await;
    let mut req = request("POST", "/ignored?q=1&q=2", full(Bytes::from_static(b"hello")));
    for (name, value) in [("content-type", "text/x-test"), ("x-one", "1"), ("content-length", "5")] {
        req.headers_mut().insert(name, value.parse().unwrap());
    }
    req.headers_mut().append("x-one", "2".parse().unwrap());
    let res = a.invoke.http(&cx(), target("b", "orders/1%20x"), req).await.unwrap();
    let h = res.headers();
    assert_eq!(res.status(), 200);
    assert_eq!(h["x-uri"], "/orders/1%20x?q=1&q=2");
    assert_eq!(h["x-method"], "POST");
    assert_eq!(h["x-length"], "5");
    assert_eq!(h["x-echo-content-type"], "text/x-test");
    assert_eq!(h.get_all("x-echo-x-one").iter().collect::<Vec<_>>(), ["1", "2"]);
    assert_eq!(h["x-echo-dapr-caller-app-id"], "a");
    assert_eq!(h["x-echo-dapr-callee-app-id"], "b");
    assert_eq!(h["x-echo-x-forwarded-for"], "127.0.0.1");
    assert_eq!(h["content-type"], "application/octet-stream");
    assert!(!h.contains_key("x-echo-destination-app-id"));
    assert_eq!(bytes(res.into_body()).await, "hello");
}

#[tokio::test]
async fn bodyless_verbs_stay_bodyless() {
    let (a, _b, _names) = pair(TestApp::echo()).await;
    for verb in ["GET", "DELETE", "OPTIONS", "HEAD", "POST"] {
        let res = a.invoke.http(&cx(), target("b", "x"), request(verb, "/", empty())).await.unwrap();
        assert_eq!(res.headers()["x-method"], verb);
        assert_eq!(res.headers()["x-length"], "0", "{verb}");
    }
}

#[tokio::test]
async fn every_status_of_the_app_is_its_answer() {
    let app = TestApp::new(AppProtocol::Http, |req| {
        let mut res = Response::new(full(Bytes::from_static(b"why")));
        *res.status_mut() = req.uri().path()[1..].parse::<u16>().unwrap().try_into().unwrap();
        res.headers_mut().insert("location", "/else".parse().unwrap());
        Ok(res)
    });
    let (a, _b, _names) = pair(app).await;
    for code in [201u16, 302, 404, 418, 500, 503] {
        let res = a.invoke.http(&cx(), target("b", &code.to_string()), request("GET", "/", empty())).await.unwrap();
        assert_eq!(res.status().as_u16(), code);
        assert_eq!(res.headers()["location"], "/else");
        assert_eq!(bytes(res.into_body()).await, "why");
    }
}

#[tokio::test]
async fn a_failure_on_the_way_to_the_app_is_500() {
    let app = TestApp::new(AppProtocol::Http, |_| Err(AppError::transport(Error::unavailable("connection refused"))));
    let (a, _b, _names) = pair(app).await;
    let e = a.invoke.http(&cx(), target("b", "x"), request("POST", "/", empty())).await.unwrap_err();
    assert_eq!(
        e.message(),
        "failed to invoke, id: b, err: rpc error: code = Internal desc = error invoking app channel: connection refused"
    );
    assert_eq!(e.status(), Some((500, 13)));
}

#[tokio::test]
async fn bodies_stream_both_ways_without_waiting_for_their_end() {
    let (a, _b, _names) = pair(TestApp::echo()).await;
    let (tx, body) = channel();
    let answer = tokio::spawn(async move {
        let res = a.invoke.http(&cx(), target("b", "x"), request("POST", "/", body)).await.unwrap();
        (res, a)
    });
    tx.send(Bytes::from_static(b"one")).await.unwrap();
    let (res, _a) = answer.await.unwrap();
    let mut body = res.into_body();
    for part in ["one", "two", "three"] {
        if part != "one" {
            tx.send(Bytes::from(part)).await.unwrap();
        }
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), part);
    }
    drop(tx);
    assert!(body.frame().await.is_none());
}

#[tokio::test]
async fn large_bodies_arrive_whole_in_small_chunks() {
    let (a, _b, _names) = pair(TestApp::echo()).await;
    let data: Bytes = (0..20_000_003u32).map(|i| (i % 251) as u8).collect::<Vec<_>>().into();
    let req = request("PUT", "/", full(data.clone()));
    let res = a.invoke.http(&cx(), target("b", "x"), req).await.unwrap();
    let mut body = res.into_body();
    let mut at = 0;
    while let Some(frame) = body.frame().await {
        let part = frame.unwrap().into_data().unwrap();
        assert!(part.len() <= 32 * 1024);
        assert_eq!(part, data[at..at + part.len()]);
        at += part.len();
    }
    assert_eq!(at, data.len());
}

#[tokio::test]
async fn a_reader_that_stops_stops_the_writer() {
    let sent = Arc::new(AtomicUsize::new(0));
    let counter = sent.clone();
    let app = TestApp::new(AppProtocol::Http, move |_| {
        let counter = counter.clone();
        let frames = futures_util::stream::iter(0..).map(move |_: u64| {
            counter.fetch_add(64 * 1024, Ordering::Relaxed);
            Ok::<_, BodyError>(Frame::data(Bytes::from(vec![7u8; 64 * 1024])))
        });
        Ok(Response::new(StreamBody::new(frames).boxed_unsync()))
    });
    let (a, _b, _names) = pair(app).await;
    let res = a.invoke.http(&cx(), target("b", "x"), request("GET", "/", empty())).await.unwrap();
    let mut body = res.into_body();
    body.frame().await.unwrap().unwrap();
    // The endless body fills the windows and buffers between, and then stands still.
    let mut last = usize::MAX;
    eventually(|| {
        let now = sent.load(Ordering::Relaxed);
        std::mem::replace(&mut last, now) == now && now > 0
    })
    .await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(sent.load(Ordering::Relaxed) < 8 * 1024 * 1024, "{}", sent.load(Ordering::Relaxed));
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_call_at_the_app() {
    struct Gone(Arc<AtomicBool>);
    impl Drop for Gone {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let gone = Arc::new(AtomicBool::new(false));
    let flag = gone.clone();
    let app = TestApp::new(AppProtocol::Http, move |_| {
        let guard = Gone(flag.clone());
        let first = futures_util::stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"event")))]);
        let rest = futures_util::stream::pending().map(move |x: Bytes| {
            let _held = &guard;
            Ok(Frame::data(x))
        });
        Ok(Response::new(StreamBody::new(first.chain(rest)).boxed_unsync()))
    });
    let (a, _b, _names) = pair(app).await;
    let res = a.invoke.http(&cx(), target("b", "x"), request("GET", "/", empty())).await.unwrap();
    let mut body = res.into_body();
    assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "event");
    assert!(!gone.load(Ordering::SeqCst));
    drop(body);
    eventually(|| gone.load(Ordering::SeqCst)).await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_an_error_not_an_end() {
    let app = TestApp::new(AppProtocol::Http, |_| {
        let (tx, rx) = mpsc::channel::<Result<Frame<Bytes>, BodyError>>(2);
        tx.try_send(Ok(Frame::data(Bytes::from_static(b"part")))).unwrap();
        tx.try_send(Err("reset".into())).unwrap();
        let mut res = Response::new(StreamBody::new(ReceiverStream::new(rx)).boxed_unsync());
        res.headers_mut().insert("content-type", "text/plain".parse().unwrap());
        Ok(res)
    });
    let (a, _b, _names) = pair(app).await;
    let res = a.invoke.http(&cx(), target("b", "x"), request("GET", "/", empty())).await.unwrap();
    let e = res.into_body().collect().await.unwrap_err();
    assert!(e.to_string().contains("broke off: reset"), "{e}");
}

#[tokio::test]
async fn a_sidecar_without_app_says_so() {
    let (a, _b, names) = pair(TestApp::echo()).await;
    let _c = Sidecar::start("c", &names, None, OwnApp::None).await;
    let e = a.invoke.http(&cx(), target("c", "x"), request("POST", "/", empty())).await.unwrap_err();
    assert!(e.message().ends_with("code = Internal desc = app channel is not initialized"), "{e}");
}

#[tokio::test]
async fn the_app_that_has_the_address_now_is_not_called_for_another() {
    let (a, b, names) = pair(TestApp::echo()).await;
    names.0.lock().insert("former".into(), vec![b.address.to_string().into()]);
    let mut req = request("POST", "/", full(Bytes::from_static(b"x")));
    // Unknown length: no further try, so that the test need not wait for them.
    let (tx, body) = channel();
    tx.send(Bytes::from_static(b"x")).await.unwrap();
    drop(tx);
    *req.body_mut() = body;
    let e = a.invoke.http(&cx(), target("former", "x"), req).await.unwrap_err();
    assert!(e.message().contains("this address belongs to app b"), "{e}");
}

#[tokio::test]
async fn a_restarted_peer_is_found_again() {
    let (a, b, names) = pair(TestApp::echo()).await;
    let cx = cx();
    let call = || a.invoke.http(&cx, target("b", "x"), request("POST", "/", full(Bytes::from_static(b"x"))));
    assert_eq!(call().await.unwrap().status(), 200);
    b.server.abort();
    let _ = b.server.await;
    let _again = Sidecar::start("b", &names, Some(TestApp::echo()), OwnApp::None).await;
    assert_eq!(call().await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_grpc_apps_answer_keeps_its_parts() {
    let app = TestApp::new(AppProtocol::Grpc, |req| {
        let i = req.extensions().get::<Invocation>().unwrap();
        assert_eq!((i.method.as_str(), i.type_url.as_str()), ("m%2Fx", "type.x/In"));
        assert_eq!(req.headers()["content-type"], "application/x-in");
        assert_eq!(req.headers()["key-bin"], "AAE=");
        let mut res = Response::new(req.into_body());
        res.headers_mut().insert("content-type", "application/x-out".parse().unwrap());
        res.headers_mut().insert("x-head", "1".parse().unwrap());
        let mut trailers = HeaderMap::new();
        trailers.insert("x-trail", "2".parse().unwrap());
        res.extensions_mut().insert(GrpcAnswer { trailers, type_url: "type.x/Out".into(), ..GrpcAnswer::default() });
        Ok(res)
    });
    let (a, _b, _names) = pair(app).await;
    let mut metadata = HeaderMap::new();
    metadata.insert("key-bin", "AAE".parse().unwrap());
    let call = GrpcCall {
        id: "b".into(),
        method: "m%2Fx".into(),
        data: Bytes::from_static(b"in"),
        type_url: "type.x/In".into(),
        content_type: "application/x-in".into(),
        verb: Verb::Missing,
        query: String::new(),
        metadata,
    };
    let reply = a.invoke.grpc_invoke(&cx(), call).await.unwrap();
    assert_eq!((reply.data, reply.type_url.as_str()), (Bytes::from_static(b"in"), "type.x/Out"));
    assert_eq!(reply.content_type, "application/x-out");
    assert_eq!(reply.headers["x-head"], "1");
    assert_eq!((reply.status.code, &reply.status.trailers["x-trail"]), (0, &"2".parse().unwrap()));
}

#[tokio::test]
async fn a_grpc_apps_error_reaches_both_kinds_of_caller() {
    let app = TestApp::new(AppProtocol::Grpc, |_| {
        let mut res = Response::new(empty());
        let details = vec![StatusDetail { type_url: "t".into(), value: Bytes::from_static(b"d") }];
        let message = "no such order".to_owned();
        res.extensions_mut().insert(GrpcAnswer { code: 5, message, details, ..GrpcAnswer::default() });
        Ok(res)
    });
    let (a, _b, _names) = pair(app).await;
    let res = a.invoke.http(&cx(), target("b", "m"), request("POST", "/", empty())).await.unwrap();
    assert_eq!(res.status(), 404);
    let json: serde_json::Value = serde_json::from_slice(&bytes(res.into_body()).await).unwrap();
    assert_eq!((json["code"].as_i64(), json["message"].as_str()), (Some(5), Some("no such order")));
}

#[tokio::test]
async fn a_peer_that_knows_no_streams_is_called_unary() {
    let names = Names::default();
    let a = Sidecar::start("a", &names, None, OwnApp::None).await;
    let streams = Arc::new(AtomicUsize::new(0));
    let counter = streams.clone();
    let (address, _server) = serve(move |req| {
        let counter = counter.clone();
        async move {
            if req.uri().path() == super::CALL_LOCAL_STREAM {
                counter.fetch_add(1, Ordering::SeqCst);
                return status::trailers_only(&mecha_core::invoke::TransportError::new(
                    grpc_code::UNIMPLEMENTED,
                    "unknown method CallLocalStream",
                ));
            }
            assert_eq!(req.uri().path(), super::CALL_LOCAL);
            let all = req.into_body().collect().await.unwrap().to_bytes();
            let asked = internals::InternalInvokeRequest::decode(&all[5..]).unwrap();
            let message = asked.message.unwrap();
            let answer = internals::InternalInvokeResponse {
                status: Some(internals::Status { code: 201, ..Default::default() }),
                message: Some(common::InvokeResponse { data: message.data, content_type: "text/plain".into() }),
                ..Default::default()
            };
            let mut out = BytesMut::new();
            super::framing::put_prefix(&mut out, answer.encoded_len());
            answer.encode(&mut out).unwrap();
            let trailers = std::future::ready(Some(Ok(status::ok())));
            Response::new(full(out.freeze()).with_trailers(trailers).boxed_unsync())
        }
    })
    .await;
    names.0.lock().insert("old".into(), vec![address.to_string().into()]);
    for _ in 0..3 {
        let req = request("POST", "/", full(Bytes::from_static(b"hi")));
        let res = a.invoke.http(&cx(), target("old", "m"), req).await.unwrap();
        assert_eq!(res.status(), StatusCode::CREATED);
        assert_eq!(bytes(res.into_body()).await, "hi");
    }
    assert_eq!(streams.load(Ordering::SeqCst), 1, "the peer is asked for streams once");
}

#[tokio::test]
async fn a_unary_call_of_an_old_peer_is_served() {
    let (_a, b, _names) = pair(TestApp::echo()).await;
    let pool = super::Pool::new(Arc::new(super::TcpDial), PoolSettings::default(), mecha_core::Tasks::new());
    let to = b.address.to_string();
    let lease = pool.lease(super::Dialled { address: &to, app_id: "b", namespace: "" }).await.unwrap();
    let ask = internals::InternalInvokeRequest {
        ver: 1,
        message: Some(common::InvokeRequest {
            method: "/orders/../x".into(),
            data: Some(mecha_proto::Any { type_url: String::new(), value: Bytes::from_static(b"hi") }),
            content_type: "text/plain".into(),
            http_extension: Some(common::HttpExtension { verb: 3, querystring: "a=1".into() }),
        }),
        ..Default::default()
    };
    let mut out = BytesMut::new();
    super::framing::put_prefix(&mut out, ask.encoded_len());
    ask.encode(&mut out).unwrap();
    let mut send = lease.send.clone();
    let uri = format!("http://{to}{}", super::CALL_LOCAL);
    let res = send.send_request(request("POST", &uri, full(out.freeze()))).await.unwrap();
    let all = res.into_body().collect().await.unwrap();
    assert_eq!(all.trailers().unwrap()["grpc-status"], "0");
    let answer = internals::InternalInvokeResponse::decode(&all.to_bytes()[5..]).unwrap();
    assert_eq!(answer.status.unwrap().code, 200);
    assert_eq!(answer.headers["X-Uri"].values, ["/x?a=1"]);
    assert_eq!(answer.message.unwrap().data.unwrap().value, "hi");
}

/// Sends raw stream messages to a sidecar and gives the status it ends with.
async fn raw_stream(b: &Sidecar, messages: Vec<internals::InternalInvokeRequestStream>) -> (Bytes, HeaderMap) {
    let pool = super::Pool::new(Arc::new(super::TcpDial), PoolSettings::default(), mecha_core::Tasks::new());
    let to = b.address.to_string();
    let lease = pool.lease(super::Dialled { address: &to, app_id: "b", namespace: "" }).await.unwrap();
    let mut out = BytesMut::new();
    for m in messages {
        super::framing::put_prefix(&mut out, m.encoded_len());
        m.encode(&mut out).unwrap();
    }
    let uri = format!("http://{to}{}", super::CALL_LOCAL_STREAM);
    let res = lease.send.clone().send_request(request("POST", &uri, full(out.freeze()))).await.unwrap();
    let head = res.headers().clone();
    let all = res.into_body().collect().await.unwrap();
    let trailers = all.trailers().cloned().unwrap_or(head);
    (all.to_bytes(), trailers)
}

fn first(payload: Option<(u64, &'static str)>) -> internals::InternalInvokeRequestStream {
    internals::InternalInvokeRequestStream {
        request: Some(internals::InternalInvokeRequest {
            ver: 1,
            message: Some(common::InvokeRequest {
                method: "m".into(),
                http_extension: Some(common::HttpExtension { verb: 3, querystring: String::new() }),
                ..Default::default()
            }),
            ..Default::default()
        }),
        payload: payload.map(chunk),
    }
}

fn chunk((seq, data): (u64, &'static str)) -> common::StreamPayload {
    common::StreamPayload { data: Bytes::from_static(data.as_bytes()), seq }
}

fn next(seq: u64, data: &'static str) -> internals::InternalInvokeRequestStream {
    internals::InternalInvokeRequestStream { request: None, payload: Some(chunk((seq, data))) }
}

#[tokio::test]
async fn streams_out_of_step_are_refused() {
    let (_a, b, _names) = pair(TestApp::echo()).await;
    let (_, trailers) = raw_stream(&b, vec![first(Some((0, "a"))), next(1, "b"), next(2, "c")]).await;
    assert_eq!(trailers["grpc-status"], "0");
    let (_, trailers) = raw_stream(&b, vec![first(Some((0, "a"))), next(2, "c")]).await;
    let message = trailers["grpc-message"].to_str().unwrap();
    assert!(message.contains("invalid sequence number received: 2 (expected: 1)"), "{message}");
    let (_, trailers) = raw_stream(&b, vec![first(None), first(None)]).await;
    assert!(trailers["grpc-message"].to_str().unwrap().contains("non-leading chunk"));
    let (_, trailers) = raw_stream(&b, vec![next(0, "a")]).await;
    assert_eq!(trailers["grpc-status"], "3");
}

#[tokio::test]
async fn actor_calls_answer_that_they_are_not_built() {
    let (_a, b, _names) = pair(TestApp::echo()).await;
    let pool = super::Pool::new(Arc::new(super::TcpDial), PoolSettings::default(), mecha_core::Tasks::new());
    let to = b.address.to_string();
    let lease = pool.lease(super::Dialled { address: &to, app_id: "b", namespace: "" }).await.unwrap();
    for method in ["CallActor", "CallActorReminder", "CallActorStream"] {
        let uri = format!("http://{to}{}{method}", super::SERVICE);
        let res = lease.send.clone().send_request(request("POST", &uri, empty())).await.unwrap();
        assert_eq!(res.headers()["grpc-status"], "12");
        assert!(res.headers()["grpc-message"].to_str().unwrap().starts_with("ERR_API_UNIMPLEMENTED"));
    }
}

#[tokio::test]
async fn calls_share_connections_and_the_pool_grows_before_they_queue() {
    let (go, gate) = tokio::sync::watch::channel(false);
    let app = TestApp::new(AppProtocol::Http, move |_| {
        let mut gate = gate.clone();
        let wait = futures_util::stream::once(async move {
            let _ = gate.wait_for(|open| *open).await;
            Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"done")))
        });
        let mut res = Response::new(StreamBody::new(Box::pin(wait)).boxed_unsync());
        res.headers_mut().insert("content-type", "text/plain".parse().unwrap());
        Ok(res)
    });
    let names = Names::default();
    let settings = PoolSettings {
        max_idle: Duration::from_millis(50),
        sweep: Duration::from_millis(20),
        ..PoolSettings::default()
    };
    let a = Sidecar::with("a", &names, None, OwnApp::None, settings).await;
    let _b = Sidecar::start("b", &names, Some(app), OwnApp::None).await;
    let calls = (0..1000).map(|_| a.invoke.http(&CX, target("b", "x"), request("POST", "/", empty())));
    static CX: Cx = Cx {
        front: Front::Http,
        trace: mecha_core::TraceHeaders { traceparent: None, tracestate: None, baggage: None },
    };
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(|r| r.as_ref().is_ok_and(|r| r.status() == 200)));
    assert_eq!(a.pool.connections(), 10);
    go.send(true).unwrap();
    for answer in answers {
        assert_eq!(bytes(answer.unwrap().into_body()).await, "done");
    }
    eventually(|| a.pool.connections() == 0).await;
}

#[tokio::test]
async fn many_callers_of_a_dead_address_fail_together() {
    let names = Names::default();
    let a = Sidecar::start("a", &names, None, OwnApp::None).await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let dead = listener.local_addr().unwrap().to_string();
    drop(listener);
    let to = super::Dialled { address: &dead, app_id: "b", namespace: "" };
    let all = futures_util::future::join_all((0..500).map(|_| a.pool.lease(to))).await;
    for lease in all {
        let e = lease.unwrap_err();
        assert_eq!((e.code, e.reached), (grpc_code::UNAVAILABLE, mecha_core::invoke::Reached::No));
    }
}

// The hand-written codec and the generated types agree.

fn header_map() -> impl Strategy<Value = HeaderMap> {
    let name = "[a-z][a-z0-9]{0,6}(-[a-z0-9]{1,5}){0,2}";
    proptest::collection::vec((name, "[ -~]{0,40}"), 0..12).prop_map(|all| {
        let mut map = HeaderMap::new();
        for (name, value) in all {
            if !name.ends_with("-bin") && name != "content-type" {
                map.append(name.parse::<http::HeaderName>().unwrap(), value.trim().parse().unwrap());
            }
        }
        map
    })
}

fn lists(map: &HeaderMap) -> std::collections::BTreeMap<String, Vec<String>> {
    let text = |v: &http::HeaderValue| v.to_str().unwrap().to_owned();
    map.keys().map(|k| (k.as_str().to_owned(), map.get_all(k).iter().map(text).collect())).collect()
}

proptest! {
    #[test]
    fn requests_read_as_the_generated_type(
        headers in header_map(),
        method in "[a-z/]{0,20}",
        query in "[a-z=&]{0,10}",
        verb in 0i32..10,
        data in proptest::collection::vec(any::<u8>(), 0..300),
        content_type in prop_oneof![Just(String::new()), Just("text/plain".to_owned())],
        grpc: bool,
    ) {
        let mut head = Head {
            verb: Verb::from_number(verb),
            method: Method::new(&method).unwrap(),
            query: query.clone(),
            headers,
            type_url: String::new(),
            origin: if grpc { Origin::Grpc } else { Origin::Http },
        };
        let mut plain = lists(&head.headers);
        if !content_type.is_empty() {
            head.headers.insert("content-type", content_type.parse().unwrap());
            if !grpc {
                plain.insert("content-type".to_owned(), vec![content_type.clone()]);
            }
        }
        let mut out = BytesMut::new();
        wire::put_request(&mut out, &head, &data, false);
        let read = internals::InternalInvokeRequest::decode(out.clone().freeze()).unwrap();
        prop_assert_eq!(read.ver, 1);
        let message = read.message.unwrap();
        prop_assert_eq!(&message.method, head.method.as_str());
        prop_assert_eq!(&message.content_type, &content_type);
        prop_assert_eq!(message.data.map(|d| d.value).unwrap_or_default(), data.clone());
        let extension = message.http_extension.unwrap();
        prop_assert_eq!((extension.verb, &extension.querystring), (verb, &query));
        let mut sent = std::collections::BTreeMap::new();
        for (key, list) in &read.metadata {
            if grpc && key == "content-type" {
                prop_assert_eq!(&list.values[..], ["application/grpc"]);
                continue;
            }
            let canonical = key.split('-').all(|p| !p.starts_with(|c: char| c.is_ascii_lowercase()));
            prop_assert_eq!(canonical, !grpc || !key.contains(|c: char| c.is_ascii_alphabetic()), "{}", key);
            sent.insert(key.to_ascii_lowercase(), list.values.clone());
        }
        prop_assert_eq!(sent, plain);
        let (back, body) = wire::read_request(out.freeze()).unwrap();
        prop_assert_eq!((back.verb, back.method, back.query), (head.verb, head.method, head.query));
        prop_assert_eq!((lists(&back.headers), back.origin), (lists(&head.headers), head.origin));
        prop_assert_eq!(body, data);
    }

    #[test]
    fn responses_read_as_the_generated_type(
        headers in header_map(),
        code in 100u16..600,
        grpc in proptest::option::of((0i32..17, "\\PC{0,20}", header_map())),
        data in proptest::collection::vec(any::<u8>(), 0..300),
    ) {
        let grpc = grpc.map(|(code, message, trailers)| GrpcAnswer {
            code,
            message,
            details: vec![StatusDetail { type_url: "t".into(), value: Bytes::from_static(b"v") }],
            trailers,
            type_url: "u".into(),
        });
        let mut out = BytesMut::new();
        wire::put_response(&mut out, StatusCode::from_u16(code).unwrap(), &headers, grpc.as_ref(), &data, false);
        let read = internals::InternalInvokeResponse::decode(out.clone().freeze()).unwrap();
        let status = read.status.unwrap();
        prop_assert_eq!(status.code, grpc.as_ref().map_or(i32::from(code), |g| g.code));
        prop_assert_eq!(read.headers.len(), headers.keys_len());
        let back = wire::read_response(out.freeze()).unwrap();
        prop_assert_eq!(lists(&back.headers), lists(&headers));
        prop_assert_eq!(back.data, data);
        if let Some(grpc) = grpc {
            prop_assert_eq!(&status.message, &grpc.message);
            prop_assert_eq!(read.trailers.len(), grpc.trailers.keys_len());
            prop_assert_eq!(back.grpc, grpc);
        }
    }

    #[test]
    fn hostile_messages_do_not_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let data = Bytes::from(data);
        let _ = wire::read_request(data.clone());
        let _ = wire::read_response(data.clone());
        let _ = wire::read_stream(data.clone());
        let _ = wire::read_status_details(data);
    }

    #[test]
    fn metadata_cannot_smuggle_lines(value in "[ -~]{0,10}[\r\n\0][ -~]{0,10}", key in "\\PC{0,12}") {
        let request = internals::InternalInvokeRequest {
            ver: 1,
            metadata: [(key, internals::ListStringValue { values: vec![value] })].into_iter().collect(),
            message: Some(common::InvokeRequest { method: "m".into(), ..Default::default() }),
            actor: None,
        };
        let (head, _) = wire::read_request(request.encode_to_vec().into()).unwrap();
        prop_assert!(head.headers.is_empty());
    }
}

/// More calls than a connection forgives late frames of, were they dropped at their length.
const MANY_CALLS: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_read_to_their_length_leave_the_connection_alone() {
    let app = TestApp::new(AppProtocol::Http, |_| {
        // The end leaves while the data is on its way, so it meets a stream that may be gone.
        let late_end = futures_util::stream::once(tokio::task::yield_now()).filter_map(|()| std::future::ready(None));
        let data = futures_util::stream::iter([Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"ok")))]);
        let mut res = Response::new(StreamBody::new(data.chain(late_end)).boxed_unsync());
        res.headers_mut().insert("content-length", "2".parse().unwrap());
        Ok(res)
    });
    let (a, _b, _names) = pair(app).await;
    let call = || async {
        let res = a.invoke.http(&cx(), target("b", "m"), request("POST", "/", empty())).await.unwrap();
        // An HTTP/1 server sends this much and drops the rest.
        let first = res.into_body().frame().await.unwrap().unwrap();
        assert_eq!(first.into_data().unwrap(), "ok");
    };
    futures_util::stream::iter(std::iter::repeat_with(call).take(MANY_CALLS)).buffer_unordered(90).count().await;
    assert_eq!(a.pool.connections(), 1);
}
