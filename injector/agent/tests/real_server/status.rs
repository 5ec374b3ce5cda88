//! What sidecars report ends in the status of bindings.

use mecha_proto::delivery::Phase;
use mecha_resources::kinds::{
    BindingConditionType, CapabilityBindingStatus, ConditionStatus, SwapPhase, condition_status,
};
use serde_json::json;

use crate::cluster::{Cluster, binding, component, entry};
use crate::sets::{Sidecar, hello, reached};

fn holds(status: &CapabilityBindingStatus, condition: BindingConditionType) -> bool {
    condition_status(&status.conditions, condition) == Some(ConditionStatus::True)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_binding_is_applied_when_all_sidecars_in_scope_say_so() {
    let Some(cluster) = Cluster::start().await else { return };
    let orders = |revision| entry("orders", revision, &component("shop", "orders", &["cart"], json!([])));
    let billing = entry("bills", 1, &component("shop", "bills", &["billing"], json!([])));
    cluster.apply(&binding(1, json!([orders(1), billing])));
    let (agent, _role) = cluster.agent("a").await;
    let mut one = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    let mut two = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-2", "")).await;
    let (first, second) = (one.set().await, two.set().await);
    one.report(&first, vec![reached("orders", 1, Phase::Unspecified)]).await;
    let half = cluster.status("shop", "one of two", |s| s.entries[0].sidecars == "1/2").await;
    assert!(!holds(&half, BindingConditionType::Ready) && holds(&half, BindingConditionType::Delivered));
    assert_eq!((half.summary.as_str(), half.applied_revision), ("1/2", 0));
    two.report(&second, vec![reached("orders", 1, Phase::Unspecified)]).await;
    let both = cluster.status("shop", "both", |s| s.applied_revision == 1).await;
    assert!(holds(&both, BindingConditionType::Ready));
    assert_eq!((both.applied_digest.as_str(), both.summary.as_str()), ("sha256:1", "2/2"));
    let progress = both.entries[0].progress.clone().unwrap();
    assert_eq!((progress.revision, progress.reached, progress.total), (1, 2, 2));

    // The next revision is another matter.
    cluster.apply(&binding(2, json!([orders(2)])));
    let next =
        cluster.status("shop", "nobody has it", |s| s.entries.len() == 1 && s.entries[0].sidecars == "0/2").await;
    assert_eq!(next.applied_revision, 1);
    // A component by hand of the same name wins, and the claim says so.
    cluster.apply(&component("shop", "orders", &[], json!([])));
    let shadowed = cluster.status("shop", "shadowed", |s| s.entries[0].message.contains("written by hand")).await;
    assert!(!shadowed.entries[0].ready && !holds(&shadowed, BindingConditionType::Ready));
    assert_eq!(one.set().await.documents.last().unwrap().revision, 2);
    assert_eq!(one.set().await.documents[0].revision, 0, "the written one");
    let managers = cluster.server.kubectl(&[
        "-n",
        "mecha-cluster-local",
        "get",
        "capabilitybinding",
        "shop",
        "--show-managed-fields",
        "-o",
        "jsonpath={range .metadata.managedFields[*]}{.manager}/{.subresource} {end}",
    ]);
    assert!(managers.contains("mecha-agent/status") && !managers.contains("mecha-agent/ "), "{managers}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_waits_for_pods_that_are_silent_and_not_for_stock_ones() {
    let Some(cluster) = Cluster::start().await else { return };
    let side = component("shop", "orders", &["cart"], json!([]));
    let mut orders = entry("orders", 3, &side);
    orders["previousDocument"] = side.to_string().into();
    orders["swap"] = json!({"from": "a", "to": "b", "strategy": "Drain", "phase": "Drain",
                            "startedAt": "2026-11-21T03:00:00Z"});
    cluster.apply(&binding(3, json!([orders])));
    for pod in ["cart-1", "cart-2"] {
        let labels = json!({"dapr.io/sidecar-injected": "true", "dapr.io/app-id": "cart"});
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod, "namespace": "shop", "labels": labels},
            "spec": {"containers": [{"name": "app", "image": "app:1"}]},
        }));
        let running = r#"{"status": {"phase": "Running"}}"#;
        cluster.server.kubectl(&[
            "-n",
            "shop",
            "patch",
            "pod",
            pod,
            "--subresource=status",
            "--type=merge",
            "-p",
            running,
        ]);
    }
    let (agent, _role) = cluster.agent("a").await;
    let mut one = Sidecar::connect(&cluster, &agent, "shop", "cart", hello("cart-1", "")).await;
    let set = one.set().await;
    let mut drained = reached("orders", 3, Phase::Drain);
    drained.pending = 40;
    drained.finished = 2;
    one.report(&set, vec![drained.clone()]).await;
    let waiting = cluster.status("shop", "one is silent", |s| s.entries[0].sidecars == "1/2").await;
    assert_eq!(waiting.entries[0].swap, "Drain 1/2, 40 pending");
    assert!(waiting.entries[0].message.contains("cart-2"), "{:?}", waiting.entries[0]);
    let progress = waiting.entries[0].progress.as_ref().unwrap();
    assert_eq!((progress.phase, progress.pending), (Some(SwapPhase::Drain), 40));
    assert_eq!(progress.counts.as_ref().unwrap().finished, 2);

    // The silent one turns out to be Dapr's own sidecar.
    let mut stock = cluster.stock(&agent, "shop", "cart").await;
    let request = mecha_proto::operator::ComponentUpdateRequest { namespace: "shop".into() };
    let _updates = stock.component_update(request).await.unwrap();
    drained.pending = 0;
    one.report(&set, vec![drained]).await;
    let done = |s: &CapabilityBindingStatus| {
        let entry = &s.entries[0];
        entry.sidecars == "1/1 +1 stock" && entry.progress.as_ref().is_some_and(|progress| progress.pending == 0)
    };
    let all = cluster.status("shop", "all have drained", done).await;
    assert!(all.entries[0].ready);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sidecar_counts_whichever_replica_it_talks_to() {
    let Some(cluster) = Cluster::start().await else { return };
    cluster.apply(&binding(1, json!([entry("orders", 1, &component("shop", "orders", &["cart"], json!([])))])));
    let (leader, leading) = cluster.agent("a").await;
    cluster.status("shop", "the first one leads", |s| s.applied_revision == 1).await;
    let (second, _role) = cluster.agent("b").await;
    let mut one = Sidecar::connect(&cluster, &leader, "shop", "cart", hello("cart-1", "")).await;
    let mut two = Sidecar::connect(&cluster, &second, "shop", "cart", hello("cart-2", "")).await;
    let (first, other) = (one.set().await, two.set().await);
    assert_eq!(first.digest, other.digest, "every replica says the same");
    one.report(&first, vec![reached("orders", 1, Phase::Unspecified)]).await;
    cluster.status("shop", "the second one's sidecar is known", |s| s.entries[0].sidecars == "1/2").await;
    two.report(&other, vec![reached("orders", 1, Phase::Unspecified)]).await;
    cluster.status("shop", "both have it", |s| s.entries[0].sidecars == "2/2").await;
    // The leader goes; its sidecar moves to the other one.
    leading.tasks.drain().await;
    let mut one = Sidecar::connect(&cluster, &second, "shop", "cart", hello("cart-1", &first.digest)).await;
    assert!(one.next().await.is_ok());
    one.report_failure(&first, "orders", 1, "no route to host").await;
    let told = cluster.status("shop", "the other one writes", |s| s.entries[0].message.contains("no route")).await;
    assert_eq!(told.entries[0].sidecars, "1/2");
}
