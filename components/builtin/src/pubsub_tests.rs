use std::sync::atomic::{AtomicUsize, Ordering};

use mecha_components_api::{Bytes, Metadata};
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore as Gate};

use super::*;

/// An app that writes down what it gets; `gate` lets events through one by one.
struct App {
    seen: Mutex<Vec<(String, Bytes)>>,
    changed: Notify,
    attached: Notify,
    gate: Option<Gate>,
    verdict: Verdict,
    busy: AtomicUsize,
    most_busy: AtomicUsize,
}

impl App {
    fn new(verdict: Verdict, gate: Option<usize>) -> Arc<Self> {
        Arc::new(Self {
            seen: Mutex::default(),
            changed: Notify::new(),
            attached: Notify::new(),
            gate: gate.map(Gate::new),
            verdict,
            busy: AtomicUsize::new(0),
            most_busy: AtomicUsize::new(0),
        })
    }

    async fn saw(&self, n: usize) -> Vec<(String, Bytes)> {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if self.seen.lock().len() >= n {
                    return self.seen.lock().clone();
                }
                changed.await;
            }
        };
        timeout(Duration::from_secs(20), wait).await.expect("not delivered in time")
    }
}

#[async_trait]
impl Deliver for App {
    fn attached(&self) {
        self.attached.notify_one();
    }

