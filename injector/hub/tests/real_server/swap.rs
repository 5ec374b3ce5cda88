//! One line of a class is edited: plan, consent, phases, receipts, and the way back.

use mecha_decide::{Consent, Memory};
use mecha_resources::kinds::{ClaimConditionType, ClaimPhase, ClaimReason, ConditionStatus, MoveOutcome};

use crate::harness::{Cluster, EVENTS, Hub, ORDERS, eventually, on_a_laptop, platform};

/// The shop with both claims bound.
async fn shop() -> Option<(Cluster, Hub)> {
    let (cluster, hub) = Cluster::shop("kafka", "postgres").await?;
    cluster.apply(EVENTS);
    cluster.bound("events").await;
    Some((cluster, hub))
}

/// Plays the agent through a move that goes well.
async fn go_through(cluster: &Cluster, claim: &str, phases: &[&str]) {
    for phase in phases {
        cluster.phase(claim, phase).await;
        cluster.report(claim, |_| {}).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_edited_line_moves_the_broker_step_by_step_and_leaves_a_receipt() {
    let Some((cluster, hub)) = shop().await else { return };
    let old = cluster.entry("events").await.unwrap();
    cluster.apply(&platform("redis", "postgres"));

    let entry = cluster.phase("events", "Prepare").await;
    assert_eq!(entry.previous_document.as_ref(), Some(&old.document), "a sidecar that starts now needs both");
    assert!(entry.document.contains("pubsub.redis") && entry.revision > old.revision);
    let record = entry.swap.clone().unwrap();
    assert_eq!((record.from.as_str(), record.to.as_str(), record.strategy.as_str()), ("kafka", "streams", "Drain"));
    assert!(record.why.contains("engine=redis") && record.deadline.is_some(), "{record:?}");
    let message = cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::InProgress).await;
    assert!(message.contains("kafka -> streams"), "{message}");
    let status = cluster.claim("events").await.status.unwrap();
    assert_eq!((status.phase, status.backend.as_str()), (Some(ClaimPhase::Swapping), "kafka"), "who has it now");
    assert_eq!(status.binding.unwrap().name, format!("mecha-events-r{}", old.revision));

    // Half of the sidecars, or an answer to another phase, is not enough.
    cluster.report("events", |progress| progress.reached = 1).await;
    hub.quiet(2).await;
    cluster.phase("events", "Prepare").await;
    cluster.report("events", |_| {}).await;
    cluster.phase("events", "Switch").await;
    hub.quiet(2).await;
    cluster.phase("events", "Switch").await;
    cluster.report("events", |_| {}).await;
    // The old broker is read until it is empty.
    cluster.phase("events", "Drain").await;
    cluster.report("events", |progress| progress.pending = 12).await;
    eventually("what is left is shown", async || {
        let status = cluster.claim("events").await.status?;
        let pending = status.conditions.iter().find(|c| c.kind == ClaimConditionType::SwapPending)?;
        (pending.message.contains("12 calls or messages") && status.backend == "streams").then_some(())
    })
    .await;
    cluster.report("events", |_| {}).await;
    cluster.phase("events", "Finalize").await;
    cluster.report("events", |_| {}).await;

    let entry = cluster.settled("events", "streams").await;
    assert_eq!(entry.previous_document, None);
    cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::Settled).await;
    let status = cluster.claim("events").await.status.unwrap();
    assert_eq!(status.history.len(), 1);
    let receipt = &status.history[0];
    assert_eq!((receipt.from.as_str(), receipt.to.as_str()), ("kafka", "streams"));
    assert_eq!((receipt.outcome, receipt.sidecars), (MoveOutcome::Completed, 2));
    assert_eq!((receipt.counts.in_flight, receipt.counts.redelivered, receipt.counts.failed), (7, 1, 0));
    assert_eq!(status.binding.unwrap().name, format!("mecha-events-r{}", entry.revision));
    let note = cluster.event(cluster.space(), "SwapCompleted").await;
    assert!(note.contains("7 in flight") && note.contains("no data copied"), "{note}");

    // The decision is that of a laptop with the edited line.
    let environment = "apiVersion: mecha.dev/v1alpha1\nkind: Environment\nmetadata: {name: team-a-dev-env, \
                       namespace: team-a}\nspec: {className: development}\n";
    let files = [&platform("redis", "postgres"), environment, EVENTS];
    let laptop = on_a_laptop(&files, &Memory::default(), &Consent::default());
    assert_eq!(cluster.binding().await.spec.digest, laptop.bindings[0].digest);
    assert_eq!(hub.metric("mecha_hub_moves_total{result=\"Completed\"}"), 1.0);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_move_that_fails_goes_back_and_is_not_tried_again_before_an_edit() {
    let Some((cluster, hub)) = shop().await else { return };
    let old = cluster.entry("events").await.unwrap();
    cluster.apply(&platform("redis", "postgres"));
    cluster.phase("events", "Prepare").await;
    cluster
        .report("events", |progress| {
            progress.reached = 1;
            progress.failed = 1;
        })
        .await;
    cluster.phase("events", "RollBack").await;
    cluster
        .report("events", |progress| {
            progress.reached = 1;
            progress.failed = 1;
        })
        .await;
    let entry = cluster.settled("events", "kafka").await;
    assert_eq!(entry, old, "what sidecars had, byte for byte");
    let message = cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::RolledBack).await;
    assert!(message.contains("edit the class or the backend"), "{message}");
    let history = cluster.claim("events").await.status.unwrap().history;
    assert_eq!((history.len(), history[0].outcome), (1, MoveOutcome::RolledBack));
    assert!(history[0].why.contains("connection refused"), "{}", history[0].why);
    hub.quiet(3).await;
    assert_eq!(cluster.entry("events").await.unwrap(), old, "it stays");

    // A successor knows it too.
    hub.stop().await;
    let hub = cluster.hub("b").await;
    eventually("the successor leads", async || (hub.metric("mecha_hub_leader") == 1.0).then_some(())).await;
    hub.quiet(3).await;
    assert_eq!(cluster.entry("events").await.unwrap(), old);

    // An edit of the class tries again, and another one takes it back.
    cluster.apply(&platform("redis", "postgres").replace("deadline: 1h", "deadline: 2h"));
    let again = cluster.phase("events", "Prepare").await;
    assert!(again.revision > old.revision);
    cluster.apply(&platform("kafka", "postgres"));
    cluster.phase("events", "RollBack").await;
    cluster.report("events", |_| {}).await;
    assert_eq!(cluster.settled("events", "kafka").await, old);
    cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::Settled).await;
    let history = cluster.claim("events").await.status.unwrap().history;
    assert_eq!(history.len(), 2, "the newest first: {history:?}");
    assert!(history[0].why.contains("somebody asked for it"), "{}", history[0].why);
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_manual_move_waits_for_the_digest_of_its_plan() {
    let Some((cluster, hub)) = shop().await else { return };
    let manual =
        |broker: &str| platform(broker, "postgres").replace("strategy: Drain,", "strategy: Drain, approval: Manual,");
    cluster.apply(&manual("redis"));
    cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::AwaitingApproval).await;
    let digest = eventually("the plan is named", async || {
        let status = cluster.class().await.status?;
        let pending = status.conditions.iter().find(|c| c.status == ConditionStatus::True)?;
        assert!(pending.message.contains(&status.pending_plan) && pending.message.contains("kafka -> streams"));
        (status.pending_moves == Some(1)).then_some(status.pending_plan)
    })
    .await;
    assert!(cluster.event("default", "AwaitingApproval").await.contains(&digest));
    let approve = |digest: &str| {
        let patch = format!("{{\"spec\": {{\"approvedSwap\": \"{digest}\"}}}}");
        cluster.merge("environmentclass", "", "development", &patch);
    };
    approve("sha256:0000");
    hub.quiet(2).await;
    assert!(cluster.entry("events").await.unwrap().swap.is_none());
    approve(&digest);
    go_through(&cluster, "events", &["Prepare", "Switch", "Drain", "Finalize"]).await;
    cluster.settled("events", "streams").await;
    eventually("the consent is used up", async || {
        let approved = cluster.class().await.status?.approved?;
        (approved.digest == digest && approved.moves.is_empty()).then_some(())
    })
    .await;

    // Another claim that is to go the same way was not among those of the plan.
    let edit = |patch: &str| {
        cluster.server.kubectl(&["patch", "environmentclass", "development", "--type=json", "-p", patch]);
    };
    edit(
        r#"[{"op": "add", "path": "/spec/capabilities/0", "value": {"kind": "pubsub", "names": ["audit"],
            "backendSelector": {"matchLabels": {"engine": "kafka"}}, "swap": {"approval": "Manual"}}}]"#,
    );
    cluster.apply(&EVENTS.replace("name: events", "name: audit"));
    cluster.bound("audit").await;
    assert_eq!(cluster.entry("audit").await.unwrap().backend, "kafka");
    let selects = |rule: usize, engine: &str| {
        edit(&format!(
            r#"[{{"op": "replace", "path": "/spec/capabilities/{rule}/backendSelector/matchLabels/engine",
                "value": "{engine}"}}]"#
        ));
    };
    selects(0, "redis");
    let message = cluster.claim_is("audit", ClaimConditionType::SwapPending, ClaimReason::AwaitingApproval).await;
    assert!(message.contains("kafka -> streams"), "{message}");
    hub.quiet(2).await;
    assert!(cluster.entry("audit").await.unwrap().swap.is_none());
    selects(0, "kafka");
    cluster.claim_is("audit", ClaimConditionType::SwapPending, ClaimReason::Settled).await;

    // The way back is another plan: the old consent does not cover it.
    selects(1, "kafka");
    assert_eq!(cluster.class().await.spec.approved_swap, Some(digest));
    cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::AwaitingApproval).await;
    hub.quiet(2).await;
    assert!(cluster.entry("events").await.unwrap().swap.is_none());
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_its_deadline_a_move_stops_and_asks() {
    let Some((cluster, hub)) = shop().await else { return };
    cluster.apply(&platform("redis", "postgres").replace("deadline: 1h", "deadline: 8s"));
    go_through(&cluster, "events", &["Prepare", "Switch"]).await;
    cluster.phase("events", "Drain").await;
    cluster.report("events", |progress| progress.pending = 3).await;
    cluster.phase("events", "Paused").await;
    cluster.report("events", |progress| progress.pending = 3).await;
    let message = cluster.claim_is("events", ClaimConditionType::SwapPending, ClaimReason::DeadlinePassed).await;
    assert!(message.contains("mecha.dev/proceed-swap"), "{message}");
    hub.quiet(2).await;
    cluster.phase("events", "Paused").await;
    let proceed = "{\"metadata\": {\"annotations\": {\"mecha.dev/proceed-swap\": \"events\"}}}";
    cluster.merge("capabilitybinding", "mecha-cluster-local", cluster.space(), proceed);
    cluster.phase("events", "Finalize").await;
    cluster.report("events", |_| {}).await;
    cluster.settled("events", "streams").await;
    let annotations = cluster.binding().await.metadata.annotations.unwrap_or_default();
    assert!(!annotations.contains_key("mecha.dev/proceed-swap"), "not for the next move: {annotations:?}");

    // And back, taken back by a person in the middle.
    cluster.apply(&platform("kafka", "postgres"));
    go_through(&cluster, "events", &["Prepare", "Switch"]).await;
    cluster.phase("events", "Drain").await;
    let abort = "{\"metadata\": {\"annotations\": {\"mecha.dev/abort-swap\": \"events\"}}}";
    cluster.merge("capabilitybinding", "mecha-cluster-local", cluster.space(), abort);
    cluster.phase("events", "RollBack").await;
    cluster.report("events", |_| {}).await;
    cluster.settled("events", "streams").await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_is_not_emptied_before_somebody_has_said_so() {
    let Some((cluster, hub)) = shop().await else { return };
    cluster.apply(ORDERS);
    cluster.bound("orders").await;
    cluster.apply(&platform("kafka", "redis"));
    let message = cluster.claim_is("orders", ClaimConditionType::SwapPending, ClaimReason::EmptyNotAllowed).await;
    assert!(message.contains("emptyOk"), "{message}");
    hub.quiet(2).await;
    assert_eq!(cluster.entry("orders").await.unwrap().backend, "pg-eu");
    let agreed = platform("kafka", "redis")
        .replace("    require: [crud, etag]\n", "    require: [crud, etag]\n    swap: {emptyOk: true}\n");
    cluster.apply(&agreed);
    let entry = cluster.phase("orders", "Prepare").await;
    assert_eq!(entry.swap.unwrap().strategy.as_str(), "Immediate");
    go_through(&cluster, "orders", &["Prepare", "Switch", "Drain", "Finalize"]).await;
    cluster.settled("orders", "redis-eu").await;
    // This one has no credentials: no Secret is named.
    eventually("the claim names no Secret", async || {
        let status = cluster.claim("orders").await.status?;
        (status.backend == "redis-eu" && status.binding.is_none()).then_some(())
    })
    .await;
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_ten_moves_outlive_the_hub_and_each_says_what_caused_it() {
    let Some((cluster, mut hub)) = shop().await else { return };
    let engines = ["kafka", "redis"];
    for number in 1..=11 {
        let (from, to) = (engines[(number + 1) % 2], engines[number % 2]);
        cluster.apply(&platform(to, "postgres"));
        go_through(&cluster, "events", &["Prepare", "Switch", "Drain", "Finalize"]).await;
        let backend = if to == "redis" { "streams" } else { "kafka" };
        cluster.settled("events", backend).await;
        eventually(&format!("the receipt of move {number} from {from}"), async || {
            let status = cluster.claim("events").await.status?;
            let newest = status.history.first()?;
            let known = newest.to == backend && newest.why.contains(&format!("engine={to}"));
            (known && status.history.len() == number.min(10)).then_some(())
        })
        .await;
        // One that has made none of the moves before goes on with the list.
        if number % 5 == 0 {
            hub.stop().await;
            hub = cluster.hub(["b", "c"][number / 5 - 1]).await;
            eventually("the successor leads", async || (hub.metric("mecha_hub_leader") == 1.0).then_some(())).await;
        }
    }
    hub.quiet(3).await;
    let status = cluster.claim("events").await.status.unwrap();
    assert_eq!((status.phase, status.backend.as_str()), (Some(ClaimPhase::Bound), "streams"));
    assert_eq!(status.history.len(), 10, "the first is gone: {:?}", status.history);
    for (age, receipt) in status.history.iter().enumerate() {
        let (from, to, engine) =
            if age % 2 == 0 { ("kafka", "streams", "engine=redis") } else { ("streams", "kafka", "engine=kafka") };
        assert_eq!((receipt.from.as_str(), receipt.to.as_str()), (from, to), "the newest first");
        assert_eq!(receipt.outcome, MoveOutcome::Completed);
        assert!(receipt.why.contains(engine), "{}", receipt.why);
    }
    let explained = status.explanation.unwrap();
    assert!(explained.candidates.iter().any(|c| c.name == "streams"), "and why it is where it is: {explained:?}");
    hub.stop().await;
}
