//! Pods that were created without their sidecar.

use std::time::Duration;

use mecha_testkit::servers::KubernetesOptions;
use mecha_webhook::{Options, RepairOptions};
use serde_json::{Value, json};

use crate::harness::{Cluster, eventually, is_injected, opted_in};

fn deployment(name: &str, replicas: u32) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": {"dapr.io/enabled": "true"}},
                "spec": {"containers": [{"name": "app", "image": "app:1"}]},
            },
        },
    })
}

fn of_app(cluster: &Cluster, app: &str) -> Vec<Value> {
    cluster.pods("default").into_iter().filter(|pod| pod["metadata"]["labels"]["app"] == app).collect()
}

/// As a kubelet would report a pod that serves.
fn runs(cluster: &Cluster, pod: &Value) {
    let status = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    let name = pod["metadata"]["name"].as_str().unwrap();
    let text = status.to_string();
    cluster.server.kubectl(&[
        "-n",
        "default",
        "patch",
        "pod",
        name,
        "--subresource=status",
        "--type=merge",
        "-p",
        &text,
    ]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bare_pods_are_reported_and_then_made_anew_within_budgets_and_limits() {
    let Some(cluster) = Cluster::with(KubernetesOptions::new().controller_manager()).await else { return };
    for (name, replicas) in [("orders", 2), ("guarded", 1)] {
        cluster.server.apply(&deployment(name, replicas).to_string()).unwrap();
    }
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": {"name": "guarded", "namespace": "default"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}}});
    cluster.server.apply(&budget.to_string()).unwrap();
    let mut alone = opted_in("alone");
    alone["metadata"]["labels"] = json!({"app": "alone"});
    cluster.create("default", &alone).await.unwrap();
    let guarded = eventually("all pods are there", async || {
        let guarded = of_app(&cluster, "guarded");
        (of_app(&cluster, "orders").len() == 2 && guarded.len() == 1).then(|| guarded[0].clone())
    })
    .await;
    runs(&cluster, &guarded);
    eventually("the budget counts its pod", async || {
        let budget = cluster.json(&["-n", "default", "get", "poddisruptionbudget", "guarded"]);
        (budget["status"]["currentHealthy"] == 1).then_some(())
    })
    .await;

    let injector = cluster.injector("a", cluster.options()).await;
    eventually("the bare pods of orders were made anew", async || {
        let pods = of_app(&cluster, "orders");
        (pods.len() == 2 && pods.iter().all(is_injected)).then_some(())
    })
    .await;
    assert!(cluster.event("default", "SidecarMissing").await.contains("has none"));
    // A budget and a pod that nobody would make anew hold.
    cluster.event("default", "EvictionHeld").await;
    assert!(!is_injected(&of_app(&cluster, "guarded")[0]));
    assert!(!is_injected(&of_app(&cluster, "alone")[0]));
    cluster.server.kubectl(&["-n", "default", "delete", "poddisruptionbudget", "guarded"]);
    eventually("the guarded pod was made anew", async || {
        let pods = of_app(&cluster, "guarded");
        (pods.len() == 1 && is_injected(&pods[0])).then_some(())
    })
    .await;
    eventually("one pod stays bare", async || (injector.metric("mecha_injector_bare_pods") == 1.0).then_some(())).await;
    assert_eq!(of_app(&cluster, "alone")[0]["metadata"]["uid"], alone_uid(&cluster));
    assert_eq!(injector.metric("mecha_injector_evictions_total{result=\"evicted\"}"), 3.0);

    // Nobody evicts while a new pod would be bare, or refused, again.
    injector.stop().await;
    cluster.server.kubectl(&["delete", "mutatingwebhookconfiguration", "mecha-injector"]);
    cluster.server.apply(&deployment("again", 1).to_string()).unwrap();
    let bare = eventually("another bare pod", async || of_app(&cluster, "again").into_iter().next()).await;
    assert!(!is_injected(&bare));
    let report_only = RepairOptions { evict: false, after: Duration::ZERO, ..RepairOptions::default() };
    let injector = cluster.injector("b", Options { repair: report_only, ..cluster.options() }).await;
    eventually("it is seen", async || (injector.metric("mecha_injector_bare_pods") == 2.0).then_some(())).await;
    let note = eventually("it is reported", async || {
        cluster.events("default").into_iter().find(|(_, note)| note.contains("Delete it")).map(|(_, note)| note)
    })
    .await;
    assert!(note.contains("has none"));
    assert_eq!(of_app(&cluster, "again")[0]["metadata"]["uid"], bare["metadata"]["uid"]);
    injector.stop().await;
}

fn alone_uid(cluster: &Cluster) -> Value {
    cluster.json(&["-n", "default", "get", "pod", "alone"])["metadata"]["uid"].clone()
}
