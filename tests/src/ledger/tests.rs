use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::{EventLedger, ReadTicket, StateLedger, WriteTicket};

/// What may happen next in a world with one register and any number of callers; numbers choose among
/// those to whom it can happen.
#[derive(Clone, Copy, Debug)]
enum Step {
    BeginWrite,
    /// Takes effect; also after its caller was told of an error.
    Apply(usize),
    /// Only what took effect is acknowledged.
    Acknowledge(usize),
    Fail(usize),
    BeginRead,
    Look(usize),
    EndRead(usize),
}

#[derive(Debug, Default)]
struct World {
    register: Option<String>,
    writes: Vec<PendingWrite>,
    reads: Vec<(Option<ReadTicket>, Option<Option<String>>)>,
}

#[derive(Debug)]
struct PendingWrite {
    value: String,
    ticket: Option<WriteTicket>,
    applied: bool,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => Just(Step::BeginWrite),
        4 => any::<usize>().prop_map(Step::Apply),
        3 => any::<usize>().prop_map(Step::Acknowledge),
        1 => any::<usize>().prop_map(Step::Fail),
        3 => Just(Step::BeginRead),
        4 => any::<usize>().prop_map(Step::Look),
        4 => any::<usize>().prop_map(Step::EndRead),
    ];
    prop::collection::vec(step, 1..120)
}

/// The `n`th of those that fit, counted around.
fn pick<T>(list: &mut [T], n: usize, fits: impl Fn(&T) -> bool) -> Option<&mut T> {
    let mut fitting: Vec<&mut T> = list.iter_mut().filter(|item| fits(item)).collect();
    let count = fitting.len();
    (count > 0).then(|| fitting.swap_remove(n % count))
}

