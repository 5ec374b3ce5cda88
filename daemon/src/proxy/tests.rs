use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mecha_core::app::{Body, BodyError};
use mecha_core::invoke::{AccessControl, Question, empty, full};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{OwnApp, ProxyApp, Side};
use crate::peer::testing::{Names, Sidecar, TestApp, eventually, serve};
use crate::peer::{Connected, Pool, PoolSettings, TcpDial, status};

/// A gRPC server that sends back every byte as it comes, with what it was asked in its headers.
async fn grpc_app() -> (OwnApp, tokio::task::JoinHandle<()>) {
    let (address, server) = serve(|req| async move {
        let (parts, body) = req.into_parts();
        if parts.uri.path().ends_with("/Fail") {
            let mut res = Response::new(empty());
            for (name, value) in
                [("grpc-status", "9"), ("grpc-message", "not%20now"), ("grpc-status-details-bin", "CAk")]
            {
                res.headers_mut().insert(name, value.parse().unwrap());
            }
            return res;
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        trailers.insert("x-trailer", "t".parse().unwrap());
        let body = body.map_err(BodyError::from).with_trailers(std::future::ready(Some(Ok(trailers))));
        let mut res = Response::new(body.boxed_unsync());
        res.headers_mut().insert("content-type", status::GRPC);
        for (name, value) in &parts.headers {
            res.headers_mut().append(http::HeaderName::try_from(format!("echo-{name}")).unwrap(), value.clone());
        }
        res
    })
    .await;
    let app = ProxyApp {
        pool: Pool::new(Arc::new(TcpDial), PoolSettings::default(), mecha_core::Tasks::new()),
        address: address.to_string(),
        tls: false,
        token: Some("app-token".parse().unwrap()),
        admission: None,
    };
    (OwnApp::Grpc(app), server)
}

fn call(target: &[(&'static str, &str)], path: &str, body: Body) -> Request<Body> {
    let mut req = Request::builder().method("POST").uri(format!("http://x{path}")).body(body).unwrap();
    req.headers_mut().insert("content-type", status::GRPC);
    for (name, value) in target {
        req.headers_mut().insert(*name, value.parse().unwrap());
    }
    req
}

async fn ask(from: &Sidecar, req: Request<Body>) -> Response<Body> {
    from.proxy.handle(Side::Api, &Connected::default(), req).await
}

async fn rig() -> (Sidecar, Sidecar, Names) {
    let names = Names::default();
    let (own, _server) = grpc_app().await;
    let a = Sidecar::start("a", &names, None, OwnApp::None).await;
    let b = Sidecar::start("b", &names, None, own).await;
    (a, b, names)
}

fn failure(res: &Response<Body>) -> (String, String) {
    let text = |n: &str| res.headers().get(n).map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default();
    (text("grpc-status"), text("grpc-message"))
}

#[tokio::test]
async fn a_call_reaches_another_app_unchanged() {
    let (a, _b, _names) = rig().await;
    let mut req = call(&[("dapr-app-id", "b")], "/shop.Orders/Get", full(Bytes::from_static(b"\0\0\0\0\x02hi")));
    for (name, value) in [
        ("x-meta", "1"),
        ("key-bin", "AAEC"),
        ("dapr-api-token", "canary"),
        ("dapr-caller-app-id", "forged"),
        ("grpc-timeout", "5S"),
    ] {
        req.headers_mut().insert(name, value.parse().unwrap());
    }
    let res = ask(&a, req).await;
    let h = res.headers().clone();
    assert_eq!(h["echo-x-meta"], "1");
    assert_eq!(h["echo-key-bin"], "AAEC");
    assert_eq!(h["echo-grpc-timeout"], "5S");
    assert_eq!(h["echo-te"], "trailers");
    assert_eq!(h["echo-dapr-caller-app-id"], "a");
    assert_eq!(h["echo-dapr-callee-app-id"], "b");
    assert_eq!(h["echo-dapr-api-token"], "app-token");
    assert!(!h.contains_key("echo-dapr-app-id"));
    let all = res.into_body().collect().await.unwrap();
    let trailers = all.trailers().unwrap().clone();
    assert_eq!((&trailers["grpc-status"], &trailers["x-trailer"]), (&"0".parse().unwrap(), &"t".parse().unwrap()));
    assert_eq!(all.to_bytes(), &b"\0\0\0\0\x02hi"[..]);
}

#[tokio::test]
async fn streams_flow_in_both_directions_at_a_time() {
    let (a, _b, _names) = rig().await;
    let (tx, rx) = mpsc::channel::<Bytes>(1);
    let body = StreamBody::new(ReceiverStream::new(rx).map(|b| Ok::<_, BodyError>(Frame::data(b)))).boxed_unsync();
    let res = ask(&a, call(&[("dapr-callee-app-id", "b"), ("dapr-stream", "true")], "/shop.Orders/Chat", body)).await;
    let mut body = res.into_body();
    for part in ["\0\0\0\0\x03one", "\0\0\0\0\x03two", "\0\0\0\0\x05three"] {
        tx.send(Bytes::from(part)).await.unwrap();
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), part);
    }
    drop(tx);
    assert_eq!(body.frame().await.unwrap().unwrap().into_trailers().unwrap()["grpc-status"], "0");
}

#[tokio::test]
async fn statuses_and_their_details_pass() {
    let (a, _b, _names) = rig().await;
    let res = ask(&a, call(&[("dapr-app-id", "b")], "/shop.Orders/Fail", empty())).await;
    assert_eq!(failure(&res), ("9".to_owned(), "not%20now".to_owned()));
    assert_eq!(res.headers()["grpc-status-details-bin"], "CAk");
}

#[tokio::test]
async fn the_own_id_leads_to_the_own_app() {
    let (_a, b, _names) = rig().await;
    let res = ask(&b, call(&[("dapr-app-id", "b")], "/shop.Orders/Get", empty())).await;
    assert_eq!(res.headers()["echo-dapr-api-token"], "app-token");
}

#[tokio::test]
async fn targets_that_lead_nowhere() {
    let (a, _b, names) = rig().await;
    let res = ask(&a, call(&[], "/shop.Orders/Get", empty())).await;
    let text = "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata";
    assert_eq!(failure(&res), ("2".to_owned(), text.to_owned()));
    let res = ask(&a, call(&[], "/dapr.proto.runtime.v1.Dapr/Nothing", empty())).await;
    let text = "failed to proxy request: required metadata dapr-callee-app-id or dapr-app-id not found";
    assert_eq!(failure(&res), ("2".to_owned(), text.to_owned()));
    let res = ask(&a, call(&[("dapr-app-id", "nobody")], "/shop.Orders/Get", empty())).await;
    assert_eq!(failure(&res), ("2".to_owned(), "no host found with the given ID".to_owned()));
    let res = ask(&a, call(&[("dapr-app-id", "x.y.z")], "/shop.Orders/Get", empty())).await;
    assert_eq!(failure(&res), ("2".to_owned(), "invalid app id x.y.z".to_owned()));

    let _c = Sidecar::start("c", &names, Some(TestApp::echo()), OwnApp::Other("http")).await;
    let res = ask(&a, call(&[("dapr-app-id", "c")], "/shop.Orders/Get", empty())).await;
    assert_eq!(failure(&res).0, "9");
    assert!(failure(&res).1.contains("speaks http"), "{:?}", failure(&res));
    let res = ask(&a, call(&[("dapr-app-id", "a")], "/shop.Orders/Get", empty())).await;
    assert!(failure(&res).1.contains("app channel not initialized"));
}

#[derive(Debug)]
struct Deny;

impl AccessControl for Deny {
    fn check(&self, q: Question<'_>) -> Result<(), String> {
        if q.operation == "/shop.Orders/Secret" { Err("access denied".into()) } else { Ok(()) }
    }
}

#[tokio::test]
async fn rules_hold_for_proxied_calls_in_every_spelling() {
    let (a, b, _names) = rig().await;
    b.invoke.set_access_control(Arc::new(Deny));
    let res = ask(&a, call(&[("dapr-app-id", "b")], "/shop.Orders/Secret", empty())).await;
    assert_eq!(failure(&res).0, "7");
    for path in ["/shop.Orders/x/../Secret", "//shop.Orders/Secret", "/shop.Orders/./Secret", "/shop.Orders/Secret/"] {
        let res = ask(&a, call(&[("dapr-app-id", "b")], path, empty())).await;
        assert_eq!(failure(&res).0, "3", "{path}");
    }
}

#[tokio::test]
async fn loops_are_cut() {
    let (a, _b, _names) = rig().await;
    let req = call(&[("dapr-app-id", "b"), ("mecha-hops", "32")], "/shop.Orders/Get", empty());
    assert_eq!(failure(&ask(&a, req).await).0, "9");
}

#[tokio::test]
async fn an_app_that_restarts_is_dialled_again_and_one_that_dies_is_a_status() {
    let names = Names::default();
    let (own, server) = grpc_app().await;
    let b = Sidecar::start("b", &names, None, own).await;
    let get = || call(&[("dapr-app-id", "b")], "/shop.Orders/Get", empty());
    assert!(!ask(&b, get()).await.headers().contains_key("grpc-status"));
    let (tx, rx) = mpsc::channel::<Bytes>(1);
    let body = StreamBody::new(ReceiverStream::new(rx).map(|b| Ok::<_, BodyError>(Frame::data(b)))).boxed_unsync();
    let mut streaming = ask(&b, call(&[("dapr-app-id", "b")], "/shop.Orders/Chat", body)).await.into_body();
    tx.send(Bytes::from_static(b"x")).await.unwrap();
    streaming.frame().await.unwrap().unwrap();
    server.abort();
    let trailers = streaming.frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(trailers["grpc-status"], "14");
    let mut last = String::new();
    // The listener goes with its task; until then a call may still find it.
    eventually(|| server.is_finished()).await;
    for _ in 0..3 {
        last = failure(&ask(&b, get()).await).0;
    }
    assert_eq!(last, "14");
}
