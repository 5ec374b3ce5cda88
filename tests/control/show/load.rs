//! Apps under steady load: each publishes to the next one and writes to its own store, and a ledger keeps what was
//! acknowledged to it. Callers never try again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use mecha_tests::{Answer, EventLedger, Http, HttpApp, Reply, wait_until};
use parking_lot::Mutex;
use serde_json::json;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::platform::{BROKER, PATIENCE, app_id, store};

/// Failures kept; more say nothing new.
const KEPT: usize = 20;

/// The apps' own side: one server of the test for each, which takes the events of its topic.
pub(crate) struct Apps {
    pub(crate) servers: Vec<HttpApp>,
    ledger: Arc<EventLedger>,
}

impl Apps {
    pub(crate) async fn start(count: usize) -> Self {
        let ledger = Arc::new(EventLedger::new());
        let mut servers = Vec::with_capacity(count);
        for number in 0..count {
            let taken = ledger.clone();
            let app = HttpApp::builder()
                .subscribe(&json!([{"pubsubname": BROKER, "topic": topic(number), "route": "/events"}]))
                .on_call("POST /events", move |call| {
                    let id = call.json()["data"]["id"].as_str().unwrap_or("(no id)").to_owned();
                    taken.delivered(&id, true);
                    async { Answer::status(200) }
                });
            servers.push(app.start().await);
        }
        Self { servers, ledger }
    }

    /// Every app begins to publish and to write, `rate` times a second each, through its sidecar's port.
    pub(crate) fn load(&self, ports: &[u16], rate: u32) -> Load {
        let shared = Arc::new(Shared::default());
        let mut clients = JoinSet::new();
        let writers: Vec<_> = (0..ports.len()).map(|_| Arc::new(Mutex::new(Book::default()))).collect();
        for (number, port) in ports.iter().enumerate() {
            let next = topic((number + 1) % ports.len());
            let publisher = Caller { shared: shared.clone(), api: Http::tcp(*port), number };
            clients.spawn(publisher.publish(self.ledger.clone(), next, rate));
            let writer = Caller { shared: shared.clone(), api: Http::tcp(*port), number };
            clients.spawn(writer.write(writers[number].clone(), rate));
        }
        Load { shared, clients, events: self.ledger.clone(), books: writers }
    }
}

/// What app `number` takes; its neighbour publishes to it.
fn topic(number: usize) -> String {
    format!("to-{}", app_id(number))
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    published: AtomicU64,
    written: AtomicU64,
    failed: Mutex<(u64, Vec<String>)>,
}

impl Shared {
    fn failed(&self, what: String) {
        let mut failed = self.failed.lock();
        failed.0 += 1;
        if failed.1.len() < KEPT {
            failed.1.push(what);
        }
    }
}

/// What one app was told about its store. Keys are numbers, in the order in which they were written.
#[derive(Default)]
struct Book {
    acked: Vec<u64>,
    /// Keys that were not there right after the write was acknowledged.
    missed: Vec<u64>,
}

/// One client of one sidecar, with one call at a time.
struct Caller {
    shared: Arc<Shared>,
    api: Http,
    number: usize,
}

