//! Injected pods run: what the patch says is executed with the real sidecar.

use std::time::Duration;

use mecha_patch::{Config, inject};
use mecha_testkit::servers::Kubernetes;
use mecha_tests::{Answer, Http, HttpApp, Signal, eventually, wait_until};
use serde_json::{Value, json};

use crate::kubelet::{Kubelet, KubeletOptions};

const SIDECAR: &str = "daprd";

/// An app that asks for a sidecar, and finds its documents in a ConfigMap.
fn pod(name: &str, image: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "annotations": {
            "dapr.io/enabled": "true", "dapr.io/app-id": name, "dapr.io/app-port": "8080",
            "dapr.io/volume-mounts": "documents:/var/run/documents",
            "dapr.io/env": "COLOUR=blue",
        }},
        "spec": {
            "serviceAccountName": "default",
            "containers": [{"name": "app", "image": image, "ports": [{"containerPort": 8080}]}],
            "volumes": [{"name": "documents", "configMap": {"name": "documents"}}],
        },
    })
}

/// As the webhook makes it, but for what needs a control part: documents come from where the test puts them,
/// and nobody issues certificates.
fn injected(pod: &Value) -> Value {
    injected_by(pod, &Config::default()).0
}

/// The same by another configuration, with what the pod's author is warned of.
fn injected_by(pod: &Value, config: &Config) -> (Value, Vec<String>) {
    let injection = inject(pod, "shop", &Config { mtls: false, ..config.clone() }).unwrap();
    let mut done = injection.pod;
    let lists = ["initContainers", "containers"];
    for list in lists {
        for container in done["spec"][list].as_array_mut().into_iter().flatten() {
            if container["name"] == SIDECAR {
                let args = container["args"].as_array_mut().unwrap();
                for arg in args.iter_mut().filter(|arg| **arg == "kubernetes") {
                    *arg = json!("standalone");
                }
                args.extend([json!("--resources-path"), json!("/var/run/documents")]);
            }
        }
    }
    (done, injection.warnings)
}

fn documents(component: &str) -> String {
    format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: documents, namespace: shop}}\ndata:\n  store.yaml: |\n{}",
        mecha_tests::indent(component, 4)
    )
}

fn server() -> Option<Kubernetes> {
    let server = Kubernetes::start()?;
    server.kubectl(&["create", "namespace", "shop"]);
    server.kubectl(&["-n", "shop", "create", "serviceaccount", "default"]);
    server.apply(&documents(&mecha_tests::component("store", "state.in-memory", &[]))).unwrap();
    Some(server)
}

/// Longest wait for what starts programs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Waits until kubectl shows this.
async fn shows(server: &Kubernetes, pod: &str, path: &str, text: &str) {
    wait_until(PATIENCE, &format!("{path} of {pod} to be {text}"), || async {
        let format = format!("jsonpath={{{path}}}");
        server.kubectl_refused(&["-n", "shop", "get", "pod", pod, "-o", &format]).is_ok_and(|shown| shown == text)
    })
    .await;
}

const READY: &str = ".status.conditions[?(@.type==\"Ready\")].status";

