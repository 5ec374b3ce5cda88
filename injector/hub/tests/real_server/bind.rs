//! From a claim to a binding, as developers and platform teams see it.

use mecha_decide::{Consent, Memory};
use mecha_resources::kinds::{ClaimConditionType, ClaimPhase, ClaimReason, ConditionStatus};

use crate::harness::{Cluster, EVENTS, ORDERS, on_a_laptop, platform, space};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_is_bound_to_the_same_bytes_as_on_a_laptop_and_a_second_apply_changes_nothing() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(&format!("{EVENTS}---{ORDERS}"));
    assert_eq!(cluster.bound("orders").await, "pg-eu");
    assert_eq!(cluster.bound("events").await, "kafka");
    // Claims may come one after the other; every one of them is there now.
    let binding = cluster.binding().await;
    let environment = "apiVersion: mecha.dev/v1alpha1\nkind: Environment\nmetadata: {name: team-a-dev-env, \
                       namespace: team-a}\nspec: {className: development}\n";
    let files = [&platform("kafka", "postgres"), environment, EVENTS, ORDERS];
    let laptop = on_a_laptop(&files, &Memory::default(), &Consent::default());
    assert_eq!(binding.spec.digest, laptop.bindings[0].digest);
    let at_first = |document: &str| document.replace("-r2\"", "-r1\"").replace("revision\":\"2", "revision\":\"1");
    for (here, there) in binding.spec.entries.iter().zip(&laptop.bindings[0].entries) {
        assert_eq!((&here.claim, &here.backend), (&there.claim, &there.backend));
        assert_eq!(at_first(&here.document), there.document, "byte for byte, at whatever revision it came in");
    }

    // A Provisioned Service, with an explanation, and conditions in the way of kstatus.
    let claim = cluster.claim("orders").await;
    let status = claim.status.clone().unwrap();
    let entry = cluster.entry("orders").await.unwrap();
    assert_eq!(status.binding.unwrap().name, format!("mecha-orders-r{}", entry.revision));
    assert_eq!(status.required_features, ["crud", "etag", "ttl"]);
    assert_eq!(status.phase, Some(ClaimPhase::Bound));
    let explanation = status.explanation.unwrap();
    assert_eq!((explanation.evaluated, explanation.eligible), (4, 1));
    assert!(status.conditions.iter().all(|c| c.observed_generation == claim.metadata.generation));
    cluster.report("orders", |_| {}).await;
    cluster.claim_is("orders", ClaimConditionType::Ready, ClaimReason::AllBindingsReady).await;

    // What kubectl prints of the environment.
    cluster.environment_is("AllReady").await;
    let printed = cluster.server.kubectl(&["-n", "team-a", "get", "environments"]);
    let lines: Vec<Vec<&str>> = printed.lines().map(|line| line.split_whitespace().collect()).collect();
    let space = space();
    assert_eq!(lines[0], ["NAME", "CONNECT-TO", "TYPE", "INFRA", "READY"]);
    assert_eq!(lines[1..], [vec!["team-a-dev-env", &space, "development", "true", "True"]]);
    let printed = cluster.server.kubectl(&["get", "memberclusters"]);
    assert!(printed.contains("local") && printed.contains("true") && printed.contains("v1.3"), "{printed}");

    // It owns statuses and finalizers of what others write, and nothing else.
    assert_eq!(cluster.owned(&claim).await, ["metadata/finalizers", "status"]);
    assert_eq!(cluster.owned(&cluster.environment().await).await, ["metadata/finalizers", "status"]);
    assert_eq!(cluster.owned(&cluster.class().await).await, ["metadata/finalizers", "status"]);

    let account = format!("--as={}", crate::harness::ACCOUNT);
    let may = cluster.server.kubectl_refused(&["auth", "can-i", "get", "secrets", "-A", &account]);
    assert!(may.is_err(), "all of this without a right to Secrets");

    hub.quiet(3).await;
    let before = cluster.versions();
    cluster.apply(&format!("{EVENTS}---{ORDERS}---{}", platform("kafka", "postgres")));
    hub.quiet(3).await;
    assert_eq!(cluster.versions(), before);
    assert_eq!(hub.metric("mecha_hub_claims{phase=\"Bound\"}"), 2.0);
    assert_eq!(hub.metric("mecha_hub_claim_bound_seconds_count"), 2.0);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_waits_with_a_reason_until_a_probe_has_proven_what_it_needs() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    let needs_more = ORDERS.replace("[ttl]", "[ttl, transactional]");
    cluster.apply(&needs_more);
    let message = cluster.claim_is("orders", ClaimConditionType::Bound, ClaimReason::NoCandidate).await;
    assert!(message.contains("transactional"), "{message}");
    let claim = cluster.claim("orders").await;
    let status = claim.status.unwrap();
    let refused = status.explanation.unwrap();
    let mine = refused.candidates.iter().find(|c| c.name == "pg-eu").unwrap();
    assert!(mine.message.contains("has not proven"), "{}", mine.message);
    cluster.environment_is("ClaimsPending").await;
    assert!(cluster.event(cluster.space(), "Pending").await.contains("transactional"));
    cluster.proven("pg-eu", &["crud", "etag", "ttl", "transactional"]).await;
    assert_eq!(cluster.bound("orders").await, "pg-eu");
    cluster.environment_is("AllReady").await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hand_written_component_wins_and_the_claim_finds_its_data_again() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    cluster.apply(ORDERS);
    cluster.bound("orders").await;
    let definition = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/crds/dapr/components.dapr.io.yaml");
    cluster.server.kubectl(&["apply", "--server-side", "-f", definition]);
    let established = ["wait", "--for=condition=Established", "--timeout=60s", "crd/components.dapr.io"];
    cluster.server.kubectl(&established);
    cluster.apply(
        "apiVersion: dapr.io/v1alpha1\nkind: Component\nmetadata: {name: orders, namespace: SPACE}\nspec: {type: \
         state.in-memory, version: v1, metadata: []}\n",
    );
    let message = cluster.claim_is("orders", ClaimConditionType::Degraded, ClaimReason::Shadowed).await;
    assert!(message.contains("orders"), "{message}");
    assert!(cluster.entry("orders").await.is_none());
    let status = cluster.claim("orders").await.status.unwrap();
    assert_eq!((status.phase, status.backend.as_str()), (Some(ClaimPhase::Degraded), "pg-eu"));
    cluster.server.kubectl(&["-n", cluster.space(), "delete", "components.dapr.io", "orders"]);
    assert_eq!(cluster.bound("orders").await, "pg-eu");
    let status = cluster.claim("orders").await.status.unwrap();
    let degraded = status.conditions.iter().find(|c| c.kind == ClaimConditionType::Degraded).unwrap();
    assert_eq!(degraded.status, ConditionStatus::False);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_every_kind_is_bound_or_refused_with_a_reason() {
    let Some((cluster, hub)) = Cluster::shop("kafka", "postgres").await else { return };
    let kinds = [
        ("binding", "bindings.cron"),
        ("secretstore", "secretstores.kubernetes"),
        ("configuration", "configuration.redis"),
        ("lock", "lock.redis"),
        ("crypto", "crypto.jwks"),
        ("conversation", "conversation.echo"),
    ];
    let mut class = platform("kafka", "postgres").split("---").next().unwrap().trim_end().to_owned();
    for (kind, component) in kinds {
        class.push_str(&format!("\n  - {{kind: {kind}, backendSelector: {{}}}}"));
        if kind != "conversation" {
            cluster.apply(&format!(
                "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityBackend\nmetadata: {{name: {kind}-one}}\nspec:\n  \
                 kind: {kind}\n  component: {{type: {component}, version: v1}}\n  source: {{none: {{}}}}\n"
            ));
        }
    }
    cluster.apply(&class);
    for (kind, _) in kinds {
        cluster.apply(&format!(
            "apiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: my-{kind}, namespace: \
             SPACE}}\nspec: {{kind: {kind}}}\n"
        ));
    }
    cluster.apply(&format!("{EVENTS}---{ORDERS}"));
    for (kind, _) in kinds.iter().filter(|(kind, _)| *kind != "conversation") {
        assert_eq!(cluster.bound(&format!("my-{kind}")).await, format!("{kind}-one"));
    }
    cluster.bound("orders").await;
    cluster.bound("events").await;
    let why = cluster.claim_is("my-conversation", ClaimConditionType::Bound, ClaimReason::NoCandidate).await;
    assert!(why.contains("conversation"), "{why}");
    hub.stop().await;
}
