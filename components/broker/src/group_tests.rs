use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mecha_components_api::{Bytes, Verdict};
use proptest::prelude::*;
use rusqlite::Connection;

use crate::clock::Now;
use crate::config::{Limits, StartFrom};
use crate::group::{self, Claim, Claimed, GroupRef, Lease, Peek, Taken, backoff_ms};
use crate::log::{Appended, Record, Room, append};
use crate::schema::in_memory;

const LEASE_MS: i64 = 1000;
const A: i64 = 11;
const B: i64 = 12;

fn at(ms: i64) -> Now {
    Now { wall: 1_700_000_000_000 + ms, mono: 50_000_000 + ms }
}

fn publish(db: &Connection, topic: &str, data: &[u8], now: Now) {
    publish_with_ttl(db, topic, data, None, now);
}

fn publish_with_ttl(db: &Connection, topic: &str, data: &[u8], ttl: Option<Duration>, now: Now) {
    let record = Record {
        topic: topic.into(),
        data: Bytes::copy_from_slice(data),
        content_type: Some("text/plain".into()),
        metadata: Some(r#"[["k","v"]]"#.into()),
        ttl,
    };
    let limits = Limits { retention: Duration::from_secs(3600), max_bytes: 1 << 30 };
    let stored = append(db, &[record], limits, &mut Room::default(), now, &mut Vec::new()).unwrap();
    assert_eq!(stored, Appended::Stored);
}

fn request(at: GroupRef, max: usize, single: bool) -> Claim {
    Claim { at, max, single, lease: Duration::from_millis(LEASE_MS as u64) }
}

/// Claims, after checking that a look without a lock agrees with it.
fn take(db: &Connection, request: &Claim, owner: i64, now: Now) -> (Vec<Taken>, Option<i64>) {
    let peek = group::peek(db, request, now).unwrap();
    match group::claim(db, request, owner, now).unwrap() {
        Claimed::Messages { taken, next_due } => {
            if !taken.is_empty() {
                assert_eq!(peek, Peek::Ready, "a look overlooked {taken:?}");
            } else if let Peek::Idle { next_due: Some(due) } = peek {
                assert!(due > now.mono, "a time to look again that is over makes a tight loop");
            }
            (taken, next_due)
        }
        Claimed::Gone => panic!("the group is gone"),
    }
}

fn offsets(taken: &[Taken]) -> Vec<i64> {
    taken.iter().map(|t| t.lease.offset).collect()
}

#[test]
fn what_was_published_before_the_first_subscriber_is_delivered() {
    let db = in_memory();
    publish(&db, "t", b"early", at(0));
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(1)).unwrap();
    let newest = group::attach(&db, "t", "n", StartFrom::Newest, at(1)).unwrap();
    publish(&db, "t", b"late", at(2));
    let (taken, _) = take(&db, &request(g, 10, false), A, at(3));
    assert_eq!(taken.iter().map(|t| &t.data[..]).collect::<Vec<_>>(), [&b"early"[..], b"late"]);
    assert_eq!(taken[0].metadata.get("k"), Some("v"));
    assert_eq!(taken[0].content_type.as_deref(), Some("text/plain"));
    assert_eq!(offsets(&take(&db, &request(newest, 10, false), A, at(3)).0), [2]);
}

#[test]
fn a_verdict_after_take_over_is_refused() {
    let db = in_memory();
    publish(&db, "t", b"x", at(0));
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    let old = take(&db, &request(g, 1, false), A, at(0)).0.remove(0).lease;
    let taken = take(&db, &request(g, 1, false), B, at(LEASE_MS)).0.remove(0);
    assert_eq!(taken.attempts, 1);
    for verdict in [Verdict::Ack, Verdict::Retry, Verdict::Release] {
        assert!(!group::settle(&db, g.group, old, verdict, at(LEASE_MS)).unwrap());
    }
    assert_eq!(group::extend(&db, g.group, &[old], Duration::from_secs(1), at(LEASE_MS)).unwrap(), [old]);
    assert!(group::settle(&db, g.group, taken.lease, Verdict::Ack, at(LEASE_MS)).unwrap());
    assert!(!group::settle(&db, g.group, taken.lease, Verdict::Ack, at(LEASE_MS)).unwrap(), "once");
}

