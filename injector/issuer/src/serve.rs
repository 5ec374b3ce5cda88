//! The service itself: TLS without client certificates (nobody has one yet), one gRPC method, bounded.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use mecha_apiserver::Tasks;
use mecha_apiserver::trace::{SpanKind, Tracer};
use mecha_identity::explain_io;
use mecha_proto::sentry::ca_server::{Ca, CaServer};
use mecha_proto::sentry::{SignCertificateRequest, SignCertificateResponse};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::authority::{Names, seconds};
use crate::metrics::Metrics;
use crate::request::key_of;
use crate::roots::Roots;
use crate::workload::{Reason, Refusal, Workloads};

/// Connections that are open at once.
const MAX_CONNECTIONS: usize = 1024;
/// Requests on one connection at once; a sidecar has one.
const MAX_STREAMS: u32 = 8;
/// Longest handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Age at which a connection is asked to end: nobody needs one for long.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// Largest request.
const MAX_MESSAGE: usize = 64 * 1024;
/// Longest time from a request to its signature. A process that was frozen in between signs nothing: what the
/// API server said may be true no more, and the root may be a former one.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);
/// Pause after an error of `accept`, such as too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Answers requests for certificates. Clones are the same.
#[derive(Clone)]
pub(crate) struct Service {
    pub(crate) workloads: Arc<Workloads>,
    pub(crate) roots: Arc<Roots>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) gate: Arc<Gate>,
    pub(crate) tracer: Tracer,
}

/// How many requests are looked at: so many at once, and so many in a second on average.
pub(crate) struct Gate {
    at_once: Semaphore,
    rate: f64,
    /// Requests that may begin now, and when that was counted.
    left: Mutex<(f64, Instant)>,
}

impl Gate {
    pub(crate) fn new(at_once: usize, per_second: u32) -> Self {
        let rate = f64::from(per_second.max(1));
        Self { at_once: Semaphore::new(at_once.max(1)), rate, left: Mutex::new((rate, Instant::now())) }
    }

    async fn enter(&self) -> Result<tokio::sync::SemaphorePermit<'_>, Refusal> {
        let busy =
            || Refusal::new(Reason::Busy, "too many certificates are asked for at once; try again in some seconds");
        {
            let mut left = self.left.lock();
            let now = Instant::now();
            left.0 = (left.0 + now.duration_since(left.1).as_secs_f64() * self.rate).min(self.rate);
            left.1 = now;
            if left.0 < 1.0 {
                return Err(busy());
            }
            left.0 -= 1.0;
        }
        match tokio::time::timeout(REQUEST_LIMIT / 2, self.at_once.acquire()).await {
            Ok(Ok(permit)) => Ok(permit),
            _ => Err(busy()),
        }
    }
}

impl Service {
    async fn sign(&self, request: &SignCertificateRequest) -> Result<SignCertificateResponse, Refusal> {
        let begin = Instant::now();
        let _permit = self.gate.enter().await?;
        let key =
            key_of(&request.certificate_signing_request).map_err(|e| Refusal::new(Reason::Request, e.to_string()))?;
        let id = self.workloads.identify(request).await?;
        if begin.elapsed() > REQUEST_LIMIT {
            return Err(Refusal::new(Reason::Unavailable, "looking the workload up took too long; try again"));
        }
        let names = Names { uri: id.as_str(), dns: &[] };
        let leaf = self.roots.sign(&key, names, SystemTime::now()).map_err(|e| {
            tracing::error!(error = %e, "a certificate could not be signed");
            Refusal::new(Reason::Unavailable, e.to_string())
        })?;
        tracing::debug!(id = id.as_str(), "a certificate was issued");
        Ok(SignCertificateResponse {
            workload_certificate: leaf.pem.into_bytes().into(),
            trust_chain_certificates: vec![self.roots.bundle_pem().into_bytes().into()],
            valid_until: Some(prost_types::Timestamp { seconds: seconds(leaf.not_after), nanos: 0 }),
            ..SignCertificateResponse::default()
        })
    }
}

