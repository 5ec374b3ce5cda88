//! What a claim's owner reads: phase, backend, why, and the last moves.

use std::sync::Arc;

use jiff::Timestamp;
use mecha_apiserver::{CapabilityClaim, EventType};
use mecha_decide::{Blocked, Choice, ClaimOutcome, StayWhy};
use mecha_resources::kinds::{
    BackendConditionType, BackendReason, BindingCount, BindingEntryStatus, CapabilityBackend, CapabilityClaimStatus,
    ClaimConditionType, ClaimMove, ClaimPhase, ClaimReason, ConditionStatus, Explanation, MAX_HISTORY,
    ServiceBindingRef, SwapPhase,
};

use crate::bindings::{ABORT, PROCEED, ended_news, wish};
use crate::conditions::{Aspect, conditions, holds};
use crate::decide::{Carried, Decided, carried};
use crate::swaps;
use crate::view::{Facts as _, View};
use crate::write::{News, Write};

/// Keeps a claim that is bound until it has left the bindings: what is only absent is never taken out.
pub(crate) const FINALIZER: &str = "mecha.dev/binding";

/// What is to be written about one claim.
pub(crate) struct ClaimWrites {
    pub(crate) phase: ClaimPhase,
    /// Before the bindings.
    pub(crate) first: Vec<Write>,
    /// After them.
    pub(crate) last: Vec<Write>,
}

type Aspects = Vec<Aspect<ClaimConditionType, ClaimReason>>;

/// What is to be written about `claim`, with the receipts of its moves that end now.
pub(crate) fn claim(
    view: &View,
    decided: &Decided,
    claim: &Arc<CapabilityClaim>,
    ended: &[ClaimMove],
    now: Timestamp,
) -> ClaimWrites {
    let entries = carried(view, claim.namespace(), claim.name());
    let key = claim.key();
    let stored = claim.status.clone().unwrap_or_default();
    let mut writes = ClaimWrites { phase: stored.phase.unwrap_or(ClaimPhase::Pending), first: vec![], last: vec![] };
    if claim.leaving() {
        let owned = decided.world.environment_of(claim.namespace()).is_some();
        if claim.has_finalizer(FINALIZER) && (entries.is_empty() || !owned) {
            writes.last.push(Write::finalizer(claim.as_ref(), FINALIZER, false));
        }
        return writes;
    }
    let Some(outcome) = decided.outcome(&key) else { return writes };
    if outcome.backend.is_some() && !claim.has_finalizer(FINALIZER) {
        writes.first.push(Write::finalizer(claim.as_ref(), FINALIZER, true));
        // The status is written against the version that this leaves behind, at the next turn.
        return writes;
    }
    let status = status(view, decided, claim, outcome, &entries, ended, now);
    writes.phase = status.phase.unwrap_or(ClaimPhase::Pending);
    if status != stored {
        let mut news: Vec<News> =
            ended.iter().filter(|m| is_new(&stored, m)).flat_map(|m| ended_news(view, &key, m)).collect();
        news.extend(phase_news(claim, &stored, &status, now));
        let write = Write::status(claim.as_ref(), &status).tells(news);
        if ended.is_empty() { writes.last.push(write) } else { writes.first.push(write) }
    }
    writes
}

fn is_new(stored: &CapabilityClaimStatus, receipt: &ClaimMove) -> bool {
    !stored
        .history
        .iter()
        .any(|m| m.cluster == receipt.cluster && m.started_at == receipt.started_at && m.to == receipt.to)
}

