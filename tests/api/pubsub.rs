//! Publish and subscribe.

mod bulk;
mod delivery;
mod envelope;
mod errors;
mod grpc_app;
mod routing;
mod scopes;
mod sources;
mod stream;

use mecha_tests::{Answer, Call, HttpApp, HttpAppBuilder, Sidecar, SidecarBuilder};
use serde_json::{Value, json};

use crate::support::{broker, memory_pubsub, wait_subscriptions};

/// Name of the pub/sub in these cases.
const EVENTS: &str = "events";

/// The two pub/subs of this wave: one in memory, one durable.
const KINDS: [&str; 2] = ["memory", "broker"];

fn with_events(kind: &str, app: &HttpApp) -> SidecarBuilder {
    let builder = Sidecar::builder().app(app);
    let folder = builder.folder().join("broker");
    builder.component(document(kind, &folder))
}

fn document(kind: &str, folder: &std::path::Path) -> String {
    if kind == "memory" { memory_pubsub(EVENTS) } else { broker(EVENTS, folder) }
}

/// An app that takes one topic at `/in` and answers 200.
fn taking(topic: &str) -> HttpAppBuilder {
    taking_with(topic, &json!({}))
}

/// The same with more said in the subscription.
fn taking_with(topic: &str, more: &Value) -> HttpAppBuilder {
    let mut item = json!({"pubsubname": EVENTS, "topic": topic, "route": "/in"});
    for (key, value) in more.as_object().unwrap() {
        item[key] = value.clone();
    }
    HttpApp::builder().subscribe(&json!([item])).on("POST /in", Answer::status(200))
}

/// Starts a sidecar whose subscriptions are in place.
async fn subscribed(builder: SidecarBuilder) -> Sidecar {
    let sidecar = builder.start().await;
    wait_subscriptions(&sidecar, 1).await;
    sidecar
}

/// The event of a delivery.
fn event(call: &Call) -> Value {
    assert_eq!(call.header("content-type"), "application/cloudevents+json");
    call.json()
}
