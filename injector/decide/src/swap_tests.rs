use super::*;
use proptest::prelude::*;

/// A sidecar as the tests play it: what it has open, and the last revision it has put into effect.
#[derive(Clone, Copy, Debug)]
struct Sidecar {
    revision: i64,
    open_old: bool,
    open_new: bool,
    owner: Side,
    pending_old: u64,
    pending_new: u64,
    phase: Option<SwapPhase>,
}

/// What lies in the API server: one phase, or one owner when no move is under way.
#[derive(Clone, Copy, Debug)]
enum Stored {
    Moving(Swap),
    Settled { owner: Side, revision: i64 },
}

#[derive(Debug)]
struct Model {
    stored: Stored,
    sidecars: Vec<Sidecar>,
    wish: Wish,
    now: u64,
    /// A leader that has decided and not written yet; it may die, or be deposed and write late.
    decided: Option<(i64, Step)>,
    new_is_broken: bool,
}

#[derive(Clone, Debug)]
enum Event {
    Deliver(usize),
    Restart(usize),
    Join,
    Decide,
    Write,
    Crash,
    Work(usize),
    Drain(usize),
    Abort,
    Proceed,
    Time(u64),
    Break,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0usize..4).prop_map(Event::Deliver),
        2 => (0usize..4).prop_map(Event::Restart),
        1 => Just(Event::Join),
        6 => Just(Event::Decide),
        6 => Just(Event::Write),
        2 => Just(Event::Crash),
        3 => (0usize..4).prop_map(Event::Work),
        5 => (0usize..4).prop_map(Event::Drain),
        1 => Just(Event::Abort),
        1 => Just(Event::Proceed),
        2 => (1u64..40).prop_map(Event::Time),
        1 => Just(Event::Break),
    ]
}

impl Model {
    fn new(strategy: SwapStrategy) -> Self {
        let swap = Swap { strategy, phase: SwapPhase::Prepare, revision: 1, deadline_ms: Some(200) };
        let sidecar = Sidecar {
            revision: 0,
            open_old: true,
            open_new: false,
            owner: Side::Old,
            pending_old: 0,
            pending_new: 0,
            phase: None,
        };
        Self {
            stored: Stored::Moving(swap),
            sidecars: vec![sidecar; 3],
            wish: Wish::default(),
            now: 0,
            decided: None,
            new_is_broken: false,
        }
    }

    fn revision(&self) -> i64 {
        match self.stored {
            Stored::Moving(swap) => swap.revision,
            Stored::Settled { revision, .. } => revision,
        }
    }

    /// The sidecar makes what it has open equal to what is stored, make before break.
    fn deliver(&mut self, index: usize) {
        let stored = self.stored;
        let broken = self.new_is_broken;
        let Some(sidecar) = self.sidecars.get_mut(index) else { return };
        match stored {
            Stored::Moving(swap) => {
                let target = target(swap.phase);
                sidecar.open_old |= target.old;
                sidecar.open_new |= target.new && !broken;
                if target.owner == Side::Old || sidecar.open_new {
                    sidecar.owner = target.owner;
                }
                if !target.old && sidecar.owner == Side::New {
                    (sidecar.open_old, sidecar.pending_old) = (false, 0);
                }
                (sidecar.revision, sidecar.phase) = (swap.revision, Some(swap.phase));
            }
            Stored::Settled { owner, revision } => {
                sidecar.open_old |= owner == Side::Old;
                sidecar.open_new |= owner == Side::New;
                sidecar.owner = owner;
                match owner {
                    Side::Old => (sidecar.open_new, sidecar.pending_new) = (false, 0),
                    Side::New => (sidecar.open_old, sidecar.pending_old) = (false, 0),
                }
                (sidecar.revision, sidecar.phase) = (revision, None);
            }
        }
    }

