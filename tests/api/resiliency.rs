//! Policies, as an app and a caller notice them.

use std::time::{Duration, Instant};

use mecha_tests::{Answer, HttpApp, Sidecar, component};

use crate::support::{Pair, series, wait_series};

fn policy(policies: &str, targets: &str) -> String {
    format!(
        "apiVersion: dapr.io/v1alpha1\nkind: Resiliency\nmetadata:\n  name: mine\nspec:\n  policies:\n{}  targets:\n{}",
        mecha_tests::indent(policies, 4),
        mecha_tests::indent(targets, 4)
    )
}

const RETRIES: &str = "retries:\n  quick: {policy: constant, duration: 10ms, maxRetries: 3}\n";

#[tokio::test]
async fn a_flaky_app_is_asked_again() {
    let app = HttpApp::builder()
        .script("GET /flaky", [Answer::status(503), Answer::status(500), Answer::text("third time")])
        .script("GET /broken", [Answer::text("always").with_status(500)])
        .script("POST /unsafe", [Answer::status(503), Answer::text("second time")])
        .start()
        .await;
    let document = policy(RETRIES, "apps:\n  callee: {retry: quick}\n");
    let pair = Pair::built(|b| b.component(&document), |b| b.app(&app)).await;
    assert!(pair.caller.log().contains("Loading Resiliency configuration: mine"));
    let http = pair.caller.http();
    assert_eq!(http.get("/v1.0/invoke/callee/method/flaky").send().await.expect(200).text(), "third time");
    assert_eq!(app.calls("/flaky").len(), 3);
    // Used up: the app's own answer comes back.
    assert_eq!(http.get("/v1.0/invoke/callee/method/broken").send().await.expect(500).text(), "always");
    assert_eq!(app.calls("/broken").len(), 4);
    // What is not idempotent is not repeated once it has reached the app.
    http.post("/v1.0/invoke/callee/method/unsafe", "x").send().await.expect(503);
    assert_eq!(app.calls("/unsafe").len(), 1);
}

#[tokio::test]
async fn matching_says_which_answers_count() {
    let app = HttpApp::builder()
        .script("GET /listed", [Answer::status(429), Answer::text("second time")])
        .script("GET /other", [Answer::status(500), Answer::text("never seen")])
        .script("POST /listed", [Answer::status(429), Answer::text("second time")])
        .start()
        .await;
    let policies = "retries:\n  quick:\n    policy: constant\n    duration: 10ms\n    maxRetries: 3\n    matching:\n      \
                    httpStatusCodes: \"429,502-504\"\n";
    let document = policy(policies, "apps:\n  callee: {retry: quick}\n");
    let pair = Pair::built(|b| b.component(&document), |b| b.app(&app)).await;
    let http = pair.caller.http();
    http.get("/v1.0/invoke/callee/method/listed").send().await.expect(200);
    http.get("/v1.0/invoke/callee/method/other").send().await.expect(500);
    // Said in words, so it holds for every verb.
    http.post("/v1.0/invoke/callee/method/listed", "x").send().await.expect(200);
    assert_eq!((app.calls("GET /listed").len(), app.calls("/other").len(), app.calls("POST /listed").len()), (2, 1, 2));
}

#[tokio::test]
async fn a_slow_app_is_given_up() {
    let app = HttpApp::builder()
        .on_call("/slow", |_| async {
            tokio::time::sleep(Duration::from_secs(30)).await;
            Answer::text("late")
        })
        .start()
        .await;
    let document = policy("timeouts:\n  short: 300ms\n", "apps:\n  callee: {timeout: short}\n");
    let pair = Pair::built(|b| b.component(&document), |b| b.app(&app)).await;
    let begun = Instant::now();
    let reply = pair.caller.http().get("/v1.0/invoke/callee/method/slow").send().await;
    assert!(reply.status >= 500, "{}", reply.text());
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let labels = [("policy", "timeout"), ("target", "app_callee"), ("name", "mine"), ("flow_direction", "outbound")];
    wait_series(&pair.caller, "dapr_resiliency_activations_total", &labels, 1.0).await;
}

