use std::sync::Arc;
use std::time::Duration;

use mecha_components_api::{Delivery, Verdict};
use parking_lot::Mutex;

use crate::app::{AppProtocol, AppVerdict, BulkOptions, RouteRule};
use crate::pubsub::testing::*;

const TWO_TRIES: &str = "{retries: {r: {policy: constant, duration: 1s, maxRetries: 1}}}";

fn options(max_messages: usize, max_await_ms: u64) -> Option<BulkOptions> {
    Some(BulkOptions { max_messages, max_await: Duration::from_millis(max_await_ms) })
}

async fn rig(setup: Setup, max_messages: usize, edit: impl FnOnce(&mut crate::app::AppSubscription)) -> Arc<Rig> {
    let rig = Rig::new(setup).await;
    rig.subscribe(|s| {
        s.bulk = options(max_messages, 1000);
        edit(s);
    })
    .await;
    Arc::new(rig)
}

/// Hands all messages over at the same time.
async fn hand_all(rig: &Arc<Rig>, events: &[&str]) -> Vec<Verdict> {
    let one = |event: &&str| rig_message(rig, message("orders", event.as_bytes()));
    futures_util::future::join_all(events.iter().map(one)).await
}

async fn rig_message(rig: &Arc<Rig>, msg: Delivery) -> Verdict {
    rig.broker.hand(msg).await
}

#[tokio::test(start_paused = true)]
async fn a_full_batch_goes_at_once_and_a_part_after_its_time() {
    let rig = rig(Setup::default(), 3, |_| {}).await;
    let started = tokio::time::Instant::now();
    assert_eq!(hand_all(&rig, &["{\"id\":\"1\"}"; 3]).await, [Verdict::Ack; 3]);
    assert_eq!(started.elapsed(), Duration::ZERO);
    assert_eq!(hand_all(&rig, &["{\"id\":\"1\"}"; 2]).await, [Verdict::Ack; 2]);
    assert_eq!(started.elapsed(), Duration::from_secs(1));
    let sizes: Vec<_> = rig.app.bulks.lock().iter().map(|b| b.entries.len()).collect();
    assert_eq!(sizes, [3, 2]);
    assert_eq!(rig.broker.requests()[0].bulk, Some((3, Duration::from_secs(1))));
    assert_eq!(rig.value("dapr_component_pubsub_ingress_bulk_count", "orders"), 2);
    assert_eq!(rig.value("dapr_component_pubsub_ingress_bulk_event_count", "SUCCESS"), 5);
    assert!(rig.ingress().is_empty());
}

