//! What a failure does where the mode of the incumbent counts.

use mecha_tests::{Sidecar, component, wait_until};

use crate::support::{Documents, LIMIT, ended};

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
