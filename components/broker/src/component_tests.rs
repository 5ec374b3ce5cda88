//! The component as the runtime uses it, several instances on one folder.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures_util::FutureExt;
use mecha_components_api::{
    BuildCx, Bytes, CancellationToken, Deliver, Delivery, ErrorKind, Metadata, PubSub, Publish, Registry, Subscribe,
    SystemClock, Verdict, async_trait,
};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::client::Store;
use crate::clock::Clocks;
use crate::config::BrokerConfig;
use crate::group::{Claim, Claimed};
use crate::log::Record;
use crate::schema::Folder;

const PATIENCE: Duration = Duration::from_secs(30);

fn md(pairs: &[(&str, &str)]) -> Metadata {
    pairs.iter().copied().collect()
}

async fn broker(home: &Path, app: &str, metadata: &Metadata) -> Arc<dyn PubSub> {
    let mut registry = Registry::new();
    crate::register(&mut registry);
    let prepared = (registry.pubsub[0].prepare)(metadata, "v1").unwrap();
    prepared.build(&BuildCx::for_app(app, "pubsub", home)).await.unwrap()
}

async fn publish(broker: &Arc<dyn PubSub>, topic: &str, data: &str) {
    publish_with(broker, topic, data, &Metadata::new()).await.unwrap();
}

async fn publish_with(
    broker: &Arc<dyn PubSub>,
    topic: &str,
    data: &str,
    metadata: &Metadata,
) -> mecha_components_api::Result<()> {
    let data = Bytes::copy_from_slice(data.as_bytes());
    broker.publish(Publish { topic, data, content_type: Some("text/plain"), metadata }).await
}

type Script = Box<dyn Fn(&Delivery) -> Verdict + Send + Sync>;

/// An app: notes what it gets, answers by script.
struct App {
    script: Script,
    got: Mutex<Vec<Delivery>>,
    changed: Notify,
    attached: AtomicUsize,
    running: AtomicUsize,
    most: AtomicUsize,
    hold: Option<Duration>,
}

impl App {
    fn new(script: impl Fn(&Delivery) -> Verdict + Send + Sync + 'static) -> Arc<Self> {
        Self::slow(None, script)
    }

    fn slow(hold: Option<Duration>, script: impl Fn(&Delivery) -> Verdict + Send + Sync + 'static) -> Arc<Self> {
        Arc::new(Self {
            script: Box::new(script),
            got: Mutex::default(),
            changed: Notify::new(),
            attached: AtomicUsize::new(0),
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            hold,
        })
    }

    fn texts(&self) -> Vec<String> {
        self.got.lock().iter().map(|d| String::from_utf8_lossy(&d.data).into_owned()).collect()
    }

    async fn until(&self, what: &str, done: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if done(self) {
                    return;
                }
                changed.await;
            }
        };
        timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("{what}; got {:?}", self.texts()));
    }
}

#[async_trait]
impl Deliver for App {
    fn attached(&self) {
        self.attached.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        let n = self.running.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(n, Ordering::SeqCst);
        let verdict = (self.script)(&msg);
        self.got.lock().push(msg);
        self.changed.notify_waiters();
        if let Some(hold) = self.hold {
            tokio::time::sleep(hold).await;
        }
        self.running.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        verdict
    }
}

struct Subscribed {
    stop: CancellationToken,
    task: JoinHandle<mecha_components_api::Result<()>>,
}

impl Subscribed {
    async fn end(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.task).await.unwrap().unwrap().unwrap();
    }
}

