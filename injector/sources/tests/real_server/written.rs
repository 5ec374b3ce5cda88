//! The Secrets that documents name.

use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use mecha_sources::Options;
use serde_json::json;

use crate::cluster::{Cluster, LIMIT, value};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn secrets_are_there_for_documents_of_this_cluster_alone_and_go_when_none_names_them() {
    let Some(cluster) = Cluster::start().await else { return };
    let options = Options { retain: Duration::from_millis(500), ..Options::default() };
    let first = cluster.sources("a", options.clone()).await;
    cluster.secret("platform", "pg-conn", &json!({"uri": "postgres://one", "username": "app"}));
    cluster.backend("pg", &json!({"secretRef": {"namespace": "platform", "name": "pg-conn"}}));
    cluster.secret("shop", "mecha-billing-r7", &json!({"uri": "somebody else's"}));
    cluster.binding(
        "local",
        7,
        &[("orders", "pg", "mecha-orders-r7"), ("billing", "pg", "mecha-billing-r7"), ("cart", "pg", "stolen")],
    );
    cluster.binding("eu-1", 7, &[("away", "pg", "mecha-away-r7")]);

    // In the words of the Service Binding specification, so that an app can do without the sidecar.
    let made = cluster.secret_is("mecha-orders-r7", |secret| secret.is_some()).await.unwrap();
    assert_eq!(made.type_.as_deref(), Some("servicebinding.io/postgresql"));
    let found: Vec<_> = made.data.as_ref().unwrap().keys().cloned().collect();
    assert_eq!(found, ["provider", "type", "uri", "username"]);
    assert_eq!((value(&made, "type").unwrap(), value(&made, "provider").unwrap()), ("postgresql".into(), "pg".into()));

    // Whoever takes it away gets it back with the next change; a new revision stands beside the old one.
    cluster.binding("local", 8, &[("orders", "pg", "mecha-orders-r8"), ("billing", "pg", "mecha-billing-r7")]);
    cluster.secret_is("mecha-orders-r8", |secret| secret.is_some()).await;
    cluster.secret_is("mecha-orders-r7", |secret| secret.is_none()).await;

    // The next replica goes on where this one was: what it made is removed when the time has come.
    tokio::time::timeout(LIMIT, first.tasks.drain()).await.unwrap();
    cluster.binding("local", 9, &[("orders", "pg", "mecha-orders-r9"), ("billing", "pg", "mecha-billing-r7")]);
    let _second = cluster.sources("b", options).await;
    cluster.secret_is("mecha-orders-r9", |secret| secret.is_some()).await;
    cluster.secret_is("mecha-orders-r8", |secret| secret.is_none()).await;
    let delete = ["-n", "mecha-cluster-local", "delete", "capabilitybinding", "shop"];
    cluster.server.kubectl(&delete);
    cluster.secret_is("mecha-orders-r9", |secret| secret.is_none()).await;

    let api: Api<Secret> = Api::namespaced(cluster.admin.clone(), "shop");
    let left = api.list(&kube::api::ListParams::default()).await.unwrap();
    let names: Vec<_> = left.items.iter().filter_map(|secret| secret.metadata.name.clone()).collect();
    assert_eq!(names, ["mecha-billing-r7"], "nothing for another cluster, nothing that a document points at");
    assert_eq!(value(&left.items[0], "uri").unwrap(), "somebody else's");
}
