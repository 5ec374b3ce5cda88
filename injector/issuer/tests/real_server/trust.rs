//! The root and the bundle: made once, kept, and there where pods need them.

use std::time::Duration;

use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::Api;
use kube::api::DeleteParams;
use mecha_identity::{Clients, Expect, Live, SpiffeId};
use mecha_issuer::{BUNDLE_CONFIG_MAP, BUNDLE_LABEL, Issuer, Options, ROOT_SECRET};
use rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::cluster::{Cluster, LIMIT, SYSTEM, eventually};

fn anywhere() -> Options {
    Options { listen: ([127, 0, 0, 1], 0).into(), ..Options::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_agree_on_one_root_which_a_restart_and_a_deleted_secret_do_not_change() {
    let Some(cluster) = Cluster::start().await else { return };
    let mut starting = tokio::task::JoinSet::new();
    for instance in ["a", "b", "c", "d"] {
        let role = cluster.role(instance).await;
        starting.spawn(async move { (Issuer::start(anywhere(), &role).await.unwrap(), role) });
    }
    let running = starting.join_all().await;
    let bundle = running[0].0.bundle().borrow().clone();
    for (issuer, _) in &running {
        assert_eq!(*issuer.bundle().borrow(), bundle, "all sign with the same root");
    }

    let secrets: Api<Secret> = Api::namespaced(cluster.admin.clone(), SYSTEM);
    eventually("the bundle", || async { (cluster.bundle(SYSTEM).await == *bundle).then_some(()) }).await;
    secrets.delete(ROOT_SECRET, &DeleteParams::default()).await.unwrap();
    eventually("the Secret again", || async { secrets.get_opt(ROOT_SECRET).await.unwrap() }).await;
    for (_, role) in &running {
        tokio::time::timeout(LIMIT, role.tasks.drain()).await.unwrap();
    }
    let (again, _role) = cluster.issuer("e", Options::default()).await;
    assert_eq!(*again.bundle().borrow(), bundle);

    // Nothing is guessed where the Secret is something else.
    drop(again);
    cluster.server.kubectl(&["-n", SYSTEM, "delete", "secret", ROOT_SECRET]);
    let (broken, role) = (anywhere(), cluster.role("f").await);
    eventually("the Secret again", || async { secrets.get_opt(ROOT_SECRET).await.unwrap() }).await;
    let patch = r#"{"stringData": {"ca.key": "gone"}}"#;
    cluster.server.kubectl(&["-n", SYSTEM, "patch", "secret", ROOT_SECRET, "-p", patch]);
    let error = Issuer::start(broken, &role).await.unwrap_err().to_string();
    assert!(error.contains(ROOT_SECRET) && error.contains("the key of the root"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn namespaces_get_the_bundle_with_their_first_pod_or_a_label_and_it_is_written_once() {
    let Some(cluster) = Cluster::start().await else { return };
    for namespace in ["shop", "labelled", "other"] {
        cluster.namespace(namespace);
    }
    cluster.account("shop", "orders");
    let (issuer, _role) = cluster.issuer("a", Options::default()).await;
    let bundle = issuer.bundle().borrow().clone();
    assert_eq!(cluster.bundle(SYSTEM).await, *bundle);
    cluster.pod("shop", "orders-1", "orders", "orders").await;
    assert_eq!(cluster.bundle("shop").await, *bundle);
    cluster.server.kubectl(&["label", "namespace", "labelled", &format!("{BUNDLE_LABEL}=true")]);
    assert_eq!(cluster.bundle("labelled").await, *bundle);
    let maps = |namespace: &str| Api::<ConfigMap>::namespaced(cluster.admin.clone(), namespace);
    assert!(maps("other").get_opt(BUNDLE_CONFIG_MAP).await.unwrap().is_none(), "nobody asked for it");

    // Another pod, another replica: nothing is written again.
    let version = async || maps("shop").get(BUNDLE_CONFIG_MAP).await.unwrap().metadata.resource_version;
    let before = version().await;
    cluster.pod("shop", "orders-2", "orders", "orders").await;
    let (_second, _other) = cluster.issuer("b", Options::default()).await;
    // Whoever changes it gets it back, and takes no one else's word with it.
    cluster.server.kubectl(&["-n", "labelled", "delete", "configmap", BUNDLE_CONFIG_MAP]);
    assert_eq!(cluster.bundle("labelled").await, *bundle);
    assert_eq!(version().await, before);
    let patch = r#"{"data": {"ca.crt": "-----BEGIN CERTIFICATE-----\n"}}"#;
    cluster.server.kubectl(&["-n", "shop", "patch", "configmap", BUNDLE_CONFIG_MAP, "-p", patch]);
    eventually("the right bundle", || async {
        let map = maps("shop").get(BUNDLE_CONFIG_MAP).await.unwrap();
        (map.data.unwrap().get("ca.crt") == Some(&bundle.to_pem())).then_some(())
    })
    .await;
    // A namespace without injected pods keeps what it has: absence is no reason to take trust away.
    let pods: Api<Pod> = Api::namespaced(cluster.admin.clone(), "shop");
    for pod in ["orders-1", "orders-2"] {
        pods.delete(pod, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    assert_eq!(cluster.bundle("shop").await, *bundle);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_control_part_has_certificates_of_its_own_that_are_renewed_without_a_gap() {
    let Some(cluster) = Cluster::start().await else { return };
    let options = Options { leaf_ttl: Duration::from_secs(3), ..Options::default() };
    let (issuer, role) = cluster.issuer("a", options).await;
    let live = issuer.control("dapr-operator", &["mecha-agent.mecha-system.svc".to_owned()]).unwrap();
    let id = SpiffeId::control("cluster.local", SYSTEM, "dapr-operator").unwrap();
    let client = Live::new(issuer.bundle().borrow().as_ref().clone());
    let mut ends = std::collections::BTreeSet::new();
    while ends.len() < 3 {
        let (one, other) = tokio::io::duplex(16 * 1024);
        let acceptor = TlsAcceptor::from(std::sync::Arc::new(live.server_config(Clients::Optional)));
        let connector = TlsConnector::from(std::sync::Arc::new(client.client_config(Expect::Id(id.clone()))));
        let name = ServerName::try_from("agent").unwrap();
        let (served, connected) = tokio::join!(acceptor.accept(one), connector.connect(name, other));
        served.unwrap();
        connected.unwrap();
        ends.insert(live.identity().unwrap().not_after());
    }
    let mut metrics = String::new();
    prometheus_client::encoding::text::encode(&mut metrics, &role.metrics.lock()).unwrap();
    for name in ["mecha_issuer_root_days_left 36", "mecha_issuer_roots 1", "mecha_issuer_refusals_total"] {
        assert!(metrics.contains(name), "{name} in {metrics}");
    }
}
