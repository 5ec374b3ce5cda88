//! Service invocation: from the own app to another one, and from peers to the own app.
//!
//! [`Invoke`] decides who is called, what is sent and whether it is tried again. How bytes
//! travel is the business of [`Transport`] (peers, servers outside) and of
//! [`crate::app::AppChannel`] (the own app).

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, Response, StatusCode};
use mecha_components_api::{ErrorKind, NameResolver};
use mecha_resiliency::{CallClass, Retry, RunError, SERVICE_RETRIES};
use tokio::time::Instant;

use crate::app::{AppChannel, Body};
use crate::cx::Cx;
use crate::error::ApiError;
use crate::identity::Identity;
use crate::metrics::Metrics;
use crate::policies::Policies;

mod access;
mod body;
mod call;
mod endpoint;
mod failed;
mod grpc;
pub mod headers;
mod inbound;
mod method;
mod resolve;
mod sniff;
mod target;
#[cfg(test)]
mod tests;

pub use access::{AccessList, DenyAll};
pub use body::{Exact, empty, full};
pub use call::{
    AccessControl, AllowAll, Call, GrpcAnswer, Head, Invocation, Origin, Peer, PeerIdentity, Question, Reached,
    StatusDetail, Transport, TransportError, Verb, grpc_code,
};
pub use endpoint::{AddressGuard, Endpoint, EndpointTls};
pub use grpc::{GrpcCall, GrpcReply, code_from_http, code_name, http_from_code};
pub use inbound::Caller;
pub use method::{BadEscape, InvalidMethod, Method};
pub use resolve::{Addresses, CACHE_TTL};
pub use target::{Id, Target, is_url};

use body::{Peeked, Source};
use failed::{Failed, Judged};
use headers::HopHeaders;

/// Bytes of a request body kept for the built-in retries. Larger bodies are sent once: most
/// failures happen before the first byte leaves, and memory stays flat. A policy of the user
/// keeps bodies up to the body limit.
const REPLAY_LIMIT: usize = 256 * 1024;
/// Addresses tried at once when connections fail.
const MAX_FAILOVER: usize = 3;

/// What an [`Invoke`] is made of.
#[derive(Debug)]
pub struct InvokeParts {
    /// This sidecar.
    pub identity: Identity,
    /// Address announced to others; may be empty.
    pub host_address: String,
    /// Name of this host; may be empty.
    pub host_name: String,
    /// The own app; `None` without app port.
    pub app: Option<Arc<dyn AppChannel>>,
    /// Ways out.
    pub transport: Arc<dyn Transport>,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// URLs that no HTTPEndpoint declares are refused (strict mode).
    pub declared_urls_only: bool,
    /// `/dapr/*` and routes of subscriptions are closed to peers (strict mode).
    pub close_internal_routes: bool,
    /// Bytes of an answer that has to be held as a whole (`InvokeService`).
    pub max_body: usize,
}

/// Service invocation.
#[derive(Debug)]
pub struct Invoke {
    identity: Identity,
    hop: HopHeaders,
    app: Option<Arc<dyn AppChannel>>,
    transport: Arc<dyn Transport>,
    metrics: Arc<Metrics>,
    declared_urls_only: bool,
    close_internal_routes: bool,
    max_body: usize,
    addresses: Addresses,
    endpoints: ArcSwap<HashMap<Box<str>, Arc<Endpoint>>>,
    access: ArcSwap<Access>,
    closed: ArcSwap<BTreeSet<String>>,
    policies: ArcSwapOption<Policies>,
}

#[derive(Debug)]
struct Access(Arc<dyn AccessControl>);

/// Where a call goes.
enum Route {
    Own,
    Remote { app: String, namespace: String },
    Outside(Arc<Endpoint>),
}

