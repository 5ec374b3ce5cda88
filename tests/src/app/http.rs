use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ::http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

use crate::ports::{free_port, listen};
use crate::wait::{DEADLINE, wait_until};

/// A body of any kind.
pub type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// A body that is there as a whole.
#[must_use]
pub fn full_body(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A request the app got.
#[derive(Clone, Debug)]
pub struct Call {
    /// Verb.
    pub method: String,
    /// Path and query as they came over the wire.
    pub target: String,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

/// What the app answers.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Bytes,
}

/// An app on HTTP/1.1 and HTTP/2 cleartext that answers by script and remembers every call.
///
/// Routes are `VERB /path` or `/path` for any verb, without query; a trailing `*` takes every longer
/// path. What has no route gets 404, as an app that knows nothing of its sidecar answers.
#[derive(Debug)]
pub struct HttpApp {
    port: u16,
    shared: Arc<Shared>,
    server: JoinHandle<()>,
}

/// An app to be started.
#[must_use]
#[derive(Debug, Default)]
pub struct HttpAppBuilder {
    port: Option<u16>,
    routes: HashMap<String, Route>,
}

#[derive(Debug, Default)]
struct Shared {
    routes: Mutex<HashMap<String, Route>>,
    ledger: Mutex<Vec<Call>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
}

type Handler = Arc<dyn Fn(Call) -> BoxFuture<'static, Answer> + Send + Sync>;
type RawHandler = Arc<dyn Fn(Request<Incoming>) -> BoxFuture<'static, Response<Body>> + Send + Sync>;

#[derive(Clone)]
enum Route {
    Whole(Handler),
    Raw(RawHandler),
}

/// Counts a call as in flight, also when its future is dropped.
struct Counted(Arc<Shared>);

impl Answer {
    /// An empty answer with this status.
    #[must_use]
    pub fn status(status: u16) -> Self {
        Self { status, ..Self::default() }
    }

    /// 200 with a text.
    #[must_use]
    pub fn text(text: impl Into<Bytes>) -> Self {
        Self { status: 200, body: text.into(), ..Self::default() }
    }

    /// 200 with JSON.
    #[must_use]
    pub fn json(value: &serde_json::Value) -> Self {
        Self::text(value.to_string()).header("content-type", "application/json")
    }

    /// With another status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// One more header line.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.append(HeaderName::try_from(name).unwrap(), HeaderValue::try_from(value).unwrap());
        self
    }

    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(full_body(self.body));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap();
        *response.headers_mut() = self.headers;
        response
    }
}

impl Call {
    /// A header's first value, or an empty text.
    #[must_use]
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap_or("(no text)"))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[must_use]
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|e| panic!("{e} in the call {self:?}"))
    }
}

impl HttpAppBuilder {
    /// On a port chosen before.
    pub fn port(mut self, port: u16) -> Self {
        self.port = Some(port);
        self
    }

    /// Always the same answer.
    pub fn on(self, route: &str, answer: Answer) -> Self {
        self.on_call(route, move |_| {
            let answer = answer.clone();
            async move { answer }
        })
    }

    /// These answers one after the other, the last one for ever.
    pub fn script(self, route: &str, answers: impl IntoIterator<Item = Answer>) -> Self {
        let answers = Mutex::new(answers.into_iter().collect::<VecDeque<_>>());
        self.on_call(route, move |_| {
            let mut answers = answers.lock();
            let answer = if answers.len() > 1 { answers.pop_front() } else { answers.front().cloned() };
            async move { answer.expect("a script has an answer") }
        })
    }

    /// An answer made from the call.
    pub fn on_call<F, Fut>(mut self, route: &str, handler: F) -> Self
    where
        F: Fn(Call) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Answer> + Send + 'static,
    {
        self.routes.insert(route.to_owned(), Route::Whole(Arc::new(move |call| handler(call).boxed())));
        self
    }

    /// The request as it streams in; such calls are in the ledger without a body.
    pub fn on_stream<F, Fut>(mut self, route: &str, handler: F) -> Self
    where
        F: Fn(Request<Incoming>) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        self.routes.insert(route.to_owned(), Route::Raw(Arc::new(move |request| handler(request).boxed())));
        self
    }

    /// Subscriptions as `/dapr/subscribe` answers them.
    pub fn subscribe(self, list: &serde_json::Value) -> Self {
        self.on("GET /dapr/subscribe", Answer::json(list))
    }

    /// Starts to listen.
    pub async fn start(self) -> HttpApp {
        let port = self.port.unwrap_or_else(free_port);
        let listener = listen(port).await;
        let shared = Arc::new(Shared { routes: Mutex::new(self.routes), ..Shared::default() });
        let server = tokio::spawn(serve(listener, Arc::clone(&shared)));
        HttpApp { port, shared, server }
    }
}

