//! The HTTP front: decode, call core, encode. [`HttpApi::handle`] is the only place that
//! lists the steps around a call, outermost first.

mod bindings;
mod configuration;
mod cors;
mod decode;
#[doc(hidden)]
pub mod fuzzing;
mod limit;
mod lock;
mod mecha;
mod metadata;
mod origin;
mod path;
mod proto_json;
mod pubsub;
mod respond;
mod routes;
mod secrets;
mod spans;
mod state;

use std::borrow::Cow;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, USER_AGENT};
use http::{Method, Request, StatusCode, Uri};
use http_body::Body as _;
use hyper::body::Incoming;
use mecha_core::invoke::Target;
use mecha_core::metrics::HttpExchange;
use mecha_core::trace::Mode;
use mecha_core::{ApiError, Core, Cx, Front};
use tokio::sync::Semaphore;

pub use cors::Cors;

use self::respond::Answer;
use self::routes::{Match, Matched, Route};
use crate::edge;
use crate::token::{ApiToken, TOKEN_HEADER};

/// Calls in flight before further ones are shed with 503. Streams count until their headers are out.
const IN_FLIGHT: usize = 16_384;

/// API log settings.
#[derive(Clone, Copy, Debug, Default)]
pub struct ApiLog {
    /// Log every call.
    pub enabled: bool,
    /// Hide path parameters.
    pub obfuscate: bool,
    /// Leave health checks out.
    pub omit_health: bool,
}

/// Settings of the HTTP front.
#[derive(Clone, Debug, Default)]
pub struct HttpOptions {
    /// Largest request body, in bytes.
    pub max_body: u64,
    /// Token that callers must send.
    pub token: Option<ApiToken>,
    /// Cross-origin rules.
    pub cors: Option<Cors>,
    /// API log.
    pub log: ApiLog,
    /// Check `Host` and `Origin` (strict mode).
    pub check_origin: bool,
}

/// The HTTP front over one runtime.
#[derive(Debug)]
pub struct HttpApi {
    core: Arc<Core>,
    options: HttpOptions,
    in_flight: Semaphore,
}

/// A call after the edge: path cleaned, body still unread.
struct Call<'a> {
    method: Method,
    /// As it came; `path` is what counts.
    uri: &'a Uri,
    path: &'a str,
    headers: HeaderMap,
    body: Incoming,
}

impl HttpApi {
    /// The front of `core`.
    #[must_use]
    pub fn new(core: Arc<Core>, options: HttpOptions) -> Self {
        Self { core, options, in_flight: Semaphore::new(IN_FLIGHT) }
    }

