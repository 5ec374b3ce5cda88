//! gRPC proxying: calls of services this daemon does not know go to the app or sidecar that
//! their metadata names. Nothing is decoded: headers, data frames and trailers pass as they
//! are, so that all four kinds of call, metadata and status details arrive unchanged.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http::header::{HOST, HeaderName, HeaderValue, TE};
use http::uri::{Parts, Scheme, Uri};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mecha_core::app::{Body, BodyError};
use mecha_core::invoke::{Id, Invoke, Method, Question, Reached, TransportError, grpc_code, headers};
use tokio::time::Instant;

use self::limit::{Limited, Refusal, too_large_answer};
use crate::grpc::Frames;
use crate::peer::{Connected, Dialled, Lease, Place, Pool, status};

mod limit;
#[cfg(test)]
mod tests;

/// Marks a call as a stream, whose length no policy limits.
const STREAM: HeaderName = HeaderName::from_static("dapr-stream");
/// Tries after the first one while nothing was sent.
const RETRIES: u32 = 3;
/// Wait before each of them.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Where a call came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The gRPC API, from the own app.
    Api,
    /// The peer port, from another sidecar.
    Peer,
}

/// Lets calls to the own app through.
#[async_trait]
pub trait Admission: Send + Sync + fmt::Debug + 'static {
    /// Waits for a place among the calls the app takes at a time; dropping what it gives
    /// frees the place.
    ///
    /// # Errors
    /// Why no call goes to the app now, as `Internal`.
    async fn admit(&self) -> Result<Box<dyn Send + Sync>, String>;
}

/// The own app, as a gRPC server.
#[derive(Debug)]
pub struct ProxyApp {
    /// Connections to it.
    pub pool: Arc<Pool>,
    /// `host:port`.
    pub address: String,
    /// Whether the connections are TLS.
    pub tls: bool,
    /// `dapr-api-token` of calls to the app.
    pub token: Option<HeaderValue>,
    /// Limits and health.
    pub admission: Option<Arc<dyn Admission>>,
}

/// The own app's part in proxying.
#[derive(Debug)]
pub enum OwnApp {
    /// It speaks gRPC.
    Grpc(ProxyApp),
    /// It speaks something else, by this name.
    Other(&'static str),
    /// There is none.
    None,
}

/// Passes gRPC calls on.
#[derive(Debug)]
pub struct GrpcProxy {
    invoke: Arc<Invoke>,
    peers: Arc<Pool>,
    app: OwnApp,
    /// Tracing is off by a sampling rate of zero; one error text differs by it.
    untraced: bool,
    /// Largest message either way, in bytes.
    max_message: usize,
}

impl GrpcProxy {
    /// A proxy that finds apps as `invoke` does. Messages may have `max_message` bytes.
    #[must_use]
    pub fn new(invoke: Arc<Invoke>, peers: Arc<Pool>, app: OwnApp, untraced: bool, max_message: usize) -> Self {
        Self { invoke, peers, app, untraced, max_message }
    }

    /// Answers a call. Always an answer: failures are gRPC statuses. Trace headers are
    /// passed on as `req` has them.
    pub async fn handle(&self, side: Side, connected: &Connected, req: Request<Body>) -> Response<Body> {
        let mut answer = self.forward(side, connected, req).await.unwrap_or_else(|e| status::trailers_only(&e));
        if side == Side::Api {
            status::for_apps(answer.headers_mut());
        }
        answer
    }

