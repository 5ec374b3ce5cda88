//! The gRPC front: decode, call core, encode. [`GrpcService`] is the only place that lists the
//! steps around a call, outermost first.

mod api;
mod bindings;
mod body;
mod configuration;
mod errors;
mod frames;
mod health;
mod invoke;
mod lock;
mod mecha;
mod metadata;
mod notes;
mod pubsub;
mod reflection;
mod secrets;
mod state;
mod stream;

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::prelude::BASE64_STANDARD_NO_PAD;
use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, USER_AGENT};
use http::{Method, Request, Response, StatusCode};
use hyper::body::Incoming;
use mecha_core::app::Body;
use mecha_core::trace::{Mode, Span, attribute};
use mecha_core::{Core, Cx, Front};
use mecha_proto::runtime::dapr_server::DaprServer;
use mecha_proto::sidecar::sidecar_server::SidecarServer;
use tokio::sync::Semaphore;
use tonic::codegen::Service as _;
use tonic::{Code, Status};
use tonic_health::pb::health_server::HealthServer;

use self::body::{Report, RequestBody, Source};
use self::health::HealthApi;
use self::invoke::Trailers;
use self::mecha::MechaApi;
use self::notes::Notes;
use self::reflection::Reflection;
use crate::edge;
use crate::http::ApiLog;
use crate::peer::Connected;
use crate::proxy::{GrpcProxy, Side};
use crate::serve::ServerLimits;
use crate::token::{ApiToken, TOKEN_HEADER};

pub use self::body::GrpcBody;
pub(crate) use self::frames::Frames;

/// Calls in flight before further ones are shed. Streams count until their headers are out.
const IN_FLIGHT: usize = 16_384;
/// Trace context of an answer.
const GRPC_TRACE_BIN: HeaderName = HeaderName::from_static("grpc-trace-bin");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// Path prefixes of the services.
const DAPR: &str = "/dapr.proto.runtime.v1.Dapr/";
const MECHA: &str = "/mecha.v1.Sidecar/";
const HEALTH: &str = "/grpc.health.v1.Health/";
/// Prefix of the paths that allow and deny lists hold for.
const RUNTIME: &str = "/dapr.proto.runtime.";

/// Settings of the gRPC front.
#[derive(Clone, Debug, Default)]
pub struct GrpcOptions {
    /// Largest message either way, in bytes.
    pub max_body: u64,
    /// Token that callers must send.
    pub token: Option<ApiToken>,
    /// API log.
    pub log: ApiLog,
}

/// The methods of `dapr.proto.runtime.v1.Dapr` over one runtime.
#[derive(Debug)]
pub struct GrpcApi {
    core: Arc<Core>,
}

impl GrpcApi {
    /// The API of `core`.
    #[must_use]
    pub fn new(core: Arc<Core>) -> Self {
        Self { core }
    }
}

/// The gRPC server of one runtime, for [`crate::serve::serve`].
#[derive(Clone, Debug)]
pub struct GrpcService(Arc<Server>);

impl GrpcService {
    /// Whether calls are under way: each holds a clone.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        Arc::strong_count(&self.0) > 1
    }
}

struct Server {
    core: Arc<Core>,
    options: GrpcOptions,
    limit: usize,
    api: DaprServer<GrpcApi>,
    mecha: SidecarServer<MechaApi>,
    health: HealthServer<HealthApi>,
    reflection: Reflection,
    proxy: Option<Arc<GrpcProxy>>,
    in_flight: Semaphore,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Who answers a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Route {
    /// A method of the API.
    Api(api::Entry),
    /// Our own additions.
    Mecha,
    /// An answer of the daemon about itself.
    Health,
    /// Descriptors.
    Reflection,
    /// Everything else goes to the app or the sidecar that the metadata names.
    Proxy,
}

type Answer = Response<GrpcBody>;

/// Serves `core`; services that the daemon does not know go to `proxy`.
#[must_use]
pub fn router(core: Arc<Core>, options: GrpcOptions, proxy: Option<Arc<GrpcProxy>>) -> GrpcService {
    let limit = usize::try_from(options.max_body).unwrap_or(usize::MAX);
    GrpcService(Arc::new(Server {
        // The bodies check lengths, with the texts that callers know.
        api: DaprServer::new(GrpcApi::new(core.clone())).max_decoding_message_size(usize::MAX),
        mecha: SidecarServer::new(MechaApi(core.clone())).max_decoding_message_size(usize::MAX),
        health: HealthServer::new(HealthApi(core.clone())),
        reflection: Reflection::default(),
        in_flight: Semaphore::new(IN_FLIGHT),
        limit,
        core,
        options,
        proxy,
    }))
}

/// Limits of the server's connections. `read_buffer` is the setting `read-buffer-size` in bytes.
#[must_use]
pub fn limits(read_buffer: u32) -> ServerLimits {
    ServerLimits {
        http2_only: true,
        header_list_bytes: read_buffer.saturating_mul(1024),
        ping: Some((Duration::from_secs(10), Duration::from_secs(5))),
        idle_http2: Duration::from_secs(180),
        faulty_streams: 65_536,
        ..ServerLimits::default()
    }
}

impl hyper::service::Service<Request<Incoming>> for GrpcService {
    type Response = Answer;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Infallible>> + Send>>;