    /// Answers one request.
    ///
    /// # Errors
    /// Never.
    pub async fn handle(&self, req: Request<Incoming>) -> Result<Answer, Infallible> {
        let began = Instant::now();
        let (mut parts, body) = req.into_parts();
        let request_bytes = body.size_hint().lower();
        // Cleaned once, on the escaped form: every later check and the dispatch see these bytes.
        let cleaned = path::clean(parts.uri.path());
        let found = routes::find(&parts.method, &cleaned);
        let health = matches!(found, Match::Known(Matched { api: "healthz", .. }));
        let user_agent = self.options.log.enabled.then(|| parts.headers.get(USER_AGENT).cloned()).flatten();
        // The origin is needed after the headers are gone.
        let origin = self.options.cors.as_ref().and_then(|c| c.origin(&parts.headers));
        let method = parts.method.clone();
        let res = 'answer: {
            // Full: 503 now instead of a queue that only adds latency.
            let Ok(_slot) = self.in_flight.try_acquire() else {
                break 'answer respond::text(StatusCode::SERVICE_UNAVAILABLE, "too many requests in flight, try again");
            };
            if self.options.check_origin
                && let Err(reason) = origin::check(&parts.headers, self.options.cors.as_ref())
            {
                break 'answer respond::text(StatusCode::FORBIDDEN, reason);
            }
            // Preflights carry no token.
            if let Some(preflight) = self.options.cors.as_ref().and_then(|c| c.preflight(&parts.method, &parts.headers))
            {
                break 'answer preflight;
            }
            if !self.token_ok(&method, &cleaned, &parts.headers) {
                break 'answer respond::text(StatusCode::UNAUTHORIZED, "invalid api token");
            }
            // Callers' tokens are for this hop only.
            parts.headers.remove(TOKEN_HEADER);
            let call = Call { method: parts.method, uri: &parts.uri, path: &cleaned, headers: parts.headers, body };
            self.traced(call, &found, health).await
        };
        let mut res = res;
        Cors::mark(origin, &mut res);
        let elapsed = began.elapsed();
        let response_bytes = res.body().size_hint().exact().unwrap_or(0);
        if !health {
            self.core.metrics.http_served(HttpExchange {
                method: method.as_str(),
                path: &cleaned,
                status: res.status().as_u16(),
                request_bytes,
                response_bytes,
                elapsed,
            });
        }
        if let Some(failed) = res.extensions().get::<respond::Failed>() {
            self.core.metrics.error_code(failed.code.category().as_str(), failed.code.as_str());
        }
        if self.options.log.enabled && !(health && self.options.log.omit_health) {
            let shown = if self.options.log.obfuscate { short_form(&found) } else { Cow::Borrowed(&*cleaned) };
            tracing::info!(
                target: "dapr.runtime.http-info",
                method = %format_args!("{method} {shown}"),
                code = res.status().as_u16(),
                duration = elapsed.as_millis() as u64,
                size = response_bytes,
                useragent = user_agent.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default(),
                "HTTP API Called"
            );
        }
        Ok(res)
    }

    async fn traced(&self, call: Call<'_>, found: &Match<'_>, health: bool) -> Answer {
        if health {
            return self.dispatch(&Cx::new(Front::Http), call, found).await;
        }
        let started = edge::start(&self.core.tracer, &call.headers, Front::Http, || call.path.to_owned());
        let mut started = match started {
            Ok(started) => started,
            Err(reason) => return respond::text(StatusCode::BAD_REQUEST, reason),
        };
        if started.span.is_recording() {
            spans::describe(&mut started.span, &call, found);
        }
        let mut res = self.dispatch(&started.cx, call, found).await;
        started.span.http_status(res.status().as_u16());
        if self.core.tracer.mode() != Mode::Off {
            edge::write(&started.cx.trace, res.headers_mut());
        }
        res
    }

    fn token_ok(&self, method: &Method, path: &str, headers: &HeaderMap) -> bool {
        let Some(token) = &self.options.token else { return true };
        let trimmed = path.trim_matches('/');
        if method == Method::GET && (trimmed == "v1.0/healthz" || trimmed == "v1.0/healthz/outbound") {
            return true;
        }
        headers.get(TOKEN_HEADER).is_some_and(|given| token.accepts(given.as_bytes()))
    }

    async fn dispatch(&self, cx: &Cx, call: Call<'_>, found: &Match<'_>) -> Answer {
        let rules = self.core.api_rules.load();
        let open = |m: &Matched<'_>| rules.is_empty() || rules.allows(m.api, m.version, Front::Http);
        let answer = match found {
            Match::Known(m) if open(m) => match m.route {
                // Boxed: its state is larger than all others together, and every connection
                // would hold room for it.
                Route::Invoke { .. } => Box::pin(self.invoke(cx, call)).await,
                route => self.api(cx, call, route).await,
            },
            // A refused API looks unknown, and unknown paths are invocations.
            Match::Known(_) | Match::OtherMethod | Match::None => {
                if rules.is_empty() || rules.allows("invoke", "v1", Front::Http) {
                    Box::pin(self.invoke(cx, call)).await
                } else if *found == Match::OtherMethod {
                    Ok(respond::text(StatusCode::METHOD_NOT_ALLOWED, ""))
                } else {
                    Ok(respond::text(StatusCode::NOT_FOUND, "404 page not found\n"))
                }
            }
        };
        answer.unwrap_or_else(|e| respond::error(&e))
    }

    async fn invoke(&self, cx: &Cx, mut call: Call<'_>) -> Result<Answer, ApiError> {
        let target = Target::find(call.path, &mut call.headers)?;
        let (body, overflow) = limit::streamed(call.body, self.options.max_body).await?;
        let mut req = Request::new(body);
        *req.method_mut() = call.method;
        // Only its query counts: the target has the method.
        *req.uri_mut() = call.uri.clone();
        *req.headers_mut() = call.headers;
        let res = self.core.invoke.http(cx, target, req).await.map_err(|e| overflow.or(e))?;
        Ok(res.map(Into::into))
    }

    async fn api(&self, cx: &Cx, call: Call<'_>, route: Route<'_>) -> Result<Answer, ApiError> {
        let core = &*self.core;
        let query = call.uri.query();
        let limit = self.options.max_body;
        let body = if route.takes_body() { decode::whole(call.body, limit).await? } else { Bytes::new() };
        match route {
            Route::StateGet { store, key } => state::get(core, cx, &param(store)?, &param(key)?, query).await,
            Route::StateSave { store } => state::save(core, cx, &param(store)?, query, body).await,
            Route::StateDelete { store, key } => {
                state::delete(core, cx, &param(store)?, &param(key)?, query, &call.headers).await
            }
            Route::StateBulkGet { store } => state::bulk_get(core, cx, &param(store)?, query, body).await,
            Route::StateTransact { store } => state::transact(core, cx, &param(store)?, query, body).await,
            Route::StateQuery { store } => state::query(core, cx, &param(store)?, query, body).await,
            Route::Publish { pubsub, topic } => {
                let content_type = call.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).map(str::to_owned);
                let (pubsub, topic) = (param(pubsub)?, param(topic)?);
                pubsub::publish(core, cx, &pubsub, &topic, query, content_type.as_deref(), body).await
            }
            Route::PublishBulk { pubsub, topic } => {
                pubsub::publish_bulk(core, cx, &param(pubsub)?, &param(topic)?, query, body).await
            }
            Route::Binding { name } => bindings::invoke(core, cx, &param(name)?, query, body).await,
            Route::SecretGet { store, key } => secrets::get(core, cx, &param(store)?, &param(key)?, query).await,
            Route::SecretList { store } => secrets::list(core, cx, &param(store)?, query).await,
            Route::ConfigurationGet { store } => configuration::get(core, cx, &param(store)?, query).await,
            Route::ConfigurationSubscribe { store } => configuration::subscribe(core, &param(store)?, query).await,
            Route::ConfigurationUnsubscribe { store, id } => {
                configuration::unsubscribe(core, &param(store)?, &param(id)?)
            }
            Route::Metadata => Ok(metadata::get(core)),
            Route::MetadataSet { key } => metadata::set(core, &param(key)?, &body),
            Route::Health => {
                let asked = decode::query_value(query, "appid");
                core.health.ready(asked.as_deref()).map(|()| respond::no_content())
            }
            Route::OutboundHealth => core.health.outbound().map(|()| respond::no_content()),
            Route::Shutdown => {
                let forced = call
                    .headers
                    .get("dapr-force-shutdown")
                    .and_then(|v| v.to_str().ok())
                    .is_some_and(mecha_components_api::parse_bool);
                core.request_shutdown(forced);
                Ok(respond::no_content())
            }
            Route::TryLock { store } => lock::try_lock(core, cx, &param(store)?, body).await,
            Route::Unlock { store } => lock::unlock(core, cx, &param(store)?, body).await,
            Route::Unbuilt { what, name } => Err(what.error(&param(name)?)),
            Route::Mecha { rest } => mecha::answer(core, &call.method, rest),
            // Dispatched before; the edge hands invocations to `invoke`.
            Route::Invoke { .. } => Err(ApiError::unimplemented()),
        }
    }
}