#[test]
fn the_messages_of_a_dead_process_are_free_at_once() {
    let db = in_memory();
    publish(&db, "t", b"x", at(0));
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    let old = take(&db, &request(g, 1, false), A, at(0)).0.remove(0).lease;
    assert_eq!(group::free(&db, A, true).unwrap(), [g.topic]);
    assert!(!group::settle(&db, g.group, old, Verdict::Ack, at(1)).unwrap());
    assert_eq!(take(&db, &request(g, 1, false), B, at(1)).0[0].attempts, 1);
}

#[test]
fn a_group_in_order_waits_for_its_oldest_message() {
    let db = in_memory();
    for _ in 0..3 {
        publish(&db, "t", b"x", at(0));
    }
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    let single = request(g, 8, true);
    let first = take(&db, &single, A, at(0)).0;
    assert_eq!(offsets(&first), [1]);
    assert!(take(&db, &single, B, at(1)).0.is_empty(), "a second consumer must not overtake");
    assert!(group::settle(&db, g.group, first[0].lease, Verdict::Retry, at(1)).unwrap());
    let (none, due) = take(&db, &single, B, at(2));
    assert!(none.is_empty());
    let due = due.unwrap() - at(0).mono;
    assert!((80..=130).contains(&due), "{due}");
    let again = take(&db, &single, B, at(due)).0;
    assert_eq!((offsets(&again), again[0].attempts), (vec![1], 1));
    assert!(group::settle(&db, g.group, again[0].lease, Verdict::Ack, at(due)).unwrap());
    assert_eq!(offsets(&take(&db, &single, B, at(due)).0), [2]);
}

#[test]
fn pauses_grow_and_are_bounded() {
    assert_eq!(backoff_ms(0, 0.5), 100);
    assert_eq!(backoff_ms(3, 0.5), 800);
    for failures in [20, 1000, i64::MAX] {
        assert_eq!(backoff_ms(failures, 0.5), 30_000);
    }
    assert!(backoff_ms(0, 0.0) >= 80 && backoff_ms(i64::MAX, 1.0) <= 36_000);
}

#[test]
fn times_of_an_earlier_boot_do_not_hold_messages_back() {
    let db = in_memory();
    for _ in 0..2 {
        publish(&db, "t", b"x", at(0));
    }
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    let taken = take(&db, &request(g, 2, false), A, at(0)).0;
    assert!(group::settle(&db, g.group, taken[0].lease, Verdict::Retry, at(0)).unwrap());
    let rebooted = Now { mono: 5, ..at(0) };
    assert_eq!(take(&db, &request(g, 2, false), B, rebooted).0.len(), 2);
}

#[test]
fn expired_messages_are_passed_over_even_if_there_are_many() {
    let db = in_memory();
    for _ in 0..600 {
        publish_with_ttl(&db, "t", b"old", Some(Duration::from_secs(1)), at(0));
    }
    publish(&db, "t", b"new", at(0));
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    let mut rounds = 0;
    let taken = loop {
        let (taken, next_due) = take(&db, &request(g, 4, false), A, at(1000));
        if !taken.is_empty() {
            break taken;
        }
        assert_eq!(next_due, Some(at(1000).mono), "there is more to look at");
        rounds += 1;
        assert!(rounds < 10);
    };
    assert_eq!(&taken[0].data[..], b"new");
    assert_eq!(crate::log::counter(&db, "expired").unwrap(), 600);
}

#[test]
fn damaged_rows_do_not_hold_up_a_topic() {
    let db = in_memory();
    for _ in 0..4 {
        publish(&db, "t", b"x", at(0));
    }
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    db.execute("UPDATE message SET data = 7 WHERE id & 255 = 1", []).unwrap();
    db.execute("UPDATE message SET metadata = '{{' WHERE id & 255 = 2", []).unwrap();
    db.execute("UPDATE message SET metadata = x'ff00', expires_ms = 'soon' WHERE id & 255 = 3", []).unwrap();
    assert_eq!(offsets(&take(&db, &request(g, 9, false), A, at(0)).0), [4]);
    assert_eq!(crate::log::counter(&db, "malformed").unwrap(), 3);
}