#[tokio::test]
async fn a_breaker_opens_and_closes() {
    let app = HttpApp::builder().on("/x", Answer::status(500)).start().await;
    let policies = "circuitBreakers:\n  careful: {maxRequests: 1, timeout: 1s, trip: \"consecutiveFailures >= 3\"}\n";
    let document = policy(policies, "apps:\n  callee: {circuitBreaker: careful}\n");
    let pair = Pair::built(|b| b.component(&document), |b| b.app(&app)).await;
    let http = pair.caller.http();
    let call = || http.get("/v1.0/invoke/callee/method/x").send();
    for _ in 0..3 {
        call().await.expect(500);
    }
    assert_eq!(app.calls("/x").len(), 3);
    for _ in 0..5 {
        let reply = call().await;
        assert_eq!((reply.status, reply.code().as_str()), (500, "ERR_DIRECT_INVOKE"), "{}", reply.text());
        assert!(reply.message().contains("circuit breaker is open"), "{}", reply.text());
    }
    assert_eq!(app.calls("/x").len(), 3, "an open breaker lets nothing through");
    let state = |status: &'static str| {
        let labels = [("policy", "circuitbreaker"), ("status", status), ("target", "app_callee")];
        let pair = &pair;
        async move { series(&pair.caller.metrics().await, "dapr_resiliency_cb_state", &labels) }
    };
    assert_eq!((state("open").await, state("closed").await.unwrap_or(0.0)), (Some(1.0), 0.0));
    app.set("/x", Answer::text("well again"));
    mecha_tests::eventually("the breaker to close", || async { (call().await.status == 200).then_some(()) }).await;
    assert_eq!((state("closed").await, state("open").await), (Some(1.0), Some(0.0)));
}

#[tokio::test]
async fn output_of_components_is_under_policy_too() {
    let there = HttpApp::builder().script("GET /x", [Answer::status(500), Answer::text("second time")]).start().await;
    let url = format!("http://127.0.0.1:{}/x", there.port());
    let sidecar = Sidecar::builder()
        .component(component("web", "bindings.http", &[("url", &url)]))
        .component(policy(RETRIES, "components:\n  web:\n    outbound: {retry: quick}\n"))
        .start()
        .await;
    let [api, _] = sidecar.apis().await;
    let (data, _) = api.binding("web", "get", "", &[]).await.unwrap();
    assert_eq!((data.unwrap().as_ref(), there.calls("/x").len()), (&b"second time"[..], 2));
}

#[tokio::test]
async fn a_default_policy_is_used_where_nothing_else_is_said() {
    let app = HttpApp::builder().script("GET /x", [Answer::status(500), Answer::text("second time")]).start().await;
    let policies = "retries:\n  DefaultAppRetryPolicy: {policy: constant, duration: 10ms, maxRetries: 3}\n";
    let document = policy(policies, "apps: {}\n");
    let pair = Pair::built(|b| b.component(&document), |b| b.app(&app)).await;
    pair.caller.http().get("/v1.0/invoke/callee/method/x").send().await.expect(200);
}

/// A policy of a kind that does not exist.
fn bad_policy() -> String {
    policy("retries:\n  odd: {policy: sometimes}\n", "apps:\n  callee: {retry: odd}\n")
}

#[tokio::test]
async fn a_bad_document_is_skipped_and_told() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let pair = Pair::built(|b| b.component(bad_policy()), |b| b.app(&app)).await;
    let log = pair.caller.log();
    let line = log.lines().find(|line| line.contains("'sometimes'")).expect("a line about the policy");
    for part in ["level=error", "000.yaml:8:", "spec.policies.retries.odd.policy", "constant, exponential"] {
        assert!(line.contains(part), "{part} in {line}");
    }
    pair.caller.http().get("/v1.0/invoke/callee/method/x").send().await.expect(200);
}

#[tokio::test]
async fn a_bad_document_is_told_with_the_known_words() {
    let sidecar = Sidecar::builder().component(bad_policy()).start().await;
    assert!(sidecar.log().contains("Could not read resiliency policy mine"), "{}", sidecar.log());
}

#[tokio::test]
async fn a_callee_that_comes_back_is_found_without_any_policy() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).start().await;
    let pair = Pair::with(&app).await;
    let Pair { caller, mut callee, .. } = pair;
    caller.http().get("/v1.0/invoke/callee/method/x").send().await.expect(200);
    callee.kill().await;
    callee.spawn_again();
    // Three tries, a second apart, bridge a restart.
    let reply = caller.http().get("/v1.0/invoke/callee/method/x").send().await;
    assert_eq!(reply.status, 200, "{}", reply.text());
}
