//! Load from clients without mercy: they keep their connections, never try again, and count every failure.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http_body_util::BodyExt;
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use mecha_tests::{Body, full_body};
use parking_lot::Mutex;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::support::LIMIT;

/// Failures kept; more say nothing new.
const KEPT: usize = 20;

/// Clients that run until they are told to stop.
#[derive(Default)]
pub(crate) struct Load {
    shared: Arc<Shared>,
    workers: JoinSet<()>,
}

#[derive(Default)]
pub(crate) struct Shared {
    stop: watch::Sender<bool>,
    done: AtomicU64,
    connections: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<String>>,
}

/// Where an HTTP client connects.
#[derive(Clone)]
pub(crate) enum To {
    Tcp(u16),
    Unix(std::path::PathBuf),
}

/// What an HTTP client asks.
#[derive(Clone)]
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: &'static str,
    pub(crate) status: u16,
}

impl Ask {
    pub(crate) fn get(path: &str, status: u16) -> Self {
        Self { method: "GET", path: path.to_owned(), body: "", status }
    }

    pub(crate) fn post(path: &str, body: &'static str, status: u16) -> Self {
        Self { method: "POST", path: path.to_owned(), body, status }
    }
}

impl Shared {
    pub(crate) fn goes_on(&self) -> bool {
        !*self.stop.borrow()
    }

    /// Waits, but not longer than the load goes on.
    async fn pause(&self, time: Duration) {
        let _ = tokio::time::timeout(time, self.stop.subscribe().wait_for(|stop| *stop)).await;
    }

    pub(crate) fn record(&self, what: &str, outcome: Result<(), String>) {
        match outcome {
            Ok(()) => drop(self.done.fetch_add(1, Ordering::Relaxed)),
            Err(e) => {
                self.failed.fetch_add(1, Ordering::Relaxed);
                let mut failures = self.failures.lock();
                if failures.len() < KEPT {
                    failures.push(format!("{what}: {e}"));
                }
            }
        }
    }
}

impl Load {
    /// Any client: called again and again, with `pause` between the calls.
    pub(crate) fn worker<F, Fut>(&mut self, what: &'static str, pause: Duration, mut call: F)
    where
        F: FnMut(u64) -> Fut + Send + 'static,
        Fut: Future<Output = Result<(), String>> + Send,
    {
        let shared = Arc::clone(&self.shared);
        self.workers.spawn(async move {
            let mut number = 0;
            while shared.goes_on() {
                let outcome = tokio::time::timeout(LIMIT, call(number)).await;
                shared.record(what, outcome.unwrap_or_else(|_| Err("no answer".to_owned())));
                number += 1;
                shared.pause(pause).await;
            }
        });
    }

    /// An HTTP/1.1 client that keeps its connection for as long as the server does.
    pub(crate) fn keep_alive(&mut self, what: &'static str, to: To, pause: Duration, asks: Vec<Ask>) {
        let shared = Arc::clone(&self.shared);
        self.workers.spawn(async move {
            let mut connection: Option<SendRequest<Body>> = None;
            let mut asks = asks.iter().cycle();
            while shared.goes_on() {
                let Some(ask) = asks.next() else { return };
                let outcome = tokio::time::timeout(LIMIT, once(&shared, &to, &mut connection, ask)).await;
                shared.record(what, outcome.unwrap_or_else(|_| Err("no answer".to_owned())));
                shared.pause(pause).await;
            }
        });
    }

    /// A client that connects anew for each call.
    pub(crate) fn fresh(&mut self, what: &'static str, to: To, pause: Duration, ask: Ask) {
        let shared = Arc::clone(&self.shared);
        self.workers.spawn(async move {
            while shared.goes_on() {
                let outcome = tokio::time::timeout(LIMIT, once(&shared, &to, &mut None, &ask)).await;
                shared.record(what, outcome.unwrap_or_else(|_| Err("no answer".to_owned())));
                shared.pause(pause).await;
            }
        });
    }

    /// Calls that succeeded so far.
    pub(crate) fn done(&self) -> u64 {
        self.shared.done.load(Ordering::Relaxed)
    }

    /// Waits until `more` further calls succeeded.
    pub(crate) async fn progress(&self, more: u64) {
        let want = self.done() + more;
        mecha_tests::wait_until(LIMIT, "the load to go on", || async {
            self.done() >= want || self.shared.failed.load(Ordering::Relaxed) > 0
        })
        .await;
    }

    /// Ends the clients. No call may have failed.
    pub(crate) async fn finish(mut self) -> u64 {
        self.shared.stop.send_replace(true);
        while let Some(ended) = self.workers.join_next().await {
            ended.unwrap();
        }
        let (done, failed) = (self.done(), self.shared.failed.load(Ordering::Relaxed));
        let failures = self.shared.failures.lock();
        assert!(failed == 0, "{failed} of {} calls failed:\n{}", done + failed, failures.join("\n"));
        println!("{done} calls over {} HTTP connections, 0 failed", self.shared.connections.load(Ordering::Relaxed));
        done
    }
}

async fn once(shared: &Shared, to: &To, connection: &mut Option<SendRequest<Body>>, ask: &Ask) -> Result<(), String> {
    loop {
        // A server may close a connection that it does not use any more; that fails no call.
        if let Some(sender) = connection
            && sender.ready().await.is_err()
        {
            *connection = None;
        }
        let sender = match connection {
            Some(sender) => sender,
            None => {
                shared.connections.fetch_add(1, Ordering::Relaxed);
                connection.insert(connect(to).await?)
            }
        };
        let request = Request::builder()
            .method(ask.method)
            .uri(&ask.path)
            .header("host", "localhost")
            .header("content-type", "application/json")
            .body(full_body(ask.body))
            .unwrap();
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            // Not a byte of it was written: the connection was closed before.
            Err(e) if e.is_canceled() => {
                *connection = None;
                continue;
            }
            Err(e) => {
                *connection = None;
                return Err(format!("{} {}: {e:?}", ask.method, ask.path));
            }
        };
        let status = response.status().as_u16();
        let close = response.headers().get("connection").is_some_and(|v| v == "close");
        let body = response.into_body().collect().await.map_err(|e| format!("body of {}: {e:?}", ask.path))?.to_bytes();
        if close {
            *connection = None;
        }
        if status != ask.status {
            return Err(format!("{} {}: status {status}, {}", ask.method, ask.path, String::from_utf8_lossy(&body)));
        }
        return Ok(());
    }
}

async fn connect(to: &To) -> Result<SendRequest<Body>, String> {
    match to {
        To::Tcp(port) => {
            let stream = TcpStream::connect(("127.0.0.1", *port)).await.map_err(|e| format!("connect: {e}"))?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            Ok(sender)
        }
        To::Unix(path) => {
            let stream = UnixStream::connect(path).await.map_err(|e| format!("connect: {e}"))?;
            let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            Ok(sender)
        }
    }
}
