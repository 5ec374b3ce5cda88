//! What an app's answer does to an event.

use std::time::Duration;

use mecha_tests::{Answer, Call, HttpApp, Sidecar, SidecarBuilder, component, eventually, free_port, wait_until};
use serde_json::{Value, json};

use super::{EVENTS, KINDS, event, subscribed, with_events};
use crate::support::series;

/// Three quick attempts, then the end.
const POLICY: &str = "apiVersion: dapr.io/v1alpha1
kind: Resiliency
metadata:
  name: quick
spec:
  policies:
    retries:
      quick:
        policy: constant
        duration: 10ms
        maxRetries: 2
  targets:
    components:
      events:
        inbound:
          retry: quick
";

/// An app with a topic at `/in` and a dead-letter topic at `/dead`.
fn with_dead_letters(answers: Vec<Answer>) -> mecha_tests::HttpAppBuilder {
    HttpApp::builder()
        .subscribe(&json!([
            {"pubsubname": EVENTS, "topic": "topic", "route": "/in", "deadLetterTopic": "dead"},
            {"pubsubname": EVENTS, "topic": "dead", "route": "/dead"},
        ]))
        .script("POST /in", answers)
        .on("POST /dead", Answer::status(200))
}

fn with_policy(kind: &str, app: &HttpApp) -> SidecarBuilder {
    with_events(kind, app).component(POLICY)
}

/// Publishes a marker after the event in question: once it is through, nothing more comes of the first.
async fn marker(sidecar: &Sidecar, app: &HttpApp) {
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "topic", "text/plain", "marker", &[]).await.unwrap();
    eventually("the marker", || async {
        app.calls("POST /in").iter().any(|call| call.text().contains("\"marker\"")).then_some(())
    })
    .await;
}

/// How often each end is reached: `(answer, attempts at /in, dead letters)`.
fn verdicts() -> Vec<(Answer, usize, usize)> {
    let status = |text: &str| Answer::json(&json!({"status": text}));
    vec![
        (Answer::status(200), 1, 0),
        (Answer::status(204), 1, 0),
        (Answer::text("not json"), 1, 0),
        (Answer::json(&json!([1])), 1, 0),
        (Answer::json(&json!({})), 1, 0),
        (Answer::json(&json!({"status": 5})), 1, 0),
        (status(""), 1, 0),
        (status("SUCCESS"), 1, 0),
        (Answer::text("{\"status\":\"SUCCESS\"}"), 1, 0),
        (status("DROP"), 1, 1),
        (Answer::status(404), 1, 1),
        (status("RETRY"), 3, 1),
        (status("success"), 3, 1),
        (status("WHATEVER"), 3, 1),
        (Answer::status(500), 3, 1),
        (Answer::status(400), 3, 1),
        (Answer::status(302), 3, 1),
    ]
}

#[tokio::test]
async fn the_verdict_decides() {
    for kind in KINDS {
        for (answer, attempts, dead) in verdicts() {
            let shown = format!("{kind}: {answer:?}");
            // Everything after the event in question is acknowledged.
            let mut script = vec![answer.clone(); attempts];
            script.push(Answer::status(200));
            let app = with_dead_letters(script).start().await;
            let sidecar = subscribed(with_policy(kind, &app)).await;
            let [api, _] = sidecar.apis().await;
            api.publish(EVENTS, "topic", "text/plain", "first", &[]).await.unwrap();
            wait_until(Duration::from_secs(10), &format!("{attempts} attempts ({shown})"), || async {
                app.calls("POST /in").len() >= attempts
            })
            .await;
            if dead > 0 {
                let letter = event(&app.wait_calls("POST /dead", 1).await[0]);
                assert_eq!((&letter["data"], &letter["topic"]), (&json!("first"), &json!("topic")), "{shown}");
            }
            marker(&sidecar, &app).await;
            let calls = app.calls("POST /in");
            let of_first = calls.iter().filter(|call| call.text().contains("\"first\"")).count();
            assert_eq!((of_first, app.calls("POST /dead").len()), (attempts, dead), "{shown}");
        }
    }
}