impl Invoke {
    /// Invocation without name resolver, endpoints and rules; these are set when they are known.
    #[must_use]
    pub fn new(parts: InvokeParts) -> Self {
        let InvokeParts {
            identity,
            host_address,
            host_name,
            app,
            transport,
            metrics,
            declared_urls_only,
            close_internal_routes,
            max_body,
        } = parts;
        let hop = HopHeaders::new(&identity.app_id, identity.namespace_or_default(), &host_address, &host_name);
        Self {
            identity,
            hop,
            app,
            transport,
            metrics,
            declared_urls_only,
            close_internal_routes,
            max_body,
            addresses: Addresses::default(),
            endpoints: ArcSwap::default(),
            access: ArcSwap::from_pointee(Access(Arc::new(AllowAll))),
            closed: ArcSwap::default(),
            policies: ArcSwapOption::empty(),
        }
    }

    /// Uses `resolver` to find apps.
    pub fn set_resolver(&self, resolver: Option<Arc<dyn NameResolver>>) {
        self.addresses.set_resolver(resolver);
    }

    /// Replaces the HTTPEndpoints, by name.
    pub fn set_endpoints(&self, endpoints: HashMap<Box<str>, Arc<Endpoint>>) {
        self.endpoints.store(Arc::new(endpoints));
    }

    /// Replaces the policies that stand over calls. Breakers go on where they stood when the
    /// policies were made from those before.
    pub fn set_policies(&self, policies: Option<Arc<Policies>>) {
        self.policies.store(policies);
    }

