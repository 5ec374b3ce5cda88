//! The headless Service of each app.

use serde_json::{Value, json};

use crate::harness::{Cluster, eventually};

fn workload(kind: &str, name: &str, annotations: &Value) -> Value {
    let mut workload = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": [{"name": "app", "image": "app:1"}]},
            },
        },
    });
    if kind == "StatefulSet" {
        workload["spec"]["serviceName"] = json!(name);
    }
    workload
}

fn service(cluster: &Cluster, name: &str) -> Option<Value> {
    let text = cluster.server.kubectl_refused(&["-n", "default", "get", "service", name, "-o", "json"]).ok()?;
    serde_json::from_str(&text).ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_app_has_a_service_that_follows_its_annotations_and_goes_when_it_opts_out() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let orders = |annotations: Value| {
        cluster.server.apply(&workload("Deployment", "orders", &annotations).to_string()).unwrap();
    };
    orders(json!({"dapr.io/enabled": "true", "dapr.io/app-id": "cart"}));
    cluster.server.apply(&workload("StatefulSet", "stock", &json!({"mecha.dev/enabled": "yes"})).to_string()).unwrap();
    let cart = eventually("the Service of the Deployment", async || service(&cluster, "cart-dapr")).await;
    assert_eq!((&cart["spec"]["clusterIP"], &cart["spec"]["selector"]), (&json!("None"), &json!({"app": "orders"})));
    assert_eq!(cart["metadata"]["annotations"]["prometheus.io/port"], "9090");
    let owner = &cart["metadata"]["ownerReferences"][0];
    assert_eq!(
        (&owner["kind"], &owner["name"], &owner["controller"]),
        (&json!("Deployment"), &json!("orders"), &json!(true))
    );
    eventually("the Service of the StatefulSet", async || service(&cluster, "stock-dapr")).await;

    orders(json!({"dapr.io/enabled": "true", "dapr.io/app-id": "cart", "dapr.io/metrics-port": "9100"}));
    eventually("the new port", async || {
        let cart = service(&cluster, "cart-dapr")?;
        (cart["metadata"]["annotations"]["prometheus.io/port"] == "9100" && cart["spec"]["ports"][3]["port"] == 9100)
            .then_some(())
    })
    .await;
    orders(json!({"dapr.io/enabled": "true", "dapr.io/app-id": "cart",
        "dapr.io/sidecar-svc-annotations": "example.com/team=a, example.com/tier=b"}));
    let says = async |key: &str| {
        let said = service(&cluster, "cart-dapr")?["metadata"]["annotations"][key].clone();
        said.as_str().map(str::to_owned)
    };
    eventually("the author's annotations", async || (says("example.com/tier").await? == "b").then_some(())).await;
    assert_eq!(says("prometheus.io/port").await.as_deref(), Some("9090"));
    // What is wanted no more goes, also where nothing else has changed.
    orders(json!({"dapr.io/enabled": "true", "dapr.io/app-id": "cart", "dapr.io/enable-metrics": "false"}));
    eventually("metrics are off, and no team", async || {
        let there = [says("prometheus.io/port").await, says("example.com/team").await];
        (there == [None, None]).then_some(())
    })
    .await;

    // What somebody deletes comes back; what belongs to somebody else is left alone, and the workload says so.
    cluster.server.kubectl(&["-n", "default", "delete", "service", "cart-dapr"]);
    eventually("the Service is back", async || service(&cluster, "cart-dapr")).await;
    let foreign = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "taken-dapr", "namespace": "default"},
        "spec": {"ports": [{"port": 7}], "selector": {"somebody": "else"}}});
    cluster.server.apply(&foreign.to_string()).unwrap();
    cluster.server.apply(&workload("Deployment", "taken", &json!({"dapr.io/enabled": "true"})).to_string()).unwrap();
    assert!(cluster.event("default", "ServiceTaken").await.contains("taken-dapr"));
    assert_eq!(service(&cluster, "taken-dapr").unwrap()["spec"]["ports"][0]["port"], 7);

    // So it is where the API server takes no Service of that name.
    let digit = json!({"dapr.io/enabled": "true", "dapr.io/app-id": "1st", "dapr.io/sidecar-svc-annotations": "a/b=c"});
    cluster.server.apply(&workload("Deployment", "digit", &digit).to_string()).unwrap();
    eventually("a Service, or why there is none", async || {
        let told = cluster.server.kubectl(&["-n", "default", "get", "events", "-o", "jsonpath={.items[*].reason}"]);
        (service(&cluster, "1st-dapr").is_some() || told.contains("ServiceRefused")).then_some(())
    })
    .await;

    // A mistake in an annotation that came in while nobody looked is told on the Deployment; the Service stays.
    cluster.front.freeze(true);
    orders(json!({"dapr.io/enabled": "true", "dapr.io/app-id": "cart", "dapr.io/app-port": "http"}));
    cluster.front.freeze(false);
    assert!(cluster.event("default", "SidecarRefused").await.contains("annotation dapr.io/app-port"));
    assert!(service(&cluster, "cart-dapr").is_some());
    orders(json!({"dapr.io/enabled": "false"}));
    eventually("the Service is gone", async || service(&cluster, "cart-dapr").is_none().then_some(())).await;
    assert!(service(&cluster, "stock-dapr").is_some());
    injector.stop().await;
}
