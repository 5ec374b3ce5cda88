use std::time::Duration;

use mecha_components_api::{Error, ErrorKind, Verdict};
use parking_lot::Mutex;
use proptest::prelude::*;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::app::{AppError, AppProtocol, AppVerdict, RouteRule};
use crate::pubsub::testing::*;
use crate::trace::{FinishedSpan, Sampler, SpanKind, SpanSink, Tracer};

use std::sync::Arc;

const EVENT: &[u8] = br#"{"id":"1","data":{"n":1.50}}"#;
const THREE_TRIES: &str = "{retries: {r: {policy: constant, duration: 1s, maxRetries: 2}}}";

fn unhealthy() -> AppError {
    AppError::transport(Error::internal("app is not in a healthy state"))
}

/// Delivers one event to an app with this answer: verdict, topics of dead letters, counters.
async fn ends(dead_letter: bool, answer: impl Fn() -> Answer + Send + Sync + 'static) -> (Verdict, usize, Vec<String>) {
    let rig = Rig::new(Setup::default()).await;
    rig.app.always(answer);
    rig.subscribe(|s| s.dead_letter_topic = dead_letter.then(|| "poison".into())).await;
    let verdict = rig.broker.deliver("orders", EVENT).await;
    (verdict, rig.sent().len(), rig.ingress())
}

