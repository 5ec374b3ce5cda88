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

/// What is needed of the kinds of Flux and of Crossplane's Helm provider; the server refuses other fields of these
/// levels.
const RELEASES: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: helmreleases.helm.toolkit.fluxcd.io}
spec:
  group: helm.toolkit.fluxcd.io
  scope: Namespaced
  names: {kind: HelmRelease, plural: helmreleases}
  versions:
  - name: v2
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            required: [interval]
            properties:
              interval: {type: string, pattern: '^([0-9]+(\.[0-9]+)?(ms|s|m|h))+$'}
              targetNamespace: {type: string}
              releaseName: {type: string}
              values: {x-kubernetes-preserve-unknown-fields: true}
              chart:
                type: object
                required: [spec]
                properties:
                  spec:
                    type: object
                    required: [chart, sourceRef]
                    properties:
                      chart: {type: string}
                      version: {type: string}
                      sourceRef:
                        type: object
                        required: [name]
                        properties: {kind: {type: string, enum: [HelmRepository, GitRepository, Bucket]}, name: {type: string}, namespace: {type: string}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: releases.helm.crossplane.io}
spec:
  group: helm.crossplane.io
  scope: Cluster
  names: {kind: Release, plural: releases}
  versions:
  - name: v1beta1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        required: [spec]
        properties:
          spec:
            type: object
            required: [forProvider]
            properties:
              providerConfigRef: {type: object, required: [name], properties: {name: {type: string}}}
              writeConnectionSecretToRef: {type: object, required: [name, namespace], properties: {name: {type: string}, namespace: {type: string}}}
              forProvider:
                type: object
                required: [chart, namespace]
                properties:
                  namespace: {type: string}
                  values: {type: object, x-kubernetes-preserve-unknown-fields: true}
                  chart: {type: object, properties: {name: {type: string}, repository: {type: string}, version: {type: string}}}
          status: {type: object, x-kubernetes-preserve-unknown-fields: true}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: releases, labels: {mecha.dev/aggregate-to-agent: "true"}}
rules:
- {apiGroups: [helm.toolkit.fluxcd.io], resources: [helmreleases], verbs: [get, list, watch, create, patch]}
- {apiGroups: [helm.crossplane.io], resources: [releases], verbs: [get, list, watch, create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: releases}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: releases}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_of_flux_and_one_of_crossplanes_helm_provider_are_stamped_for_each_claim() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.server.apply(RELEASES).unwrap();
    cluster.server.kubectl(&["wait", "--for=condition=Established", "--timeout=60s", "crd", "--all"]);
    let _role = cluster.sources("a", Options::default()).await;
    let flux = json!({
        "apiVersion": "helm.toolkit.fluxcd.io/v2", "kind": "HelmRelease",
        "metadata": {"name": "pg-{{ environment }}-{{ claim.name }}", "namespace": "platform"},
        "spec": {
            "interval": "10m", "releaseName": "pg-{{ environment }}-{{ claim.name }}",
            "chart": {"spec": {"chart": "postgresql", "version": ">=16", "sourceRef": {"kind": "HelmRepository", "name": "charts"}}},
            "values": {"auth": {"database": "{{ environment }}-{{ claim.name }}"}},
        },
    });
    // It is in no namespace, and says itself where its Secret goes.
    let crossplane = json!({
        "apiVersion": "helm.crossplane.io/v1beta1", "kind": "Release", "metadata": {"name": "pg-{{ environment }}-{{ claim.name }}"},
        "spec": {
            "providerConfigRef": {"name": "default"},
            "writeConnectionSecretToRef": {"name": "crossplane-{{ environment }}-{{ claim.name }}", "namespace": "platform"},
            "forProvider": {
                "namespace": "platform", "values": {"auth": {"database": "{{ environment }}-{{ claim.name }}"}},
                "chart": {"name": "postgresql", "repository": "oci://registry.example.org/charts", "version": "16.0.0"},
            },
        },
    });
    let ready = "self.status.conditions.exists(c, c.type == 'Ready' && c.status == 'True')";
    let left_by_flux = "flux-{{ environment }}-{{ claim.name }}";
    for (name, manifest, secret) in [("flux", flux, left_by_flux), ("crossplane", crossplane, "")] {
        let mut offer = backend(name, "PerClaim", "pg-{{ environment }}-{{ claim.name }}");
        offer["spec"]["source"]["template"] = json!({"manifest": manifest, "readyWhen": ready, "secretName": secret});
        cluster.apply(&offer);
        cluster.ready(name, "True", "NotProbed").await;
    }
    cluster.binding("local", 7, &[("orders", "flux", "mecha-orders-r7"), ("cart", "crossplane", "mecha-cart-r7")]);
    for (claim, name, kind, home) in [
        ("orders", "flux", "helmreleases.helm.toolkit.fluxcd.io", &["-n", "platform"][..]),
        ("cart", "crossplane", "releases.helm.crossplane.io", &[]),
    ] {
        let made = crate::cluster::eventually("the release of a claim", || async {
            let all = cluster.server.kubectl_refused(&[home, &["get", kind, "-o", "json"]].concat()).ok()?;
            let all: Value = serde_json::from_str(&all).unwrap();
            all["items"].get(0).cloned()
        })
        .await;
        let object = made["metadata"]["name"].as_str().unwrap();
        let unit = object.strip_prefix("pg-").unwrap();
        let spec = if name == "flux" { &made["spec"] } else { &made["spec"]["forProvider"] };
        assert_eq!(spec["values"], json!({"auth": {"database": unit}}), "{made}");

        // What the other system's controller does when it is done.
        cluster.secret("platform", &format!("{name}-{unit}"), &json!({"uri": format!("postgres://{claim}")}));
        let done = json!({"status": {"conditions": [{"type": "Ready", "status": "True"}]}}).to_string();
        let patch = ["patch", kind, object, "--subresource=status", "--type=merge", "-p", &done];
        cluster.server.kubectl(&[home, &patch[..]].concat());
        let secret = cluster.secret_is(&format!("mecha-{claim}-r7"), |secret| secret.is_some()).await.unwrap();
        assert_eq!(value(&secret, "uri").unwrap(), format!("postgres://{claim}"));
    }
}
