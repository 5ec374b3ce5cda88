//! The receipt of a move: one for all its phases.

use jiff::Timestamp;
use mecha_resources::kinds::SwapPhase;
use serde::Serialize;
use tokio::time::Instant;

use super::{Drained, Outcome, Pending, ms};

/// A move between two backends that a control part leads through its phases.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MoveRecord {
    /// The old backend.
    pub from: String,
    /// The new backend.
    pub to: String,
    /// The phases that this sidecar has seen, in order. One that came again is there again.
    pub phases: Vec<PhaseRecord>,
}

/// One phase of a move at this sidecar.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PhaseRecord {
    /// Its name.
    pub phase: SwapPhase,
    /// When it reached this sidecar, RFC 3339.
    pub time: String,
    /// How long it lasted, or lasts so far as was last looked, ms.
    pub duration_ms: f64,
    /// What was in flight, or not read, at the side without new work, when last looked.
    pub pending: u64,
}

/// Most phases kept of one move; one that goes to and fro for longer keeps the last.
const MOST_PHASES: usize = 64;

impl Pending {
    /// The change is a move.
    pub fn moving(&mut self, from: &str, to: &str) {
        let Some(receipt) = &mut self.receipt else { return };
        receipt.outcome = Outcome::Preparing;
        receipt.moving = Some(MoveRecord { from: from.to_owned(), to: to.to_owned(), phases: Vec::new() });
        self.number();
    }

    /// The move is in this phase, and this much is left at the side without new work.
    pub fn phase(&mut self, phase: SwapPhase, pending: u64) {
        let Some(record) = self.receipt.as_mut().and_then(|r| r.moving.as_mut()) else { return };
        let now = Instant::now();
        if let Some(last) = record.phases.last_mut() {
            last.duration_ms = ms(now.saturating_duration_since(self.phase_began));
            if last.phase == phase {
                last.pending = pending;
                return self.show();
            }
        }
        if record.phases.len() >= MOST_PHASES {
            record.phases.remove(0);
        }
        record.phases.push(PhaseRecord { phase, time: Timestamp::now().to_string(), duration_ms: 0.0, pending });
        self.phase_began = now;
        self.show();
    }

    /// New work goes to the other side since `began`.
    pub fn gave(&mut self, to_new: bool, in_flight: u64, began: Instant) {
        let Some(receipt) = &mut self.receipt else { return };
        receipt.outcome = if to_new { Outcome::Draining } else { Outcome::Preparing };
        receipt.in_flight = receipt.in_flight.max(in_flight);
        receipt.switch_ms = ms(began.elapsed());
        self.show();
    }

    /// The move has ended where it began.
    pub fn rolled_back(mut self, drained: Drained, why: Option<String>) {
        if let Some(receipt) = &mut self.receipt {
            receipt.reason = why;
        }
        self.end(drained, Outcome::RolledBack);
    }

    fn number(&mut self) {
        if let Some(receipt) = &mut self.receipt
            && receipt.generation == 0
        {
            receipt.generation = self.owner.next_generation();
        }
        self.show();
    }

    fn show(&self) {
        if let Some(receipt) = &self.receipt {
            self.owner.keep(receipt.clone());
        }
    }
}
