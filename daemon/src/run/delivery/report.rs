//! What became of a set: told to the agent, shown in metrics and to people.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use mecha_core::Tasks;
use mecha_core::loader::Standing;
use mecha_core::metadata::DocumentsFrom;
use mecha_core::metrics::Metric;
use mecha_proto::delivery as wire;
use mecha_resources::{Component, Resource};
use tokio::time::Instant;

use super::super::live::Live;
use super::super::runtime::Runtime;
use super::set::Received;
use super::spans::Applying;
use super::{Shared, Speaks};
use crate::phases;

/// How often is looked while something is on its way, and otherwise. A set that has come into force is looked at at
/// once.
const LOOK: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(1));
/// The same right after a set has come into force that asks for more than is there, and for how long: all sidecars of
/// a move wait for the slowest.
const FRESH: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Counts that change without anything else are told this often.
const COUNTS: Duration = Duration::from_secs(1);

/// Looks at what runs until `tasks` stop.
pub(super) fn start(tasks: &Tasks, shared: Arc<Shared>, live: Weak<Live>) {
    let stop = tasks.stopping().clone();
    let work = async move {
        let mut counted = 0;
        let mut applying = Applying::default();
        let mut told = Instant::now();
        let mut fresh = Instant::now();
        while let Some(live) = live.upgrade() {
            let runtime = live.load();
            drop(live);
            let applied = shared.applied.lock().clone();
            let report = applied.as_ref().and_then(|set| report(set, &runtime));
            let busy = report
                .as_ref()
                .is_some_and(|r| r.entries.iter().any(|e| !e.reached || e.phase != wire::Phase::Unspecified as i32));
            let on_its_way = report.as_ref().is_some_and(|r| r.entries.iter().any(|e| !e.reached && !e.failed));
            applying.look(&runtime.core.tracer, applied.as_deref(), report.as_ref());
            if let Some(report) = report
                && worth_telling(shared.report.borrow().as_ref(), &report, told.elapsed() >= COUNTS)
            {
                told = Instant::now();
                shared.report.send_replace(Some(report));
            }
            show(&shared, applied.as_deref(), &runtime, &mut counted);
            drop(runtime);
            let pause = if on_its_way && fresh.elapsed() < FRESH.1 {
                FRESH.0
            } else if busy {
                LOOK.0
            } else {
                LOOK.1
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = shared.look.notified() => fresh = Instant::now(),
            }
        }
    };
    tasks.spawn("agent reports", async move {
        tokio::select! {
            () = work => {}
            () = stop.cancelled() => {}
        }
    });
}

/// Whether a report says something that the agent acts on.
fn worth_telling(before: Option<&wire::Report>, now: &wire::Report, counts: bool) -> bool {
    let Some(before) = before else { return true };
    let rough = |report: &wire::Report| {
        let entry = |e: &wire::Entry| wire::Entry {
            pending: e.pending.min(1),
            in_flight_at_switch: 0,
            finished: 0,
            redelivered: 0,
            failed_calls: 0,
            ..e.clone()
        };
        (report.digest.clone(), report.entries.iter().map(entry).collect::<Vec<_>>())
    };
    if counts { before != now } else { rough(before) != rough(now) }
}

/// How the documents of a set stand; `None` while they are being applied.
fn report(set: &Received, runtime: &Runtime) -> Option<wire::Report> {
    let standing: BTreeMap<String, Standing> =
        runtime.loader.standing()?.into_iter().map(|s| (s.name.clone(), s)).collect();
    let refused = runtime.core.swaps.refused();
    let entries = set.entries.iter().map(|named| {
        let entry = wire::Entry {
            kind: named.kind.clone(),
            name: named.name.clone(),
            revision: named.revision,
            ..wire::Entry::default()
        };
        let failed = |message: &str| wire::Entry { failed: true, message: message.to_owned(), ..entry.clone() };
        if !named.unusable.is_empty() {
            return failed(&named.unusable);
        }
        let reason = refused.iter().find(|r| r.kind == named.kind && r.name == named.name).map(|r| r.reason.as_str());
        if named.kind != Component::KIND {
            return reason.map_or_else(|| wire::Entry { reached: true, ..entry.clone() }, failed);
        }
        let Some(standing) = standing.get(&named.name) else {
            return failed(reason.unwrap_or("the document cannot be used; the log of the sidecar says why"));
        };
        wire::Entry {
            phase: standing.phase.map(phases::to_wire).unwrap_or_default().into(),
            reached: standing.reached,
            pending: standing.pending,
            failed: standing.failed,
            message: standing.message.clone(),
            in_flight_at_switch: standing.in_flight_at_switch,
            finished: standing.finished,
            redelivered: standing.redelivered,
            failed_calls: standing.failed_calls,
            ..entry
        }
    });
    // The link fills in the number.
    Some(wire::Report { sequence: 0, digest: set.digest.clone(), entries: entries.collect() })
}

/// Shows where the documents come from, in metrics, metadata and the phase document.
fn show(shared: &Shared, applied: Option<&Received>, runtime: &Runtime, counted: &mut u64) {
    let metrics = &runtime.core.metrics;
    let connected = shared.connected.load(Ordering::Relaxed);
    let age = |at: SystemTime| at.elapsed().unwrap_or_default().as_secs_f64();
    let sets = shared.sets.load(Ordering::Relaxed);
    metrics.gauge(Metric::DeliveryConnected, &[]).set(f64::from(u8::from(connected)));
    metrics.counter(Metric::DeliverySetsTotal, &[]).add(sets - *counted);
    *counted = sets;
    if let Some(set) = applied {
        metrics.gauge(Metric::DeliverySetAge, &[]).set(age(set.at));
        metrics.gauge(Metric::DeliveryRestored, &[]).set(f64::from(u8::from(set.restored)));
        for (phase, count) in set.phases() {
            metrics.gauge(Metric::Moves, &[phase]).set(count as f64);
        }
    }
    let kept_at = *shared.kept_at.lock();
    if let Some(at) = kept_at {
        metrics.gauge(Metric::SnapshotAge, &[]).set(age(at));
    }
    let source = match (*shared.speaks.lock(), applied) {
        (Speaks::Operator, _) => "operator",
        (_, Some(set)) if set.restored => "snapshot",
        _ => "agent",
    };
    runtime.core.metadata.set_documents(DocumentsFrom {
        source,
        connected: connected || source == "operator",
        time: applied.map(|set| time(set.at)),
        snapshot: kept_at.map(time),
        snapshot_refused: shared.refused.lock().clone(),
    });
}

/// A time as text, RFC 3339.
pub(super) fn time(at: SystemTime) -> String {
    Timestamp::try_from(at).map_or_else(|_| "an unknown time".to_owned(), |t| format!("{t:.0}"))
}
