//! What the pure patch makes of a pod, shown to a real API server.

use mecha_patch::{Config, inject};
use mecha_testkit::servers::Kubernetes;
use mechad::cli::{Action, Env, command};
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

/// Annotations whose values become words of the daemon's command line, and values of all kinds.
const FLAGS: [&str; 27] = [
    "actors-disseminate-timeout",
    "app-binding-options-timeout",
    "app-channel-address",
    "app-health-check-path",
    "app-health-probe-interval",
    "app-health-probe-timeout",
    "app-health-threshold",
    "app-max-concurrency",
    "app-port",
    "app-protocol",
    "app-ssl",
    "block-shutdown-duration",
    "disable-init-endpoints",
    "enable-api-logging",
    "enable-metrics",
    "graceful-shutdown-seconds",
    "grpc-port",
    "http-max-request-size",
    "http-port",
    "http-read-buffer-size",
    "internal-grpc-port",
    "log-level",
    "max-body-size",
    "metrics-port",
    "read-buffer-size",
    "sidecar-listen-addresses",
    "unix-domain-socket-path",
];
const VALUES: [&str; 36] = [
    "0",
    "1",
    "-1",
    "5",
    "80",
    "3500",
    "65535",
    "65536",
    "4294967296",
    "true",
    "F",
    "yes",
    "perhaps",
    "http",
    "H2C",
    "https",
    "info",
    "WARN",
    "warning",
    "fatal",
    "4Mi",
    "0.5Ki",
    "1e3",
    "100m",
    "9E",
    "30s",
    "-5s",
    "1m30s",
    "0s",
    "soon",
    "config",
    "config, subscribe",
    "config,x",
    "/tmp/a b",
    "[::1],127.0.0.1",
    "--help",
];

#[test]
fn the_daemon_takes_whatever_command_line_the_injector_makes_of_annotations() {
    let (mut taken, mut refused) = (0, 0);
    for key in FLAGS {
        for value in VALUES {
            let health = if key.starts_with("app-health") { "true" } else { "false" };
            let mut annotations = json!({
                "dapr.io/enabled": "true", "dapr.io/app-id": "orders", "dapr.io/enable-app-health-check": health,
            });
            annotations[format!("dapr.io/{key}")] = json!(value);
            let Ok(done) = inject(&pod("shop", annotations), "shop", &Config::default()) else {
                refused += 1;
                continue;
            };
            let args = done.pod["spec"]["initContainers"][0]["args"].as_array().unwrap().clone();
            let args: Vec<&str> = args.iter().map(|arg| arg.as_str().unwrap()).collect();
            match command(&args, Env::read(|_| None)) {
                Ok(Action::Run(_)) => taken += 1,
                other => panic!("{key}: {value} became {args:?}, and the daemon says {other:?}"),
            }
        }
    }
    assert!(taken > 200 && refused > 200, "{taken} taken, {refused} refused");
}
