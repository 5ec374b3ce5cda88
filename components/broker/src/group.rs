//! The state machine of a consumer group, one transaction a step.
//!
//! For each message a group is in one of these states:
//! *new* (offset at or above the group's `next`), *leased* (a `pending` row with an
//! owner), *waiting* (a `pending` row without owner) or *done* (below `next`, no row).

use std::time::Duration;

use mecha_components_api::{Bytes, Metadata, Verdict};
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OptionalExtension, Result, Row};
use tracing::error;

use crate::clock::{Now, millis};
use crate::config::{ACK_WAIT_MAX, StartFrom};
use crate::log::{add, id, offset, oldest, topic};
use crate::schema::random;

/// Nobody holds the row.
const NOBODY: i64 = 0;
/// First pause after a failed delivery; doubles with each further one.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// A pause that ends later than this was written before the machine's last boot.
const BACKOFF_SANE_MS: i64 = 45_000;
/// Rows a group may have handed out and not got back. When this many messages wait for
/// another attempt, no new ones are taken, so that the table stays small.
pub(crate) const MAX_PENDING: i64 = 1024;
/// Rows looked at for one request, so that a log full of expired messages is passed in steps.
const SCAN_ROWS: usize = 256;
/// Payload bytes handed out at once, at least one message.
const CLAIM_BYTES: usize = 8 << 20;

/// True for rows that may be handed out at `:now`.
const DUE: &str = "(until_ms <= :now OR until_ms > :now + CASE owner WHEN 0 THEN :sane_pause ELSE :sane_lease END)";

/// A group on a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct GroupRef {
    pub topic: i64,
    pub group: i64,
}

/// The right to decide about one message, until it expires.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Lease {
    pub offset: i64,
    /// Unique within the group: what a later holder gets is greater.
    pub token: i64,
}

/// A message handed out.
#[derive(Debug)]
pub(crate) struct Taken {
    pub lease: Lease,
    /// Failed deliveries before this one.
    pub attempts: i64,
    pub data: Bytes,
    pub content_type: Option<String>,
    pub metadata: Metadata,
}

/// A request for messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim {
    pub at: GroupRef,
    pub max: usize,
    pub single: bool,
    pub lease: Duration,
}

/// Answer to a [`Claim`].
#[derive(Debug)]
pub(crate) enum Claimed {
    /// Some messages, or none: then look again at the given time of the monotonic clock, if any.
    Messages { taken: Vec<Taken>, next_due: Option<i64> },
    /// The group does not exist any more.
    Gone,
}

/// What a look without a write lock tells.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Peek {
    /// A claim is worth its transaction.
    Ready,
    /// Nothing now; a waiting or leased row becomes due at that time.
    Idle { next_due: Option<i64> },
    /// The group does not exist any more.
    Gone,
}

/// Finds or makes the group.
pub(crate) fn attach(db: &Connection, topic_name: &str, name: &str, start: StartFrom, now: Now) -> Result<GroupRef> {
    let (topic, end) = topic(db, topic_name, now)?;
    let mut find = db.prepare_cached("SELECT id FROM consumer WHERE topic = ? AND name = ?")?;
    if let Some(group) = find.query_row((topic, name), |r| r.get(0)).optional()? {
        touch(db, &[group], now)?;
        return Ok(GroupRef { topic, group });
    }
    let next = match start {
        StartFrom::Newest => end,
        StartFrom::Oldest => oldest(db, topic)?.unwrap_or(end),
    };
    let mut insert = db.prepare_cached("INSERT INTO consumer(topic, name, next, seen_ms) VALUES (?,?,?,?)")?;
    insert.execute((topic, name, next, now.wall))?;
    Ok(GroupRef { topic, group: db.last_insert_rowid() })
}

/// Notes that the groups have subscribers.
pub(crate) fn touch(db: &Connection, groups: &[i64], now: Now) -> Result<()> {
    let mut q = db.prepare_cached("UPDATE consumer SET seen_ms = ?, idle = 0 WHERE id = ?")?;
    for group in groups {
        q.execute((now.wall, group))?;
    }
    Ok(())
}

