//! What each cluster gets of each environment, with the moves in it.

use std::collections::BTreeMap;

use mecha_apiserver::{CapabilityBinding, EventType, cluster_namespace};
use mecha_decide::swap::Wish;
use mecha_decide::{Choice, ClaimOutcome, MoveWhy, entries_digest, rule_for};
use mecha_resources::kinds::{
    BindingEntry, BindingEntryStatus, CapabilityBindingSpec, ClaimMove, SwapPhase, SwapRecord,
};

use crate::decide::{Decided, cause, why};
use crate::swaps::{Progress, Start, begin, go_on, receipt_text};
use crate::traces;
use crate::turn::Context;
use crate::view::{Facts as _, MANAGED_BY, View};
use crate::write::{News, Write};

/// Annotation of a CapabilityBinding: claims, separated by commas, whose move is to go back.
pub const ABORT: &str = "mecha.dev/abort-swap";
/// Annotation of a CapabilityBinding: claims, separated by commas, whose move is to go on though the side it
/// leaves is not empty.
pub const PROCEED: &str = "mecha.dev/proceed-swap";

/// Label of a CapabilityBinding: its cluster.
const CLUSTER: &str = "mecha.dev/cluster";

/// What is to be written about one environment's bindings.
#[derive(Default)]
pub(crate) struct Bindings {
    /// Moves that end with these writes, by claim as namespace/name. Their receipts are written first.
    pub(crate) ended: BTreeMap<String, Vec<ClaimMove>>,
    /// The bindings that change.
    pub(crate) writes: Vec<Write>,
    /// Clusters with a binding.
    pub(crate) clusters: Vec<String>,
}

/// The bindings of the environment `key`.
pub(crate) fn bindings(context: &Context<'_>, decided: &Decided, key: &str) -> Bindings {
    let mut out = Bindings::default();
    for wanted in decided.evaluation.bindings.iter().filter(|binding| binding.environment == key) {
        out.clusters.push(wanted.cluster.clone());
        one(context, decided, wanted.clone(), &mut out);
    }
    out
}

fn one(context: &Context<'_>, decided: &Decided, mut wanted: CapabilityBindingSpec, out: &mut Bindings) {
    let Context { view, epoch, now, .. } = *context;
    let home = cluster_namespace(&wanted.cluster);
    let stored = view.bindings_of(&wanted.namespace).iter().find(|b| b.namespace() == home);
    let mut object = stored.map_or_else(
        || CapabilityBinding::new(&wanted.namespace, Some(&home), wanted.clone()),
        |stored| stored.as_ref().clone(),
    );
    let mut news = Vec::new();
    // The decision behind what is written: a move that begins is of this look, a step of one is of an earlier.
    let mut began = false;
    let mut step_of = None;
    for entry in &mut wanted.entries {
        let claim = format!("{}/{}", wanted.namespace, entry.claim);
        let outcome = decided.outcome(&claim);
        let last = stored.and_then(|b| b.spec.entries.iter().find(|e| e.claim == entry.claim));
        let Some(last) = last else { continue };
        if entry.swap.is_some() {
            let status = entry_status(&object, &entry.claim);
            let wish = wish(&object, entry, outcome);
            let record = entry.swap.clone();
            let progress = go_on(entry, &wanted.cluster, status, wish, now);
            if progress != Progress::Waits {
                step_of = step_of.or_else(|| record.as_ref()?.traceparent.clone());
            }
            match progress {
                Progress::Waits => {}
                Progress::Went(phase) => news.extend(phase_news(view, &claim, record.as_ref(), phase, entry)),
                Progress::Ended(receipt) => {
                    forget_wishes(&mut object, &entry.claim);
                    out.ended.entry(claim).or_default().push(*receipt);
                }
            }
        } else if last.backend != entry.backend
            && let Some(start) = start(view, decided, outcome, last, &entry.backend, context.traceparent)
        {
            let note = format!("{} -> {} ({}): {}", last.backend, entry.backend, start.strategy, start.why);
            begin(entry, start, now);
            began = true;
            news.extend(event(view, &claim, EventType::Normal, "SwapStarted", note));
        }
    }
    let unchanged = stored.is_some_and(|stored| stored.spec.entries == wanted.entries);
    wanted.revision = match stored {
        Some(stored) if unchanged => stored.spec.revision,
        Some(stored) => stored.spec.revision.saturating_add(1),
        None => 1,
    };
    wanted.digest = entries_digest(&wanted.entries).to_string();
    // A new leader writes its epoch once into each: from then on the API server refuses what older ones still send.
    wanted.leader_epoch = epoch;
    let labels = object.metadata.labels.get_or_insert_default();
    labels.insert(CLUSTER.to_owned(), wanted.cluster.clone());
    labels.insert(MANAGED_BY.0.to_owned(), MANAGED_BY.1.to_owned());
    object.spec = wanted;
    if !unchanged {
        let step_of = step_of.as_deref().filter(|_| !began);
        traces::mark(&mut object, step_of.or(context.traceparent));
    }
    if stored.is_some_and(|stored| **stored == object) {
        return;
    }
    out.writes.push(Write::replace(&object).tells(news));
}

