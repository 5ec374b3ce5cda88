use std::time::Duration;

use mecha_components_api::{Bytes, Verdict};
use rusqlite::Connection;

use crate::clock::Now;
use crate::config::{Limits, StartFrom};
use crate::group::{self, Claim, Claimed, GroupRef};
use crate::log::{Appended, Record, Room, append, counter};
use crate::maintain;
use crate::schema::in_memory;

const HOUR: i64 = 3_600_000;
const WEEK: Limits = Limits { retention: Duration::from_secs(7 * 24 * 3600), max_bytes: 1 << 20 };

fn at(hours: i64) -> Now {
    Now { wall: 1_700_000_000_000 + hours * HOUR, mono: 1_000_000 + hours * HOUR }
}

fn publish(db: &Connection, topic: &str, bytes: usize, ttl: Option<u64>, now: Now) -> Appended {
    let record = Record {
        topic: topic.into(),
        data: Bytes::from(vec![0; bytes]),
        content_type: None,
        metadata: None,
        ttl: ttl.map(Duration::from_secs),
    };
    append(db, &[record], WEEK, &mut Room::default(), now, &mut Vec::new()).unwrap()
}

fn ack_all(db: &Connection, at: GroupRef, now: Now) -> usize {
    let claim = Claim { at, max: 1000, single: false, lease: Duration::from_secs(30) };
    let Claimed::Messages { taken, .. } = group::claim(db, &claim, 5, now).unwrap() else { panic!("gone") };
    for t in &taken {
        assert!(group::settle(db, at.group, t.lease, Verdict::Ack, now).unwrap());
    }
    taken.len()
}

/// Rounds until nothing is left to do at `now`.
fn maintain(db: &Connection, now: Now) {
    while maintain::round(db, WEEK, now).unwrap() {}
}

fn kept(db: &Connection) -> i64 {
    db.query_row("SELECT COUNT(*) FROM message", [], |r| r.get(0)).unwrap()
}

#[test]
fn acknowledged_messages_go_after_the_retention_and_others_stay() {
    let db = in_memory();
    let fast = group::attach(&db, "t", "fast", StartFrom::Oldest, at(0)).unwrap();
    let slow = group::attach(&db, "t", "slow", StartFrom::Oldest, at(0)).unwrap();
    for _ in 0..3 {
        publish(&db, "t", 10, None, at(0));
    }
    assert_eq!(ack_all(&db, fast, at(0)), 3);
    group::touch(&db, &[fast.group, slow.group], at(9 * 24)).unwrap();
    maintain(&db, at(9 * 24));
    assert_eq!(kept(&db), 3, "one group still waits for them");
    assert_eq!(ack_all(&db, slow, at(9 * 24)), 3);
    maintain(&db, at(9 * 24 + 1));
    assert_eq!(kept(&db), 0);
    assert_eq!(counter(&db, "bytes").unwrap(), 0);
    publish(&db, "t", 10, None, at(9 * 24 + 1));
    assert_eq!((ack_all(&db, fast, at(9 * 24 + 1)), ack_all(&db, slow, at(9 * 24 + 1))), (1, 1));
}

#[test]
fn the_cap_removes_what_is_done_and_refuses_what_would_push_out_the_rest() {
    let db = in_memory();
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    let chunk = 200 << 10;
    while publish(&db, "t", chunk, None, at(0)) == Appended::Stored {}
    let before = kept(&db);
    assert_eq!(before, 5);
    assert!(matches!(publish(&db, "t", chunk, None, at(0)), Appended::Full { .. }));
    assert_eq!(ack_all(&db, g, at(0)), 5);
    assert_eq!(publish(&db, "t", chunk, None, at(0)), Appended::Stored, "acknowledged ones made room");
    assert_eq!(ack_all(&db, g, at(0)), 1);
}

#[test]
fn a_message_past_its_ttl_is_removed_wherever_it_stands() {
    let db = in_memory();
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    publish(&db, "t", 1, None, at(0));
    publish(&db, "t", 1, Some(60), at(0));
    publish(&db, "t", 1, None, at(0));
    maintain(&db, at(1));
    assert_eq!(kept(&db), 2);
    assert_eq!(counter(&db, "expired").unwrap(), 1);
    assert_eq!(ack_all(&db, g, at(1)), 2);
}

#[test]
fn a_deserted_group_is_forgotten_but_not_by_a_jump_of_the_clock_alone() {
    let db = in_memory();
    let live = group::attach(&db, "t", "live", StartFrom::Oldest, at(0)).unwrap();
    group::attach(&db, "t", "dead", StartFrom::Oldest, at(0)).unwrap();
    publish(&db, "t", 10, None, at(0));
    assert_eq!(ack_all(&db, live, at(0)), 1);
    let mut now = at(8 * 24);
    for round in 0..5 {
        // The first round comes before the live one reports, as after a jump of the wall clock.
        if round > 0 {
            group::touch(&db, &[live.group], now).unwrap();
        }
        maintain(&db, now);
        now.mono += 61_000;
        now.wall += 61_000;
    }
    let left: Vec<String> = db
        .prepare("SELECT name FROM consumer")
        .unwrap()
        .query_map([], |r| r.get(0))
        .unwrap()
        .collect::<Result<_, _>>()
        .unwrap();
    assert_eq!(left, ["live"]);
    assert_eq!(counter(&db, "groups_dropped").unwrap(), 1);
    maintain(&db, now);
    assert_eq!(kept(&db), 0, "nothing pins the message any more");
}

#[test]
fn a_topic_nobody_asks_for_is_kept_for_the_retention_and_then_cleared() {
    let db = in_memory();
    publish(&db, "t", 10, None, at(0));
    maintain(&db, at(6 * 24));
    assert_eq!(kept(&db), 1);
    maintain(&db, at(8 * 24));
    assert_eq!(kept(&db), 0);
    assert_eq!(counter(&db, "unread_dropped").unwrap(), 1);
    let topics: i64 = db.query_row("SELECT COUNT(*) FROM topic", [], |r| r.get(0)).unwrap();
    assert_eq!(topics, 0);
}

#[test]
fn a_round_is_bounded_and_says_that_there_is_more() {
    let db = in_memory();
    let g = group::attach(&db, "t", "g", StartFrom::Oldest, at(0)).unwrap();
    for _ in 0..5000 {
        publish(&db, "t", 1, None, at(0));
    }
    while ack_all(&db, g, at(0)) > 0 {}
    group::touch(&db, &[g.group], at(8 * 24)).unwrap();
    assert!(maintain::round(&db, WEEK, at(8 * 24)).unwrap());
    assert_eq!(kept(&db), 3000);
    maintain(&db, at(8 * 24));
    assert_eq!(kept(&db), 0);
}

#[test]
fn many_topics_are_looked_at_in_turns() {
    let db = in_memory();
    for n in 0..1201 {
        publish(&db, &format!("t{n}"), 1, None, at(0));
    }
    assert!(maintain::round(&db, WEEK, at(8 * 24)).unwrap());
    assert_eq!(kept(&db), 701);
    maintain(&db, at(8 * 24));
    assert_eq!(kept(&db), 0);
    assert!(!maintain::is_due(&db, at(8 * 24)).unwrap());
}