/// Whether `claim` would find something; reads only.
pub(crate) fn peek(db: &Connection, claim: &Claim, now: Now) -> Result<Peek> {
    let GroupRef { topic, group } = claim.at;
    let Some((next, _)) = position(db, group)? else { return Ok(Peek::Gone) };
    let waiting = waiting(db, group, claim.single)?;
    if !due_rows(db, group, 1, claim.single, now)?.is_empty() {
        return Ok(Peek::Ready);
    }
    let may_take_new = if claim.single { waiting.rows == 0 } else { waiting.rows < MAX_PENDING };
    if may_take_new && has_message(db, topic, next)? {
        return Ok(Peek::Ready);
    }
    Ok(Peek::Idle { next_due: waiting.next_due })
}

/// Hands messages out: those whose lease or pause is over first, then new ones.
pub(crate) fn claim(db: &Connection, claim: &Claim, owner: i64, now: Now) -> Result<Claimed> {
    let GroupRef { topic, group } = claim.at;
    let Some((first_new, first_token)) = position(db, group)? else { return Ok(Claimed::Gone) };
    let (mut next, mut token) = (first_new, first_token);
    let until = now.mono + millis(claim.lease);
    let max = if claim.single { 1 } else { claim.max };
    let mut taken: Vec<Taken> = Vec::new();
    let mut bytes = 0;

    for row in due_rows(db, group, max, claim.single, now)? {
        if bytes >= CLAIM_BYTES {
            break;
        }
        let Some(message) = load(db, topic, row.offset, now)? else {
            db.prepare_cached("DELETE FROM pending WHERE consumer = ? AND offset = ?")?.execute((group, row.offset))?;
            continue;
        };
        token += 1;
        // A lease that ran out is an attempt whose end nobody saw.
        let attempts = row.attempts + i64::from(row.owner != NOBODY);
        let mut update = db.prepare_cached(
            "UPDATE pending SET owner = ?, token = ?, until_ms = ?, attempts = ? WHERE consumer = ? AND offset = ?",
        )?;
        update.execute((owner, token, until, attempts, group, row.offset))?;
        bytes += message.data.len();
        taken.push(message.taken(Lease { offset: row.offset, token }, attempts));
    }

    let rows = waiting(db, group, claim.single)?.rows;
    let room = if claim.single { usize::from(rows == 0) } else { (MAX_PENDING - rows).max(0) as usize };
    let mut room = room.min(max.saturating_sub(taken.len()));
    let mut scan = if room == 0 { 0 } else { SCAN_ROWS };
    while room > 0 && scan > 0 && bytes < CLAIM_BYTES {
        let Some(at) = following(db, topic, next)? else { break };
        next = at + 1;
        scan -= 1;
        let Some(message) = load(db, topic, at, now)? else { continue };
        token += 1;
        let mut insert = db.prepare_cached(
            "INSERT OR REPLACE INTO pending(consumer, offset, owner, token, until_ms, attempts) VALUES (?,?,?,?,?,0)",
        )?;
        insert.execute((group, at, owner, token, until))?;
        bytes += message.data.len();
        taken.push(message.taken(Lease { offset: at, token }, 0));
        room -= 1;
    }

    if (next, token) != (first_new, first_token) {
        db.prepare_cached("UPDATE consumer SET next = ?, token = ? WHERE id = ?")?.execute((next, token, group))?;
    }
    let next_due = match (taken.is_empty(), scan) {
        // Only expired ones were seen: go on at once.
        (true, 0) if room > 0 => Some(now.mono),
        _ => waiting(db, group, claim.single)?.next_due,
    };
    Ok(Claimed::Messages { taken, next_due })
}

