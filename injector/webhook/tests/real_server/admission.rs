//! Who is injected, who is not, and what people see when the webhook is away.

use std::time::{Duration, Instant};

use mecha_patch::asks;
use mecha_testkit::servers::KubernetesOptions;
use mecha_webhook::Options;
use serde_json::{Value, json};

use crate::harness::{Cluster, containers, eventually, is_injected, opted_in, pod, variable};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn opted_in_pods_get_their_sidecar_and_all_others_never_depend_on_the_webhook() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;

    let made = cluster.create("default", &opted_in("orders")).await.unwrap();
    assert_eq!(
        (containers(&made, "initContainers"), containers(&made, "containers")),
        (vec!["daprd".into()], vec!["app".into()])
    );
    assert_eq!(variable(&made["spec"]["containers"][0], "DAPR_HTTP_PORT"), Some("3500"));
    assert_eq!(made["metadata"]["labels"]["dapr.io/app-id"], "orders");
    let bare = cluster.create("default", &pod("plain", json!({}))).await.unwrap();
    assert!(!is_injected(&bare));
    assert_eq!(injector.metric("mecha_injector_admissions_total{result=\"not_asked\"}"), 0.0, "it was not even asked");

    let wrong =
        pod("wrong", json!({"dapr.io/enabled": "true", "dapr.io/app-port": "http", "dapr.io/log-level": "loud"}));
    let refused = cluster.create("default", &wrong).await.unwrap_err().to_string();
    for part in ["pods.injector.mecha.dev", "annotation dapr.io/app-port", "annotation dapr.io/log-level", "Write"] {
        assert!(refused.contains(part), "{part} is missing in: {refused}");
    }

    // Slow: the API server gives up after three seconds and says who is late; others do not notice.
    cluster.front.freeze(true);
    let started = Instant::now();
    let refused = cluster.try_out("default", &opted_in("slow")).await.unwrap_err().to_string();
    assert!(refused.contains("pods.injector.mecha.dev"), "{refused}");
    assert!(started.elapsed() < Duration::from_secs(20), "the timeout of the webhook counts");
    cluster.create("default", &pod("unhurried", json!({}))).await.unwrap();
    cluster.front.freeze(false);
    assert!(is_injected(&cluster.try_out("default", &opted_in("again")).await.unwrap()));

    // Away.
    injector.kill().await;
    let refused = cluster.create("default", &opted_in("late")).await.unwrap_err().to_string();
    assert!(refused.contains("failed calling webhook \"pods.injector.mecha.dev\""), "{refused}");
    for (namespace, pod) in [
        ("default", pod("other", json!({"dapr.io/enabled": "false"}))),
        ("default", pod("off", json!({"dapr.io/enabled": "true", "mecha.dev/enabled": "no"}))),
        ("kube-system", opted_in("system")),
        ("mecha-system", opted_in("ours")),
    ] {
        let made = cluster.create(namespace, &pod).await.unwrap();
        assert!(!is_injected(&made));
    }

    // Which pods the API server sends is what the pure function reads; an answer shows it, since nobody gives one.
    let words = [
        "",
        " ",
        "true",
        "TRUE",
        "yes",
        "Y",
        "on",
        "1",
        "t",
        "false",
        "False",
        " no ",
        "n",
        "off",
        "0",
        "f",
        "ja",
        "truee",
        "\u{a0}no\t",
    ];
    for ours in [None, Some("false"), Some("true"), Some(" "), Some("?")] {
        for daprs in words {
            let mut annotations = json!({"dapr.io/enabled": daprs});
            if let Some(ours) = ours {
                annotations["mecha.dev/enabled"] = json!(ours);
            }
            let pod = pod("spelling", annotations);
            let expected = asks(&pod).unwrap_or(true);
            let sent = cluster.try_out("default", &pod).await.is_err();
            assert_eq!(sent, expected, "{}", pod["metadata"]["annotations"]);
        }
    }
    for annotations in [Value::Null, json!({"a": "b"}), json!({"mecha.dev/enabled": "off"})] {
        assert!(cluster.try_out("default", &pod("spelling", annotations)).await.is_ok());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_injected_whoever_creates_them() {
    let Some(cluster) = Cluster::with(KubernetesOptions::new().controller_manager()).await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let template = json!({
        "metadata": {"labels": {"app": "orders"}, "annotations": {"dapr.io/enabled": "true"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": "app:1"}]},
    });
    let job = json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "nightly", "namespace": "default"},
        "spec": {"template": template}});
    cluster.server.apply(&job.to_string()).unwrap();
    let mut always = template;
    always["spec"]["restartPolicy"] = json!("Always");
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "orders", "namespace": "default"},
        "spec": {"selector": {"matchLabels": {"app": "orders"}}, "template": always}});
    cluster.server.apply(&deployment.to_string()).unwrap();
    let pods = eventually("the pods of Job and Deployment", async || {
        let pods = cluster.pods("default");
        (pods.len() == 2).then_some(pods)
    })
    .await;
    for pod in &pods {
        assert_eq!(containers(pod, "initContainers"), ["daprd"], "{}", pod["metadata"]["name"]);
    }
    let mut ids: Vec<&str> =
        pods.iter().map(|pod| pod["metadata"]["labels"]["dapr.io/app-id"].as_str().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["nightly", "orders"]);

    // A service account of a pipeline, with no right but to make pods.
    cluster.server.kubectl(&["create", "namespace", "build"]);
    eventually("the default service account", async || {
        cluster.server.kubectl_refused(&["-n", "build", "get", "serviceaccount", "default"]).ok()
    })
    .await;
    cluster.server.kubectl(&["-n", "build", "create", "role", "maker", "--verb=create,patch,get", "--resource=pods"]);
    cluster.server.kubectl(&[
        "-n",
        "build",
        "create",
        "rolebinding",
        "maker",
        "--role=maker",
        "--serviceaccount=build:pipeline",
    ]);
    let file = std::env::temp_dir().join(format!("mecha-webhook-pod-{}.json", std::process::id()));
    std::fs::write(&file, opted_in("made-by-a-pipeline").to_string()).unwrap();
    cluster.server.kubectl(&[
        "-n",
        "build",
        "--as=system:serviceaccount:build:pipeline",
        "create",
        "-f",
        &file.to_string_lossy(),
    ]);
    std::fs::remove_file(&file).unwrap();
    assert!(is_injected(&cluster.pods("build")[0]));
    injector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_servers_without_expressions_pick_pods_by_label() {
    let Some(cluster) = Cluster::start().await else { return };
    let options = Options { kubernetes_minor: Some(29), ..cluster.options() };
    let injector = cluster.injector("a", options).await;
    let mut labelled = opted_in("labelled");
    labelled["metadata"]["labels"] = json!({"mecha.dev/enabled": "true"});
    assert!(is_injected(&cluster.create("default", &labelled).await.unwrap()));
    // Without the label nobody asks the webhook, and the pod says so.
    assert!(!is_injected(&cluster.create("default", &opted_in("unlabelled")).await.unwrap()));
    assert!(cluster.event("default", "SidecarMissing").await.contains("mecha.dev/enabled"));
    eventually("the bare pod is counted", async || (injector.metric("mecha_injector_bare_pods") == 1.0).then_some(()))
        .await;
    injector.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_annotation_is_told_to_who_applies_the_workload() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let template = |port: &str| {
        json!({
            "metadata": {"labels": {"app": "orders"}, "annotations": {"dapr.io/enabled": "true", "dapr.io/app-port": port}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": "app:1"}]},
        })
    };
    let workload = |version: &str, kind: &str, spec: Value| {
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": "orders", "namespace": "default"}, "spec": spec})
            .to_string()
    };
    let deployment = |replicas: u32, port: &str| {
        let mut template = template(port);
        template["spec"]["restartPolicy"] = json!("Always");
        let selector = json!({"matchLabels": {"app": "orders"}});
        workload("apps/v1", "Deployment", json!({"replicas": replicas, "selector": selector, "template": template}))
    };
    let job = |port: &str| workload("batch/v1", "Job", json!({"template": template(port)}));
    let cron = |port: &str| {
        let spec = json!({"schedule": "0 3 * * *", "jobTemplate": {"spec": {"template": template(port)}}});
        workload("batch/v1", "CronJob", spec)
    };
    for wrong in [deployment(1, "http"), job("http"), cron("http")] {
        let refused = cluster.server.apply(&wrong).unwrap_err().to_string();
        for part in ["\"orders\" is invalid", "annotation dapr.io/app-port", "Write"] {
            assert!(refused.contains(part), "{part} is missing in: {refused}");
        }
    }
    for right in [deployment(1, "80"), job("80"), cron("80")] {
        cluster.server.apply(&right).unwrap();
    }
    assert!(cluster.server.apply(&deployment(1, "http")).is_err(), "an edit is looked at like a creation");

    // What is wrong already does not stand in the way of a person who scales it down or deletes it; and without the
    // webhook there is no early word, and nothing waits for one.
    injector.kill().await;
    cluster.server.apply(&deployment(2, "http")).unwrap();
    let injector = cluster.injector("b", cluster.options()).await;
    assert!(cluster.server.apply(&deployment(2, "https")).is_err(), "the webhook is back");
    cluster.server.apply(&deployment(0, "http")).unwrap();
    cluster.server.kubectl(&["delete", "deployment", "orders"]);
    injector.stop().await;
}
