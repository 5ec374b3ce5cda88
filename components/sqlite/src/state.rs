//! `state.sqlite`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use mecha_components_api::{
    BuildCx, BulkState, Clock, Component, Concurrency, ConfigErrors, DeleteState, Error, Field, FieldType, GetState,
    Hold, Item, KeyPage, ListKeys, Metadata, Prepared, Registration, Result, SetState, StateCaps, StateStore,
    TransactOp, TransactState, Ttl, Value,
};
use rusqlite::types::{ToSqlOutput, ValueRef};
use rusqlite::{Connection, OptionalExtension, Row, ToSql, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use crate::client::{Client, Setup, Upkeep};
use crate::config::{CONNECTION_STRING, DISABLE_WAL, DbConfig, Defaults, METADATA_TABLE_NAME, span, table};
use crate::error::Fault;
use crate::stamp;

const DEFAULTS: Defaults = Defaults { timeout: Duration::from_secs(20), busy_timeout: Duration::from_secs(2) };
/// Rows looked at in one round of clean-up, so that writes are not held up for long.
const SWEEP_ROWS: u32 = 2_000;
/// Keys in one page, at most, whatever the caller asks for.
const LARGEST_PAGE: usize = 10_000;

const FIELDS: &[Field] = &[
    CONNECTION_STRING,
    Field::new("timeout", FieldType::Duration, "Longest time of one operation; at least 1s, bare numbers are seconds.")
        .default("20s")
        .aliases(&["timeoutInSeconds"]),
    Field::new(
        "busyTimeout",
        FieldType::Duration,
        "How long one statement waits for another process's lock before it is tried anew.",
    )
    .default("2s"),
    DISABLE_WAL,
    Field::new("tableName", FieldType::Text, "Table that holds the state.").default("state"),
    METADATA_TABLE_NAME,
    Field::new(
        "cleanupInterval",
        FieldType::Duration,
        "Period in which expired rows are deleted; 0 never deletes them. They are invisible at once in any case.",
    )
    .default("0")
    .aliases(&["cleanupIntervalInSeconds"]),
];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn StateStore> {
    Registration {
        kind: "state.sqlite",
        aliases: &["state.sqlite3"],
        versions: &["v1"],
        summary: "State in one SQLite file, durable, shared by several processes of one machine",
        fields: FIELDS,
        prepare,
    }
}

struct SqliteStateConfig {
    db: DbConfig,
    table: String,
    metadata_table: String,
    cleanup_interval: Duration,
}

/// The state store.
struct SqliteState {
    client: Client,
    /// File and table; `None` in memory.
    place: Option<String>,
    shared: Arc<Shared>,
}

/// What the closures on the threads need.
struct Shared {
    sql: Sql,
    clock: Arc<dyn Clock>,
}

/// Statements, with the table name filled in once. Their text is the key of the statement cache.
struct Sql {
    get: String,
    upsert: String,
    insert_if_absent: String,
    update_if_match: String,
    delete: String,
    delete_if_match: String,
    list: String,
    list_to: String,
}

/// An owned write, ready for the writer's thread.
struct Write {
    key: String,
    change: Change,
}

enum Change {
    Put { body: Body, etag: String, ttl: Option<Duration>, only: Only },
    Remove { etag: Option<String> },
}

/// The condition of a write.
enum Only {
    Always,
    IfAbsent,
    IfMatch(String),
}

/// A value as the table holds it.
enum Body {
    /// JSON text, `is_binary` 0.
    Json(Bytes),
    /// Bytes in base64, `is_binary` 1.
    Base64(String),
}

fn prepare(md: &Metadata, _version: &str) -> std::result::Result<Box<dyn Prepared<dyn StateStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let interval = if md.contains("cleanupInterval") { "cleanupInterval" } else { "cleanupIntervalInSeconds" };
    let config = SqliteStateConfig {
        db: DbConfig::read(md, &mut errors, &DEFAULTS),
        table: table(md, &mut errors, "tableName", "state"),
        metadata_table: table(md, &mut errors, "metadataTableName", "metadata"),
        cleanup_interval: span(md, &mut errors, interval, Duration::ZERO),
    };
    errors.finish(Box::new(config) as Box<dyn Prepared<dyn StateStore>>)
}