/// A path parameter, query-unescaped.
fn param(text: &str) -> Result<Cow<'_, str>, ApiError> {
    path::unescape(text).ok_or_else(|| ApiError::malformed(format!("invalid URL escape in path parameter '{text}'")))
}

/// A path without the caller's data, such as `InvokeService/<id>`.
fn short_form(found: &Match<'_>) -> Cow<'static, str> {
    let Match::Known(m) = found else { return Cow::Borrowed("InvokeService") };
    match m.route {
        Route::Invoke { id, .. } => Cow::Owned(format!("InvokeService/{id}")),
        Route::StateGet { store, .. } => Cow::Owned(format!("GetState/{store}")),
        Route::StateSave { store } => Cow::Owned(format!("SaveState/{store}")),
        Route::StateDelete { store, .. } => Cow::Owned(format!("DeleteState/{store}")),
        Route::StateBulkGet { store } => Cow::Owned(format!("GetBulkState/{store}")),
        Route::StateTransact { store } => Cow::Owned(format!("ExecuteStateTransaction/{store}")),
        Route::StateQuery { store } => Cow::Owned(format!("QueryStateAlpha1/{store}")),
        Route::Publish { pubsub, topic } => Cow::Owned(format!("PublishEvent/{pubsub}/{topic}")),
        Route::PublishBulk { pubsub, topic } => Cow::Owned(format!("BulkPublishEvent/{pubsub}/{topic}")),
        Route::Binding { name } => Cow::Owned(format!("InvokeBinding/{name}")),
        Route::SecretGet { store, .. } => Cow::Owned(format!("GetSecret/{store}")),
        Route::SecretList { store } => Cow::Owned(format!("GetBulkSecret/{store}")),
        Route::Metadata => Cow::Borrowed("GetMetadata"),
        Route::MetadataSet { .. } => Cow::Borrowed("SetMetadata"),
        Route::Shutdown => Cow::Borrowed("Shutdown"),
        Route::Health | Route::OutboundHealth => Cow::Borrowed("Healthz"),
        _ => Cow::Borrowed(m.api),
    }
}

/// The public server: metadata and health, without token; everything else is unknown there.
///
/// # Errors
/// Never.
pub async fn public(core: Arc<Core>, req: Request<Incoming>) -> Result<Answer, Infallible> {
    let cleaned = path::clean(req.uri().path()).into_owned();
    let get = req.method() == Method::GET;
    let res = match cleaned.as_str() {
        "/v1.0/healthz" if get => {
            let asked = decode::query_value(req.uri().query(), "appid");
            core.health.ready(asked.as_deref()).map(|()| respond::no_content())
        }
        "/v1.0/healthz/outbound" if get => core.health.outbound().map(|()| respond::no_content()),
        "/v1.0/metadata" if get => Ok(metadata::get(&core)),
        "/v1.0/healthz" | "/v1.0/healthz/outbound" | "/v1.0/metadata" => {
            Ok(respond::text(StatusCode::METHOD_NOT_ALLOWED, ""))
        }
        // Known on the API port; here metadata is only read.
        other if other.strip_prefix("/v1.0/metadata/").is_some_and(|key| !key.contains('/')) => {
            Ok(respond::text(StatusCode::METHOD_NOT_ALLOWED, ""))
        }
        _ => Ok(respond::text(StatusCode::NOT_FOUND, "404 page not found\n")),
    };
    Ok(res.unwrap_or_else(|e| respond::error(&e)))
}

/// The answer of the profiling port: this build takes no profiles, and says what does.
#[must_use]
pub fn no_profiles() -> Answer {
    respond::text(
        StatusCode::NOT_IMPLEMENTED,
        "this build takes no profiles itself; use `perf record -p PID`, and the process metrics of the metrics port\n",
    )
}
