//! Steady load from clients without mercy: they keep their connections, never try again, and
//! count every failure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http_body_util::BodyExt;
use hyper::Request;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use mecha_tests::{Answer, Body, HttpAppBuilder, full_body, wait_until};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::MissedTickBehavior;

use crate::support::LIMIT;

/// Clients of one load; each has a connection of its own.
const CLIENTS: u64 = 10;
/// Failures kept; more say nothing new.
const KEPT: usize = 20;

/// Whether a status and a body are what was asked for.
pub(crate) type Right = Box<dyn Fn(u16, &str) -> bool + Send + Sync>;

/// What one client asks next, and whether the answer is right.
pub(crate) struct Ask {
    pub(crate) method: &'static str,
    pub(crate) path: String,
    pub(crate) body: String,
    pub(crate) right: Right,
}

/// Requests at a steady rate.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    began: Instant,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<String>>,
    slowest: Mutex<Duration>,
}

impl Load {
    /// Asks `rate` times a second; `ask` gets a number that no other call has.
    pub(crate) fn start(port: u16, rate: u64, ask: impl Fn(u64) -> Ask + Send + Sync + 'static) -> Self {
        let (shared, ask) = (Arc::new(Shared::default()), Arc::new(ask));
        let mut clients = JoinSet::new();
        for client in 0..CLIENTS {
            let (shared, ask) = (shared.clone(), ask.clone());
            clients.spawn(async move {
                let mut clock = tokio::time::interval(Duration::from_secs_f64(CLIENTS as f64 / rate as f64));
                clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut connection = None;
                let mut number = client;
                while !shared.stop.load(Ordering::Relaxed) {
                    clock.tick().await;
                    let ask = ask(number);
                    number += CLIENTS;
                    let began = Instant::now();
                    let what = format!("{} {}", ask.method, ask.path);
                    let outcome = tokio::time::timeout(LIMIT, once(port, &mut connection, &ask)).await;
                    let outcome = match outcome {
                        Ok(Ok((status, body))) if (ask.right)(status, &body) => Ok(()),
                        Ok(Ok((status, body))) => Err(format!("{status} {body}")),
                        Ok(Err(e)) => Err(e),
                        Err(_) => Err("no answer".to_owned()),
                    };
                    shared.record(&what, outcome, began.elapsed());
                }
            });
        }
        Self { shared, clients, began: Instant::now() }
    }

    /// Waits until this many more calls have succeeded.
    pub(crate) async fn more(&self, calls: u64) {
        let wanted = self.shared.done.load(Ordering::Relaxed) + calls;
        wait_until(LIMIT, "the load to go on", async || {
            self.shared.done.load(Ordering::Relaxed) >= wanted || self.shared.failed.load(Ordering::Relaxed) > 0
        })
        .await;
    }

    /// Ends the load.
    ///
    /// # Panics
    /// When a single call failed.
    pub(crate) async fn end(mut self, what: &str) {
        self.shared.stop.store(true, Ordering::Relaxed);
        while self.clients.join_next().await.is_some() {}
        let (done, failed) = (self.shared.done.load(Ordering::Relaxed), self.shared.failed.load(Ordering::Relaxed));
        let rate = done as f64 / self.began.elapsed().as_secs_f64();
        println!("{what}: {done} calls, {rate:.0}/s, {failed} failed, slowest {:?}", *self.shared.slowest.lock());
        assert_eq!(failed, 0, "{what}: {:#?}", self.shared.failures.lock());
        assert!(done > 0, "{what}: no call was made");
    }
}