    async fn forward(
        &self,
        side: Side,
        connected: &Connected,
        mut req: Request<Body>,
    ) -> Result<Response<Body>, TransportError> {
        let target = self.target(&req)?;
        if req.method() != http::Method::POST {
            return Err(TransportError::unsent(grpc_code::UNIMPLEMENTED, "gRPC calls are POST requests"));
        }
        let clean = Method::new(req.uri().path()).is_ok_and(|m| m.as_str() == req.uri().path());
        if !clean {
            let text = format!("invalid method: {} is not in normal form", req.uri().path());
            return Err(TransportError::unsent(grpc_code::INVALID_ARGUMENT, text));
        }
        clean_headers(req.headers_mut());
        let refusal = Refusal::default();
        let mut req = req.map(|body| Body::new(Limited::new(body, self.max_message, refusal.clone())));
        let own_namespace = self.invoke.identity().namespace_or_default();
        match Id::parse(&target, own_namespace).map_err(unknown)? {
            Id::Url(url) => Err(unknown(format!("invalid app id {url}"))),
            Id::App { app, namespace } => {
                let own = self.invoke.is_own(app, namespace);
                // The sidecar that the call left has counted it already.
                if !(own && side == Side::Peer) {
                    headers::count_hop(req.headers_mut()).map_err(|hops| {
                        let text = format!("the call went through {hops} sidecars: it is a loop");
                        TransportError::unsent(grpc_code::FAILED_PRECONDITION, text)
                    })?;
                }
                if own {
                    self.to_app(side, connected, req, refusal).await
                } else {
                    self.to_peer(app, namespace, req, refusal).await
                }
            }
        }
    }

    fn target(&self, req: &Request<Body>) -> Result<String, TransportError> {
        let named = [headers::CALLEE_APP_ID, headers::APP_ID]
            .iter()
            .find_map(|name| req.headers().get(name).and_then(|v| v.to_str().ok()).filter(|v| !v.is_empty()));
        named.map(str::to_owned).ok_or_else(|| {
            let ours = req.uri().path().starts_with("/dapr.proto.") || self.untraced;
            unknown(if ours {
                "failed to proxy request: required metadata dapr-callee-app-id or dapr-app-id not found"
            } else {
                "cannot proxy request: missing dapr-callee-app-id or dapr-app-id metadata"
            })
        })
    }

    async fn to_app(
        &self,
        side: Side,
        connected: &Connected,
        mut req: Request<Body>,
        refusal: Refusal,
    ) -> Result<Response<Body>, TransportError> {
        let app = match &self.app {
            OwnApp::Grpc(app) => app,
            OwnApp::Other(protocol) => {
                let text = format!(
                    "app {} speaks {protocol}: gRPC calls can be proxied to gRPC apps only (app-protocol grpc)",
                    self.invoke.identity().app_id
                );
                return Err(TransportError::unsent(grpc_code::FAILED_PRECONDITION, text));
            }
            OwnApp::None => {
                let text = "cannot invoke local endpoint: app channel not initialized";
                return Err(TransportError::unsent(grpc_code::FAILED_PRECONDITION, text));
            }
        };
        if side == Side::Peer {
            let question = Question {
                caller: connected.identity.as_ref(),
                from: connected.from,
                operation: req.uri().path(),
                verb: None,
                http: false,
            };
            self.invoke
                .check_access(question)
                .map_err(|text| TransportError::unsent(grpc_code::PERMISSION_DENIED, text))?;
            self.invoke.metrics().invocation_request_received(caller_of(req.headers()));
        }
        if let Some(token) = &app.token {
            req.headers_mut().insert(headers::API_TOKEN, token.clone());
        }
        let permit = match &app.admission {
            None => None,
            Some(admission) => {
                Some(admission.admit().await.map_err(|e| TransportError::unsent(grpc_code::INTERNAL, e))?)
            }
        };
        let caller = (side == Side::Peer).then(|| caller_of(req.headers()).to_owned());
        let to = Dialled { address: &app.address, app_id: &self.invoke.identity().app_id, namespace: "" };
        let scheme = if app.tls { Scheme::HTTPS } else { Scheme::HTTP };
        let mut req = Some(req);
        let sent = self.attempts(&app.pool, &mut req, scheme, |_| std::future::ready(Ok(to))).await;
        let record = Record { invoke: self.invoke.clone(), what: caller.map(What::Sent) };
        self.answer(sent, record, refusal, permit)
    }