#[tokio::test]
async fn without_a_dead_letter_topic_a_durable_broker_delivers_again() {
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": EVENTS, "topic": "topic", "route": "/in"}]))
        .script("POST /in", vec![Answer::status(500); 4].into_iter().chain([Answer::status(200)]))
        .start()
        .await;
    let sidecar = subscribed(with_policy("broker", &app)).await;
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "topic", "text/plain", "kept", &[]).await.unwrap();
    // Three by policy, then a nack, then the broker's redelivery.
    let calls = app.wait_calls("POST /in", 5).await;
    assert!(calls.iter().all(|call| event(call)["data"] == "kept"));
}

#[tokio::test]
async fn a_poison_message_does_not_block_others() {
    for kind in KINDS {
        let app = HttpApp::builder()
            .subscribe(&json!([{"pubsubname": EVENTS, "topic": "topic", "route": "/in"}]))
            .on_call("POST /in", |call: Call| async move {
                Answer::status(if call.text().contains("poison") { 500 } else { 200 })
            })
            .start()
            .await;
        let sidecar = subscribed(with_policy(kind, &app)).await;
        let [api, _] = sidecar.apis().await;
        api.publish(EVENTS, "topic", "text/plain", "poison", &[]).await.unwrap();
        for n in 0..5 {
            api.publish(EVENTS, "topic", "text/plain", format!("good-{n}"), &[]).await.unwrap();
        }
        eventually(&format!("all good ones ({kind})"), || async {
            let calls = app.calls("POST /in");
            (0..5).all(|n| calls.iter().any(|call| call.text().contains(&format!("good-{n}")))).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn the_ends_are_counted() {
    let drop = Answer::json(&json!({"status": "DROP"}));
    let app = with_dead_letters(vec![Answer::status(200), drop, Answer::status(200)]).start().await;
    let sidecar = subscribed(with_policy("memory", &app)).await;
    let [api, _] = sidecar.apis().await;
    for text in ["one", "two", "three"] {
        api.publish(EVENTS, "topic", "text/plain", text, &[]).await.unwrap();
    }
    app.wait_calls("POST /dead", 1).await;
    app.wait_calls("POST /in", 3).await;
    let count = |status: &'static str| {
        let labels = [("component", EVENTS), ("process_status", status), ("topic", "topic")];
        let sidecar = &sidecar;
        async move { series(&sidecar.metrics().await, "dapr_component_pubsub_ingress_count", &labels).unwrap_or(0.0) }
    };
    wait_until(Duration::from_secs(10), "two successes", || async { count("success").await >= 2.0 }).await;
    assert_eq!(count("success").await, 2.0);
    wait_until(Duration::from_secs(10), "a drop", || async { count("drop").await >= 1.0 }).await;
    let labels = [("component", EVENTS), ("success", "true"), ("topic", "topic")];
    let sent = series(&sidecar.metrics().await, "dapr_component_pubsub_egress_count", &labels);
    assert_eq!(sent, Some(3.0));
}

#[tokio::test]
async fn an_expired_event_is_not_delivered() {
    // The app is not there when the event is published, and comes after it expired.
    let port = free_port();
    let builder = Sidecar::builder().flag("app-port", port.to_string());
    let folder = builder.folder().join("broker");
    let sidecar = builder.component(super::document("broker", &folder)).start_outbound().await;
    let [api, _] = sidecar.apis().await;
    let published = std::time::Instant::now();
    api.publish(EVENTS, "topic", "text/plain", "expired", &[("ttlInSeconds", "1")]).await.unwrap();
    api.publish(EVENTS, "topic", "text/plain", "kept", &[("ttlInSeconds", "100")]).await.unwrap();
    wait_until(Duration::from_secs(5), "the expiry", || async { published.elapsed() > Duration::from_millis(1500) })
        .await;
    let app = super::taking("topic").port(port).start().await;
    let calls = app.wait_calls("POST /in", 1).await;
    assert_eq!(event(&calls[0])["data"], "kept");
}

#[tokio::test]
async fn an_app_that_restarts_gets_the_rest() {
    let port = free_port();
    let app = super::taking("topic").port(port).start().await;
    let sidecar = subscribed(with_policy("broker", &app)).await;
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "topic", "text/plain", "before", &[]).await.unwrap();
    app.wait_calls("POST /in", 1).await;
    app.stop().await;
    api.publish(EVENTS, "topic", "text/plain", "meanwhile", &[]).await.unwrap();
    eventually("the port to be free", || async {
        std::net::TcpListener::bind(("127.0.0.1", port)).is_ok().then_some(())
    })
    .await;
    let app = super::taking("topic").port(port).start().await;
    let calls = app.wait_calls("POST /in", 1).await;
    assert_eq!(event(&calls[0])["data"], "meanwhile");
}

#[tokio::test]
async fn calls_to_the_app_are_limited() {
    let app = HttpApp::builder()
        .subscribe(&json!([{"pubsubname": EVENTS, "topic": "topic", "route": "/in"}]))
        .on_call("POST /in", |_| async {
            // Long enough for others to come in, were they let in.
            tokio::time::sleep(Duration::from_millis(20)).await;
            Answer::status(200)
        })
        .start()
        .await;
    let sidecar = subscribed(with_events("broker", &app).flag("app-max-concurrency", "1")).await;
    let [api, _] = sidecar.apis().await;
    for n in 0..10 {
        api.publish(EVENTS, "topic", "text/plain", format!("{n}"), &[]).await.unwrap();
    }
    app.wait_calls("POST /in", 10).await;
    assert_eq!(app.most_in_flight(), 1);
}

#[tokio::test]
async fn one_at_a_time_keeps_the_order() {
    let app = super::taking("topic").start().await;
    let builder = Sidecar::builder().app(&app);
    let folder = builder.folder().join("broker");
    let metadata = [("path", folder.to_str().unwrap()), ("concurrency", "single")];
    let sidecar = subscribed(builder.component(component(EVENTS, "pubsub.mecha", &metadata))).await;
    let [api, _] = sidecar.apis().await;
    let expected: Vec<Value> = (0..50).map(|n| json!(n)).collect();
    for n in &expected {
        api.publish(EVENTS, "topic", "application/json", n.to_string(), &[]).await.unwrap();
    }
    let calls = app.wait_calls("POST /in", 50).await;
    let got: Vec<Value> = calls.iter().map(|call| event(call)["data"].clone()).collect();
    assert_eq!(got, expected);
}

#[tokio::test]
async fn two_apps_each_get_every_event_and_two_copies_share_them() {
    let shared = tempfile::tempdir().unwrap();
    let document = super::document("broker", shared.path());
    let mut running = Vec::new();
    for id in ["one", "two", "two"] {
        let app = super::taking("topic").start().await;
        let sidecar = subscribed(Sidecar::builder().app_id(id).app(&app).component(&document)).await;
        running.push((app, sidecar));
    }
    let publisher = Sidecar::with("publisher", &[document]).await;
    let [api, _] = publisher.apis().await;
    for n in 0..20 {
        api.publish(EVENTS, "topic", "application/json", n.to_string(), &[]).await.unwrap();
    }
    running[0].0.wait_calls("POST /in", 20).await;
    let shared_calls = || running[1].0.calls("POST /in").len() + running[2].0.calls("POST /in").len();
    wait_until(Duration::from_secs(10), "the copies to have all", || async { shared_calls() >= 20 }).await;
    assert_eq!((running[0].0.calls("POST /in").len(), shared_calls()), (20, 20));
}
