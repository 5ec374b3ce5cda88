//! Sections of a Configuration, edited one after the other under calls: each is in force over the wire, or all of it is
//! refused and what was there goes on.

use std::path::Path;

use mecha_tests::{Answer, Call, HttpApp, Sidecar, component, indent, wait_until};

use crate::load::{Load, state};
use crate::support::{Documents, LIMIT, ended, generation, metric, nothing_refused, refused, swaps};

/// A trace that nobody else makes.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

fn configuration(spec: &str) -> String {
    let head = "apiVersion: dapr.io/v1alpha1\nkind: Configuration\nmetadata: {name: config}\nspec:\n  features: []\n";
    format!("{head}{}", indent(spec, 2))
}

/// Apps are found by the file in this folder.
fn names(folder: &Path) -> String {
    let file = folder.join("names.db");
    format!(
        "nameResolution:\n  component: sqlite\n  version: v1\n  configuration:\n    connectionString: {}\n    \
         updateInterval: 60s\n",
        file.display()
    )
}

fn spans_to(app: &HttpApp, path: &str) -> String {
    let port = app.port();
    format!("tracing:\n  samplingRate: \"1\"\n  zipkin: {{endpointAddress: 'http://127.0.0.1:{port}{path}'}}\n")
}

fn holds(calls: &[Call], text: &str) -> bool {
    calls.iter().any(|call| String::from_utf8_lossy(&call.body).contains(text))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sections_of_a_configuration_apply_or_are_refused_together() {
    let app = HttpApp::builder().on("/x", Answer::text("ok")).on("/*", Answer::status(202)).start().await;
    let (nobody, both) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let other = Sidecar::builder().app_id("other").app(&app).configuration(&names(both.path())).start().await;
    let builder = Sidecar::builder().app_id("me").app(&app).switch("mecha-strict");
    let config = builder.folder().join("resources/config.yaml").to_str().unwrap().to_owned();
    let sidecar = builder
        .flag("config", config)
        .document("config.yaml", &configuration(&names(nobody.path())))
        .document("store.yaml", &component("store", "state.in-memory", &[]))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    let calls = Load::start(sidecar.http_port(), 100, state("store"));
    calls.more(20).await;
    let edit = async |spec: &str| {
        let before = generation(&http).await;
        documents.write("config.yaml", &configuration(spec));
        let receipt = ended(&http, before, "Configuration", "config").await;
        assert_eq!((&receipt["outcome"], &receipt["failed"]), (&"applied".into(), &0.into()), "{receipt}");
        sidecar.wait_log(&format!("swap {} applied: Configuration config", receipt["generation"])).await;
    };
    // What the app sees of a call to it, by its trace header.
    let traced = async || {
        let before = app.calls("/x").len();
        http.get("/v1.0/invoke/me/method/x").send().await.expect(200);
        !app.calls("/x")[before].header("traceparent").is_empty()
    };

    // Name resolution.
    assert_ne!(http.get("/v1.0/invoke/other/method/x").send().await.status, 200, "nobody is known there");
    let found = names(both.path());
    edit(&found).await;
    let finds = async |from: &Sidecar, whom: &str| {
        from.http().get(format!("/v1.0/invoke/{whom}/method/x")).send().await.status == 200
    };
    wait_until(LIMIT, "the other app to be found", async || finds(&sidecar, "other").await).await;
    wait_until(LIMIT, "this app to be found by the other", async || finds(&other, "me").await).await;

    // Who may call.
    edit(&format!("{found}accessControl: {{defaultAction: deny, trustDomain: public}}\n")).await;
    assert_eq!(other.http().get("/v1.0/invoke/me/method/x").send().await.status, 403);
    edit(&found).await;
    assert!(finds(&other, "me").await);

    // Tracing: on, elsewhere, off.
    assert!(!traced().await);
    edit(&format!("{found}{}", spans_to(&app, "/one"))).await;
    assert!(traced().await);
    wait_until(LIMIT, "spans at the first collector", async || !app.calls("POST /one").is_empty()).await;
    let second = format!("{found}{}", spans_to(&app, "/two"));
    edit(&second).await;
    let parent = format!("00-{TRACE}-b7ad6b7169203331-01");
    http.get("/v1.0/state/store/k").header("traceparent", &parent).send().await;
    wait_until(LIMIT, "spans at the second collector", async || holds(&app.calls("POST /two"), TRACE)).await;
    assert!(!holds(&app.calls("POST /one"), TRACE), "the first collector gets nothing any more");

    // What is for others only is said.
    edit(&format!("{second}mtls: {{enabled: false}}\n")).await;
    sidecar.wait_log("section mtls is for the certificate authority; flags decide what this sidecar does").await;

    // Several mistakes: all are told, and nothing of it is in force.
    let mistakes = "tracing: {samplingRate: '0'}\nhttpPipeline:\n  handlers: [{name: guard, type: middleware.http.bearer}]\n\
                    nameResolution: {component: nowhere}\nmetrics: {http: {pathMatching: [orders]}}\n";
    documents.write("config.yaml", &configuration(mistakes));
    let reason = refused(&http, "Configuration", "config").await;
    println!("refused: {reason}");
    for part in ["guard", "nowhere", "pathMatching"] {
        assert!(reason.contains(part), "{part} is not in: {reason}");
    }
    assert!(traced().await && finds(&sidecar, "other").await, "what was there goes on");
    let metadata = sidecar.metadata().await;
    assert_eq!(metadata["extended"]["mecha.refused.Configuration.config"], reason.as_str(), "{metadata}");
    assert!(metric(&sidecar, "mecha_reload_refused", &["kind=\"Configuration\""]).await >= 1.0);
    sidecar.wait_log("Configuration config stays as it was, the change is refused").await;
    let all = swaps(&http).await;
    let receipts = all["swaps"].as_array().unwrap();
    assert!(receipts.iter().any(|r| r["outcome"] == "refused" && r["reason"] == reason.as_str()), "{all:#}");

    edit(&format!("{found}tracing: {{samplingRate: '0'}}\n")).await;
    nothing_refused(&http).await;
    assert!(!traced().await);
    calls.end("state calls over edits of a Configuration").await;
}