    async fn to_peer(
        &self,
        app: &str,
        namespace: &str,
        mut req: Request<Body>,
        refusal: Refusal,
    ) -> Result<Response<Body>, TransportError> {
        let streaming = req.headers().get(STREAM).and_then(|v| v.to_str().ok()).is_some_and(truthy);
        req.headers_mut().remove(headers::APP_ID);
        headers::strip_sidecar_ids(req.headers_mut());
        self.invoke.hop().add_ids(req.headers_mut(), app);
        self.invoke.metrics().invocation_request_sent(app, streaming);
        let what = What::Received { app: app.to_owned(), streaming, started: Instant::now() };
        let mut req = Some(req);
        let mut retries = 0;
        let sent = loop {
            let (address, _) =
                self.invoke.addresses().pick(app, namespace).await.map_err(|e| unknown(e.to_string()))?;
            let to = Dialled { address: &address, app_id: app, namespace };
            match self.once(&self.peers, to, &mut req, self.peers.scheme()).await {
                Err(e) if req.is_some() && e.reached == Reached::No && e.is_connection() && retries < RETRIES => {
                    self.peers.forget(&address);
                    self.invoke.addresses().forget(app, namespace);
                    tokio::time::sleep(RETRY_INTERVAL).await;
                    retries += 1;
                }
                other => break other,
            }
        };
        self.answer(sent, Record { invoke: self.invoke.clone(), what: Some(what) }, refusal, None)
    }

    /// Sends to a fixed address; a kept connection that turns out dead is replaced once.
    async fn attempts<'d, F>(
        &self,
        pool: &Pool,
        req: &mut Option<Request<Body>>,
        scheme: Scheme,
        to: impl Fn(u32) -> F,
    ) -> Result<(Response<Incoming>, Place), TransportError>
    where
        F: Future<Output = Result<Dialled<'d>, TransportError>>,
    {
        for attempt in 0.. {
            let to = to(attempt).await?;
            match self.once(pool, to, req, scheme.clone()).await {
                Err(e) if attempt == 0 && req.is_some() && e.reached == Reached::No && e.is_connection() => {
                    pool.forget(to.address);
                }
                other => return other,
            }
        }
        Err(unknown("no attempt was made"))
    }

    /// One try. `req` is taken only when something of it may have left.
    async fn once(
        &self,
        pool: &Pool,
        to: Dialled<'_>,
        req: &mut Option<Request<Body>>,
        scheme: Scheme,
    ) -> Result<(Response<Incoming>, Place), TransportError> {
        let lease = pool.lease(to).await?;
        let Some(mut out) = req.take() else { return Err(unknown("the request is gone")) };
        let mut parts = Parts::default();
        parts.scheme = Some(scheme);
        parts.authority = Some(lease.authority());
        parts.path_and_query = out.uri().path_and_query().cloned();
        *out.uri_mut() = Uri::from_parts(parts).map_err(|e| unknown(e.to_string()))?;
        let Lease { mut send, place, .. } = lease;
        match send.try_send_request(out).await {
            Ok(answer) => Ok((answer, place)),
            Err(mut e) => {
                let mut error = status::from_hyper(e.error());
                *req = e.take_message();
                if req.is_some() {
                    error.reached = Reached::No;
                    error.code = grpc_code::UNAVAILABLE;
                }
                Err(error)
            }
        }
    }

