//! An environment's namespace, its end, and what its team reads.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use mecha_apiserver::{CapabilityClaim, Environment, EventType, cluster_namespace};
use mecha_resources::kinds::{
    ClaimCount, ClaimPhase, ConditionStatus, EnvironmentCluster, EnvironmentConditionType, EnvironmentReason,
    EnvironmentStatus, Isolation,
};

use crate::bindings::{Bindings, bindings};
use crate::claims::claim;
use crate::conditions::{Aspect, conditions, few, holds};
use crate::decide::Decided;
use crate::turn::{Context, Row};
use crate::view::{Facts as _, View};
use crate::write::{News, Write};

/// Keeps an environment until its claims are gone.
const FINALIZER: &str = "mecha.dev/environment";

/// What is to be written about one environment, its claims and its bindings, in the order in which it may be lost.
pub(crate) fn environment(context: &Context<'_>, decided: &Decided, environment: &Arc<Environment>) -> Row {
    let Context { view, now, .. } = *context;
    let namespace = decided.world.namespace_of(&environment.object());
    let claims = view.claims_in(&namespace);
    let mut row = Row::default();
    let expires = expiry(environment);
    let expired = expires.is_some_and(|at| at <= now);
    if environment.leaving() && claims.is_empty() {
        leave(view, environment, &namespace, &mut row);
        return row;
    }
    if !environment.leaving() {
        row.wake = expires.filter(|_| !expired);
        if !environment.has_finalizer(FINALIZER) {
            // Everything else is written against the version that this leaves behind.
            row.writes.push(Write::finalizer(environment.as_ref(), FINALIZER, true));
            return row;
        }
    }
    let Bindings { ended, writes, clusters } = bindings(context, decided, &environment.key());
    let homes = clusters.iter().map(|cluster| cluster_namespace(cluster));
    let missing = homes.filter(|home| !view.namespaces.contains_key(home) && !view.homes.contains(home));
    row.writes.extend(missing.map(|home| Write::namespace(&home, None)));
    let mut last = Vec::new();
    let none = Vec::new();
    for stored in claims {
        let receipts = ended.get(&stored.key()).unwrap_or(&none);
        let written = claim(view, decided, stored, receipts, now);
        if !stored.leaving() {
            *row.phases.entry(written.phase).or_default() += 1;
            if written.phase == ClaimPhase::Pending {
                row.pending.push(stored.name().to_owned());
            }
        }
        row.writes.extend(written.first);
        last.extend(written.last);
        if expired && !stored.leaving() {
            last.push(Write::delete(stored.as_ref()));
        }
    }
    row.writes.extend(writes);
    row.writes.extend(last);
    let stored = environment.status.clone().unwrap_or_default();
    let status = status(context, decided, environment, &namespace, &row, expired);
    if status != stored {
        let news = news(environment, &stored, &status);
        row.writes.push(Write::status(environment.as_ref(), &status).tells(news));
    } else if expired && !environment.leaving() {
        row.writes.push(Write::delete(environment.as_ref()));
    }
    // The last one, since it may be refused for ever.
    let known = view.namespaces.contains_key(&namespace);
    if !known && !environment.leaving() && decided.class_of.contains_key(&environment.key()) {
        row.writes.push(Write::namespace(&namespace, Some(environment.key())));
    }
    row
}

/// When its time is over.
fn expiry(environment: &Environment) -> Option<Timestamp> {
    let made = environment.metadata.creation_timestamp.as_ref()?;
    let ttl = SignedDuration::try_from(environment.spec.ttl?.0).ok()?;
    made.0.checked_add(ttl).ok()
}

/// Nothing is in it any more: bindings, namespace and at last the object go.
fn leave(view: &View, environment: &Environment, namespace: &str, row: &mut Row) {
    if !environment.has_finalizer(FINALIZER) {
        return;
    }
    row.writes.extend(view.bindings_of(namespace).iter().map(|binding| Write::delete(binding.as_ref())));
    if view.namespaces.get(namespace) == Some(&false) {
        row.writes.push(Write::delete_namespace(namespace));
    }
    row.writes.push(Write::finalizer(environment, FINALIZER, false));
}

type Aspects = Vec<Aspect<EnvironmentConditionType, EnvironmentReason>>;

fn status(
    context: &Context<'_>,
    decided: &Decided,
    environment: &Environment,
    namespace: &str,
    row: &Row,
    expired: bool,
) -> EnvironmentStatus {
    let stored = environment.status.clone().unwrap_or_default();
    let class = decided.class_of.get(&environment.key());
    let clusters = clusters(context, decided, environment, namespace);
    let names: Vec<_> = clusters.iter().map(|cluster| cluster.name.clone()).collect();
    let aspects = aspects(context, decided, environment, namespace, &clusters, row, expired);
    EnvironmentStatus {
        // Without a class now: what it was is still what runs.
        class_name: class.map_or_else(|| stored.class_name.clone(), |c| c.name().to_owned()),
        kind: class.map_or_else(|| stored.kind.clone(), |c| c.spec.kind.clone()),
        isolation: class.map_or(stored.isolation, |c| Some(c.spec.isolation.unwrap_or(Isolation::Namespace))),
        connect_to: namespace.to_owned(),
        cluster_names: names.join(","),
        clusters,
        claims: Some(count(&row.phases)),
        conditions: conditions(&stored.conditions, aspects, environment.metadata.generation, context.now),
    }
}

