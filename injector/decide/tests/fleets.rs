//! Random fleets: what must hold for every decision, whatever the inputs.

use std::collections::{BTreeMap, BTreeSet};

use mecha_decide::{
    Backend, Challenger, Choice, ClaimRequest, Cluster, Current, Hysteresis, Inventory, PlacementRequest, Record,
    Standing, decide_backend, decide_clusters,
};
use mecha_resources::kinds::{
    AppPlacementSpec, CapabilityBackendSpec, CapabilityKind, Constraint, Count, Division, Hint, LabelSelector,
    Operator, Replicas, Spread, Taint, TaintEffect, Tenancy, Verdict, WhenUnsatisfiable,
};
use proptest::prelude::*;

fn cases(in_the_gate: u32) -> ProptestConfig {
    ProptestConfig::with_cases(if std::env::var_os("MECHA_TEST_LONG").is_some() { 10_000 } else { in_the_gate })
}

/// Fleets of each of the two properties that nothing may ever break; together they are ten thousand.
const MANY: u32 = 5_000;

fn word(words: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(words).prop_map(str::to_owned)
}

const REGIONS: &[&str] = &["eu-west", "eu-central", "us-east"];
const FEATURES: &[&str] = &["crud", "etag", "transactional", "ttl"];

fn backend() -> impl Strategy<Value = Backend> {
    let facts = (
        prop::option::of(prop::collection::btree_set(word(FEATURES), 0..4)),
        prop::option::of(any::<bool>()),
        0u32..4,
        prop::collection::btree_map(word(&["c1", "c2"]), 0u64..120_000, 0..2),
        prop::collection::btree_map(word(&["c1", "c2"]), Just("connection refused".to_owned()), 0..2),
    );
    let spec = (
        word(&["postgres", "redis"]),
        prop::collection::vec(word(FEATURES), 0..4),
        prop::option::of(word(&["eu", "us"])),
        prop::option::of(word(REGIONS)),
        0u32..=100,
        prop::option::of(0u32..4),
        prop::sample::select(&["Active", "Cordoned", "Draining", "Retired"][..]),
        prop::sample::select(Tenancy::ALL),
        prop::option::of(word(REGIONS)),
    );
    (facts, spec).prop_map(|((verified, ready, bound, latency_us, unreachable), spec)| {
        let (engine, features, residency, region, cost, limit, state, tenancy, from) = spec;
        let mut json = serde_json::json!({
            "kind": "state", "component": {"type": "state.x"}, "features": features, "cost": cost, "state": state,
            "source": {"none": {}}, "tenancy": tenancy, "topology": {"region": region.clone().unwrap_or_default()},
        });
        if let Some(residency) = residency {
            json["traits"] = serde_json::json!({"residency": residency});
        }
        if let Some(limit) = limit {
            json["capacity"] = serde_json::json!({"bindings": limit});
        }
        if let Some(from) = from {
            json["topology"]["reachableFrom"] = serde_json::json!({"matchLabels": {"region": from}});
        }
        let spec: CapabilityBackendSpec = serde_json::from_value(json).expect("the spec is right");
        Backend {
            labels: [("engine".to_owned(), engine)].into(),
            spec,
            verified,
            ready,
            bound,
            latency_us,
            expected_latency_us: None,
            unreachable,
        }
    })
}

fn cluster() -> impl Strategy<Value = Cluster> {
    (
        any::<bool>(),
        prop::option::weighted(0.8, prop::bool::weighted(0.8)),
        word(REGIONS),
        30u32..40,
        prop::collection::vec((word(&["upgrade", "gpu"]), prop::sample::select(TaintEffect::ALL)), 0..2),
        prop::option::of((0u64..8_000, Just(8_000u64))),
        0u32..=100,
        prop::option::of(0u64..90_000),
        word(&["prod", "dev"]),
    )
        .prop_map(|(accepted, available, region, minor, taints, cpu, cost, latency_us, tier)| Cluster {
            labels: [("region".to_owned(), region.clone()), ("tier".to_owned(), tier)].into(),
            accepted,
            available,
            attributes: [("region".to_owned(), region), ("kubernetes.minor".to_owned(), minor.to_string())].into(),
            taints: taints.into_iter().map(|(key, effect)| Taint { key, value: String::new(), effect }).collect(),
            cpu,
            cost,
            latency_us,
            ..Cluster::default()
        })
}

fn named<T: 'static>(prefix: &'static str, items: Vec<T>) -> Vec<(String, T)> {
    items
        .into_iter()
        .enumerate()
        .map(|(i, mut item)| {
            let name = format!("{prefix}{i}");
            name_it(&mut item, &name);
            (name, item)
        })
        .collect()
}

fn name_it<T: 'static>(item: &mut T, name: &str) {
    if let Some(cluster) = (item as &mut dyn std::any::Any).downcast_mut::<Cluster>() {
        cluster.attributes.insert("name".to_owned(), name.to_owned());
    }
}