    fn answer(
        &self,
        sent: Result<(Response<Incoming>, Place), TransportError>,
        mut record: Record,
        refusal: Refusal,
        permit: Option<Box<dyn Send + Sync>>,
    ) -> Result<Response<Body>, TransportError> {
        let (answer, place) = match sent {
            Ok(sent) => sent,
            Err(e) => {
                // Our own refusal shows on the connection as a stream that was given up.
                let e = refusal.get().cloned().unwrap_or(e);
                record.end(e.code);
                return Err(e);
            }
        };
        let (mut parts, body) = answer.into_parts();
        if parts.status != StatusCode::OK {
            let error = status::from_http(parts.status);
            record.end(error.code);
            return Err(error);
        }
        headers::strip_hop_by_hop(&mut parts.headers);
        if let Some(status) = status::read(&parts.headers) {
            record.end(status.err().map_or(grpc_code::OK, |e| e.code));
        }
        let frames = Frames::new(self.max_message);
        let body =
            Passing { body, frames, max: self.max_message, refusal, record, ended: false, _held: (place, permit) };
        Ok(Response::from_parts(parts, body.boxed_unsync()))
    }
}

fn unknown(text: impl Into<String>) -> TransportError {
    TransportError::unsent(grpc_code::UNKNOWN, text)
}

/// Removes what concerns the connection, and tokens. `te: trailers` is what gRPC demands of
/// every hop.
fn clean_headers(map: &mut HeaderMap) {
    headers::strip_hop_by_hop(map);
    map.remove(HOST);
    map.remove(headers::API_TOKEN);
    map.insert(TE, HeaderValue::from_static("trailers"));
}

fn caller_of(map: &HeaderMap) -> &str {
    map.get(headers::CALLER_APP_ID).and_then(|v| v.to_str().ok()).unwrap_or("unknown")
}

fn truthy(text: &str) -> bool {
    ["y", "yes", "true", "t", "on", "1"].iter().any(|t| text.trim().eq_ignore_ascii_case(t))
}

/// What is counted when the status of a call is known.
#[derive(Debug)]
enum What {
    /// An answer of another app.
    Received { app: String, streaming: bool, started: Instant },
    /// Our answer to a caller.
    Sent(String),
}

#[derive(Debug)]
struct Record {
    invoke: Arc<Invoke>,
    what: Option<What>,
}

impl Record {
    fn end(&mut self, code: i32) {
        match self.what.take() {
            None => {}
            Some(What::Received { app, streaming, started }) => {
                self.invoke.metrics().invocation_response_received(&app, code, streaming, started.elapsed());
            }
            Some(What::Sent(caller)) => self.invoke.metrics().invocation_response_sent(&caller, code),
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end(grpc_code::CANCELLED);
    }
}

/// The body of an answer on its way. A broken stream ends with a status, as a gRPC client
/// expects it.
struct Passing {
    body: Incoming,
    frames: Frames,
    max: usize,
    refusal: Refusal,
    record: Record,
    ended: bool,
    _held: (Place, Option<Box<dyn Send + Sync>>),
}

impl http_body::Body for Passing {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let frame = match ready!(Pin::new(&mut this.body).poll_frame(cx)) {
            None => return Poll::Ready(None),
            Some(Err(e)) => {
                let error = this.refusal.get().cloned().unwrap_or_else(|| status::from_hyper(&e));
                return Poll::Ready(Some(Ok(this.end(&error))));
            }
            Some(Ok(frame)) => frame,
        };
        if let Some(data) = frame.data_ref()
            && let Err(length) = this.frames.scan(data)
        {
            return Poll::Ready(Some(Ok(this.end(&too_large_answer(length, this.max)))));
        }
        if let Some(trailers) = frame.trailers_ref() {
            if let Some(error) = this.refusal.get().cloned() {
                return Poll::Ready(Some(Ok(this.end(&error))));
            }
            let code = match status::from_trailers(Some(trailers)) {
                Ok(()) => grpc_code::OK,
                Err(e) => e.code,
            };
            this.record.end(code);
        }
        Poll::Ready(Some(Ok(frame)))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        // An answer that is too large is cut off.
        SizeHint::default()
    }
}

impl Passing {
    /// Ends the answer with a status of this daemon.
    fn end(&mut self, error: &TransportError) -> Frame<Bytes> {
        self.ended = true;
        self.record.end(error.code);
        Frame::trailers(status::headers(error))
    }
}
