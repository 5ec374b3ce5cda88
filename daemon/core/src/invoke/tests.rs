use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream;
use http::HeaderMap;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use mecha_components_api::{
    BindingEvent, CancellationToken, Component, ConfigItem, Error, Instance, NameResolver, Result as ApiResult,
    Target as Wanted,
};
use parking_lot::Mutex;

use super::*;
use crate::app::{
    AppConfig, AppProtocol, AppSubscription, AppVerdict, BindingReply, BodyError, BulkTopicEvent, TopicEvent,
};
use crate::codes::Code;
use crate::cx::{Front, TraceHeaders};

type Answer = Box<dyn FnMut(Request<Bytes>) -> Result<Response<Body>, AppError> + Send>;
use crate::app::AppError;

/// An app that answers from a script and keeps what it was asked.
struct FakeApp {
    protocol: AppProtocol,
    seen: Mutex<Vec<Request<Bytes>>>,
    answer: Mutex<Answer>,
}

impl std::fmt::Debug for FakeApp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("FakeApp")
    }
}

impl FakeApp {
    fn new(
        protocol: AppProtocol,
        answer: impl FnMut(Request<Bytes>) -> Result<Response<Body>, AppError> + Send + 'static,
    ) -> Arc<Self> {
        Arc::new(Self { protocol, seen: Mutex::default(), answer: Mutex::new(Box::new(answer)) })
    }

    fn echo() -> Arc<Self> {
        Self::new(AppProtocol::Http, |req| Ok(Response::new(full(req.into_body()))))
    }
}

#[async_trait]
impl AppChannel for FakeApp {
    fn protocol(&self) -> AppProtocol {
        self.protocol
    }
    async fn config(&self) -> Result<Option<AppConfig>, AppError> {
        Ok(None)
    }
    async fn subscriptions(&self) -> Result<Option<Vec<AppSubscription>>, AppError> {
        Ok(None)
    }
    async fn topic_event(&self, _: &TopicEvent) -> Result<AppVerdict, AppError> {
        Ok(AppVerdict::Success)
    }
    async fn bulk_topic_event(&self, _: &BulkTopicEvent) -> Result<Vec<AppVerdict>, AppError> {
        Ok(vec![])
    }
    async fn takes_binding(&self, _: &str, _: &str, _: Duration) -> Result<bool, AppError> {
        Ok(false)
    }
    async fn binding_event(
        &self,
        _: &str,
        _: &str,
        _: &BindingEvent,
        _: &TraceHeaders,
    ) -> Result<BindingReply, AppError> {
        Ok(BindingReply::default())
    }
    async fn configuration_event(
        &self,
        _: &str,
        _: &str,
        _: &str,
        _: &BTreeMap<String, ConfigItem>,
    ) -> Result<(), AppError> {
        Ok(())
    }
    async fn probe(&self, _: &str, _: Duration) -> Result<(), AppError> {
        Ok(())
    }
    async fn invoke(&self, req: Request<Body>) -> Result<Response<Body>, AppError> {
        let (parts, body) = req.into_parts();
        let bytes =
            body.collect().await.map_err(|e| AppError::transport(Error::unavailable(e.to_string())))?.to_bytes();
        let mut copy = Request::new(bytes.clone());
        *copy.method_mut() = parts.method.clone();
        *copy.uri_mut() = parts.uri.clone();
        *copy.headers_mut() = parts.headers.clone();
        if let Some(i) = parts.extensions.get::<Invocation>() {
            copy.extensions_mut().insert(i.clone());
        }
        self.seen.lock().push(copy);
        (self.answer.lock())(Request::from_parts(parts, bytes))
    }
}

#[derive(Debug, Default)]
struct FakeTransport {
    /// Errors of the first tries, then success.
    errors: Mutex<Vec<TransportError>>,
    calls: Mutex<Vec<(String, Head, Bytes)>>,
    dropped: AtomicUsize,
    urls: Mutex<Vec<Request<()>>>,
}

#[async_trait]
impl Transport for FakeTransport {
    async fn call_peer(&self, peer: Peer<'_>, head: &Head, body: Body) -> Result<Response<Body>, TransportError> {
        let unsent = self.errors.lock().first().is_some_and(|e| e.reached == Reached::No);
        let bytes = if unsent {
            Bytes::new()
        } else {
            body.collect().await.map_err(|e| TransportError::new(1, e.to_string()))?.to_bytes()
        };
        self.calls.lock().push((peer.address.to_owned(), head.clone(), bytes.clone()));
        let mut errors = self.errors.lock();
        if errors.is_empty() { Ok(Response::new(full(bytes))) } else { Err(errors.remove(0)) }
    }