fn entry_status<'b>(binding: &'b CapabilityBinding, claim: &str) -> Option<&'b BindingEntryStatus> {
    binding.status.as_ref()?.entries.iter().find(|status| status.claim == claim)
}

/// What people want of a move: by the annotations, or by a class that asks for the old backend again.
pub(crate) fn wish(binding: &CapabilityBinding, entry: &BindingEntry, outcome: Option<&ClaimOutcome>) -> Wish {
    let from = entry.swap.as_ref().map(|record| record.from.as_str());
    let choice = outcome.and_then(|o| o.decision.as_ref()).map(|d| &d.choice);
    let reverted = matches!(choice, Some(Choice::Move { to, why: MoveWhy::Contradicted { .. }, .. })
        if Some(to.as_str()) == from);
    Wish { abort: reverted || names(binding, ABORT, &entry.claim), proceed: names(binding, PROCEED, &entry.claim) }
}

fn names(binding: &CapabilityBinding, annotation: &str, claim: &str) -> bool {
    let list = binding.metadata.annotations.as_ref().and_then(|a| a.get(annotation));
    list.is_some_and(|list| list.split(',').any(|name| name.trim() == claim))
}

/// What was asked of a move is not asked of the next one.
fn forget_wishes(binding: &mut CapabilityBinding, claim: &str) {
    let Some(annotations) = &mut binding.metadata.annotations else { return };
    for annotation in [ABORT, PROCEED] {
        let Some(list) = annotations.get_mut(annotation) else { continue };
        let left: Vec<_> = list.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != claim).collect();
        let left = left.join(",");
        if left.is_empty() {
            annotations.remove(annotation);
        } else {
            *list = left;
        }
    }
}

fn start<'a>(
    view: &View,
    decided: &Decided,
    outcome: Option<&ClaimOutcome>,
    last: &'a BindingEntry,
    to: &str,
    traceparent: Option<&str>,
) -> Option<Start<'a>> {
    let outcome = outcome?;
    let class = decided.class_of.get(&outcome.environment)?;
    let object = class.object();
    let policy = rule_for(&object, outcome.kind, &last.claim).and_then(|rule| rule.swap.as_ref());
    let choice = outcome.decision.as_ref().map(|decision| &decision.choice);
    Some(Start {
        from: last,
        strategy: outcome.strategy,
        deadline: policy.and_then(|policy| policy.deadline),
        why: choice.map(why).unwrap_or_default(),
        cause: cause(class, view, to),
        traceparent: traceparent.map(str::to_owned),
    })
}

fn phase_news(
    view: &View,
    claim: &str,
    record: Option<&SwapRecord>,
    phase: SwapPhase,
    entry: &BindingEntry,
) -> Option<News> {
    let record = record?;
    let way = format!("{} -> {}", record.from, record.to);
    match phase {
        SwapPhase::Paused => {
            let note = format!(
                "{way}: the deadline has passed and the old side is not empty; name {} in the annotation {PROCEED} or \
                 {ABORT} of the CapabilityBinding",
                entry.claim
            );
            event(view, claim, EventType::Warning, "SwapPaused", note)
        }
        SwapPhase::RollBack => {
            let why = entry.swap.as_ref().map(|record| record.why.clone()).unwrap_or_default();
            event(view, claim, EventType::Warning, "SwapRollBack", format!("{way}: {why}"))
        }
        phase => event(view, claim, EventType::Normal, "SwapPhase", format!("{way}: {phase}")),
    }
}

/// The news of a move that has ended.
pub(crate) fn ended_news(view: &View, claim: &str, receipt: &ClaimMove) -> Vec<News> {
    use mecha_resources::kinds::MoveOutcome::{Completed, RolledBack};
    let (kind, reason) = match receipt.outcome {
        Completed => (EventType::Normal, "SwapCompleted"),
        RolledBack => (EventType::Warning, "SwapRolledBack"),
    };
    let mut news = vec![News::Moved(receipt.outcome)];
    news.extend(event(view, claim, kind, reason, receipt_text(receipt)));
    news
}

fn event(view: &View, claim: &str, kind: EventType, reason: &'static str, note: String) -> Option<News> {
    let object = view.claim(claim)?;
    Some(News::event(object.as_ref(), kind, reason, "Swap", note))
}