    fn call(&self, req: Request<Incoming>) -> Self::Future {
        let server = self.0.clone();
        Box::pin(async move { Ok(server.handle(req).await) })
    }
}

impl Server {
    async fn handle(&self, req: Request<Incoming>) -> Answer {
        let began = Instant::now();
        let (mut parts, body) = req.into_parts();
        if let Some(answer) = no_grpc(&parts.method, &parts.headers) {
            return answer;
        }
        let route = find(parts.uri.path());
        // Full: refused now instead of a queue that only adds latency.
        let Ok(_slot) = self.in_flight.try_acquire() else {
            return refused(Status::resource_exhausted("too many requests in flight, try again"));
        };
        // Probes cannot send metadata, and learn nothing but readiness.
        if route != Route::Health
            && let Err(status) = self.check_token(&parts.headers)
        {
            return refused(status);
        }
        // Callers' tokens are for this hop only.
        parts.headers.remove(TOKEN_HEADER);
        if !self.is_open(route, parts.uri.path()) {
            let cause = "requested endpoint is not available";
            return refused(errors::refusal(Code::Unimplemented, 501, "Not Implemented", cause));
        }
        let mut started = match self.start(route, &parts) {
            Ok(started) => started,
            Err(reason) => return refused(Status::invalid_argument(reason)),
        };
        let invocation = matches!(route, Route::Api(api::Entry { api: "invoke", .. }));
        let mut notes = None;
        if started.span.is_recording() {
            describe(&mut started.span, &parts, invocation);
            if matches!(route, Route::Api(_)) {
                parts.extensions.insert(notes.insert(Notes::default()).clone());
            }
        }
        let received = Arc::new(AtomicU64::new(0));
        let log = self.options.log.enabled && !(route == Route::Health && self.options.log.omit_health);
        // From here on a call that is given up while it runs is reported too.
        let mut report = Report {
            metrics: self.core.metrics.clone(),
            uri: parts.uri.clone(),
            began,
            received: received.clone(),
            log,
            user_agent: log.then(|| parts.headers.get(USER_AGENT).cloned()).flatten(),
            span: started.span,
            code: Code::Cancelled as i32,
            sent: 0,
        };
        let trace = self.core.tracer.mode() != Mode::Off && route != Route::Health && route != Route::Reflection;
        if trace && route == Route::Proxy {
            edge::write(&started.cx.trace, &mut parts.headers);
            if let Some(context) = binary(&report.span) {
                parts.headers.insert(GRPC_TRACE_BIN, context);
            }
        }
        let limit = if route == Route::Proxy { usize::MAX } else { self.limit };
        parts.extensions.insert(started.cx.clone());
        let timeout = (route != Route::Proxy).then(|| parts.headers.get(GRPC_TIMEOUT).and_then(timeout)).flatten();
        let req = Request::from_parts(parts, RequestBody::new(body, limit, received));
        let answer = self.dispatch(route, req);
        let mut answer = match timeout {
            None => answer.await,
            Some(timeout) => tokio::time::timeout(timeout, answer)
                .await
                .unwrap_or_else(|_| refused(Status::deadline_exceeded("context deadline exceeded"))),
        };
        if let Some(notes) = notes {
            notes.write(&mut report.span, report.uri.path());
        }
        // What was passed on comes back as it is.
        if trace && route != Route::Proxy {
            mark(&mut answer, &report.span, &started.cx, invocation);
        }
        let (parts, mut body) = answer.into_parts();
        body.report(report, &parts.headers);
        Response::from_parts(parts, body)
    }

    async fn dispatch(&self, route: Route, req: Request<RequestBody>) -> Answer {
        let own = |res: Response<tonic::body::Body>| {
            let (mut parts, body) = res.into_parts();
            let trailers = parts.extensions.remove::<Trailers>().map(|t| t.0);
            Response::from_parts(parts, GrpcBody::new(Source::Own(body), self.limit, trailers))
        };
        let answer = match route {
            Route::Api(_) => self.api.clone().call(req).await,
            Route::Mecha => self.mecha.clone().call(req).await,
            Route::Health => self.health.clone().call(req).await,
            Route::Reflection => match self.reflection.routes() {
                Some(mut routes) => routes.call(req).await,
                None => return refused(Status::internal("the descriptors of this build are broken")),
            },
            Route::Proxy => return self.proxied(req).await,
        };
        match answer {
            Ok(res) => own(res),
            Err(never) => match never {},
        }
    }