#[async_trait]
impl Prepared<dyn StateStore> for SqliteStateConfig {
    fn holds(&self) -> Option<Hold> {
        let file = self.db.uri.split('?').next().unwrap_or_default();
        (!self.db.memory).then(|| Hold { resource: file.to_owned(), alone: self.db.alone })
    }

    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn StateStore>> {
        let upkeep = (!self.cleanup_interval.is_zero()).then(|| sweep(&self, Arc::clone(&cx.clock)));
        let setup = migrate(self.table.clone(), self.metadata_table.clone());
        let shared = Arc::new(Shared { sql: Sql::new(&self.table), clock: Arc::clone(&cx.clock) });
        let place = (!self.db.memory).then(|| format!("{} {}", self.db.uri, self.table));
        Ok(Arc::new(SqliteState { client: Client::open(self.db, setup, upkeep).await?, place, shared }))
    }
}

/// Brings the tables to version 1, whoever made the file. Safe for many processes at once.
fn migrate(table: String, metadata: String) -> Setup {
    Box::new(move |db| {
        crate::schema::migrate(
            db,
            &metadata,
            "migrations",
            &table,
            &[&format!(
                "CREATE TABLE IF NOT EXISTS {table} (
                    key TEXT NOT NULL PRIMARY KEY,
                    value TEXT NOT NULL,
                    is_binary BOOLEAN NOT NULL,
                    etag TEXT NOT NULL,
                    expiration_time TIMESTAMP DEFAULT NULL,
                    update_time TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP
                )"
            )],
        )
    })
}

/// Deletes expired rows, a window of rows at a time. The row `last-cleanup` keeps several
/// processes from doing it twice in one period.
fn sweep(config: &SqliteStateConfig, clock: Arc<dyn Clock>) -> Upkeep {
    let every = config.cleanup_interval;
    let window = format!(
        "SELECT rowid, expiration_time IS NOT NULL AND expiration_time < ?2 FROM {} WHERE rowid > ?1 ORDER BY rowid LIMIT {SWEEP_ROWS}",
        config.table
    );
    // Checked again: the row may have been written since it was looked at.
    let delete = format!(
        "DELETE FROM {} WHERE rowid = ?1 AND expiration_time IS NOT NULL AND expiration_time < ?2",
        config.table
    );
    let metadata = config.metadata_table.clone();
    // Where the running pass stands; `None` between two passes.
    let mut cursor: Option<i64> = None;
    Upkeep {
        every,
        round: Box::new(move |db| {
            let now = stamp::millis(clock.now());
            if cursor.is_none() && !crate::schema::claim_cleanup(db, &metadata, "last-cleanup", clock.now(), every)? {
                return Ok(false);
            }
            let rows: Vec<(i64, bool)> = db
                .prepare_cached(&window)?
                .query_map(params![cursor.unwrap_or(i64::MIN), now], |r| Ok((r.get(0)?, r.get(1)?)))?
                .collect::<rusqlite::Result<_>>()?;
            if rows.iter().any(|(_, expired)| *expired) {
                let tx = Transaction::new_unchecked(db, TransactionBehavior::Immediate)?;
                let mut statement = db.prepare_cached(&delete)?;
                for (row, _) in rows.iter().filter(|(_, expired)| *expired) {
                    statement.execute(params![row, now])?;
                }
                drop(statement);
                tx.commit()?;
            }
            cursor = rows.last().map(|(row, _)| *row).filter(|_| rows.len() == SWEEP_ROWS as usize);
            Ok(cursor.is_some())
        }),
    }
}