#[tokio::test(start_paused = true)]
async fn the_verdict_table() {
    use Verdict::{Ack, Release, Retry};
    type Row =
        (&'static str, fn() -> Answer, (Verdict, &'static [&'static str]), (Verdict, usize, &'static [&'static str]));
    let table: [Row; 8] = [
        ("success", || Ok(AppVerdict::Success), (Ack, &["success/success 1"]), (Ack, 0, &["success/success 1"])),
        ("retry", || Ok(AppVerdict::Retry), (Retry, &["retry/retry 2"]), (Ack, 1, &["drop/drop 1", "retry/retry 1"])),
        ("drop", || Ok(AppVerdict::Drop), (Ack, &["drop/success 1"]), (Ack, 1, &["drop/success 1"])),
        ("unimplemented", || Ok(AppVerdict::Discard), (Ack, &["drop/drop 1"]), (Ack, 0, &["drop/drop 1"])),
        ("404", || Err(http_error(404)), (Ack, &["drop/drop 1"]), (Ack, 1, &["drop/drop 1"])),
        ("500", || Err(http_error(500)), (Retry, &["retry/retry 2"]), (Ack, 1, &["drop/drop 1", "retry/retry 1"])),
        (
            "transport",
            || Err(AppError::transport(Error::unavailable("refused"))),
            (Retry, &["retry/retry 2"]),
            (Ack, 1, &["drop/drop 1", "retry/retry 1"]),
        ),
        ("unhealthy", || Err(unhealthy()), (Release, &["retry/retry 1"]), (Release, 0, &["retry/retry 1"])),
    ];
    for (name, answer, plain, buried) in table {
        let (verdict, _, counts) = ends(false, answer).await;
        assert_eq!((verdict, counts), (plain.0, plain.1.iter().map(|s| s.to_string()).collect()), "{name}");
        let (verdict, letters, counts) = ends(true, answer).await;
        let expected = buried.2.iter().map(|s| s.to_string()).collect();
        assert_eq!((verdict, letters, counts), (buried.0, buried.1, expected), "{name} with dead letters");
    }
}

#[tokio::test(start_paused = true)]
async fn what_never_reaches_the_app() {
    let rules = [("/big", "event.data.n > 100"), ("/undecided", "event.data.missing == 1")];
    let expired = br#"{"expiration":"2001-01-01T00:00:00Z"}"#.as_slice();
    type Row = (&'static str, &'static [u8], usize, bool, Verdict, &'static str);
    let cases: [Row; 5] = [
        ("undecodable", b"{broken", 0, false, Verdict::Retry, "retry/retry 1"),
        ("null", b"null", 0, false, Verdict::Retry, "retry/retry 1"),
        ("expired", expired, 0, true, Verdict::Ack, "drop/drop 1"),
        ("no route", EVENT, 1, true, Verdict::Ack, "drop/success 1"),
        ("undecided", EVENT, 2, false, Verdict::Retry, "retry/retry 1"),
    ];
    for (name, data, rule, acked, plain, count) in cases {
        for dead_letter in [false, true] {
            let rig = Rig::new(Setup::default()).await;
            rig.subscribe(|s| {
                s.dead_letter_topic = dead_letter.then(|| "poison".into());
                if rule > 0 {
                    let (path, matches) = rules[rule - 1];
                    s.rules.push(RouteRule { matches: matches.into(), path: path.into() });
                    s.default_route = None;
                }
            })
            .await;
            let verdict = rig.broker.deliver("orders", data).await;
            let count = if dead_letter && !acked { "drop/drop 1" } else { count };
            assert_eq!(verdict, if dead_letter { Verdict::Ack } else { plain }, "{name}");
            assert_eq!(rig.ingress(), [count], "{name}");
            assert_eq!(rig.sent().len(), usize::from(dead_letter), "{name}");
            assert_eq!(rig.app.calls(), 0);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_bad_raw_payload_setting_sends_everything_to_the_dead_letters() {
    for (dead_letter, verdict) in [(Some("poison"), Verdict::Ack), (None, Verdict::Retry)] {
        let rig = Rig::new(Setup::default()).await;
        rig.subscribe(|s| {
            s.metadata.insert("rawPayload", "yes");
            s.dead_letter_topic = dead_letter.map(Into::into);
        })
        .await;
        assert_eq!(rig.broker.deliver("orders", EVENT).await, verdict);
        assert_eq!(rig.app.calls(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_letter_is_what_the_broker_gave() {
    let rig = Rig::new(Setup { prefix: Some("ns"), ..Setup::default() }).await;
    rig.app.always(|| Ok(AppVerdict::Drop));
    rig.subscribe(|s| s.dead_letter_topic = Some("poison".into())).await;
    let mut msg = message("nsorders", EVENT);
    msg.metadata.insert("key", "k");
    msg.content_type = Some("application/json".into());
    assert_eq!(rig.broker.hand(msg.clone()).await, Verdict::Ack);
    let expected = Sent {
        topic: "nspoison".into(),
        data: msg.data,
        content_type: msg.content_type,
        metadata: msg.metadata.clone(),
    };
    assert_eq!(rig.sent(), [expected]);
    let seen = rig.app.seen.lock().pop().unwrap();
    assert_eq!((seen.topic.as_str(), seen.metadata), ("orders", msg.metadata));
}

#[tokio::test(start_paused = true)]
async fn without_a_confirmed_dead_letter_nothing_is_done() {
    for publishing in [Publishing::Fails(ErrorKind::Unavailable), Publishing::Hangs] {
        for answer in [|| Ok(AppVerdict::Drop), || Ok(AppVerdict::Retry)] {
            let rig = Rig::new(Setup::default()).await;
            rig.app.always(answer);
            *rig.broker.publishing.lock() = publishing;
            rig.subscribe(|s| s.dead_letter_topic = Some("poison".into())).await;
            let started = tokio::time::Instant::now();
            assert_eq!(rig.broker.deliver("orders", EVENT).await, Verdict::Retry);
            if publishing == Publishing::Hangs {
                assert_eq!(started.elapsed().as_secs(), 30);
            }
        }
    }
    let rig = Rig::new(Setup { scopes: vec![("publishingScopes", "shop=")], ..Setup::default() }).await;
    rig.app.always(|| Ok(AppVerdict::Drop));
    rig.subscribe(|s| s.dead_letter_topic = Some("poison".into())).await;
    assert_eq!(rig.broker.deliver("orders", EVENT).await, Verdict::Retry);
}

#[tokio::test(start_paused = true)]
async fn the_inbound_policy_repeats_before_the_dead_letters() {
    let rig = Rig::new(Setup { policies: Some(THREE_TRIES), ..Setup::default() }).await;
    rig.app.always(|| Err(http_error(500)));
    rig.subscribe(|s| s.dead_letter_topic = Some("poison".into())).await;
    assert_eq!(rig.broker.deliver("orders", EVENT).await, Verdict::Ack);
    assert_eq!(rig.app.calls(), 3);
    assert_eq!(rig.ingress(), ["drop/drop 1", "retry/retry 3"]);
    assert_eq!(rig.sent().len(), 1);

    let left = Arc::new(Mutex::new(2));
    rig.app.on_event(move |_| {
        let mut left = left.lock();
        *left -= 1;
        std::future::ready(if *left > 0 { Ok(AppVerdict::Retry) } else { Ok(AppVerdict::Success) })
    });
    assert_eq!(rig.broker.deliver("orders", EVENT).await, Verdict::Ack);
    assert_eq!((rig.app.calls(), rig.sent().len()), (5, 1));
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_is_cut_off_counts() {
    let setup = Setup {
        policies: Some("{timeouts: {t: 1s}, retries: {r: {policy: constant, duration: 1ms, maxRetries: 1}}}"),
        ..Setup::default()
    };
    let rig = Rig::new(setup).await;
    rig.app.on_event(|_| std::future::pending());
    rig.subscribe(|_| {}).await;
    assert_eq!(rig.broker.deliver("orders", EVENT).await, Verdict::Retry);
    assert_eq!(rig.ingress(), ["retry/retry 3"]);
}

#[tokio::test(start_paused = true)]
async fn a_stop_in_the_pause_between_tries_releases() {
    let rig = Rig::new(Setup { policies: Some(THREE_TRIES), ..Setup::default() }).await;
    rig.app.always(|| Err(http_error(500)));
    rig.subscribe(|s| s.dead_letter_topic = Some("poison".into())).await;
    let stop = async {
        rig.app.wait_for_calls(1).await;
        assert!(rig.api.manager().stop(Duration::from_secs(10)).await);
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", EVENT), stop);
    assert_eq!((verdict, rig.app.calls(), rig.sent().len()), (Verdict::Release, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_call_that_runs_at_the_stop_may_finish() {
    for policies in [None, Some(THREE_TRIES)] {
        for (answer, verdict) in [(Ok(AppVerdict::Success), Verdict::Ack), (Err(500), Verdict::Release)] {
            let rig = Rig::new(Setup { policies, ..Setup::default() }).await;
            let gate = Arc::new(Semaphore::new(0));
            let open = gate.clone();
            rig.app.on_event(move |_| {
                let gate = gate.clone();
                async move {
                    gate.acquire().await.unwrap().forget();
                    answer.map_err(http_error)
                }
            });
            rig.subscribe(|s| s.dead_letter_topic = Some("poison".into())).await;
            let manager = rig.api.manager().clone();
            let stop = async {
                rig.app.wait_for_calls(1).await;
                let stop = tokio::spawn(async move { manager.stop(Duration::from_secs(10)).await });
                rig.broker.wait_for_subscribers(0).await;
                open.add_permits(1);
                assert!(stop.await.unwrap());
            };
            let (got, ()) = tokio::join!(rig.broker.deliver("orders", EVENT), stop);
            assert_eq!((got, rig.app.calls(), rig.sent().len()), (verdict, 1, 0));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_app_that_hangs_does_not_hold_up_the_stop() {
    let rig = Rig::new(Setup::default()).await;
    rig.app.on_event(|_| std::future::pending());
    rig.subscribe(|s| s.dead_letter_topic = Some("poison".into())).await;
    let started = tokio::time::Instant::now();
    let stop = async {
        rig.app.wait_for_calls(1).await;
        assert!(!rig.api.manager().stop(Duration::from_secs(3)).await);
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", EVENT), stop);
    assert_eq!((verdict, rig.sent().len()), (Verdict::Release, 0));
    assert_eq!(started.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn http_apps_get_bytes_and_grpc_apps_get_objects() {
    for (protocol, object, data) in [
        (AppProtocol::Http, json!({}), None),
        (AppProtocol::Grpc, json!({"id": "1", "data": {"n": 1.5}}), Some(br#"{"n":1.50}"#.as_slice())),
    ] {
        let rig = Rig::new(Setup { protocol, ..Setup::default() }).await;
        rig.subscribe(|_| {}).await;
        assert_eq!(rig.broker.deliver("orders", EVENT).await, Verdict::Ack);
        let seen = rig.app.seen.lock().pop().unwrap();
        assert_eq!((seen.pubsub.as_str(), seen.topic.as_str(), seen.path.as_str()), ("bus", "orders", "/orders"));
        assert_eq!((seen.body.as_ref(), seen.content_type), (EVENT, "application/cloudevents+json"));
        assert_eq!(serde_json::Value::Object(seen.event), object);
        assert_eq!(seen.data.as_deref(), data);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wildcard_subscription_counts_by_the_messages_topic() {
    let rig = Rig::new(Setup::default()).await;
    rig.subscribe(|s| s.topic = "*".into()).await;
    assert_eq!(rig.broker.deliver("anything", EVENT).await, Verdict::Ack);
    assert_eq!(rig.value("dapr_component_pubsub_ingress_count", r#"topic="anything""#), 1);
    assert_eq!(rig.app.seen.lock()[0].topic, "anything");
}

#[derive(Debug, Default)]
struct Kept(Mutex<Vec<FinishedSpan>>);

impl SpanSink for Kept {
    fn export(&self, span: FinishedSpan) {
        self.0.lock().push(span);
    }
}

#[tokio::test(start_paused = true)]
async fn a_delivery_is_a_span_below_the_publishers() {
    let sink = Arc::new(Kept::default());
    let shared: Arc<dyn SpanSink> = sink.clone();
    let rig = Rig::new(Setup { tracer: Tracer::on(Sampler::new(1.0), Some(shared)), ..Setup::default() }).await;
    rig.subscribe(|_| {}).await;
    let event = br#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","tracestate":"a=1","baggage":"k=v"}"#;
    assert_eq!(rig.broker.deliver("orders", event).await, Verdict::Ack);
    let spans = sink.0.lock();
    assert_eq!((spans[0].name.as_ref(), spans[0].kind), ("pubsub/orders", SpanKind::Consumer));
    assert_eq!(spans[0].parent.unwrap().to_string(), "00f067aa0ba902b7");
    let trace = rig.app.seen.lock()[0].trace.clone();
    assert_eq!(trace.traceparent.as_deref(), Some(spans[0].context.traceparent().as_str()));
    assert_eq!((trace.tracestate.as_deref(), trace.baggage.as_deref()), (Some("a=1"), Some("k=v")));
}

/// One answer of the app in a random sequence.
#[derive(Clone, Copy, Debug)]
enum Step {
    Verdict(AppVerdict),
    Status(u16),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => Just(Step::Verdict(AppVerdict::Success)),
        1 => Just(Step::Verdict(AppVerdict::Drop)),
        1 => Just(Step::Verdict(AppVerdict::Discard)),
        4 => Just(Step::Verdict(AppVerdict::Retry)),
        1 => Just(Step::Status(404)),
        4 => Just(Step::Status(500)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_is_acknowledged_before_it_is_done(
        steps in proptest::collection::vec(step(), 3..4),
        retries: bool,
        dead_letter: bool,
        broker_works: bool,
        stop_after in proptest::option::of(1..4usize),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let (verdict, calls, letters, finished) = runtime.block_on(async {
            let rig = Rig::new(Setup { policies: retries.then_some(THREE_TRIES), ..Setup::default() }).await;
            if !broker_works {
                *rig.broker.publishing.lock() = Publishing::Fails(ErrorKind::Unavailable);
            }
            let left = Mutex::new(steps.clone().into_iter());
            rig.app.on_event(move |_| std::future::ready(match left.lock().next() {
                Some(Step::Verdict(verdict)) => Ok(verdict),
                Some(Step::Status(status)) => Err(http_error(status)),
                None => panic!("more calls than the policy allows"),
            }));
            rig.subscribe(|s| s.dead_letter_topic = dead_letter.then(|| "poison".into())).await;
            let stop = async {
                let Some(calls) = stop_after else { return true };
                tokio::select! {
                    () = rig.app.wait_for_calls(calls) => {}
                    () = tokio::time::sleep(Duration::from_secs(60)) => {}
                }
                rig.api.manager().stop(Duration::from_secs(10)).await
            };
            let (verdict, finished) = tokio::join!(rig.broker.deliver("orders", EVENT), stop);
            (verdict, rig.app.calls(), rig.sent().len(), finished)
        });
        let last = steps[calls - 1];
        let done = match last {
            Step::Verdict(AppVerdict::Success | AppVerdict::Discard) => true,
            Step::Verdict(AppVerdict::Drop) | Step::Status(404) => !dead_letter || letters == 1,
            _ => letters == 1,
        };
        prop_assert!(finished);
        prop_assert_eq!(verdict == Verdict::Ack, done, "{:?}", last);
        // A retried event went to the dead letters only when all its tries were used up.
        if let (Step::Verdict(AppVerdict::Retry) | Step::Status(500), 1) = (last, letters) {
            prop_assert_eq!(calls, if retries { 3 } else { 1 });
        }
    }
}
