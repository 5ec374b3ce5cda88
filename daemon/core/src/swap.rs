//! Receipts of changes: what was switched, what was in flight, how it ended.

mod moves;
mod reading;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::metrics::{Metric, Metrics};
pub use moves::{MoveRecord, PhaseRecord};
pub(crate) use reading::Reader;
pub use reading::{Cut, Patience};

/// Receipts that are kept; older ones are in the log only.
const KEPT: usize = 256;

/// What happened to a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// It is new.
    Added,
    /// Its content, or a secret in it, is another.
    Updated,
    /// It is gone.
    Removed,
}

/// How far a change is, and how it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// A move whose new side is open and has no new work, or not any more.
    Preparing,
    /// Callers meet the new one; what began on the old one still runs.
    Draining,
    /// Done: everything that began on the old one has ended.
    Applied,
    /// Done, and some of what was in flight did not end in time.
    CutOff,
    /// A move that went back to where it came from.
    RolledBack,
    /// Not done: the old one, if there was one, goes on.
    Refused,
    /// Not done: there is no old one to go on with, or the mode does not keep it.
    Failed,
}

impl Outcome {
    const fn label(self) -> &'static str {
        match self {
            Self::Preparing => "preparing",
            Self::RolledBack => "rolled_back",
            Self::Draining => "draining",
            Self::Applied => "applied",
            Self::CutOff => "cut_off",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// What became of the work that an old instance had in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Calls and events in flight at the switch.
    pub in_flight: u64,
    /// Of these, ended by themselves.
    pub finished: u64,
    /// Events that went back to the old broker since, to be delivered again.
    pub redelivered: u64,
    /// Cut off when the time was over.
    pub failed: u64,
    /// Whether the old broker had nothing more to deliver; `None` where nothing is read.
    pub emptied: Option<bool>,
    /// Why it was left before that.
    pub cut: Option<Cut>,
}

impl Drained {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let emptied = match (self.emptied, other.emptied) {
            (Some(a), Some(b)) => Some(a && b),
            (a, b) => a.or(b),
        };
        Self {
            in_flight: self.in_flight + other.in_flight,
            finished: self.finished + other.finished,
            redelivered: self.redelivered + other.redelivered,
            failed: self.failed + other.failed,
            emptied,
            cut: self.cut.or(other.cut),
        }
    }
}

/// One change. Durations are milliseconds.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Receipt {
    /// Grows by one with each change of this process.
    pub generation: u64,
    /// When the change was begun, RFC 3339.
    pub time: String,
    /// Kind of the document.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What happened to it.
    pub change: Change,
    /// Type and version before.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Type and version after.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// See [`Outcome`].
    pub outcome: Outcome,
    /// Calls and events in flight at the switch.
    pub in_flight: u64,
    /// Of these, ended by themselves.
    pub finished: u64,
    /// Events that the old broker delivers again.
    pub redelivered: u64,
    /// Cut off.
    pub failed: u64,
    /// From the begin of the change until callers met the new one.
    pub switch_ms: f64,
    /// From the begin of the change until the old one was closed.
    pub duration_ms: f64,
    /// Stores only: whether data was carried over. It never is by an edit of a document.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data_moved: Option<bool>,
    /// Brokers only: whether the old one was read until it was empty.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub emptied: Option<bool>,
    /// Moves that a control part leads: its phases at this sidecar.
    #[serde(rename = "move", skip_serializing_if = "Option::is_none")]
    pub moving: Option<MoveRecord>,
    /// Why it was not done, or what to know about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A document that is not in force as it stands.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Refused {
    /// Kind of the document.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// Why.
    pub reason: String,
}

/// All receipts, and what is refused at the moment.
#[derive(Debug)]
pub struct Swaps {
    metrics: Arc<Metrics>,
    log: ArcSwap<Log>,
    refused: Mutex<BTreeMap<(&'static str, String), String>>,
}

/// The receipts of a process, over all its runtimes: a change ends in another one than it began in where its old
/// broker is still read when the runtime is replaced.
#[derive(Debug, Default)]
struct Log {
    generation: AtomicU64,
    kept: Mutex<VecDeque<Receipt>>,
}

/// A change that is under way. Dropped without an end it counts as failed.
#[derive(Debug)]
#[must_use = "a change has to end"]
pub struct Pending {
    owner: Arc<Swaps>,
    began: Instant,
    /// Of a move: when its present phase reached this sidecar.
    phase_began: Instant,
    receipt: Option<Receipt>,
}

/// What a change is about.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Kind of the document.
    pub kind: &'static str,
    /// Its name.
    pub name: String,
    /// What happened to it.
    pub change: Change,
    /// Type and version before.
    pub from: Option<String>,
    /// Type and version after.
    pub to: Option<String>,
}

