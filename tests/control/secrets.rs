//! Secrets of the cluster through a sidecar: the store that is there by itself, and one that a document names.

use std::path::Path;

use mecha_testkit::servers::Kubernetes;
use mecha_tests::{Item, Sidecar, SidecarBuilder, component};

const SECRETS: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: orders, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: orders, namespace: shop}
rules: [{apiGroups: [''], resources: [secrets], resourceNames: [db], verbs: [get]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: orders, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: orders}
subjects: [{kind: ServiceAccount, name: orders, namespace: shop}]
---
apiVersion: v1
kind: Secret
metadata: {name: db, namespace: shop}
stringData: {user: orders, password: canary-4711}
---
apiVersion: v1
kind: Secret
metadata: {name: other, namespace: shop}
stringData: {key: canary-4712}
";

/// A sidecar in Kubernetes mode, without a control part.
fn sidecar() -> SidecarBuilder {
    Sidecar::builder().flag("mode", "kubernetes").flag("enable-mtls", "false").env("NAMESPACE", "shop")
}

fn server() -> Option<Kubernetes> {
    let server = Kubernetes::start()?;
    server.apply(SECRETS).unwrap();
    Some(server)
}

/// What a pod of the service account finds in its folder.
fn account(server: &Kubernetes, folder: &Path) {
    let token = server.kubectl(&["-n", "shop", "create", "token", "orders", "--duration=1h"]);
    std::fs::write(folder.join("token"), token).unwrap();
    std::fs::copy(server.authority(), folder.join("ca.crt")).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn in_kubernetes_mode_the_secrets_of_the_namespace_are_there_without_a_document() {
    let Some(server) = server() else { return };
    let config = server.kubeconfig().to_string_lossy().into_owned();
    let run = sidecar().env("KUBECONFIG", &config).start().await;
    for api in run.apis().await {
        let secret = api.secret("kubernetes", "db").await.unwrap();
        assert_eq!((secret["user"].as_str(), secret["password"].as_str()), ("orders", "canary-4711"));
        let all = api.secrets("kubernetes").await.unwrap();
        assert_eq!(all.keys().map(String::as_str).collect::<Vec<_>>(), ["db", "other"]);
    }
    assert!(!run.log().contains("canary"), "{}", run.log());

    let without = sidecar().env("KUBECONFIG", &config).switch("disable-builtin-k8s-secret-store").start().await;
    for api in without.apis().await {
        api.secret("kubernetes", "db").await.unwrap_err();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_reads_what_its_service_account_may_and_documents_refer_to_it() {
    let Some(server) = server() else { return };
    let builder = sidecar();
    let folder = builder.folder();
    account(&server, &folder);
    let url = server.url();
    let (host, port) = url.trim_start_matches("https://").split_once(':').unwrap();
    let store =
        component("kubernetes", "secretstores.kubernetes", &[("mecha.serviceAccountPath", &folder.to_string_lossy())]);
    let state = "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: store}\nauth: {secretStore: kubernetes}\n\
                 spec:\n  type: state.in-memory\n  version: v1\n  metadata:\n  - name: keyPrefix\n    \
                 secretKeyRef: {name: db, key: user}\n";
    let run = builder
        .env("KUBERNETES_SERVICE_HOST", host)
        .env("KUBERNETES_SERVICE_PORT", port)
        .component(store)
        .component(state)
        .start()
        .await;
    for api in run.apis().await {
        assert_eq!(api.secret("kubernetes", "db").await.unwrap()["user"], "orders");
        let refused = api.secret("kubernetes", "other").await.unwrap_err();
        let text = format!("{refused:?}");
        let told =
            ["resourceNames [other]", "system:serviceaccount:shop:orders"].iter().all(|part| text.contains(part));
        assert!(told, "{text}");
        api.save("store", &[Item::new("k", "1")]).await.unwrap();
    }
    assert!(!run.log().contains("canary"), "{}", run.log());
}