    fn reports(&self) -> Vec<Report> {
        let report = |s: &Sidecar| {
            let target = s.phase.map(target);
            let reached = target.is_some_and(|t| {
                let back = s.phase == Some(SwapPhase::RollBack);
                s.owner == t.owner && s.open_old == t.old && (s.open_new == t.new || (back && self.new_is_broken))
            });
            let other = if s.owner == Side::New { s.pending_old } else { s.pending_new };
            let failed = self.new_is_broken && s.phase.is_some_and(|p| p == SwapPhase::Prepare);
            Report { revision: s.revision, reached, pending: other, failed }
        };
        self.sidecars.iter().map(report).collect()
    }

    fn decide(&mut self) {
        if let Stored::Moving(swap) = self.stored {
            self.decided = Some((swap.revision, step(&swap, &self.reports(), self.wish, self.now)));
        }
    }

    /// The API server takes a write only on the revision that was read: a late leader is fenced.
    fn write(&mut self) {
        let Some((read, step)) = self.decided.take() else { return };
        let Stored::Moving(swap) = self.stored else { return };
        if read != swap.revision {
            return;
        }
        match step {
            Step::Wait(_) => {}
            Step::Go(phase) => {
                assert!(swap.phase != SwapPhase::Finalize, "no way back from Finalize");
                self.stored = Stored::Moving(Swap { phase, revision: swap.revision + 1, ..swap });
            }
            Step::End(owner) => self.stored = Stored::Settled { owner, revision: swap.revision + 1 },
        }
    }

    fn apply(&mut self, event: &Event) {
        match *event {
            Event::Deliver(index) => self.deliver(index),
            Event::Restart(index) => {
                if let Some(sidecar) = self.sidecars.get_mut(index) {
                    // A new process knows nothing; what was in flight is delivered again by the broker.
                    let settled = matches!(self.stored, Stored::Settled { owner: Side::New, .. });
                    let closed = match self.stored {
                        Stored::Moving(swap) => swap.phase == SwapPhase::Finalize,
                        Stored::Settled { .. } => settled,
                    };
                    *sidecar = Sidecar {
                        revision: 0,
                        open_old: !closed,
                        open_new: closed,
                        owner: if closed { Side::New } else { Side::Old },
                        phase: None,
                        ..*sidecar
                    };
                    self.deliver(index);
                }
            }
            Event::Join if self.sidecars.len() < 4 => {
                let mut joined = self.sidecars[0];
                (joined.pending_old, joined.pending_new) = (0, 0);
                self.sidecars.push(joined);
                let index = self.sidecars.len() - 1;
                self.deliver(index);
            }
            Event::Join => {}
            Event::Decide => self.decide(),
            Event::Write => self.write(),
            Event::Crash => self.decided = None,
            Event::Work(index) => {
                if let Some(sidecar) = self.sidecars.get_mut(index) {
                    match sidecar.owner {
                        Side::Old if sidecar.open_old => sidecar.pending_old += 1,
                        Side::New if sidecar.open_new => sidecar.pending_new += 1,
                        side => panic!("work goes to the {side:?} side, which is closed"),
                    }
                }
            }
            Event::Drain(index) => {
                if let Some(sidecar) = self.sidecars.get_mut(index) {
                    sidecar.pending_old = sidecar.pending_old.saturating_sub(1);
                    sidecar.pending_new = sidecar.pending_new.saturating_sub(1);
                }
            }
            Event::Abort => self.wish.abort = true,
            Event::Proceed => self.wish.proceed = true,
            Event::Time(more) => self.now += more,
            // Only before anything depends on it: afterwards the old side is gone, and that is an outage.
            Event::Break => {
                let early = matches!(self.stored, Stored::Moving(s) if s.phase == SwapPhase::Prepare);
                self.new_is_broken |= early && self.sidecars.iter().all(|s| !s.open_new);
            }
        }
        for sidecar in &self.sidecars {
            assert!(sidecar.open_old || sidecar.open_new, "a sidecar has nothing open: {sidecar:?}");
            let open = if sidecar.owner == Side::Old { sidecar.open_old } else { sidecar.open_new };
            assert!(open, "work goes to a side that is closed: {sidecar:?}");
        }
    }