#[test]
fn messages_that_always_fail_do_not_pile_up_without_limit() {
    let db = in_memory();
    for _ in 0..group::MAX_PENDING + 10 {
        publish(&db, "t", b"x", at(0));
    }
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    let mut seen = 0;
    loop {
        let taken = take(&db, &request(g, 100, false), A, at(0)).0;
        if taken.is_empty() {
            break;
        }
        for t in taken {
            seen += 1;
            assert!(group::settle(&db, g.group, t.lease, Verdict::Retry, at(0)).unwrap());
        }
    }
    assert_eq!(seen, group::MAX_PENDING);
}

#[test]
fn a_removed_group_is_reported() {
    let db = in_memory();
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    db.execute("DELETE FROM consumer", []).unwrap();
    assert_eq!(group::peek(&db, &request(g, 1, false), at(0)).unwrap(), Peek::Gone);
    assert!(matches!(group::claim(&db, &request(g, 1, false), A, at(0)).unwrap(), Claimed::Gone));
}

#[derive(Clone, Debug)]
enum Step {
    Publish(usize),
    Claim { owner: i64, max: usize },
    Settle { pick: usize, verdict: Verdict },
    Extend { pick: usize },
    Advance(i64),
    Kill(i64),
}

fn step() -> impl Strategy<Value = Step> {
    let owner = prop_oneof![Just(A), Just(B)];
    let verdict = prop_oneof![3 => Just(Verdict::Ack), 2 => Just(Verdict::Retry), 1 => Just(Verdict::Release)];
    prop_oneof![
        3 => (1..4_usize).prop_map(Step::Publish),
        5 => (owner.clone(), 1..5_usize).prop_map(|(owner, max)| Step::Claim { owner, max }),
        6 => (any::<usize>(), verdict).prop_map(|(pick, verdict)| Step::Settle { pick, verdict }),
        1 => any::<usize>().prop_map(|pick| Step::Extend { pick }),
        3 => (1..700_i64).prop_map(Step::Advance),
        1 => owner.prop_map(Step::Kill),
    ]
}

/// What a group knows of a message, written down the slow and obvious way.
#[derive(Clone, Debug, PartialEq)]
enum State {
    New,
    Leased { lease: Lease, owner: i64, until: i64 },
    Waiting { earliest: i64, latest: i64 },
    Done,
}

#[derive(Default)]
struct Model {
    messages: BTreeMap<i64, (State, i64)>,
    /// Every lease ever given, the stale ones too.
    leases: Vec<Lease>,
}

impl Model {
    fn may_take(&self, offset: i64, now: i64) -> bool {
        match self.messages[&offset].0 {
            State::New => true,
            State::Leased { until, .. } => until <= now,
            State::Waiting { earliest, .. } => earliest <= now,
            State::Done => false,
        }
    }

    fn must_take(&self, offset: i64, now: i64) -> bool {
        match self.messages[&offset].0 {
            State::Waiting { latest, .. } => latest <= now,
            _ => self.may_take(offset, now),
        }
    }

    fn claim(&mut self, db: &Connection, request: &Claim, owner: i64, now: Now) {
        let before: BTreeSet<i64> = self.messages.keys().copied().filter(|o| self.must_take(*o, now.mono)).collect();
        let undone = self.messages.iter().find(|(_, (s, _))| *s != State::Done).map(|(o, _)| *o);
        let (taken, _) = take(db, request, owner, now);
        let got = offsets(&taken);
        for offset in &got {
            assert!(self.may_take(*offset, now.mono), "{offset} was {:?}", self.messages[offset]);
        }
        if request.single {
            assert!(got.len() <= 1);
            if let Some(first) = got.first() {
                assert_eq!(Some(*first), undone, "out of order");
            }
            if let Some(first) = undone
                && before.contains(&first)
            {
                assert_eq!(got, [first], "nothing was taken");
            }
        } else {
            assert!(got.len() <= request.max);
            assert!(got.len() >= before.len().min(request.max), "{got:?} of {before:?}");
        }
        for t in taken {
            let (state, attempts) = self.messages.get_mut(&t.lease.offset).unwrap();
            *attempts += i64::from(matches!(state, State::Leased { .. }));
            assert_eq!(t.attempts, *attempts);
            assert!(!self.leases.contains(&t.lease), "a token was given twice");
            self.leases.push(t.lease);
            *state = State::Leased { lease: t.lease, owner, until: now.mono + LEASE_MS };
        }
    }

