//! A service that another system provides, from its composite to calls of an app: found, used under load, rotated, gone.
//! The test writes what the other system's controller writes.

use std::time::{Duration, Instant};

use mecha_testkit::servers::RedisOptions;
use mecha_tests::wait_until;
use serde_json::{Value, json};

use crate::guide::{Load, PATIENCE, Shop};

const POD: &str = "orders-api";
const SIDECAR: &str = "daprd";
/// From a composite that is Ready to its backend, where nobody else has the cores: the best of some tries counts.
const SOON: Duration = Duration::from_secs(2);
const TRIES: usize = 10;

/// The composite's kind, and the right to read it, which a controller manager would add to the agent's.
const CACHES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: xcaches.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: XCache, plural: xcaches}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    subresources: {status: {}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: xcaches, labels: {mecha.dev/aggregate-to-agent: "true"}}
rules: [{apiGroups: [example.org], resources: [xcaches], verbs: [get, list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: xcaches}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: xcaches}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
"#;

const CACHE: &str = "
apiVersion: example.org/v1
kind: XCache
metadata: {name: cache, namespace: databases}
spec: {writeConnectionSecretToRef: {name: cache-connection, namespace: databases}}
";

const BACKEND: &str = "
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: composed, labels: {line: composed}}
spec:
  kind: state
  component:
    type: state.redis
    version: v1
    metadata: [{name: redisHost, valueFrom: {key: host}}, {name: redisPassword, valueFrom: {key: password}}]
  features: [crud, etag, transactional, ttl]
  source: {serviceRef: {apiVersion: example.org/v1, kind: XCache, namespace: databases, name: cache}}
";

/// Receipts of changes that the sidecar has made of a component.
async fn changes(shop: &Shop) -> Vec<Value> {
    let swaps: Value = shop.api().get("/v1.0-mecha/swaps").send().await.expect(200).json();
    swaps["swaps"].as_array().unwrap().iter().filter(|swap| swap["name"] == "orders").cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_composite_that_is_ready_serves_apps_its_rotated_password_fails_no_call_and_its_end_is_told() {
    let Some(shop) = Shop::open().await else { return };
    let Some(redis) = RedisOptions::new().password("canary-first").start() else { return };
    let secret = |password: &str| {
        let values = json!({"host": redis.address(), "password": password});
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret", "metadata": {"name": "cache-connection", "namespace": "databases"},
            "stringData": values,
        });
        shop.server.apply(&secret.to_string()).unwrap();
    };
    shop.server.apply(CACHES).unwrap();
    shop.server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "xcaches.example.org"]);
    shop.server.apply(CACHE).unwrap();
    shop.server.apply(BACKEND).unwrap();
    let backend = ["capabilitybackend", "composed"];
    shop.shows(&backend, ".status.conditions[?(@.type==\"Ready\")].reason", "SourceNotReady").await;

    secret("canary-first");
    let says = |ready: &str| {
        let conditions = json!([{"type": "Ready", "status": ready, "reason": "Reported"}]);
        let report = json!({"status": {"conditions": conditions}}).to_string();
        let status = ["-n", "databases", "patch", "xcache", "cache", "--subresource=status", "--type=merge", "-p"];
        shop.server.kubectl(&[&status[..], &[&report]].concat());
    };
    let mut fastest = Duration::MAX;
    for _ in 0..TRIES {
        says("True");
        let began = Instant::now();
        shop.shows(&backend, ".status.conditions[?(@.type==\"Ready\")].status", "True").await;
        fastest = fastest.min(began.elapsed());
        if fastest <= SOON {
            break;
        }
        says("False");
        shop.shows(&backend, ".status.conditions[?(@.type==\"Ready\")].reason", "SourceNotReady").await;
    }
    eprintln!("a composite is Ready, its backend is {fastest:.0?} later");
    assert!(fastest <= SOON, "a composite is Ready, its backend only {fastest:?} later");

    // The app comes to use it while it works.
    let load = Load::start(shop.api());
    load.goes_on(20).await;
    shop.selects("composed");
    shop.bound_to("composed").await;
    load.goes_on(20).await;
    assert!(redis.command(&["KEYS", "*"]).contains("load"), "what is written now is in the composed store");

    // Both passwords are good for a while, as rotations are done.
    for password in ["canary-second", "canary-third"] {
        let before = changes(&shop).await.len();
        redis.command(&["ACL", "SETUSER", "default", &format!(">{password}")]);
        let began = Instant::now();
        secret(password);
        wait_until(PATIENCE, "the sidecar to have taken up a password", async || {
            let changes = changes(&shop).await;
            changes.len() > before && changes.iter().all(|change| change["outcome"] != "draining")
        })
        .await;
        eprintln!("a Secret is rotated, the sidecar's component is {:.0?} later", began.elapsed());
        let changes = changes(&shop).await;
        assert!(changes.iter().all(|change| change["failed"] == 0), "{changes:#?}");
        load.goes_on(20).await;
    }
    redis.command(&["ACL", "SETUSER", "default", "<canary-first", "<canary-second"]);
    load.goes_on(20).await;

    // Its end is told, and unbinds nothing.
    shop.server.kubectl(&["-n", "databases", "delete", "xcache", "cache"]);
    let claim = ["-n", &shop.home, "capabilityclaim", "orders"];
    shop.shows(&claim, ".status.conditions[?(@.type==\"Degraded\")].status", "True").await;
    shop.shows(&claim, ".status.phase", "Degraded").await;
    assert_eq!(shop.field(&claim, ".status.backend").as_deref(), Some("composed"));
    load.goes_on(20).await;
    load.end().await;

    // Nothing but the last password opens the store to one that connects now.
    shop.kill_sidecar().await;
    assert_eq!(shop.save("after", "1").await, 204);
    assert!(!shop.node.log(&shop.home, POD, SIDECAR).contains("canary-"), "a password is in the log");
}
