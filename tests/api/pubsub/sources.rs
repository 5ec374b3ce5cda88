//! Where subscriptions come from.

use mecha_tests::{Answer, HttpApp, Sidecar, free_port, subscription};
use serde_json::json;

use super::{EVENTS, event, subscribed, taking, with_events};
use crate::support::{memory_pubsub, wait_subscriptions};

#[tokio::test]
async fn a_document_says_it_in_both_versions() {
    let app = HttpApp::builder().on("POST /*", Answer::status(200)).start().await;
    let old = "apiVersion: dapr.io/v1alpha1\nkind: Subscription\nmetadata:\n  name: old\nspec:\n  pubsubname: events\n  \
               topic: old\n  route: /old\nscopes: [app]\n";
    let foreign = format!("{}scopes: [other]\n", subscription("foreign", EVENTS, "foreign", "/foreign", ""));
    let sidecar = with_events("memory", &app)
        .component(subscription("new", EVENTS, "new", "/new", ""))
        .component(old)
        .component(foreign)
        .start()
        .await;
    let list = wait_subscriptions(&sidecar, 2).await;
    assert_eq!(list.len(), 2, "a subscription of another app: {list:?}");
    assert!(list.iter().all(|entry| entry["type"] == "DECLARATIVE"), "{list:?}");
    for api in sidecar.apis().await {
        app.forget();
        for topic in ["new", "old", "foreign"] {
            api.publish(EVENTS, topic, "", topic, &[]).await.unwrap();
        }
        assert_eq!(event(&app.wait_calls("POST /new", 1).await[0])["data"], "new");
        assert_eq!(event(&app.wait_calls("POST /old", 1).await[0])["data"], "old");
        assert!(app.calls("POST /foreign").is_empty());
    }
}

#[tokio::test]
async fn the_app_s_own_list_replaces_a_document() {
    let app = taking("topic").on("POST /by-document", Answer::status(200)).start().await;
    let sidecar =
        subscribed(with_events("memory", &app).component(subscription("doc", EVENTS, "topic", "/by-document", "")))
            .await;
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "topic", "", "x", &[]).await.unwrap();
    app.wait_calls("POST /in", 1).await;
    assert!(app.calls("POST /by-document").is_empty());
    let list = sidecar.metadata().await["subscriptions"].as_array().cloned().unwrap();
    assert_eq!(list.len(), 1, "{list:?}");
    assert_eq!(list[0]["type"], "PROGRAMMATIC");
}

#[tokio::test]
async fn the_app_is_asked_with_its_id() {
    let app = taking("topic").start().await;
    let sidecar = subscribed(with_events("memory", &app).app_id("me")).await;
    assert_eq!(app.calls("GET /dapr/subscribe")[0].header("dapr-app-id"), "me");
    assert!(sidecar.log().contains("app is subscribed to the following topics: [[topic]] through pubsub=events"));
}

#[tokio::test]
async fn a_list_that_is_none_leaves_documents_alone() {
    for answer in [Answer::status(500), Answer::text("no json"), Answer::json(&json!({"not": "a list"}))] {
        let shown = format!("{answer:?}");
        let app = HttpApp::builder()
            // The daemon asks again until the app gives a definite answer.
            .script("GET /dapr/subscribe", [answer, Answer::status(404)])
            .on("POST /doc", Answer::status(200))
            .start()
            .await;
        let sidecar =
            subscribed(with_events("memory", &app).component(subscription("doc", EVENTS, "topic", "/doc", ""))).await;
        let [api, _] = sidecar.apis().await;
        api.publish(EVENTS, "topic", "", "x", &[]).await.unwrap();
        assert_eq!(app.wait_calls("POST /doc", 1).await.len(), 1, "{shown}");
    }
}

#[tokio::test]
async fn a_bad_item_costs_itself_only() {
    let app = HttpApp::builder()
        .subscribe(&json!([
            {"pubsubname": EVENTS, "topic": "no-route"},
            {
                "pubsubname": EVENTS, "topic": "bad-match",
                "routes": {"rules": [{"match": "this is not CEL (", "path": "/bad"}], "default": "/bad"},
            },
            {"pubsubname": "nowhere", "topic": "lost", "route": "/lost"},
            {"pubsubname": EVENTS, "topic": "good", "route": "/good"},
        ]))
        .on("POST /*", Answer::status(200))
        .start()
        .await;
    let sidecar = subscribed(with_events("memory", &app)).await;
    let [api, _] = sidecar.apis().await;
    for topic in ["no-route", "bad-match", "good"] {
        api.publish(EVENTS, topic, "", topic, &[]).await.unwrap();
    }
    app.wait_calls("POST /good", 1).await;
    assert!(app.calls("POST /bad").is_empty());
    assert!(sidecar.log().contains("nowhere"), "an unknown pub/sub is logged");
}

#[tokio::test]
async fn a_document_with_a_bad_rule_is_dropped_with_a_line() {
    let app = HttpApp::builder().on("POST /*", Answer::status(200)).start().await;
    let bad = "apiVersion: dapr.io/v2alpha1\nkind: Subscription\nmetadata:\n  name: broken-rule\nspec:\n  pubsubname: \
               events\n  topic: bad\n  routes:\n    rules:\n      - match: \"this is not CEL (\"\n        path: /bad\n    \
               default: /bad\n";
    let sidecar = subscribed(
        with_events("memory", &app).component(bad).component(subscription("fine", EVENTS, "good", "/good", "")),
    )
    .await;
    let log = sidecar.log();
    let line = log.lines().find(|line| line.contains("this is not CEL")).expect("a line about the rule");
    for part in ["level=error", "001.yaml:1", "spec.routes.rules[0].match", "broken-rule"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "good", "", "x", &[]).await.unwrap();
    app.wait_calls("POST /good", 1).await;
}

#[tokio::test]
async fn asking_the_app_can_be_switched_off() {
    let app = taking("topic").start().await;
    let sidecar = with_events("memory", &app).flag("disable-init-endpoints", "subscribe,config").start().await;
    assert!(sidecar.log().contains("Skipping programmatic subscription loading"));
    assert!(sidecar.log().contains("Skipping programmatic dapr configuration loading"));
    assert!(app.calls("/dapr/subscribe").is_empty() && app.calls("/dapr/config").is_empty());
}

#[tokio::test]
async fn an_app_that_comes_late_gets_its_events() {
    let port = free_port();
    let builder = Sidecar::builder().flag("app-port", port.to_string());
    let folder = builder.folder().join("broker");
    let sidecar = builder.component(super::document("broker", &folder)).start_outbound().await;
    let [api, grpc] = sidecar.apis().await;
    api.publish(EVENTS, "topic", "", "early", &[]).await.unwrap();
    grpc.publish(EVENTS, "topic", "", "early too", &[]).await.unwrap();
    let app = taking("topic").port(port).start().await;
    app.wait_calls("POST /in", 2).await;
}

#[tokio::test]
async fn wildcards_match_in_memory() {
    let app = taking("orders*").start().await;
    let sidecar = subscribed(Sidecar::builder().app(&app).component(memory_pubsub(EVENTS))).await;
    let [api, _] = sidecar.apis().await;
    api.publish(EVENTS, "other", "", "no", &[]).await.unwrap();
    api.publish(EVENTS, "orders-new", "", "yes", &[]).await.unwrap();
    let calls = app.wait_calls("POST /in", 1).await;
    assert_eq!(event(&calls[0])["data"], "yes");
}
