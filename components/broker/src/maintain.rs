//! What keeps the file small. Every step is bounded, so that no transaction is long.

use std::time::Duration;

use rusqlite::{Connection, Result};
use tracing::{info, warn};

use crate::clock::{Now, millis};
use crate::config::Limits;
use crate::log::{add, counter, id, offset};

/// Between two rounds, over all processes.
const PERIOD_MS: i64 = 60_000;
/// Rows removed in one round; more of them make the next round start at once.
const ROUND_ROWS: usize = 2000;
/// Topics looked at in one round.
const ROUND_TOPICS: i64 = 500;
/// Free pages handed back to the file system in one round.
const VACUUM_PAGES: i64 = 512;
/// A group must look deserted in this many rounds: a jump of the wall clock alone does
/// not end one, because those with subscribers report between two rounds.
const IDLE_ROUNDS: i64 = 3;
/// Topics without groups and groups without subscribers live at least this long.
const GRACE_MIN: Duration = Duration::from_secs(24 * 3600);

/// Whether a round is due. The time of the last one is of an earlier boot when it lies ahead.
pub(crate) fn is_due(db: &Connection, now: Now) -> Result<bool> {
    let last = counter(db, "maintained_mono")?;
    Ok(last > now.mono || now.mono - last >= PERIOD_MS)
}

/// One round; true when there is more to do.
pub(crate) fn round(db: &Connection, limits: Limits, now: Now) -> Result<bool> {
    if !is_due(db, now)? {
        return Ok(false);
    }
    let grace = limits.retention.max(GRACE_MIN);
    let unused_since = now.wall.saturating_sub(millis(grace));
    let done_before = now.wall.saturating_sub(millis(limits.retention));

    let mut rows = drop_expired(db, now)?;
    drop_deserted_groups(db, unused_since)?;
    let from = counter(db, "maintained_topic")?;
    let some = topics(db, from, ROUND_TOPICS)?;
    // Where to go on: 0 after the last topic.
    let mut cursor = if (some.len() as i64) < ROUND_TOPICS { 0 } else { some.last().map_or(0, |t| t.id) };
    for topic in some {
        if rows >= ROUND_ROWS {
            cursor = topic.id - 1;
            break;
        }
        let left = ROUND_ROWS - rows;
        rows += match floor(db, topic.id)? {
            Some(floor) => drop_below(db, topic.id, floor, Some(done_before), left)?.rows,
            None => {
                let unread = drop_below(db, topic.id, topic.next, Some(unused_since), left)?.rows;
                if unread > 0 {
                    warn!(topic = topic.name, messages = unread, "dropped messages that no group ever asked for");
                    add(db, "unread_dropped", unread as i64)?;
                }
                unread
            }
        };
    }
    db.execute(
        "DELETE FROM topic WHERE used_ms < ?1 AND id IN (
           SELECT t.id FROM topic t WHERE t.used_ms < ?1
             AND NOT EXISTS (SELECT 1 FROM consumer c WHERE c.topic = t.id)
             AND NOT EXISTS (SELECT 1 FROM message m WHERE m.id >= t.id << 40 AND m.id < (t.id + 1) << 40)
           LIMIT 500)",
        [unused_since],
    )?;
    if cursor == 0 && rows >= ROUND_ROWS {
        cursor = from;
    }
    db.execute("INSERT OR REPLACE INTO counter(name, value) VALUES ('maintained_topic', ?)", [cursor])?;
    let more = rows >= ROUND_ROWS || cursor != 0;
    if !more {
        db.execute("UPDATE counter SET value = ? WHERE name = 'maintained_mono'", [now.mono])?;
    }
    Ok(more)
}

/// Gives free pages back to the file system, outside any transaction; true when there
/// are more. A quarter of the file may stay free, for the messages to come.
pub(crate) fn vacuum(db: &Connection) -> Result<bool> {
    let pages = |what: &str| db.query_row(&format!("PRAGMA {what}"), [], |r| r.get::<_, i64>(0));
    let spare = pages("page_count")? / 4;
    if pages("freelist_count")? <= spare.max(2 * VACUUM_PAGES) {
        return Ok(false);
    }
    db.execute_batch(&format!("PRAGMA incremental_vacuum({VACUUM_PAGES})"))?;
    Ok(true)
}