/// Applies a verdict; false when the lease was taken over or the group is gone, and
/// nothing was changed.
pub(crate) fn settle(db: &Connection, group: i64, lease: Lease, verdict: Verdict, now: Now) -> Result<bool> {
    let key = (group, lease.offset, lease.token);
    let held = match verdict {
        Verdict::Ack => db
            .prepare_cached("DELETE FROM pending WHERE consumer = ? AND offset = ? AND token = ? AND owner <> 0")?
            .execute(key)?,
        Verdict::Release => db
            .prepare_cached(
                "UPDATE pending SET owner = 0, until_ms = 0
                 WHERE consumer = ? AND offset = ? AND token = ? AND owner <> 0",
            )?
            .execute(key)?,
        Verdict::Retry => {
            let mut q = db.prepare_cached(
                "SELECT attempts FROM pending WHERE consumer = ? AND offset = ? AND token = ? AND owner <> 0",
            )?;
            let Some(attempts) = q.query_row(key, |r| r.get::<_, i64>(0)).optional()? else { return Ok(false) };
            let until = now.mono + backoff_ms(attempts, random());
            db.prepare_cached(
                "UPDATE pending SET owner = 0, until_ms = ?, attempts = ? WHERE consumer = ? AND offset = ? AND token = ?",
            )?
            .execute((until, attempts + 1, group, lease.offset, lease.token))?
        }
    };
    Ok(held > 0)
}

/// Extends leases that are still held; returns those that are not.
pub(crate) fn extend(db: &Connection, group: i64, leases: &[Lease], by: Duration, now: Now) -> Result<Vec<Lease>> {
    let until = now.mono + millis(by);
    let mut q = db.prepare_cached(
        "UPDATE pending SET until_ms = ? WHERE consumer = ? AND offset = ? AND token = ? AND owner <> 0",
    )?;
    let mut lost = Vec::new();
    for lease in leases {
        if q.execute((until, group, lease.offset, lease.token))? == 0 {
            lost.push(*lease);
        }
    }
    Ok(lost)
}

/// Frees everything `owner` holds; returns the topics concerned.
pub(crate) fn free(db: &Connection, owner: i64, died: bool) -> Result<Vec<i64>> {
    let mut q = db.prepare_cached(
        "SELECT DISTINCT topic FROM consumer WHERE id IN (SELECT consumer FROM pending WHERE owner = ?)",
    )?;
    let topics: Vec<i64> = q.query_map([owner], |r| r.get(0))?.collect::<Result<_>>()?;
    if !topics.is_empty() {
        db.prepare_cached("UPDATE pending SET owner = 0, until_ms = 0, attempts = attempts + ? WHERE owner = ?")?
            .execute((i64::from(died), owner))?;
    }
    Ok(topics)
}

/// Pause after the failure that follows `failures` earlier ones; `random` is in 0..1.
pub(crate) fn backoff_ms(failures: i64, random: f64) -> i64 {
    let doubled = BACKOFF_FIRST.saturating_mul(1 << failures.clamp(0, 16));
    let pause = millis(doubled.min(BACKOFF_LAST)) as f64;
    (pause * (0.8 + 0.4 * random)) as i64
}

fn position(db: &Connection, group: i64) -> Result<Option<(i64, i64)>> {
    let mut q = db.prepare_cached("SELECT next, token FROM consumer WHERE id = ?")?;
    q.query_row([group], |r| Ok((r.get(0)?, r.get(1)?))).optional()
}

struct Waiting {
    rows: i64,
    next_due: Option<i64>,
}

/// Rows of the group, and when to look again: in order, only the oldest one matters.
fn waiting(db: &Connection, group: i64, in_order: bool) -> Result<Waiting> {
    let mut q = db.prepare_cached(if in_order {
        "SELECT COUNT(*), (SELECT until_ms FROM pending WHERE consumer = ?1 ORDER BY offset LIMIT 1)
         FROM pending WHERE consumer = ?1"
    } else {
        "SELECT COUNT(*), MIN(until_ms) FROM pending WHERE consumer = ?1"
    })?;
    q.query_row([group], |r| Ok(Waiting { rows: r.get(0)?, next_due: r.get(1)? }))
}

