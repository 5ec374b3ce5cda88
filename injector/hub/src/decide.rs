//! From what is stored to the engine's inputs, and to its answer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mecha_apiserver::{CapabilityBinding, CapabilityClaim, EnvironmentClass};
use mecha_decide::{
    Assume, Backend, Bound, Challenger, Choice, ClaimOutcome, Cluster, Consent, Evaluation, Hold, Memory, MoveWhy,
    World, digest_of,
};
use mecha_resources::kinds::{
    BackendState, BindingEntry, CapabilityBackend, ClaimMove, EnvironmentClass as Class, MoveOutcome,
};

use crate::Options;
use crate::view::{Facts as _, View};

/// Who does better than what runs, and since when, as namespace/name. The one thing that a leader keeps: a successor
/// lets the time begin anew.
#[derive(Debug, Default)]
pub(crate) struct Challengers {
    claims: BTreeMap<String, Challenger>,
    placements: BTreeMap<String, Challenger>,
}

impl Challengers {
    pub(crate) fn of(memory: &Memory) -> Self {
        let claims = memory.claims.iter().filter_map(|(key, bound)| Some((key.clone(), bound.challenger.clone()?)));
        let placements = &memory.placements;
        let placements = placements.iter().filter_map(|(key, placed)| Some((key.clone(), placed.challenger.clone()?)));
        Self { claims: claims.collect(), placements: placements.collect() }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Challenger> {
        self.claims.values().chain(self.placements.values())
    }
}

/// The engine's answer, with what it was asked.
pub(crate) struct Decided {
    pub(crate) world: World,
    pub(crate) evaluation: Evaluation,
    /// Backends by name, as they are stored.
    pub(crate) backends: BTreeMap<String, CapabilityBackend>,
    /// The class of each environment that has one, by the environment's key.
    pub(crate) class_of: BTreeMap<String, Arc<EnvironmentClass>>,
    /// Places in `evaluation.claims`, by claim.
    outcomes: BTreeMap<String, usize>,
}

impl Decided {
    /// What became of the claim `namespace/name`.
    pub(crate) fn outcome(&self, claim: &str) -> Option<&ClaimOutcome> {
        let claims = &self.evaluation.claims;
        self.outcomes.get(claim).and_then(|index| claims.get(*index))
    }
}

/// Decides about everything. `challengers` are those of the last time.
pub(crate) fn decide(view: &View, options: &Options, challengers: &Challengers, now_ms: u64) -> Decided {
    let mut world = World::new(Assume::Nothing);
    world.set_hysteresis(options.hysteresis);
    for cluster in &view.clusters {
        let object = cluster.object();
        let mut facts = Cluster::of(&object);
        // The only cluster meets every selector, as the machine of `mecha dev` does: the same files, the same answer.
        facts.everywhere = view.clusters.len() == 1 && cluster.name() == options.cluster_name;
        world.put_cluster_facts(object.name(), facts);
    }
    let mut backends = BTreeMap::new();
    for backend in &view.backends {
        let object = backend.object();
        let mut facts = Backend::of(&object);
        if backend.leaving() && matches!(facts.spec.state, None | Some(BackendState::Active)) {
            facts.spec.state = Some(BackendState::Cordoned);
        }
        world.put_backend_facts(&object, facts);
        backends.insert(object.name().to_owned(), object);
    }
    for class in &view.classes {
        world.put_class(class.object());
    }
    for environment in &view.environments {
        world.put_environment(environment.object());
    }
    for claim in view.claims.iter().filter(|claim| !claim.leaving()) {
        world.put_claim(claim.object());
    }
    for placement in view.placements.iter().filter(|placement| !placement.leaving()) {
        world.put_placement(placement.object());
    }
    for (namespace, name) in &view.components {
        world.put_component(namespace, name);
    }
    let class_of = classes(view, &world);
    let memory = remember(view, &world, challengers);
    let consent = consent(view, &world, &class_of, &memory);
    let evaluation = world.evaluate(&memory, &consent, now_ms);
    let outcomes = evaluation.claims.iter().enumerate().map(|(index, o)| (o.claim.clone(), index)).collect();
    Decided { world, evaluation, backends, class_of, outcomes }
}

fn classes(view: &View, world: &World) -> BTreeMap<String, Arc<EnvironmentClass>> {
    let by_name: BTreeMap<&str, &Arc<EnvironmentClass>> = view.classes.iter().map(|c| (c.name(), c)).collect();
    let class = |environment| {
        let class: &Class = world.class_of(environment).ok()?;
        Some((environment.key(), (*by_name.get(class.name())?).clone()))
    };
    world.environments().filter_map(class).collect()
}

/// What is bound. Bindings say so; a status does where there is no binding, so that data is found again after a
/// hand-written Component has gone or a binding was lost.
fn remember(view: &View, world: &World, challengers: &Challengers) -> Memory {
    let mut memory = world.memory();
    for binding in view.all_bindings() {
        let spec = &binding.spec;
        for entry in &spec.entries {
            let key = format!("{}/{}", spec.namespace, entry.claim);
            memory.claims.insert(key, Bound { backend: entry.backend.clone(), challenger: None });
        }
        memory.bindings.insert(format!("{}@{}", spec.namespace, spec.cluster), spec.clone());
    }
    for (claim, bound) in &mut memory.claims {
        bound.challenger = challengers.claims.get(claim).cloned();
    }
    for (placement, placed) in &mut memory.placements {
        placed.challenger = challengers.placements.get(placement).cloned();
    }
    memory.released = view.claims.iter().filter(|claim| claim.leaving()).map(|claim| claim.key()).collect();
    for released in &memory.released {
        memory.claims.remove(released);
    }
    memory
}

fn consent(view: &View, world: &World, class_of: &BTreeMap<String, Arc<EnvironmentClass>>, memory: &Memory) -> Consent {
    let mut consent = Consent::default();
    let moving = moving_claims(view);
    for claim in &view.claims {
        let key = claim.key();
        if moving.contains(&key) {
            consent.held.insert(key, Hold::Moving);
            continue;
        }
        let class = world.environment_of(claim.namespace()).and_then(|e| class_of.get(&e.key()));
        let Some(class) = class else { continue };
        if let Some(to) = taken_back(claim, class, view) {
            consent.held.insert(key.clone(), Hold::RolledBack { to });
        }
        let approved = class.status.as_ref().and_then(|s| s.approved.as_ref());
        let agreed = approved.filter(|plan| class.spec.approved_swap.as_ref() == Some(&plan.digest));
        let at = memory.claims.get(&key).map(|bound| bound.backend.as_str());
        for approved in agreed.into_iter().flat_map(|plan| &plan.moves).filter(|m| Some(m.from.as_str()) == at) {
            consent.moves.insert((key.clone(), approved.from.clone(), approved.to.clone()));
        }
    }
    consent
}

/// Claims with a move that has not ended.
fn moving_claims(view: &View) -> BTreeSet<String> {
    let moving = |binding: &Arc<CapabilityBinding>| {
        let entries = binding.spec.entries.iter().filter(|entry| entry.swap.is_some());
        entries.map(|entry| format!("{}/{}", binding.spec.namespace, entry.claim)).collect::<Vec<_>>()
    };
    view.all_bindings().flat_map(moving).collect()
}

/// The backend that the claim's last move went to and came back from, unless class or backend were edited since.
fn taken_back(claim: &CapabilityClaim, class: &EnvironmentClass, view: &View) -> Option<String> {
    let last: &ClaimMove = claim.status.as_ref()?.history.first()?;
    let same = last.outcome == MoveOutcome::RolledBack && last.cause == cause(class, view, &last.to);
    same.then(|| last.to.clone())
}

/// Names what asks for a move: another text as soon as the class or the new backend is edited.
pub(crate) fn cause(class: &EnvironmentClass, view: &View, to: &str) -> String {
    let backend = view.backends.iter().find(|backend| backend.name() == to);
    let generation = backend.and_then(|backend| backend.metadata.generation);
    digest_of(&(class.name(), class.metadata.generation, to, generation)).to_string()
}

/// Why a claim moves, in one sentence.
pub(crate) fn why(choice: &Choice) -> String {
    match choice {
        Choice::Move { from, why: MoveWhy::Contradicted { decider, message, .. }, .. } => {
            format!("{from}: {message} ({decider})")
        }
        Choice::Move { from, to, why: MoveWhy::Better { gain } } => {
            format!("{to} is {gain} points better than {from}")
        }
        _ => String::new(),
    }
}

/// Where a claim stands in the stored bindings.
pub(crate) struct Carried<'v> {
    pub(crate) binding: &'v CapabilityBinding,
    pub(crate) entry: &'v BindingEntry,
}