    async fn call_endpoint(&self, _: &Endpoint, req: Request<Body>) -> Result<Response<Body>, TransportError> {
        let (parts, _) = req.into_parts();
        self.urls.lock().push(Request::from_parts(parts, ()));
        Ok(Response::new(empty()))
    }

    fn drop_connections(&self, _: &str) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

#[derive(Debug)]
struct Two;

#[async_trait]
impl Component for Two {}

#[async_trait]
impl NameResolver for Two {
    async fn resolve(&self, target: Wanted<'_>) -> ApiResult<Vec<Arc<str>>> {
        match target.app_id {
            "one" => Ok(vec!["h1:1".into()]),
            "two" => Ok(vec!["h1:1".into(), "h2:1".into()]),
            _ => Err(Error::not_found("no host found with the given ID")),
        }
    }
    async fn announce(&self, _: Instance, _: Box<dyn FnOnce() + Send>, _: CancellationToken) -> ApiResult<()> {
        Ok(())
    }
}

struct Rig {
    invoke: Invoke,
    transport: Arc<FakeTransport>,
}

fn rig_with(app: Option<Arc<dyn AppChannel>>, strict: bool) -> Rig {
    let transport = Arc::new(FakeTransport::default());
    let invoke = Invoke::new(InvokeParts {
        identity: Identity { app_id: "self".into(), namespace: "".into(), pod_name: "".into() },
        host_address: "10.0.0.1".into(),
        host_name: "box".into(),
        app,
        transport: transport.clone(),
        metrics: Arc::new(Metrics::disabled()),
        declared_urls_only: strict,
        close_internal_routes: strict,
        max_body: 1024,
    });
    invoke.set_resolver(Some(Arc::new(Two)));
    Rig { invoke, transport }
}

fn rig() -> Rig {
    rig_with(Some(FakeApp::echo()), false)
}

fn cx() -> Cx {
    Cx::new(Front::Http)
}

fn target(id: &str, method: &str) -> Target {
    Target { id: id.into(), method: Method::new(method).unwrap() }
}

fn post(body: &'static str) -> Request<Body> {
    let mut req = Request::new(full(Bytes::from_static(body.as_bytes())));
    *req.method_mut() = http::Method::POST;
    req
}

fn chunked(parts: &'static [&'static str]) -> Body {
    let frames = parts.iter().map(|p| Ok::<_, BodyError>(Frame::data(Bytes::from_static(p.as_bytes()))));
    StreamBody::new(stream::iter(frames)).boxed_unsync()
}