struct DueRow {
    offset: i64,
    owner: i64,
    attempts: i64,
}

/// Rows that may be handed out, oldest first. With `in_order` that is the oldest row of all or nothing.
fn due_rows(db: &Connection, group: i64, max: usize, in_order: bool, now: Now) -> Result<Vec<DueRow>> {
    let oldest = "(SELECT * FROM pending WHERE consumer = :group ORDER BY offset LIMIT 1)";
    let source = if in_order { oldest } else { "pending" };
    let sql = format!(
        "SELECT offset, owner, attempts FROM {source} WHERE consumer = :group AND {DUE} ORDER BY offset LIMIT :max"
    );
    let mut q = db.prepare_cached(&sql)?;
    let rows = q.query_map(
        rusqlite::named_params! {
            ":group": group,
            ":now": now.mono,
            ":sane_pause": BACKOFF_SANE_MS,
            ":sane_lease": millis(ACK_WAIT_MAX),
            ":max": max as i64,
        },
        |r| Ok(DueRow { offset: r.get(0)?, owner: r.get(1)?, attempts: r.get(2)? }),
    )?;
    rows.collect()
}

fn has_message(db: &Connection, topic: i64, from: i64) -> Result<bool> {
    Ok(following(db, topic, from)?.is_some())
}

/// Offset of the first message at or after `from`.
fn following(db: &Connection, topic: i64, from: i64) -> Result<Option<i64>> {
    let mut q = db.prepare_cached("SELECT id FROM message WHERE id >= ? AND id < ? ORDER BY id LIMIT 1")?;
    Ok(q.query_row((id(topic, from), id(topic + 1, 0)), |r| r.get::<_, i64>(0)).optional()?.map(offset))
}

struct Message {
    data: Bytes,
    content_type: Option<String>,
    metadata: Metadata,
}

impl Message {
    fn taken(self, lease: Lease, attempts: i64) -> Taken {
        Taken { lease, attempts, data: self.data, content_type: self.content_type, metadata: self.metadata }
    }
}

enum Loaded {
    Fine(Message),
    Expired,
    /// Not as we write it: which column.
    Malformed(&'static str),
}

/// The message, unless it is gone, expired or unreadable: then it counts as done, so
/// that a damaged row never holds up its topic.
fn load(db: &Connection, topic: i64, at: i64, now: Now) -> Result<Option<Message>> {
    let mut q = db.prepare_cached("SELECT expires_ms, content_type, metadata, data FROM message WHERE id = ?")?;
    match q.query_row([id(topic, at)], |r| decode(r, now)).optional()? {
        None => Ok(None),
        Some(Loaded::Fine(message)) => Ok(Some(message)),
        Some(Loaded::Expired) => {
            add(db, "expired", 1)?;
            Ok(None)
        }
        Some(Loaded::Malformed(column)) => {
            error!(topic, offset = at, column, "a stored message is damaged and is passed over");
            add(db, "malformed", 1)?;
            Ok(None)
        }
    }
}

fn decode(row: &Row<'_>, now: Now) -> Result<Loaded> {
    if let ValueRef::Integer(expires) = row.get_ref(0)?
        && expires <= now.wall
    {
        return Ok(Loaded::Expired);
    }
    let content_type = match row.get_ref(1)? {
        ValueRef::Null => None,
        value => value.as_str().ok().map(str::to_owned),
    };
    let metadata = match row.get_ref(2)? {
        ValueRef::Null => Metadata::new(),
        value => {
            let parsed = value.as_str().ok().and_then(|t| serde_json::from_str::<Vec<(String, String)>>(t).ok());
            match parsed {
                Some(pairs) => pairs.into_iter().collect(),
                None => return Ok(Loaded::Malformed("metadata")),
            }
        }
    };
    let data = match row.get_ref(3)? {
        ValueRef::Blob(b) => Bytes::copy_from_slice(b),
        _ => return Ok(Loaded::Malformed("data")),
    };
    Ok(Loaded::Fine(Message { data, content_type, metadata }))
}