/// The stored entries of a claim, one for each cluster.
pub(crate) fn carried<'v>(view: &'v View, namespace: &str, claim: &str) -> Vec<Carried<'v>> {
    let entry = |binding: &'v Arc<CapabilityBinding>| {
        let entry = binding.spec.entries.iter().find(|entry| entry.claim == claim)?;
        Some(Carried { binding: binding.as_ref(), entry })
    };
    view.bindings_of(namespace).iter().filter_map(entry).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use mecha_apiserver::Stored;
    use mecha_resources::kinds::KindSpec;
    use serde_json::{Value, json};

    use super::*;

    fn stored<S: KindSpec>(metadata: Value, spec: Value, status: Value) -> Arc<Stored<S>> {
        let object = json!({"apiVersion": "mecha.dev/v1alpha1", "kind": S::KIND, "metadata": metadata, "spec": spec,
                            "status": status});
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn an_app_moves_to_a_better_cluster_when_it_has_been_better_for_long_enough() {
        let cluster = |name: &str, cost: &str| {
            let available = json!([{"type": "Available", "status": "True", "reason": "InCluster", "message": "",
                                    "lastTransitionTime": "2026-11-21T03:00:00Z"}]);
            let metadata = json!({"name": name, "annotations": {"mecha.dev/cost": cost}});
            stored(metadata, json!({"accepted": true}), json!({"conditions": available}))
        };
        let decisions = json!([{"cluster": "eu-1", "role": "Active", "score": 0, "since": "2026-11-21T03:00:00Z"}]);
        let placement = json!({"appId": "orders", "clusters": {"min": 1, "max": 1},
                               "hints": [{"prefer": "cost", "weight": 100}]});
        let view = View {
            clusters: vec![cluster("eu-1", "90"), cluster("eu-2", "10")],
            classes: vec![stored(json!({"name": "dev"}), json!({"type": "dev"}), Value::Null)],
            environments: vec![stored(
                json!({"name": "shop", "namespace": "team"}),
                json!({"className": "dev"}),
                json!({"connectTo": "shop-x"}),
            )],
            placements: vec![stored(
                json!({"name": "orders", "namespace": "shop-x"}),
                placement,
                json!({"decisions": decisions}),
            )],
            ..View::default()
        };
        let options = Options::default();
        let hold = Duration::from_millis(options.hysteresis.hold_ms);
        let mut challengers = Challengers::default();
        for (after, wanted) in [(Duration::ZERO, "eu-1"), (hold / 2, "eu-1"), (hold, "eu-2")] {
            let now_ms = 1_000 + u64::try_from(after.as_millis()).unwrap();
            let decided = decide(&view, &options, &challengers, now_ms);
            let selected = &decided.evaluation.placements[0].decision.as_ref().unwrap().selected;
            assert_eq!(selected[0].cluster, wanted, "after {after:?}");
            challengers = Challengers::of(&decided.evaluation.memory);
        }
    }
}