fn status(
    view: &View,
    decided: &Decided,
    claim: &CapabilityClaim,
    outcome: &ClaimOutcome,
    entries: &[Carried<'_>],
    ended: &[ClaimMove],
    now: Timestamp,
) -> CapabilityClaimStatus {
    let stored = claim.status.clone().unwrap_or_default();
    let current = entries.first();
    let backend = match current {
        Some(carried) => swaps::owner(carried.entry).to_owned(),
        // What served it is remembered, so that its data is found again.
        None => stored.backend.clone(),
    };
    let total = u32::try_from(entries.len()).unwrap_or(u32::MAX);
    let ready = u32::try_from(entries.iter().filter(|c| is_ready(c)).count()).unwrap_or(u32::MAX);
    let mut history: Vec<ClaimMove> = ended.iter().filter(|m| is_new(&stored, m)).cloned().collect();
    history.extend(stored.history.iter().cloned());
    history.truncate(MAX_HISTORY);
    let last = history.first();
    let found = Found { view, decided, outcome, entries, backend: &backend, total, ready, last, now };
    let (phase, aspects) = found.phase();
    CapabilityClaimStatus {
        phase: Some(phase),
        backend,
        binding: current.and_then(|c| swaps::secret(c.entry)).map(|name| ServiceBindingRef { name }),
        required_features: outcome.required.clone(),
        bindings: (total > 0).then_some(BindingCount { total, ready }),
        summary: if total > 0 { format!("{ready}/{total}") } else { String::new() },
        explanation: explanation(&stored, outcome),
        history,
        conditions: conditions(&stored.conditions, aspects, claim.metadata.generation, now),
    }
}

/// The explanation in the status, unless candidates fare otherwise now: counts and scores that drift are no news,
/// and writing them would write every claim whenever one is bound.
fn explanation(stored: &CapabilityClaimStatus, outcome: &ClaimOutcome) -> Option<Explanation> {
    let fresh = outcome.decision.as_ref().map(|decision| &decision.explanation);
    match (&stored.explanation, fresh) {
        (Some(old), Some(new)) if verdicts(old) == verdicts(new) => Some(old.clone()),
        (_, Some(new)) => Some(new.clone()),
        (old, None) => old.clone(),
    }
}

fn verdicts(explanation: &Explanation) -> impl PartialEq + '_ {
    let mut candidates: Vec<_> =
        explanation.candidates.iter().map(|c| (&c.name, c.verdict, &c.decider, c.reason)).collect();
    candidates.sort();
    let tightest = explanation.tightest.as_ref().map(|t| (&t.decider, t.admits));
    (candidates, tightest, explanation.evaluated, explanation.eligible)
}

fn entry_status<'c>(carried: &Carried<'c>) -> Option<&'c BindingEntryStatus> {
    carried.binding.status.as_ref()?.entries.iter().find(|status| status.claim == carried.entry.claim)
}

/// Whether sidecars have the entry as it is now.
fn is_ready(carried: &Carried<'_>) -> bool {
    let Some(status) = entry_status(carried) else { return false };
    let current = match &status.progress {
        Some(progress) => progress.revision == carried.entry.revision,
        None => carried.binding.status.as_ref().is_some_and(|s| s.applied_revision >= carried.entry.revision),
    };
    status.ready && current
}

/// What was found about a claim.
struct Found<'f> {
    view: &'f View,
    decided: &'f Decided,
    outcome: &'f ClaimOutcome,
    entries: &'f [Carried<'f>],
    backend: &'f str,
    total: u32,
    ready: u32,
    /// The last move that has ended.
    last: Option<&'f ClaimMove>,
    now: Timestamp,
}