    async fn deliver(&self, msg: Delivery) -> Verdict {
        self.most_busy.fetch_max(self.busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        if let Some(gate) = &self.gate {
            gate.acquire().await.unwrap().forget();
        }
        self.seen.lock().push((msg.topic.to_string(), msg.data));
        self.busy.fetch_sub(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        self.verdict
    }
}

async fn bus() -> Arc<dyn PubSub> {
    Box::new(Config).build(&BuildCx::for_app("app", "bus", "/nowhere")).await.unwrap()
}

struct Running {
    app: Arc<App>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<Result<()>>,
}

async fn subscribe(bus: &Arc<dyn PubSub>, topic: &str, app: Arc<App>) -> Running {
    let stop = CancellationToken::new();
    let sub = Subscribe { topic: topic.into(), metadata: Metadata::new(), bulk: None };
    let (bus, to, token) = (bus.clone(), app.clone(), stop.clone());
    let task = tokio::spawn(async move { bus.subscribe(sub, to, token).await });
    app.attached.notified().await;
    Running { app, stop, task }
}

async fn publish(bus: &Arc<dyn PubSub>, topic: &str, data: &str) -> Result<()> {
    let data = Bytes::copy_from_slice(data.as_bytes());
    bus.publish(Publish { topic, data, content_type: None, metadata: &Metadata::new() }).await
}

#[tokio::test]
async fn every_subscriber_gets_every_event_in_order_one_at_a_time() {
    let bus = bus().await;
    let a = subscribe(&bus, "t", App::new(Verdict::Ack, None)).await;
    let b = subscribe(&bus, "t", App::new(Verdict::Ack, None)).await;
    for i in 0..3000 {
        publish(&bus, "t", &i.to_string()).await.unwrap();
    }
    for sub in [a, b] {
        let seen = sub.app.saw(3000).await;
        assert!(seen.iter().enumerate().all(|(i, (_, data))| data == i.to_string().as_bytes()));
        assert_eq!(sub.app.most_busy.load(Ordering::SeqCst), 1);
        sub.stop.cancel();
        sub.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_star_matches_longer_topics_only() {
    let bus = bus().await;
    let star = subscribe(&bus, "orders/*", App::new(Verdict::Ack, None)).await;
    let plain = subscribe(&bus, "orders/new", App::new(Verdict::Ack, None)).await;
    for topic in ["orders/", "orders/new", "orders", "orders/*", "other", "orders/new/x"] {
        publish(&bus, topic, topic).await.unwrap();
    }
    let topics = |seen: Vec<(String, Bytes)>| seen.into_iter().map(|(t, _)| t).collect::<Vec<_>>();
    assert_eq!(topics(star.app.saw(3).await), ["orders/new", "orders/*", "orders/new/x"]);
    assert_eq!(topics(plain.app.saw(1).await), ["orders/new"]);
}

#[tokio::test]
async fn a_failed_event_is_forgotten_and_the_next_one_flows() {
    let bus = bus().await;
    let sub = subscribe(&bus, "t", App::new(Verdict::Retry, None)).await;
    publish(&bus, "t", "1").await.unwrap();
    publish(&bus, "t", "2").await.unwrap();
    assert_eq!(sub.app.saw(2).await.len(), 2);
    sub.stop.cancel();
    sub.task.await.unwrap().unwrap();
    assert_eq!(sub.app.seen.lock().len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_full_queue_holds_publishers_back_and_then_sheds() {
    let bus = bus().await;
    let slow = subscribe(&bus, "t", App::new(Verdict::Ack, Some(0))).await;
    let fast = subscribe(&bus, "t", App::new(Verdict::Ack, None)).await;
    let mut accepted = 0;
    let error = loop {
        match publish(&bus, "t", "x").await {
            Ok(()) => accepted += 1,
            Err(e) => break e,
        }
        assert!(accepted <= QUEUE_EVENTS + 1, "the queue has no end");
    };
    assert_eq!(error.kind(), ErrorKind::Overloaded);
    // Refused means refused by all: no subscriber has an event that the other lacks.
    assert_eq!(fast.app.saw(accepted).await.len(), accepted);
    slow.app.gate.as_ref().unwrap().add_permits(accepted + 1);
    publish(&bus, "t", "again").await.unwrap();
    assert_eq!(slow.app.saw(accepted + 1).await.len(), accepted + 1);
}

#[tokio::test(start_paused = true)]
async fn bytes_are_bounded_and_one_large_event_still_passes() {
    let bus = bus().await;
    let sub = subscribe(&bus, "t", App::new(Verdict::Ack, Some(0))).await;
    let metadata = Metadata::new();
    let large = Bytes::from(vec![0; QUEUE_BYTES as usize + 1]);
    let event = || Publish { topic: "t", data: large.clone(), content_type: None, metadata: &metadata };
    bus.publish(event()).await.unwrap();
    assert_eq!(bus.publish(event()).await.unwrap_err().kind(), ErrorKind::Overloaded);
    sub.app.gate.as_ref().unwrap().add_permits(2);
    bus.publish(event()).await.unwrap();
    assert_eq!(sub.app.saw(2).await.len(), 2);
}

#[tokio::test]
async fn stop_goes_on_with_what_was_accepted_and_takes_nothing_new() {
    let bus = bus().await;
    let sub = subscribe(&bus, "t", App::new(Verdict::Ack, Some(0))).await;
    for i in 0..5 {
        publish(&bus, "t", &i.to_string()).await.unwrap();
    }
    sub.stop.cancel();
    sub.app.gate.as_ref().unwrap().add_permits(5);
    sub.task.await.unwrap().unwrap();
    assert_eq!(sub.app.seen.lock().len(), 5);
    publish(&bus, "t", "late").await.unwrap();
    assert_eq!(sub.app.seen.lock().len(), 5);
}

#[tokio::test]
async fn a_stopping_runtime_ends_the_drain_at_once() {
    let bus = bus().await;
    let sub = subscribe(&bus, "t", App::new(Verdict::Release, Some(0))).await;
    for i in 0..5 {
        publish(&bus, "t", &i.to_string()).await.unwrap();
    }
    sub.stop.cancel();
    sub.app.gate.as_ref().unwrap().add_permits(5);
    sub.task.await.unwrap().unwrap();
    assert!(sub.app.seen.lock().len() < 5);
}

#[tokio::test]
async fn a_dropped_subscription_leaves_no_trace() {
    let bus = bus().await;
    let sub = subscribe(&bus, "t", App::new(Verdict::Ack, Some(0))).await;
    sub.task.abort();
    assert!(sub.task.await.unwrap_err().is_cancelled());
    for i in 0..QUEUE_EVENTS * 2 {
        publish(&bus, "t", &i.to_string()).await.unwrap();
    }
    assert!(format!("{bus:?}").contains("subscribers: 0"));
}