impl HttpApp {
    /// Describes an app.
    pub fn builder() -> HttpAppBuilder {
        HttpAppBuilder::default()
    }

    /// The port it listens on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Replaces an answer.
    pub fn set(&self, route: &str, answer: Answer) {
        let handler: Handler = Arc::new(move |_| {
            let answer = answer.clone();
            async move { answer }.boxed()
        });
        self.shared.routes.lock().insert(route.to_owned(), Route::Whole(handler));
    }

    /// Calls so far whose verb and path fit, in the order of arrival; `/path` takes any verb.
    #[must_use]
    pub fn calls(&self, route: &str) -> Vec<Call> {
        let ledger = self.shared.ledger.lock();
        ledger.iter().filter(|call| fits(route, &call.method, path_of(&call.target))).cloned().collect()
    }

    /// Every call so far.
    #[must_use]
    pub fn all_calls(&self) -> Vec<Call> {
        self.shared.ledger.lock().clone()
    }

    /// Forgets the calls so far.
    pub fn forget(&self) {
        self.shared.ledger.lock().clear();
    }

    /// The most calls that were handled at once.
    #[must_use]
    pub fn most_in_flight(&self) -> usize {
        self.shared.most_in_flight.load(Ordering::SeqCst)
    }

    /// Calls being handled now.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// Waits until at least `count` calls came in, and returns all of them.
    pub async fn wait_calls(&self, route: &str, count: usize) -> Vec<Call> {
        wait_until(DEADLINE, &format!("{count} calls of {route}"), || async { self.calls(route).len() >= count }).await;
        self.calls(route)
    }

    /// Ends it, connections and all, and waits until the port is free again.
    pub async fn stop(mut self) {
        self.server.abort();
        let _ = (&mut self.server).await;
    }
}

impl Drop for HttpApp {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Whole(_) => "Whole",
            Self::Raw(_) => "Raw",
        })
    }
}

impl Counted {
    fn new(shared: &Arc<Shared>) -> Self {
        let now = shared.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_in_flight.fetch_max(now, Ordering::SeqCst);
        Self(Arc::clone(shared))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The connections end with this future.
async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        let Ok((stream, _)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(handle(&shared, request).await) }
            });
            // A peer that goes away is part of many tests.
            let _ = auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(stream), service).await;
        });
    }
}

async fn handle(shared: &Arc<Shared>, request: Request<Incoming>) -> Response<Body> {
    let _counted = Counted::new(shared);
    let method = request.method().to_string();
    let target = request.uri().path_and_query().map_or_else(|| "/".to_owned(), ToString::to_string);
    let headers = request.headers().clone();
    let route = shared.find(&method, path_of(&target));
    if let Some(Route::Raw(handler)) = &route {
        shared.ledger.lock().push(Call { method, target, headers, body: Bytes::new() });
        return handler(request).await;
    }
    let Ok(body) = request.into_body().collect().await else {
        return Answer::status(400).into_response();
    };
    let call = Call { method, target, headers, body: body.to_bytes() };
    shared.ledger.lock().push(call.clone());
    match route {
        Some(Route::Whole(handler)) => handler(call).await.into_response(),
        _ => Answer::status(404).into_response(),
    }
}

impl Shared {
    fn find(&self, method: &str, path: &str) -> Option<Route> {
        let routes = self.routes.lock();
        let exact = routes.get(&format!("{method} {path}")).or_else(|| routes.get(path));
        let longest = || {
            let fitting = routes.iter().filter(|(route, _)| route.ends_with('*') && fits(route, method, path));
            fitting.max_by_key(|(route, _)| route.len()).map(|(_, handler)| handler)
        };
        exact.or_else(longest).cloned()
    }
}

fn fits(route: &str, method: &str, path: &str) -> bool {
    let path_pattern = match route.split_once(' ') {
        Some((verb, pattern)) if verb == method => pattern,
        Some(_) => return false,
        None => route,
    };
    path_pattern.strip_suffix('*').map_or(path == path_pattern, |start| path.starts_with(start))
}

fn path_of(target: &str) -> &str {
    target.split('?').next().unwrap_or_default()
}