impl Found<'_> {
    fn phase(&self) -> (ClaimPhase, Aspects) {
        use ClaimConditionType::{Bound, Degraded, Lost, Ready, SwapPending};
        let lost = self.lost();
        let degraded = self.degraded();
        let moving = self.entries.iter().any(|c| c.entry.swap.is_some());
        let (bound, bound_reason, bound_message) = self.bound();
        let phase = if degraded.as_ref().is_some_and(|(reason, _)| *reason == ClaimReason::Shadowed) {
            ClaimPhase::Degraded
        } else if !bound {
            ClaimPhase::Pending
        } else if lost.is_some() {
            ClaimPhase::Lost
        } else if moving {
            ClaimPhase::Swapping
        } else if degraded.is_some() {
            ClaimPhase::Degraded
        } else {
            ClaimPhase::Bound
        };
        let works = bound && lost.is_none() && degraded.is_none() && self.ready == self.total;
        let (ready_reason, ready_message) = match (&degraded, &lost) {
            _ if works => (ClaimReason::AllBindingsReady, String::new()),
            (Some(degraded), _) => degraded.clone(),
            (_, Some(message)) => (ClaimReason::BackendDeleted, message.clone()),
            _ if !bound => (bound_reason, bound_message.clone()),
            _ => (ClaimReason::BindingsPending, self.waiting()),
        };
        let settled = (ClaimReason::Settled, String::new());
        let (swap, swap_reason, swap_message) = self.swap();
        let mut aspects = vec![
            (Bound, holds(bound), bound_reason, bound_message),
            (Ready, holds(works), ready_reason, ready_message),
            (SwapPending, holds(swap), swap_reason, swap_message),
        ];
        let (reason, message) = degraded.clone().unwrap_or_else(|| settled.clone());
        aspects.push((Degraded, holds(degraded.is_some()), reason, message));
        let (reason, message) = lost.clone().map_or(settled, |message| (ClaimReason::BackendDeleted, message));
        aspects.push((Lost, holds(lost.is_some()), reason, message));
        (phase, aspects)
    }

    fn bound(&self) -> (bool, ClaimReason, String) {
        if !self.entries.is_empty() {
            return (true, ClaimReason::BackendSelected, self.backend.to_owned());
        }
        if let Some((reason, message)) = &self.outcome.problem {
            return (false, *reason, message.clone());
        }
        let message = match &self.outcome.blocked {
            Some(Blocked::TemplateInvalid(message)) => return (false, ClaimReason::TemplateInvalid, message.clone()),
            _ if self.decided.world.environment_of(namespace(self.outcome)).is_none() => "it has no environment",
            _ => "no cluster has it yet; see the condition ClustersReady of its Environment",
        };
        (false, ClaimReason::BindingsPending, message.to_owned())
    }

    /// What is wrong with the backend, or with the place of the claim.
    fn degraded(&self) -> Option<(ClaimReason, String)> {
        if let Some((ClaimReason::Shadowed, message)) = &self.outcome.problem {
            return Some((ClaimReason::Shadowed, message.clone()));
        }
        if self.entries.is_empty() {
            return None;
        }
        let backend = self.decided.backends.get(self.backend)?;
        let (reason, message) = not_ready(backend)?;
        let next = "its condition Ready says more";
        let message = format!(
            "CapabilityBackend {}: {}; {next}",
            self.backend,
            if message.is_empty() { reason.as_str() } else { &message }
        );
        match reason {
            BackendReason::SourceMissing | BackendReason::SourceKeyMissing => {
                Some((ClaimReason::SourceMissing, message))
            }
            _ => Some((ClaimReason::BackendNotReady, message)),
        }
    }

    fn lost(&self) -> Option<String> {
        let gone = !self.entries.is_empty() && !self.decided.backends.contains_key(self.backend);
        gone.then(|| {
            format!(
                "CapabilityBackend {} is gone; sidecars keep what they have. Make it again, or let the class select \
                 another one",
                self.backend
            )
        })
    }

    fn swap(&self) -> (bool, ClaimReason, String) {
        let moving = self.entries.iter().find_map(|c| Some((c, c.entry.swap.as_ref()?)));
        if let Some((carried, record)) = moving {
            let wish = wish(carried.binding, carried.entry, Some(self.outcome));
            let state = swaps::state(carried.entry, entry_status(carried), wish, self.now);
            return match record.phase {
                SwapPhase::Paused => {
                    let how = format!(
                        "{state}; name the claim in the annotation {PROCEED} or {ABORT} of CapabilityBinding {}",
                        carried.binding.key()
                    );
                    (true, ClaimReason::DeadlinePassed, how)
                }
                _ => (true, ClaimReason::InProgress, state),
            };
        }
        let unknown =
            |reason| matches!(reason, ClaimReason::ClassUnresolved | ClaimReason::NoRule | ClaimReason::NoEnvironment);
        if let Some((reason, message)) = self.outcome.problem.as_ref().filter(|(reason, _)| unknown(*reason))
            && !self.entries.is_empty()
        {
            return (true, *reason, format!("stays at {}: {message}", self.backend));
        }
        let choice = self.outcome.decision.as_ref().map(|d| &d.choice);
        if let (Some(Choice::Stay { at, .. }), Some(Blocked::TemplateInvalid(why))) = (choice, &self.outcome.blocked) {
            return (true, ClaimReason::TemplateInvalid, format!("stays at {at} with the document it has: {why}"));
        }
        if let Some(Choice::Stay { why: StayWhy::NoCandidate, at }) = choice {
            let tightest = self.outcome.decision.as_ref().and_then(|d| d.explanation.tightest.as_ref());
            let why = tightest.map_or("there is no other backend", |t| t.message.as_str());
            return (true, ClaimReason::NoCandidate, format!("stays at {at}, which no longer does: {why}"));
        }
        let Some((Choice::Move { from, to, .. }, blocked)) = choice.zip(self.outcome.blocked.as_ref()) else {
            return (false, ClaimReason::Settled, String::new());
        };
        let reason = match blocked {
            Blocked::AwaitingApproval => ClaimReason::AwaitingApproval,
            Blocked::EmptyNotAllowed => ClaimReason::EmptyNotAllowed,
            Blocked::TemplateInvalid(_) => ClaimReason::TemplateInvalid,
            Blocked::RolledBack => ClaimReason::RolledBack,
            Blocked::Moving => ClaimReason::InProgress,
        };
        let plan = self.pending_plan().filter(|_| *blocked == Blocked::AwaitingApproval);
        let plan = plan.map(|(class, digest)| {
            format!("; to agree, set spec.approvedSwap of EnvironmentClass {class} to {digest}")
        });
        let past = self.last.filter(|_| *blocked == Blocked::RolledBack).map(|last| format!("; why: {}", last.why));
        let note = plan.or(past).unwrap_or_default();
        (true, reason, format!("{from} -> {to}: {blocked}{note}"))
    }

    fn pending_plan(&self) -> Option<(String, String)> {
        let class = self.decided.class_of.get(&self.outcome.environment)?;
        let stored = self.view.classes.iter().find(|c| c.name() == class.name())?;
        let digest = stored.status.as_ref().map(|s| s.pending_plan.clone()).filter(|digest| !digest.is_empty())?;
        Some((class.name().to_owned(), digest))
    }

    /// Which binding is not ready, and what its agent says.
    fn waiting(&self) -> String {
        let Some(carried) = self.entries.iter().find(|c| !is_ready(c)) else { return String::new() };
        let said = entry_status(carried).map(|s| s.message.as_str()).filter(|message| !message.is_empty());
        let said = said.unwrap_or("its agent has not said that all sidecars have it");
        format!("CapabilityBinding {}: {said}", carried.binding.key())
    }
}