impl Sql {
    fn new(table: &str) -> Self {
        const ALIVE: &str = "(expiration_time IS NULL OR expiration_time > ?2)";
        let insert = format!(
            "INSERT INTO {table} (key, value, is_binary, etag, expiration_time, update_time) VALUES (?1, ?3, ?4, ?5, ?6, ?7)"
        );
        let values = "value = excluded.value, is_binary = excluded.is_binary, etag = excluded.etag, \
                      expiration_time = excluded.expiration_time, update_time = excluded.update_time";
        Self {
            get: format!("SELECT value, is_binary, etag, expiration_time FROM {table} WHERE key = ?1 AND {ALIVE}"),
            // ?2 stands in it only so that the three writes take the same parameters.
            upsert: format!("{insert} ON CONFLICT (key) DO UPDATE SET {values} WHERE ?2 IS NOT NULL"),
            // An expired row that is still there counts as absent.
            insert_if_absent: format!(
                "{insert} ON CONFLICT (key) DO UPDATE SET {values} WHERE expiration_time IS NOT NULL AND expiration_time <= ?2"
            ),
            update_if_match: format!(
                "UPDATE {table} SET value = ?3, is_binary = ?4, etag = ?5, expiration_time = ?6, update_time = ?7 \
                 WHERE key = ?1 AND etag = ?8 AND {ALIVE}"
            ),
            delete: format!("DELETE FROM {table} WHERE key = ?1"),
            delete_if_match: format!("DELETE FROM {table} WHERE key = ?1 AND etag = ?3 AND {ALIVE}"),
            list: format!("SELECT key FROM {table} WHERE key >= ?1 AND key > ?3 AND {ALIVE} ORDER BY key LIMIT ?4"),
            list_to: format!(
                "SELECT key FROM {table} WHERE key >= ?1 AND key > ?3 AND key < ?5 AND {ALIVE} ORDER BY key LIMIT ?4"
            ),
        }
    }
}

impl Shared {
    fn now(&self) -> String {
        stamp::millis(self.clock.now())
    }

    fn get(&self, db: &Connection, key: &str, now: &str) -> Result<Option<Item>, Fault> {
        let mut statement = db.prepare_cached(&self.sql.get)?;
        let row = statement.query_row(params![key, now], |row| Ok(item(row))).optional()?;
        row.transpose()
    }

    fn apply(&self, db: &Connection, write: &Write) -> Result<(), Fault> {
        let now = self.clock.now();
        let now_text = stamp::millis(now);
        let key = write.key.as_str();
        match &write.change {
            Change::Remove { etag: None } => {
                db.prepare_cached(&self.sql.delete)?.execute([key])?;
                Ok(())
            }
            Change::Remove { etag: Some(etag) } => {
                let changed = db.prepare_cached(&self.sql.delete_if_match)?.execute(params![key, now_text, etag])?;
                if changed == 0 { Err(mismatch()) } else { Ok(()) }
            }
            Change::Put { body, etag, ttl, only } => {
                let expires = ttl.and_then(|t| now.checked_add(t)).map(stamp::millis);
                let updated = stamp::seconds(now);
                let binary = matches!(body, Body::Base64(_));
                let changed = match only {
                    Only::IfMatch(expected) => db
                        .prepare_cached(&self.sql.update_if_match)?
                        .execute(params![key, now_text, body, binary, etag, expires, updated, expected])?,
                    Only::Always => db
                        .prepare_cached(&self.sql.upsert)?
                        .execute(params![key, now_text, body, binary, etag, expires, updated])?,
                    Only::IfAbsent => db
                        .prepare_cached(&self.sql.insert_if_absent)?
                        .execute(params![key, now_text, body, binary, etag, expires, updated])?,
                };
                if changed == 0 { Err(mismatch()) } else { Ok(()) }
            }
        }
    }
}