fn subscribe(broker: &Arc<dyn PubSub>, topic: &str, metadata: Metadata, app: &Arc<App>) -> Subscribed {
    let stop = CancellationToken::new();
    let sub = Subscribe { topic: topic.to_owned(), metadata, bulk: None };
    let (broker, app, token) = (broker.clone(), app.clone(), stop.clone());
    Subscribed { stop, task: tokio::spawn(async move { broker.subscribe(sub, app, token).await }) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_group_gets_all_and_its_members_share() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let (a1, a2, b) = (
        broker(dir.path(), "a", &none).await,
        broker(dir.path(), "a", &none).await,
        broker(dir.path(), "b", &none).await,
    );
    let app = App::new(|_| Verdict::Ack);
    let other = App::new(|_| Verdict::Ack);
    let subs = [
        subscribe(&a1, "t", none.clone(), &app),
        subscribe(&a2, "t", none.clone(), &app),
        subscribe(&b, "t", none.clone(), &other),
    ];
    let want: Vec<String> = (0..200).map(|i| format!("{i:03}")).collect();
    for text in &want {
        publish(&b, "t", text).await;
    }
    for app in [&app, &other] {
        app.until("all", |a| a.got.lock().len() >= 200).await;
        let mut got = app.texts();
        got.sort();
        assert_eq!(got, want, "once per group without faults");
    }
    for sub in subs {
        sub.end().await;
    }
    let stats = crate::stats(&dir.path().join("data/broker")).unwrap();
    assert_eq!((stats.published, stats.topics.len()), (200, 1));
    assert_eq!(stats.topics[0].groups.iter().map(|g| (&g.name[..], g.lag)).collect::<Vec<_>>(), [("a", 0), ("b", 0)]);
    for broker in [a1, a2, b] {
        broker.close().await;
    }
    let left = std::fs::read_dir(dir.path().join("data/broker/owners")).unwrap().count()
        + std::fs::read_dir(dir.path().join("data/broker/wake")).unwrap().count();
    assert_eq!(left, 0, "an orderly end leaves no locks and no sockets");
}

#[tokio::test]
async fn published_before_the_subscriber_and_across_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let first = broker(dir.path(), "a", &none).await;
    publish(&first, "t", "one").await;
    first.close().await;
    let e = publish_with(&first, "t", "x", &none).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);

    let again = broker(dir.path(), "a", &none).await;
    let app = App::new(|_| Verdict::Ack);
    let sub = subscribe(&again, "t", none.clone(), &app);
    app.until("the early one", |a| a.texts() == ["one"]).await;
    sub.end().await;
    publish(&again, "t", "two").await;
    let sub = subscribe(&again, "t", none.clone(), &app);
    app.until("only the new one", |a| a.texts() == ["one", "two"]).await;
    sub.end().await;
}

#[tokio::test]
async fn metadata_and_content_type_travel_along() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path(), "a", &Metadata::new()).await;
    let app = App::new(|_| Verdict::Ack);
    let sub = subscribe(&broker, "Größe/*#", Metadata::new(), &app);
    publish_with(&broker, "Größe/*#", "", &md(&[("Key", "välue\"\n"), ("ttlInSeconds", "100")])).await.unwrap();
    app.until("it", |a| a.got.lock().len() == 1).await;
    let got = app.got.lock()[0].clone();
    assert_eq!((&*got.topic, got.data.len(), got.content_type.as_deref()), ("Größe/*#", 0, Some("text/plain")));
    assert_eq!(got.metadata.get("Key"), Some("välue\"\n"));
    assert_eq!(got.metadata.get("ttlInSeconds"), None);
    assert_eq!((got.metadata.get("mecha.offset"), got.metadata.get("mecha.attempt")), (Some("1"), Some("1")));
    sub.end().await;
}

#[tokio::test]
async fn a_failed_message_comes_again_after_growing_pauses_and_does_not_block_others() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path(), "a", &Metadata::new()).await;
    let app = App::new(|d| match (&d.data[..], d.metadata.get("mecha.attempt")) {
        (b"bad", Some("1" | "2" | "3")) => Verdict::Retry,
        _ => Verdict::Ack,
    });
    let sub = subscribe(&broker, "t", Metadata::new(), &app);
    let since = std::time::Instant::now();
    publish(&broker, "t", "bad").await;
    publish(&broker, "t", "good").await;
    app.until("four attempts", |a| a.texts().iter().filter(|t| *t == "bad").count() == 4).await;
    // 100 + 200 + 400 ms less jitter.
    assert!(since.elapsed() >= Duration::from_millis(560), "{:?}", since.elapsed());
    assert!(app.texts().iter().position(|t| t == "good").unwrap() <= 1);
    sub.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_at_a_time_keeps_the_order_through_failures_and_over_members() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let (a1, a2) = (broker(dir.path(), "a", &none).await, broker(dir.path(), "a", &none).await);
    let app = App::new(|d| match (&d.data[..], d.metadata.get("mecha.attempt")) {
        (b"07" | b"13", Some("1")) => Verdict::Retry,
        _ => Verdict::Ack,
    });
    let single = md(&[("concurrency", "single")]);
    let subs = [subscribe(&a1, "t", single.clone(), &app), subscribe(&a2, "t", single, &app)];
    let mut want: Vec<String> = (0..30).map(|i| format!("{i:02}")).collect();
    for text in &want {
        publish(&a1, "t", text).await;
    }
    want.insert(14, "13".to_owned());
    want.insert(8, "07".to_owned());
    app.until("all", |a| a.got.lock().len() >= want.len()).await;
    assert_eq!(app.texts(), want);
    assert_eq!(app.most.load(Ordering::SeqCst), 1);
    for sub in subs {
        sub.end().await;
    }
}

