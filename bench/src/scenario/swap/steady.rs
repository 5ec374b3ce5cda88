//! Load at a steady rate from clients that never try again, and an app with a ledger.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};

use super::LIMIT;
use super::places::number;

/// Path of the app that takes the events.
pub(super) const ROUTE: &str = "/events";
/// Clients of one load; each has a connection of its own.
const CLIENTS: u32 = 10;
/// Keys of a store that are written and read.
const KEYS: u64 = 200;
/// A call without an answer has failed after this time.
const ANSWER: Duration = Duration::from_secs(60);

/// A thread for the load and the app: whoever edits and looks may wait without holding them up.
pub(super) struct Crowd {
    handle: Handle,
    _stop: oneshot::Sender<()>,
}

impl Crowd {
    pub(super) fn start() -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let handle = runtime.handle().clone();
        // Ends with the value.
        std::thread::spawn(move || runtime.block_on(stopped));
        Ok(Self { handle, _stop: stop })
    }
}

/// A client with a kept connection.
pub(super) struct Caller {
    to: SocketAddr,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl Caller {
    pub(super) fn new(to: SocketAddr) -> Self {
        Self { to, sender: None }
    }

    /// Status and body.
    pub(super) async fn call(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let answer = timeout(ANSWER, self.exchange(method, path, body)).await;
        answer.unwrap_or_else(|_| Err(io::Error::other(format!("{method} {path}: no answer within {ANSWER:?}"))))
    }

    async fn exchange(&mut self, method: &str, path: &str, body: &str) -> io::Result<(u16, String)> {
        let mut sender = match self.sender.take().filter(|sender| !sender.is_closed()) {
            Some(sender) => sender,
            None => {
                let stream = TcpStream::connect(self.to).await?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
                tokio::spawn(connection);
                sender
            }
        };
        sender.ready().await.map_err(io::Error::other)?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.to.to_string())
            .header(CONTENT_TYPE, "application/json")
            .body(Full::from(body.to_owned()))
            .map_err(io::Error::other)?;
        let answer = sender.send_request(request).await.map_err(io::Error::other)?;
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.map_err(io::Error::other)?.to_bytes();
        self.sender = Some(sender);
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

/// What became of the calls of a load.
#[derive(Clone, Debug, Default, Serialize)]
pub(crate) struct Told {
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// The first failure.
    pub(crate) reason: Option<String>,
    pub(crate) slowest_ms: f64,
    pub(crate) per_second: f64,
}

/// Calls at a steady rate.
pub(super) struct Load {
    stop: Arc<AtomicBool>,
    told: Arc<Mutex<Told>>,
    clients: JoinSet<()>,
    began: Instant,
}

/// What is asked: method, path, body.
type Ask = (&'static str, String, String);

impl Load {
    /// Saves and reads keys of a store by turns.
    pub(super) fn calls(crowd: &Crowd, to: SocketAddr, rate: u32, store: &str) -> Self {
        let path = format!("/v1.0/state/{store}");
        let ask = move |n: u64| {
            let key = format!("k{}", n % KEYS);
            if (n / u64::from(CLIENTS)).is_multiple_of(2) {
                ("POST", path.clone(), format!("[{{\"key\":\"{key}\",\"value\":{n}}}]"))
            } else {
                ("GET", format!("{path}/{key}"), String::new())
            }
        };
        Self::start(crowd, to, rate, ask, |_| {})
    }

    /// Publishes numbered events, and notes when each was acknowledged.
    pub(super) fn publishes(crowd: &Crowd, to: SocketAddr, rate: u32, path: String, events: &Events) -> Self {
        let ledger = events.ledger.clone();
        let ask = move |n: u64| ("POST", path.clone(), event(n));
        Self::start(crowd, to, rate, ask, move |n| {
            lock(&ledger.acknowledged).insert(n, Instant::now());
        })
    }

    fn start(
        crowd: &Crowd,
        to: SocketAddr,
        rate: u32,
        ask: impl Fn(u64) -> Ask + Send + Sync + 'static,
        good: impl Fn(u64) + Send + Sync + 'static,
    ) -> Self {
        let (stop, told) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Told::default())));
        let (ask, good) = (Arc::new(ask), Arc::new(good));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (stop, told, ask, good) = (stop.clone(), told.clone(), ask.clone(), good.clone());
            let client = async move {
                let mut caller = Caller::new(to);
                let mut clock = interval(Duration::from_secs(1) * CLIENTS / rate.max(1));
                let mut n = u64::from(client);
                while !stop.load(Ordering::Relaxed) {
                    clock.tick().await;
                    let (method, path, body) = ask(n);
                    let began = Instant::now();
                    let answer = caller.call(method, &path, &body).await;
                    // A key may be absent where a store without the data took the place of another.
                    let answer = match answer {
                        Ok((204, _)) => Ok(()),
                        Ok((200, _)) if method == "GET" => Ok(()),
                        Ok((status, text)) => Err(format!("{method} {path}: {status} {text}")),
                        Err(e) => Err(format!("{method} {path}: {e}")),
                    };
                    if answer.is_ok() {
                        good(n);
                    }
                    lock(&told).note(answer, began.elapsed());
                    n += u64::from(CLIENTS);
                }
            };
            clients.spawn_on(client, &crowd.handle);
        }
        Self { stop, told, clients, began: Instant::now() }
    }

    /// Ends the load when every call has its answer.
    pub(super) async fn end(mut self) -> Told {
        self.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        let mut told = lock(&self.told).clone();
        told.per_second = (told.done + told.failed) as f64 / self.began.elapsed().as_secs_f64();
        told
    }
}

