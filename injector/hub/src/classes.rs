//! What waits for a person, what a person has agreed to, and that a class stays while environments use it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use mecha_apiserver::{EnvironmentClass, EventType};
use mecha_decide::{Blocked, Choice, ClaimOutcome, waiting_digest};
use mecha_resources::kinds::{
    ApprovedMove, ApprovedPlan, ClassConditionType, ClassReason, ConditionStatus, EnvironmentClassStatus,
};

use crate::backends::IN_USE;
use crate::conditions::{Aspect, conditions, few, holds};
use crate::decide::Decided;
use crate::view::{Facts as _, View};
use crate::write::{News, Write};

/// A row of writes for each class.
pub(crate) fn classes(view: &View, decided: &Decided, now: Timestamp) -> Vec<Vec<Write>> {
    let row = |class: &EnvironmentClass| one(decided, class, now);
    view.classes.iter().map(|class| row(class)).filter(|row| !row.is_empty()).collect()
}

/// One claim that waits.
struct Waiting<'d> {
    outcome: &'d ClaimOutcome,
    from: &'d str,
    to: &'d str,
}

fn waiting<'d>(decided: &'d Decided, class: &str, why: &Blocked) -> Vec<Waiting<'d>> {
    let of_class = |o: &&ClaimOutcome| decided.class_of.get(&o.environment).is_some_and(|c| c.name() == class);
    let waits = |outcome: &'d ClaimOutcome| match outcome.decision.as_ref().map(|d| &d.choice) {
        Some(Choice::Move { from, to, .. }) if outcome.blocked.as_ref() == Some(why) => {
            Some(Waiting { outcome, from, to })
        }
        _ => None,
    };
    decided.evaluation.claims.iter().filter(of_class).filter_map(waits).collect()
}