impl Write {
    fn set(req: SetState<'_>) -> Result<Self> {
        require_key(req.key, "set")?;
        let body = match req.value {
            Value::Json(text) => {
                if std::str::from_utf8(&text).is_err() {
                    return Err(Error::invalid("the JSON value is not valid UTF-8"));
                }
                Body::Json(text)
            }
            Value::Binary(bytes) => Body::Base64(STANDARD.encode(&bytes)),
        };
        let ttl = match req.ttl {
            Some(Ttl::After(d)) => Some(d),
            Some(Ttl::Never) | None => None,
        };
        let only = match (req.etag, req.concurrency) {
            (Some(etag), _) => Only::IfMatch(etag.to_owned()),
            (None, Concurrency::FirstWrite) => Only::IfAbsent,
            (None, Concurrency::LastWrite) => Only::Always,
        };
        let etag = Uuid::new_v4().hyphenated().to_string();
        Ok(Self { key: req.key.to_owned(), change: Change::Put { body, etag, ttl, only } })
    }

    fn delete(req: DeleteState<'_>) -> Result<Self> {
        require_key(req.key, "delete")?;
        Ok(Self { key: req.key.to_owned(), change: Change::Remove { etag: req.etag.map(str::to_owned) } })
    }

    fn weight(&self) -> usize {
        match &self.change {
            Change::Put { body: Body::Json(b), .. } => b.len(),
            Change::Put { body: Body::Base64(s), .. } => s.len(),
            Change::Remove { .. } => 0,
        }
    }
}

impl ToSql for Body {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        let text = match self {
            Self::Json(b) => b.as_ref(),
            Self::Base64(s) => s.as_bytes(),
        };
        Ok(ToSqlOutput::Borrowed(ValueRef::Text(text)))
    }
}

impl SqliteState {
    async fn write(&self, write: Write) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        self.client.write(write.weight(), false, move |db| shared.apply(db, &write)).await
    }
}

impl fmt::Debug for SqliteState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqliteState").finish_non_exhaustive()
    }
}

#[async_trait]
impl Component for SqliteState {
    async fn ping(&self) -> Result<()> {
        self.client
            .read(|db| {
                Ok(db.query_row("SELECT count(*) FROM (SELECT 1 FROM sqlite_master LIMIT 1)", [], |_| Ok(()))?)
            })
            .await
    }

    fn place(&self) -> Option<String> {
        self.place.clone()
    }

    async fn close(&self) {
        self.client.close().await;
    }
}

#[async_trait]
impl StateStore for SqliteState {
    fn caps(&self) -> StateCaps {
        StateCaps { etag: true, ttl: true, delete_with_prefix: false, keys_like: true, actor: true }
    }

    async fn get(&self, req: GetState<'_>) -> Result<Option<Item>> {
        require_key(req.key, "get")?;
        let shared = Arc::clone(&self.shared);
        let key = req.key.to_owned();
        self.client.read(move |db| shared.get(db, &key, &shared.now())).await
    }

    async fn set(&self, req: SetState<'_>) -> Result<()> {
        self.write(Write::set(req)?).await
    }

    async fn delete(&self, req: DeleteState<'_>) -> Result<()> {
        self.write(Write::delete(req)?).await
    }

    fn bulk(&self) -> Option<&dyn BulkState> {
        Some(self)
    }

    fn transact(&self) -> Option<&dyn TransactState> {
        Some(self)
    }

    fn list(&self) -> Option<&dyn ListKeys> {
        Some(self)
    }
}

