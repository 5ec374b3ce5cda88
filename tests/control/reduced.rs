//! API servers on which some APIs are switched off: the control part does what is left, and says what is not.

use std::collections::BTreeMap;
use std::process::Command;

use mecha_testkit::servers::{Kubernetes, KubernetesOptions};
use mecha_tests::{Http, wait_until};
use serde_json::{Value, json};

use crate::guide::PATIENCE;
use crate::install::NAMESPACE;
use crate::kubelet::KubeletOptions;
use crate::roles::{AGENT, ControlPart, HUB, INJECTOR};

const MANIFESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/manifests/mecha.yaml");

/// A platform that needs no server.
const PLATFORM: &str = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: memory, labels: {line: memory}}
spec:
  kind: state
  component: {type: state.in-memory, version: v1}
  features: [crud, etag]
  source: {none: {}}
---
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - {kind: state, backendSelector: {matchLabels: {line: memory}}}
---
apiVersion: v1
kind: Namespace
metadata: {name: team-a}
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: dev, namespace: team-a}
spec: {classSelector: {matchLabels: {type: development}}}
";

/// A server without these, and without what would ask them.
fn without(apis: &[&str]) -> Option<Kubernetes> {
    let off: Vec<String> = apis.iter().map(|api| format!("{api}=false")).collect();
    KubernetesOptions::new()
        .arg(format!("--runtime-config={}", off.join(",")))
        .arg(
            "--disable-admission-plugins=MutatingAdmissionWebhook,ValidatingAdmissionWebhook,\
             ValidatingAdmissionPolicy,MutatingAdmissionPolicy",
        )
        .start()
}

/// Applies the manifests as a person does; kinds that the server has not are what it complains about, and nothing else.
fn install(server: &Kubernetes, missing: &[&str]) {
    let apply = ["apply", "--server-side", "-f", MANIFESTS];
    let complaint = if missing.is_empty() {
        server.kubectl(&apply);
        String::new()
    } else {
        server.kubectl_refused(&apply).unwrap_err()
    };
    let named: Vec<&str> = complaint.lines().filter_map(|line| line.split("no matches for kind \"").nth(1)).collect();
    for kind in missing {
        assert!(named.iter().any(|rest| rest.starts_with(&format!("{kind}\""))), "{kind}: {complaint}");
    }
    let known = |rest: &&str| missing.iter().any(|kind| rest.starts_with(&format!("{kind}\"")));
    assert!(named.iter().all(known), "{complaint}");
    server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
}

/// Warnings of a role, without their times, and how often each came.
fn warnings(roles: &ControlPart, role: &str) -> BTreeMap<String, usize> {
    let log = roles.log(role);
    let mut warnings = BTreeMap::new();
    for line in log.lines().filter_map(|line| line.split_once(" WARN ").map(|(_, rest)| rest.trim().to_owned())) {
        *warnings.entry(line).or_default() += 1;
    }
    warnings
}

fn field(server: &Kubernetes, object: &[&str], path: &str) -> String {
    let format = format!("jsonpath={{{path}}}");
    server.kubectl_refused(&[&["get", "-o", &format], object].concat()).unwrap_or_default()
}

async fn shows(server: &Kubernetes, object: &[&str], path: &str, text: &str) {
    let what = format!("{path} of {object:?} to be {text}");
    wait_until(PATIENCE, &what, async || field(server, object, path) == text).await;
}