#[tokio::test]
async fn no_more_than_the_limit_are_in_flight() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path(), "a", &md(&[("maxInFlight", "3")])).await;
    for _ in 0..12 {
        publish(&broker, "t", "x").await;
    }
    let app = App::slow(Some(Duration::from_millis(20)), |_| Verdict::Ack);
    let sub = subscribe(&broker, "t", Metadata::new(), &app);
    app.until("all", |a| a.got.lock().len() == 12).await;
    sub.end().await;
    assert_eq!(app.most.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_handler_keeps_its_message() {
    let dir = tempfile::tempdir().unwrap();
    let short = md(&[("ackWait", "1s")]);
    let (a1, a2) = (broker(dir.path(), "a", &short).await, broker(dir.path(), "a", &short).await);
    let app = App::slow(Some(Duration::from_millis(3500)), |_| Verdict::Ack);
    let subs = [subscribe(&a1, "t", Metadata::new(), &app), subscribe(&a2, "t", Metadata::new(), &app)];
    publish(&a1, "t", "x").await;
    app.until("its end", |a| !a.got.lock().is_empty() && a.running.load(Ordering::SeqCst) == 0).await;
    for sub in subs {
        sub.end().await;
    }
    assert_eq!(app.texts(), ["x"]);
    assert_eq!(crate::stats(&dir.path().join("data/broker")).unwrap().topics[0].groups[0].lag, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_released_at_shutdown_goes_to_a_sibling_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let (a1, a2) = (broker(dir.path(), "a", &none).await, broker(dir.path(), "a", &none).await);
    let leaving = App::slow(Some(Duration::from_millis(50)), |_| Verdict::Release);
    let sub = subscribe(&a1, "t", none.clone(), &leaving);
    publish(&a1, "t", "x").await;
    leaving.until("the first delivery", |a| a.got.lock().len() == 1).await;
    sub.end().await;
    let staying = App::new(|_| Verdict::Ack);
    let sub = subscribe(&a2, "t", none.clone(), &staying);
    staying.until("the second delivery", |a| a.got.lock().len() == 1).await;
    assert_eq!(staying.got.lock()[0].metadata.get("mecha.attempt"), Some("1"), "a release is no failed attempt");
    sub.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_subscription_gives_its_messages_back() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let broker = broker(dir.path(), "a", &none).await;
    let stuck = App::slow(Some(Duration::from_secs(3600)), |_| Verdict::Ack);
    let sub = subscribe(&broker, "t", none.clone(), &stuck);
    publish(&broker, "t", "x").await;
    stuck.until("the first delivery", |a| a.got.lock().len() == 1).await;
    sub.task.abort();
    let app = App::new(|_| Verdict::Ack);
    let sub = subscribe(&broker, "t", none.clone(), &app);
    app.until("the second delivery", |a| a.got.lock().len() == 1).await;
    sub.end().await;
}

#[tokio::test]
async fn what_a_dropped_claim_took_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let config = BrokerConfig::decode(&Metadata::new()).unwrap();
    let clocks = Clocks::new(Arc::new(SystemClock));
    let store = Store::open(Folder::new(dir.path()), clocks, config.limits).await.unwrap();
    let at = store.attach("t".into(), "g".into(), &config.consume).await.unwrap();
    let record = Record { topic: "t".into(), data: Bytes::new(), content_type: None, metadata: None, ttl: None };
    store.publish(vec![record]).await.unwrap();
    let claim = Claim { at, max: 1, single: false, lease: Duration::from_secs(3600) };
    {
        let mut claiming = pin!(store.claim(claim));
        assert!(claiming.as_mut().now_or_never().is_none(), "the writer has not answered yet");
        let since = std::time::Instant::now();
        while crate::stats(dir.path()).unwrap().topics[0].groups[0].in_flight == 0 {
            assert!(since.elapsed() < PATIENCE);
        }
        // A further request passes through the writer after the first one was answered.
        store.ping().await.unwrap();
    }
    store.ping().await.unwrap();
    match store.claim(claim).await.unwrap() {
        Claimed::Messages { taken, .. } => assert_eq!(taken.len(), 1),
        Claimed::Gone => panic!("gone"),
    }
    store.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sleeping_subscriber_hears_of_news_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let (a, b) = (broker(dir.path(), "a", &none).await, broker(dir.path(), "b", &none).await);
    let app = App::new(|_| Verdict::Ack);
    let sub = subscribe(&a, "t", none.clone(), &app);
    app.until("the subscription", |a| a.attached.load(Ordering::SeqCst) == 1).await;
    let since = std::time::Instant::now();
    for n in 1..=12 {
        publish(&b, "t", "x").await;
        app.until("it", |a| a.got.lock().len() == n).await;
    }
    // Polling alone takes about a second each.
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
    sub.end().await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let broker = broker(dir.path(), "a", &md(&[("maxMessageBytes", "8")])).await;
    let kind = |r: mecha_components_api::Result<()>| r.unwrap_err().kind();
    assert_eq!(kind(publish_with(&broker, "", "x", &none).await), ErrorKind::InvalidArgument);
    assert_eq!(kind(publish_with(&broker, &"t".repeat(256), "x", &none).await), ErrorKind::InvalidArgument);
    assert_eq!(kind(publish_with(&broker, "t", "123456789", &none).await), ErrorKind::TooLarge);
    assert_eq!(
        kind(publish_with(&broker, "t", "x", &md(&[("ttlInSeconds", "soon")])).await),
        ErrorKind::InvalidArgument
    );
    let app = App::new(|_| Verdict::Ack);
    let sub = Subscribe { topic: "t".into(), metadata: md(&[("maxInFlight", "many")]), bulk: None };
    let e = broker.subscribe(sub, app, CancellationToken::new()).await.unwrap_err();
    assert!(e.kind() == ErrorKind::InvalidArgument && e.to_string().contains("maxInFlight"), "{e}");
    publish(&broker, "t", "12345678").await;
}

#[tokio::test]
async fn a_batch_is_stored_but_for_its_bad_entries() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path(), "a", &md(&[("maxMessageBytes", "8")])).await;
    let none = Metadata::new();
    let entry = |topic, text: &'static str| Publish {
        topic,
        data: Bytes::from_static(text.as_bytes()),
        content_type: None,
        metadata: &none,
    };
    let batch = vec![entry("t", "1"), entry("t", "way too long"), entry("", "2"), entry("u", "3"), entry("t", "4")];
    let failed = broker.bulk().unwrap().publish_many(batch).await.unwrap();
    assert_eq!(
        failed.iter().map(|f| (f.index, f.error.kind())).collect::<Vec<_>>(),
        [(1, ErrorKind::TooLarge), (2, ErrorKind::InvalidArgument)]
    );
    let app = App::new(|_| Verdict::Ack);
    let sub = subscribe(&broker, "t", none.clone(), &app);
    app.until("both", |a| a.texts() == ["1", "4"]).await;
    sub.end().await;
}

