//! Where apps run, and where they ran before.

use jiff::Timestamp;
use mecha_apiserver::AppPlacement;
use mecha_decide::PlacementOutcome;
use mecha_resources::kinds::{
    AppPlacementStatus, MAX_HISTORY, Move, PlacementConditionType, PlacementDecision, PlacementReason, Role,
};

use crate::conditions::{conditions, holds, text};
use crate::decide::Decided;
use crate::view::{Facts as _, View};
use crate::write::Write;

/// A row of writes for each placement.
pub(crate) fn placements(view: &View, decided: &Decided, now: Timestamp) -> Vec<Vec<Write>> {
    let outcomes = &decided.evaluation.placements;
    let write = |outcome: &PlacementOutcome| {
        let placement = view.placements.iter().find(|p| p.key() == outcome.placement)?;
        let stored = placement.status.clone().unwrap_or_default();
        let status = status(placement, outcome, &stored, now);
        (status != stored).then(|| vec![Write::status(placement.as_ref(), &status)])
    };
    outcomes.iter().filter_map(write).collect()
}

fn status(
    placement: &AppPlacement,
    outcome: &PlacementOutcome,
    stored: &AppPlacementStatus,
    now: Timestamp,
) -> AppPlacementStatus {
    let generation = placement.metadata.generation;
    let satisfied = |yes, reason, message: String| {
        conditions(
            &stored.conditions,
            vec![(PlacementConditionType::Satisfied, holds(yes), reason, message)],
            generation,
            now,
        )
    };
    let Some(decision) = &outcome.decision else {
        let message = "its Environment has no class; see the condition ClassResolved there".to_owned();
        let conditions = satisfied(false, PlacementReason::ClassUnresolved, message);
        return AppPlacementStatus { conditions, ..stored.clone() };
    };
    let several = decision.selected.len() > 1;
    let decisions: Vec<_> = decision
        .selected
        .iter()
        .map(|chosen| {
            let before = stored.decisions.iter().find(|d| d.cluster == chosen.cluster);
            PlacementDecision {
                cluster: chosen.cluster.clone(),
                role: if several { Role::Primary } else { Role::Active },
                replicas: chosen.replicas,
                score: chosen.score,
                since: before.map_or_else(|| text(now), |d| d.since.clone()),
            }
        })
        .collect();
    let names = |decisions: &[PlacementDecision]| decisions.iter().map(|d| d.cluster.clone()).collect::<Vec<_>>();
    let (from, to) = (names(&stored.decisions), names(&decisions));
    let mut history = stored.history.clone();
    if let Some(cause) = decision.cause.filter(|_| from != to) {
        history.insert(0, Move { at: text(now), from, to: to.clone(), cause });
        history.truncate(MAX_HISTORY);
    }
    let tightest = decision.explanation.tightest.as_ref().map(|t| t.message.clone()).unwrap_or_default();
    let (reason, message) = match (decision.satisfied, to.is_empty()) {
        (true, _) => (PlacementReason::MinMet, String::new()),
        (false, true) => (PlacementReason::NoCandidate, tightest),
        (false, false) => (PlacementReason::BelowMin, tightest),
    };
    AppPlacementStatus {
        selected: to.join(","),
        decisions,
        explanation: Some(decision.explanation.clone()),
        history,
        conditions: satisfied(decision.satisfied, reason, message),
    }
}
