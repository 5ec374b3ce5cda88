//! Files in, bindings out: what a platform team and a developer see.

use mecha_decide::{
    Assume, Blocked, Bound, Choice, Consent, Hold, Memory, MoveWhy, Plan, StayWhy, World, claim_slug, entries_digest,
};
use mecha_resources::kinds::{ClaimReason, DecideReason, Documents, SwapPhase, SwapRecord, SwapStrategy};

const SHOP: &str = r#"
apiVersion: mecha.dev/v1alpha1
kind: EnvironmentClass
metadata: {name: development, labels: {type: development}}
spec:
  type: development
  capabilities:
  - kind: pubsub
    backendSelector: {matchLabels: {engine: BROKER}}
  - kind: state
    backendSelector: {matchLabels: {engine: STORE}}
    require: [crud, etag]
---
apiVersion: mecha.dev/v1alpha1
kind: Environment
metadata: {name: team-a-dev, namespace: team-a}
spec:
  compositionSelector: {matchLabels: {type: development}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: embedded, labels: {engine: embedded}}
spec:
  kind: pubsub
  component: {type: pubsub.mecha, version: v1, metadata: [{name: path, value: "/data/{{ claim.slug }}.db"}]}
  source: {none: {}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: streams, labels: {engine: redis}}
spec:
  kind: pubsub
  component:
    type: pubsub.redis
    metadata: [{name: redisHost, valueFrom: {key: host}}, {name: consumerID, value: "{{ appId }}"}]
  source: {secretRef: {name: redis}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: pg-eu, labels: {engine: postgres}}
spec:
  kind: state
  component:
    type: state.postgresql
    version: v2
    initTimeout: 20s
    metadata: [{name: connectionString, valueFrom: {key: uri}}, {name: tablePrefix, value: "{{ claim.slug }}_"}]
  features: [crud, etag, transactional, ttl]
  source: {secretRef: {name: pg}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityBackend
metadata: {name: redis-eu, labels: {engine: redis}}
spec:
  kind: state
  component: {type: state.redis, version: v1}
  features: [crud, etag, ttl]
  source: {none: {}}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: events, namespace: team-a-dev}
spec: {kind: pubsub, scopes: [orders-api, billing]}
---
apiVersion: mecha.dev/v1alpha1
kind: CapabilityClaim
metadata: {name: orders, namespace: team-a-dev}
spec: {kind: state, features: [ttl], scopes: [orders-api, billing]}
"#;

fn shop(broker: &str, store: &str) -> World {
    world(&SHOP.replace("BROKER", broker).replace("STORE", store))
}

fn world(text: &str) -> World {
    let mut documents = Documents::default();
    documents.read_text("shop.yaml", text);
    assert!(documents.diagnostics.is_empty(), "{:#?}", documents.diagnostics);
    World::from_documents(&documents, Assume::Documents)
}

#[test]
fn a_claim_becomes_a_component_document() {
    let evaluation = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    assert_eq!(evaluation.bindings.len(), 1);
    let binding = &evaluation.bindings[0];
    assert_eq!(
        (binding.environment.as_str(), binding.cluster.as_str(), binding.revision),
        ("team-a/team-a-dev", "local", 1)
    );
    let entry = binding.entries.iter().find(|e| e.claim == "orders").unwrap();
    let slug = claim_slug("team-a/team-a-dev", "orders");
    assert!(slug.starts_with("team_a_dev_orders_"), "{slug}");
    assert_eq!(
        entry.document,
        format!(
            r#"{{"apiVersion":"dapr.io/v1alpha1","kind":"Component","metadata":{{"name":"orders","namespace":"{ns}","annotations":{{"mecha.dev/revision":"1","mecha.dev/backend":"pg-eu"}}}},"spec":{{"type":"state.postgresql","version":"v2","initTimeout":"20s","metadata":[{{"name":"connectionString","secretKeyRef":{{"name":"mecha-orders-r1","key":"uri"}}}},{{"name":"tablePrefix","value":"{slug}_"}}]}},"auth":{{"secretStore":"kubernetes"}},"scopes":["orders-api","billing"]}}"#,
            ns = binding.namespace
        )
    );
    let outcome = evaluation.claims.iter().find(|c| c.claim == "team-a-dev/orders").unwrap();
    assert_eq!(outcome.required, ["crud", "etag", "ttl"], "the floor of the class is added");
}

