//! Edits of every kind of document, under load.

use std::time::Duration;

use mecha_tests::{Answer, HttpApp, Sidecar, Signal, component, subscription, wait_until};

use crate::load::{Events, Load, state};
use crate::support::{Documents, LIMIT, ended, generation, metric, nothing_refused, refused, swaps, switched};

fn memory(name: &str) -> String {
    component(name, "state.in-memory", &[])
}

fn sqlite(file: &str, busy: &str) -> String {
    component("store", "state.sqlite", &[("connectionString", file), ("busyTimeout", busy)])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn components_are_edited_broken_repaired_removed_and_added_again_under_load() {
    let (events, app) = Events::app(HttpApp::builder());
    let app = app.start().await;
    let builder = Sidecar::builder().app_id("edits").app(&app).switch("mecha-strict");
    let file = builder.folder().join("state.db").to_str().unwrap().to_owned();
    let broker = builder.folder().join("broker").to_str().unwrap().to_owned();
    let bus = |more: &str| component("bus", "pubsub.mecha", &[("path", &broker), ("maxLenApprox", more)]);
    let sidecar = builder
        .document("store.yaml", &sqlite(&file, "2s"))
        .document("other.yaml", &memory("other"))
        .document("bus.yaml", &bus("100000"))
        .document("sub.yaml", &subscription("orders", "bus", "orders", "/events", "deadLetterTopic: dead\n"))
        .document("dead.yaml", &subscription("dead", "bus", "dead", "/dead", ""))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    http.post("/v1.0/state/other", r#"[{"key":"kept","value":"yes"}]"#).send().await.expect(204);
    let calls = Load::start(sidecar.http_port(), 500, state("store"));
    let messages = events.publish(sidecar.http_port(), 200, "bus", "orders");
    calls.more(200).await;

    // Edit.
    let before = generation(&http).await;
    documents.write("store.yaml", &sqlite(&file, "3s"));
    let (receipt, took) = switched(&http, before, "Component", "store").await;
    println!("edit of a state store: seen after {took:?}, switched in {} ms", receipt["switchMs"]);
    assert_eq!((receipt["from"].as_str(), receipt["to"].as_str()), (Some("state.sqlite/v1"), Some("state.sqlite/v1")));
    calls.more(100).await;
    let before = generation(&http).await;
    documents.write("bus.yaml", &bus("90000"));
    let (receipt, took) = switched(&http, before, "Component", "bus").await;
    println!("edit of a broker: seen after {took:?}, switched in {} ms", receipt["switchMs"]);
    let receipt = ended(&http, before, "Component", "bus").await;
    assert_eq!((receipt["failed"].as_u64(), receipt["outcome"].as_str()), (Some(0), Some("applied")));

    // Break: no YAML, then a type that does not exist, then a backend that cannot be.
    let before = generation(&http).await;
    for broken in [
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: [".to_owned(),
        component("store", "state.nothing", &[]),
        sqlite("/nowhere/at/all.db", "2s"),
    ] {
        documents.write("store.yaml", &broken);
        refused(&http, "Component", "store").await;
        calls.more(50).await;
    }
    let metadata = sidecar.metadata().await;
    assert!(metadata["extended"]["mecha.refused.Component.store"].is_string(), "{metadata}");
    assert!(metric(&sidecar, "mecha_reload_refused", &["kind=\"Component\""]).await >= 1.0);
    sidecar.wait_log("the change is refused").await;
    let all = swaps(&http).await;
    assert!(all["swaps"].as_array().unwrap().iter().any(|r| r["outcome"] == "refused"), "{all}");

    // Repair.
    documents.write("store.yaml", &sqlite(&file, "4s"));
    ended(&http, before + 1, "Component", "store").await;
    nothing_refused(&http).await;

    // Remove and add one that nobody needs just now.
    let before = generation(&http).await;
    documents.remove("other.yaml");
    let receipt = ended(&http, before, "Component", "other").await;
    assert_eq!(receipt["change"], "removed");
    http.get("/v1.0/state/other/kept").send().await.expect(400);
    documents.write("other.yaml", &memory("other"));
    let receipt = ended(&http, receipt["generation"].as_u64().unwrap(), "Component", "other").await;
    assert_eq!(receipt["change"], "added");
    http.get("/v1.0/state/other/kept").send().await.expect(204);

    calls.end("state calls over edits").await;
    messages.end("publishers over edits").await;
    events.all_arrived("edits").await;
}

/// A file that its connection has for itself: the old instance has to go first, and comes back when the new one fails.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn instances_that_cannot_be_beside_each_other_take_turns() {
    let builder = Sidecar::builder().app_id("alone").switch("mecha-strict");
    let file = builder.folder().join("state.db").to_str().unwrap().to_owned();
    let alone = format!("file:{file}?_pragma=locking_mode(EXCLUSIVE)");
    let sidecar = builder.document("store.yaml", &sqlite(&alone, "2s")).start().await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    http.post("/v1.0/state/store", r#"[{"key":"kept","value":"yes"}]"#).send().await.expect(204);
    let there = async || assert_eq!(http.get("/v1.0/state/store/kept").send().await.expect(200).text(), "\"yes\"");
    // Alone after alone, beside others after alone, and alone again.
    for document in [sqlite(&alone, "3s"), sqlite(&file, "3s"), sqlite(&alone, "4s")] {
        let before = generation(&http).await;
        documents.write("store.yaml", &document);
        let receipt = ended(&http, before, "Component", "store").await;
        assert_eq!(receipt["outcome"], "applied", "{receipt}");
        there().await;
    }
    // The next one gets so far that it takes the file, and no further.
    let broken = sqlite(&alone, "5s") + "  - {name: metadataTableName, value: sqlite_mine}\n";
    documents.write("store.yaml", &broken);
    let reason = refused(&http, "Component", "store").await;
    println!("refused: {reason}");
    there().await;
    sidecar.wait_log("what runs stays as it is, the change is refused").await;
    documents.write("store.yaml", &sqlite(&alone, "6s"));
    nothing_refused(&http).await;
    there().await;
}

/// A file that is being written in place, and a second document of a name that is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_takes_away_on_purpose_stays() {
    let builder = Sidecar::builder().app_id("kept").switch("mecha-strict");
    let file = builder.folder().join("state.db").to_str().unwrap().to_owned();
    let config = builder.folder().join("resources/config.yaml").to_str().unwrap().to_owned();
    let configuration = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: config}\nspec:\n  \
                         secrets:\n    scopes: [{storeName: secrets, defaultAccess: deny}]\n";
    let sidecar = builder
        .flag("config", config)
        .document("config.yaml", configuration)
        .document("env.yaml", &component("secrets", "secretstores.local.env", &[]))
        .document("store.yaml", &memory("store"))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let in_place = |file: &str, text: &str| std::fs::write(sidecar.resources().join(file), text).unwrap();
    let calls = Load::start(sidecar.http_port(), 200, state("store"));
    http.post("/v1.0/state/store", r#"[{"key":"kept","value":"yes"}]"#).send().await.expect(204);
    let there = async || assert_eq!(http.get("/v1.0/state/store/kept").send().await.expect(200).text(), "\"yes\"");

    for text in ["", "apiVersion: dap"] {
        in_place("store.yaml", text);
        let reason = refused(&http, "Component", "store").await;
        assert!(reason.contains("holds no document any more; delete the file"), "{reason}");
        calls.more(20).await;
        in_place("store.yaml", &memory("store"));
        nothing_refused(&http).await;
        there().await;
    }
    // A Configuration that cannot be read keeps nothing else out, and leaves a receipt.
    let broken = configuration.replace("metadata: {", "metadata: {{");
    for (text, part) in [("", "config.yaml is empty"), (&broken, "config.yaml:3")] {
        let before = generation(&http).await;
        in_place("config.yaml", text);
        let reason = refused(&http, "Configuration", "config").await;
        assert!(reason.contains(part), "{reason}");
        let receipt = ended(&http, before, "Configuration", "config").await;
        assert_eq!((&receipt["outcome"], &receipt["reason"]), (&"refused".into(), &reason.as_str().into()));
        let metadata = sidecar.metadata().await;
        assert_eq!(metadata["extended"]["mecha.refused.Configuration.config"], reason.as_str(), "{metadata}");
        assert!(metric(&sidecar, "mecha_reload_refused", &["kind=\"Configuration\""]).await >= 1.0);
        documents.write("more.yaml", &memory(&format!("more{before}")));
        assert_eq!(ended(&http, before, "Component", &format!("more{before}")).await["outcome"], "applied");
        http.get("/v1.0/secrets/secrets/PATH").send().await.expect(403);
        in_place("config.yaml", configuration);
        nothing_refused(&http).await;
    }
    sidecar.wait_log("Configuration config stays as it was, the change is refused").await;

    // In a file that is read before the one that defined it so far.
    let before = generation(&http).await;
    documents.write("a.yaml", &sqlite(&file, "2s"));
    let reason = refused(&http, "Component", "store").await;
    assert!(reason.starts_with("it is defined 2 times: ") && reason.contains("a.yaml:1"), "{reason}");
    documents.write("other.yaml", &memory("other"));
    assert_eq!(ended(&http, before, "Component", "other").await["change"], "added");
    there().await;
    let all = swaps(&http).await;
    let refusals =
        all["swaps"].as_array().unwrap().iter().filter(|r| r["outcome"] == "refused" && r["name"] == "store");
    assert_eq!(refusals.count(), 3, "{all:#}");
    assert!(metric(&sidecar, "mecha_swap_total", &["outcome=\"refused\""]).await >= 3.0);
    let before = generation(&http).await;
    documents.remove("store.yaml");
    assert_eq!(ended(&http, before, "Component", "store").await["to"], "state.sqlite/v1");
    nothing_refused(&http).await;
    calls.end("state calls over files that are being written").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_did_not_change_is_not_touched() {
    let builder = Sidecar::builder().app_id("still").switch("mecha-strict");
    let config = builder.folder().join("resources/config.yaml").to_str().unwrap().to_owned();
    let configuration = |scopes: &str| {
        format!("apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {{name: config}}\nspec:\n{scopes}")
    };
    let mut sidecar = builder
        .flag("config", config)
        .document("config.yaml", &configuration("  features: []\n"))
        .document("store.yaml", &memory("store"))
        .document("env.yaml", &component("secrets", "secretstores.local.env", &[]))
        .env("TOP_SECRET", "x")
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    http.post("/v1.0/state/store", r#"[{"key":"a","value":1}]"#).send().await.expect(204);
    // The same content, written again and with a comment, in another file order.
    documents.write("store.yaml", &memory("store"));
    documents.write("store.yaml", &format!("# a comment\n{}", memory("store")));
    documents.write("a-first.yaml", &component("another", "state.in-memory", &[]));
    ended(&http, 0, "Component", "another").await;
    assert_eq!(generation(&http).await, 1);
    // A Configuration that concerns something else.
    http.get("/v1.0/secrets/secrets/TOP_SECRET").send().await.expect(200);
    documents.write(
        "config.yaml",
        &configuration("  secrets:\n    scopes:\n    - {storeName: secrets, defaultAccess: deny}\n"),
    );
    let receipt = ended(&http, 1, "Configuration", "config").await;
    assert_eq!(receipt["outcome"], "applied");
    http.get("/v1.0/secrets/secrets/TOP_SECRET").send().await.expect(403);
    // SIGHUP in strict mode compares too.
    sidecar.signal(Signal::Hup);
    sidecar.wait_log("Received signal 'hangup'").await;
    documents.write("a-first.yaml", &component("another", "state.in-memory", &[("keyPrefix", "none")]));
    ended(&http, 2, "Component", "another").await;
    assert_eq!(generation(&http).await, 3);
    assert_eq!(http.get("/v1.0/state/store/a").send().await.expect(200).text(), "1");
    assert!(sidecar.runs());
}

/// One of several is wrong: the others apply, and an edit that is taken back is forgotten.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mistake_in_one_policy_keeps_no_other_out() {
    let policy = |name: &str, trip: &str| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {{name: {name}}}\nspec:\n  policies:\n    \
             circuitBreakers:\n      {name}: {{trip: '{trip}'}}\n  targets: {{}}\n"
        )
    };
    let (right, wrong) = ("consecutiveFailures > 5", "consecutiveFailures >");
    let builder = Sidecar::builder().app_id("policies").switch("mecha-strict");
    let sidecar = builder.document("one.yaml", &policy("one", right)).start().await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    // Two mistakes and one that is right, at once.
    documents.write("all.yaml", &[policy("two", wrong), policy("three", wrong), policy("four", right)].join("---\n"));
    assert_eq!(ended(&http, 0, "Resiliency", "four").await["outcome"], "applied");
    for name in ["two", "three"] {
        let reason = refused(&http, "Resiliency", name).await;
        assert!(reason.contains(&format!("circuit breaker {name}")), "{reason}");
        assert_eq!(ended(&http, 0, "Resiliency", name).await["outcome"], "refused");
    }
    // One is mended, the other taken away again.
    let before = generation(&http).await;
    documents.write("all.yaml", &[policy("two", right), policy("four", right)].join("---\n"));
    assert_eq!(ended(&http, before, "Resiliency", "two").await["change"], "added");
    nothing_refused(&http).await;
    // What was there is broken, and then as it was.
    documents.write("one.yaml", &policy("one", wrong));
    refused(&http, "Resiliency", "one").await;
    let before = generation(&http).await;
    documents.write("one.yaml", &policy("one", right));
    nothing_refused(&http).await;
    assert_eq!(generation(&http).await, before);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn subscriptions_endpoints_policies_and_settings_apply_while_it_serves() {
    let app = HttpApp::builder().on("/new", Answer::status(200)).on("/first", Answer::text("first")).start().await;
    let (one, two) = (
        HttpApp::builder().on("/who", Answer::text("one")).start().await,
        HttpApp::builder().on("/who", Answer::text("two")).on("/slow", Answer::status(500)).start().await,
    );
    let endpoint = |app: &HttpApp| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: HTTPEndpoint\nmetadata: {{name: outside}}\n\
             spec: {{baseUrl: 'http://127.0.0.1:{}'}}\n",
            app.port()
        )
    };
    let policy = |retries: u32| {
        format!(
            "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata: {{name: policies}}\nspec:\n  policies:\n    \
             retries:\n      some: {{policy: constant, duration: 1ms, maxRetries: {retries}}}\n  targets:\n    apps:\n      \
             outside: {{retry: some}}\n"
        )
    };
    let builder = Sidecar::builder().app_id("settings").app(&app).switch("mecha-strict");
    let config = builder.folder().join("resources/config.yaml").to_str().unwrap().to_owned();
    let configuration = |spec: &str| {
        format!("apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {{name: config}}\nspec:\n{spec}")
    };
    let sidecar = builder
        .flag("config", config)
        .document("config.yaml", &configuration("  features: []\n"))
        .document("bus.yaml", &component("bus", "pubsub.in-memory", &[]))
        .document("outside.yaml", &endpoint(&one))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let calls = Load::start(sidecar.http_port(), 100, |_| crate::load::Ask {
        method: "GET",
        path: "/v1.0/invoke/outside/method/who".into(),
        body: String::new(),
        right: Box::new(|status, body| status == 200 && (body == "one" || body == "two")),
    });
    calls.more(20).await;

    documents.write("outside.yaml", &endpoint(&two));
    ended(&http, 0, "HTTPEndpoint", "outside").await;
    sidecar.wait_log("Received HTTPEndpoint UPDATED event: outside").await;
    assert_eq!(http.get("/v1.0/invoke/outside/method/who").send().await.expect(200).text(), "two");

    // What cannot be leaves the one of before, which is shown wherever somebody looks.
    let shown = async |kind: &str, name: &str, part: &str| {
        let reason = refused(&http, kind, name).await;
        assert!(reason.contains(part), "{kind} {name}: {reason}");
        let metadata = sidecar.metadata().await;
        assert_eq!(metadata["extended"][format!("mecha.refused.{kind}.{name}")], reason.as_str(), "{metadata}");
        assert!(metric(&sidecar, "mecha_reload_refused", &[&format!("kind=\"{kind}\"")]).await >= 1.0);
        sidecar.wait_log(&format!("{kind} {name} stays as it was")).await;
    };
    documents.write("outside.yaml", &endpoint(&two).replace("http://127.0.0.1", "ftp://127.0.0.1"));
    shown("HTTPEndpoint", "outside", "spec.baseUrl").await;
    assert_eq!(http.get("/v1.0/invoke/outside/method/who").send().await.expect(200).text(), "two");
    documents.write("outside.yaml", &endpoint(&two));
    nothing_refused(&http).await;

    // Without a policy one call is one call; with two retries it is three.
    http.get("/v1.0/invoke/outside/method/slow").send().await.expect(500);
    assert_eq!(two.calls("/slow").len(), 1);
    let before = generation(&http).await;
    documents.write("policies.yaml", &policy(2));
    ended(&http, before, "Resiliency", "policies").await;
    http.get("/v1.0/invoke/outside/method/slow").send().await.expect(500);
    assert_eq!(two.calls("/slow").len(), 4);
    documents.write("policies.yaml", &policy(5).replace("1ms", "soon"));
    shown("Resiliency", "policies", "soon").await;
    http.get("/v1.0/invoke/outside/method/slow").send().await.expect(500);
    assert_eq!(two.calls("/slow").len(), 7, "the policy of before goes on");
    documents.write("policies.yaml", &policy(2));
    nothing_refused(&http).await;

    let before = generation(&http).await;
    documents.write("sub.yaml", &subscription("new", "bus", "news", "/new", ""));
    ended(&http, before, "Subscription", "new").await;
    wait_until(LIMIT, "the new subscription to deliver", async || {
        http.post("/v1.0/publish/bus/news", r#"{"a":1}"#).send().await.expect(204);
        !app.calls("/new").is_empty()
    })
    .await;
    let rule = "routes:\n    rules: [{match: 'event.type ==', path: /new}]\n";
    let broken = subscription("new", "bus", "news", "/new", "").replace("routes:\n", rule);
    documents.write("sub.yaml", &broken);
    shown("Subscription", "new", "event.type ==").await;
    let before = app.calls("/new").len();
    http.post("/v1.0/publish/bus/news", r#"{"a":1}"#).send().await.expect(204);
    wait_until(LIMIT, "the subscription of before to deliver", async || app.calls("/new").len() > before).await;
    documents.write("sub.yaml", &subscription("new", "bus", "news", "/new", ""));
    nothing_refused(&http).await;
    let before = generation(&http).await;
    documents.remove("sub.yaml");
    ended(&http, before, "Subscription", "new").await;
    let metadata = sidecar.metadata().await;
    assert!(metadata["subscriptions"].as_array().is_none_or(Vec::is_empty), "{metadata}");

    // Which APIs are open, and a section that is wrong: refused with the reason.
    let before = generation(&http).await;
    documents.write("config.yaml", &configuration("  api:\n    denied:\n    - {name: metadata, version: v1}\n"));
    ended(&http, before, "Configuration", "config").await;
    assert_ne!(http.get("/v1.0/metadata").send().await.status, 200);
    documents.write("config.yaml", &configuration("  metrics: {http: {pathMatching: [orders]}}\n"));
    let reason = refused(&http, "Configuration", "config").await;
    assert!(reason.contains("pathMatching"), "{reason}");
    assert_ne!(http.get("/v1.0/metadata").send().await.status, 200, "the old settings go on");
    documents.write("config.yaml", &configuration("  features: []\n"));
    nothing_refused(&http).await;
    wait_until(LIMIT, "the API to be open again", async || http.get("/v1.0/metadata").send().await.status == 200).await;
    calls.end("calls to an endpoint over edits").await;
}

#[tokio::test]
async fn without_the_feature_only_a_signal_counts() {
    let sidecar = Sidecar::builder()
        .app_id("cold")
        .switch("mecha-strict")
        .configuration("features: [{name: HotReload, enabled: false}]")
        .document("store.yaml", &memory("store"))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    documents.write("other.yaml", &memory("other"));
    // Long enough for a watch to have seen it.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(generation(&http).await, 0);
    sidecar.signal(Signal::Hup);
    ended(&http, 0, "Component", "other").await;
}
