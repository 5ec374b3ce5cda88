//! An API server with our kinds and with one of another system, whose controller the tests play.

use std::path::Path;

use k8s_openapi::api::core::v1::Secret;
use kube::api::DynamicObject;
use kube::{Api, Client};
use mecha_apiserver::testing::{self, TIMING, eventually_ok};
pub(crate) use mecha_apiserver::testing::{LIMIT, eventually};
use mecha_apiserver::{CapabilityBackend, Role};
use mecha_resources::kinds::{BackendConditionType, CapabilityBackendStatus};
use mecha_sources::Options;
use mecha_testkit::servers::Kubernetes;
use serde_json::{Value, json};

/// The namespace of the control part.
pub(crate) const SYSTEM: &str = "mecha-system";

/// All that the account may do. What services of other systems need comes with them, see [`SERVICE`].
const RIGHTS: &str = r#"
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: mecha-sources}
rules:
- {apiGroups: [mecha.dev], resources: [capabilitybackends], verbs: [list, watch]}
- {apiGroups: [mecha.dev], resources: [capabilitybackends/status], verbs: [patch]}
- {apiGroups: [""], resources: [secrets], verbs: [get, watch, create, patch, delete]}
- {apiGroups: [""], resources: [configmaps], verbs: [create]}
- {apiGroups: [""], resources: [configmaps], resourceNames: [mecha-secrets], verbs: [list, patch]}
- {apiGroups: [events.k8s.io], resources: [events], verbs: [create, patch]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: mecha-sources}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: mecha-sources}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mecha-sources, namespace: mecha-cluster-local}
rules: [{apiGroups: [mecha.dev], resources: [capabilitybindings], verbs: [list, watch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mecha-sources, namespace: mecha-cluster-local}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mecha-sources}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: mecha-sources, namespace: mecha-system}
rules:
- {apiGroups: [coordination.k8s.io], resources: [leases], verbs: [create]}
- {apiGroups: [coordination.k8s.io], resources: [leases], resourceNames: [mecha-sources], verbs: [get, update]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: mecha-sources, namespace: mecha-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: mecha-sources}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
"#;

/// Another system's kind, and the right to read it. With the label, an aggregated ClusterRole picks it up where a
/// controller manager runs; here it is bound by hand.
pub(crate) const SERVICE: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: postgresqls.example.org}
spec:
  group: example.org
  scope: Namespaced
  names: {kind: PostgreSQL, plural: postgresqls}
  versions:
  - name: v1
    served: true
    storage: true
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
    subresources: {status: {}}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: postgresql-services, labels: {mecha.dev/aggregate-to-agent: "true"}}
rules: [{apiGroups: [example.org], resources: [postgresqls], verbs: [get, list, watch, create, patch]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: postgresql-services}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: postgresql-services}
subjects: [{kind: ServiceAccount, name: mecha-agent, namespace: mecha-system}]
"#;

pub(crate) struct Cluster {
    pub(crate) server: Kubernetes,
    pub(crate) admin: Client,
}

