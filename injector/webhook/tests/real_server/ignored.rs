//! Where the platform team lets pods start without their sidecar rather than not at all.

use serde_json::json;

use crate::harness::{Cluster, eventually, is_injected, opted_in};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_policy_ignore_pods_start_bare_while_the_webhook_is_away_and_are_repaired_when_it_is_back() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    injector.kill().await;
    let ignore = r#"[{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]"#;
    cluster.server.kubectl(&["patch", "mutatingwebhookconfiguration", "mecha-injector", "--type=json", "-p", ignore]);
    // With an owner, as what a Deployment makes has one.
    let mut pod = opted_in("orders-1");
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "orders", "uid": "0d6f7c52-6f0e-4a7e-9c2a-2f4c1b7b7a10",
        "controller": true,
    }]);
    // The API server learns of the edit by a watch of its own.
    let bare =
        eventually("a pod that starts without its sidecar", async || cluster.create("default", &pod).await.ok()).await;
    assert!(!is_injected(&bare));

    let injector = cluster.injector("b", cluster.options()).await;
    assert!(cluster.event("default", "SidecarMissing").await.contains("has none"));
    eventually("the bare pod was evicted", async || cluster.pods("default").is_empty().then_some(())).await;
    let again = cluster.create("default", &pod).await.unwrap();
    assert!(is_injected(&again), "what its owner makes in its place is whole");
    assert_eq!(cluster.registration()["webhooks"][0]["failurePolicy"], "Fail", "the policy is ours again");
    injector.stop().await;
}
