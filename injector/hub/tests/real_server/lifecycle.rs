//! What is in use refuses to go; what goes takes its own with it and nothing else.

use mecha_resources::kinds::{ClaimConditionType, ClaimReason};
use serde_json::json;

use crate::harness::{Cluster, EVENTS, ORDERS, eventually, platform};

fn delete(cluster: &Cluster, kind: &str, namespace: &str, name: &str) {
    let mut args = vec!["delete", kind, name, "--wait=false"];
    if !namespace.is_empty() {
        args.extend(["-n", namespace]);
    }
    cluster.server.kubectl(&args);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_use_stays_and_lists_its_users() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(&format!("{EVENTS}---{ORDERS}"));
    cluster.bound("orders").await;
    cluster.bound("events").await;
    eventually("the backend counts its claims", async || {
        let printed = cluster.server.kubectl(&["get", "capabilitybackend", "pg-eu", "-o", "jsonpath={.status}"]);
        // Beside what the probe has written.
        (printed.contains("\"boundClaims\":1") && printed.contains("verifiedFeatures")).then_some(())
    })
    .await;
    hub.quiet(2).await;
    delete(&cluster, "environment", "team-a", "team-a-dev-env");
    delete(&cluster, "environmentclass", "", "development");
    delete(&cluster, "capabilitybackend", "", "pg-eu");
    let ready = |kind: &str, namespace: &str, name: &str, condition: &str| {
        let path = format!("jsonpath={{.status.conditions[?(@.type==\"{condition}\")].message}}");
        let mut args = vec!["get", kind, name, "-o", &path];
        if !namespace.is_empty() {
            args.extend(["-n", namespace]);
        }
        cluster.server.kubectl(&args)
    };
    let orders = format!("{}/orders", cluster.space());
    for (kind, namespace, name, condition, user) in [
        ("environment", "team-a", "team-a-dev-env", "Ready", "orders"),
        ("environmentclass", "", "development", "InUse", "team-a/team-a-dev-env"),
        ("capabilitybackend", "", "pg-eu", "InUse", orders.as_str()),
    ] {
        eventually(&format!("{kind} says who uses it"), async || {
            ready(kind, namespace, name, condition).contains(user).then_some(())
        })
        .await;
    }
    hub.quiet(2).await;
    assert_eq!(cluster.entry("orders").await.unwrap().backend, "pg-eu", "nothing has moved");

    // The users go, one after the other, and what they used goes with the last of them.
    delete(&cluster, "capabilityclaim", cluster.space(), "orders");
    eventually("the backend is gone", async || (!cluster.exists("capabilitybackend", "", "pg-eu")).then_some(())).await;
    assert!(cluster.entry("orders").await.is_none() && cluster.entry("events").await.is_some());
    delete(&cluster, "capabilityclaim", cluster.space(), "events");
    eventually("the environment is gone", async || {
        (!cluster.exists("environment", "team-a", "team-a-dev-env")).then_some(())
    })
    .await;
    eventually("the class is gone", async || (!cluster.exists("environmentclass", "", "development")).then_some(()))
        .await;
    assert!(!cluster.exists("capabilitybinding", "mecha-cluster-local", cluster.space()));
    let phase = cluster.server.kubectl(&["get", "namespace", cluster.space(), "-o", "jsonpath={.status.phase}"]);
    assert_eq!(phase, "Terminating");
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_environment_goes_when_its_time_is_over_and_its_claims_first() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(EVENTS);
    cluster.bound("events").await;
    cluster.merge("environment", "team-a", "team-a-dev-env", "{\"spec\": {\"ttl\": \"1s\"}}");
    eventually("the environment is gone", async || {
        (!cluster.exists("environment", "team-a", "team-a-dev-env")).then_some(())
    })
    .await;
    assert!(!cluster.exists("capabilityclaim", cluster.space(), "events"));
    assert!(!cluster.exists("capabilitybinding", "mecha-cluster-local", cluster.space()));
    assert!(cluster.event("team-a", "Expired").await.contains("ttl"));
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_only_missing_is_not_taken_away() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(&format!("{EVENTS}---{ORDERS}"));
    cluster.bound("orders").await;
    cluster.bound("events").await;
    let before = cluster.binding().await.spec;
    // Somebody adds a class with the same labels: which one is meant cannot be told, and nothing is taken away.
    let clusters = cluster.environment().await.status.unwrap().clusters;
    let second =
        platform("kafka", "postgres").split("---").next().unwrap().replace("name: development", "name: second");
    cluster.apply(&second);
    cluster.environment_is("ClassAmbiguous").await;
    let message = cluster.claim_is("orders", ClaimConditionType::SwapPending, ClaimReason::ClassUnresolved).await;
    assert!(message.contains("stays at pg-eu") && message.contains("development, second"), "{message}");
    hub.quiet(2).await;
    let now = cluster.binding().await.spec;
    assert_eq!((now.entries, now.revision), (before.entries.clone(), before.revision));
    assert_eq!(cluster.environment().await.status.unwrap().clusters, clusters);
    delete(&cluster, "environmentclass", "", "second");
    cluster.claim_is("orders", ClaimConditionType::SwapPending, ClaimReason::Settled).await;

    // A mistake in the template of its backend changes nothing, and is said on the claim.
    let prefix = |name: &str| {
        let value = format!("{{{{ {name} }}}}_");
        let patch = json!([{"op": "replace", "path": "/spec/component/metadata/1/value", "value": value}]).to_string();
        cluster.server.kubectl(&["patch", "capabilitybackend", "pg-eu", "--type=json", "-p", &patch]);
    };
    prefix("claim.slugg");
    let message = cluster.claim_is("orders", ClaimConditionType::SwapPending, ClaimReason::TemplateInvalid).await;
    assert!(message.contains("{{ claim.slugg }}"), "{message}");
    hub.quiet(2).await;
    assert_eq!(cluster.binding().await.spec.entries, before.entries);
    prefix("claim.slug");
    cluster.claim_is("orders", ClaimConditionType::SwapPending, ClaimReason::Settled).await;

    // Torn out without a word: the class loses its rules, the backend and a claim their finalizers and themselves.
    let strip = "{\"metadata\": {\"finalizers\": []}}";
    hub.quiet(1).await;
    hub.stop().await;
    cluster.merge("capabilityclaim", cluster.space(), "events", strip);
    delete(&cluster, "capabilityclaim", cluster.space(), "events");
    cluster.merge("capabilitybackend", "", "pg-eu", strip);
    delete(&cluster, "capabilitybackend", "", "pg-eu");
    cluster.merge("environmentclass", "", "development", "{\"spec\": {\"capabilities\": []}}");
    let hub = cluster.hub("b").await;
    let message = cluster.claim_is("orders", ClaimConditionType::Lost, ClaimReason::BackendDeleted).await;
    assert!(message.contains("sidecars keep what they have"), "{message}");
    hub.quiet(2).await;
    let after = cluster.binding().await.spec;
    assert_eq!((after.entries, after.revision), (before.entries, before.revision));
    // Everything comes back as it was.
    cluster.server.kubectl(&["delete", "environmentclass", "development", "--wait=false"]);
    cluster.merge("environmentclass", "", "development", strip);
    cluster.apply(&platform("kafka", "postgres"));
    cluster.proven("pg-eu", &["crud", "etag", "ttl"]).await;
    cluster.claim_is("orders", ClaimConditionType::Lost, ClaimReason::Settled).await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_of_somebody_else_is_not_taken() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.server.kubectl(&["create", "namespace", cluster.space()]);
    cluster.apply(&platform("kafka", "postgres"));
    cluster.apply(
        "apiVersion: mecha.dev/v1alpha1\nkind: Environment\nmetadata: {name: team-a-dev-env, namespace: \
         team-a}\nspec: {className: nothing}\n",
    );
    let hub = cluster.hub("a").await;
    cluster.environment_is("ClassNotFound").await;
    cluster.merge("environment", "team-a", "team-a-dev-env", "{\"spec\": {\"className\": \"development\"}}");
    cluster.environment_is("NamespacePending").await;
    eventually("it says what to do", async || {
        let status = cluster.environment().await.status?;
        status.conditions.iter().any(|c| c.message.contains("somebody else")).then_some(())
    })
    .await;
    let agree = "{\"metadata\": {\"annotations\": {\"mecha.dev/environment\": \"team-a/team-a-dev-env\"}}}";
    cluster.merge("namespace", "", cluster.space(), agree);
    cluster.environment_is("AllReady").await;
    hub.stop().await;
}