#[tokio::test(start_paused = true)]
async fn entries_are_grouped_by_route_and_keep_their_order() {
    let rig = rig(Setup::default(), 4, |s| {
        s.rules.push(RouteRule { matches: "event.type == 'a'".into(), path: "/a".into() });
    })
    .await;
    hand_all(
        &rig,
        &[
            r#"{"type":"a","id":"1"}"#,
            r#"{"id":"2","type":"b"}"#,
            r#"{"type":"a","id":"3"}"#,
            r#"{"id":"4","type":"b"}"#,
        ],
    )
    .await;
    let bulks = rig.app.bulks.lock();
    let shape: Vec<(String, Vec<String>)> = bulks
        .iter()
        .map(|b| {
            let bodies = b.entries.iter().map(|e| String::from_utf8(e.body.to_vec()).unwrap());
            (b.path.clone(), bodies.collect())
        })
        .collect();
    assert_eq!(shape[0].0, "/a");
    assert_eq!(shape[0].1, [r#"{"type":"a","id":"1"}"#, r#"{"type":"a","id":"3"}"#]);
    assert_eq!(
        shape[1],
        ("/orders".into(), vec![r#"{"id":"2","type":"b"}"#.into(), r#"{"id":"4","type":"b"}"#.into()])
    );
    let entry = &bulks[0].entries[0];
    assert_eq!(
        (entry.raw, entry.event.is_some(), entry.content_type.as_str()),
        (false, true, "application/cloudevents+json")
    );
    assert_eq!((bulks[0].pubsub.as_str(), bulks[0].topic.as_str()), ("bus", "orders"));
    assert_eq!(bulks[0].metadata.get("pubsubName"), Some("bus"));
}

#[tokio::test(start_paused = true)]
async fn each_entry_has_its_own_end() {
    let rig = rig(Setup::default(), 5, |s| s.dead_letter_topic = Some("poison".into())).await;
    // The last two entries get no verdict.
    rig.app.on_bulk(|_| Ok(vec![AppVerdict::Success, AppVerdict::Drop, AppVerdict::Discard]));
    let verdicts = hand_all(&rig, &["{\"n\":0}", "{\"n\":1}", "{\"n\":2}", "{\"n\":3}", "{\"n\":4}"]).await;
    assert_eq!(verdicts, [Verdict::Ack; 5]);
    let mut letters: Vec<_> = rig.sent().iter().map(|s| String::from_utf8(s.data.to_vec()).unwrap()).collect();
    letters.sort();
    assert_eq!(letters, ["{\"n\":1}", "{\"n\":3}", "{\"n\":4}"]);
    assert_eq!(rig.value("dapr_component_pubsub_ingress_bulk_event_count", "DROP"), 4);
}

#[tokio::test(start_paused = true)]
async fn only_what_failed_is_tried_again() {
    let rig = rig(Setup { policies: Some(TWO_TRIES), ..Setup::default() }, 3, |_| {}).await;
    let first = Mutex::new(true);
    rig.app.on_bulk(move |b| {
        if std::mem::take(&mut *first.lock()) {
            return Ok(vec![AppVerdict::Success, AppVerdict::Retry, AppVerdict::Retry]);
        }
        assert_eq!(b.entries.len(), 2);
        Ok(vec![AppVerdict::Success, AppVerdict::Retry])
    });
    let verdicts = hand_all(&rig, &["{\"n\":0}", "{\"n\":1}", "{\"n\":2}"]).await;
    assert_eq!(verdicts, [Verdict::Ack, Verdict::Ack, Verdict::Retry]);
    assert_eq!(rig.value("dapr_component_pubsub_ingress_bulk_event_count", "RETRY"), 1);
}

#[tokio::test(start_paused = true)]
async fn answers_for_the_whole_bulk() {
    type Row = (u16, Option<&'static str>, Verdict, usize);
    let table: [Row; 4] = [
        (404, None, Verdict::Ack, 0),
        (404, Some("poison"), Verdict::Ack, 2),
        (500, None, Verdict::Retry, 0),
        (500, Some("poison"), Verdict::Ack, 2),
    ];
    for (status, dead_letter, verdict, letters) in table {
        let rig = rig(Setup::default(), 2, |s| s.dead_letter_topic = dead_letter.map(Into::into)).await;
        rig.app.on_bulk(move |_| Err(http_error(status)));
        assert_eq!(hand_all(&rig, &["{}", "{}"]).await, [verdict; 2], "{status} {dead_letter:?}");
        assert_eq!(rig.sent().len(), letters, "{status} {dead_letter:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_poison_message_does_not_stop_its_batch() {
    let rig = rig(Setup::default(), 3, |s| s.dead_letter_topic = Some("poison".into())).await;
    assert_eq!(hand_all(&rig, &["{}", "{broken", "{}"]).await, [Verdict::Ack; 3]);
    assert_eq!(rig.sent().len(), 1);
    assert_eq!(rig.app.bulks.lock()[0].entries.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn raw_and_binary_messages() {
    let raw = rig(Setup::default(), 1, |s| s.metadata.insert("rawPayload", "true")).await;
    assert_eq!(raw.broker.deliver("orders", b"\x00").await, Verdict::Ack);
    let entry = raw.app.bulks.lock()[0].entries[0].clone();
    assert_eq!((entry.raw, entry.event, entry.body.as_ref()), (true, None, b"\x00".as_slice()));
    assert_eq!(entry.content_type, "application/octet-stream");

    let binary = rig(Setup { protocol: AppProtocol::Grpc, ..Setup::default() }, 1, |_| {}).await;
    let mut msg = message("orders", b"\x00");
    msg.content_type = Some("application/octet-stream".into());
    msg.metadata.insert("ce_id", "7");
    assert_eq!(binary.broker.hand(msg).await, Verdict::Ack);
    let entry = binary.app.bulks.lock()[0].entries[0].clone();
    let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
    assert_eq!((&body["id"], &body["data_base64"]), (&"7".into(), &"AA==".into()));
    assert_eq!(entry.event.unwrap()["id"], "7");
}

#[tokio::test(start_paused = true)]
async fn a_stop_flushes_the_batch() {
    let rig = rig(Setup::default(), 100, |_| {}).await;
    let stop = async {
        tokio::task::yield_now().await;
        assert!(rig.api.manager().stop(Duration::from_secs(10)).await);
    };
    let started = tokio::time::Instant::now();
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", b"{}"), stop);
    assert_eq!((verdict, started.elapsed()), (Verdict::Ack, Duration::ZERO));
}

#[tokio::test(start_paused = true)]
async fn a_stop_releases_what_the_app_could_not_take() {
    let rig = rig(Setup { policies: Some(TWO_TRIES), ..Setup::default() }, 1, |s| {
        s.dead_letter_topic = Some("poison".into());
    })
    .await;
    rig.app.on_bulk(|_| Err(http_error(500)));
    let stop = async {
        rig.app.wait_for_calls(1).await;
        assert!(rig.api.manager().stop(Duration::from_secs(10)).await);
    };
    let (verdict, ()) = tokio::join!(rig.broker.deliver("orders", b"{}"), stop);
    assert_eq!((verdict, rig.sent().len()), (Verdict::Release, 0));
}
