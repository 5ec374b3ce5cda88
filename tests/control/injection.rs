//! What the pure patch makes of a pod, shown to a real API server.

use mecha_patch::{Config, inject};
use mecha_testkit::servers::Kubernetes;
use serde_json::{Value, json};

/// An app that keeps to Pod Security's profile `restricted` by itself.
fn pod(namespace: &str, annotations: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "orders", "namespace": namespace, "annotations": annotations},
        "spec": {
            "serviceAccountName": "default",
            "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
            "containers": [{
                "name": "app",
                "image": "orders:1",
                "securityContext": {
                    "allowPrivilegeEscalation": false, "runAsNonRoot": true, "capabilities": {"drop": ["ALL"]},
                },
            }],
        },
    })
}

fn restricted(server: &Kubernetes, namespace: &str) {
    server
        .apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: {namespace}\n  labels:\n    \
             pod-security.kubernetes.io/enforce: restricted\n"
        ))
        .unwrap();
}

#[test]
fn pod_security_restricted_takes_an_injected_pod_and_refuses_a_bare_sidecar() {
    let Some(server) = Kubernetes::start() else { return };
    restricted(&server, "shop");
    let every_annotation = json!({
        "dapr.io/enabled": "true",
        "dapr.io/app-id": "orders",
        "dapr.io/app-port": "8080",
        "dapr.io/config": "tracing",
        "dapr.io/env": "A=1,B=2",
        "dapr.io/env-from-secret": "C=cloud:key",
        "dapr.io/api-token-secret": "token",
        "dapr.io/sidecar-cpu-request": "10m",
        "dapr.io/sidecar-memory-limit": "64Mi",
        "dapr.io/unix-domain-socket-path": "/tmp/dapr",
        "dapr.io/enable-app-health-check": "true",
        "dapr.io/max-body-size": "8Mi",
    });
    let pod = pod("shop", every_annotation);
    for minor in [28, 36] {
        let config = Config { kubernetes_minor: minor, ..Config::default() };
        let done = inject(&pod, "shop", &config).unwrap().pod;
        // Unknown fields are errors, so a misspelt one would be seen.
        let mut strict = done.clone();
        strict["metadata"]["name"] = json!(format!("orders-{minor}"));
        server.apply(&strict.to_string()).unwrap();
        let stored = server.kubectl(&["-n", "shop", "get", "pod", &format!("orders-{minor}"), "-o", "json"]);
        let stored: Value = serde_json::from_str(&stored).unwrap();
        assert_eq!(inject(&stored, "shop", &Config::default()).unwrap().patch, [], "what the server stored is whole");
    }
    let mut bare = pod;
    bare["metadata"]["name"] = json!("bare");
    bare["spec"]["containers"].as_array_mut().unwrap().push(json!({"name": "daprd", "image": "mechad"}));
    let refused = server.apply(&bare.to_string()).unwrap_err();
    assert!(refused.contains("restricted"), "{refused}");
}