#[tonic::async_trait]
impl Ca for Service {
    async fn sign_certificate(
        &self,
        request: tonic::Request<SignCertificateRequest>,
    ) -> Result<tonic::Response<SignCertificateResponse>, tonic::Status> {
        let request = request.into_inner();
        // Whoever asks has not proven anything yet, so no context is taken from there.
        let mut span = self.tracer.start(SpanKind::Server, None, || "issue certificate");
        if span.is_recording() {
            span.set("mecha.namespace", request.namespace.clone());
            span.set("mecha.app_id", request.id.clone());
        }
        let answer = match tokio::time::timeout(2 * REQUEST_LIMIT, self.sign(&request)).await {
            Ok(answer) => answer,
            Err(_) => Err(Refusal::new(Reason::Unavailable, "the API server did not answer in time; try again")),
        };
        match answer {
            Ok(response) => {
                self.metrics.issued();
                span.set("mecha.outcome", "issued");
                Ok(tonic::Response::new(response))
            }
            Err(refusal) => {
                self.metrics.refused(refusal.reason);
                span.set("mecha.outcome", refusal.reason.word());
                span.fail("no certificate was issued");
                tracing::info!(
                    app_id = request.id,
                    namespace = request.namespace,
                    reason = refusal.reason.word(),
                    why = %refusal,
                    "no certificate was issued"
                );
                Err(refusal.status())
            }
        }
    }
}

/// Serves until everything is to end, then lets requests that are under way finish.
pub(crate) async fn serve(listener: TcpListener, tls: ServerConfig, service: Service, tasks: Tasks) {
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let stop = tasks.stopping().clone();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = accept(&listener, &connections) => accepted,
        };
        let (stream, permit) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let (acceptor, service, stop) = (acceptor.clone(), service.clone(), stop.clone());
        tasks.spawn("certificate request", async move {
            let _permit = permit;
            converse(stream, &acceptor, service, &stop).await;
        });
    }
}

async fn accept(
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
) -> io::Result<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    // Who waits here waits in the kernel's queue, which is bounded as well.
    let permit = connections.clone().acquire_owned().await.map_err(io::Error::other)?;
    let (stream, _) = listener.accept().await?;
    Ok((stream, permit))
}

async fn converse(stream: TcpStream, acceptor: &TlsAcceptor, service: Service, stop: &CancellationToken) {
    let peer = stream.peer_addr().map(|peer| peer.to_string()).unwrap_or_default();
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(peer, why = explain_io(&error), "a TLS handshake failed"),
        Err(_) => return tracing::debug!(peer, "a TLS handshake took too long"),
    };
    let server = CaServer::new(service).max_decoding_message_size(MAX_MESSAGE);
    let mut http = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new()).max_concurrent_streams(MAX_STREAMS);
    let connection = http.serve_connection(TokioIo::new(stream), TowerToHyperService::new(server));
    tokio::pin!(connection);
    let early = tokio::select! {
        ended = &mut connection => Some(ended),
        () = stop.cancelled() => None,
        () = tokio::time::sleep(CONNECTION_LIFE) => None,
    };
    let ended = match early {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(2 * REQUEST_LIMIT, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(peer, %error, "a connection broke");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

    use super::*;

    #[tokio::test]
    async fn more_requests_than_the_rate_allows_are_told_to_come_back() {
        let gate = Gate::new(10, 3);
        let mut refused = 0;
        for _ in 0..50 {
            refused += usize::from(gate.enter().await.is_err());
        }
        assert!(refused > 0, "50 requests in a moment are more than 3 in a second");
        let refusal = loop {
            if let Err(refusal) = gate.enter().await {
                break refusal;
            }
        };
        assert_eq!(refusal.status().code(), tonic::Code::ResourceExhausted);
    }
}
