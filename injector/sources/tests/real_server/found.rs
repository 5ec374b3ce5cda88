//! Backends from what other systems leave behind.

use mecha_sources::Options;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SERVICE, value};

fn service(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.org/v1", "kind": "PostgreSQL", "metadata": {"name": name, "namespace": "platform"}, "spec": spec})
}

fn reference(name: &str) -> Value {
    json!({"serviceRef": {"apiVersion": "example.org/v1", "kind": "PostgreSQL", "namespace": "platform", "name": name}})
}

/// What the other system's controller reports.
fn report(cluster: &Cluster, name: &str, status: &Value) {
    let patch = json!({"status": status}).to_string();
    let args = ["-n", "platform", "patch", "postgresql", name, "--subresource=status", "--type=merge", "-p", &patch];
    cluster.server.kubectl(&args);
}

fn ready(status: &str, reason: &str) -> Value {
    json!({"conditions": [{"type": "Ready", "status": status, "reason": reason, "message": "canary-message"}]})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crossplane_connection_secret_becomes_a_backend_is_rotated_and_is_missed_when_it_goes() {
    let Some(cluster) = Cluster::start().await else { return };
    let _role = cluster.sources("a", Options::default()).await;
    cluster.backend("pg", &reference("pg"));
    let unknown = cluster.ready("pg", "False", "SourceMissing").await;
    assert!(unknown.contains("PostgreSQL"), "{unknown}");

    // The kind, the object, its Secret and its condition come one after the other, as they do.
    cluster.server.apply(SERVICE).unwrap();
    cluster.server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "postgresqls.example.org"]);
    let to = json!({"writeConnectionSecretToRef": {"name": "pg-conn", "namespace": "platform"}});
    cluster.apply(&service("pg", to));
    let waiting = cluster.ready("pg", "False", "SourceNotReady").await;
    assert!(waiting.contains("platform/pg"), "{waiting}");
    report(&cluster, "pg", &ready("False", "Creating"));
    cluster.secret("platform", "pg-conn", &json!({"uri": "postgres://app:canary-one@db/orders"}));
    cluster.binding("local", 7, &[("orders", "pg", "mecha-orders-r7")]);
    report(&cluster, "pg", &ready("True", "Available"));
    cluster.ready("pg", "True", "NotProbed").await;
    assert_eq!(cluster.status("pg").await.verified_features.unwrap(), ["crud", "etag", "ttl"]);
    let made = cluster.secret_is("mecha-orders-r7", |secret| secret.is_some()).await.unwrap();
    assert_eq!(value(&made, "uri").unwrap(), "postgres://app:canary-one@db/orders");

    cluster.secret("platform", "pg-conn", &json!({"uri": "postgres://app:canary-two@db/orders"}));
    let rotated =
        |secret: Option<&_>| secret.and_then(|s| value(s, "uri")).is_some_and(|uri| uri.contains("canary-two"));
    let now = cluster.secret_is("mecha-orders-r7", rotated).await.unwrap();
    assert_eq!(now.metadata.uid, made.metadata.uid, "in place: sidecars watch it by its name");

    // Gone, and said so; nothing is unbound, and what sidecars use stays.
    cluster.server.kubectl(&["-n", "platform", "delete", "postgresql", "pg"]);
    cluster.server.kubectl(&["-n", "platform", "delete", "secret", "pg-conn"]);
    cluster.ready("pg", "False", "SourceMissing").await;
    let kept = cluster.secret_is("mecha-orders-r7", |secret| secret.is_some()).await.unwrap();
    assert_eq!(kept.metadata.resource_version, now.metadata.resource_version);
    assert_eq!(cluster.status("pg").await.verified_features.unwrap(), ["crud", "etag", "ttl"]);

    // References alone, wherever people look.
    for kinds in ["capabilitybackends,capabilitybindings", "configmaps,events,events.events.k8s.io,leases"] {
        let all = cluster.server.kubectl(&["get", kinds, "-A", "-o", "yaml"]);
        assert!(!all.contains("canary"), "a value or a foreign message in {kinds}:\n{all}");
        assert!(!all.contains("Y2FuYXJ5"), "a value in base64 in {kinds}:\n{all}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_tool_that_writes_a_service_binding_secret_gives_a_backend_and_a_wrong_key_is_named() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.server.apply(SERVICE).unwrap();
    cluster.server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "postgresqls.example.org"]);
    let _role = cluster.sources("a", Options::default()).await;
    cluster.backend("by-tool", &json!({"secretRef": {"namespace": "platform", "name": "from-ansible"}}));
    let missing = cluster.ready("by-tool", "False", "SourceMissing").await;
    assert!(missing.contains("platform/from-ansible"), "{missing}");
    cluster.secret("platform", "from-ansible", &json!({"type": "postgresql", "url": "postgres://canary"}));
    let wrong = cluster.ready("by-tool", "False", "SourceKeyMissing").await;
    assert!(wrong.contains("lacks uri") && wrong.contains("type, url"), "{wrong}");
    cluster.secret("platform", "from-ansible", &json!({"uri": "postgres://canary"}));
    cluster.ready("by-tool", "True", "NotProbed").await;

    cluster.backend("provisioned", &reference("cloud"));
    cluster.apply(&service("cloud", json!({})));
    cluster.ready("provisioned", "False", "SourceNotReady").await;
    report(&cluster, "cloud", &json!({"binding": {"name": "from-ansible"}}));
    cluster.ready("provisioned", "True", "NotProbed").await;

    // Out of use is out of use, whatever the source says.
    let retire = r#"{"spec": {"state": "Retired"}}"#;
    cluster.server.kubectl(&["patch", "capabilitybackend", "provisioned", "--type=merge", "-p", retire]);
    cluster.ready("provisioned", "False", "Retired").await;
}