    /// Names of the HTTPEndpoints, sorted.
    #[must_use]
    pub fn endpoint_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.endpoints.load().keys().map(|k| k.to_string()).collect();
        names.sort_unstable();
        names
    }

    /// Replaces the rules for calls from peers.
    pub fn set_access_control(&self, access: Arc<dyn AccessControl>) {
        self.access.store(Arc::new(Access(access)));
    }

    /// Routes of subscriptions and input bindings, which strict mode closes to peers.
    pub fn set_internal_routes<'a>(&self, routes: impl IntoIterator<Item = &'a str>) {
        self.closed.store(Arc::new(routes.into_iter().map(inbound::route_key).collect()));
    }

    /// Who this sidecar is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The own app.
    #[must_use]
    pub fn app(&self) -> Option<&Arc<dyn AppChannel>> {
        self.app.as_ref()
    }

    /// Lines this sidecar adds to calls that leave it.
    #[must_use]
    pub fn hop(&self) -> &HopHeaders {
        &self.hop
    }

    /// Peer addresses.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Counters.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    /// Asks the rules for a call from a peer.
    ///
    /// # Errors
    /// Why it is refused.
    pub fn check_access(&self, question: Question<'_>) -> Result<(), String> {
        self.access.load().0.check(question)
    }

    /// Whether an app and namespace are this sidecar's.
    #[must_use]
    pub fn is_own(&self, app: &str, namespace: &str) -> bool {
        *app == *self.identity.app_id && namespace == self.identity.namespace_or_default()
    }

    /// Invokes a method for an HTTP caller and streams the answer back. `req` is the caller's
    /// request with all its headers; its path is not looked at.
    ///
    /// # Errors
    /// Everything that keeps an answer of the callee from coming. An error of the callee
    /// itself is an answer.
    pub async fn http(&self, cx: &Cx, target: Target, req: Request<Body>) -> Result<Response<Body>, ApiError> {
        let Target { id, method } = target;
        let (parts, body) = req.into_parts();
        if parts.method == http::Method::CONNECT {
            return Err(fail(&id, "rpc error: code = InvalidArgument desc = invalid HTTP verb"));
        }
        let mut head = Head {
            query: parts.uri.query().unwrap_or_default().to_owned(),
            verb: Verb::of(parts.method),
            method,
            headers: parts.headers,
            type_url: String::new(),
            origin: Origin::Http,
        };
        headers::clean_request(&mut head.headers);
        let is_head = head.verb == Verb::Http(http::Method::HEAD);
        let answer = self.call(cx, &id, head, body).await?;
        finish(&id, answer, is_head).await
    }

    /// Sends a call where its id says. `head` is free of what may not go on.
    async fn call(&self, cx: &Cx, id: &str, mut head: Head, body: Body) -> Result<Response<Body>, ApiError> {
        headers::set_trace(&mut head.headers, &cx.trace);
        if let Err(hops) = headers::count_hop(&mut head.headers) {
            let cause = format!("the invocation went through {hops} sidecars: it is a loop");
            return Err(target::failed(id, ErrorKind::FailedPrecondition, cause)
                .with_status(StatusCode::LOOP_DETECTED.as_u16(), grpc_code::FAILED_PRECONDITION));
        }
        let route = self.route(id)?;
        if let Route::Remote { app, .. } = &route {
            self.hop.add(&mut head.headers, app);
        }
        let policies = self.policies.load_full();
        let named = match &route {
            Route::Remote { app, .. } => app.as_str(),
            Route::Own | Route::Outside(_) => id,
        };
        let guarded = policies.as_ref().map(|p| p.app(named)).unwrap_or_default();
        let remote = matches!(route, Route::Remote { .. });
        let limit = match (guarded.may_retry(), remote) {
            (true, _) => self.max_body,
            (false, true) => REPLAY_LIMIT,
            // Kept only to learn why the caller's body ended, when it did.
            (false, false) => 0,
        };
        let source = Source::new(body, limit);
        if remote
            && head.origin == Origin::Http
            && let Some(length) = source.length()
        {
            // The peer has no other way to tell its app how long the body will be.
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        // A policy that names the app stands alone; defaults without retries leave the built-in ones.
        let own_policy = policies.as_ref().is_some_and(|p| p.names_app(named)) || guarded.may_retry();
        let retry = if remote && !own_policy { Some(self.service_retry(policies.as_deref())) } else { None };
        if guarded.is_none() {
            return self
                .send(&route, Cow::Owned(head), &source, retry.as_ref())
                .await
                .map_err(|f| f.into_api(id, &source));
        }
        let class = CallClass { idempotent: head.verb.is_idempotent() };
        let head = &head;
        let ended = guarded
            .run(head.method.as_str(), class, |_| async {
                let sent = self.send(&route, Cow::Borrowed(head), &source, retry.as_ref()).await;
                let judged = sent.and_then(Failed::judge);
                judged.map_err(|failed| Judged { failed, replayable: source.can_replay() })
            })
            .await;
        match ended {
            Ok(answer) => Ok(answer),
            // What the callee said last is the answer, whatever the policy made of it.
            Err(RunError::Failed(Judged { failed: Failed::Answer(answer), .. })) => Ok(*answer),
            Err(RunError::Failed(Judged { failed, .. })) => Err(failed.into_api(id, &source)),
            Err(other) => Err(caller_failure(&source).unwrap_or_else(|| fail(id, other.map(|_| "")))),
        }
    }

    /// The built-in retries, or what a document made of them.
    fn service_retry(&self, policies: Option<&Policies>) -> Retry {
        policies
            .and_then(|p| p.built_in(SERVICE_RETRIES))
            .or_else(|| mecha_resiliency::built_in(SERVICE_RETRIES))
            .unwrap_or_default()
    }

    fn route(&self, id: &str) -> Result<Route, ApiError> {
        if let Some(endpoint) = self.endpoints.load().get(id) {
            return Ok(Route::Outside(endpoint.clone()));
        }
        match Id::parse(id, self.identity.namespace_or_default()).map_err(|e| fail(id, e))? {
            Id::Url(_) if self.declared_urls_only => {
                let cause = "this URL is not declared by an HTTPEndpoint, and strict mode refuses others";
                Err(target::failed(id, ErrorKind::PermissionDenied, cause))
            }
            Id::Url(url) => Ok(Route::Outside(Arc::new(Endpoint::new(url, url).map_err(|e| fail(id, e))?))),
            Id::App { app, namespace } if self.is_own(app, namespace) => Ok(Route::Own),
            Id::App { app, namespace } => Ok(Route::Remote { app: app.to_owned(), namespace: namespace.to_owned() }),
        }
    }

    /// One try under a policy, or the only one; with `retry` the built-in tries.
    async fn send(
        &self,
        route: &Route,
        head: Cow<'_, Head>,
        source: &Source,
        retry: Option<&Retry>,
    ) -> Result<Response<Body>, Failed> {
        match route {
            Route::Own => self.own(head.into_owned(), source).await,
            Route::Outside(endpoint) => self.outside(endpoint, head.into_owned(), source).await,
            Route::Remote { app, namespace } => match retry {
                None => self.remote(app, namespace, &head, source).await,
                Some(retry) => self.retried(app, namespace, &head, source, retry).await,
            },
        }
    }

    async fn own(&self, head: Head, source: &Source) -> Result<Response<Body>, Failed> {
        let Some(app) = &self.app else {
            return Err(Failed::text("cannot invoke local endpoint: app channel not initialized"));
        };
        let req = inbound::app_request(head, source.body(), app.protocol()).map_err(Failed::Text)?;
        match app.invoke(req).await {
            Ok(mut answer) => {
                if app.protocol().is_grpc() {
                    inbound::clean_grpc_answer(&mut answer);
                }
                Ok(answer)
            }
            Err(e) => inbound::grpc_answer(e).map_err(Failed::Text),
        }
    }

    /// Calls a peer, and again after a pause while connections fail and nothing can be done twice.
    async fn retried(
        &self,
        app: &str,
        namespace: &str,
        head: &Head,
        source: &Source,
        retry: &Retry,
    ) -> Result<Response<Body>, Failed> {
        let mut pauses = retry.pauses(Instant::now());
        let mut retries = 0;
        loop {
            let error = match self.remote(app, namespace, head, source).await {
                Err(Failed::Transport(e)) if e.is_connection() && !source.has_failed() => e,
                other => return other,
            };
            let safe = error.reached == Reached::No || head.verb.is_idempotent();
            let pause = if safe && source.can_replay() { pauses.next(Instant::now(), 0.5) } else { None };
            let Some(pause) = pause else {
                return Err(Failed::Text(format!(
                    "failed to invoke target {app} after {retries} retries. Error: {error}"
                )));
            };
            tokio::time::sleep(pause).await;
            retries += 1;
        }
    }

    /// Calls a peer. Other replicas are asked at once when a connection fails before
    /// anything left, each at most once.
    async fn remote(&self, app: &str, namespace: &str, head: &Head, source: &Source) -> Result<Response<Body>, Failed> {
        let mut others = None;
        let mut unary = false;
        loop {
            let (address, count) =
                self.addresses.pick(app, namespace).await.map_err(|e| Failed::Text(e.to_string()))?;
            self.metrics.invocation_request_sent(app, false);
            let started = Instant::now();
            let peer = Peer { address: &address, app_id: app, namespace };
            let error = match self.transport.call_peer(peer, head, source.body()).await {
                Ok(answer) => {
                    let status = status_of(&answer);
                    self.metrics.invocation_response_received(app, status, false, started.elapsed());
                    return Ok(answer);
                }
                Err(e) => e,
            };
            if source.has_failed() {
                return Err(Failed::Transport(error));
            }
            if error.code == grpc_code::UNIMPLEMENTED && error.reached == Reached::No {
                // The transport has learnt that this peer knows unary calls only.
                if !unary && source.can_replay() {
                    unary = true;
                    continue;
                }
                return Err(Failed::Text(format!(
                    "target app '{app}' is running a version of Dapr that does not support streaming-based service invocation"
                )));
            }
            if !error.is_connection() {
                return Err(Failed::Transport(error));
            }
            self.transport.drop_connections(&address);
            let left = others.get_or_insert(count.min(MAX_FAILOVER) - 1);
            if error.reached == Reached::No && source.can_replay() && *left > 0 {
                *left -= 1;
                continue;
            }
            self.addresses.forget(app, namespace);
            return Err(Failed::Transport(error));
        }
    }

    async fn outside(&self, endpoint: &Endpoint, mut head: Head, source: &Source) -> Result<Response<Body>, Failed> {
        let url = endpoint.url(&head.method, &head.query).map_err(Failed::Text)?;
        let Verb::Http(verb) = head.verb else {
            return Err(Failed::text(inbound::verb_error(&head.verb)));
        };
        headers::for_http(&mut head.headers);
        head.headers.remove(CONTENT_LENGTH);
        for (name, value) in &endpoint.headers {
            head.headers.insert(name, value.clone());
        }
        let mut req = Request::new(source.body());
        *req.method_mut() = verb;
        *req.uri_mut() = url;
        *req.headers_mut() = head.headers;
        self.metrics.invocation_request_sent(&endpoint.name, false);
        let started = Instant::now();
        match self.transport.call_endpoint(endpoint, req).await {
            Ok(answer) => {
                let status = status_of(&answer);
                self.metrics.invocation_response_received(&endpoint.name, status, false, started.elapsed());
                Ok(answer)
            }
            Err(e) => Err(Failed::Outside(e)),
        }
    }
}

