//! What doctor says of a cluster, and status of the control part.

use crate::{Cluster, wait_until};
use mecha_testkit::servers::{Kubernetes, KubernetesOptions};
use serde_json::Value;

fn check<'c>(checks: &'c Value, name: &str) -> &'c Value {
    checks.as_array().unwrap().iter().find(|c| c["check"] == name).unwrap_or_else(|| panic!("{name}: {checks:#}"))
}

#[test]
fn each_thing_that_is_missing_is_named_with_the_next_step() {
    let Some(cluster) = Cluster::start() else { return };
    let checks = cluster.json(&["doctor", "--cluster"], 1);
    for fine in [
        "API server",
        "native sidecars",
        "admission webhooks v1",
        "ValidatingAdmissionPolicy",
        "CustomResourceDefinitions with CEL",
        "projected tokens",
        "kinds of mecha.dev",
    ] {
        assert_eq!(check(&checks, fine)["state"], "ok", "{checks:#}");
    }
    for (missing, next) in [
        ("leader of hub", "nobody leads: nothing is decided"),
        ("trust bundle", "no agent has run yet"),
        ("webhook registration", "install the injector"),
        ("way to the webhook", "would start without one"),
    ] {
        assert_eq!(check(&checks, missing)["state"], "failed", "{missing}: {checks:#}");
        assert!(check(&checks, missing)["detail"].as_str().unwrap().contains(next), "{missing}: {checks:#}");
    }

    let hub = cluster.hub();
    wait_until("the hub to lead", || {
        let checks: Value =
            serde_json::from_slice(&cluster.mecha(&["doctor", "--cluster", "-o", "json"]).stdout).unwrap();
        check(&checks, "leader of hub")["state"] == "ok"
    });
    let status = cluster.json(&["status"], 0);
    assert_eq!(status["control"][0]["role"], "hub");
    assert_eq!(status["control"][0]["state"], "ok", "{status:#}");
    drop(hub);
    // A leader that was killed is told once its lease has run out.
    wait_until("the lease to run out", || cluster.json(&["status"], 0)["control"][0]["state"] == "failed");
    let status = cluster.ok(&["status"]);
    assert!(status.contains("ran out") && status.contains("what is bound keeps running"), "{status}");
}

#[test]
fn an_api_server_with_apis_switched_off_is_told_by_their_names() {
    let options = KubernetesOptions::new()
        .arg("--runtime-config=admissionregistration.k8s.io/v1=false")
        .arg("--disable-admission-plugins=MutatingAdmissionWebhook,ValidatingAdmissionWebhook,ValidatingAdmissionPolicy,MutatingAdmissionPolicy");
    let Some(server) = options.start() else { return };
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mecha"))
        .args(["doctor", "-o", "json", "--kubeconfig"])
        .arg(server.kubeconfig())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let checks: Value = serde_json::from_slice(&output.stdout).unwrap();
    let hooks = check(&checks, "admission webhooks v1");
    assert_eq!(hooks["state"], "failed", "{checks:#}");
    assert!(hooks["detail"].as_str().unwrap().contains("use mecha inject"), "{checks:#}");
    assert_eq!(check(&checks, "ValidatingAdmissionPolicy")["state"], "warning", "{checks:#}");
    let kinds = check(&checks, "kinds of mecha.dev");
    assert!(kinds["detail"].as_str().unwrap().contains("none is installed"), "{checks:#}");
}

#[test]
fn a_server_that_is_away_is_one_line() {
    let Some(mut server) = Kubernetes::start() else { return };
    server.kill_apiserver();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_mecha"))
        .args(["doctor", "--kubeconfig"])
        .arg(server.kubeconfig())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("API server") && text.contains("failed") && text.contains("the way to it"), "{text}");
    assert_eq!(text.lines().count(), 2, "{text}");
}
