use std::sync::atomic::Ordering;
use std::time::Duration;

use mecha_components_api::{CancellationToken, Error, PubSubCaps, Verdict};
use tokio::sync::Semaphore;

use super::*;
use crate::app::{AppError, AppVerdict};
use crate::cx::{Cx, Front};
use crate::pubsub::testing::*;
use crate::pubsub::{StreamRequest, ask_app};
use crate::swap::{Cut, Drained, Patience};

const LIMIT: Duration = Duration::from_secs(10);

fn sub(topic: &str, path: &str) -> AppSubscription {
    AppSubscription { topic: topic.into(), default_route: Some(path.into()), ..orders() }
}

/// Reads what was on `old` until nothing came for `idle`, `limit` at most.
async fn finish(rig: &Rig, swap: Swap, old: &Arc<FakeBroker>, idle: Duration, limit: Duration) -> Drained {
    let patience = Patience { stalled: limit, whole: limit };
    swap.drain(Some(rig.handle(old.clone())), Leave::WhenIdle(idle, patience), LIMIT, &CancellationToken::new()).await
}

fn emptied(drained: Drained) -> bool {
    drained.emptied == Some(true) && drained.failed == 0 && drained.cut.is_none()
}

async fn rig() -> Rig {
    Rig::new(Setup::default()).await
}

#[tokio::test(start_paused = true)]
async fn a_start_waits_until_the_brokers_have_it() {
    let rig = rig().await;
    rig.api.manager().start(vec![sub("a", "/a")], vec![sub("b", "/b")]).await;
    let mut topics = rig.broker.topics();
    topics.sort();
    assert_eq!(topics, ["a", "b"]);
    let sources: Vec<_> = rig.api.subscriptions().into_iter().map(|(s, source)| (s.topic, source)).collect();
    assert_eq!(sources, [("b".into(), Source::Programmatic), ("a".into(), Source::Declarative)]);
}