/// Removes acknowledged messages, oldest of each topic first, until `need` bytes are
/// free or `max_rows` are gone; returns the bytes. What any group still waits for, and
/// topics without a group, are left alone.
pub(crate) fn make_room(db: &Connection, need: i64, max_rows: usize) -> Result<i64> {
    let (mut bytes, mut rows) = (0, 0);
    for topic in topics(db, 0, i64::MAX)? {
        if bytes >= need || rows >= max_rows {
            break;
        }
        let Some(floor) = floor(db, topic.id)? else { continue };
        while bytes < need && rows < max_rows {
            let gone = drop_below(db, topic.id, floor, None, 100.min(max_rows - rows))?;
            if gone.rows == 0 {
                break;
            }
            bytes += gone.bytes;
            rows += gone.rows;
        }
    }
    Ok(bytes)
}

struct Topic {
    id: i64,
    name: String,
    next: i64,
}

/// At most `max` topics with ids above `from`, in order.
fn topics(db: &Connection, from: i64, max: i64) -> Result<Vec<Topic>> {
    let mut q = db.prepare_cached("SELECT id, name, next FROM topic WHERE id > ? ORDER BY id LIMIT ?")?;
    let rows = q.query_map([from, max], |r| Ok(Topic { id: r.get(0)?, name: r.get(1)?, next: r.get(2)? }))?;
    rows.collect()
}

/// Every group is done with the offsets below; `None` without groups.
fn floor(db: &Connection, topic: i64) -> Result<Option<i64>> {
    let mut q = db.prepare_cached(
        "SELECT MIN(MIN(c.next, COALESCE((SELECT MIN(p.offset) FROM pending p WHERE p.consumer = c.id), c.next)))
         FROM consumer c WHERE c.topic = ?",
    )?;
    q.query_row([topic], |r| r.get(0))
}

struct Gone {
    rows: usize,
    bytes: i64,
}

/// Removes at most `max` messages from the start of a topic, up to the first one at
/// `floor` or published after `before`.
fn drop_below(db: &Connection, topic: i64, floor: i64, before: Option<i64>, max: usize) -> Result<Gone> {
    let mut q =
        db.prepare_cached("SELECT id, published_ms, size FROM message WHERE id >= ? AND id < ? ORDER BY id LIMIT ?")?;
    let mut rows = q.query((id(topic, 0), id(topic, floor), max as i64))?;
    let mut gone = Gone { rows: 0, bytes: 0 };
    let mut last = None;
    while let Some(row) = rows.next()? {
        let published: i64 = row.get(1)?;
        if before.is_some_and(|t| published >= t) {
            break;
        }
        gone.rows += 1;
        gone.bytes += row.get::<_, i64>(2)?;
        last = Some(row.get::<_, i64>(0)?);
    }
    drop(rows);
    if let Some(last) = last {
        db.prepare_cached("DELETE FROM message WHERE id >= ? AND id <= ?")?.execute((id(topic, 0), last))?;
        add(db, "bytes", -gone.bytes)?;
    }
    Ok(gone)
}

/// Removes messages past their own TTL. Groups that did not get them find that out when
/// they come to the gap; they are counted here, once.
fn drop_expired(db: &Connection, now: Now) -> Result<usize> {
    let mut q = db.prepare_cached("SELECT id, size FROM message WHERE expires_ms <= ? LIMIT ?")?;
    let found: Vec<(i64, i64)> =
        q.query_map((now.wall, ROUND_ROWS as i64), |r| Ok((r.get(0)?, r.get(1)?)))?.collect::<Result<_>>()?;
    let mut unread = 0;
    for (key, size) in &found {
        unread += i64::from(offset(*key) >= floor(db, *key >> 40)?.unwrap_or(0));
        db.prepare_cached("DELETE FROM message WHERE id = ?")?.execute([key])?;
        add(db, "bytes", -size)?;
    }
    add(db, "expired", unread)?;
    Ok(found.len())
}

fn drop_deserted_groups(db: &Connection, unused_since: i64) -> Result<()> {
    let mut q = db.prepare_cached(
        "SELECT c.id, c.name, t.name FROM consumer c LEFT JOIN topic t ON t.id = c.topic
         WHERE c.seen_ms < ? AND c.idle >= ? LIMIT 100",
    )?;
    let dead: Vec<(i64, String, Option<String>)> =
        q.query_map((unused_since, IDLE_ROUNDS), |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?.collect::<Result<_>>()?;
    for (group, name, topic) in &dead {
        warn!(group = name, topic, "forgot a consumer group: no subscriber for the retention time");
        db.execute("DELETE FROM pending WHERE consumer = ?", [group])?;
        db.execute("DELETE FROM consumer WHERE id = ?", [group])?;
    }
    if !dead.is_empty() {
        info!(groups = dead.len(), "messages that only these groups waited for are no longer kept");
        add(db, "groups_dropped", dead.len() as i64)?;
    }
    db.execute("UPDATE consumer SET idle = idle + 1 WHERE seen_ms < ?", [unused_since])?;
    Ok(())
}