/// The callee's own status: HTTP's, or gRPC's of a gRPC app.
fn status_of(answer: &Response<Body>) -> i32 {
    answer.extensions().get::<GrpcAnswer>().map_or_else(|| i32::from(answer.status().as_u16()), |a| a.code)
}

/// 500 / Internal.
fn fail(id: &str, cause: impl std::fmt::Display) -> ApiError {
    target::failed(id, ErrorKind::Internal, cause)
}

/// The error when it was the caller's body that failed: a limit of ours, or a caller who left.
fn caller_failure(source: &Source) -> Option<ApiError> {
    Some(match source.failure()? {
        Ok(own) => own,
        Err(text) => ApiError::new(
            crate::codes::Code::BodyRead,
            ErrorKind::InvalidArgument,
            format!("failed to read request body: {text}"),
        ),
    })
}

/// 502: the callee began to answer and did not get to the end.
fn broken(id: &str, e: &crate::app::BodyError) -> ApiError {
    fail(id, format_args!("the answer of the app broke off: {e}"))
        .with_status(StatusCode::BAD_GATEWAY.as_u16(), grpc_code::INTERNAL)
}

/// The answer as an HTTP client gets it.
async fn finish(id: &str, mut answer: Response<Body>, is_head: bool) -> Result<Response<Body>, ApiError> {
    if let Some(status) = answer.extensions_mut().remove::<GrpcAnswer>() {
        answer = grpc::as_http(answer, &status);
    }
    if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
        // No upgrade was asked for: `Upgrade` does not pass. A tunnel would desynchronise both sides.
        return Err(fail(id, "the app switched protocols, which was not asked for")
            .with_status(StatusCode::BAD_GATEWAY.as_u16(), grpc_code::INTERNAL));
    }
    headers::clean_response(answer.headers_mut());
    let announced = headers::content_length(answer.headers());
    let status = answer.status();
    let bodyless = is_head || status.is_informational() || matches!(status.as_u16(), 204 | 304);
    if bodyless {
        // Read to its end all the same: a stream that is dropped before its trailers is reset.
        let (parts, body) = answer.into_parts();
        Peeked::new(body).await.map_err(|e| broken(id, &e))?;
        return Ok(Response::from_parts(parts, empty()));
    }
    answer.headers_mut().remove(CONTENT_LENGTH);
    let sniffs = !answer.headers().contains_key(CONTENT_TYPE) && !answer.headers().contains_key(CONTENT_ENCODING);
    let Some(length) = announced else {
        if sniffs {
            return peek(id, answer, sniffs).await;
        }
        return Ok(answer);
    };
    let held = answer.map(|body| {
        // A channel that holds its bodies to their word needs no second guard.
        if http_body::Body::size_hint(&body).exact() == Some(length) {
            body
        } else {
            http_body_util::BodyExt::boxed_unsync(Exact::to_the_end(body, length))
        }
    });
    peek(id, held, sniffs).await
}

/// Waits for the first data, so that a callee that breaks off at once is a 502 and not a
/// cut answer; fills in the content type on the way.
async fn peek(id: &str, answer: Response<Body>, sniffs: bool) -> Result<Response<Body>, ApiError> {
    let (mut parts, body) = answer.into_parts();
    let mut peeked = Peeked::new(body).await.map_err(|e| broken(id, &e))?;
    if let Some(e) = peeked.fails_now().await {
        return Err(broken(id, &e));
    }
    if sniffs && !peeked.first().is_empty() {
        parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static(sniff::content_type(peeked.first())));
    }
    Ok(Response::from_parts(parts, peeked.into_body()))
}
