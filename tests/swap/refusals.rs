//! What a failure does where the mode of the incumbent counts, and to whom.

use std::net::TcpListener;

use mecha_tests::{Sidecar, component, wait_until};

use crate::support::{Documents, LIMIT, ended, generation, swaps};

fn broken(ignore: bool) -> String {
    let text = component("store", "state.sqlite", &[("connectionString", "/nowhere/at/all.db")]);
    text.replace("spec:\n", &format!("spec:\n  ignoreErrors: {ignore}\n"))
}

#[tokio::test]
async fn bare_a_failed_component_ends_the_process() {
    let sidecar =
        Sidecar::builder().app_id("bare").document("store.yaml", &component("store", "state.in-memory", &[])).start();
    let sidecar = sidecar.await;
    Documents::of(&sidecar).write("store.yaml", &broken(false));
    let ended = sidecar.ended(LIMIT).await;
    assert_eq!(ended.code, Some(1));
    assert!(ended.log.contains("Error processing component, daprd will exit gracefully"), "{}", ended.log);
}

#[tokio::test]
async fn bare_a_failed_component_that_may_fail_is_gone() {
    let sidecar = Sidecar::builder()
        .app_id("bare")
        .document("store.yaml", &component("store", "state.in-memory", &[]))
        .document("other.yaml", &component("other", "state.in-memory", &[]))
        .start()
        .await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    documents.write("store.yaml", &broken(true));
    wait_until(LIMIT, "the component to be gone", async || http.get("/v1.0/state/store/a").send().await.status == 400)
        .await;
    sidecar.wait_log("Ignoring error processing component").await;
    // It comes back with a document that works, and the lines say so.
    documents.write("store.yaml", &component("store", "state.in-memory", &[]));
    ended(&http, 1, "Component", "store").await;
    http.get("/v1.0/state/store/a").send().await.expect(204);
    sidecar.wait_log("Component updated: store (state.in-memory/v1)").await;
}

#[tokio::test]
async fn a_backend_that_does_not_answer_holds_up_nothing_else() {
    // Connections are taken, and that is all.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let memory = |name: &str, prefix: &str| component(name, "state.in-memory", &[("keyPrefix", prefix)]);
    let sidecar = Sidecar::builder().app_id("patient").switch("mecha-strict");
    let sidecar =
        sidecar.document("store.yaml", &memory("store", "none")).document("other.yaml", &memory("other", "0"));
    let sidecar = sidecar.start().await;
    let (http, documents) = (sidecar.http(), Documents::of(&sidecar));
    http.post("/v1.0/state/store", r#"[{"key":"kept","value":"yes"}]"#).send().await.expect(204);

    let hour = [("redisHost", address.as_str()), ("dialTimeout", "1h"), ("readTimeout", "1h")];
    let hangs = component("store", "state.redis", &hour).replace("spec:\n", "spec:\n  initTimeout: 1h\n");
    documents.write("store.yaml", &hangs);
    sidecar.wait_log("Adding Component for processing: store (state.redis/v1)").await;
    for prefix in ["1", "2", "3"] {
        let before = generation(&http).await;
        documents.write("other.yaml", &memory("other", prefix));
        assert_eq!(ended(&http, before, "Component", "other").await["outcome"], "applied");
    }
    http.get("/v1.0/state/store/kept").send().await.expect(200);
    let all = swaps(&http).await;
    assert!(all["swaps"].as_array().unwrap().iter().all(|r| r["name"] == "other"), "{all:#}");

    // Nor is the repair of the same document held up.
    let before = generation(&http).await;
    documents.write("store.yaml", &memory("store", "name"));
    assert_eq!(ended(&http, before, "Component", "store").await["outcome"], "applied");
}
