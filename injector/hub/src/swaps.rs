//! Moves of one entry: how they begin, go on and end.

use jiff::{SignedDuration, Timestamp};
use mecha_decide::secret_name;
use mecha_decide::swap::{Gate, Report, Side, Step, Swap, Wish, step};
use mecha_resources::kinds::{
    BindingEntry, BindingEntryStatus, ClaimMove, MoveCounts, MoveOutcome, Span, SwapPhase, SwapRecord, SwapStrategy,
};
use serde_json::Value;

use crate::conditions::{exact, text};
use crate::traces::trace_id;

/// When a move stops and asks where its class names no deadline.
const DEADLINE: SignedDuration = SignedDuration::from_hours(1);

/// What begins.
pub(crate) struct Start<'a> {
    pub(crate) from: &'a BindingEntry,
    pub(crate) strategy: SwapStrategy,
    pub(crate) deadline: Option<Span>,
    pub(crate) why: String,
    pub(crate) cause: String,
    /// Trace context of the decision.
    pub(crate) traceparent: Option<String>,
}

/// `entry` names the new backend already; from here on it carries both.
pub(crate) fn begin(entry: &mut BindingEntry, start: Start<'_>, now: Timestamp) {
    let length = start.deadline.and_then(|span| SignedDuration::try_from(span.0).ok()).unwrap_or(DEADLINE);
    entry.previous_document = Some(start.from.document.clone());
    entry.swap = Some(SwapRecord {
        from: start.from.backend.clone(),
        to: entry.backend.clone(),
        strategy: start.strategy,
        phase: SwapPhase::Prepare,
        // Receipts are told apart by it, and a move to a backend and back may take less than a second.
        started_at: exact(now),
        deadline: now.checked_add(length).ok().map(text),
        why: start.why,
        cause: start.cause,
        traceparent: start.traceparent,
    });
}

/// What becomes of a move now.
#[derive(Debug, PartialEq)]
pub(crate) enum Progress {
    /// It waits.
    Waits,
    /// It has gone on to this phase.
    Went(SwapPhase),
    /// It has ended, with this receipt.
    Ended(Box<ClaimMove>),
}

/// Takes the next step of the move in `entry`, if there is one to take.
pub(crate) fn go_on(
    entry: &mut BindingEntry,
    cluster: &str,
    status: Option<&BindingEntryStatus>,
    wish: Wish,
    now: Timestamp,
) -> Progress {
    let Some(record) = &entry.swap else { return Progress::Waits };
    let swap = Swap {
        strategy: record.strategy,
        phase: record.phase,
        revision: entry.revision,
        deadline_ms: deadline(record).map(milliseconds),
    };
    match step(&swap, &reports(entry, record, status), wish, milliseconds(now)) {
        Step::Wait(_) => Progress::Waits,
        Step::Go(phase) => {
            let back = (phase == SwapPhase::RollBack).then(|| taken_back(record, status, wish));
            if let Some(record) = &mut entry.swap {
                record.phase = phase;
                record.why.push_str(&back.map(|why| format!("; taken back: {why}")).unwrap_or_default());
            }
            Progress::Went(phase)
        }
        Step::End(side) => {
            let receipt = receipt(record, cluster, status, side, now);
            end(entry, side);
            Progress::Ended(Box::new(receipt))
        }
    }
}

/// What all sidecars together report, as the engine reads it. A report about another revision or phase says
/// nothing: then one sidecar has not answered.
fn reports(entry: &BindingEntry, record: &SwapRecord, status: Option<&BindingEntryStatus>) -> Vec<Report> {
    let current = status
        .and_then(|s| s.progress.as_ref())
        .filter(|p| p.revision == entry.revision && p.phase == Some(record.phase));
    let Some(progress) = current else {
        return vec![Report { revision: -1, reached: false, pending: 0, failed: false }];
    };
    if progress.total == 0 && progress.reached == 0 && progress.failed == 0 {
        return Vec::new();
    }
    // On the way back a sidecar where the new side never opened has nothing to go back from.
    let back = record.phase == SwapPhase::RollBack;
    let there = progress.reached.saturating_add(if back { progress.failed } else { 0 });
    vec![Report {
        revision: entry.revision,
        reached: there >= progress.total,
        pending: progress.pending,
        failed: progress.failed > 0,
    }]
}

fn taken_back(record: &SwapRecord, status: Option<&BindingEntryStatus>, wish: Wish) -> String {
    let failed = status.filter(|s| s.progress.as_ref().is_some_and(|p| p.failed > 0));
    match failed {
        _ if wish.abort => "somebody asked for it".to_owned(),
        Some(status) if !status.message.is_empty() => status.message.clone(),
        Some(_) => format!("sidecars cannot use {}", record.to),
        None => "its deadline passed before every sidecar was prepared".to_owned(),
    }
}

