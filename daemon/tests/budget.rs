//! Allocations and future sizes of the hot paths. A budget is what the path costs today; a
//! change that goes over it has to be worth it, and one that goes well below should lower it.
//!
//! Servers, clients and the code under test share one thread, and the counter counts by
//! thread. What the sockets and hyper cost is measured with a bare handler and taken off.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail by panicking")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use mecha_components_api::{
    CancellationToken, Component, Consistency, Error, Instance, Metadata, NameResolver, Registry, SystemClock, Target,
    async_trait,
};
use mecha_core::app::{AppChannel, AppProtocol};
use mecha_core::health::Health;
use mecha_core::invoke::{Invoke, InvokeParts};
use mecha_core::loader::{Loader, LoaderCx};
use mecha_core::metrics::{Metrics, MetricsConfig};
use mecha_core::policies::Policies;
use mecha_core::trace::Tracer;
use mecha_core::{Core, CoreParts, Cx, Front, Identity, Tasks};
use mecha_resources::Loaded;
use mechad::app::{self, AppTarget, Gate};
use mechad::http::{HttpApi, HttpOptions};
use mechad::peer::{Client, Connected, PeerServer, Pool, PoolSettings, TcpDial};
use mechad::serve::{Listener, ServerLimits, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const DOCUMENTS: &str = "
apiVersion: dapr.io/v1alpha1
kind: Component
metadata: { name: mem }
spec: { type: state.in-memory, version: v1 }
";
const MAX_BODY: u64 = 4 << 20;
/// Calls that are counted; rare growth of a buffer must not decide.
const CALLS: u64 = 200;

/// Allocations of one call. The half is for what happens once in many calls.
const CORE_GET: f64 = 2.5;
const HTTP_GET: f64 = 5.5;
const HTTP_SET: f64 = 18.5;
const INVOKE_HOP: f64 = 82.5;

/// Bytes of the future a call is held in while it waits.
const CORE_GET_FUTURE: usize = 1024;
const HTTP_FUTURE: usize = 4 * 1024;

/// Knows the address of one app.
#[derive(Debug)]
struct OneApp(Arc<str>);

#[async_trait]
impl Component for OneApp {}

#[async_trait]
impl NameResolver for OneApp {
    async fn resolve(&self, _: Target<'_>) -> Result<Vec<Arc<str>>, Error> {
        Ok(vec![self.0.clone()])
    }
    async fn announce(&self, _: Instance, _: Box<dyn FnOnce() + Send>, _: CancellationToken) -> Result<(), Error> {
        Ok(())
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Allocations of one call of `call`, after some that warm everything up.
fn allocations(runtime: &tokio::runtime::Runtime, mut call: impl AsyncFnMut()) -> f64 {
    runtime.block_on(async {
        for _ in 0..50 {
            call().await;
        }
    });
    let counted = allocation_counter::measure(|| {
        runtime.block_on(async {
            for _ in 0..CALLS {
                call().await;
            }
        });
    });
    counted.count_total as f64 / CALLS as f64
}

fn metrics(app_id: &str) -> Arc<Metrics> {
    Arc::new(Metrics::new(MetricsConfig::new(app_id, "")).unwrap())
}

fn invoke(id: &str, app: Option<Arc<dyn AppChannel>>, resolver: Option<Arc<dyn NameResolver>>) -> Arc<Invoke> {
    let pool = Pool::new(Arc::new(TcpDial), PoolSettings::default(), Tasks::new());
    let invoke = Invoke::new(InvokeParts {
        identity: Identity { app_id: id.into(), namespace: "".into(), pod_name: "".into() },
        host_address: "127.0.0.1".to_owned(),
        host_name: "box".to_owned(),
        app,
        transport: Arc::new(Client::new(pool, MAX_BODY as usize)),
        metrics: metrics(id),
        declared_urls_only: false,
        close_internal_routes: false,
        max_body: MAX_BODY as usize,
    });
    invoke.set_resolver(resolver);
    Arc::new(invoke)
}

async fn core(id: &str, invoke: Arc<Invoke>) -> Arc<Core> {
    let metrics = metrics(id);
    let core = Arc::new(Core::new(CoreParts {
        identity: Identity { app_id: id.into(), namespace: "".into(), pod_name: "".into() },
        health: Arc::new(Health::new(id.into(), Vec::new())),
        metrics: metrics.clone(),
        tracer: Tracer::pass_through(),
        app: None,
        invoke,
    }));
    let mut registry = Registry::new();
    mecha_components::register_all(&mut registry);
    let mut loaded = Loaded::default();
    loaded.read_text("budget.yaml", DOCUMENTS);
    let (policies, _) = Policies::compile(&[], metrics);
    let policies = Arc::new(policies);
    core.invoke.set_policies(Some(policies.clone()));
    let cx = LoaderCx {
        strict: false,
        scoped_secrets: false,
        strict_components: false,
        home: std::env::temp_dir(),
        clock: Arc::new(SystemClock),
        env: Arc::new(|_| None),
        default_secret_store: String::new(),
        denied: Vec::new(),
        left_out: mecha_components::left_out,
    };
    let loader = Arc::new(Loader::new(core.clone(), registry, policies, cx));
    loader.load_all(loaded.components.into_iter().map(|c| c.value).collect()).await.unwrap();
    core
}

async fn listen() -> (Listener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (Listener::Tcp(listener), address)
}

/// The HTTP front on a port, as the daemon serves it. The largest future seen goes to `size`.
async fn front(core: Arc<Core>, size: Arc<AtomicUsize>) -> SocketAddr {
    let api = Arc::new(HttpApi::new(core, HttpOptions { max_body: MAX_BODY, ..HttpOptions::default() }));
    let (listener, address) = listen().await;
    let service = service_fn(move |req: Request<Incoming>| {
        let (api, size) = (api.clone(), size.clone());
        async move {
            let answer = api.handle(req);
            size.fetch_max(size_of_val(&answer), Ordering::Relaxed);
            answer.await
        }
    });
    tokio::spawn(serve(listener, service, ServerLimits::default(), Tasks::new()));
    address
}

/// A handler that does nothing: the body comes back, or three bytes.
async fn bare() -> SocketAddr {
    let (listener, address) = listen().await;
    let service = service_fn(|req: Request<Incoming>| async move {
        let body = req.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        let body = if body.is_empty() { Bytes::from_static(b"123") } else { body };
        Ok::<_, Infallible>(Response::new(Full::new(body)))
    });
    tokio::spawn(serve(listener, service, ServerLimits::default(), Tasks::new()));
    address
}

/// A client that allocates nothing.
struct Raw {
    stream: TcpStream,
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Raw {
    async fn connect(address: SocketAddr, method: &str, path: &str, body: &str) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        Self { stream, request: request.into_bytes(), answer: vec![0; 4096] }
    }

    /// Sends the request and reads one answer; its status and its body.
    async fn call(&mut self) -> (u16, &[u8]) {
        self.stream.write_all(&self.request).await.unwrap();
        let mut have = 0;
        loop {
            let read = self.stream.read(&mut self.answer[have..]).await.unwrap();
            assert!(read > 0, "the server closed the connection");
            have += read;
            let Some(head) = self.answer[..have].windows(4).position(|w| w == b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&self.answer[..head]).unwrap();
            let length = text
                .split("\r\n")
                .filter_map(|line| line.split_once(": "))
                .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
                .map_or(0, |(_, value)| value.parse().unwrap());
            let status = text[9..12].parse().unwrap();
            if have == head + 4 + length {
                return (status, &self.answer[head + 4..have]);
            }
        }
    }
}

fn within(what: &str, measured: f64, budget: f64) {
    println!("{what}: {measured:.2} allocations, budget {budget}");
    assert!(measured <= budget, "{what}: {measured:.2} allocations a call, the budget is {budget}");
}

#[test]
fn state_get_through_core() {
    let runtime = runtime();
    let core = runtime.block_on(async { core("app", invoke("app", None, None)).await });
    let cx = Cx::new(Front::Http);
    let none = Metadata::new();
    let get = || core.state.get(&cx, "mem", "k", Consistency::Eventual, &none);
    let size = size_of_val(&get());
    assert!(size <= CORE_GET_FUTURE, "the future of a get has {size} bytes");
    let counted = allocations(&runtime, async || {
        assert!(get().await.unwrap().is_none());
    });
    within("state get through core", counted, CORE_GET);
}

#[test]
fn state_over_http() {
    let runtime = runtime();
    let size = Arc::new(AtomicUsize::new(0));
    let (mut set, mut get, mut bare) = runtime.block_on(async {
        let address = front(core("app", invoke("app", None, None)).await, size.clone()).await;
        let save = r#"[{"key":"k","value":{"a":1}}]"#;
        (
            Raw::connect(address, "POST", "/v1.0/state/mem", save).await,
            Raw::connect(address, "GET", "/v1.0/state/mem/k", "").await,
            Raw::connect(bare().await, "GET", "/", "").await,
        )
    });
    let floor = allocations(&runtime, async || assert_eq!(bare.call().await, (200, &b"123"[..])));
    let set = allocations(&runtime, async || assert_eq!(set.call().await, (204, &b""[..])));
    let get = allocations(&runtime, async || assert_eq!(get.call().await, (200, &br#"{"a":1}"#[..])));
    println!("a bare handler: {floor:.2} allocations");
    within("state set over HTTP", set - floor, HTTP_SET);
    within("state get over HTTP", get - floor, HTTP_GET);
    let size = size.load(Ordering::Relaxed);
    assert!(size <= HTTP_FUTURE, "the future of an HTTP call has {size} bytes");
}

#[test]
fn invoke_through_two_sidecars() {
    let runtime = runtime();
    let size = Arc::new(AtomicUsize::new(0));
    let (mut hop, mut direct) = runtime.block_on(async {
        let app_address = bare().await;
        let target = AppTarget {
            protocol: AppProtocol::Http,
            host: "127.0.0.1".to_owned(),
            port: app_address.port(),
            max_concurrency: None,
            token: None,
            max_body: MAX_BODY,
            app_id: "callee".to_owned(),
        };
        let channel = app::channel(&target, Arc::new(Gate::new(None)), metrics("callee")).unwrap();
        let peer = Arc::new(PeerServer::new(invoke("callee", Some(channel), None), None, MAX_BODY as usize));
        let (listener, peer_address) = listen().await;
        let service = service_fn(move |req: Request<Incoming>| {
            let peer = peer.clone();
            async move { Ok::<_, Infallible>(peer.handle(&Connected::default(), req).await) }
        });
        let limits = ServerLimits { http2_only: true, ..ServerLimits::default() };
        tokio::spawn(serve(listener, service, limits, Tasks::new()));
        let resolver = Arc::new(OneApp(peer_address.to_string().into()));
        let caller = front(core("caller", invoke("caller", None, Some(resolver))).await, size.clone()).await;
        (
            Raw::connect(caller, "POST", "/v1.0/invoke/callee/method/echo", r#"{"a":1}"#).await,
            Raw::connect(app_address, "POST", "/echo", r#"{"a":1}"#).await,
        )
    });
    let floor = allocations(&runtime, async || assert_eq!(direct.call().await, (200, &br#"{"a":1}"#[..])));
    let through = allocations(&runtime, async || assert_eq!(hop.call().await, (200, &br#"{"a":1}"#[..])));
    println!("a direct call: {floor:.2} allocations");
    within("an invocation through two sidecars", through - floor, INVOKE_HOP);
    let size = size.load(Ordering::Relaxed);
    assert!(size <= HTTP_FUTURE, "the future of an HTTP call has {size} bytes");
}