fn inventory<T: serde::Serialize + Clone>(items: &[(String, T)]) -> Inventory<T> {
    items.iter().cloned().collect()
}

fn constraint() -> impl Strategy<Value = Constraint> {
    prop_oneof![
        prop::collection::vec(word(&["eu", "us"]), 1..3).prop_map(|values| Constraint {
            attribute: "residency".to_owned(),
            operator: Operator::In,
            values,
        }),
        prop::collection::vec(word(REGIONS), 1..3).prop_map(|values| Constraint {
            attribute: "region".to_owned(),
            operator: Operator::NotIn,
            values,
        }),
    ]
}

fn hints(words: &'static [&'static str]) -> impl Strategy<Value = Vec<Hint>> {
    let hint = (word(words), 1u32..=100).prop_map(|(prefer, weight)| Hint { prefer, weight });
    prop::collection::vec(hint, 0..4)
}

fn claim() -> impl Strategy<Value = ClaimRequest> {
    (
        prop::option::of(word(&["postgres", "redis"])),
        prop::collection::btree_set(word(FEATURES), 0..3),
        prop::collection::vec(constraint(), 0..2),
        hints(&["latency", "cost", "freeCapacity", "sticky", "fewestSurplus"]),
        prop::option::of(prop::sample::select(Tenancy::ALL)),
        prop::collection::btree_set(word(&["c0", "c1", "c2"]), 0..3),
        prop::option::of((0usize..12, any::<bool>())),
    )
        .prop_map(|(engine, features, constraints, hints, tenancy, targets, current)| ClaimRequest {
            kind: CapabilityKind::State,
            selector: LabelSelector {
                match_labels: engine.into_iter().map(|e| ("engine".to_owned(), e)).collect(),
                ..LabelSelector::default()
            },
            features,
            constraints,
            hints,
            tenancy,
            targets,
            current: current.map(|(i, challenged)| Current {
                backend: format!("b{i}"),
                challenger: challenged.then(|| Challenger { name: "b0".into(), over: format!("b{i}"), since_ms: 0 }),
            }),
            hysteresis: Hysteresis::default(),
        })
}

fn placement() -> impl Strategy<Value = PlacementRequest> {
    let spread = (1u32..4, any::<bool>()).prop_map(|(min_groups, hard)| Spread {
        key: "region".to_owned(),
        min_groups,
        when_unsatisfiable: if hard { WhenUnsatisfiable::DoNotSchedule } else { WhenUnsatisfiable::ScheduleAnyway },
    });
    (
        (1u32..4, 0u32..3),
        prop::option::of((1u32..20, prop::sample::select(Division::ALL))),
        prop::collection::vec(prop::collection::vec(word(REGIONS), 1..3), 0..2),
        hints(&["dataGravity", "freeCapacity", "latency", "cost", "sticky", "balance", "outside/x"]),
        prop::option::of(spread),
        prop::option::of(word(&["prod", "dev"])),
        prop::collection::btree_set(0usize..40, 0..4),
    )
        .prop_map(|((min, more), replicas, regions, hints, spread, tier, current)| {
            let max = (min + more).max(spread.as_ref().map_or(1, |s| s.min_groups));
            let replicas = replicas.map(|(total, divide)| Replicas { total, divide });
            PlacementRequest {
                spec: AppPlacementSpec {
                    app_id: "a".to_owned(),
                    clusters: Count { min, max },
                    replicas,
                    constraints: regions
                        .into_iter()
                        .map(|values| Constraint { attribute: "region".into(), operator: Operator::In, values })
                        .collect(),
                    hints,
                    spread: spread.into_iter().collect(),
                    tolerations: Vec::new(),
                    failover: None,
                },
                class_selector: tier.map(|tier| LabelSelector {
                    match_labels: [("tier".to_owned(), tier)].into(),
                    ..LabelSelector::default()
                }),
                apis: BTreeSet::new(),
                backends: Vec::new(),
                current: current.into_iter().map(|i| Standing { cluster: format!("c{i}"), replicas: None }).collect(),
                challenger: None,
                hysteresis: Hysteresis::default(),
            }
        })
}