#[test]
fn one_line_of_the_class_moves_the_broker_and_nothing_else() {
    let before = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let again = shop("embedded", "postgres").evaluate(&before.memory, &Consent::default(), 5);
    assert_eq!(again.bindings, before.bindings, "a second look changes nothing");
    assert!(Plan::of(&again).is_empty());

    let after = shop("redis", "postgres").evaluate(&before.memory, &Consent::default(), 10);
    let plan = Plan::of(&after);
    assert_eq!(plan.moves.len(), 1);
    let planned = &plan.moves[0];
    assert_eq!(
        (planned.claim.as_str(), planned.from.as_deref(), planned.to.as_str()),
        ("team-a-dev/events", Some("embedded"), "streams")
    );
    assert_eq!((planned.strategy, &planned.blocked), (SwapStrategy::Drain, &None));
    assert!(planned.why.contains("the class selects engine=redis"), "{}", planned.why);
    let (old, new) = (&before.bindings[0], &after.bindings[0]);
    assert_eq!((old.revision, new.revision), (1, 2));
    assert_ne!(old.digest, new.digest);
    let entry = |binding: &mecha_resources::kinds::CapabilityBindingSpec, claim: &str| {
        binding.entries.iter().find(|e| e.claim == claim).unwrap().clone()
    };
    assert_eq!(entry(old, "orders"), entry(new, "orders"), "the store's document is the same byte for byte");
    assert!(entry(new, "events").document.contains("mecha-events-r2"));
    assert!(entry(new, "events").document.contains("{appID}"), "each sidecar puts its own id in");
}

#[test]
fn a_store_is_not_emptied_by_an_edit() {
    let before = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let edited = shop("embedded", "redis");
    let held = edited.evaluate(&before.memory, &Consent::default(), 1);
    let outcome = held.claims.iter().find(|c| c.claim.ends_with("/orders")).unwrap();
    assert_eq!(outcome.blocked, Some(Blocked::EmptyNotAllowed));
    assert_eq!(outcome.backend.as_deref(), Some("pg-eu"));
    assert_eq!(held.bindings, before.bindings);
    let agreed = Consent { empty_ok: true, ..Consent::default() };
    let moved = edited.evaluate(&before.memory, &agreed, 1);
    assert!(moved.bindings[0].entries[1].document.contains("state.redis"));
}

#[test]
fn a_manual_move_waits_for_the_digest_of_its_plan() {
    let before = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let text =
        SHOP.replace("engine: BROKER}}", "engine: redis}}\n    swap: {approval: Manual}").replace("STORE", "postgres");
    let edited = world(&text);
    let held = edited.evaluate(&before.memory, &Consent::default(), 1);
    let plan = Plan::of(&held);
    assert!(plan.moves[0].blocked.as_ref().unwrap().contains("waits for approval"));
    assert_eq!(held.bindings, before.bindings);
    let agreed = Consent { moves: plan.approve(), ..Consent::default() };
    let moved = edited.evaluate(&before.memory, &agreed, 2);
    assert_eq!(moved.memory.claims["team-a-dev/events"].backend, "streams");
}

#[test]
fn the_reason_names_the_decider_and_the_tightest_requirement() {
    let text = SHOP
        .replace("BROKER", "embedded")
        .replace("STORE", "redis")
        .replace("features: [ttl], scopes", "features: [ttl, transactional], scopes");
    let evaluation = world(&text).evaluate(&Memory::default(), &Consent::default(), 0);
    let outcome = evaluation.claims.iter().find(|c| c.claim.ends_with("/orders")).unwrap();
    let decision = outcome.decision.as_ref().unwrap();
    assert_eq!(decision.choice, Choice::Pending);
    let rejected: Vec<_> =
        decision.explanation.rejected_by.iter().map(|r| (r.decider.as_str(), r.reason, r.count)).collect();
    assert_eq!(
        rejected,
        [
            ("kind", DecideReason::KindMismatch, 2),
            ("selector", DecideReason::NotSelected, 1),
            ("features", DecideReason::MissingFeature, 1)
        ]
    );
    let (reason, message) = outcome.problem.as_ref().unwrap();
    assert_eq!(*reason, ClaimReason::NoCandidate);
    assert!(message.contains("1 of 4 backends would do"), "{message}");
    let redis = decision.explanation.candidates.iter().find(|c| c.name == "redis-eu").unwrap();
    assert_eq!(redis.message, "does not have transactional");
}