fn sidecar(node: &Kubelet, pod: &str) -> Http {
    Http::tcp(node.port("shop", pod, 3500))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_injected_pod_runs_with_its_sidecar_until_it_is_deleted() {
    let Some(mut server) = server() else { return };
    let app = HttpApp::builder().on("GET /hello", Answer::text("hello")).start().await;
    let node = KubeletOptions::new().served("orders:1", app.port()).start(&server);
    server.apply(&injected(&pod("orders", "orders:1")).to_string()).unwrap();
    shows(&server, "orders", READY, "True").await;

    let api = sidecar(&node, "orders");
    api.get("/v1.0/healthz").send().await.expect(204);
    Http::tcp(node.port("shop", "orders", 3501)).get("/v1.0/healthz").send().await.expect(204);
    api.post_json("/v1.0/state/store", &json!([{"key": "a", "value": 1}])).send().await.expect(204);
    assert!(node.log("shop", "orders", SIDECAR).contains("app id: orders"));
    // The token of the pod's account is there, for the pod and for nobody else.
    let token = std::fs::read_to_string(node.volume("shop", "orders", "dapr-identity-token").join("token")).unwrap();
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview",
        "spec": {"token": token, "audiences": ["dapr.io/sentry"]}});
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), review.to_string()).unwrap();
    let reviewed = server.kubectl(&["create", "-o", "json", "-f", &file.path().to_string_lossy()]);
    let reviewed: Value = serde_json::from_str(&reviewed).unwrap();
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:shop:default");
    assert_eq!(reviewed["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["orders"]));

    // A sidecar that dies is started again, without the API server as well.
    for api_server in ["there", "gone"] {
        let before = node.pid("shop", "orders", SIDECAR).unwrap();
        if api_server == "gone" {
            server.kill_apiserver();
        }
        node.signal("shop", "orders", SIDECAR, Signal::Kill);
        let after =
            eventually("another process", async || node.pid("shop", "orders", SIDECAR).filter(|pid| *pid != before));
        after.await;
        wait_until(PATIENCE, "the sidecar to be back", async || {
            api.get("/v1.0/healthz").try_send().await.is_ok_and(|reply| reply.status == 204)
        })
        .await;
    }
    server.restart_apiserver();
    shows(&server, "orders", ".status.initContainerStatuses[0].restartCount", "2").await;

    let pid = node.pid("shop", "orders", SIDECAR).unwrap();
    server.kubectl(&["-n", "shop", "delete", "pod", "orders", "--timeout=60s"]);
    assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "the sidecar has ended with its pod");
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_of_two_pods_find_each_other() {
    let Some(server) = server() else { return };
    let app = HttpApp::builder().on("GET /hello", Answer::text("hello")).start().await;
    let node = KubeletOptions::new().served("orders:1", app.port()).start(&server);
    for name in ["orders", "cart"] {
        server.apply(&injected(&pod(name, if name == "orders" { "orders:1" } else { "cart:1" })).to_string()).unwrap();
    }
    shows(&server, "orders", READY, "True").await;
    wait_until(PATIENCE, "the call to arrive", async || {
        let call = sidecar(&node, "cart").get("/v1.0/invoke/orders/method/hello").try_send().await;
        call.is_ok_and(|reply| reply.status == 200)
    })
    .await;
    assert!(!app.calls("GET /hello").is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sidecar_follows_its_mounted_documents() {
    let Some(server) = server() else { return };
    let node = KubeletOptions::new().start(&server);
    server.apply(&injected(&pod("orders", "orders:1")).to_string()).unwrap();
    let names = async || {
        let metadata = sidecar(&node, "orders").get("/v1.0/metadata").try_send().await.ok()?;
        let names = metadata.json()["components"].as_array()?.iter().map(|c| c["name"].to_string()).collect::<String>();
        Some(names)
    };
    // The port is known once the pod is on the node.
    shows(&server, "orders", ".spec.nodeName", "this-machine").await;
    wait_until(PATIENCE, "the first documents", async || names().await.as_deref() == Some("\"store\"")).await;
    server.apply(&documents(&mecha_tests::component("other", "state.in-memory", &[]))).unwrap();
    wait_until(PATIENCE, "the next documents", async || names().await.as_deref() == Some("\"other\"")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_ends_and_its_sidecar_with_it() {
    let Some(server) = server() else { return };
    let _node = KubeletOptions::new().executed("job:1").start(&server);
    let mut job = pod("job", "job:1");
    job["spec"]["restartPolicy"] = json!("Never");
    // The sidecar answers before the job's first line, as a native one does.
    let ask = "exec 3<>/dev/tcp/127.0.0.1/$DAPR_HTTP_PORT && printf 'GET /v1.0/healthz/outbound HTTP/1.0\\r\\n\\r\\n' >&3 \
               && read -r line <&3 && [[ $line == *204* ]]";
    job["spec"]["containers"][0]["command"] = json!(["bash", "-c", ask]);
    job["metadata"]["annotations"].as_object_mut().unwrap().remove("dapr.io/app-port");
    server.apply(&injected(&job).to_string()).unwrap();
    shows(&server, "job", ".status.phase", "Succeeded").await;
    shows(&server, "job", ".status.initContainerStatuses[0].state.terminated.reason", "Completed").await;
}

/// Waits for the sidecar, as an app beside an ordinary one has to, and is done.
const WORK: &str = "until (exec 3<>/dev/tcp/127.0.0.1/$DAPR_HTTP_PORT) 2>/dev/null; do sleep 0.1; done";
/// Says so to the sidecar.
const DONE: &str = "exec 3<>/dev/tcp/127.0.0.1/$DAPR_HTTP_PORT && printf 'POST /v1.0/shutdown HTTP/1.1\\r\\nHost: \
    localhost\\r\\nContent-Length: 0\\r\\n\\r\\n' >&3 && read -r line <&3 && [[ $line == *204* ]]";

#[tokio::test(flavor = "multi_thread")]
async fn a_job_with_an_ordinary_sidecar_ends_when_it_tells_the_sidecar_and_its_author_is_told_to_do_so() {
    let Some(server) = server() else { return };
    let node = KubeletOptions::new().executed("job:1").start(&server);
    let old = Config { kubernetes_minor: 28, ..Config::default() };
    let job = |name: &str, script: &str, annotation: Option<&str>, config: &Config| {
        let mut job = pod(name, "job:1");
        job["spec"]["restartPolicy"] = json!("Never");
        job["spec"]["containers"][0]["command"] = json!(["bash", "-c", script]);
        let annotations = job["metadata"]["annotations"].as_object_mut().unwrap();
        annotations.remove("dapr.io/app-port");
        annotations.extend(annotation.map(|key| (key.to_owned(), json!("false"))));
        let (done, warnings) = injected_by(&job, config);
        assert_eq!(done["spec"]["containers"][1]["name"], SIDECAR, "{done:#}");
        server.apply(&done.to_string()).unwrap();
        warnings
    };
    let told = format!("{WORK}; {DONE}");
    let on_an_old_server = job("old", &told, None, &old);
    let by_choice = job("chosen", &told, Some("dapr.io/enable-native-sidecar"), &Config::default());
    job("silent", WORK, None, &old);
    for warnings in [&on_an_old_server, &by_choice] {
        assert!(warnings.len() == 1 && warnings[0].contains("POST http://localhost:$DAPR_HTTP_PORT/v1.0/shutdown"));
    }
    assert!(by_choice[0].contains("dapr.io/enable-native-sidecar") && !on_an_old_server[0].contains("native"));

    let ended =
        |container: &str| format!(".status.containerStatuses[?(@.name==\"{container}\")].state.terminated.reason");
    for name in ["old", "chosen"] {
        shows(&server, name, ".status.phase", "Succeeded").await;
        shows(&server, name, &ended(SIDECAR), "Completed").await;
    }
    // One that says nothing stays, which is what the warning is about; a person can say it for the app.
    shows(&server, "silent", &ended("app"), "Completed").await;
    assert!(node.pid("shop", "silent", SIDECAR).is_some());
    shows(&server, "silent", ".status.phase", "Running").await;
    sidecar(&node, "silent").post("/v1.0/shutdown", "").send().await.expect(204);
    shows(&server, "silent", ".status.phase", "Succeeded").await;
}