impl Told {
    fn note(&mut self, answer: Result<(), String>, took: Duration) {
        self.slowest_ms = self.slowest_ms.max(took.as_secs_f64() * 1e3);
        match answer {
            Ok(()) => self.done += 1,
            Err(reason) => {
                self.failed += 1;
                self.reason.get_or_insert(reason);
            }
        }
    }
}

/// When events were acknowledged to the publisher, and when they came to the app.
#[derive(Default)]
struct Ledger {
    acknowledged: Mutex<HashMap<u64, Instant>>,
    came: Mutex<HashMap<u64, Instant>>,
    again: AtomicU64,
}

/// The app.
pub(super) struct Events {
    address: SocketAddr,
    ledger: Arc<Ledger>,
}

impl Events {
    pub(super) fn start(crowd: &Crowd) -> io::Result<Self> {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0))?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let ledger = Arc::new(Ledger::default());
        let own = ledger.clone();
        crowd.handle.spawn(async move {
            let Ok(listener) = TcpListener::from_std(listener) else { return };
            while let Ok((stream, _)) = listener.accept().await {
                let _ = stream.set_nodelay(true);
                let ledger = own.clone();
                tokio::spawn(async move {
                    let service = service_fn(move |request| take(request, ledger.clone()));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { address, ledger })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Publishes until the subscription delivers; these events count for nothing.
    pub(super) async fn first(&self, caller: &mut Caller, path: &str) -> io::Result<()> {
        let began = Instant::now();
        while lock(&self.ledger.came).is_empty() {
            let (status, text) = caller.call("POST", path, &event(u64::MAX)).await?;
            if status != 204 || began.elapsed() > LIMIT {
                return Err(io::Error::other(format!("the first event does not arrive: {status} {text}")));
            }
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }

    /// The first of these events to be acknowledged, and the first to come.
    pub(super) fn first_of(&self, events: &[u64]) -> Option<(Instant, Instant)> {
        let first = |map: &Mutex<HashMap<u64, Instant>>| {
            let map = lock(map);
            events.iter().filter_map(|n| map.get(n).copied()).min()
        };
        Some((first(&self.ledger.acknowledged)?, first(&self.ledger.came)?))
    }

    /// Waits until every event that was acknowledged has come; how many have not, and how many came again.
    pub(super) async fn end(self) -> (usize, u64) {
        let began = Instant::now();
        let lost = || {
            let came = lock(&self.ledger.came);
            lock(&self.ledger.acknowledged).keys().filter(|n| !came.contains_key(n)).count()
        };
        while lost() > 0 && began.elapsed() < LIMIT {
            sleep(Duration::from_millis(100)).await;
        }
        (lost(), self.ledger.again.load(Ordering::Relaxed))
    }
}

fn event(n: u64) -> String {
    format!("{{\"id\":{n}}}")
}

async fn take(request: Request<Incoming>, ledger: Arc<Ledger>) -> Result<Response<Empty<Bytes>>, hyper::Error> {
    let mut answer = Response::new(Empty::new());
    if request.uri().path() != ROUTE {
        *answer.status_mut() = StatusCode::NOT_FOUND;
        return Ok(answer);
    }
    let body = request.into_body().collect().await?.to_bytes();
    let now = Instant::now();
    if let Some(n) = number(&body) {
        match lock(&ledger.came).entry(n) {
            Entry::Occupied(_) => _ = ledger.again.fetch_add(u64::from(n != u64::MAX), Ordering::Relaxed),
            Entry::Vacant(first) => _ = first.insert(now),
        }
    }
    Ok(answer)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