fn count(phases: &BTreeMap<ClaimPhase, u32>) -> ClaimCount {
    let of = |phase| phases.get(&phase).copied().unwrap_or(0);
    ClaimCount {
        bound: of(ClaimPhase::Bound) + of(ClaimPhase::Degraded),
        pending: of(ClaimPhase::Pending),
        swapping: of(ClaimPhase::Swapping),
    }
}

fn clusters(
    context: &Context<'_>,
    decided: &Decided,
    environment: &Environment,
    namespace: &str,
) -> Vec<EnvironmentCluster> {
    let ready =
        |name: &str| name != context.options.cluster_name || context.view.namespaces.get(namespace) == Some(&false);
    let names = decided.world.clusters_for(&environment.object());
    names
        .into_iter()
        .map(|name| EnvironmentCluster { ready: ready(&name), namespace: namespace.to_owned(), name })
        .collect()
}

fn aspects(
    context: &Context<'_>,
    decided: &Decided,
    environment: &Environment,
    namespace: &str,
    clusters: &[EnvironmentCluster],
    row: &Row,
    expired: bool,
) -> Aspects {
    use EnvironmentConditionType::{ClaimsBound, ClassResolved, ClustersReady, Ready};
    let resolved = match decided.world.class_of(&environment.object()) {
        Ok(class) => (ClassResolved, ConditionStatus::True, EnvironmentReason::ClassFound, class.name().to_owned()),
        Err(problem) => (ClassResolved, ConditionStatus::False, problem.reason(), problem.to_string()),
    };
    let waiting = clusters.iter().any(|cluster| !cluster.ready);
    let (placed, reason, message) = if let Some(problem) = context.foreign.get(namespace) {
        (false, EnvironmentReason::NamespacePending, problem.clone())
    } else if clusters.is_empty() {
        let message = "no accepted and available MemberCluster has the labels of the class's clusterSelector and no \
                       taint that keeps new environments away";
        (false, EnvironmentReason::NoCluster, message.to_owned())
    } else if waiting {
        (false, EnvironmentReason::NamespacePending, format!("namespace {namespace} is being made"))
    } else {
        (true, EnvironmentReason::NamespacesReady, String::new())
    };
    let placed = (ClustersReady, holds(placed), reason, message);
    let of = |phase| row.phases.get(&phase).copied().unwrap_or(0);
    let (bound, reason, message) = if of(ClaimPhase::Lost) > 0 {
        (false, EnvironmentReason::ClaimsLost, format!("{} claims have lost their backend", of(ClaimPhase::Lost)))
    } else if !row.pending.is_empty() {
        (false, EnvironmentReason::ClaimsPending, format!("claims wait for a backend: {}", few(&row.pending)))
    } else {
        (true, EnvironmentReason::AllBound, String::new())
    };
    let bound = (ClaimsBound, holds(bound), reason, message);
    let ready = if environment.leaving() {
        let users: Vec<_> = users(context.view.claims_in(namespace));
        let message = match users.as_slice() {
            [] => "its claims are leaving".to_owned(),
            users => format!("it stays while it has claims: {}. Delete them first", few(users)),
        };
        (Ready, ConditionStatus::False, EnvironmentReason::Deleting, message)
    } else if expired {
        (Ready, ConditionStatus::False, EnvironmentReason::Expired, "its ttl is over; its claims go first".to_owned())
    } else {
        let first = [&resolved, &placed, &bound].into_iter().find(|aspect| aspect.1 == ConditionStatus::False);
        match first {
            Some((_, _, reason, message)) => (Ready, ConditionStatus::False, *reason, message.clone()),
            None => (Ready, ConditionStatus::True, EnvironmentReason::AllReady, String::new()),
        }
    };
    vec![ready, resolved, placed, bound]
}

fn users(claims: &[Arc<CapabilityClaim>]) -> Vec<String> {
    claims.iter().filter(|claim| !claim.leaving()).map(|claim| claim.name().to_owned()).collect()
}

/// What people hear when an environment is no longer ready, or is again.
fn news(environment: &Environment, before: &EnvironmentStatus, after: &EnvironmentStatus) -> Vec<News> {
    let ready = |status: &EnvironmentStatus| {
        status.conditions.iter().find(|c| c.kind == EnvironmentConditionType::Ready).cloned()
    };
    let Some(now) = ready(after) else { return Vec::new() };
    if ready(before).is_some_and(|before| before.status == now.status && before.reason == now.reason) {
        return Vec::new();
    }
    let event = |kind, reason, note: String| vec![News::event(environment, kind, reason, "Reconcile", note)];
    match now.reason {
        EnvironmentReason::AllReady => event(EventType::Normal, "Ready", format!("connect to {}", after.connect_to)),
        EnvironmentReason::ClassNotFound | EnvironmentReason::ClassAmbiguous => {
            event(EventType::Warning, "ClassUnresolved", now.message)
        }
        EnvironmentReason::NoCluster => event(EventType::Warning, "NoCluster", now.message),
        EnvironmentReason::Expired => event(EventType::Normal, "Expired", now.message),
        EnvironmentReason::Deleting => event(EventType::Warning, "InUse", now.message),
        _ => Vec::new(),
    }
}