    /// From here on everything works: what must come to an end does.
    fn settle(&mut self) -> Side {
        for round in 0..400 {
            for index in 0..self.sidecars.len() {
                self.deliver(index);
                self.apply(&Event::Drain(index));
            }
            self.decide();
            if matches!(self.decided, Some((_, Step::Wait(Gate::Person)))) {
                self.wish.proceed = true;
            }
            self.write();
            if let Stored::Settled { owner, .. } = self.stored {
                for index in 0..self.sidecars.len() {
                    self.deliver(index);
                }
                return owner;
            }
            assert!(round < 399, "no end: {self:?}");
        }
        unreachable!()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(if std::env::var_os("MECHA_TEST_LONG").is_some() { 20_000 } else { 1_000 }))]

    #[test]
    fn every_interleaving_ends_with_one_owner(drain: bool, events in prop::collection::vec(event(), 0..120)) {
        let strategy = if drain { SwapStrategy::Drain } else { SwapStrategy::Immediate };
        let mut model = Model::new(strategy);
        for event in &events {
            model.apply(event);
        }
        let revision = model.revision();
        let owner = model.settle();
        prop_assert!(model.revision() >= revision);
        for sidecar in &model.sidecars {
            prop_assert_eq!(sidecar.owner, owner);
            prop_assert_eq!((sidecar.open_old, sidecar.open_new), (owner == Side::Old, owner == Side::New));
        }
        if model.new_is_broken {
            prop_assert_eq!(owner, Side::Old, "a new side that never opened owns nothing");
        }
    }

    #[test]
    fn a_step_depends_on_its_arguments_alone(reached: bool, failed: bool, pending in 0u64..3, abort: bool, proceed: bool, now in 0u64..20) {
        for phase in SwapPhase::ALL {
            let swap = Swap { strategy: SwapStrategy::Drain, phase: *phase, revision: 3, deadline_ms: Some(10) };
            let reports = [Report { revision: 3, reached, pending, failed }];
            let wish = Wish { abort, proceed };
            prop_assert_eq!(step(&swap, &reports, wish, now), step(&swap, &reports, wish, now));
            if *phase == SwapPhase::Finalize {
                let going_back = matches!(step(&swap, &reports, wish, now), Step::Go(_) | Step::End(Side::Old));
                prop_assert!(!going_back);
            }
        }
    }
}

#[test]
fn a_move_goes_through_its_phases_and_old_reports_count_for_nothing() {
    let mut model = Model::new(SwapStrategy::Drain);
    let Stored::Moving(swap) = model.stored else { unreachable!() };
    assert_eq!(step(&swap, &model.reports(), Wish::default(), 0), Step::Wait(Gate::Sidecars { ready: 0, of: 3 }));
    let mut seen = vec![SwapPhase::Prepare];
    while let Stored::Moving(swap) = model.stored {
        if seen.last() != Some(&swap.phase) {
            seen.push(swap.phase);
        }
        (0..3).for_each(|i| model.deliver(i));
        model.decide();
        model.write();
    }
    assert_eq!(seen, [SwapPhase::Prepare, SwapPhase::Switch, SwapPhase::Drain, SwapPhase::Finalize]);
}

#[test]
fn unread_messages_hold_it_up_until_a_person_says_otherwise() {
    let swap = Swap { strategy: SwapStrategy::Drain, phase: SwapPhase::Drain, revision: 4, deadline_ms: Some(100) };
    let left = [Report { revision: 4, reached: true, pending: 7, failed: false }];
    assert_eq!(step(&swap, &left, Wish::default(), 0), Step::Wait(Gate::Pending(7)));
    assert_eq!(step(&swap, &left, Wish::default(), 100), Step::Go(SwapPhase::Paused));
    let paused = Swap { phase: SwapPhase::Paused, ..swap };
    assert_eq!(step(&paused, &left, Wish::default(), 101), Step::Wait(Gate::Person));
    assert_eq!(step(&paused, &left, Wish { proceed: true, abort: false }, 101), Step::Go(SwapPhase::Finalize));
    assert_eq!(step(&paused, &left, Wish { proceed: false, abort: true }, 101), Step::Go(SwapPhase::RollBack));
}
