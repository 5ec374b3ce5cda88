//! The phases of a move from one backend to another, step by step.
//!
//! The phase lies in the CapabilityBinding and nowhere else, so whoever leads reads it, looks at what
//! sidecars report, and writes the next one. Every step may be done twice, and may be lost: sidecars make
//! what they have open equal to what the phase asks for ([`target`]), whatever they did before. Until
//! [`SwapPhase::Finalize`] the way back is open; from there the old backend is closed.

use mecha_resources::kinds::{SwapPhase, SwapStrategy};

/// One of the two backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the claim comes from.
    Old,
    /// Where it goes.
    New,
}

/// What a sidecar is to have open, and where calls and published messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// Whether the old component is open.
    pub old: bool,
    /// Whether the new component is open.
    pub new: bool,
    /// Where new work goes.
    pub owner: Side,
    /// Whether the other side is being emptied: calls end, messages are read.
    pub drain_other: bool,
}

/// What a sidecar is to do in a phase.
#[must_use]
pub const fn target(phase: SwapPhase) -> Target {
    match phase {
        SwapPhase::Prepare => Target { old: true, new: true, owner: Side::Old, drain_other: false },
        SwapPhase::Switch => Target { old: true, new: true, owner: Side::New, drain_other: false },
        SwapPhase::Drain | SwapPhase::Paused => Target { old: true, new: true, owner: Side::New, drain_other: true },
        SwapPhase::Finalize => Target { old: false, new: true, owner: Side::New, drain_other: false },
        SwapPhase::RollBack => Target { old: true, new: true, owner: Side::Old, drain_other: true },
    }
}

/// A move under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Swap {
    /// How it moves.
    pub strategy: SwapStrategy,
    /// How far it has come.
    pub phase: SwapPhase,
    /// Revision of the binding that asks for this phase; older reports say nothing about it.
    pub revision: i64,
    /// When it stops and asks, in milliseconds of the caller's clock.
    pub deadline_ms: Option<u64>,
}

/// What one sidecar reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Report {
    /// The revision it has put into effect.
    pub revision: i64,
    /// Whether what it has open, and where its work goes, is what the phase asks for.
    pub reached: bool,
    /// Calls in flight and unread messages at the side that new work does not go to.
    pub pending: u64,
    /// Whether the new component failed to open or fails its checks.
    pub failed: bool,
}

/// What a person has asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// Go back, while that is possible.
    pub abort: bool,
    /// Go on from [`SwapPhase::Paused`] though the old side is not empty.
    pub proceed: bool,
}

/// What to do next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing yet.
    Wait(Gate),
    /// Write this phase, with a new revision.
    Go(SwapPhase),
    /// Write the binding with this side alone, and the receipt.
    End(Side),
}

/// What a move waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Sidecars that have not put the phase into effect.
    Sidecars {
        /// How many of them have.
        ready: usize,
        /// All of them.
        of: usize,
    },
    /// Calls in flight and unread messages.
    Pending(u64),
    /// A person.
    Person,
}

/// What to do next. Call it again with the same arguments and it answers the same.
#[must_use]
pub fn step(swap: &Swap, sidecars: &[Report], wish: Wish, now_ms: u64) -> Step {
    let late = swap.deadline_ms.is_some_and(|deadline| now_ms >= deadline);
    let current = sidecars.iter().filter(|s| s.revision == swap.revision);
    let ready = current.clone().filter(|s| s.reached).count();
    let everywhere = ready == sidecars.len();
    let failed = current.clone().any(|s| s.failed);
    // A sidecar that has not answered for this revision may hold anything.
    let pending = current.map(|s| s.pending).fold(0u64, u64::saturating_add);
    let wait = Step::Wait(Gate::Sidecars { ready, of: sidecars.len() });
    match swap.phase {
        // Nothing has switched yet, so lateness is no reason to ask: it goes back by itself.
        SwapPhase::Prepare if wish.abort || failed || late => Step::Go(SwapPhase::RollBack),
        SwapPhase::Switch | SwapPhase::Drain | SwapPhase::Paused if wish.abort || failed => {
            Step::Go(SwapPhase::RollBack)
        }
        SwapPhase::Prepare if everywhere => Step::Go(SwapPhase::Switch),
        SwapPhase::Switch if everywhere => Step::Go(SwapPhase::Drain),
        SwapPhase::Drain | SwapPhase::Paused if everywhere && pending == 0 => Step::Go(SwapPhase::Finalize),
        SwapPhase::Paused if wish.proceed && everywhere => Step::Go(SwapPhase::Finalize),
        SwapPhase::Switch | SwapPhase::Drain if late && !wish.proceed => Step::Go(SwapPhase::Paused),
        SwapPhase::Drain if late && everywhere => Step::Go(SwapPhase::Finalize),
        SwapPhase::Drain if everywhere => Step::Wait(Gate::Pending(pending)),
        SwapPhase::Paused if everywhere => Step::Wait(Gate::Person),
        SwapPhase::Finalize if everywhere => Step::End(Side::New),
        SwapPhase::RollBack if everywhere && (pending == 0 || wish.proceed) => Step::End(Side::Old),
        SwapPhase::RollBack if everywhere => Step::Wait(Gate::Pending(pending)),
        SwapPhase::Prepare | SwapPhase::Switch | SwapPhase::Drain | SwapPhase::Paused => wait,
        SwapPhase::Finalize | SwapPhase::RollBack => wait,
    }
}

#[cfg(test)]
#[path = "swap_tests.rs"]
mod tests;