fn receipt(
    record: &SwapRecord,
    cluster: &str,
    status: Option<&BindingEntryStatus>,
    side: Side,
    now: Timestamp,
) -> ClaimMove {
    let progress = status.and_then(|s| s.progress.clone()).unwrap_or_default();
    ClaimMove {
        cluster: cluster.to_owned(),
        from: record.from.clone(),
        to: record.to.clone(),
        strategy: record.strategy,
        started_at: record.started_at.clone(),
        ended_at: text(now),
        outcome: if side == Side::New { MoveOutcome::Completed } else { MoveOutcome::RolledBack },
        why: record.why.clone(),
        cause: record.cause.clone(),
        trace: trace_id(record.traceparent.as_deref()),
        sidecars: progress.total,
        counts: progress.counts.unwrap_or_default(),
    }
}

/// One side alone is left.
fn end(entry: &mut BindingEntry, side: Side) {
    let Some(record) = entry.swap.take() else { return };
    let previous = entry.previous_document.take();
    if let (Side::Old, Some(document)) = (side, previous) {
        entry.backend = record.from;
        entry.revision = revision_of(&document).unwrap_or(entry.revision);
        entry.document = document;
    }
}

/// The revision at which a document was made: it names the Secret that the document refers to.
fn revision_of(document: &str) -> Option<i64> {
    let document: Value = serde_json::from_str(document).ok()?;
    document.pointer("/metadata/annotations/mecha.dev~1revision")?.as_str()?.parse().ok()
}

/// When the move stops and asks.
pub(crate) fn deadline(record: &SwapRecord) -> Option<Timestamp> {
    record.deadline.as_deref()?.parse().ok()
}

/// Who has the claim while it moves.
pub(crate) fn owner(entry: &BindingEntry) -> &str {
    match &entry.swap {
        Some(record) if old_owns(record.phase) => &record.from,
        _ => &entry.backend,
    }
}

const fn old_owns(phase: SwapPhase) -> bool {
    matches!(phase, SwapPhase::Prepare | SwapPhase::RollBack)
}

/// The Secret with the credentials of who has the claim; `None` when there are none.
pub(crate) fn secret(entry: &BindingEntry) -> Option<String> {
    let old = entry.swap.as_ref().is_some_and(|record| old_owns(record.phase));
    let previous = entry.previous_document.as_deref().filter(|_| old);
    let document = previous.unwrap_or(&entry.document);
    let revision = if previous.is_some() { revision_of(document)? } else { entry.revision };
    document.contains("\"secretKeyRef\"").then(|| secret_name(&entry.claim, revision))
}

/// How far a move has come, and what it waits for.
pub(crate) fn state(entry: &BindingEntry, status: Option<&BindingEntryStatus>, wish: Wish, now: Timestamp) -> String {
    let Some(record) = &entry.swap else { return String::new() };
    let swap = Swap {
        strategy: record.strategy,
        phase: record.phase,
        revision: entry.revision,
        deadline_ms: deadline(record).map(milliseconds),
    };
    let reports = reports(entry, record, status);
    let waits = match step(&swap, &reports, wish, milliseconds(now)) {
        Step::Wait(Gate::Pending(pending)) => format!("{pending} calls or messages are left at the old side"),
        Step::Wait(Gate::Person) => "it waits for a person".to_owned(),
        Step::Wait(Gate::Sidecars { .. }) if reports.iter().any(|r| r.revision < 0) => {
            "the agent has not reported about this phase yet".to_owned()
        }
        Step::Wait(Gate::Sidecars { .. }) => {
            let progress = status.and_then(|s| s.progress.clone()).unwrap_or_default();
            format!("{}/{} sidecars are there", progress.reached, progress.total)
        }
        Step::Go(_) | Step::End(_) => "it goes on".to_owned(),
    };
    format!("{} -> {}, {} ({}): {waits}", record.from, record.to, record.phase, record.strategy)
}

/// A receipt in words.
pub(crate) fn receipt_text(receipt: &ClaimMove) -> String {
    let MoveCounts { in_flight, finished, redelivered, failed } = receipt.counts;
    let ended = match receipt.outcome {
        MoveOutcome::Completed => "moved",
        MoveOutcome::RolledBack => "taken back",
    };
    format!(
        "{} -> {} {ended} in {} ({}, {} sidecars): {in_flight} in flight, {finished} finished, {redelivered} \
         redelivered, {failed} failed, no data copied; {}",
        receipt.from, receipt.to, receipt.cluster, receipt.strategy, receipt.sidecars, receipt.why
    )
}