impl Caller {
    async fn publish(self, ledger: Arc<EventLedger>, topic: String, rate: u32) {
        let mut clock = clock(rate);
        for number in 0u64.. {
            clock.tick().await;
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let id = format!("{}/{number}", app_id(self.number));
            let ticket = ledger.publish(&id);
            let path = format!("/v1.0/publish/{BROKER}/{topic}");
            if self.ask(self.api.post_json(path, &json!({"id": id})), 204).await.is_some() {
                ledger.acked(ticket);
                self.shared.published.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Writes a new key and reads it back.
    async fn write(self, book: Arc<Mutex<Book>>, rate: u32) {
        let path = format!("/v1.0/state/{}", store(self.number));
        let mut clock = clock(rate);
        for key in 0u64.. {
            clock.tick().await;
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            let save = self.api.post_json(&path, &json!([{"key": key.to_string(), "value": key}]));
            if self.ask(save, 204).await.is_none() {
                continue;
            }
            book.lock().acked.push(key);
            let read = timeout(PATIENCE, self.api.get(format!("{path}/{key}")).try_send()).await;
            match read {
                Ok(Ok(reply)) if reply.status == 200 && reply.text() == key.to_string() => {}
                Ok(Ok(reply)) if reply.status == 204 => book.lock().missed.push(key),
                other => self.shared.failed(format!("{} reads {key}: {other:?}", app_id(self.number))),
            }
            self.shared.written.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn ask(&self, request: mecha_tests::Request, right: u16) -> Option<Reply> {
        let what = format!("{}: {request:?}", app_id(self.number));
        match timeout(PATIENCE, request.try_send()).await {
            Ok(Ok(reply)) if reply.status == right => Some(reply),
            other => {
                self.shared.failed(format!("{what}: {other:?}"));
                None
            }
        }
    }
}

fn clock(rate: u32) -> tokio::time::Interval {
    let mut clock = interval(Duration::from_secs(1) / rate);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}

/// Load that goes on until it is ended.
pub(crate) struct Load {
    shared: Arc<Shared>,
    clients: JoinSet<()>,
    events: Arc<EventLedger>,
    books: Vec<Arc<Mutex<Book>>>,
}

impl Load {
    /// Waits until every app has published and written this many times more, on average.
    pub(crate) async fn goes_on(&self, times: u64) {
        let apps = self.books.len() as u64;
        let counts = || (self.shared.published.load(Ordering::Relaxed), self.shared.written.load(Ordering::Relaxed));
        let (published, written) = counts();
        wait_until(PATIENCE, "the load to go on", async || {
            let now = counts();
            let more = now.0 >= published + times * apps && now.1 >= written + times * apps;
            more || self.shared.failed.lock().0 > 0
        })
        .await;
        self.nothing_failed();
    }

    /// # Panics
    /// When a call failed so far.
    #[track_caller]
    pub(crate) fn nothing_failed(&self) {
        let failed = self.shared.failed.lock();
        assert_eq!(failed.0, 0, "failed calls: {:#?}", failed.1);
    }

    /// Ends the load, and waits until every acknowledged event has been taken.
    ///
    /// # Panics
    /// When a call failed or an event was lost.
    pub(crate) async fn end(mut self) -> Told {
        self.shared.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.clients.join_next().await {
            ended.unwrap();
        }
        self.nothing_failed();
        let events = self.events.clone();
        wait_until(PATIENCE, "every acknowledged event to be taken", async || events.missing() == 0).await;
        let verdict = self.events.verdict();
        println!("events: {verdict}");
        verdict.assert_kept();
        let books = self.books.iter().map(|book| std::mem::take(&mut *book.lock())).collect();
        let told = Told { books };
        println!("writes: {} acknowledged, {} not there right after", told.acked(), told.missed());
        told
    }
}

/// What the apps were told about their stores.
pub(crate) struct Told {
    books: Vec<Book>,
}

impl Told {
    fn acked(&self) -> usize {
        self.books.iter().map(|book| book.acked.len()).sum()
    }

    fn missed(&self) -> usize {
        self.books.iter().map(|book| book.missed.len()).sum()
    }

    /// Everything that was acknowledged to app `number` is in the store that was its own at that time: the first part
    /// in `old`, the rest in `new`, and a key that was missed is the last one of the first part.
    ///
    /// # Panics
    /// With what is lost.
    #[track_caller]
    pub(crate) fn is_in(&self, number: usize, old: &BTreeSet<u64>, new: &BTreeSet<u64>) {
        let (book, app) = (&self.books[number], app_id(number));
        let lost: Vec<_> = book.acked.iter().filter(|key| !old.contains(key) && !new.contains(key)).collect();
        assert!(lost.is_empty(), "{app}: of {} writes these are nowhere: {lost:?}", book.acked.len());
        let last = book.acked.iter().filter(|key| old.contains(key)).max();
        let first = book.acked.iter().filter(|key| new.contains(key)).min();
        assert!(last.is_some() && first.is_some() && last < first, "{app} wrote to the old store after the new one");
        let between: Vec<_> = book.missed.iter().filter(|key| Some(*key) != last).collect();
        assert!(between.is_empty(), "{app} did not find what it had just written: {between:?}, last old {last:?}");
    }
}