impl World {
    fn step(&mut self, ledger: &StateLedger, step: Step) {
        match step {
            Step::BeginWrite => {
                let value = format!("v{}", self.writes.len());
                let ticket = Some(ledger.write("k", Some(&value)));
                self.writes.push(PendingWrite { value, ticket, applied: false });
            }
            Step::Apply(n) => {
                if let Some(write) = pick(&mut self.writes, n, |write| !write.applied) {
                    write.applied = true;
                    self.register = Some(write.value.clone());
                }
            }
            Step::Acknowledge(n) => {
                if let Some(write) = pick(&mut self.writes, n, |write| write.applied && write.ticket.is_some()) {
                    ledger.acked(write.ticket.take().unwrap());
                }
            }
            Step::Fail(n) => {
                if let Some(write) = pick(&mut self.writes, n, |write| write.ticket.is_some()) {
                    drop(write.ticket.take());
                }
            }
            Step::BeginRead => self.reads.push((Some(ledger.read("k")), None)),
            Step::Look(n) => {
                let register = self.register.clone();
                if let Some(read) = pick(&mut self.reads, n, |read| read.0.is_some() && read.1.is_none()) {
                    read.1 = Some(register);
                }
            }
            Step::EndRead(n) => {
                if let Some(read) = pick(&mut self.reads, n, |read| read.0.is_some() && read.1.is_some()) {
                    ledger.seen(read.0.take().unwrap(), read.1.as_ref().unwrap().as_deref());
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn a_correct_register_is_never_blamed(steps in steps()) {
        let (ledger, mut world) = (StateLedger::new(), World::default());
        for step in steps {
            world.step(&ledger, step);
        }
        let verdict = ledger.verdict();
        prop_assert!(verdict.lost.is_empty() && verdict.ghosts.is_empty(), "{verdict:#?}");
    }

    /// One caller after the other: the last acknowledged value must be there, or one whose outcome
    /// nobody knows.
    #[test]
    fn a_read_is_blamed_exactly_when_no_order_explains_it(
        fates in prop::collection::vec(any::<bool>(), 0..8),
        seen in prop::option::of(0_usize..8),
    ) {
        let ledger = StateLedger::new();
        let mut allowed: BTreeSet<Option<usize>> = BTreeSet::from([None]);
        for (number, acked) in fates.iter().enumerate() {
            let value = format!("v{number}");
            let ticket = ledger.write("k", Some(&value));
            if *acked {
                ledger.acked(ticket);
                // What was acknowledged before is over, and so is the empty begin.
                allowed.retain(|old| old.is_some_and(|old| !fates[old]));
            }
            allowed.insert(Some(number));
        }
        let text = seen.map(|number| format!("v{number}"));
        ledger.seen(ledger.read("k"), text.as_deref());
        let verdict = ledger.verdict();
        let written = seen.is_none_or(|number| number < fates.len());
        prop_assert_eq!(verdict.ghosts.count, usize::from(!written));
        prop_assert_eq!(verdict.lost.count, usize::from(written && !allowed.contains(&seen)));
        prop_assert_eq!(verdict.acked, fates.iter().filter(|acked| **acked).count());
        prop_assert_eq!(verdict.unknown, fates.iter().filter(|acked| !**acked).count());
    }

    /// A broker that keeps all but some of what it acknowledged, and repeats some of it.
    #[test]
    fn exactly_the_missing_events_are_lost(
        events in prop::collection::vec((any::<bool>(), 0_usize..4, 0_usize..3), 0..60),
    ) {
        let ledger = EventLedger::new();
        let (mut lost, mut deliveries, mut duplicates, mut repeated_after_fault) = (0, 0, 0, 0);
        let mut after: BTreeMap<String, usize> = BTreeMap::new();
        for (number, (acked, before_fault, after_fault)) in events.iter().enumerate() {
            let id = format!("e{number}");
            let ticket = ledger.publish(&id);
            if *acked {
                ledger.acked(ticket);
            }
            for _ in 0..*before_fault {
                ledger.delivered(&id, true);
            }
            let count = before_fault + after_fault;
            lost += usize::from(*acked && count == 0);
            deliveries += count;
            duplicates += count.saturating_sub(1);
            // Only the first one after the fault is explained by it.
            repeated_after_fault += usize::from(*before_fault > 0 && *after_fault > 0);
            after.insert(id, *after_fault);
        }
        ledger.fault();
        for (id, count) in &after {
            for _ in 0..*count {
                ledger.delivered(id, true);
            }
        }
        let verdict = ledger.verdict();
        prop_assert_eq!(verdict.lost.count, lost);
        prop_assert_eq!(ledger.missing(), lost);
        prop_assert_eq!(verdict.deliveries, deliveries);
        prop_assert_eq!(verdict.duplicates, duplicates);
        prop_assert_eq!(verdict.unexplained.count, duplicates - repeated_after_fault);
        prop_assert!(verdict.ghosts.is_empty());
    }
}

#[test]
fn a_refused_write_must_not_be_seen() {
    let ledger = StateLedger::new();
    let first = ledger.write("k", Some("1"));
    ledger.acked(first);
    ledger.refused(ledger.guarded_write("k", Some("2"), "old"));
    ledger.seen(ledger.read("k"), Some("1"));
    ledger.verdict().assert_kept();
    ledger.seen(ledger.read("k"), Some("2"));
    assert_eq!(ledger.verdict().ghosts.count, 1);
}

#[test]
fn a_removed_key_may_not_come_back() {
    let ledger = StateLedger::new();
    ledger.acked(ledger.write("k", Some("1")));
    ledger.acked(ledger.write("k", None));
    ledger.seen(ledger.read("k"), None);
    ledger.verdict().assert_kept();
    ledger.seen(ledger.read("k"), Some("1"));
    assert_eq!(ledger.verdict().lost.count, 1);
}

#[test]
fn an_etag_has_one_winner() {
    let ledger = StateLedger::new();
    for value in ["1", "2"] {
        ledger.acked(ledger.guarded_write("k", Some(value), "etag"));
    }
    assert_eq!(ledger.verdict().forks.count, 1);
}

#[test]
fn an_event_that_killed_its_handler_counts_only_once_it_is_handled() {
    let ledger = EventLedger::new();
    let ticket = ledger.publish("e");
    ledger.acked(ticket);
    ledger.delivered("e", false);
    assert_eq!(ledger.verdict().lost.count, 1);
    ledger.fault();
    ledger.delivered("e", true);
    let verdict = ledger.verdict();
    verdict.assert_kept();
    assert_eq!((verdict.duplicates, verdict.unexplained.count), (1, 0));
}

#[test]
fn a_fault_explains_what_comes_again_until_it_is_over() {
    let ledger = EventLedger::new();
    ledger.acked(ledger.publish("e"));
    ledger.fault_begins();
    ledger.delivered("e", true);
    ledger.delivered("e", true);
    ledger.fault_ends();
    ledger.delivered("e", true);
    assert_eq!(ledger.verdict().unexplained.count, 0);
    ledger.delivered("e", true);
    let verdict = ledger.verdict();
    assert_eq!((verdict.duplicates, verdict.unexplained.count), (3, 1));
}

#[test]
fn an_event_from_nowhere_is_told() {
    let ledger = EventLedger::new();
    ledger.delivered("e", true);
    assert_eq!(ledger.verdict().ghosts.count, 1);
}