/// A pod with its sidecar as `mecha inject` makes it of the injector's configuration.
fn injected(server: &Kubernetes, home: &str) -> String {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "orders", "namespace": home,
            "annotations": {"dapr.io/enabled": "true", "dapr.io/app-id": "orders"}},
        "spec": {"serviceAccountName": "default", "containers": [{"name": "app", "image": "orders:1"}]},
    });
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let config = field(server, &["-n", NAMESPACE, "configmap", "mecha-injector"], ".data.config\\.yaml");
    let output = Command::new(mecha_tests::mecha())
        .arg("inject")
        .arg("-f")
        .arg(file("pod.yaml", &pod.to_string()))
        .arg("--config")
        .arg(file("config.yaml", &config))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_webhooks_policies_budgets_and_events_claims_are_bound_and_sidecars_of_mecha_inject_are_served() {
    let apis = ["admissionregistration.k8s.io/v1", "policy/v1", "events.k8s.io/v1"];
    let Some(server) = without(&apis) else { return };
    install(
        &server,
        &[
            "MutatingWebhookConfiguration",
            "PodDisruptionBudget",
            "ValidatingAdmissionPolicy",
            "ValidatingAdmissionPolicyBinding",
        ],
    );
    let mut roles = ControlPart::none(None);
    roles.lead_sidecars_here(&server);
    for role in [HUB, AGENT, INJECTOR] {
        roles.launch(&server, role);
    }
    roles.ready().await;
    server.apply(PLATFORM).unwrap();
    let environment = ["-n", "team-a", "environment", "dev"];
    shows(&server, &environment, ".status.conditions[?(@.type==\"Ready\")].status", "True").await;
    let home = field(&server, &environment, ".status.connectTo");
    server
        .apply(&format!(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: store, namespace: {home}}}\n\
         spec: {{kind: state, features: [etag], scopes: [orders]}}\n"
        ))
        .unwrap();
    shows(&server, &["-n", &home, "capabilityclaim", "store"], ".status.phase", "Bound").await;

    let node = KubeletOptions::new().start(&server);
    server.kubectl(&["-n", &home, "create", "serviceaccount", "default"]);
    server.apply(&injected(&server, &home)).unwrap();
    shows(&server, &["-n", &home, "pod", "orders"], ".status.conditions[?(@.type==\"Ready\")].status", "True").await;
    let api = Http::tcp(node.port(&home, "orders", 3500));
    api.post_json("/v1.0/state/store", &json!([{"key": "a", "value": 1}])).send().await.expect(204);

    // A Deployment gets the Service of its app, which asks nothing of what is missing.
    let workload = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "cart", "namespace": home},
        "spec": {"selector": {"matchLabels": {"app": "cart"}}, "template": {
            "metadata": {"labels": {"app": "cart"}, "annotations": {"dapr.io/enabled": "true"}},
            "spec": {"containers": [{"name": "app", "image": "cart:1"}]},
        }},
    });
    server.apply(&workload.to_string()).unwrap();
    shows(&server, &["-n", &home, "service", "cart-dapr"], ".spec.clusterIP", "None").await;

    let said = warnings(&roles, INJECTOR);
    assert!(
        said.keys()
            .any(|line| line.contains("serves no admissionregistration.k8s.io/v1") && line.contains("mecha inject")),
        "{said:#?}"
    );
    for role in [HUB, AGENT, INJECTOR] {
        let said = warnings(&roles, role);
        assert!(said.values().all(|count| *count == 1) && said.len() < 5, "{role}: {said:#?}");
    }
    let checks = Command::new(mecha_tests::mecha())
        .args(["doctor", "--cluster", "-o", "json", "--kubeconfig"])
        .arg(server.kubeconfig())
        .output()
        .unwrap();
    let checks: Value = serde_json::from_slice(&checks.stdout).unwrap();
    let state = |name: &str| {
        let check = checks.as_array().unwrap().iter().find(|check| check["check"] == name);
        check.unwrap_or_else(|| panic!("{name}: {checks:#}"))["state"].clone()
    };
    assert_eq!([state("admission webhooks v1"), state("leader of hub")], [json!("failed"), json!("ok")], "{checks:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leases_nobody_leads_and_every_role_says_so_once_and_serves() {
    let Some(server) = without(&["coordination.k8s.io/v1"]) else { return };
    install(&server, &[]);
    let mut roles = ControlPart::none(None);
    roles.lead_here(&server);
    for role in [HUB, AGENT, INJECTOR] {
        roles.launch(&server, role);
    }
    for role in [HUB, AGENT, INJECTOR] {
        wait_until(PATIENCE, &format!("the word of {role}"), async || {
            warnings(&roles, role).keys().any(|line| line.contains("serves no coordination.k8s.io/v1"))
        })
        .await;
    }
    roles.ready().await;
    for role in [HUB, AGENT, INJECTOR] {
        let said = warnings(&roles, role);
        assert!(said.values().all(|count| *count == 1) && said.len() < 5, "{role}: {said:#?}");
    }
}
