//! A component that moves has two sides. What is to be open and where work goes follows from the phase
//! alone, and [`next`] leads there one act at a time from wherever a sidecar stands: phases may come twice,
//! late, in any order or not at all.

use mecha_resources::kinds::SwapPhase;

/// One of the two backends of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// Where the component comes from.
    Old,
    /// Where it goes.
    New,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::Old => Self::New,
            Self::New => Self::Old,
        }
    }
}

/// What is to be open, and where calls and published messages go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The side that new work goes to. It is open.
    pub owner: Side,
    /// Whether the other side is open as well, and read from.
    pub both: bool,
}

impl Target {
    /// What a phase asks for.
    #[must_use]
    pub const fn of(phase: SwapPhase) -> Self {
        match phase {
            SwapPhase::Prepare | SwapPhase::RollBack => Self { owner: Side::Old, both: true },
            SwapPhase::Switch | SwapPhase::Drain | SwapPhase::Paused => Self { owner: Side::New, both: true },
            SwapPhase::Finalize => Self { owner: Side::New, both: false },
        }
    }
}

/// What a sidecar has open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Have {
    /// The side that new work goes to; `None` while nothing takes it.
    pub owner: Option<Side>,
    /// The side that is open beside it.
    pub beside: Option<Side>,
}

/// One step on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Build the side. It takes the work where it should and nothing else has it, else it is read beside.
    Open(Side),
    /// Let work go to the side that is open beside; what had it is open beside then.
    Own(Side),
    /// Let the side that is open beside end its work, and close it.
    Close(Side),
}

impl Have {
    /// What is open after `act`.
    #[must_use]
    pub fn after(self, act: Act, target: Target) -> Self {
        match act {
            Act::Open(side) if self.owner.is_none() && side == target.owner => Self { owner: Some(side), ..self },
            Act::Open(side) => Self { beside: Some(side), ..self },
            Act::Own(side) => Self { owner: Some(side), beside: self.owner },
            Act::Close(_) => Self { beside: None, ..self },
        }
    }

    /// Whether it is what the target asks for.
    #[must_use]
    pub fn is(self, target: Target) -> bool {
        self.owner == Some(target.owner) && self.beside == target.both.then_some(target.owner.other())
    }
}

/// The next act, or `None` where nothing is left that can be done. `shut` are sides that cannot be opened
/// for now. What takes work goes on until the next one can.
#[must_use]
pub fn next(have: Have, target: Target, shut: &[Side]) -> Option<Act> {
    let (owner, other) = (target.owner, target.owner.other());
    let is_open = |side| have.owner == Some(side) || have.beside == Some(side);
    if have.beside == Some(owner) {
        return (!shut.contains(&owner)).then_some(Act::Own(owner));
    }
    if have.owner != Some(owner) && !shut.contains(&owner) {
        return Some(Act::Open(owner));
    }
    if target.both && !is_open(other) && !shut.contains(&other) {
        return Some(Act::Open(other));
    }
    (!target.both && have.beside == Some(other)).then_some(Act::Close(other))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PHASES: [SwapPhase; 6] = [
        SwapPhase::Prepare,
        SwapPhase::Switch,
        SwapPhase::Drain,
        SwapPhase::Paused,
        SwapPhase::Finalize,
        SwapPhase::RollBack,
    ];

    /// What comes before the last phase: phases of which only some acts are done, crashes, sides that fail.
    #[derive(Clone, Debug)]
    enum Event {
        Phase(SwapPhase, usize),
        Crash,
        Shut(Option<Side>),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            6 => (prop::sample::select(&PHASES[..]), 0usize..5).prop_map(|(phase, acts)| Event::Phase(phase, acts)),
            1 => Just(Event::Crash),
            2 => prop_oneof![Just(None), Just(Some(Side::Old)), Just(Some(Side::New))].prop_map(Event::Shut),
        ]
    }

    fn run(mut have: Have, phase: SwapPhase, shut: &[Side], acts: usize) -> Have {
        let target = Target::of(phase);
        for _ in 0..acts {
            let Some(act) = next(have, target, shut) else { break };
            let after = have.after(act, target);
            assert!(have.owner.is_none() || after.owner.is_some(), "broken before made: {have:?} {act:?}");
            match act {
                Act::Open(side) => assert!(have.owner != Some(side) && have.beside != Some(side), "{have:?} {act:?}"),
                Act::Own(side) | Act::Close(side) => assert_eq!(have.beside, Some(side), "{have:?} {act:?}"),
            }
            if let Act::Close(side) = act {
                assert!(!target.both && side != target.owner, "{phase:?} {have:?} {act:?}");
            }
            have = after;
        }
        have
    }

    proptest! {
        #[test]
        fn whatever_happened_before_the_last_phase_counts(
            events in prop::collection::vec(event(), 0..40),
            last in prop::sample::select(&PHASES[..]),
        ) {
            let (mut have, mut shut) = (Have::default(), Vec::new());
            for event in events {
                match event {
                    Event::Phase(phase, acts) => have = run(have, phase, &shut, acts),
                    Event::Crash => have = Have::default(),
                    Event::Shut(side) => shut = side.into_iter().collect(),
                }
            }
            // Three acts lead from anywhere to anywhere.
            let end = run(have, last, &[], 3);
            prop_assert!(end.is(Target::of(last)), "{have:?} -> {end:?}");
            prop_assert_eq!(next(end, Target::of(last), &[]), None);
        }
    }

    #[test]
    fn a_side_that_does_not_open_leaves_the_other_where_it_is() {
        let old = Have { owner: Some(Side::Old), beside: None };
        for phase in PHASES {
            assert_eq!(next(old, Target::of(phase), &[Side::New]), None, "{phase:?}");
        }
        // After a restart with the new backend away the old one is read, and takes no new work.
        let act = next(Have::default(), Target::of(SwapPhase::Switch), &[Side::New]);
        assert_eq!(act, Some(Act::Open(Side::Old)));
        let read = Have::default().after(Act::Open(Side::Old), Target::of(SwapPhase::Switch));
        assert_eq!(read, Have { owner: None, beside: Some(Side::Old) });
    }
}
