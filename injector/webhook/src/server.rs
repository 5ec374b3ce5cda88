//! The webhook's HTTPS server. Everything about it is bounded: connections, requests at a time, bytes, time.

use std::convert::Infallible;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use mecha_apiserver::trace::{Mode, Span, SpanKind, Tracer};
use mecha_patch::Config;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::certificate::Serving;
use crate::metrics::{Admission, Metrics};
use crate::registration::PATH;
use crate::review::{Verdict, answer};

/// Largest question. A pod is at most 1.5 MB where it is stored.
const BODY_LIMIT: usize = 3 << 20;
/// Longest wait for the rest of a question; API servers give up after 3 s.
const DEADLINE: Duration = Duration::from_millis(2500);
/// Questions at a time.
const REQUESTS: usize = 64;
/// Connections at a time; an API server needs one.
const CONNECTIONS: usize = 128;
/// Longest TLS handshake, and longest wait for the head of a request.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Longest wait for answers that are being given when the server ends.
const DRAIN: Duration = Duration::from_secs(3);
/// Pause when no connection can be accepted, such as without file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests. Clones are the same.
#[derive(Clone)]
pub(crate) struct Webhook {
    shared: Arc<Shared>,
}

struct Shared {
    config: Arc<ArcSwap<Config>>,
    turns: Semaphore,
    metrics: Metrics,
    tracer: Tracer,
}

/// Why a request gets no AdmissionReview.
struct Refusal {
    status: StatusCode,
    result: Admission,
    message: String,
}

impl Webhook {
    pub(crate) fn new(config: Arc<ArcSwap<Config>>, metrics: Metrics, tracer: Tracer) -> Self {
        Self { shared: Arc::new(Shared { config, turns: Semaphore::new(REQUESTS), metrics, tracer }) }
    }