#[async_trait]
impl BulkState for SqliteState {
    async fn get_many(&self, reqs: &[GetState<'_>]) -> Result<Vec<Result<Option<Item>>>> {
        let shared = Arc::clone(&self.shared);
        let keys: Vec<String> = reqs.iter().map(|r| r.key.to_owned()).collect();
        let work = move |db: &Connection| {
            // One snapshot for all of them.
            let tx = db.unchecked_transaction()?;
            let now = shared.now();
            let mut items = Vec::with_capacity(keys.len());
            for key in &keys {
                items.push(match require_key(key, "get") {
                    Err(e) => Err(e),
                    Ok(()) => match shared.get(db, key, &now) {
                        Ok(item) => Ok(item),
                        Err(Fault::Refused(e)) => Err(e),
                        Err(fault) => return Err(fault),
                    },
                });
            }
            tx.finish()?;
            Ok(items)
        };
        self.client.read(work).await
    }
}

#[async_trait]
impl TransactState for SqliteState {
    async fn transact(&self, ops: Vec<TransactOp<'_>>, _metadata: &Metadata) -> Result<()> {
        let writes = ops
            .into_iter()
            .map(|op| match op {
                TransactOp::Set(set) => Write::set(set),
                TransactOp::Delete(delete) => Write::delete(delete),
            })
            .collect::<Result<Vec<_>>>()?;
        if writes.is_empty() {
            return Ok(());
        }
        let shared = Arc::clone(&self.shared);
        let weight = writes.iter().map(Write::weight).sum();
        self.client.write(weight, true, move |db| writes.iter().try_for_each(|w| shared.apply(db, w))).await
    }
}

#[async_trait]
impl ListKeys for SqliteState {
    /// The token is the last key of the page before.
    async fn keys(&self, prefix: &str, limit: usize, token: Option<&str>) -> Result<KeyPage> {
        let shared = Arc::clone(&self.shared);
        let limit = limit.clamp(1, LARGEST_PAGE);
        let (from, after, to) = (prefix.to_owned(), token.unwrap_or("").to_owned(), successor(prefix));
        let work = move |db: &Connection| {
            let now = shared.now();
            let sql = if to.is_some() { &shared.sql.list_to } else { &shared.sql.list };
            let mut statement = db.prepare_cached(sql)?;
            let asked = i64::try_from(limit + 1).unwrap_or(i64::MAX);
            let rows = match &to {
                Some(to) => statement.query(params![from, now, after, asked, to])?,
                None => statement.query(params![from, now, after, asked])?,
            };
            let mut keys: Vec<String> = rows.mapped(|r| r.get(0)).collect::<rusqlite::Result<_>>()?;
            let more = keys.len() > limit;
            keys.truncate(limit);
            let next = if more { keys.last().cloned() } else { None };
            Ok(KeyPage { keys, next })
        };
        self.client.read(work).await
    }
}

/// The smallest text above every text that begins with `prefix`; `None` when there is none.
fn successor(prefix: &str) -> Option<String> {
    let mut chars: Vec<char> = prefix.chars().collect();
    while let Some(last) = chars.pop() {
        // The range of `char` steps over the surrogates.
        if let Some(next) = (last..=char::MAX).nth(1) {
            chars.push(next);
            return Some(chars.into_iter().collect());
        }
    }
    None
}

fn item(row: &Row<'_>) -> Result<Item, Fault> {
    let stored = match row.get_ref(0)? {
        ValueRef::Text(b) | ValueRef::Blob(b) => b,
        _ => return Err(Fault::Refused(Error::internal("the stored value is neither text nor bytes"))),
    };
    let value = if row.get::<_, bool>(1)? {
        let bytes = STANDARD.decode(stored).map_err(|_| {
            Fault::Refused(Error::internal("failed to decode binary data: the stored value is not base64"))
        })?;
        Bytes::from(bytes)
    } else {
        Bytes::copy_from_slice(stored)
    };
    let expires: Option<SystemTime> = match row.get_ref(3)? {
        ValueRef::Text(t) => std::str::from_utf8(t).ok().and_then(stamp::parse),
        _ => None,
    };
    Ok(Item { value, etag: Some(row.get(2)?), expires, content_type: None })
}

fn require_key(key: &str, operation: &str) -> Result<()> {
    if key.is_empty() { Err(Error::invalid(format!("missing key in {operation} operation"))) } else { Ok(()) }
}

fn mismatch() -> Fault {
    Fault::Refused(Error::conflict("the ETag does not match, or the key exists already"))
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