impl Shared {
    fn record(&self, what: &str, outcome: Result<(), String>, took: Duration) {
        match outcome {
            Ok(()) => {
                self.done.fetch_add(1, Ordering::Relaxed);
                let mut slowest = self.slowest.lock();
                *slowest = slowest.max(took);
            }
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

async fn once(port: u16, connection: &mut Option<SendRequest<Body>>, ask: &Ask) -> Result<(u16, String), String> {
    if connection.as_ref().is_none_or(SendRequest::is_closed) {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.map_err(|e| format!("connecting: {e}"))?;
        stream.set_nodelay(true).map_err(|e| e.to_string())?;
        let (sender, driver) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| e.to_string())?;
        tokio::spawn(driver);
        *connection = Some(sender);
    }
    let sender = connection.as_mut().unwrap();
    sender.ready().await.map_err(|e| e.to_string())?;
    let request = Request::builder()
        .method(ask.method)
        .uri(&ask.path)
        .header("host", format!("localhost:{port}"))
        .header("content-type", "application/json")
        .body(full_body(ask.body.clone()))
        .unwrap();
    let response = sender.send_request(request).await.map_err(|e| format!("sending: {e}"))?;
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.map_err(|e| format!("reading: {e}"))?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Saves and reads keys of a state store by turns; what was saved is read back by the same client.
pub(crate) fn state(store: &'static str) -> impl Fn(u64) -> Ask + Send + Sync + 'static {
    move |number| {
        let key = format!("k{}", number % (CLIENTS * 20));
        if (number / CLIENTS).is_multiple_of(2) {
            let body = format!(r#"[{{"key":"{key}","value":{number}}}]"#);
            let path = format!("/v1.0/state/{store}");
            Ask { method: "POST", path, body, right: Box::new(|status, _| status == 204) }
        } else {
            let path = format!("/v1.0/state/{store}/{key}");
            // Absent where a store without the data took the place of another.
            Ask { method: "GET", path, body: String::new(), right: Box::new(|status, _| matches!(status, 200 | 204)) }
        }
    }
}

/// Publishers with a ledger, and the app that takes what they publish.
pub(crate) struct Events {
    seen: Arc<Mutex<BTreeMap<u64, u32>>>,
    acked: Arc<Mutex<BTreeSet<u64>>>,
    dead: Arc<AtomicU64>,
}

impl Events {
    /// An app that takes the events of `/events`, and counts those of `/dead`.
    pub(crate) fn app(builder: HttpAppBuilder) -> (Self, HttpAppBuilder) {
        let (seen, dead) = (Arc::new(Mutex::new(BTreeMap::<u64, u32>::new())), Arc::new(AtomicU64::new(0)));
        let (taken, buried) = (seen.clone(), dead.clone());
        let builder = builder
            .on_call("/events", move |call| {
                let id = call.json()["data"]["id"].as_u64().unwrap();
                *taken.lock().entry(id).or_default() += 1;
                async { Answer::status(200) }
            })
            .on_call("/dead", move |_| {
                buried.fetch_add(1, Ordering::Relaxed);
                async { Answer::status(200) }
            });
        (Self { seen, acked: Arc::default(), dead }, builder)
    }

    /// Takes the events of `route`, too.
    pub(crate) fn at(builder: HttpAppBuilder, route: &str) -> (Self, HttpAppBuilder) {
        let seen = Arc::new(Mutex::new(BTreeMap::<u64, u32>::new()));
        let taken = seen.clone();
        let builder = builder.on_call(route, move |call| {
            let id = call.json()["data"]["id"].as_u64().unwrap();
            *taken.lock().entry(id).or_default() += 1;
            async { Answer::status(200) }
        });
        (Self { seen, acked: Arc::default(), dead: Arc::default() }, builder)
    }

    /// Another app that is to get the same ones at `route`.
    pub(crate) fn again_at(&self, builder: HttpAppBuilder, route: &str) -> (Self, HttpAppBuilder) {
        let (mut events, builder) = Self::at(builder, route);
        events.acked = self.acked.clone();
        (events, builder)
    }

    /// An app that takes the events of input binding `name`.
    pub(crate) fn source(builder: HttpAppBuilder, name: &str) -> (Self, HttpAppBuilder) {
        let seen = Arc::new(Mutex::new(BTreeMap::<u64, u32>::new()));
        let taken = seen.clone();
        let builder = builder.on(&format!("OPTIONS /{name}"), Answer::status(200)).on_call(
            &format!("POST /{name}"),
            move |call| {
                let id = call.json()["id"].as_u64().unwrap();
                *taken.lock().entry(id).or_default() += 1;
                async { Answer::status(200) }
            },
        );
        (Self { seen, acked: Arc::default(), dead: Arc::default() }, builder)
    }

    /// Publishes to `topic` at a steady rate.
    pub(crate) fn publish(&self, port: u16, rate: u64, pubsub: &str, topic: &str) -> Load {
        self.send(port, rate, format!("/v1.0/publish/{pubsub}/{topic}"), |id| format!(r#"{{"id":{id}}}"#))
    }

    /// Calls output binding `name` at a steady rate.
    pub(crate) fn create(&self, port: u16, rate: u64, name: &str) -> Load {
        let body = |id| format!(r#"{{"operation":"create","data":{{"id":{id}}}}}"#);
        self.send(port, rate, format!("/v1.0/bindings/{name}"), body)
    }

    fn send(&self, port: u16, rate: u64, path: String, body: impl Fn(u64) -> String + Send + Sync + 'static) -> Load {
        let acked = self.acked.clone();
        Load::start(port, rate, move |id| {
            let acked = acked.clone();
            let right = move |status: u16, _: &str| {
                if status == 204 {
                    acked.lock().insert(id);
                }
                status == 204
            };
            Ask { method: "POST", path: path.clone(), body: body(id), right: Box::new(right) }
        })
    }

    /// How many events the app has.
    pub(crate) fn taken(&self) -> usize {
        self.seen.lock().len()
    }

    /// How many events came again.
    pub(crate) fn again(&self) -> u32 {
        self.seen.lock().values().map(|n| n - 1).sum()
    }

    /// Waits until the app has all that was acknowledged.
    ///
    /// # Panics
    /// When one is lost, or one was buried.
    pub(crate) async fn all_arrived(&self, what: &str) {
        let missing = || {
            let (seen, acked) = (self.seen.lock(), self.acked.lock());
            acked.iter().filter(|id| !seen.contains_key(id)).copied().collect::<Vec<_>>()
        };
        let deadline = Instant::now() + LIMIT;
        while !missing().is_empty() && Instant::now() < deadline {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let lost = missing();
        let again = self.again();
        let acked = self.acked.lock().len();
        println!("{what}: {acked} events acknowledged, {} lost, {again} delivered again", lost.len());
        assert!(lost.is_empty(), "{what}: {} of {acked} lost: {:?}", lost.len(), &lost[..lost.len().min(20)]);
        assert_eq!(self.dead.load(Ordering::Relaxed), 0, "{what}: events in the dead-letter topic");
        assert!(acked > 0, "{what}: nothing was published");
    }
}
