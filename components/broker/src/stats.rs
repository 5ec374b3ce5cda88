use std::path::Path;

use mecha_components_api::{Error, Result};
use rusqlite::Connection;

use crate::error::Failure;
use crate::schema::{Folder, open_read_only};

/// What a broker's file holds at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes of all messages, as counted against `maxBytes`.
    pub bytes: u64,
    /// Messages ever published.
    pub published: u64,
    /// Messages that reached their TTL before a group got them.
    pub expired: u64,
    /// Damaged rows that were passed over.
    pub malformed: u64,
    /// Messages dropped after the retention time because no group ever asked for them.
    pub unread_dropped: u64,
    /// Groups forgotten because nobody subscribed for the retention time.
    pub groups_dropped: u64,
    /// Topics by name.
    pub topics: Vec<TopicStats>,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicStats {
    /// Name as the broker knows it.
    pub name: String,
    /// Offset of the oldest message that is kept; equals `next` when there is none.
    pub oldest: u64,
    /// Offset the next message gets.
    pub next: u64,
    /// Groups by name.
    pub groups: Vec<GroupStats>,
}

/// One consumer group of a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupStats {
    /// Consumer id.
    pub name: String,
    /// Messages not acknowledged yet; gaps left by expired messages count until they are passed.
    pub lag: u64,
    /// Of these, handed to a subscriber.
    pub in_flight: u64,
    /// Of these, waiting for another attempt.
    pub waiting: u64,
}

/// Reads the state of the broker in folder `path`. Blocks on the disk; takes no write lock.
///
/// # Errors
/// `NotFound` when there is no broker, `Unavailable` when its file cannot be read.
pub fn stats(path: &Path) -> Result<Stats> {
    let folder = Folder::new(path);
    if !folder.database().exists() {
        return Err(Error::not_found(format!("no broker in {}", path.display())));
    }
    let read = || -> Result<Stats, Failure> {
        let mut conn = open_read_only(&folder)?;
        // One snapshot for all queries.
        let tx = conn.transaction()?;
        Ok(collect(&tx)?)
    };
    read().map_err(|f| f.to_error(path))
}

fn collect(db: &Connection) -> rusqlite::Result<Stats> {
    let mut stats = Stats::default();
    let mut counters = db.prepare("SELECT name, value FROM counter")?;
    let mut rows = counters.query([])?;
    while let Some(row) = rows.next()? {
        let value = count(row.get(1)?);
        match row.get_ref(0)?.as_str().unwrap_or_default() {
            "bytes" => stats.bytes = value,
            "published" => stats.published = value,
            "expired" => stats.expired = value,
            "malformed" => stats.malformed = value,
            "unread_dropped" => stats.unread_dropped = value,
            "groups_dropped" => stats.groups_dropped = value,
            _ => {}
        }
    }
    let mut topics = db.prepare("SELECT id, name, next FROM topic ORDER BY name")?;
    let mut rows = topics.query([])?;
    while let Some(row) = rows.next()? {
        let (id, next): (i64, i64) = (row.get(0)?, row.get(2)?);
        let oldest = crate::log::oldest(db, id)?.unwrap_or(next);
        stats.topics.push(TopicStats {
            name: row.get(1)?,
            oldest: count(oldest),
            next: count(next),
            groups: groups(db, id, next)?,
        });
    }
    Ok(stats)
}

fn groups(db: &Connection, topic: i64, end: i64) -> rusqlite::Result<Vec<GroupStats>> {
    let mut q = db.prepare_cached(
        "SELECT c.name, c.next,
           (SELECT COUNT(*) FROM pending p WHERE p.consumer = c.id AND p.owner <> 0),
           (SELECT COUNT(*) FROM pending p WHERE p.consumer = c.id AND p.owner = 0)
         FROM consumer c WHERE c.topic = ? ORDER BY c.name",
    )?;
    let rows = q.query_map([topic], |r| {
        let (next, in_flight, waiting): (i64, i64, i64) = (r.get(1)?, r.get(2)?, r.get(3)?);
        Ok(GroupStats {
            name: r.get(0)?,
            lag: count(end - next + in_flight + waiting),
            in_flight: count(in_flight),
            waiting: count(waiting),
        })
    })?;
    rows.collect()
}

fn count(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