    /// Serves until `stop` fires, then answers what has been asked.
    pub(crate) async fn serve(self, listener: TcpListener, certificate: Serving, stop: CancellationToken) {
        let Some(tls) = acceptor(certificate) else { return };
        let graceful = GracefulShutdown::new();
        let mut connections = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => break,
                Some(_) = connections.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let Ok((stream, _)) = accepted else {
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            };
            // One too many is closed: its caller sees that at once and tells whoever made the pod.
            if connections.len() >= CONNECTIONS {
                self.shared.metrics.admission(Admission::Shed);
                continue;
            }
            connections.spawn(self.clone().connection(stream, tls.clone(), graceful.watcher()));
        }
        drop(listener);
        if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
            tracing::debug!("connections of API servers were cut when the webhook ended");
        }
    }

    async fn connection(self, stream: TcpStream, tls: TlsAcceptor, watcher: Watcher) {
        let _ = stream.set_nodelay(true);
        let Ok(Ok(stream)) = tokio::time::timeout(HANDSHAKE, tls.accept(stream)).await else { return };
        let mut server = auto::Builder::new(TokioExecutor::new());
        server.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE);
        server.http2().timer(TokioTimer::new()).max_concurrent_streams(REQUESTS as u32).max_header_list_size(64 << 10);
        let service = service_fn(move |request| {
            let webhook = self.clone();
            async move { Ok::<_, Infallible>(webhook.handle(request).await) }
        });
        let connection = server.serve_connection(TokioIo::new(stream), service).into_owned();
        let _ = watcher.watch(connection).await;
    }

    async fn handle(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        let started = Instant::now();
        let mut span = self.span(request.headers());
        let answer = match self.review(request, &mut span).await {
            Ok(response) => response,
            Err(refusal) => {
                self.shared.metrics.admission(refusal.result);
                span.fail(refusal.result.label());
                tracing::debug!(status = refusal.status.as_u16(), reason = refusal.message, "a request was refused");
                respond(refusal.status, "text/plain; charset=utf-8", refusal.message.into_bytes())
            }
        };
        self.shared.metrics.latency.observe(started.elapsed().as_secs_f64());
        answer
    }

    /// The span of an admission, below that of the API server where it has one.
    fn span(&self, headers: &HeaderMap) -> Span {
        let tracer = &self.shared.tracer;
        if tracer.mode() == Mode::Off {
            return Span::default();
        }
        let text = |name| headers.get(name)?.to_str().ok();
        let caller = tracer.extract(text("traceparent"), text("tracestate"), None);
        tracer.start(SpanKind::Server, caller.as_ref(), || "admit pod")
    }

    async fn review(&self, request: Request<Incoming>, span: &mut Span) -> Result<Response<Full<Bytes>>, Refusal> {
        check(request.method(), request.uri().path(), request.headers())?;
        let Ok(_turn) = self.shared.turns.try_acquire() else {
            let message = format!("{REQUESTS} pods are being injected at this moment; create this one again");
            return Err(Refusal::new(StatusCode::SERVICE_UNAVAILABLE, Admission::Shed, message));
        };
        let body = Limited::new(request.into_body(), BODY_LIMIT).collect();
        let body = match tokio::time::timeout(DEADLINE, body).await {
            Ok(Ok(body)) => body.to_bytes(),
            Ok(Err(e)) if e.is::<LengthLimitError>() => return Err(Refusal::too_large()),
            Ok(Err(_)) => {
                let message = "the request ended before its body was complete".to_owned();
                return Err(Refusal::new(StatusCode::BAD_REQUEST, Admission::Unreadable, message));
            }
            Err(_) => {
                let message = format!("the body did not arrive within {DEADLINE:?}");
                return Err(Refusal::new(StatusCode::REQUEST_TIMEOUT, Admission::TooSlow, message));
            }
        };
        let config = self.shared.config.load();
        // All pods of an API server share a connection: what goes wrong with one must not end it.
        let answer = catch_unwind(AssertUnwindSafe(|| answer(&body, &config))).map_err(|_| {
            let message = "the injector failed on this pod; its log says where".to_owned();
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, Admission::Failed, message)
        })?;
        let answer = answer.map_err(|e| Refusal::new(StatusCode::BAD_REQUEST, Admission::Unreadable, e.to_string()))?;
        match answer.verdict {
            Verdict::Denied => {
                tracing::info!(name = answer.name, fields = ?answer.fields, "a pod or workload was denied");
            }
            verdict => tracing::debug!(name = answer.name, ?verdict, "a pod or workload was looked at"),
        }
        let outcome = match answer.verdict {
            Verdict::Injected => Admission::Injected,
            Verdict::Whole => Admission::Whole,
            Verdict::NotAsked => Admission::NotAsked,
            Verdict::Denied => Admission::Denied,
            Verdict::Checked => Admission::Checked,
            Verdict::Misdirected => Admission::Misdirected,
        };
        self.shared.metrics.admission(outcome);
        if outcome == Admission::NotAsked {
            std::mem::take(span).discard();
        } else if span.is_recording() {
            let (namespace, name) = answer.name.split_once('/').unwrap_or_default();
            span.set("mecha.namespace", namespace.to_owned());
            span.set("mecha.name", name.to_owned());
            span.set("mecha.app_id", answer.app_id);
            span.set("mecha.outcome", outcome.label());
            span.set("mecha.fields", answer.fields.join(", "));
        }
        Ok(respond(StatusCode::OK, "application/json", answer.body))
    }
}

impl Refusal {
    fn new(status: StatusCode, result: Admission, message: String) -> Self {
        Self { status, result, message }
    }

    fn too_large() -> Self {
        let message = format!("the body is larger than {BODY_LIMIT} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, Admission::TooLarge, message)
    }
}

fn check(method: &Method, path: &str, headers: &HeaderMap) -> Result<(), Refusal> {
    let refuse = |status, message: &str| Err(Refusal::new(status, Admission::Unreadable, message.to_owned()));
    if path != PATH {
        return refuse(StatusCode::NOT_FOUND, "the webhook's path is /mutate; there is nothing else here");
    }
    if method != Method::POST {
        return refuse(StatusCode::METHOD_NOT_ALLOWED, "POST an AdmissionReview here");
    }
    let content = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = content.split(';').next().unwrap_or_default().trim();
    if !kind.eq_ignore_ascii_case("application/json") {
        return refuse(StatusCode::UNSUPPORTED_MEDIA_TYPE, "an AdmissionReview comes as application/json");
    }
    let length = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > BODY_LIMIT) {
        return Err(Refusal::too_large());
    }
    Ok(())
}

fn respond(status: StatusCode, kind: &'static str, body: Vec<u8>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

fn acceptor(certificate: Serving) -> Option<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Cannot fail: ring has suites for both versions.
    let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(certificate));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Some(TlsAcceptor::from(Arc::new(config)))
}
