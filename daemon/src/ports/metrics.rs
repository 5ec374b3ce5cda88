//! The metrics port: any path answers the same text.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use mecha_components_api::CancellationToken;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

/// Scrapers are few; more than this is something else.
const MAX_CONNECTIONS: usize = 64;

/// Until a request's headers are there; also how long a connection may idle.
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);

/// A connection is closed after this long whatever it does; scrapers reconnect.
const MAX_CONNECTION_AGE: Duration = Duration::from_secs(3600);

/// What a stop waits for scrapes in progress.
const DRAIN: Duration = Duration::from_secs(1);

/// After a failed accept (no descriptors left), so that it does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves what `scrape` returns until `stop`, then lets scrapes in progress end.
pub async fn serve_metrics(
    listener: TcpListener,
    scrape: Arc<dyn Fn() -> String + Send + Sync>,
    stop: CancellationToken,
) -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        // A slot first: connections over the cap wait in the kernel's backlog.
        let slot = tokio::select! {
            () = stop.cancelled() => break,
            Ok(slot) = Arc::clone(&slots).acquire_owned() => slot,
        };
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let scrape = Arc::clone(&scrape);
                let stop = stop.clone();
                connections.spawn(async move {
                    let _slot = slot;
                    let _ = timeout(MAX_CONNECTION_AGE, connection(stream, scrape, stop)).await;
                });
            }
            Err(error) => {
                tracing::warn!(target: "dapr.runtime", "metrics server cannot accept a connection: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
    let _ = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    Ok(())
}

async fn connection(stream: TcpStream, scrape: Arc<dyn Fn() -> String + Send + Sync>, stop: CancellationToken) {
    let service = service_fn(move |_: Request<Incoming>| {
        let text = scrape();
        async move {
            let mut response = Response::new(Full::new(Bytes::from(text)));
            let kind = HeaderValue::from_static(mecha_core::metrics::CONTENT_TYPE);
            response.headers_mut().insert(CONTENT_TYPE, kind);
            Ok::<_, Infallible>(response)
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .max_buf_size(16 << 10)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        _ = connection.as_mut() => return,
        () = stop.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    async fn ask(port: u16, request: &str) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        timeout(Duration::from_secs(20), stream.read_to_string(&mut answer)).await.unwrap().unwrap();
        answer
    }

    #[tokio::test]
    async fn any_path_answers_and_a_stop_ends_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let stop = CancellationToken::new();
        let server = tokio::spawn(serve_metrics(listener, Arc::new(|| "up 1\n".to_owned()), stop.clone()));
        for path in ["/", "/metrics", "/any/thing?x=y"] {
            let answer = ask(port, &format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
            assert!(answer.contains("content-type: text/plain; version=0.0.4"), "{answer}");
            assert!(answer.ends_with("\r\n\r\nup 1\n"), "{answer}");
        }
        // An idle connection does not hold up the stop.
        let _idle = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stop.cancel();
        timeout(Duration::from_secs(20), server).await.unwrap().unwrap().unwrap();
    }
}