#[tokio::test]
async fn a_full_broker_says_so_and_goes_on_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let broker = broker(dir.path(), "a", &md(&[("maxBytes", "1Mi")])).await;
    let none = Metadata::new();
    let text = "x".repeat(300 << 10);
    let app = App::new(|_| Verdict::Ack);
    for _ in 0..3 {
        publish(&broker, "t", &text).await;
    }
    let e = publish_with(&broker, "t", &text, &none).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Overloaded);
    assert!(e.to_string().contains("maxBytes"), "{e}");
    let sub = subscribe(&broker, "t", none.clone(), &app);
    app.until("the first three", |a| a.got.lock().len() == 3).await;
    let again = async {
        while publish_with(&broker, "t", &text, &none).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    app.until("the fourth", |a| a.got.lock().len() == 4).await;
    sub.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_folder_heals() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let broker = broker(dir.path(), "a", &none).await;
    let app = App::new(|_| Verdict::Ack);
    let sub = subscribe(&broker, "t", none.clone(), &app);
    publish(&broker, "t", "before").await;
    app.until("the first", |a| a.got.lock().len() == 1).await;
    std::fs::remove_dir_all(dir.path().join("data")).unwrap();
    app.until("a new group", |a| a.attached.load(Ordering::SeqCst) == 2).await;
    publish(&broker, "t", "after").await;
    app.until("the second", |a| a.texts() == ["before", "after"]).await;
    sub.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_file_is_an_error_and_the_subscription_survives_it() {
    let dir = tempfile::tempdir().unwrap();
    let none = Metadata::new();
    let (a, b) = (broker(dir.path(), "a", &none).await, broker(dir.path(), "b", &none).await);
    let app = App::new(|_| Verdict::Ack);
    let sub = subscribe(&a, "t", none.clone(), &app);
    publish(&b, "t", "before").await;
    app.until("the first", |a| a.got.lock().len() == 1).await;
    let path = dir.path().join("data/broker/broker.db");
    let raw = rusqlite::Connection::open(&path).unwrap();
    raw.busy_timeout(PATIENCE).unwrap();
    raw.execute_batch("ALTER TABLE message RENAME TO gone").unwrap();
    let e = publish_with(&b, "t", "x", &none).await.unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable, "{e}");
    raw.execute_batch("ALTER TABLE gone RENAME TO message").unwrap();
    let again = async {
        while publish_with(&b, "t", "after", &none).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, again).await.unwrap();
    app.until("the second", |a| a.texts() == ["before", "after"]).await;
    sub.end().await;
}