proptest! {
    #![proptest_config(cases(MANY))]

    #[test]
    fn a_new_backend_breaks_nothing_that_was_asked_for(
        request in claim(),
        backends in prop::collection::vec(backend(), 0..12),
        clusters in prop::collection::vec(cluster(), 0..3),
    ) {
        let backends = inventory(&named("b", backends));
        let clusters = inventory(&named("c", clusters));
        let decision = decide_backend(&request, &backends, &clusters, 700_000);
        let (Choice::Bind { to } | Choice::Move { to, .. }) = &decision.choice else { return Ok(()) };
        let chosen = backends.get(to).unwrap();
        prop_assert!(request.selector.matches(&chosen.labels));
        prop_assert_eq!(chosen.spec.state.unwrap().as_str(), "Active");
        prop_assert!(chosen.ready != Some(false));
        let verified = chosen.verified.clone().unwrap_or_default();
        prop_assert!(request.features.is_subset(&verified), "only proven features count");
        prop_assert!(chosen.spec.capacity.as_ref().is_none_or(|c| chosen.bound < c.bindings));
        prop_assert!(request.tenancy.is_none_or(|t| chosen.spec.tenancy.unwrap() >= t));
        for wanted in &request.constraints {
            let region = chosen.spec.topology.as_ref().map(|t| t.region.clone()).filter(|r| !r.is_empty());
            let value = if wanted.attribute == "region" { region } else { chosen.spec.traits.get(&wanted.attribute).cloned() };
            let value = value.expect("an attribute that is not known meets no constraint");
            prop_assert_eq!(wanted.values.contains(&value), wanted.operator == Operator::In);
        }
        for target in &request.targets {
            prop_assert!(!chosen.unreachable.contains_key(target));
            if let Some(selector) = chosen.spec.topology.as_ref().and_then(|t| t.reachable_from.as_ref()) {
                prop_assert!(clusters.get(target).is_some_and(|c| selector.matches(&c.labels)));
            }
        }
    }

    #[test]
    fn a_placement_breaks_nothing_that_was_asked_for(
        request in placement(),
        clusters in prop::collection::vec(cluster(), 0..40),
    ) {
        let clusters = inventory(&named("c", clusters));
        let decision = decide_clusters(&request, &clusters, 0);
        let names: BTreeSet<&str> = decision.selected.iter().map(|c| c.cluster.as_str()).collect();
        prop_assert_eq!(names.len(), decision.selected.len());
        let before: BTreeSet<&str> = request.current.iter().map(|s| s.cluster.as_str()).collect();
        if !decision.satisfied {
            prop_assert_eq!(names, before, "without a way to satisfy it, everything stays");
            return Ok(());
        }
        let unseen = before.iter().filter(|n| clusters.get(n).is_none()).count();
        prop_assert!(names.len() >= request.spec.clusters.min as usize);
        prop_assert!(names.len() <= (request.spec.clusters.max as usize).max(unseen));
        let mut regions = BTreeMap::new();
        for name in &names {
            let Some(cluster) = clusters.get(name) else {
                prop_assert!(before.contains(name));
                continue;
            };
            *regions.entry(&cluster.attributes["region"]).or_insert(0) += 1;
            prop_assert!(cluster.accepted);
            prop_assert!(request.class_selector.as_ref().is_none_or(|s| s.matches(&cluster.labels)));
            for wanted in &request.spec.constraints {
                prop_assert!(wanted.values.contains(&cluster.attributes[&wanted.attribute]));
            }
            prop_assert!(!cluster.taints.iter().any(|t| t.effect == TaintEffect::NoBindings));
            if !before.contains(name) {
                prop_assert_eq!(cluster.available, Some(true));
                prop_assert!(!cluster.taints.iter().any(|t| t.effect == TaintEffect::NoNewBindings));
            }
        }
        for spread in request.spec.spread.iter().filter(|s| s.when_unsatisfiable == WhenUnsatisfiable::DoNotSchedule) {
            prop_assert!(regions.len() >= spread.min_groups as usize);
        }
        if let Some(replicas) = request.spec.replicas {
            let sum: u32 = decision.selected.iter().map(|c| c.replicas.unwrap()).sum();
            let wanted = if replicas.divide == Division::Duplicated { replicas.total * names.len() as u32 } else { replicas.total };
            prop_assert_eq!(sum, wanted);
        }
    }
}