#[test]
fn what_is_absent_is_not_deleted() {
    let full = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let half = SHOP
        .split("---")
        .filter(|d| !d.contains("name: orders") && !d.contains("name: pg-eu"))
        .collect::<Vec<_>>()
        .join("---");
    let half = world(&half.replace("BROKER", "embedded").replace("STORE", "redis"));
    let evaluation = half.evaluate(&full.memory, &Consent::default(), 0);
    assert_eq!(evaluation.bindings[0].entries, full.bindings[0].entries);
    let mut memory = full.memory.clone();
    memory.released.insert("team-a-dev/orders".to_owned());
    let evaluation = half.evaluate(&memory, &Consent::default(), 0);
    let claims: Vec<_> = evaluation.bindings[0].entries.iter().map(|e| e.claim.as_str()).collect();
    assert_eq!(claims, ["events"], "an explicit deletion is one");
}

#[test]
fn a_retired_backend_is_a_contradiction_and_a_cordoned_one_is_not() {
    let before = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let state = |state: &str| {
        let spare = "---\napiVersion: mecha.dev/v1alpha1\nkind: CapabilityBackend\nmetadata: {name: other, labels: {engine: embedded}}\nspec:\n  kind: pubsub\n  component: {type: pubsub.mecha}\n  source: {none: {}}\n";
        let text = SHOP.replacen(
            "  kind: pubsub\n  component: {type: pubsub.mecha",
            &format!("  state: {state}\n  kind: pubsub\n  component: {{type: pubsub.mecha"),
            1,
        );
        let world = world(&format!("{}{spare}", text.replace("BROKER", "embedded").replace("STORE", "postgres")));
        let evaluation = world.evaluate(&before.memory, &Consent::default(), 0);
        evaluation.claims[0].decision.clone().unwrap().choice
    };
    assert!(matches!(state("Cordoned"), Choice::Stay { .. }));
    match state("Draining") {
        Choice::Move { to, why: MoveWhy::Contradicted { decider, reason, .. }, .. } => {
            assert_eq!((to.as_str(), decider.as_str(), reason), ("other", "state", DecideReason::Draining));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_taint_keeps_new_environments_from_a_cluster_and_takes_none_away() {
    let tainted = |effect: &str, status: &str| {
        let cluster = "apiVersion: mecha.dev/v1alpha1\nkind: MemberCluster\nmetadata: {name: eu-1}\n";
        let spec = format!("spec: {{accepted: true, taints: [{{key: upgrade, effect: {effect}}}]}}\n");
        let shop = SHOP.replace("{type: development}}\n---\n", &format!("{{type: development}}}}\n{status}---\n"));
        let mut documents = Documents::default();
        documents.read_text("shop.yaml", &format!("{shop}---\n{cluster}{spec}"));
        assert!(documents.diagnostics.is_empty(), "{:#?}", documents.diagnostics);
        let environment = documents.environments[0].value.clone();
        World::from_documents(&documents, Assume::Documents).clusters_for(&environment).into_iter().collect::<Vec<_>>()
    };
    for (effect, clusters) in [("NoNewBindings", &[][..]), ("NoBindings", &[]), ("PreferNoBindings", &["eu-1"])] {
        assert_eq!(tainted(effect, ""), clusters, "{effect}");
        let status = "status: {clusters: [{name: eu-1, namespace: team-a-dev, ready: true}]}\n";
        assert_eq!(tainted(effect, status), ["eu-1"], "{effect}: what runs stays");
    }
}

#[test]
fn who_prefers_latency_gets_the_backend_that_is_said_to_be_near() {
    let chosen = |near: &str| {
        let mut text = SHOP.replace("BROKER", "embedded").replace("STORE", "redis");
        for (name, latency) in [("redis-us", "90"), (near, "1")] {
            text.push_str(&format!(
                "---\napiVersion: mecha.dev/v1alpha1\nkind: CapabilityBackend\nmetadata:\n  name: {name}\n  labels: \
                 {{engine: redis}}\n  annotations: {{mecha.dev/latency-ms: \"{latency}\"}}\nspec:\n  kind: state\n  \
                 component: {{type: state.redis, version: v1}}\n  features: [crud, etag, ttl]\n  source: {{none: {{}}}}\n"
            ));
        }
        let text =
            text.replace("features: [ttl], scopes", "features: [ttl], hints: [{prefer: latency, weight: 100}], scopes");
        let evaluation = world(&text).evaluate(&Memory::default(), &Consent::default(), 0);
        let entries = &evaluation.bindings[0].entries;
        entries.iter().find(|entry| entry.claim == "orders").unwrap().backend.clone()
    };
    // Neither the first by name nor the last.
    assert_eq!(
        (chosen("a-redis"), chosen("redis-next"), chosen("z-redis")),
        ("a-redis".to_owned(), "redis-next".to_owned(), "z-redis".to_owned())
    );
}

#[test]
fn tenants_never_share_a_slug() {
    let pairs = [("a/b-c", "d"), ("a-b/c", "d"), ("a/b", "c-d"), ("a/b-c", "d"), ("x/b-c", "d"), ("a/b_c", "d")];
    let mut slugs: Vec<_> = pairs.iter().map(|(e, c)| claim_slug(e, c)).collect();
    slugs.sort();
    slugs.dedup();
    assert_eq!(slugs.len(), 5, "one pair is given twice: {slugs:?}");
    let long = claim_slug(&format!("a/{}", "x".repeat(200)), "orders");
    assert!(long.len() <= 49, "{long}");
}

#[test]
fn a_wrong_template_keeps_what_is_there() {
    let before = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let text = SHOP
        .replace("BROKER", "embedded")
        .replace("STORE", "postgres")
        .replace("{{ claim.slug }}.db", "{{ claim.slugg }}.db");
    let evaluation = world(&text).evaluate(&before.memory, &Consent::default(), 0);
    assert_eq!(evaluation.bindings[0].entries, before.bindings[0].entries);
    let blocked = evaluation.claims.iter().find_map(|c| c.blocked.clone()).unwrap();
    assert!(blocked.to_string().contains("the template {{ claim.slugg }} is none of claim.slug"), "{blocked}");
}

#[test]
fn a_claim_whose_secret_could_have_no_name_is_refused_and_the_others_are_bound() {
    let long = "x".repeat(240);
    let mut text = SHOP.replace("BROKER", "embedded").replace("STORE", "postgres");
    for kind in ["state", "pubsub"] {
        text.push_str(&format!(
            "---\napiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: {kind}-{long}, namespace: \
             team-a-dev}}\nspec: {{kind: {kind}}}\n"
        ));
    }
    let evaluation = world(&text).evaluate(&Memory::default(), &Consent::default(), 0);
    let bound: Vec<_> =
        evaluation.bindings[0].entries.iter().map(|e| e.claim.chars().take(6).collect::<String>()).collect();
    assert_eq!(bound, ["events", "orders", "pubsub"], "one without credentials needs no Secret");
    let refused = evaluation.claims.iter().find(|c| c.claim.starts_with("team-a-dev/state-")).unwrap();
    let blocked = refused.blocked.clone().unwrap().to_string();
    assert!(blocked.contains("name is too long") && refused.backend.is_none(), "{blocked}");
}

#[test]
fn what_is_kept_digests_as_what_is_made_anew() {
    let evaluation = shop("redis", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let binding = &evaluation.bindings[0];
    assert_eq!(entries_digest(&binding.entries).to_string(), binding.digest);
}

#[test]
fn a_claim_on_the_move_keeps_both_sides_until_the_end() {
    let before = shop("embedded", "postgres").evaluate(&Memory::default(), &Consent::default(), 0);
    let moved = shop("redis", "postgres").evaluate(&before.memory, &Consent::default(), 10);
    let mut memory = moved.memory.clone();
    let binding = memory.bindings.values_mut().next().unwrap();
    let entry = binding.entries.iter_mut().find(|e| e.claim == "events").unwrap();
    entry.previous_document = Some("{}".to_owned());
    entry.swap = Some(SwapRecord {
        from: "embedded".to_owned(),
        to: "streams".to_owned(),
        strategy: SwapStrategy::Drain,
        phase: SwapPhase::Drain,
        started_at: String::new(),
        deadline: None,
        why: String::new(),
        cause: String::new(),
        traceparent: None,
    });
    let stored = binding.clone();
    let consent = Consent { held: [("team-a-dev/events".to_owned(), Hold::Moving)].into(), ..Consent::default() };
    let back = shop("embedded", "postgres").evaluate(&memory, &consent, 20);
    assert_eq!(back.bindings[0].entries, stored.entries);
    let outcome = back.claims.iter().find(|c| c.claim == "team-a-dev/events").unwrap();
    assert_eq!((outcome.blocked.clone(), outcome.backend.as_deref()), (Some(Blocked::Moving), Some("streams")));

    let held = Hold::RolledBack { to: "streams".to_owned() };
    let consent = Consent { held: [("team-a-dev/events".to_owned(), held)].into(), ..Consent::default() };
    let held = shop("redis", "postgres").evaluate(&before.memory, &consent, 10);
    let outcome = held.claims.iter().find(|c| c.claim == "team-a-dev/events").unwrap();
    assert_eq!((outcome.blocked.clone(), outcome.backend.as_deref()), (Some(Blocked::RolledBack), Some("embedded")));
    assert_eq!(held.bindings, before.bindings);
}

/// The text with the better of two brokers under another name: the claim is at the worse one.
fn better(swap: &str) -> (World, Memory) {
    let text = SHOP
        .replace("engine: BROKER}}", &format!("line: b}}}}\n    swap: {swap}"))
        .replace("labels: {engine: embedded}", "labels: {line: b}")
        .replace("labels: {engine: redis}}\nspec:\n  kind: pubsub", "labels: {line: b}}\nspec:\n  kind: pubsub")
        .replace(
            "kind: pubsub\n  component: {type: pubsub.mecha",
            "kind: pubsub\n  cost: 90\n  component: {type: pubsub.mecha",
        )
        .replace("STORE", "postgres");
    let mut memory = Memory::default();
    memory.claims.insert("team-a-dev/events".to_owned(), Bound { backend: "embedded".to_owned(), challenger: None });
    (world(&text), memory)
}

#[test]
fn a_better_backend_waits_for_its_time_and_then_for_consent_as_long_as_it_takes() {
    let held = 600_000;
    let (shop, mut memory) = better("{approval: Manual}");
    let mut look = |now_ms, consent: &Consent| {
        let evaluation = shop.evaluate(&memory, consent, now_ms);
        memory = evaluation.memory.clone();
        let outcome = evaluation.claims.iter().find(|c| c.claim == "team-a-dev/events").unwrap().clone();
        (outcome.decision.unwrap().choice, outcome.blocked, outcome.backend.unwrap(), Plan::of(&evaluation))
    };
    let nothing = Consent::default();
    for now in [0, held - 1] {
        let (choice, ..) = look(now, &nothing);
        assert!(matches!(choice, Choice::Stay { why: StayWhy::GainNotHeld, .. }), "{choice:?}");
    }
    // Whoever looks again and again finds the same question, also long after.
    for now in [held, held + 1, 9 * held] {
        let (choice, blocked, backend, _) = look(now, &nothing);
        assert!(matches!(choice, Choice::Move { why: MoveWhy::Better { .. }, .. }), "{now}: {choice:?}");
        assert_eq!((blocked, backend.as_str()), (Some(Blocked::AwaitingApproval), "embedded"), "{now}");
    }
    let (.., plan) = look(9 * held + 1, &nothing);
    let agreed = Consent { moves: plan.approve(), ..Consent::default() };
    let (_, blocked, backend, _) = look(9 * held + 2, &agreed);
    assert_eq!((blocked, backend.as_str()), (None, "streams"));
    let (choice, ..) = look(10 * held, &nothing);
    assert!(matches!(choice, Choice::Stay { why: StayWhy::Best, .. }), "{choice:?}");
}

#[test]
fn what_is_bound_keeps_its_place_when_the_environment_is_full() {
    let claims = |names: &[String]| -> World {
        let mut text = SHOP.replace("BROKER", "embedded").replace("STORE", "postgres");
        for name in names {
            text.push_str(&format!(
                "---\napiVersion: mecha.dev/v1alpha1\nkind: CapabilityClaim\nmetadata: {{name: {name}, namespace: \
                 team-a-dev}}\nspec: {{kind: pubsub}}\n"
            ));
        }
        world(&text)
    };
    let bound = |evaluation: &mecha_decide::Evaluation| -> Vec<String> {
        evaluation.bindings[0].entries.iter().map(|entry| entry.claim.clone()).collect()
    };
    // With the two of the shop as many as there may be.
    let mut names: Vec<_> = (0..62).map(|number| format!("z{number:02}")).collect();
    let before = claims(&names).evaluate(&Memory::default(), &Consent::default(), 0);
    assert_eq!(before.bindings[0].entries.len(), 64);
    // One that comes first by name comes too late.
    names.push("a".to_owned());
    let after = claims(&names).evaluate(&before.memory, &Consent::default(), 1);
    assert_eq!(bound(&after), bound(&before));
    assert_eq!(after.bindings[0].revision, before.bindings[0].revision);
    let late = after.claims.iter().find(|c| c.claim == "team-a-dev/a").unwrap();
    let (reason, message) = late.problem.clone().unwrap();
    assert!(
        reason == ClaimReason::NoCandidate && message.contains("64 claims") && message.contains("local"),
        "{message}"
    );
    assert_eq!((&late.backend, after.memory.claims.contains_key("team-a-dev/a")), (&None, false));
    let plan = Plan::of(&after);
    assert!(plan.is_empty() && plan.stuck.len() == 1, "{plan:?}");
    // A place that becomes free is its own.
    let mut memory = after.memory;
    memory.released.insert("team-a-dev/z07".to_owned());
    memory.claims.remove("team-a-dev/z07");
    names.retain(|name| name != "z07");
    let next = claims(&names).evaluate(&memory, &Consent::default(), 2);
    assert!(bound(&next).contains(&"a".to_owned()) && !bound(&next).contains(&"z07".to_owned()));
}

#[test]
fn who_prefers_balance_gets_the_cluster_with_the_fewest_apps() {
    let cluster = |name: &str| {
        format!(
            "---\napiVersion: mecha.dev/v1alpha1\nkind: MemberCluster\nmetadata: {{name: {name}}}\nspec: {{accepted: true}}\n"
        )
    };
    let placement = |app: &str| {
        format!(
            "---\napiVersion: mecha.dev/v1alpha1\nkind: AppPlacement\nmetadata: {{name: {app}, namespace: team-a-dev}}\n\
             spec: {{appId: {app}, clusters: {{min: 1, max: 1}}, hints: [{{prefer: balance, weight: 100}}]}}\n"
        )
    };
    let shop = SHOP.replace("BROKER", "embedded").replace("STORE", "postgres");
    let mut text = format!("{shop}{}{}", cluster("eu-1"), cluster("eu-2"));
    let mut memory = Memory::default();
    let mut places = Vec::new();
    for app in ["one", "two", "three"] {
        text.push_str(&placement(app));
        let evaluation = world(&text).evaluate(&memory, &Consent::default(), 0);
        memory = evaluation.memory;
        places.push(memory.placements[&format!("team-a-dev/{app}")].standing[0].cluster.clone());
    }
    assert_eq!(places, ["eu-1", "eu-2", "eu-1"]);
}

#[test]
fn what_is_bound_stays_when_its_class_can_no_longer_be_told() {
    let text = SHOP.replace("BROKER", "embedded").replace("STORE", "postgres");
    let before = world(&text).evaluate(&Memory::default(), &Consent::default(), 0);
    let class = text.split("---").next().unwrap();
    let second = format!("{text}---{}", class.replace("name: development", "name: second"));
    let none = text.replacen("labels: {type: development}", "labels: {type: other}", 1);
    let ruleless = text.replacen("kind: pubsub\n    backendSelector", "kind: lock\n    backendSelector", 1);
    let given = |text: &str| {
        text.replace(
            "{type: development}}\n---\n",
            "{type: development}}\nstatus: {clusters: [{name: local, namespace: x}]}\n---\n",
        )
    };
    for (what, text, reason) in [
        ("two classes", second.clone(), ClaimReason::ClassUnresolved),
        ("two classes, and its clusters are known", given(&second), ClaimReason::ClassUnresolved),
        ("no class", none, ClaimReason::ClassUnresolved),
        ("no rule", ruleless, ClaimReason::NoRule),
    ] {
        let after = world(&text).evaluate(&before.memory, &Consent::default(), 1);
        assert_eq!(after.bindings[0].entries, before.bindings[0].entries, "{what}");
        assert_eq!(after.memory.claims, before.memory.claims, "{what}");
        let events = after.claims.iter().find(|c| c.claim == "team-a-dev/events").unwrap();
        assert_eq!(events.problem.as_ref().unwrap().0, reason, "{what}");
        // And goes on as if nothing had been.
        let back = world(&SHOP.replace("BROKER", "embedded").replace("STORE", "postgres"));
        assert_eq!(back.evaluate(&after.memory, &Consent::default(), 2).bindings, before.bindings, "{what}");
    }
}