    fn settle(&mut self, db: &Connection, group: i64, lease: Lease, verdict: Verdict, now: Now) {
        let held = group::settle(db, group, lease, verdict, now).unwrap();
        let (state, attempts) = self.messages.get_mut(&lease.offset).unwrap();
        let holds = matches!(state, State::Leased { lease: l, .. } if *l == lease);
        assert_eq!(held, holds, "{lease:?} {verdict:?} {state:?}");
        if !held {
            return;
        }
        *state = match verdict {
            Verdict::Ack => State::Done,
            Verdict::Release => State::Waiting { earliest: 0, latest: 0 },
            Verdict::Retry => {
                let (earliest, latest) = (backoff_ms(*attempts, 0.0), backoff_ms(*attempts, 1.0));
                *attempts += 1;
                State::Waiting { earliest: now.mono + earliest, latest: now.mono + latest }
            }
        };
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn each_message_is_delivered_until_acknowledged_and_never_after(
        steps in proptest::collection::vec(step(), 1..120),
        single in any::<bool>(),
    ) {
        let db = in_memory();
        let mut ms = 0;
        let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
        // A neighbour in the tables: same topic, other group; and another topic.
        let other = group::attach(&db, "t", "other", StartFrom::Oldest, at(0)).unwrap();
        let mut model = Model::default();
        let mut published = 0;
        for step in steps {
            let now = at(ms);
            match step {
                Step::Publish(n) => for _ in 0..n {
                    published += 1;
                    publish(&db, "t", &[1], now);
                    publish(&db, "u", &[2], now);
                    model.messages.insert(published, (State::New, 0));
                },
                Step::Claim { owner, max } => model.claim(&db, &request(g, max, single), owner, now),
                Step::Settle { pick, verdict } if !model.leases.is_empty() => {
                    let lease = model.leases[pick % model.leases.len()];
                    model.settle(&db, g.group, lease, verdict, now);
                }
                Step::Extend { pick } if !model.leases.is_empty() => {
                    let lease = model.leases[pick % model.leases.len()];
                    let lost = group::extend(&db, g.group, &[lease], Duration::from_millis(LEASE_MS as u64), now).unwrap();
                    let state = &mut model.messages.get_mut(&lease.offset).unwrap().0;
                    match state {
                        State::Leased { lease: l, until, .. } if *l == lease => {
                            prop_assert!(lost.is_empty());
                            *until = now.mono + LEASE_MS;
                        }
                        _ => prop_assert_eq!(lost, [lease]),
                    }
                }
                Step::Settle { .. } | Step::Extend { .. } => {}
                Step::Advance(by) => ms += by,
                Step::Kill(who) => {
                    group::free(&db, who, true).unwrap();
                    for (state, attempts) in model.messages.values_mut() {
                        if matches!(state, State::Leased { owner, .. } if *owner == who) {
                            *state = State::Waiting { earliest: 0, latest: 0 };
                            *attempts += 1;
                        }
                    }
                }
            }
        }
        // Everything that is left comes once the pauses are over, and then nothing more.
        ms += 100_000;
        loop {
            let before = model.leases.len();
            model.claim(&db, &request(g, 3, single), A, at(ms));
            if model.leases.len() == before {
                break;
            }
            for lease in model.leases.clone().split_off(before) {
                model.settle(&db, g.group, lease, Verdict::Ack, at(ms));
            }
        }
        prop_assert!(model.messages.values().all(|(s, _)| *s == State::Done));
        // The neighbour still has all of them.
        let mut seen = 0;
        loop {
            let taken = take(&db, &request(other, 50, false), B, at(ms)).0;
            if taken.is_empty() {
                break;
            }
            for t in taken {
                prop_assert_eq!(&t.data[..], &[1]);
                seen += 1;
            }
        }
        prop_assert_eq!(seen, published);
    }
}