impl Cluster {
    pub(crate) async fn start() -> Option<Self> {
        let server = Kubernetes::start()?;
        let admin = testing::client(&server.kubeconfig(), None).await;
        server.define(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds")));
        server.create_namespaces(&[SYSTEM, "platform", "shop", "mecha-cluster-local", "mecha-cluster-eu-1"]);
        server.create_account(SYSTEM, "mecha-agent");
        server.apply(RIGHTS).unwrap();
        Some(Self { server, admin })
    }

    /// Starts a replica; it ends with the tasks of its role.
    pub(crate) async fn sources(&self, instance: &str, options: Options) -> Role {
        let token = self.server.token_of(SYSTEM, "mecha-agent");
        let client = testing::client_with_token(&self.server.kubeconfig(), &token).await;
        let role = testing::role(client, SYSTEM, instance);
        let running = mecha_sources::run(Options { lease: TIMING, ..options }, role.clone());
        role.tasks.spawn("sources", async move { running.await.unwrap() });
        role
    }

    pub(crate) fn apply(&self, object: &Value) {
        self.server.apply(&object.to_string()).unwrap();
    }

    /// A backend of PostgreSQL that needs the key `uri`.
    pub(crate) fn backend(&self, name: &str, source: &Value) {
        self.apply(&json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityBackend", "metadata": {"name": name},
            "spec": {
                "kind": "state", "features": ["crud", "etag", "ttl"], "source": source,
                "component": {"type": "state.postgresql", "version": "v2", "metadata": [
                    {"name": "connectionString", "valueFrom": {"key": "uri"}},
                    {"name": "tablePrefix", "value": "{{ claim.slug }}_"},
                ]},
            },
        }));
    }

    pub(crate) fn secret(&self, namespace: &str, name: &str, values: &Value) {
        self.apply(&json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": namespace}, "stringData": values}));
    }

    /// What the hub writes: documents by claim and Secret.
    pub(crate) fn binding(&self, cluster: &str, revision: i64, entries: &[(&str, &str, &str)]) {
        let entry = |(claim, backend, secret): &(&str, &str, &str)| {
            let document = json!({
                "apiVersion": "dapr.io/v1alpha1", "kind": "Component",
                "metadata": {"name": claim, "namespace": "shop", "annotations": {"mecha.dev/backend": backend, "mecha.dev/revision": "7"}},
                "spec": {"type": "state.postgresql", "version": "v2", "metadata": [
                    {"name": "connectionString", "secretKeyRef": {"name": secret, "key": "uri"}}]},
                "auth": {"secretStore": "kubernetes"},
            });
            json!({"claim": claim, "backend": backend, "role": "Active", "access": "ReadWrite",
                   "document": document.to_string()})
        };
        self.apply(&json!({
            "apiVersion": "mecha.dev/v1alpha1", "kind": "CapabilityBinding",
            "metadata": {"name": "shop", "namespace": format!("mecha-cluster-{cluster}")},
            "spec": {
                "environment": "team/shop", "namespace": "shop", "cluster": cluster, "revision": revision,
                "leaderEpoch": 1, "digest": "sha256:77aa", "entries": entries.iter().map(entry).collect::<Vec<_>>(),
            },
        }));
    }

    pub(crate) async fn status(&self, backend: &str) -> CapabilityBackendStatus {
        let api: Api<DynamicObject> =
            Api::all_with(self.admin.clone(), &kube::api::ApiResource::erase::<CapabilityBackend>(&()));
        let found = api.get(backend).await.unwrap();
        found.data.get("status").map(|s| serde_json::from_value(s.clone()).unwrap()).unwrap_or_default()
    }

    /// Waits until `Ready` of `backend` has this status and reason; its message.
    pub(crate) async fn ready(&self, backend: &str, status: &str, reason: &str) -> String {
        eventually_ok(&format!("{status}/{reason} of {backend}"), async || {
            let now = self.status(backend).await;
            let ready = now.conditions.into_iter().find(|c| c.kind == BackendConditionType::Ready);
            match ready {
                Some(ready) if ready.status.to_string() == status && ready.reason.to_string() == reason => {
                    Ok(ready.message)
                }
                other => Err(other),
            }
        })
        .await
    }

    /// Waits until the Secret in namespace `shop` satisfies `wanted`; `None` means it is not there.
    pub(crate) async fn secret_is(&self, name: &str, wanted: impl Fn(Option<&Secret>) -> bool) -> Option<Secret> {
        let api: Api<Secret> = Api::namespaced(self.admin.clone(), "shop");
        eventually(&format!("Secret {name} as it should be"), async || {
            let found = api.get_opt(name).await.unwrap();
            wanted(found.as_ref()).then_some(found)
        })
        .await
    }
}

/// The text of a key.
pub(crate) fn value(secret: &Secret, key: &str) -> Option<String> {
    let bytes = secret.data.as_ref()?.get(key)?;
    Some(String::from_utf8(bytes.0.clone()).unwrap())
}