    async fn proxied(&self, req: Request<RequestBody>) -> Answer {
        let Some(proxy) = &self.proxy else {
            return refused(Status::unimplemented(format!("unknown service or method {}", req.uri().path())));
        };
        let res = proxy.handle(Side::Api, &Connected::default(), req.map(Body::new)).await;
        res.map(|body| GrpcBody::new(Source::Proxied(body), usize::MAX, None))
    }

    fn check_token(&self, headers: &HeaderMap) -> Result<(), Status> {
        let Some(token) = &self.options.token else { return Ok(()) };
        let cause = match headers.get(TOKEN_HEADER) {
            Some(given) if token.accepts(given.as_bytes()) => return Ok(()),
            Some(_) => "authentication error: api token mismatch",
            None => "missing api token in request metadata",
        };
        Err(errors::refusal(Code::Unauthenticated, 401, "Unauthorized", cause))
    }

    /// Whether the lists let a call through; they hold for the daemon's own API only.
    fn is_open(&self, route: Route, path: &str) -> bool {
        let rules = self.core.api_rules.load();
        if rules.is_empty() || !(route == Route::Mecha || path.starts_with(RUNTIME)) {
            return true;
        }
        match route {
            Route::Api(entry) => rules.allows(entry.api, entry.version, Front::Grpc),
            Route::Mecha => rules.allows(mecha::ENTRY.api, mecha::ENTRY.version, Front::Grpc),
            // No list can name a method that does not exist, but an allow list keeps it out.
            _ => rules.allows("", "", Front::Grpc),
        }
    }

    fn start(&self, route: Route, parts: &http::request::Parts) -> Result<edge::Started, String> {
        match route {
            Route::Health | Route::Reflection => Ok(edge::Started { cx: Cx::new(Front::Grpc), span: Span::default() }),
            Route::Api(_) | Route::Mecha | Route::Proxy => {
                edge::start(&self.core.tracer, &parts.headers, Front::Grpc, || parts.uri.path().to_owned())
            }
        }
    }
}

fn find(path: &str) -> Route {
    if let Some(method) = path.strip_prefix(DAPR) {
        return api::find(method).map_or(Route::Proxy, Route::Api);
    }
    if path.starts_with(MECHA) {
        Route::Mecha
    } else if path.starts_with(HEALTH) {
        Route::Health
    } else if reflection::is_reflection(path) {
        Route::Reflection
    } else {
        Route::Proxy
    }
}

/// The answer to a request that is not gRPC.
fn no_grpc(method: &Method, headers: &HeaderMap) -> Option<Answer> {
    let status = if method != Method::POST {
        StatusCode::METHOD_NOT_ALLOWED
    } else if !headers.get(CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc")) {
        StatusCode::UNSUPPORTED_MEDIA_TYPE
    } else {
        return None;
    };
    let mut answer = Response::new(GrpcBody::empty());
    *answer.status_mut() = status;
    if status == StatusCode::METHOD_NOT_ALLOWED {
        answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
    }
    Some(answer)
}

/// An answer that is only a status.
fn refused(status: Status) -> Answer {
    status.into_http::<()>().map(|()| GrpcBody::empty())
}

/// Says what a call is about.
fn describe(span: &mut Span, parts: &http::request::Parts, invocation: bool) {
    span.set(attribute::DAPR_PROTOCOL, "grpc");
    span.set(attribute::DAPR_API, parts.uri.path().to_owned());
    let service = if invocation { attribute::RPC_SERVICE_INVOCATION } else { attribute::RPC_SERVICE_DAPR };
    span.set(attribute::RPC_SERVICE, service);
    for (name, value) in &parts.headers {
        if attribute::is_header(name.as_str())
            && let Ok(value) = value.to_str()
        {
            span.set(name.as_str().to_owned(), value.to_owned());
        }
    }
}

/// Hands the trace context back: as text for invocations, in binary form otherwise.
fn mark(answer: &mut Answer, span: &Span, cx: &Cx, invocation: bool) {
    let headers = answer.headers_mut();
    if invocation {
        edge::write(&cx.trace, headers);
        return;
    }
    if let Some(context) = binary(span) {
        headers.insert(GRPC_TRACE_BIN, context);
    }
    if let Some(baggage) = cx.trace.baggage.as_deref().and_then(|b| HeaderValue::from_str(b).ok()) {
        headers.insert("baggage", baggage);
    }
}

fn binary(span: &Span) -> Option<HeaderValue> {
    let encoded = BASE64_STANDARD_NO_PAD.encode(span.context()?.to_binary());
    HeaderValue::from_str(&encoded).ok()
}

/// The time a caller gives: up to eight digits and a unit.
fn timeout(value: &HeaderValue) -> Option<Duration> {
    let text = value.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}
