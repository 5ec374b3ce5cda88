use std::time::Duration;

use mecha_components_api::Bytes;
use rusqlite::{Connection, OptionalExtension, Result};

use crate::clock::{Now, millis};
use crate::config::Limits;
use crate::maintain;

/// A message id is `topic << OFFSET_BITS | offset`: one b-tree holds all logs, each of
/// them contiguous, without a second index. 10^12 messages for each of 8 million topics.
const OFFSET_BITS: u32 = 40;
/// Row, page and index overhead counted for a message beside its bytes.
const OVERHEAD_BYTES: usize = 64;
/// Most rows removed at once to make room; with the cap reached each publisher gives a hand.
const TRIM_ROWS: usize = 1000;
/// After a vain attempt to make room nobody looks again for this long.
const TRIM_PAUSE_MS: i64 = 1000;

/// One message to be stored.
#[derive(Debug)]
pub(crate) struct Record {
    pub topic: Box<str>,
    pub data: Bytes,
    pub content_type: Option<Box<str>>,
    /// JSON list of key and value pairs.
    pub metadata: Option<Box<str>>,
    pub ttl: Option<Duration>,
}

impl Record {
    /// Bytes it counts for against the cap.
    pub(crate) fn size(&self) -> usize {
        let text = |t: &Option<Box<str>>| t.as_ref().map_or(0, |t| t.len());
        self.data.len() + text(&self.content_type) + text(&self.metadata) + OVERHEAD_BYTES
    }
}

/// What happened to a publish request that reached the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Appended {
    /// All are in the log.
    Stored,
    /// None is: the cap would be exceeded.
    Full { bytes: u64, max: u64 },
}

/// Remembers vain attempts to make room.
#[derive(Debug, Default)]
pub(crate) struct Room {
    again_at: Option<i64>,
}

impl Room {
    fn may_trim(&self, now: Now) -> bool {
        self.again_at.is_none_or(|t| now.mono >= t)
    }
}

/// Appends all of `records` or none, and notes the ids of their topics in `grown`.
pub(crate) fn append(
    db: &Connection,
    records: &[Record],
    limits: Limits,
    room: &mut Room,
    now: Now,
    grown: &mut Vec<i64>,
) -> Result<Appended> {
    let size: usize = records.iter().map(Record::size).sum();
    let size = size as i64;
    let max = i64::try_from(limits.max_bytes).unwrap_or(i64::MAX);
    let mut bytes = counter(db, "bytes")?;
    if bytes + size > max && room.may_trim(now) {
        bytes -= maintain::make_room(db, bytes + size - max, TRIM_ROWS)?;
        room.again_at = (bytes + size > max).then_some(now.mono + TRIM_PAUSE_MS);
    }
    if bytes + size > max {
        return Ok(Appended::Full { bytes: bytes.max(0) as u64, max: limits.max_bytes });
    }

    let mut insert = db.prepare_cached(
        "INSERT INTO message(id, published_ms, expires_ms, size, content_type, metadata, data) VALUES (?,?,?,?,?,?,?)",
    )?;
    for run in records.chunk_by(|a, b| a.topic == b.topic) {
        let (topic, mut offset) = reserve(db, &run[0].topic, run.len(), now)?;
        for r in run {
            let expires = r.ttl.map(|ttl| now.wall.saturating_add(millis(ttl)));
            insert.execute((
                id(topic, offset),
                now.wall,
                expires,
                r.size() as i64,
                r.content_type.as_deref(),
                r.metadata.as_deref(),
                &r.data[..],
            ))?;
            offset += 1;
        }
        if !grown.contains(&topic) {
            grown.push(topic);
        }
    }
    add(db, "bytes", size)?;
    add(db, "published", records.len() as i64)?;
    Ok(Appended::Stored)
}

/// Takes `n` offsets of `topic`, which is made when missing; returns its id and the first one.
fn reserve(db: &Connection, topic: &str, n: usize, now: Now) -> Result<(i64, i64)> {
    let n = n as i64;
    let mut upsert = db.prepare_cached(
        "INSERT INTO topic(name, next, used_ms) VALUES (?1, 1 + ?2, ?3)
         ON CONFLICT(name) DO UPDATE SET next = next + ?2, used_ms = ?3
         RETURNING id, next - ?2",
    )?;
    upsert.query_row((topic, n, now.wall), |r| Ok((r.get(0)?, r.get(1)?)))
}

/// The topic's id and next offset; makes the topic when missing.
pub(crate) fn topic(db: &Connection, name: &str, now: Now) -> Result<(i64, i64)> {
    reserve(db, name, 0, now)
}

/// Removes a topic with its messages and groups.
pub(crate) fn forget(db: &Connection, name: &str) -> Result<()> {
    let found = db.query_row("SELECT id FROM topic WHERE name = ?", [name], |r| r.get(0)).optional()?;
    let Some(topic) = found else { return Ok(()) };
    let (first, end) = (id(topic, 0), id(topic + 1, 0));
    let bytes: i64 =
        db.query_row("SELECT COALESCE(SUM(size), 0) FROM message WHERE id >= ? AND id < ?", (first, end), |r| {
            r.get(0)
        })?;
    db.execute("DELETE FROM message WHERE id >= ? AND id < ?", (first, end))?;
    add(db, "bytes", -bytes)?;
    db.execute("DELETE FROM pending WHERE consumer IN (SELECT id FROM consumer WHERE topic = ?)", [topic])?;
    db.execute("DELETE FROM consumer WHERE topic = ?", [topic])?;
    db.execute("DELETE FROM topic WHERE id = ?", [topic])?;
    Ok(())
}

/// Offset of the oldest message that is kept.
pub(crate) fn oldest(db: &Connection, topic: i64) -> Result<Option<i64>> {
    let mut q = db.prepare_cached("SELECT id FROM message WHERE id >= ? AND id < ? ORDER BY id LIMIT 1")?;
    let found: Option<i64> = q.query_row((id(topic, 0), id(topic + 1, 0)), |r| r.get(0)).optional()?;
    Ok(found.map(offset))
}

/// Primary key of a message.
pub(crate) fn id(topic: i64, offset: i64) -> i64 {
    (topic << OFFSET_BITS) | offset
}

/// Offset within its topic of the message with primary key `id`.
pub(crate) fn offset(id: i64) -> i64 {
    id & ((1 << OFFSET_BITS) - 1)
}

/// Value of one of the persistent counters.
pub(crate) fn counter(db: &Connection, name: &str) -> Result<i64> {
    let mut q = db.prepare_cached("SELECT value FROM counter WHERE name = ?")?;
    Ok(q.query_row([name], |r| r.get(0)).optional()?.unwrap_or(0))
}

/// Adds to one of the persistent counters.
pub(crate) fn add(db: &Connection, name: &str, n: i64) -> Result<()> {
    if n != 0 {
        let mut q = db.prepare_cached(
            "INSERT INTO counter(name, value) VALUES (?1, ?2) ON CONFLICT(name) DO UPDATE SET value = value + ?2",
        )?;
        q.execute((name, n))?;
    }
    Ok(())
}