pub(crate) fn milliseconds(at: Timestamp) -> u64 {
    u64::try_from(at.as_millisecond()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mecha_resources::kinds::{Access, EntryProgress, Role};
    use std::time::Duration;

    fn document(revision: i64, name: &str) -> String {
        format!(
            r#"{{"metadata":{{"name":"events","annotations":{{"mecha.dev/revision":"{revision}","mecha.dev/backend":"{name}"}}}},"spec":{{"metadata":[{{"name":"a","secretKeyRef":{{"name":"mecha-events-r{revision}","key":"a"}}}}]}}}}"#
        )
    }

    fn entry(backend: &str, revision: i64) -> BindingEntry {
        BindingEntry {
            claim: "events".to_owned(),
            backend: backend.to_owned(),
            role: Role::Active,
            fencing_epoch: 0,
            access: Access::ReadWrite,
            revision,
            swap: None,
            document: document(revision, backend),
            previous_document: None,
        }
    }

    fn moving(deadline: Option<Span>) -> (BindingEntry, BindingEntry) {
        moving_since(deadline, Timestamp::UNIX_EPOCH)
    }

    fn moving_since(deadline: Option<Span>, now: Timestamp) -> (BindingEntry, BindingEntry) {
        let (old, mut new) = (entry("kafka", 3), entry("streams", 8));
        let start = Start {
            from: &old,
            strategy: SwapStrategy::Drain,
            deadline,
            why: "the class".to_owned(),
            cause: String::new(),
            traceparent: None,
        };
        begin(&mut new, start, now);
        (old, new)
    }

    #[test]
    fn moves_of_one_second_are_told_apart() {
        let began = |at: &str| {
            let (_, entry) = moving_since(None, at.parse().unwrap());
            entry.swap.unwrap().started_at
        };
        assert_eq!(began("2026-11-22T11:36:38.1181403Z"), "2026-11-22T11:36:38.118140Z");
        assert_ne!(began("2026-11-22T11:36:38.118Z"), began("2026-11-22T11:36:38.984Z"));
    }

    fn says(entry: &BindingEntry, edit: impl FnOnce(&mut EntryProgress)) -> BindingEntryStatus {
        let phase = entry.swap.as_ref().map(|record| record.phase);
        let mut progress =
            EntryProgress { revision: entry.revision, phase, total: 3, reached: 3, ..EntryProgress::default() };
        edit(&mut progress);
        BindingEntryStatus { claim: "events".to_owned(), progress: Some(progress), ..BindingEntryStatus::default() }
    }

    fn go(entry: &mut BindingEntry, status: Option<&BindingEntryStatus>) -> Progress {
        go_on(entry, "local", status, Wish::default(), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn who_has_the_claim_has_its_secret_too() {
        let (_, mut entry) = moving(None);
        for (phase, has, name) in [
            (SwapPhase::Prepare, "kafka", "mecha-events-r3"),
            (SwapPhase::Switch, "streams", "mecha-events-r8"),
            (SwapPhase::Paused, "streams", "mecha-events-r8"),
            (SwapPhase::RollBack, "kafka", "mecha-events-r3"),
        ] {
            entry.swap.as_mut().unwrap().phase = phase;
            assert_eq!((owner(&entry), secret(&entry).as_deref()), (has, Some(name)), "{phase}");
        }
    }

    #[test]
    fn what_is_not_about_this_phase_says_nothing() {
        let (_, mut entry) = moving(None);
        let unchanged = entry.clone();
        let older = says(&entry, |p| p.revision = 3);
        let other = says(&entry, |p| p.phase = Some(SwapPhase::Switch));
        let silent = BindingEntryStatus { claim: "events".to_owned(), ready: true, ..BindingEntryStatus::default() };
        for status in [None, Some(&older), Some(&other), Some(&silent)] {
            assert_eq!(go(&mut entry, status), Progress::Waits);
            assert_eq!(entry, unchanged);
        }
        // Nobody in scope is nobody to wait for.
        let nobody = says(&entry, |p| (p.total, p.reached) = (0, 0));
        assert_eq!(go(&mut entry, Some(&nobody)), Progress::Went(SwapPhase::Switch));
    }

    #[test]
    fn on_the_way_back_nobody_waits_for_a_sidecar_that_never_opened_the_new_side() {
        let (old, mut entry) = moving(Some(Span(Duration::from_secs(60))));
        let broken = says(&entry, |p| (p.reached, p.failed) = (1, 1));
        assert_eq!(go(&mut entry, Some(&broken)), Progress::Went(SwapPhase::RollBack));
        let some = says(&entry, |p| (p.reached, p.failed) = (1, 1));
        assert_eq!(go(&mut entry, Some(&some)), Progress::Waits, "one has not answered");
        let rest = says(&entry, |p| (p.reached, p.failed) = (2, 1));
        let Progress::Ended(receipt) = go(&mut entry, Some(&rest)) else { panic!("it has ended") };
        assert_eq!((receipt.outcome, receipt.sidecars), (MoveOutcome::RolledBack, 3));
        assert_eq!(entry, old, "byte for byte, and with the Secret of that revision");
    }
}
