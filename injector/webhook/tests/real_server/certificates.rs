//! Certificates come and go, replicas come and go, and no pod notices.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use mecha_webhook::{CertificateOptions, Options};
use serde_json::{Value, json};

use crate::harness::{Cluster, Injector, eventually, is_injected, opted_in};

/// Rotations of each replica under load.
fn rotations() -> f64 {
    if std::env::var("MECHA_TEST_LONG").is_ok_and(|long| long == "1") { 100.0 } else { 5.0 }
}

/// Creates pods all the time, and counts what went wrong.
struct Load {
    stop: Arc<AtomicBool>,
    injected: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    fn start(cluster: &Arc<Cluster>) -> Self {
        let (stop, injected) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let tasks = (0..3).map(|n| {
            let (cluster, stop, injected) = (cluster.clone(), stop.clone(), injected.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                let pod = opted_in(&format!("load-{n}"));
                while !stop.load(Ordering::Relaxed) {
                    match cluster.try_out("default", &pod).await {
                        Ok(made) if is_injected(&made) => drop(injected.fetch_add(1, Ordering::Relaxed)),
                        Ok(_) => failures.push("not injected".to_owned()),
                        Err(error) => failures.push(error.to_string()),
                    }
                }
                failures
            })
        });
        let tasks = tasks.collect();
        Self { stop, injected, tasks }
    }

    /// Ends it; nothing may have failed.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        for task in self.tasks {
            let failures = task.await.unwrap();
            assert!(failures.is_empty(), "{} pods were refused, the first: {}", failures.len(), failures[0]);
        }
        self.injected.load(Ordering::Relaxed)
    }
}

/// Roots that are registered.
fn roots(cluster: &Cluster) -> usize {
    let mut text = cluster.registration()["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap().to_owned();
    text.retain(|c| c != '\n');
    let pem = base64_decoded(&text);
    pem.matches("BEGIN CERTIFICATE").count()
}

fn base64_decoded(text: &str) -> String {
    use base64::Engine as _;
    String::from_utf8(base64::engine::general_purpose::STANDARD.decode(text).unwrap()).unwrap()
}

async fn rotated(injector: &Injector, times: f64) {
    let count = || injector.metric("mecha_injector_certificate_rotations_total");
    let goal = count() + times;
    while count() < goal {
        let before = count();
        eventually("the next rotation", async || (count() > before).then_some(())).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_load_and_replicas_come_and_go_without_a_refused_pod() {
    let Some(cluster) = Cluster::start().await else { return };
    let cluster = Arc::new(cluster);
    let certificate = CertificateOptions {
        renew_after: Duration::from_secs(1),
        settle: Duration::from_secs(1),
        ..CertificateOptions::default()
    };
    let options = Options { certificate, ..cluster.options() };
    let first = cluster.injector("a", options.clone()).await;
    let load = Load::start(&cluster);
    let second = cluster.injector("b", options.clone()).await;
    rotated(&first, rotations()).await;
    rotated(&second, 1.0).await;
    let injected = load.end().await;
    assert!(injected > 0);
    println!("{injected} pods injected over {} rotations, 0 refused", rotations());

    // One goes in an orderly way: first no longer reached, then ended; its root goes with it.
    cluster.front.remove(second.port);
    cluster.front.freeze(false);
    second.stop().await;
    let load = Load::start(&cluster);
    rotated(&first, 1.0).await;
    assert!(load.end().await > 0);
    eventually("one replica's roots", async || (roots(&cluster) <= 2).then_some(())).await;

    // One dies; its root leaves when it expires, at the latest.
    let short =
        CertificateOptions { lifetime: Duration::from_secs(8), renew_after: Duration::from_secs(3600), ..certificate };
    let third = cluster.injector("c", Options { certificate: short, ..options }).await;
    cluster.front.remove(third.port);
    cluster.front.freeze(false);
    third.kill().await;
    let load = Load::start(&cluster);
    // The first has one root, or two while it rotates.
    eventually("the dead replica's root is gone", async || (roots(&cluster) == 1).then_some(())).await;
    assert!(load.end().await > 0);
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_registration_that_somebody_spoilt_is_put_right() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let wrong_root = rcgen::generate_simple_self_signed(vec!["elsewhere".to_owned()]).unwrap().cert.pem();
    let right = cluster.registration();
    let patch = |patch: Value| {
        let text = patch.to_string();
        cluster.server.kubectl(&[
            "patch",
            "mutatingwebhookconfiguration",
            "mecha-injector",
            "--type=json",
            "-p",
            &text,
        ]);
    };
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(&wrong_root);
    for (path, value) in [
        ("/webhooks/0/failurePolicy", json!("Ignore")),
        ("/webhooks/0/clientConfig/caBundle", json!(encoded)),
        ("/webhooks/0/objectSelector", json!({"matchLabels": {"nobody": "has-it"}})),
        ("/webhooks/0/matchConditions", json!([])),
    ] {
        patch(json!([{"op": "replace", "path": path, "value": value}]));
        eventually(&format!("{path} is put right"), async || {
            let now = cluster.registration();
            let same = |path: &str| now.pointer(path) == right.pointer(path);
            let bundle = now.pointer("/webhooks/0/clientConfig/caBundle").and_then(Value::as_str).unwrap_or_default();
            // A root of somebody else stays beside ours.
            let ours = right["webhooks"][0]["clientConfig"]["caBundle"].as_str().unwrap();
            let kept = base64_decoded(bundle).contains(base64_decoded(ours).trim());
            (same("/webhooks/0/failurePolicy")
                && same("/webhooks/0/objectSelector")
                && same("/webhooks/0/matchConditions")
                && kept)
                .then_some(())
        })
        .await;
    }
    cluster.server.kubectl(&["delete", "mutatingwebhookconfiguration", "mecha-injector"]);
    eventually("pods are injected again", async || {
        cluster.try_out("default", &opted_in("after")).await.is_ok_and(|made| is_injected(&made)).then_some(())
    })
    .await;

    // Somebody else answers in its place: the error says what is wrong.
    injector.kill().await;
    let imposter = cluster.imposter(crate::others::Answer::Redirect).await;
    let refused = cluster.try_out("default", &opted_in("untrusted")).await.unwrap_err().to_string();
    assert!(refused.contains("x509"), "{refused}");
    drop(imposter);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_self_check_tells_when_pods_are_no_longer_injected_and_when_they_are_again() {
    let Some(cluster) = Cluster::start().await else { return };
    let injector = cluster.injector("a", cluster.options()).await;
    let age = "mecha_injector_canary_success_timestamp_seconds";
    eventually("a first check", async || (injector.metric(age) > 0.0).then_some(())).await;
    // What no registration mends: the network between API server and webhook.
    cluster.front.remove(injector.port);
    cluster.front.freeze(false);
    let note = cluster.event("default", "InjectionBroken").await;
    assert!(note.contains("pods.injector.mecha.dev"), "{note}");
    assert!(injector.metric("mecha_injector_canary_checks_total{result=\"refused\"}") > 0.0);
    assert!(injector.role.ready.waiting().is_empty(), "restarting it would mend nothing");
    cluster.front.add(injector.port);
    cluster.event("default", "InjectionWorks").await;
    injector.stop().await;
}
