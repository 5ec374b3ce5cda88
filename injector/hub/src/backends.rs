//! How many claims a backend serves, and that it stays while it serves some.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use mecha_apiserver::{CapabilityBackend, EventType};
use mecha_resources::kinds::{BackendConditionType, BackendReason, ConditionStatus};
use serde_json::json;

use crate::conditions::{conditions, few};
use crate::decide::Decided;
use crate::view::{Facts as _, View};
use crate::write::{News, Write};

/// Keeps what is in use.
pub(crate) const IN_USE: &str = "mecha.dev/in-use";

/// A row of writes for each backend.
pub(crate) fn backends(view: &View, decided: &Decided, now: Timestamp) -> Vec<Vec<Write>> {
    let users = users(view, decided);
    let none = BTreeSet::new();
    let row = |backend| one(backend, users.get(backend_name(backend)).unwrap_or(&none), now);
    view.backends.iter().map(|backend| row(backend.as_ref())).filter(|row| !row.is_empty()).collect()
}

fn backend_name(backend: &CapabilityBackend) -> &str {
    backend.name()
}

/// Claims by backend, as namespace/name. Both sides of a move are in use.
fn users<'d>(view: &'d View, decided: &'d Decided) -> BTreeMap<&'d str, BTreeSet<String>> {
    let mut users = BTreeMap::<&str, BTreeSet<String>>::new();
    for (claim, bound) in &decided.evaluation.memory.claims {
        users.entry(bound.backend.as_str()).or_default().insert(claim.clone());
    }
    for binding in view.all_bindings() {
        for entry in &binding.spec.entries {
            let claim = format!("{}/{}", binding.spec.namespace, entry.claim);
            users.entry(entry.backend.as_str()).or_default().insert(claim.clone());
            if let Some(record) = &entry.swap {
                users.entry(record.from.as_str()).or_default().insert(claim);
            }
        }
    }
    users
}

fn one(backend: &CapabilityBackend, users: &BTreeSet<String>, now: Timestamp) -> Vec<Write> {
    let mut row = Vec::new();
    if !users.is_empty() && !backend.leaving() && !backend.has_finalizer(IN_USE) {
        row.push(Write::finalizer(backend, IN_USE, true));
    }
    let stored = backend.status.clone().unwrap_or_default();
    let count = u32::try_from(users.len()).unwrap_or(u32::MAX);
    let asked = stored.conditions.iter().find(|c| c.kind == BackendConditionType::InUse);
    let mut aspects = Vec::new();
    if backend.leaving() && !users.is_empty() {
        let names: Vec<_> = users.iter().cloned().collect();
        let message = format!(
            "it is deleted and stays while {count} claims are bound to it: {}. Let their class select another \
             backend, or delete them",
            few(&names)
        );
        aspects.push((BackendConditionType::InUse, ConditionStatus::True, BackendReason::ClaimsBound, message));
    }
    let wanted = conditions(&stored.conditions, aspects, backend.metadata.generation, now);
    if count != stored.bound_claims || wanted.first() != asked {
        let news = wanted
            .first()
            .filter(|_| asked.is_none())
            .map(|condition| News::event(backend, EventType::Warning, "InUse", "Delete", condition.message.clone()));
        // The rest of the status is written by what probes backends.
        let part = if wanted.is_empty() {
            json!({"boundClaims": count})
        } else {
            json!({"boundClaims": count, "conditions": wanted})
        };
        row.push(Write::part_of_status(backend, part).tells(news));
    }
    if backend.leaving() && users.is_empty() && backend.has_finalizer(IN_USE) {
        row.push(Write::finalizer(backend, IN_USE, false));
    }
    row
}
