//! The hub and the sidecar know the phases of a move each by itself: the control part's crates and the daemon's do not
//! use each other. What they know must be the same.

use mecha_core::sides::{Side, Target};
use mecha_decide::swap;
use mecha_resources::kinds::SwapPhase;

#[test]
fn the_sidecar_does_in_each_phase_what_the_hub_takes_it_to_do() {
    for phase in SwapPhase::ALL {
        let (hub, sidecar) = (swap::target(*phase), Target::of(*phase));
        let owner = match hub.owner {
            swap::Side::Old => Side::Old,
            swap::Side::New => Side::New,
        };
        assert_eq!(sidecar.owner, owner, "{phase:?}");
        assert_eq!(sidecar.both, hub.old && hub.new, "{phase:?}");
        // The side that takes the work is open, and only an open side can be emptied.
        assert!(if hub.owner == swap::Side::Old { hub.old } else { hub.new }, "{phase:?}");
        assert!(!hub.drain_other || sidecar.both, "{phase:?}");
    }
}
