//! How far a component has come, for those who lead its move.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use mecha_resources::kinds::SwapPhase;

use super::super::Loader;
use super::super::exchange::{ATTACH, IDLE};
use super::super::instance::Parts;
use super::super::reconcile::{Entry, KIND};
use super::{FAILED_AFTER, SideTrouble, have};
use crate::sides::{Have, Side};

/// How a component stands to what is wanted of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// The phase of its move.
    pub phase: Option<SwapPhase>,
    /// What is open, and where work goes, is what is wanted.
    pub reached: bool,
    /// Calls in flight and unread messages at the side that new work does not go to. A broker that may
    /// hold more counts as one.
    pub pending: u64,
    /// It cannot be put into effect.
    pub failed: bool,
    /// Why not, without secrets.
    pub message: String,
    /// Calls and events in flight at the old side when new work went to the new one.
    pub in_flight_at_switch: u64,
    /// Of these, ended by themselves.
    pub finished: u64,
    /// Events that went back to the broker since, to be delivered again.
    pub redelivered: u64,
    /// Cut off.
    pub failed_calls: u64,
}

/// What is left at the side without new work.
#[derive(Debug, Default)]
pub(super) struct Rest {
    pub(super) in_flight: u64,
    pub(super) given_back: u64,
    pub(super) empty: bool,
    /// Whether all that should read from it does.
    pub(super) attached: bool,
    pub(super) cause: Option<Arc<str>>,
}

impl Rest {
    pub(super) fn pending(&self) -> u64 {
        self.in_flight + u64::from(!self.empty)
    }
}

impl Loader {
    pub(super) fn rest(&self, entry: &Entry, name: &str) -> Rest {
        let Some(beside) = &entry.sides.beside else { return Rest { empty: true, ..Rest::default() } };
        let silence = entry.sides.account.as_ref().map_or(IDLE, |a| a.silence);
        match &beside.instance.parts {
            Parts::PubSub(_) => {
                let reading = self.core.pubsub.manager().reading_beside(name, silence).unwrap_or_default();
                // Each subscription holds the instance, and so does what leads them.
                let in_flight = beside.calls(reading.subscriptions + 1) + reading.in_flight;
                let attached = reading.missing == 0;
                let (given_back, empty, cause) = (reading.given_back, reading.empty, reading.cause);
                Rest { in_flight, given_back, empty, attached, cause }
            }
            Parts::Binding { .. } => {
                let calls = beside.calls(0);
                let Some(state) = self.inputs.beside(name) else {
                    return Rest { in_flight: calls, empty: true, attached: true, ..Rest::default() };
                };
                Rest {
                    in_flight: calls + state.in_flight,
                    given_back: state.given_back,
                    empty: state.empty,
                    attached: state.settled,
                    cause: None,
                }
            }
            _ => Rest { in_flight: beside.calls(0), empty: true, attached: true, ..Rest::default() },
        }
    }

    /// How every wanted component stands. `None` while a set of documents is being applied.
    pub fn standing(&self) -> Option<Vec<Standing>> {
        let mut desired = self.desired.try_lock().ok()?;
        Some(desired.iter_mut().map(|(name, entry)| self.standing_of(name, entry)).collect())
    }

    pub(super) fn standing_of(&self, name: &str, entry: &mut Entry) -> Standing {
        let plain = entry.running.as_ref().is_some_and(|r| r.document == entry.document) && entry.trouble.is_none();
        let mut out = Standing { name: name.to_owned(), ..Standing::default() };
        out.phase = entry.moving.as_ref().map(|m| m.phase);
        let Some(phase) = out.phase.filter(|_| entry.sides.contents.is_some()) else {
            (out.reached, out.failed) = (plain, !plain);
            if !plain {
                let refused = self.core.swaps.refused().into_iter().find(|r| r.kind == KIND && r.name == name);
                let degraded = || self.core.store.snapshot().degraded.get(name).map(|d| d.cause.to_string());
                out.message = refused.map(|r| r.reason).or_else(degraded).unwrap_or_default();
            }
            return out;
        };
        let rest = self.rest(entry, name);
        let Have { owner, beside } = have(entry);
        let opened = entry.sides.beside.as_ref().map(|b| b.opened);
        let (old, new) = (entry.sides.old.as_ref(), entry.sides.new.as_ref());
        let closed = entry.sides.account.as_ref().and_then(|a| a.closing.clone());
        let closed = closed.is_none_or(|c| c.done.load(Ordering::Acquire));
        let late = opened.is_some_and(|at| at.elapsed() > ATTACH);
        (out.reached, out.pending) = match phase {
            // An old backend that is gone must not hold up the way out of it.
            SwapPhase::Prepare => {
                (beside == Some(Side::New) && rest.attached && (owner == Some(Side::Old) || old.is_some()), 0)
            }
            SwapPhase::Switch | SwapPhase::Drain | SwapPhase::Paused => {
                let unknown = beside.is_none() && old.is_some();
                (owner == Some(Side::New) && (beside == Some(Side::Old) || unknown), u64::from(unknown))
            }
            SwapPhase::Finalize => (owner == Some(Side::New) && beside.is_none() && closed, u64::from(!closed)),
            // What cannot be opened has taken no work here.
            SwapPhase::RollBack => (owner == Some(Side::Old) && (beside == Some(Side::New) || new.is_some()), 0),
        };
        if beside.is_some() {
            out.pending = rest.pending();
        }
        let stubborn = |t: &SideTrouble| t.trouble.lasting || t.trouble.tries >= FAILED_AFTER;
        let cause = match phase {
            SwapPhase::Prepare if new.is_none() && late && !rest.attached => {
                let why = rest.cause.as_deref().unwrap_or("no answer of the broker yet");
                Some((true, format!("its subscriptions are not in place: {why}")))
            }
            SwapPhase::Prepare => new.map(|t| (true, t.cause.clone())),
            // Going back is possible without it.
            SwapPhase::RollBack => new.map(|t| (false, t.cause.clone())),
            _ => new.map(|t| (stubborn(t), t.cause.clone())),
        };
        let cause = cause.or_else(|| old.map(|t| (false, format!("the old side does not open: {}", t.cause))));
        (out.failed, out.message) = cause.unwrap_or_default();
        if let Some(account) = &mut entry.sides.account {
            if beside == Some(Side::Old) && owner == Some(Side::New) {
                account.redelivered = rest.given_back.saturating_sub(account.given_back);
            }
            out.in_flight_at_switch = account.in_flight;
            out.redelivered = account.redelivered;
            let left = if owner == Some(Side::New) { rest.in_flight.min(account.in_flight) } else { account.in_flight };
            out.finished = account.in_flight - left;
            if let Some(closing) = account.closing.as_ref().filter(|c| c.done.load(Ordering::Acquire)) {
                let drained = *closing.drained.lock();
                (out.finished, out.redelivered, out.failed_calls) =
                    (drained.finished, drained.redelivered, drained.failed);
            }
            if let Some(receipt) = &mut account.receipt {
                receipt.phase(phase, out.pending);
            }
        }
        out
    }
}