fn plan_digest(class: &str, waiting: &[Waiting<'_>]) -> String {
    let moves: Vec<_> = waiting.iter().map(|w| (w.outcome.claim.as_str(), w.from, w.to, w.outcome.strategy)).collect();
    waiting_digest(class, &moves).to_string()
}

fn ways(waiting: &[Waiting<'_>]) -> BTreeSet<ApprovedMove> {
    waiting.iter().map(|w| ApprovedMove { from: w.from.to_owned(), to: w.to.to_owned() }).collect()
}

fn in_words(waiting: &[Waiting<'_>]) -> String {
    let ways: Vec<_> = ways(waiting).into_iter().map(|way| format!("{} -> {}", way.from, way.to)).collect();
    let claims: Vec<_> = waiting.iter().map(|w| w.outcome.claim.clone()).collect();
    format!("{} claims are to move ({}): {}", waiting.len(), few(&ways), few(&claims))
}

fn one(decided: &Decided, class: &EnvironmentClass, now: Timestamp) -> Vec<Write> {
    let users: Vec<String> = decided
        .class_of
        .iter()
        .filter(|(_, c)| c.name() == class.name())
        .map(|(environment, _)| environment.clone())
        .collect();
    let mut row = Vec::new();
    if !users.is_empty() && !class.leaving() && !class.has_finalizer(IN_USE) {
        row.push(Write::finalizer(class, IN_USE, true));
        return row;
    }
    let stored = class.status.clone().unwrap_or_default();
    let status = status(decided, class, &stored, &users, now);
    if status != stored {
        row.push(Write::status(class, &status).tells(news(class, &stored, &status)));
    } else if class.leaving() && users.is_empty() && class.has_finalizer(IN_USE) {
        row.push(Write::finalizer(class, IN_USE, false));
    }
    row
}

fn status(
    decided: &Decided,
    class: &EnvironmentClass,
    stored: &EnvironmentClassStatus,
    users: &[String],
    now: Timestamp,
) -> EnvironmentClassStatus {
    let asks = waiting(decided, class.name(), &Blocked::AwaitingApproval);
    let empty = waiting(decided, class.name(), &Blocked::EmptyNotAllowed);
    let digest = if asks.is_empty() { String::new() } else { plan_digest(class.name(), &asks) };
    let agreed = !digest.is_empty() && class.spec.approved_swap.as_ref() == Some(&digest);
    let approved = if agreed {
        Some(ApprovedPlan { digest: digest.clone(), moves: ways(&asks).into_iter().collect() })
    } else {
        stored.approved.clone().map(|plan| still_open(decided, class, plan))
    };
    let mut aspects = vec![pending(class, &asks, &empty, &digest)];
    if class.leaving() && !users.is_empty() {
        let message = format!(
            "it is deleted and stays while {} environments are of it: {}. Delete them or give them another class",
            users.len(),
            few(users)
        );
        aspects.push((ClassConditionType::InUse, ConditionStatus::True, ClassReason::UsedByEnvironments, message));
    }
    EnvironmentClassStatus {
        environments: u32::try_from(users.len()).unwrap_or(u32::MAX),
        pending_moves: (!asks.is_empty()).then(|| u32::try_from(asks.len()).unwrap_or(u32::MAX)),
        pending_plan: digest,
        approved,
        observed_generation: class.metadata.generation,
        conditions: conditions(&stored.conditions, aspects, class.metadata.generation, now),
    }
}

/// Consent is for the claims of its plan and no others: once all of them have begun, it covers nothing more.
fn still_open(decided: &Decided, class: &EnvironmentClass, plan: ApprovedPlan) -> ApprovedPlan {
    let agreed = |from: &str, to: &str| plan.moves.iter().any(|way| way.from == from && way.to == to);
    let begins = |outcome: &ClaimOutcome| match outcome.decision.as_ref().map(|d| &d.choice) {
        Some(Choice::Move { from, to, .. }) => outcome.blocked.is_none() && agreed(from, to),
        _ => false,
    };
    let mine = |o: &&ClaimOutcome| decided.class_of.get(&o.environment).is_some_and(|c| c.name() == class.name());
    if decided.evaluation.claims.iter().filter(mine).any(begins) {
        return plan;
    }
    ApprovedPlan { moves: Vec::new(), ..plan }
}

fn pending(
    class: &EnvironmentClass,
    asks: &[Waiting<'_>],
    empty: &[Waiting<'_>],
    digest: &str,
) -> Aspect<ClassConditionType, ClassReason> {
    let (reason, message) = if !asks.is_empty() {
        let stale = class.spec.approved_swap.as_ref().is_some_and(|approved| approved != digest);
        let note = if stale { "; spec.approvedSwap names another plan" } else { "" };
        let how = format!("{}; to agree, set spec.approvedSwap to {digest}{note}", in_words(asks));
        (ClassReason::AwaitingApproval, how)
    } else if !empty.is_empty() {
        let how = format!("{}; no data is copied: to agree, set swap.emptyOk of the rule", in_words(empty));
        (ClassReason::EmptyNotAllowed, how)
    } else {
        (ClassReason::Settled, String::new())
    };
    let waits = reason != ClassReason::Settled;
    (ClassConditionType::SwapPending, holds(waits), reason, message)
}

fn news(class: &EnvironmentClass, before: &EnvironmentClassStatus, after: &EnvironmentClassStatus) -> Vec<News> {
    let condition = |status: &EnvironmentClassStatus, kind| {
        let found = status.conditions.iter().find(|c| c.kind == kind && c.status == ConditionStatus::True);
        found.map(|c| (c.reason, c.message.clone()))
    };
    let mut news = Vec::new();
    let pending = condition(after, ClassConditionType::SwapPending);
    let before_reason = condition(before, ClassConditionType::SwapPending).map(|(reason, _)| reason);
    let is_news = |reason| before_reason != Some(reason) || before.pending_plan != after.pending_plan;
    if let Some((reason, message)) = pending.filter(|(reason, _)| is_news(*reason)) {
        let reason = if reason == ClassReason::AwaitingApproval { "AwaitingApproval" } else { "EmptyNotAllowed" };
        news.push(News::event(class, EventType::Normal, reason, "Swap", message));
    }
    let known = before.approved.as_ref().filter(|plan| !plan.moves.is_empty()).map(|plan| &plan.digest);
    if let Some(approved) = after.approved.as_ref().filter(|plan| !plan.moves.is_empty())
        && known != Some(&approved.digest)
    {
        news.push(News::event(class, EventType::Normal, "SwapApproved", "Swap", approved.digest.clone()));
    }
    let in_use = condition(after, ClassConditionType::InUse);
    if let Some((_, message)) = in_use.filter(|_| condition(before, ClassConditionType::InUse).is_none()) {
        news.push(News::event(class, EventType::Warning, "InUse", "Delete", message));
    }
    news
}
