//! What operators and probes ask a running program: `/healthz`, `/readyz`, `/metrics`.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mecha_apiserver::{Readiness, Tasks};
use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Connections at the same time; a probe and a scraper need two.
const CONNECTIONS: usize = 32;
/// Longest wait for the head of a request.
const HEAD_LIMIT: Duration = Duration::from_secs(5);
/// Longest life of a connection; scrapers open another one.
const CONNECTION_LIMIT: Duration = Duration::from_secs(300);

/// What is served.
#[derive(Clone)]
pub(crate) struct Ops {
    pub(crate) ready: Readiness,
    pub(crate) metrics: Arc<Mutex<Registry>>,
}

/// Serves at `address` in a task of `tasks`; returns where it listens.
///
/// # Errors
/// The address cannot be listened at.
pub(crate) async fn serve(address: SocketAddr, ops: Ops, tasks: &Tasks) -> std::io::Result<SocketAddr> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let inner = tasks.clone();
    tasks.run("ops server", async move {
        let free = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(permit) = free.clone().acquire_owned().await else { return };
            let Ok((stream, _)) = listener.accept().await else {
                // Out of descriptors, say; the next try must not spin.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            };
            let ops = ops.clone();
            inner.run("ops connection", async move {
                let _permit = permit;
                let service =
                    service_fn(move |request| std::future::ready(Ok::<_, Infallible>(answer(&request, &ops))));
                let mut http = hyper::server::conn::http1::Builder::new();
                http.timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
                let connection = http.serve_connection(TokioIo::new(stream), service);
                let _ = tokio::time::timeout(CONNECTION_LIMIT, connection).await;
            });
        }
    });
    Ok(bound)
}

fn answer(request: &Request<Incoming>, ops: &Ops) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
    }
    match request.uri().path() {
        "/healthz" => plain(StatusCode::OK, "ok\n"),
        "/readyz" => match ops.ready.waiting().as_slice() {
            [] => plain(StatusCode::OK, "ok\n"),
            waiting => plain(StatusCode::SERVICE_UNAVAILABLE, &format!("waiting for {}\n", waiting.join(", "))),
        },
        "/metrics" => {
            let mut text = String::new();
            if encode(&mut text, &ops.metrics.lock()).is_err() {
                return plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics cannot be written\n");
            }
            let mut response = plain(StatusCode::OK, &text);
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static(kind));
            response
        }
        _ => plain(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n"),
    }
}

fn plain(status: StatusCode, text: &str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