async fn text(res: Response<Body>) -> String {
    String::from_utf8(res.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn the_own_app_is_called_directly() {
    let app = FakeApp::echo();
    let rig = rig_with(Some(app.clone()), false);
    let mut req = post("hello");
    *req.uri_mut() = "/ignored?a=1&a=2".parse().unwrap();
    req.headers_mut().insert("dapr-api-token", "canary".parse().unwrap());
    req.headers_mut().insert("x-forwarded-for", "1.2.3.4".parse().unwrap());
    let res = rig.invoke.http(&cx(), target("self.default", "orders/1"), req).await.unwrap();
    assert_eq!(res.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(text(res).await, "hello");
    let seen = app.seen.lock();
    assert_eq!(seen[0].uri(), "/orders/1?a=1&a=2");
    assert!(!seen[0].headers().contains_key("dapr-api-token"));
    assert!(!seen[0].headers().contains_key("dapr-caller-app-id"));
    assert_eq!(seen[0].headers().get_all("x-forwarded-for").iter().count(), 1);
}

#[tokio::test]
async fn without_an_app_the_own_id_is_a_clear_error() {
    let e = rig_with(None, false).invoke.http(&cx(), target("self", "x"), post("")).await.unwrap_err();
    assert_eq!(
        e.message(),
        "failed to invoke, id: self, err: cannot invoke local endpoint: app channel not initialized"
    );
    assert_eq!((e.code(), e.status()), (Code::DirectInvoke, Some((500, 13))));
}

#[tokio::test]
async fn unknown_apps_and_bad_ids_say_why() {
    let rig = rig();
    for (id, why) in [("nobody", "no host found with the given ID"), ("a.b.c", "invalid app id a.b.c")] {
        let e = rig.invoke.http(&cx(), target(id, "x"), post("")).await.unwrap_err();
        assert_eq!(e.message(), format!("failed to invoke, id: {id}, err: {why}"));
    }
    let mut req = post("");
    *req.method_mut() = http::Method::CONNECT;
    let e = rig.invoke.http(&cx(), target("one", "x"), req).await.unwrap_err();
    assert!(e.message().ends_with("invalid HTTP verb"), "{e}");
}

#[tokio::test]
async fn a_call_to_another_app_carries_who_calls_whom() {
    let rig = rig();
    let mut req = post("x");
    req.headers_mut().insert("dapr-caller-app-id", "forged".parse().unwrap());
    rig.invoke.http(&cx(), target("one", "m"), req).await.unwrap();
    let calls = rig.transport.calls.lock();
    let headers = &calls[0].1.headers;
    assert_eq!(headers["dapr-caller-app-id"], "self");
    assert_eq!(headers["dapr-caller-namespace"], "default");
    assert_eq!(headers["dapr-callee-app-id"], "one");
    assert_eq!(headers["x-forwarded-host"], "box");
}

fn dial() -> TransportError {
    TransportError::unsent(grpc_code::UNAVAILABLE, "connection refused")
}

#[tokio::test(start_paused = true)]
async fn a_callee_that_comes_back_is_reached() {
    let rig = rig();
    rig.transport.errors.lock().extend([dial(), dial(), dial()]);
    let res = rig.invoke.http(&cx(), target("one", "m"), post("body")).await.unwrap();
    assert_eq!(text(res).await, "body");
    assert_eq!(rig.transport.calls.lock().len(), 4);
    assert_eq!(rig.transport.dropped.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_callee_that_stays_away_is_given_up() {
    let rig = rig();
    rig.transport.errors.lock().extend((0..9).map(|_| dial()));
    let e = rig.invoke.http(&cx(), target("one", "m"), post("body")).await.unwrap_err();
    assert_eq!(
        e.message(),
        "failed to invoke, id: one, err: failed to invoke target one after 3 retries. \
         Error: rpc error: code = Unavailable desc = connection refused"
    );
    assert_eq!(rig.transport.calls.lock().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn another_replica_is_asked_without_waiting() {
    let rig = rig();
    rig.transport.errors.lock().push(dial());
    // A wait of the retry interval would show as a second.
    let started = Instant::now();
    rig.invoke.http(&cx(), target("two", "m"), post("body")).await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(1));
    let calls = rig.transport.calls.lock();
    assert_ne!(calls[0].0, calls[1].0);
}

#[tokio::test(start_paused = true)]
async fn what_may_have_been_done_is_not_done_twice() {
    for (verb, tries) in [(http::Method::POST, 1), (http::Method::PUT, 4), (http::Method::PATCH, 1)] {
        let rig = rig();
        rig.transport.errors.lock().extend((0..9).map(|_| TransportError::new(grpc_code::UNAVAILABLE, "reset")));
        let mut req = post("body");
        *req.method_mut() = verb.clone();
        assert!(rig.invoke.http(&cx(), target("one", "m"), req).await.is_err());
        assert_eq!(rig.transport.calls.lock().len(), tries, "{verb}");
    }
}

#[tokio::test(start_paused = true)]
async fn other_failures_and_chunked_bodies_are_final() {
    let rig = rig();
    rig.transport.errors.lock().push(TransportError::new(grpc_code::INTERNAL, "error invoking app channel: x"));
    assert!(rig.invoke.http(&cx(), target("one", "m"), post("b")).await.is_err());
    assert_eq!(rig.transport.calls.lock().len(), 1);

    rig.transport.errors.lock().push(dial());
    let req = post("").map(|_| chunked(&["a", "b"]));
    assert!(rig.invoke.http(&cx(), target("one", "m"), req).await.is_err());
    assert_eq!(rig.transport.calls.lock().len(), 2);
}

#[tokio::test]
async fn a_refusal_by_rules_is_403() {
    let rig = rig();
    rig.transport.errors.lock().push(TransportError::unsent(grpc_code::PERMISSION_DENIED, "access denied"));
    let e = rig.invoke.http(&cx(), target("one", "m"), post("b")).await.unwrap_err();
    assert_eq!(e.status(), Some((403, 7)));
}

#[tokio::test]
async fn loops_are_cut() {
    let mut req = post("");
    req.headers_mut().insert("mecha-hops", headers::MAX_HOPS.into());
    let e = rig().invoke.http(&cx(), target("one", "m"), req).await.unwrap_err();
    assert_eq!(e.status(), Some((508, 9)));
}

#[tokio::test]
async fn a_limit_on_the_callers_body_is_the_callers_error() {
    let rig = rig();
    let frames = stream::iter([Err::<Frame<Bytes>, BodyError>(ApiError::too_large(4).into())]);
    let req = post("").map(|_| StreamBody::new(frames).boxed_unsync());
    let e = rig.invoke.http(&cx(), target("self", "m"), req).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::TooLarge);
}

#[tokio::test]
async fn an_answer_that_breaks_its_word_is_502() {
    for (announced, body) in [("9", &["ab"][..]), ("1", &["ab"]), ("2", &[])] {
        let app = FakeApp::new(AppProtocol::Http, move |_| {
            let mut res = Response::new(chunked(if body.is_empty() { &[] } else { &["ab"] }));
            res.headers_mut().insert("content-length", announced.parse().unwrap());
            Ok(res)
        });
        let e = rig_with(Some(app), false).invoke.http(&cx(), target("self", "m"), post("")).await.unwrap_err();
        assert_eq!(e.status(), Some((502, 13)), "{announced}");
    }
}

#[tokio::test]
async fn an_upgrade_nobody_asked_for_is_502() {
    let rig = rig_with(Some(flaky(&[101])), false);
    let e = rig.invoke.http(&cx(), target("self", "m"), post("")).await.unwrap_err();
    assert_eq!(e.status(), Some((502, 13)));
}

#[tokio::test]
async fn answers_without_body_keep_their_length() {
    let app = FakeApp::new(AppProtocol::Http, |_| {
        let mut res = Response::new(empty());
        res.headers_mut().insert("content-length", "12".parse().unwrap());
        res.headers_mut().insert("connection", "x-hop".parse().unwrap());
        res.headers_mut().insert("x-hop", "1".parse().unwrap());
        Ok(res)
    });
    let mut req = post("");
    *req.method_mut() = http::Method::HEAD;
    let res = rig_with(Some(app), false).invoke.http(&cx(), target("self", "m"), req).await.unwrap();
    assert_eq!(res.headers()["content-length"], "12");
    assert!(!res.headers().contains_key("x-hop"));
}

#[tokio::test]
async fn a_grpc_apps_status_reaches_http_callers() {
    let app = FakeApp::new(AppProtocol::Grpc, |_| {
        let error = Error::not_found("no such order");
        Err(AppError { error, http_status: None, grpc_code: Some(5) })
    });
    let rig = rig_with(Some(app.clone()), false);
    let res = rig.invoke.http(&cx(), target("self", "m"), post("x")).await.unwrap();
    assert_eq!(res.status(), 404);
    assert_eq!(res.headers()["content-type"], "text/plain; charset=utf-8");
    assert_eq!(text(res).await, r#"{"code":5,"message":"no such order"}"#);
    let seen = app.seen.lock();
    assert_eq!(seen[0].extensions().get::<Invocation>().unwrap().method.as_str(), "m");
}

#[tokio::test]
async fn urls_are_called_unless_strict_mode_refuses_them() {
    let mut req = post("x");
    *req.uri_mut() = "/?q=1".parse().unwrap();
    let open = rig();
    open.invoke.http(&cx(), target("http://example.com", "a/b"), req).await.unwrap();
    assert_eq!(open.transport.urls.lock()[0].uri(), "http://example.com/a/b?q=1");

    let strict = rig_with(None, true);
    let e = strict.invoke.http(&cx(), target("http://example.com", "a"), post("")).await.unwrap_err();
    assert_eq!(e.status(), Some((403, 7)));
    let mut endpoint = Endpoint::new("shop", "https://shop.example/api").unwrap();
    endpoint.headers.insert("x-key", "secret".parse().unwrap());
    strict.invoke.set_endpoints([("shop".into(), Arc::new(endpoint))].into());
    strict.invoke.http(&cx(), target("shop", "a"), post("")).await.unwrap();
    let urls = strict.transport.urls.lock();
    assert_eq!(urls[0].uri(), "https://shop.example/api/a");
    assert_eq!(urls[0].headers()["x-key"], "secret");
}

fn inbound_call(verb: Verb, method: &str, headers: HeaderMap) -> Call {
    let head = Head {
        verb,
        method: Method::new(method).unwrap(),
        query: String::new(),
        headers,
        type_url: String::new(),
        origin: Origin::Http,
    };
    Call { head, body: full(Bytes::from_static(b"in")) }
}

#[derive(Debug)]
struct Deny(&'static str);

impl AccessControl for Deny {
    fn check(&self, q: Question<'_>) -> Result<(), String> {
        if q.operation == self.0 { Err("access control policy has denied access".into()) } else { Ok(()) }
    }
}

#[tokio::test]
async fn what_is_judged_is_what_the_app_gets() {
    let app = FakeApp::echo();
    let rig = rig_with(Some(app.clone()), false);
    rig.invoke.set_access_control(Arc::new(Deny("admin")));
    let post = || Verb::Http(http::Method::POST);
    for hostile in ["admin", "x/../admin", "../admin", "admin/", "%61dmin", "x/%2e%2e/admin"] {
        let call = inbound_call(post(), hostile, HeaderMap::new());
        let e = rig.invoke.inbound(Caller::default(), call).await.unwrap_err();
        assert_eq!(e.code, grpc_code::PERMISSION_DENIED, "{hostile}");
    }
    assert!(app.seen.lock().is_empty());
    rig.invoke.inbound(Caller::default(), inbound_call(post(), "admins", HeaderMap::new())).await.unwrap();
    assert_eq!(app.seen.lock()[0].uri(), "/admins");
}

#[tokio::test]
async fn strict_mode_closes_internal_routes_to_peers() {
    let rig = rig_with(Some(FakeApp::echo()), true);
    rig.invoke.set_internal_routes(["/orders", "events/new"]);
    let call = |m: &str| inbound_call(Verb::Http(http::Method::POST), m, HeaderMap::new());
    for closed in ["dapr/config", "DAPR/subscribe", "orders", "/Orders/", "events/new", "%6frders", "dapr"] {
        let e = rig.invoke.inbound(Caller::default(), call(closed)).await.unwrap_err();
        assert_eq!(e.code, grpc_code::PERMISSION_DENIED, "{closed}");
    }
    for open in ["orders/1", "daprx", "events"] {
        assert!(rig.invoke.inbound(Caller::default(), call(open)).await.is_ok(), "{open}");
    }
}

#[tokio::test]
async fn verbs_an_http_app_cannot_take_are_refused() {
    let rig = rig();
    for (verb, why) in [(Verb::Missing, "missing HTTP extension field"), (Verb::None, "invalid HTTP verb")] {
        let call = inbound_call(verb, "m", HeaderMap::new());
        let e = rig.invoke.inbound(Caller::default(), call).await.unwrap_err();
        assert_eq!(e.code, grpc_code::INTERNAL);
        assert!(e.message.ends_with(why), "{e}");
    }
    let lone = inbound_call(Verb::Http(http::Method::GET), "100%", HeaderMap::new());
    assert!(rig.invoke.inbound(Caller::default(), lone).await.unwrap_err().message.contains("invalid URL escape"));
}

#[tokio::test]
async fn a_certificate_counts_more_than_a_claim() {
    let app = FakeApp::echo();
    let rig = rig_with(Some(app.clone()), false);
    let mut headers = HeaderMap::new();
    headers.insert("dapr-caller-app-id", "forged".parse().unwrap());
    let identity = PeerIdentity { trust_domain: "t".into(), namespace: "ns".into(), app_id: "real".into() };
    let caller = Caller { identity: Some(&identity), from: None };
    rig.invoke.inbound(caller, inbound_call(Verb::Http(http::Method::POST), "m", headers)).await.unwrap();
    assert_eq!(app.seen.lock()[0].headers()["dapr-caller-app-id"], "real");
    assert_eq!(app.seen.lock()[0].headers()["dapr-caller-namespace"], "ns");
}

#[tokio::test]
async fn a_call_for_the_app_that_was_here_before_is_refused() {
    let app = FakeApp::echo();
    let rig = rig_with(Some(app.clone()), false);
    let mut headers = HeaderMap::new();
    headers.insert("destination-app-id", "former".parse().unwrap());
    let call = inbound_call(Verb::Http(http::Method::POST), "m", headers.clone());
    let e = rig.invoke.inbound(Caller::default(), call).await.unwrap_err();
    assert_eq!((e.code, e.reached), (grpc_code::UNAVAILABLE, Reached::No));
    assert!(app.seen.lock().is_empty());
    headers.insert("destination-app-id", "self".parse().unwrap());
    let call = inbound_call(Verb::Http(http::Method::POST), "m", headers);
    rig.invoke.inbound(Caller::default(), call).await.unwrap();
    assert!(!app.seen.lock()[0].headers().contains_key("destination-app-id"));
}

#[tokio::test]
async fn an_old_peer_is_called_again_without_streams() {
    let rig = rig();
    rig.transport.errors.lock().push(TransportError::unsent(grpc_code::UNIMPLEMENTED, "unknown method"));
    assert_eq!(text(rig.invoke.http(&cx(), target("one", "m"), post("b")).await.unwrap()).await, "b");
    rig.transport.errors.lock().push(TransportError::unsent(grpc_code::UNIMPLEMENTED, "unknown method"));
    let req = post("").map(|_| chunked(&["a", "b"]));
    let e = rig.invoke.http(&cx(), target("one", "m"), req).await.unwrap_err();
    assert!(e.message().ends_with("does not support streaming-based service invocation"), "{e}");
}

fn grpc_call(id: &str, verb: Verb) -> GrpcCall {
    let mut metadata = HeaderMap::new();
    metadata.insert("x-user", "1".parse().unwrap());
    metadata.insert("key-bin", "AAAA".parse().unwrap());
    GrpcCall {
        id: id.into(),
        method: "m".into(),
        data: Bytes::from_static(b"data"),
        type_url: String::new(),
        content_type: "application/json".into(),
        verb,
        query: "a=1".into(),
        metadata,
    }
}

#[tokio::test]
async fn invoke_service_calls_http_apps() {
    let app = FakeApp::new(AppProtocol::Http, |req| {
        let mut res = Response::new(full(req.into_body()));
        res.headers_mut().insert("content-type", "application/json".parse().unwrap());
        res.headers_mut().insert("cache-control", "no-cache".parse().unwrap());
        Ok(res)
    });
    let rig = rig_with(Some(app.clone()), false);
    let reply = rig.invoke.grpc_invoke(&cx(), grpc_call("self", Verb::Http(http::Method::PUT))).await.unwrap();
    assert_eq!((reply.data, reply.content_type.as_str()), (Bytes::from_static(b"data"), "application/json"));
    assert_eq!(reply.status, GrpcAnswer::default());
    assert_eq!(reply.headers["dapr-http-status"], "200");
    assert_eq!(reply.headers["dapr-cache-control"], "no-cache");
    let seen = app.seen.lock();
    assert_eq!((seen[0].method(), seen[0].uri().to_string()), (&http::Method::PUT, "/m?a=1".to_owned()));
    assert!(!seen[0].headers().contains_key("key-bin"));
    assert_eq!(seen[0].headers()["x-user"], "1");
}

#[tokio::test]
async fn invoke_service_errors() {
    let rig = rig();
    let e = rig.invoke.grpc_invoke(&cx(), grpc_call("self", Verb::Missing)).await.unwrap_err();
    assert_eq!(
        e.message(),
        "failed to invoke, id: self, err: rpc error: code = InvalidArgument desc = missing HTTP extension field"
    );
    let app = FakeApp::new(AppProtocol::Http, |_| {
        let mut res = Response::new(full(Bytes::from_static(b"gone")));
        *res.status_mut() = StatusCode::NOT_FOUND;
        Ok(res)
    });
    let rig = rig_with(Some(app), false);
    let reply = rig.invoke.grpc_invoke(&cx(), grpc_call("self", Verb::Http(http::Method::GET))).await.unwrap();
    assert_eq!((reply.status.code, reply.status.message.as_str()), (5, "Not Found"));
    assert_eq!(reply.headers["dapr-http-status"], "404");
    assert!(reply.data.is_empty());
}

fn policies(yaml: &str) -> Option<Arc<Policies>> {
    let mut loaded = mecha_resources::Loaded::default();
    let head = "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {name: r}\nspec:\n";
    loaded.read_text("test.yaml", &format!("{head}{yaml}"));
    let docs: Vec<_> = loaded.resiliencies.into_iter().map(|d| d.value).collect();
    assert_eq!(docs.len(), 1, "{:?}", loaded.diagnostics);
    Some(Arc::new(Policies::compile(&docs, Arc::new(Metrics::disabled())).0))
}

fn flaky(statuses: &'static [u16]) -> Arc<FakeApp> {
    let mut left = statuses.iter();
    FakeApp::new(AppProtocol::Http, move |req| {
        let mut res = Response::new(full(req.into_body()));
        *res.status_mut() = StatusCode::from_u16(*left.next().unwrap_or(&200)).unwrap();
        Ok(res)
    })
}

#[tokio::test(start_paused = true)]
async fn a_retry_policy_repeats_what_may_be_repeated() {
    let plain = "  policies: {retries: {two: {policy: constant, duration: 1s, maxRetries: 2}}}
  targets: {apps: {self: {retry: two}}}";
    let matching = "  policies: {retries: {two: {policy: constant, duration: 1s, maxRetries: 2, matching: {httpStatusCodes: '503'}}}}
  targets: {apps: {self: {retry: two}}}";
    for (policy, verb, statuses, calls, last) in [
        (plain, http::Method::PUT, &[500, 503][..], 3, 200),
        (plain, http::Method::PUT, &[500, 500, 404, 500], 3, 404),
        (plain, http::Method::POST, &[500], 1, 500),
        (matching, http::Method::POST, &[503, 503], 3, 200),
        (matching, http::Method::PUT, &[500], 1, 500),
    ] {
        let app = flaky(statuses);
        let rig = rig_with(Some(app.clone()), false);
        rig.invoke.set_policies(policies(policy));
        let mut req = post("body");
        *req.method_mut() = verb;
        let res = rig.invoke.http(&cx(), target("self", "m"), req).await.unwrap();
        assert_eq!(res.status().as_u16(), last, "{statuses:?}");
        assert_eq!(text(res).await, "body");
        let seen = app.seen.lock();
        assert_eq!(seen.len(), calls, "{statuses:?}");
        assert!(seen.iter().all(|r| r.body() == "body"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_chunked_request_is_sent_once_whatever_the_policy() {
    let app = flaky(&[503, 503]);
    let rig = rig_with(Some(app.clone()), false);
    rig.invoke.set_policies(policies(
        "  policies: {retries: {two: {policy: constant, duration: 1s, maxRetries: 2, matching: {httpStatusCodes: '503'}}}}
  targets: {apps: {self: {retry: two}}}",
    ));
    let req = post("").map(|_| chunked(&["a"]));
    let res = rig.invoke.http(&cx(), target("self", "m"), req).await.unwrap();
    assert_eq!((res.status().as_u16(), app.seen.lock().len()), (503, 1));
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_names_the_app_replaces_the_built_in_retries() {
    let rig = rig();
    rig.invoke.set_policies(policies(
        "  policies: {circuitBreakers: {b: {maxRequests: 1, timeout: 60s, trip: consecutiveFailures >= 2}}}
  targets: {apps: {one: {circuitBreaker: b}}}",
    ));
    rig.transport.errors.lock().extend((0..9).map(|_| dial()));
    for (n, why) in [(1, "connection refused"), (2, "connection refused"), (2, "circuit breaker is open")] {
        let e = rig.invoke.http(&cx(), target("one", "m"), post("b")).await.unwrap_err();
        assert!(e.message().ends_with(why), "{e}");
        assert_eq!(rig.transport.calls.lock().len(), n);
    }
    // A breaker stands over one method, not over the app.
    let e = rig.invoke.http(&cx(), target("one", "other"), post("b")).await.unwrap_err();
    assert!(e.message().ends_with("connection refused"), "{e}");
}

#[tokio::test(start_paused = true)]
async fn a_redefined_built_in_retry_is_used() {
    let rig = rig();
    rig.invoke.set_policies(policies(
        "  policies: {retries: {DaprBuiltInServiceRetries: {policy: constant, duration: 10ms, maxRetries: 5}}}",
    ));
    rig.transport.errors.lock().extend((0..9).map(|_| dial()));
    let started = Instant::now();
    let e = rig.invoke.http(&cx(), target("one", "m"), post("b")).await.unwrap_err();
    assert!(e.message().contains("after 5 retries"), "{e}");
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn futures_can_move_between_threads() {
    fn send<T: Send>(_: &T) {}
    let rig = rig();
    let cx = cx();
    send(&rig.invoke.http(&cx, target("one", "m"), post("")));
    send(&rig.invoke.grpc_invoke(&cx, grpc_call("one", Verb::None)));
}