fn namespace(outcome: &ClaimOutcome) -> &str {
    outcome.claim.split('/').next().unwrap_or_default()
}

fn not_ready(backend: &CapabilityBackend) -> Option<(BackendReason, String)> {
    let conditions = &backend.status.as_ref()?.conditions;
    let ready = conditions.iter().find(|c| c.kind == BackendConditionType::Ready)?;
    (ready.status == ConditionStatus::False).then(|| (ready.reason, ready.message.clone()))
}

/// What people hear when a claim changes its phase.
fn phase_news(
    claim: &CapabilityClaim,
    before: &CapabilityClaimStatus,
    after: &CapabilityClaimStatus,
    now: Timestamp,
) -> Vec<News> {
    let mut news = Vec::new();
    let was_bound = !before.backend.is_empty();
    if !was_bound && !after.backend.is_empty() {
        let made = claim.metadata.creation_timestamp.as_ref().map(|at| now.duration_since(at.0).as_secs_f64());
        news.extend(made.filter(|seconds| *seconds >= 0.0).map(News::Bound));
        let note = format!("served by CapabilityBackend {}", after.backend);
        news.push(News::event(claim, EventType::Normal, "Bound", "Bind", note));
    }
    if before.phase != after.phase {
        let reason = match after.phase {
            Some(ClaimPhase::Pending) => "Pending",
            Some(ClaimPhase::Degraded) => "Degraded",
            Some(ClaimPhase::Lost) => "Lost",
            _ => return news,
        };
        let ready = after.conditions.iter().find(|c| c.kind == ClaimConditionType::Ready);
        let note = ready.map(|c| c.message.clone()).unwrap_or_default();
        news.push(News::event(claim, EventType::Warning, reason, "Decide", note));
    }
    let pending = |status: &CapabilityClaimStatus| {
        let condition = status.conditions.iter().find(|c| c.kind == ClaimConditionType::SwapPending);
        condition.filter(|c| c.status == ConditionStatus::True).map(|c| (c.reason, c.message.clone()))
    };
    let asks = |reason: &ClaimReason| matches!(reason, ClaimReason::AwaitingApproval | ClaimReason::EmptyNotAllowed);
    if let Some((reason, message)) = pending(after).filter(|(reason, _)| asks(reason))
        && pending(before).is_none_or(|(before, _)| before != reason)
    {
        let reason = if reason == ClaimReason::AwaitingApproval { "AwaitingApproval" } else { "EmptyNotAllowed" };
        news.push(News::event(claim, EventType::Normal, reason, "Swap", message));
    }
    news
}
