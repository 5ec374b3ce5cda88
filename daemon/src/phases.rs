//! Phases of moves on the wire.

use mecha_proto::delivery::Phase;
use mecha_resources::kinds::SwapPhase;

/// The phase of a message; `None` where this version does not know it.
pub(crate) fn from_wire(wire: i32) -> Option<SwapPhase> {
    Some(match Phase::try_from(wire).ok()? {
        Phase::Unspecified => return None,
        Phase::Prepare => SwapPhase::Prepare,
        Phase::Switch => SwapPhase::Switch,
        Phase::Drain => SwapPhase::Drain,
        Phase::Paused => SwapPhase::Paused,
        Phase::Finalize => SwapPhase::Finalize,
        Phase::RollBack => SwapPhase::RollBack,
    })
}

/// The phase as messages carry it.
pub(crate) fn to_wire(phase: SwapPhase) -> Phase {
    match phase {
        SwapPhase::Prepare => Phase::Prepare,
        SwapPhase::Switch => Phase::Switch,
        SwapPhase::Drain => Phase::Drain,
        SwapPhase::Paused => Phase::Paused,
        SwapPhase::Finalize => Phase::Finalize,
        SwapPhase::RollBack => Phase::RollBack,
    }
}