#[tokio::test(start_paused = true)]
async fn what_fails_to_start_is_tried_for_ever_and_others_go_on() {
    let rig = rig().await;
    rig.broker.start_failures.store(20, Ordering::SeqCst);
    let started = tokio::time::Instant::now();
    rig.api.manager().start(Vec::new(), vec![sub("a", "/a")]).await;
    assert!(started.elapsed() <= Duration::from_secs(5));
    rig.broker.wait_for_subscribers(1).await;
    // 20 failures with pauses of 5 s at most.
    assert!(started.elapsed() <= Duration::from_secs(100), "{:?}", started.elapsed());
    assert!(started.elapsed() >= Duration::from_secs(30), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_component_that_panics_is_started_again() {
    let rig = rig().await;
    rig.broker.panics.store(1, Ordering::SeqCst);
    rig.api.manager().start(Vec::new(), vec![sub("a", "/a")]).await;
    rig.broker.wait_for_subscribers(1).await;
    assert_eq!(rig.broker.deliver("a", b"{}").await, Verdict::Ack);
}

#[tokio::test(start_paused = true)]
async fn scopes_and_unknown_components_leave_one_out() {
    let rig = Rig::new(Setup { scopes: vec![("allowedTopics", "a")], ..Setup::default() }).await;
    let other = AppSubscription { pubsub: "later".into(), ..sub("a", "/x") };
    rig.api.manager().start(Vec::new(), vec![other, sub("a", "/a"), sub("b", "/b")]).await;
    assert_eq!(rig.broker.topics(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_component_that_comes_later_is_subscribed_then() {
    let rig = rig().await;
    let handle = rig.store.edit(|s| s.pubsub.remove("bus")).await.unwrap();
    rig.api.manager().start(Vec::new(), vec![sub("a", "/a")]).await;
    assert!(rig.broker.topics().is_empty());
    let swap = rig.api.manager().replace(handle, LIMIT).await;
    assert!(swap.attached());
    assert_eq!(swap.drain(None, Leave::AtOnce(LIMIT), LIMIT, &CancellationToken::new()).await.emptied, None);
    assert_eq!(rig.broker.topics(), ["a"]);
}

#[tokio::test(start_paused = true)]
async fn documents_that_change_start_before_the_old_ones_stop() {
    let rig = rig().await;
    let manager = rig.api.manager();
    manager.start(vec![sub("a", "/old"), sub("b", "/b"), sub("c", "/c")], Vec::new()).await;
    manager.set_declarative(vec![sub("a", "/new"), sub("b", "/b"), sub("d", "/d")]).await;
    eventually("the change", || {
        let mut topics = rig.broker.topics();
        topics.sort();
        topics == ["a", "b", "d"]
    })
    .await;
    assert_eq!(rig.broker.deliver("a", b"{}").await, Verdict::Ack);
    assert_eq!(rig.app.seen.lock()[0].path, "/new");
}

#[tokio::test(start_paused = true)]
async fn a_pause_stops_fetching_and_costs_no_event() {
    let rig = rig().await;
    let manager = rig.api.manager().clone();
    manager.start(Vec::new(), vec![AppSubscription { dead_letter_topic: Some("poison".into()), ..orders() }]).await;
    let stream = StreamRequest {
        pubsub: "bus".into(),
        topic: "streamed".into(),
        metadata: Default::default(),
        dead_letter_topic: None,
    };
    let _stream = rig.api.stream(&Cx::new(Front::Grpc), stream).await.unwrap();
    let gate = Arc::new(Semaphore::new(0));
    let open = gate.clone();
    rig.app.on_event(move |_| {
        let gate = gate.clone();
        async move {
            gate.acquire().await.unwrap().forget();
            Err(AppError::transport(Error::unavailable("connection refused")))
        }
    });
    let pause = async {
        rig.app.wait_for_calls(1).await;
        manager.pause();
        open.add_permits(1);
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", b"{}"), pause);
    assert_eq!((verdict, rig.sent().len()), (Verdict::Release, 0));
    eventually("the pause", || rig.broker.topics() == ["streamed"]).await;
    rig.app.always(|| Ok(AppVerdict::Success));
    manager.resume().await;
    assert_eq!(rig.broker.deliver("orders", b"{}").await, Verdict::Ack);
}

#[tokio::test(start_paused = true)]
async fn a_stop_is_for_good() {
    let rig = rig().await;
    let manager = rig.api.manager();
    manager.start(Vec::new(), vec![orders()]).await;
    assert!(manager.stop(LIMIT).await);
    manager.start(Vec::new(), vec![orders()]).await;
    manager.resume().await;
    assert!(rig.broker.topics().is_empty());
    rig.tasks.shut_down().await;
}

#[tokio::test(start_paused = true)]
async fn the_owner_of_all_tasks_can_stop_subscriptions_alone() {
    let rig = rig().await;
    rig.api.manager().start(Vec::new(), vec![orders()]).await;
    rig.app.on_event(|_| std::future::pending());
    let stop = async {
        rig.app.wait_for_calls(1).await;
        rig.tasks.shut_down().await;
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", b"{}"), stop);
    assert_eq!(verdict, Verdict::Release);
}

#[tokio::test(start_paused = true)]
async fn a_swap_starts_the_new_one_and_reads_the_old_one_until_it_is_empty() {
    let rig = rig().await;
    let manager = rig.api.manager().clone();
    manager.start(Vec::new(), vec![sub("a", "/a")]).await;
    let stream = StreamRequest {
        pubsub: "bus".into(),
        topic: "streamed".into(),
        metadata: Default::default(),
        dead_letter_topic: None,
    };
    let mut stream = rig.api.stream(&Cx::new(Front::Grpc), stream).await.unwrap();
    let next = FakeBroker::new(PubSubCaps::default());
    let swap = manager.replace(rig.handle(next.clone()), LIMIT).await;
    assert!(swap.attached());
    // Both deliver.
    let mut topics = next.topics();
    topics.sort();
    assert_eq!((topics, rig.broker.topics().len()), (vec!["a".to_owned(), "streamed".into()], 2));
    assert_eq!(next.deliver("a", b"{}").await, Verdict::Ack);
    assert_eq!(rig.broker.deliver("a", b"{}").await, Verdict::Ack);
    rig.install(next.clone()).await;
    assert!(emptied(finish(&rig, swap, &rig.broker, Duration::from_millis(500), LIMIT).await));
    assert!(rig.broker.topics().is_empty());
    let client = async {
        let event = stream.events.recv().await.unwrap();
        assert!(stream.processed(&event.id, AppVerdict::Success));
    };
    let (verdict, ()) = tokio::join!(next.deliver("streamed", b"{}"), client);
    assert_eq!(verdict, Verdict::Ack);
    // The client leaves: the moved subscription ends too.
    drop(stream);
    next.wait_for_subscribers(1).await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_keeps_events_is_switched_to_before_it_reads_and_not_taken_for_empty() {
    let rig = rig().await;
    let manager = rig.api.manager().clone();
    manager.start(Vec::new(), vec![sub("a", "/a")]).await;
    let slow = || {
        let broker = FakeBroker::new(PubSubCaps::default());
        broker.slow_start.send_replace(false);
        broker.secures.store(true, Ordering::SeqCst);
        broker
    };
    let begins = async |broker: &FakeBroker| {
        tokio::time::sleep(Duration::from_secs(5)).await;
        broker.slow_start.send_replace(true);
        broker.wait_for_subscribers(1).await;
    };
    let (next, last) = (slow(), slow());

    // At the same place the old one goes on until the next one reads.
    let swap = manager.replace(rig.handle(next.clone()), LIMIT).await;
    assert!(swap.attached() && next.topics().is_empty());
    rig.install(next.clone()).await;
    let old = async {
        begins(&next).await;
        rig.broker.topics()
    };
    let never = CancellationToken::new();
    let (drained, still) = tokio::join!(swap.drain(None, Leave::AtOnce(LIMIT), LIMIT, &never), old);
    assert_eq!((drained.failed, still), (0, vec!["a".to_owned()]));
    assert!(rig.broker.topics().is_empty());

    // Elsewhere what the old one keeps comes once it reads.
    next.slow_start.send_replace(false);
    let swap = manager.replace(rig.handle(last.clone()), LIMIT).await;
    assert!(swap.attached());
    rig.install(last.clone()).await;
    assert!(emptied(finish(&rig, swap, &next, Duration::from_millis(500), LIMIT).await));
    let swap = manager.replace(rig.handle(next.clone()), LIMIT).await;
    assert!(swap.attached());
    let kept = async {
        begins(&last).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        last.deliver("a", b"{}").await
    };
    let (drained, verdict) = tokio::join!(finish(&rig, swap, &last, Duration::from_millis(500), LIMIT * 2), kept);
    assert_eq!((emptied(drained), verdict), (true, Verdict::Ack));
}

#[tokio::test(start_paused = true)]
async fn a_swap_to_a_broker_that_is_not_there_goes_back() {
    let rig = rig().await;
    let manager = rig.api.manager().clone();
    manager.start(Vec::new(), vec![sub("a", "/a")]).await;
    let next = FakeBroker::new(PubSubCaps::default());
    next.slow_start.send_replace(false);
    let swap = manager.replace(rig.handle(next.clone()), LIMIT).await;
    assert!(!swap.attached());
    swap.roll_back(LIMIT).await;
    next.slow_start.send_replace(true);
    assert!(next.topics().is_empty());
    assert_eq!(rig.broker.deliver("a", b"{}").await, Verdict::Ack);
    assert!(manager.stop(LIMIT).await);
    assert!(rig.broker.topics().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_removed_component_is_let_go() {
    let rig = rig().await;
    rig.api.manager().start(Vec::new(), vec![orders()]).await;
    assert!(rig.api.manager().remove("bus", LIMIT).await);
    assert!(rig.broker.topics().is_empty());
    let handle = rig.store.edit(|s| s.pubsub.remove("bus")).await.unwrap();
    eventually("the last use", || Arc::strong_count(&handle) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn the_apps_list_is_asked_for_until_it_answers() {
    let rig = rig().await;
    let refused = || Err(AppError::transport(Error::unavailable("refused")));
    *rig.app.lists.lock() = vec![refused(), refused(), Ok(Some(vec![orders()]))];
    assert_eq!(ask_app(&*rig.app).await, [orders()]);
    *rig.app.lists.lock() = vec![Err(http_error(500)), Ok(Some(vec![orders()]))];
    assert_eq!(ask_app(&*rig.app).await, []);
    *rig.app.lists.lock() = (0..10).map(|_| refused()).collect();
    assert_eq!(ask_app(&*rig.app).await, []);
}

const IDLE: Duration = Duration::from_secs(3);
const PATIENCE: Patience = Patience { stalled: Duration::from_secs(90), whole: Duration::from_secs(3600) };

/// An app whose subscription to `a` is moved from `rig.broker` to another one, and what reads on.
struct Moved {
    rig: Rig,
    next: Arc<FakeBroker>,
    drain: tokio::task::JoinHandle<Drained>,
    began: tokio::time::Instant,
}

impl Moved {
    async fn of(rig: Rig) -> Self {
        let next = FakeBroker::new(PubSubCaps::default());
        let swap = rig.api.manager().replace(rig.handle(next.clone()), LIMIT).await;
        assert!(swap.attached());
        let old = rig.handle(rig.broker.clone());
        rig.install(next.clone()).await;
        let leave = Leave::WhenIdle(IDLE, PATIENCE);
        let drain = tokio::spawn(async move { swap.drain(Some(old), leave, LIMIT, &CancellationToken::new()).await });
        Self { rig, next, drain, began: tokio::time::Instant::now() }
    }

    async fn subscribed() -> Self {
        let setup = Setup { caps: PubSubCaps { redelivers: true, ..PubSubCaps::default() }, ..Setup::default() };
        let rig = Rig::new(setup).await;
        rig.api.manager().start(Vec::new(), vec![sub("a", "/a")]).await;
        Self::of(rig).await
    }

    /// How it ended, and when.
    async fn end(self) -> (Drained, u64) {
        let drained = self.drain.await.unwrap();
        assert!(self.rig.broker.topics().is_empty());
        (drained, self.began.elapsed().as_secs())
    }
}

async fn secs(n: u64) {
    tokio::time::sleep(Duration::from_secs(n)).await;
}

#[tokio::test(start_paused = true)]
async fn a_broker_that_delivers_is_read_on_and_one_that_never_ends_is_left() {
    let moved = Moved::subscribed().await;
    for _ in 0..300 {
        secs(2).await;
        assert_eq!(moved.rig.broker.deliver("a", b"{}").await, Verdict::Ack);
    }
    let (drained, took) = moved.end().await;
    assert_eq!((drained.emptied, drained.cut, took), (Some(true), None, 603));

    let moved = Moved::subscribed().await;
    let broker = moved.rig.broker.clone();
    let feed = tokio::spawn(async move {
        while !broker.topics().is_empty() {
            broker.deliver("a", b"{}").await;
            secs(2).await;
        }
    });
    let (drained, took) = moved.end().await;
    assert_eq!((drained.emptied, drained.cut), (Some(false), Some(Cut::Endless(PATIENCE.whole))));
    assert!((3600..3605).contains(&took), "{took}");
    feed.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_broker_whose_events_always_fail_is_left_and_one_failure_cuts_nothing_off() {
    let moved = Moved::subscribed().await;
    moved.rig.app.always(|| Ok(AppVerdict::Retry));
    let broker = moved.rig.broker.clone();
    let feed = tokio::spawn(async move {
        while !broker.topics().is_empty() {
            broker.deliver("a", br#"{"id":"1"}"#).await;
            secs(10).await;
        }
    });
    let (drained, took) = moved.end().await;
    assert_eq!((drained.emptied, drained.cut), (Some(false), Some(Cut::Stalled(PATIENCE.stalled))));
    assert!((90..95).contains(&took), "{took}");
    feed.await.unwrap();

    // Events come for more than a minute, then one fails: it has its time to come again.
    let moved = Moved::subscribed().await;
    for _ in 0..35 {
        secs(2).await;
        moved.rig.broker.deliver("a", b"{}").await;
    }
    moved.rig.app.always(|| Ok(AppVerdict::Retry));
    assert_eq!(moved.rig.broker.deliver("a", br#"{"id":"1"}"#).await, Verdict::Retry);
    moved.rig.app.always(|| Ok(AppVerdict::Success));
    secs(74).await;
    assert_eq!(moved.rig.broker.deliver("a", br#"{"id":"1"}"#).await, Verdict::Ack);
    let (drained, took) = moved.end().await;
    assert_eq!((drained.emptied, drained.cut, took), (Some(true), None, 147));

    // What others publish until they have switched as well comes, although nothing came before.
    let rig = Rig::new(Setup::default()).await;
    rig.api.manager().start(Vec::new(), vec![sub("a", "/a")]).await;
    secs(60).await;
    let moved = Moved::of(rig).await;
    secs(2).await;
    assert_eq!(moved.rig.broker.deliver("a", b"{}").await, Verdict::Ack);
    assert_eq!(moved.end().await.0.emptied, Some(true));

    // One that comes again at once holds nobody up.
    let moved = Moved::subscribed().await;
    moved.rig.app.always(|| Ok(AppVerdict::Retry));
    moved.rig.broker.deliver("a", br#"{"id":"1"}"#).await;
    moved.rig.app.always(|| Ok(AppVerdict::Success));
    moved.rig.broker.deliver("a", br#"{"id":"1"}"#).await;
    let (drained, took) = moved.end().await;
    assert_eq!((drained.emptied, took), (Some(true), 3));
}

#[tokio::test(start_paused = true)]
async fn an_app_that_is_not_well_gets_what_the_old_broker_holds_once_it_is() {
    let moved = Moved::subscribed().await;
    moved.rig.api.manager().pause();
    secs(1000).await;
    assert!(!moved.drain.is_finished() && moved.rig.broker.topics().is_empty());
    moved.rig.api.manager().resume().await;
    moved.rig.broker.wait_for_subscribers(1).await;
    assert_eq!(moved.rig.broker.deliver("a", b"{}").await, Verdict::Ack);
    assert_eq!(moved.end().await.0.emptied, Some(true));

    // It was not well at the switch.
    let rig = rig().await;
    rig.api.manager().start(Vec::new(), vec![sub("a", "/a")]).await;
    rig.api.manager().pause();
    let moved = Moved::of(rig).await;
    secs(100).await;
    moved.rig.api.manager().resume().await;
    moved.rig.broker.wait_for_subscribers(1).await;
    assert_eq!(moved.end().await.0.emptied, Some(true));
}

#[tokio::test(start_paused = true)]
async fn what_is_subscribed_counts_for_the_old_broker_too() {
    let moved = Moved::subscribed().await;
    let manager = moved.rig.api.manager();
    manager.start(Vec::new(), vec![sub("a", "/other"), sub("b", "/b")]).await;
    secs(1).await;
    assert_eq!(moved.rig.broker.topics(), ["a"]);
    assert_eq!(moved.rig.broker.deliver("a", b"{}").await, Verdict::Ack);
    assert_eq!(moved.rig.app.seen.lock().last().unwrap().path, "/other");
    manager.start(Vec::new(), vec![sub("b", "/b")]).await;
    eventually("no subscription", || moved.rig.broker.topics().is_empty()).await;
    assert_eq!(moved.next.topics(), ["b"]);
    assert_eq!(moved.end().await.0.emptied, Some(true));
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_is_opened_again_reads_the_old_broker_to_its_end() {
    let rig = rig().await;
    let open = async |rig: &Rig| {
        let request = StreamRequest {
            pubsub: "bus".into(),
            topic: "a".into(),
            metadata: Default::default(),
            dead_letter_topic: None,
        };
        rig.api.stream(&Cx::new(Front::Grpc), request).await.unwrap()
    };
    let stream = open(&rig).await;
    let moved = Moved::of(rig).await;
    drop(stream);
    secs(30).await;
    assert!(!moved.drain.is_finished());
    let mut stream = open(&moved.rig).await;
    moved.rig.broker.wait_for_subscribers(1).await;
    let client = async {
        let event = stream.events.recv().await.unwrap();
        assert!(stream.processed(&event.id, AppVerdict::Success));
    };
    let (verdict, ()) = tokio::join!(moved.rig.broker.deliver("a", br#"{"id":"1"}"#), client);
    assert_eq!(verdict, Verdict::Ack);
    assert_eq!(moved.end().await.0.emptied, Some(true));
}
