//! What all roles share, on a real API server: following, leading, writing.

#![allow(clippy::unwrap_used, reason = "a test ends by panicking")]

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::DynamicObject;
use kube::core::ApiResource;
use kube::{Api, Client};
use mecha_apiserver::{
    Access, Environment, FailureKind, Leadership, Readiness, Role, Selection, Tasks, Timing, apply, connect, delete,
    follow,
};
use mecha_testkit::servers::Kubernetes;
use serde_json::json;
use tokio::time::timeout;

/// Generous: the machine may be busy.
const LIMIT: Duration = Duration::from_secs(60);

/// Fast enough for a test, slow enough for a busy machine.
const TIMING: Timing =
    Timing { duration: Duration::from_secs(6), give_up: Duration::from_secs(4), retry: Duration::from_millis(200) };

async fn role(server: &Kubernetes, instance: &str) -> Role {
    let access = Access { kubeconfig: Some(server.kubeconfig()), context: None };
    Role {
        client: connect(&access).await.unwrap(),
        namespace: "default".to_owned(),
        instance: instance.to_owned(),
        tasks: Tasks::new(),
        metrics: Arc::default(),
        ready: Readiness::default(),
    }
}

async fn until<K>(
    followed: &mecha_apiserver::Followed<K>,
    what: &str,
    holds: impl Fn(&mecha_apiserver::Followed<K>) -> bool,
) {
    let mut changes = followed.changes();
    let waiting = async {
        while !holds(followed) {
            changes.changed().await.unwrap();
        }
    };
    timeout(LIMIT, waiting).await.unwrap_or_else(|_| panic!("{what}: {followed:?}"));
}

fn names(followed: &mecha_apiserver::Followed<ConfigMap>) -> Vec<String> {
    followed
        .all()
        .iter()
        .filter_map(|map| map.metadata.name.clone())
        .filter(|name| name != "kube-root-ca.crt")
        .collect()
}

fn map(name: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "1"}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_followed_stays_known_while_the_server_is_away_and_is_current_after() {
    let Some(mut server) = Kubernetes::start() else { return };
    let role = role(&server, "a").await;
    let maps: Api<ConfigMap> = Api::namespaced(role.client.clone(), "default");
    apply(&maps, "one", "test", &map("one")).await.unwrap();
    let selection = Selection { namespace: Some("default".into()), ..Selection::default() };
    let followed = follow::<ConfigMap>(role.client.clone(), &selection, &role.tasks);
    until(&followed, "the first set", |f| names(f) == ["one"]).await;
    apply(&maps, "two", "test", &map("two")).await.unwrap();
    until(&followed, "an added object", |f| names(f) == ["one", "two"]).await;
    assert!(delete(&maps, "one").await.unwrap());
    assert!(!delete(&maps, "one").await.unwrap(), "gone already");
    until(&followed, "a deleted object", |f| names(f) == ["two"]).await;

    server.kill_apiserver();
    assert_eq!(names(&followed), ["two"]);
    let failure = apply(&maps, "three", "test", &map("three")).await.unwrap_err();
    assert!(failure.passes(), "{failure:?}");
    server.restart_apiserver();
    apply(&maps, "three", "test", &map("three")).await.unwrap();
    until(&followed, "what happened since", |f| names(f) == ["three", "two"]).await;
    timeout(LIMIT, role.tasks.drain()).await.unwrap();
}

/// A definition that takes anything, as a later version of the kind might.
fn open_definition() -> serde_json::Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "environments.mecha.dev"},
        "spec": {
            "group": "mecha.dev", "scope": "Namespaced",
            "names": {"kind": "Environment", "plural": "environments"},
            "versions": [{
                "name": "v1alpha1", "served": true, "storage": true,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
            }],
        },
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_kind_may_come_later_and_one_unreadable_object_stops_no_other() {
    let Some(server) = Kubernetes::start() else { return };
    let role = role(&server, "a").await;
    let followed = follow::<Environment>(role.client.clone(), &Selection::default(), &role.tasks);
    timeout(LIMIT, followed.listed()).await.unwrap();
    assert!(followed.is_absent() && followed.all().is_empty());

    server.apply(&open_definition().to_string()).unwrap();
    until(&followed, "the kind is found", |f| !f.is_absent()).await;
    let resource = ApiResource::erase::<Environment>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(role.client.clone(), "default", &resource);
    let environment = |name: &str, spec: serde_json::Value| json!({"apiVersion": "mecha.dev/v1alpha1", "kind": "Environment", "metadata": {"name": name}, "spec": spec});
    apply(&api, "bad", "test", &environment("bad", json!({"className": 7}))).await.unwrap();
    apply(&api, "good", "test", &environment("good", json!({"className": "dev"}))).await.unwrap();
    until(&followed, "the good one", |f| f.get("default", "good").is_some()).await;
    until(&followed, "the bad one is named", |f| f.refused().contains_key("default/bad")).await;
    assert!(followed.get("default", "bad").is_none());
    // What was readable once keeps that form.
    apply(&api, "good", "test", &environment("good", json!({"className": {}}))).await.unwrap();
    until(&followed, "the good one has gone bad", |f| f.refused().contains_key("default/good")).await;
    let kept = followed.get("default", "good").unwrap();
    assert_eq!(kept.spec.class_name.as_deref(), Some("dev"));
    apply(&api, "bad", "test", &environment("bad", json!({"className": "dev"}))).await.unwrap();
    until(&followed, "the bad one is repaired", |f| f.get("default", "bad").is_some()).await;
    assert!(!followed.refused().contains_key("default/bad"));
    timeout(LIMIT, role.tasks.drain()).await.unwrap();
}

async fn lease(client: &Client) -> (Option<String>, Option<i32>) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "default");
    let spec = leases.get("mecha-test").await.unwrap().spec.unwrap();
    (spec.holder_identity, spec.lease_transitions)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_leads_and_the_next_has_a_higher_epoch() {
    let Some(mut server) = Kubernetes::start() else { return };
    let (first, second) = (role(&server, "a").await, role(&server, "b").await);
    let mut a = Leadership::campaign(&first, "mecha-test", TIMING);
    let term = timeout(LIMIT, a.elected()).await.unwrap();
    assert_eq!((term.epoch(), term.holds()), (1, true));
    let mut b = Leadership::campaign(&second, "mecha-test", TIMING);
    assert!(b.term().is_none());
    // Given back at the end: the next one need not wait for it to run out.
    timeout(LIMIT, first.tasks.drain()).await.unwrap();
    assert!(!term.holds());
    let next = timeout(LIMIT, b.elected()).await.unwrap();
    assert_eq!(next.epoch(), 2);
    assert_eq!(lease(&second.client).await, (Some("b".into()), Some(2)));

    // Cut off: it stops leading by itself before anybody else may lead.
    server.freeze_apiserver();
    timeout(LIMIT, b.deposed(&next)).await.unwrap();
    assert!(!next.holds() && b.term().is_none());
    server.thaw_apiserver();
    let again = timeout(LIMIT, b.elected()).await.unwrap();
    assert!(again.epoch() > next.epoch(), "a new term, since what the last one sent may still arrive");
    server.kill_apiserver();
    let refused = mecha_apiserver::call(second.client.apiserver_version()).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::Unavailable);
    timeout(LIMIT, second.tasks.drain()).await.unwrap();
}