impl Swaps {
    /// No changes yet.
    #[must_use]
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { metrics, log: ArcSwap::default(), refused: Mutex::default() }
    }

    /// Shares the receipts of another one, when a runtime replaces another.
    pub fn succeed(&self, before: &Self) {
        self.log.store(before.log.load_full());
    }

    /// Number of the latest change.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.log.load().generation.load(Ordering::Relaxed)
    }

    fn next_generation(&self) -> u64 {
        self.log.load().generation.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// The receipts that are kept, oldest first.
    #[must_use]
    pub fn list(&self) -> Vec<Receipt> {
        self.log.load().kept.lock().iter().cloned().collect()
    }

    /// Documents that are not in force as they stand.
    #[must_use]
    pub fn refused(&self) -> Vec<Refused> {
        let refused = self.refused.lock();
        refused
            .iter()
            .map(|((kind, name), reason)| Refused { kind, name: name.clone(), reason: reason.clone() })
            .collect()
    }

    /// Begins a change.
    pub fn begin(self: &Arc<Self>, subject: Subject) -> Pending {
        let Subject { kind, name, change, from, to } = subject;
        let receipt = Receipt {
            generation: 0,
            time: Timestamp::now().to_string(),
            kind,
            name,
            change,
            from,
            to,
            outcome: Outcome::Draining,
            in_flight: 0,
            finished: 0,
            redelivered: 0,
            failed: 0,
            switch_ms: 0.0,
            duration_ms: 0.0,
            data_moved: None,
            emptied: None,
            moving: None,
            reason: None,
        };
        let began = Instant::now();
        Pending { owner: self.clone(), began, phase_began: began, receipt: Some(receipt) }
    }

    /// Notes that a document is not in force as it stands. `true` when that is news.
    pub fn refuse(&self, kind: &'static str, name: &str, reason: &str) -> bool {
        let mut refused = self.refused.lock();
        let news = refused.insert((kind, name.to_owned()), reason.to_owned()).as_deref() != Some(reason);
        self.gauge(&refused);
        news
    }

    /// Notes that a document is in force, or gone.
    pub fn accept(&self, kind: &'static str, name: &str) {
        let mut refused = self.refused.lock();
        if refused.remove(&(kind, name.to_owned())).is_some() {
            self.gauge(&refused);
        }
    }

    fn gauge(&self, refused: &BTreeMap<(&'static str, String), String>) {
        for kind in KINDS {
            let count = refused.keys().filter(|(k, _)| k == kind).count();
            self.metrics.gauge(Metric::ReloadRefused, &[kind]).set(count as f64);
        }
    }

    fn keep(&self, receipt: Receipt) {
        let log = self.log.load();
        let mut kept = log.kept.lock();
        if let Some(slot) = kept.iter_mut().rev().find(|r| r.generation == receipt.generation) {
            *slot = receipt;
            return;
        }
        if kept.len() >= KEPT {
            kept.pop_front();
        }
        kept.push_back(receipt);
    }

    fn count(&self, receipt: &Receipt) {
        let metrics = &self.metrics;
        metrics.counter(Metric::SwapTotal, &[receipt.kind, receipt.outcome.label()]).inc();
        for (result, n) in
            [("failed", receipt.failed), ("finished", receipt.finished), ("redelivered", receipt.redelivered)]
        {
            if n > 0 {
                metrics.counter(Metric::SwapInFlightTotal, &[receipt.kind, result]).add(n);
            }
        }
    }
}

/// Kinds of documents in labels.
const KINDS: &[&str] = &["Component", "Configuration", "HTTPEndpoint", "Resiliency", "Subscription"];

impl Pending {
    /// What the change is about, to be completed on the way.
    pub fn receipt(&mut self) -> Option<&mut Receipt> {
        self.receipt.as_mut()
    }

    /// Callers meet the new one from now on.
    pub fn switched(&mut self, in_flight: u64) {
        let elapsed = self.began.elapsed();
        let Some(receipt) = &mut self.receipt else { return };
        if receipt.generation == 0 {
            receipt.generation = self.owner.next_generation();
        }
        receipt.switch_ms = ms(elapsed);
        receipt.duration_ms = receipt.switch_ms;
        receipt.in_flight = in_flight;
        self.owner.metrics.histogram(Metric::SwapLatencies, &[receipt.kind]).record_ms(elapsed);
        self.owner.keep(receipt.clone());
    }

    /// The old one is closed.
    pub fn ended(self, drained: Drained) {
        self.end(drained, if drained.failed > 0 { Outcome::CutOff } else { Outcome::Applied });
    }

    /// The old one is closed, before its time.
    pub fn cut_off(self, drained: Drained) {
        self.end(drained, Outcome::CutOff);
    }

    fn end(mut self, drained: Drained, outcome: Outcome) {
        let Some(mut receipt) = self.receipt.take() else { return };
        receipt.outcome = outcome;
        receipt.in_flight = receipt.in_flight.max(drained.in_flight);
        receipt.finished = drained.finished;
        receipt.redelivered = drained.redelivered;
        receipt.failed = drained.failed;
        receipt.emptied = drained.emptied;
        receipt.duration_ms = ms(self.began.elapsed());
        if let Some(last) = receipt.moving.as_mut().and_then(|m| m.phases.last_mut()) {
            last.duration_ms = ms(self.phase_began.elapsed());
        }
        let types = match (&receipt.from, &receipt.to) {
            (None, None) => String::new(),
            (from, to) => {
                let text = |t: &Option<String>| t.as_deref().unwrap_or("nothing").to_owned();
                format!(" ({} -> {})", text(from), text(to))
            }
        };
        tracing::info!(
            target: "dapr.runtime.hotreload",
            "swap {} {}: {} {}{types} switched in {:.0} ms; in flight {}, finished {}, redelivered {}, cut off {}; \
             {:.0} ms in all",
            receipt.generation,
            receipt.outcome.label(),
            receipt.kind,
            receipt.name,
            receipt.switch_ms,
            receipt.in_flight,
            receipt.finished,
            receipt.redelivered,
            receipt.failed,
            receipt.duration_ms
        );
        self.owner.count(&receipt);
        self.owner.keep(receipt);
    }

    /// It was not done; `kept` says whether the old one goes on. Noted once for each reason.
    pub fn refused(mut self, reason: &str, kept: bool) {
        let Some(mut receipt) = self.receipt.take() else { return };
        receipt.outcome = if kept { Outcome::Refused } else { Outcome::Failed };
        receipt.reason = Some(reason.to_owned());
        receipt.duration_ms = ms(self.began.elapsed());
        if self.owner.refuse(receipt.kind, &receipt.name, reason) {
            if receipt.generation == 0 {
                receipt.generation = self.owner.next_generation();
            }
            self.owner.count(&receipt);
            self.owner.keep(receipt);
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        // Cut short by a stop: the receipt must not stay open.
        if let Some(mut receipt) = self.receipt.take()
            && receipt.generation != 0
        {
            receipt.outcome = Outcome::CutOff;
            receipt.duration_ms = ms(self.began.elapsed());
            self.owner.keep(receipt);
        }
    }
}

fn ms(d: Duration) -> f64 {
    (d.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swaps() -> Arc<Swaps> {
        Arc::new(Swaps::new(Arc::new(Metrics::disabled())))
    }

    fn subject(name: &str) -> Subject {
        let (from, to) = (Some("state.a/v1".to_owned()), Some("state.b/v1".to_owned()));
        Subject { kind: "Component", name: name.into(), change: Change::Updated, from, to }
    }

    #[test]
    fn a_receipt_is_seen_while_it_drains_and_once_it_ended() {
        let swaps = swaps();
        let mut pending = swaps.begin(subject("s"));
        assert!(swaps.list().is_empty());
        pending.switched(3);
        let seen = swaps.list();
        assert_eq!((seen[0].generation, seen[0].outcome, seen[0].in_flight), (1, Outcome::Draining, 3));
        pending.ended(Drained { in_flight: 3, finished: 2, failed: 1, ..Drained::default() });
        let seen = swaps.list();
        assert_eq!(seen.len(), 1);
        assert_eq!((seen[0].outcome, seen[0].finished, seen[0].failed), (Outcome::CutOff, 2, 1));
    }

    #[test]
    fn a_refusal_is_noted_once_for_each_reason_until_it_is_accepted() {
        let swaps = swaps();
        swaps.begin(subject("s")).refused("no such host", true);
        swaps.begin(subject("s")).refused("no such host", true);
        assert_eq!(swaps.list().len(), 1);
        assert_eq!(swaps.refused()[0].reason, "no such host");
        swaps.begin(subject("s")).refused("wrong password", true);
        assert_eq!((swaps.list().len(), swaps.generation()), (2, 2));
        swaps.accept("Component", "s");
        assert!(swaps.refused().is_empty());
    }

    #[test]
    fn only_the_last_receipts_are_kept() {
        let swaps = swaps();
        for n in 0..KEPT + 10 {
            let mut pending = swaps.begin(subject(&n.to_string()));
            pending.switched(0);
            pending.ended(Drained::default());
        }
        let kept = swaps.list();
        assert_eq!((kept.len(), kept[0].generation), (KEPT, 11));
        let json = serde_json::to_value(&kept[0]).unwrap();
        assert_eq!((json["name"].as_str(), json["outcome"].as_str()), (Some("10"), Some("applied")));
    }
}
