//! `mecha.v1.Sidecar`: what the incumbent does not have.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mecha_core::Core;
use mecha_core::health::Phase;
use mecha_core::metadata::DocumentsFrom;
use mecha_core::store::NotRunning;
use mecha_core::swap::{Change, MoveRecord, Outcome, PhaseRecord, Receipt, Refused};
use mecha_proto::sidecar as wire;
use mecha_proto::sidecar::sidecar_server::Sidecar;
use tonic::{Request, Response, Status};

use super::api::Entry;
use crate::phases;

/// Name of the service.
pub(super) const SERVICE: &str = "mecha.v1.Sidecar";
/// Its API as allow and deny lists name it, as over HTTP.
pub(super) const ENTRY: Entry = Entry { api: "mecha", version: "v1" };

/// The service over one runtime.
#[derive(Debug)]
pub(super) struct MechaApi(pub(super) Arc<Core>);

#[tonic::async_trait]
impl Sidecar for MechaApi {
    async fn get_phase(&self, _: Request<wire::GetPhaseRequest>) -> Result<Response<wire::GetPhaseResponse>, Status> {
        let core = &self.0;
        Ok(Response::new(wire::GetPhaseResponse {
            phase: phase(core.health.phase()).into(),
            degraded: core.store.degraded().into_iter().map(degraded).collect(),
            refused: core.swaps.refused().into_iter().map(refused).collect(),
            documents: core.metadata.documents().map(documents),
        }))
    }

    async fn list_swaps(
        &self,
        _: Request<wire::ListSwapsRequest>,
    ) -> Result<Response<wire::ListSwapsResponse>, Status> {
        let swaps = &self.0.swaps;
        Ok(Response::new(wire::ListSwapsResponse {
            generation: swaps.generation(),
            swaps: swaps.list().into_iter().map(receipt).collect(),
            refused: swaps.refused().into_iter().map(refused).collect(),
        }))
    }
}

fn phase(phase: Phase) -> wire::SidecarPhase {
    match phase {
        Phase::Starting => wire::SidecarPhase::Starting,
        Phase::Ready => wire::SidecarPhase::Ready,
        Phase::Draining => wire::SidecarPhase::Draining,
        Phase::Drained => wire::SidecarPhase::Drained,
        Phase::Stopped => wire::SidecarPhase::Stopped,
    }
}

fn degraded(component: NotRunning) -> wire::DegradedComponent {
    wire::DegradedComponent { name: component.name, r#type: component.kind, cause: component.cause }
}

fn refused(document: Refused) -> wire::RefusedDocument {
    wire::RefusedDocument { kind: document.kind.to_owned(), name: document.name, reason: document.reason }
}

fn documents(from: DocumentsFrom) -> wire::DocumentsFrom {
    wire::DocumentsFrom {
        source: from.source.to_owned(),
        connected: from.connected,
        time: from.time.as_deref().and_then(time),
        snapshot: from.snapshot.as_deref().and_then(time),
        snapshot_refused: from.snapshot_refused.unwrap_or_default(),
    }
}

fn receipt(receipt: Receipt) -> wire::SwapReceipt {
    let change = match receipt.change {
        Change::Added => wire::DocumentChange::Added,
        Change::Updated => wire::DocumentChange::Updated,
        Change::Removed => wire::DocumentChange::Removed,
    };
    let outcome = match receipt.outcome {
        Outcome::Preparing => wire::SwapOutcome::Preparing,
        Outcome::Draining => wire::SwapOutcome::Draining,
        Outcome::Applied => wire::SwapOutcome::Applied,
        Outcome::CutOff => wire::SwapOutcome::CutOff,
        Outcome::RolledBack => wire::SwapOutcome::RolledBack,
        Outcome::Refused => wire::SwapOutcome::Refused,
        Outcome::Failed => wire::SwapOutcome::Failed,
    };
    wire::SwapReceipt {
        generation: receipt.generation,
        time: time(&receipt.time),
        kind: receipt.kind.to_owned(),
        name: receipt.name,
        change: change.into(),
        from: receipt.from.unwrap_or_default(),
        to: receipt.to.unwrap_or_default(),
        outcome: outcome.into(),
        in_flight: receipt.in_flight,
        finished: receipt.finished,
        redelivered: receipt.redelivered,
        failed: receipt.failed,
        switch_time: lasting(receipt.switch_ms),
        total_time: lasting(receipt.duration_ms),
        data_moved: receipt.data_moved,
        emptied: receipt.emptied,
        r#move: receipt.moving.map(moving),
        reason: receipt.reason.unwrap_or_default(),
    }
}

fn moving(record: MoveRecord) -> wire::SwapMove {
    let phase = |record: PhaseRecord| wire::SwapMovePhase {
        phase: phases::to_wire(record.phase).into(),
        time: time(&record.time),
        duration: lasting(record.duration_ms),
        pending: record.pending,
    };
    wire::SwapMove { from: record.from, to: record.to, phases: record.phases.into_iter().map(phase).collect() }
}

fn time(rfc3339: &str) -> Option<prost_types::Timestamp> {
    let time: Timestamp = rfc3339.parse().ok()?;
    Some(prost_types::Timestamp { seconds: time.as_second(), nanos: time.subsec_nanosecond() })
}

/// Receipts count milliseconds in thousandths.
fn lasting(ms: f64) -> Option<prost_types::Duration> {
    Duration::try_from_secs_f64(ms / 1e3).ok()?.try_into().ok()
}
