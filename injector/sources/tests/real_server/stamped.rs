//! Objects made from a template, for another system's controller to fill.

use mecha_sources::Options;
use serde_json::{Value, json};

use crate::cluster::{Cluster, SERVICE, value};

fn backend(name: &str, tenancy: &str, object: &str) -> Value {
    json!({
        "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityBackend", "metadata": {"name": name},
        "spec": {
            "kind": "state", "features": ["crud"], "tenancy": tenancy,
            "component": {"type": "state.postgresql", "metadata": [{"name": "connectionString", "valueFrom": {"key": "uri"}}]},
            "source": {"template": {
                "manifest": {
                    "apiVersion": "example.org/v1", "kind": "PostgreSQL",
                    "metadata": {"name": object, "namespace": "platform"}, "spec": {"size": "small"},
                },
                "readyWhen": "self.status.phase == 'Provisioned'",
                "secretName": format!("{object}-conn"),
            }},
        },
    })
}

/// What the other system's controller does when it is done.
fn provision(cluster: &Cluster, object: &str, uri: &str) {
    cluster.secret("platform", &format!("{object}-conn"), &json!({"uri": uri}));
    let patch = r#"{"status": {"phase": "Provisioned"}}"#;
    let args = ["-n", "platform", "patch", "postgresql", object, "--subresource=status", "--type=merge", "-p", patch];
    cluster.server.kubectl(&args);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_makes_one_object_for_each_claim_and_waits_for_what_it_leaves() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.server.apply(SERVICE).unwrap();
    cluster.server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "postgresqls.example.org"]);
    let _role = cluster.sources("a", Options::default()).await;
    cluster.apply(&json!({"apiVersion": "example.org/v1", "kind": "PostgreSQL", "metadata": {"name": "shop-taken", "namespace": "platform"}}));
    cluster.apply(&backend("each", "PerClaim", "{{ environment }}-{{ claim.name }}"));
    cluster.apply(&backend("wrong", "PerEnvironment", "{{ environment }}-{{ claim.name }}"));
    cluster.apply(&backend("shared", "Shared", "for-all"));
    cluster.ready("each", "True", "NotProbed").await;
    let wrong = cluster.ready("wrong", "False", "TemplateInvalid").await;
    assert!(wrong.contains("claim.name"), "{wrong}");

    // A shared object is there before anybody needs it; its backend waits for it.
    cluster.ready("shared", "False", "SourceNotReady").await;
    provision(&cluster, "for-all", "postgres://all");
    cluster.ready("shared", "True", "NotProbed").await;

    cluster.binding("local", 7, &[("orders", "each", "mecha-orders-r7"), ("cart", "each", "mecha-cart-r7")]);
    for claim in ["orders", "cart"] {
        let object = format!("shop-{claim}");
        crate::cluster::eventually("the object of a claim", || async {
            cluster.server.kubectl_refused(&["-n", "platform", "get", "postgresql", &object]).ok()
        })
        .await;
        provision(&cluster, &object, &format!("postgres://{claim}"));
        let secret = format!("mecha-{claim}-r7");
        let made = cluster.secret_is(&secret, |secret| secret.is_some()).await.unwrap();
        assert_eq!(value(&made, "uri").unwrap(), format!("postgres://{claim}"));
    }

    // What is there already belongs to somebody: it is named, and left as it is.
    cluster.binding("local", 8, &[("orders", "each", "mecha-orders-r7"), ("taken", "each", "mecha-taken-r8")]);
    crate::cluster::eventually("the object that is taken is named", || async {
        let status = cluster.status("each").await;
        status.conditions.iter().any(|c| c.message.contains("shop-taken could not be made")).then_some(())
    })
    .await;
    let taken = cluster.server.kubectl(&["-n", "platform", "get", "postgresql", "shop-taken", "-o", "yaml"]);
    assert!(!taken.contains("small") && !taken.contains("mecha-sources"), "{taken}");
    // A claim that is gone leaves its object: data may hang on it.
    cluster.server.kubectl(&["-n", "platform", "get", "postgresql", "shop-cart"]);
}
