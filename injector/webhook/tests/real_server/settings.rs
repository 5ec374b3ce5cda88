//! The configuration of the injector, edited while it runs.

use serde_json::{Value, json};

use crate::harness::{Cluster, eventually, opted_in, variable};

fn config_map(name: &str, key: &str, text: &str) -> String {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "mecha-system"}, "data": {key: text}})
        .to_string()
}

async fn sidecar(cluster: &Cluster) -> Value {
    cluster.try_out("default", &opted_in("orders")).await.unwrap()["spec"]["initContainers"][0].clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn edits_count_for_the_next_pod_and_a_bad_one_keeps_the_last_good() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let image = async |image: &str| {
        eventually(image, async || (sidecar(&cluster).await["image"] == image).then_some(())).await;
    };
    image(&mecha_patch::Config::default().image).await;
    cluster.server.apply(&config_map("mecha-injector", "config.yaml", "image: mechad:7\n")).unwrap();
    image("mechad:7").await;

    cluster.server.apply(&config_map("mecha-injector", "config.yaml", "image: mechad:8\nimgae: typo\n")).unwrap();
    let note = cluster.event("mecha-system", "ConfigurationRefused").await;
    assert!(note.contains("imgae") && note.contains("last good"), "{note}");
    assert_eq!(injector.metric("mecha_injector_configuration_refused"), 1.0);
    image("mechad:7").await;
    cluster.server.kubectl(&["-n", "mecha-system", "delete", "configmap", "mecha-injector"]);
    image("mechad:7").await;
    cluster.server.apply(&config_map("mecha-injector", "config.json", "{\"image\": \"mechad:9\"}")).unwrap();
    image("mechad:9").await;
    eventually("no complaint", async || (injector.metric("mecha_injector_configuration_refused") == 0.0).then_some(()))
        .await;

    cluster.server.apply(&config_map("mecha-trust-bundle", "ca.crt", "the roots")).unwrap();
    eventually("the roots", async || {
        (variable(&sidecar(&cluster).await, "DAPR_TRUST_ANCHORS") == Some("the roots")).then_some(())
    })
    .await;
    injector.stop().await;
}