proptest! {
    #![proptest_config(cases(500))]

    #[test]
    fn the_order_of_inputs_changes_nothing_and_the_record_replays(
        request in claim(),
        backends in prop::collection::vec(backend(), 0..12),
        clusters in prop::collection::vec(cluster(), 0..3),
        seed in any::<u64>(),
    ) {
        let backends = named("b", backends);
        let mut shuffled = backends.clone();
        shuffled.sort_by_key(|(name, _)| name.bytes().fold(seed, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)).rotate_left(7)));
        let clusters = inventory(&named("c", clusters));
        let decision = decide_backend(&request, &inventory(&backends), &clusters, 0);
        prop_assert_eq!(&decision, &decide_backend(&request, &inventory(&shuffled), &clusters, 0));
        let (record, recorded) = Record::of_backend(request, inventory(&backends), clusters, 0);
        prop_assert_eq!(&recorded, &decision);
        let record: Record = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
        prop_assert_eq!(record.replay(), Ok(()));
    }

    #[test]
    fn wishes_never_stand_in_the_way(
        request in claim(),
        backends in prop::collection::vec(backend(), 0..12),
        clusters in prop::collection::vec(cluster(), 0..3),
    ) {
        let (backends, clusters) = (inventory(&named("b", backends)), inventory(&named("c", clusters)));
        let with = decide_backend(&request, &backends, &clusters, 0);
        let without = decide_backend(&ClaimRequest { hints: Vec::new(), ..request }, &backends, &clusters, 0);
        prop_assert_eq!(with.explanation.eligible, without.explanation.eligible);
        prop_assert_eq!(with.choice.backend().is_some(), without.choice.backend().is_some());
    }

    #[test]
    fn more_room_never_takes_a_backend_away(
        request in claim(),
        backends in prop::collection::vec(backend(), 1..12),
        added in backend(),
        clusters in prop::collection::vec(cluster(), 0..3),
    ) {
        let clusters = inventory(&named("c", clusters));
        let mut backends = named("b", backends);
        let before = decide_backend(&request, &inventory(&backends), &clusters, 0);
        for (_, backend) in &mut backends {
            backend.spec.capacity = None;
        }
        backends.push(("z".to_owned(), added));
        let after = decide_backend(&request, &inventory(&backends), &clusters, 0);
        prop_assert!(after.explanation.eligible >= before.explanation.eligible);
        prop_assert!(after.choice.backend().is_some() || before.choice.backend().is_none());
    }

    #[test]
    fn what_is_bound_stays_bound(
        request in claim(),
        backends in prop::collection::vec(backend(), 0..12),
        clusters in prop::collection::vec(cluster(), 0..3),
    ) {
        let (backends, clusters) = (inventory(&named("b", backends)), inventory(&named("c", clusters)));
        let decision = decide_backend(&request, &backends, &clusters, 0);
        if let Some(current) = &request.current {
            prop_assert!(decision.choice.backend().is_some(), "no decision unbinds");
            if backends.get(&current.backend).is_none() {
                prop_assert_eq!(decision.choice.backend(), Some(current.backend.as_str()), "absence moves nothing");
            }
        }
        let e = &decision.explanation;
        let refused: u32 = e.rejected_by.iter().map(|r| r.count).sum();
        prop_assert_eq!(refused + e.eligible, e.evaluated);
        prop_assert_eq!(e.candidates.len() + e.truncated as usize, e.evaluated as usize);
        prop_assert!(e.candidates.len() <= 16);
        prop_assert_eq!(e.tightest.is_some(), e.eligible == 0 && e.evaluated > 0);
        for candidate in &e.candidates {
            let explained = candidate.reason.is_some() && !candidate.message.is_empty();
            prop_assert!(candidate.verdict != Verdict::Rejected || explained, "{:?}", candidate);
        }
    }

    #[test]
    fn placements_are_the_same_in_any_order_and_more_clusters_do_no_harm(
        request in placement(),
        clusters in prop::collection::vec(cluster(), 0..40),
        added in cluster(),
    ) {
        let clusters = named("c", clusters);
        let mut reversed = clusters.clone();
        reversed.reverse();
        let decision = decide_clusters(&request, &inventory(&clusters), 0);
        prop_assert_eq!(&decision, &decide_clusters(&request, &inventory(&reversed), 0));
        let unhinted = PlacementRequest {
            spec: AppPlacementSpec { hints: Vec::new(), ..request.spec.clone() },
            ..request.clone()
        };
        prop_assert_eq!(decide_clusters(&unhinted, &inventory(&clusters), 0).satisfied, decision.satisfied);
        let mut more = clusters.clone();
        more.push(("z".to_owned(), added));
        if decision.satisfied {
            prop_assert!(decide_clusters(&request, &inventory(&more), 0).satisfied);
        }
        let (record, _) = Record::of_clusters(request, inventory(&clusters), 0);
        prop_assert_eq!(record.replay(), Ok(()));
    }

    #[test]
    fn a_second_look_changes_nothing(
        request in placement(),
        clusters in prop::collection::vec(cluster(), 0..40),
    ) {
        let clusters = inventory(&named("c", clusters));
        let first = decide_clusters(&request, &clusters, 0);
        let standing = first.selected.iter().map(|c| Standing { cluster: c.cluster.clone(), replicas: c.replicas }).collect();
        let again = PlacementRequest { current: standing, challenger: first.challenger.clone(), ..request };
        let second = decide_clusters(&again, &clusters, 0);
        prop_assert_eq!(second.cause, None, "{:?} then {:?}", first.selected, second.selected);
        if first.satisfied {
            let replicas = |d: &mecha_decide::ClusterDecision| -> BTreeMap<String, Option<u32>> {
                d.selected.iter().map(|c| (c.cluster.clone(), c.replicas)).collect()
            };
            prop_assert_eq!(replicas(&first), replicas(&second));
        }
    }
}
