//! What both versions of the state store have in common; they differ in columns, ETags and
//! the form of values.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use mecha_components_api::{
    BulkState, Component, Concurrency, DeleteState, Error, GetState, Item, KeyPage, ListKeys, Metadata, QueryState,
    Result, SetState, StateCaps, StateStore, TransactOp, TransactState, Ttl, Value,
};
use tokio::time::{Instant, timeout};
use tokio_postgres::types::Type;

use crate::client::{Client, Step};
use crate::error::Twice;
use crate::sql::{Param, RowRef, Sql};

/// Keys in one page, at most, whatever the caller asks for.
const LARGEST_PAGE: usize = 10_000;
/// Expired rows that are deleted by one write at most, so that it is not held up for long.
const SWEEP_ROWS: u32 = 500;
/// Longest time that a write spends on them.
const SWEEP_LIMIT: Duration = Duration::from_secs(1);
/// Longest life time that is told to the server, about 10,000 years; its calendar ends later.
const LONGEST_LIFE: i64 = 10_000 * 365 * 86_400 * 1_000_000;

/// How one version of the component lays its data out.
pub(crate) trait Layout: fmt::Debug + Send + Sync + Sized + 'static {
    /// A value as the table holds it.
    type Body: Send + Sync;

    /// Names and types that the statements need.
    fn columns() -> Columns;

    /// The value for the table.
    fn body(value: Value) -> Result<Self::Body>;

    /// The value's parameters, from `$3` on.
    fn params(body: &Self::Body) -> [Param<'_>; 2];

    /// The value of a row, from column `at` on.
    fn value(row: RowRef<'_>, at: usize) -> Result<bytes::Bytes>;

    /// The ETag as a parameter. `Err` is the answer to a malformed one.
    fn etag(text: &str) -> Result<Param<'static>>;

    /// The power to answer queries.
    fn query(_: &PgState<Self>) -> Option<&dyn QueryState> {
        None
    }
}

/// What [`PgState`] fills its statements with.
pub(crate) struct Columns {
    /// Columns that hold the value, selected in this form.
    pub(crate) select: &'static str,
    /// Columns that hold the value, for writing.
    pub(crate) value: [&'static str; 2],
    /// How many of `value` are in use.
    pub(crate) used: usize,
    /// Their types.
    pub(crate) types: [Type; 2],
    /// The ETag, and its form as text.
    pub(crate) etag: &'static str,
    pub(crate) etag_type: Type,
    /// Sets a new ETag on update; empty when the server does by itself.
    pub(crate) renew: &'static str,
    pub(crate) updated: &'static str,
    pub(crate) expires: &'static str,
}

/// The store.
pub(crate) struct PgState<L> {
    pub(crate) client: Client,
    pub(crate) table: String,
    sql: Statements,
    sweep: Option<Sweep>,
    layout: std::marker::PhantomData<L>,
}

/// Statements, with the names filled in once. Their text is the key of the statement cache.
struct Statements {
    get: Sql,
    get_many: Sql,
    upsert: Sql,
    insert_if_absent: Sql,
    update_if_match: Sql,
    delete: Sql,
    delete_if_match: Sql,
    list: Sql,
}

/// Deletes expired rows, a few with one write after each interval. The row in the metadata table
/// keeps several daemons from doing it twice.
pub(crate) struct Sweep {
    claim: Sql,
    delete: Sql,
    every: Duration,
    born: Instant,
    /// Milliseconds after `born` from which on the next write sweeps.
    due: AtomicU64,
    /// The last round did not get to the end.
    more: AtomicBool,
}

/// A checked write.
struct Write<'a, L: Layout> {
    key: &'a str,
    change: Change<L>,
}

enum Change<L: Layout> {
    Put { body: L::Body, ttl: Option<i64>, only: Only },
    Remove { etag: Option<Param<'static>> },
}

/// The condition of a write.
enum Only {
    Always,
    IfAbsent,
    IfMatch(Param<'static>),
}

impl Statements {
    fn new(table: &str, c: &Columns) -> Self {
        let Columns { select, etag, expires, updated, renew, .. } = c;
        let alive = |alias: &str| format!("({alias}{expires} IS NULL OR {alias}{expires} > now())");
        let alive_row = alive("");
        let names = c.value[..c.used].join(", ");
        let places = if c.used == 1 { "$3" } else { "$3, $4" };
        let later = "now() + $2::bigint * interval '1 microsecond'";
        let assign: Vec<String> = (0..c.used).map(|i| format!("{} = ${}", c.value[i], i + 3)).collect();
        let assign = format!("{}, {updated} = now(), {expires} = {later}{renew}", assign.join(", "));
        let insert = format!(
            "INSERT INTO {table} AS t (key, {names}, {expires}) VALUES ($1, {places}, {later}) \
             ON CONFLICT (key) DO UPDATE SET {assign}"
        );
        let write: Vec<Type> = [Type::TEXT, Type::INT8].into_iter().chain(c.types[..c.used].iter().cloned()).collect();
        let with_etag: Vec<Type> = write.iter().cloned().chain([c.etag_type.clone()]).collect();
        let match_at = 3 + c.used;
        let columns = format!("{select}, {etag}::text, (extract(epoch FROM {expires}) * 1000000)::bigint");
        Self {
            get: Sql::new(format!("SELECT {columns} FROM {table} WHERE key = $1 AND {alive_row}"), &[Type::TEXT]),
            get_many: Sql::new(
                format!("SELECT {columns}, key FROM {table} WHERE key = ANY($1) AND {alive_row}"),
                &[Type::TEXT_ARRAY],
            ),
            // An expired row that is still there counts as absent.
            insert_if_absent: Sql::new(format!("{insert} WHERE t.{expires} <= now()"), &write),
            upsert: Sql::new(insert, &write),
            update_if_match: Sql::new(
                format!("UPDATE {table} SET {assign} WHERE key = $1 AND {etag} = ${match_at} AND {alive_row}"),
                &with_etag,
            ),
            delete: Sql::new(format!("DELETE FROM {table} WHERE key = $1"), &[Type::TEXT]),
            delete_if_match: Sql::new(
                format!("DELETE FROM {table} WHERE key = $1 AND {etag} = $2 AND {alive_row}"),
                &[Type::TEXT, c.etag_type.clone()],
            ),
            // In the order of `row_id`, which has an index for this: pages stay whole while rows come and go.
            list: Sql::new(
                format!(
                    "SELECT key, row_id FROM {table} WHERE row_id > $2 AND starts_with(key, $1) AND {alive_row} \
                     ORDER BY row_id LIMIT $3"
                ),
                &[Type::TEXT, Type::INT8, Type::INT8],
            ),
        }
    }
}

impl Sweep {
    /// `row` is the key in the metadata table.
    pub(crate) fn new(table: &str, expires: &str, metadata: &str, row: &str, every: Duration) -> Self {
        let row = row.replace('\'', "''");
        let claim = format!(
            "INSERT INTO {metadata} AS m (key, value) VALUES ('{row}', now()::text) ON CONFLICT (key) DO UPDATE \
             SET value = now()::text WHERE m.value::timestamptz <= now() - $1::bigint * interval '1 microsecond'"
        );
        let expired = format!("{expires} IS NOT NULL AND {expires} < now()");
        // Rows that somebody is writing are left for the next time: they may live again.
        let delete = format!(
            "DELETE FROM {table} WHERE key IN (SELECT key FROM {table} WHERE {expired} LIMIT {SWEEP_ROWS} \
             FOR UPDATE SKIP LOCKED) AND {expired}"
        );
        Self {
            claim: Sql::new(claim, &[Type::INT8]),
            delete: Sql::new(delete, &[]),
            every,
            born: Instant::now(),
            due: AtomicU64::new(0),
            more: AtomicBool::new(false),
        }
    }

    /// Whether it is this caller's turn.
    fn turn(&self) -> bool {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let now = millis(self.born.elapsed());
        let due = self.due.load(Ordering::Relaxed);
        let next = now.saturating_add(millis(self.every).max(1));
        now >= due && self.due.compare_exchange(due, next, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }

    async fn run(&self, client: &Client) -> Result<()> {
        if !self.more.swap(false, Ordering::Relaxed) {
            let every = i64::try_from(self.every.as_micros()).unwrap_or(LONGEST_LIFE).min(LONGEST_LIFE);
            let claimed = client.write("clean-up", Twice::No, &self.claim, &[Param::Int(Some(every))]).await?;
            if claimed == 0 {
                return Ok(());
            }
        }
        if client.write("clean-up", Twice::No, &self.delete, &[]).await? >= u64::from(SWEEP_ROWS) {
            // There is more: the next write goes on, whatever the interval says.
            self.more.store(true, Ordering::Relaxed);
            self.due.store(0, Ordering::Relaxed);
        }
        Ok(())
    }
}

impl<L: Layout> Write<'_, L> {
    fn set(req: SetState<'_>) -> Result<Write<'_, L>> {
        require_key(req.key, "set")?;
        let only = match (req.etag, req.concurrency) {
            (Some(etag), _) => Only::IfMatch(L::etag(etag)?),
            (None, Concurrency::FirstWrite) => Only::IfAbsent,
            (None, Concurrency::LastWrite) => Only::Always,
        };
        let ttl = match req.ttl {
            Some(Ttl::After(d)) => Some(i64::try_from(d.as_micros()).unwrap_or(LONGEST_LIFE).min(LONGEST_LIFE)),
            Some(Ttl::Never) | None => None,
        };
        Ok(Write { key: req.key, change: Change::Put { body: L::body(req.value)?, ttl, only } })
    }

    fn delete(req: DeleteState<'_>) -> Result<Write<'_, L>> {
        require_key(req.key, "delete")?;
        Ok(Write { key: req.key, change: Change::Remove { etag: req.etag.map(L::etag).transpose()? } })
    }

    /// Whether doing it again leaves the same behind.
    fn twice(&self) -> Twice {
        match &self.change {
            Change::Put { only: Only::Always, .. } | Change::Remove { etag: None } => Twice::Harmless,
            Change::Put { .. } | Change::Remove { .. } => Twice::No,
        }
    }

    fn step<'s>(&'s self, sql: &'s Statements, used: usize) -> Step<'s> {
        match &self.change {
            Change::Put { body, ttl, only } => {
                let mut params = Vec::with_capacity(5);
                params.extend([Param::Text(self.key), Param::Int(*ttl)]);
                params.extend_from_slice(&L::params(body)[..used]);
                match only {
                    Only::Always => Step { sql: &sql.upsert, params, must_change: None },
                    Only::IfAbsent => Step { sql: &sql.insert_if_absent, params, must_change: Some(mismatch) },
                    Only::IfMatch(etag) => {
                        params.push(*etag);
                        Step { sql: &sql.update_if_match, params, must_change: Some(mismatch) }
                    }
                }
            }
            Change::Remove { etag: None } => {
                Step { sql: &sql.delete, params: vec![Param::Text(self.key)], must_change: None }
            }
            Change::Remove { etag: Some(etag) } => Step {
                sql: &sql.delete_if_match,
                params: vec![Param::Text(self.key), *etag],
                must_change: Some(mismatch),
            },
        }
    }
}

impl<L: Layout> PgState<L> {
    pub(crate) fn new(client: Client, table: String, sweep: Option<Sweep>) -> Self {
        let sql = Statements::new(&table, &L::columns());
        Self { client, table, sql, sweep, layout: std::marker::PhantomData }
    }

    async fn write(&self, what: &'static str, write: Write<'_, L>) -> Result<()> {
        let step = write.step(&self.sql, L::columns().used);
        let changed = self.client.write(what, write.twice(), step.sql, &step.params).await?;
        match step.must_change {
            Some(refusal) if changed == 0 => Err(refusal()),
            _ => {
                self.tidy().await;
                Ok(())
            }
        }
    }

    /// Deletes expired rows when it is time. The write before is done, whatever happens here,
    /// and its caller does not wait for long.
    async fn tidy(&self) {
        let Some(sweep) = self.sweep.as_ref().filter(|sweep| sweep.turn()) else { return };
        match timeout(SWEEP_LIMIT, sweep.run(&self.client)).await {
            Ok(Ok(())) => {}
            Ok(Err(e)) => tracing::debug!(table = self.table, error = %e, "expired rows were not deleted"),
            Err(_) => tracing::debug!(table = self.table, "expired rows were not deleted in time"),
        }
    }

    pub(crate) fn item(row: RowRef<'_>) -> Result<Item> {
        let used = L::columns().used;
        let expires = row.int(used + 1)?.map(|micros| match u64::try_from(micros) {
            Ok(micros) => SystemTime::UNIX_EPOCH + Duration::from_micros(micros),
            Err(_) => SystemTime::UNIX_EPOCH,
        });
        Ok(Item { value: L::value(row, 0)?, etag: row.text(used)?.map(str::to_owned), expires, content_type: None })
    }
}

impl<L> fmt::Debug for PgState<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgState").field("table", &self.table).field("client", &self.client).finish_non_exhaustive()
    }
}

#[async_trait]
impl<L: Layout> Component for PgState<L> {
    async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    fn place(&self) -> Option<String> {
        Some(format!("{} {}", self.client.place(), self.table))
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[async_trait]
impl<L: Layout> StateStore for PgState<L> {
    fn caps(&self) -> StateCaps {
        StateCaps { etag: true, ttl: true, delete_with_prefix: false, keys_like: true, actor: true }
    }

    async fn get(&self, req: GetState<'_>) -> Result<Option<Item>> {
        require_key(req.key, "get")?;
        let rows = self.client.read("get", &self.sql.get, &[Param::Text(req.key)]).await?;
        rows.iter().next().map(Self::item).transpose()
    }

    async fn set(&self, req: SetState<'_>) -> Result<()> {
        self.write("set", Write::set(req)?).await
    }

    async fn delete(&self, req: DeleteState<'_>) -> Result<()> {
        self.write("delete", Write::delete(req)?).await
    }

    fn bulk(&self) -> Option<&dyn BulkState> {
        Some(self)
    }

    fn transact(&self) -> Option<&dyn TransactState> {
        Some(self)
    }

    fn query(&self) -> Option<&dyn QueryState> {
        L::query(self)
    }

    fn list(&self) -> Option<&dyn ListKeys> {
        Some(self)
    }
}

#[async_trait]
impl<L: Layout> BulkState for PgState<L> {
    async fn get_many(&self, reqs: &[GetState<'_>]) -> Result<Vec<Result<Option<Item>>>> {
        let mut keys: Vec<&str> = reqs.iter().map(|r| r.key).filter(|k| require_key(k, "get").is_ok()).collect();
        keys.sort_unstable();
        keys.dedup();
        if keys.is_empty() {
            return Ok(reqs.iter().map(|r| require_key(r.key, "get").map(|()| None)).collect());
        }
        let rows = self.client.read("bulk get", &self.sql.get_many, &[Param::Texts(&keys)]).await?;
        let key_at = L::columns().used + 2;
        let mut found = HashMap::with_capacity(keys.len());
        for row in rows.iter() {
            found.insert(row.needed(key_at)?, row);
        }
        // The same key may be asked for twice.
        let one = |key: &str| match found.get(key) {
            Some(row) => Self::item(*row).map(Some),
            None => Ok(None),
        };
        Ok(reqs.iter().map(|r| require_key(r.key, "get").and_then(|()| one(r.key))).collect())
    }
}

#[async_trait]
impl<L: Layout> TransactState for PgState<L> {
    async fn transact(&self, ops: Vec<TransactOp<'_>>, _metadata: &Metadata) -> Result<()> {
        let mut writes = ops
            .into_iter()
            .map(|op| match op {
                TransactOp::Set(set) => Write::<L>::set(set),
                TransactOp::Delete(delete) => Write::<L>::delete(delete),
            })
            .collect::<Result<Vec<_>>>()?;
        if writes.len() <= 1 {
            return match writes.pop() {
                None => Ok(()),
                Some(write) => self.write("transaction", write).await,
            };
        }
        // Nobody sees the order of writes to different keys. In one order for all, transactions
        // wait for each other instead of getting into a deadlock; writes to one key keep theirs.
        writes.sort_by_key(|w| w.key);
        let twice = if writes.iter().all(|w| w.twice() == Twice::Harmless) { Twice::Harmless } else { Twice::No };
        let used = L::columns().used;
        let steps: Vec<Step<'_>> = writes.iter().map(|w| w.step(&self.sql, used)).collect();
        self.client.transact("transaction", twice, &steps).await?;
        self.tidy().await;
        Ok(())
    }
}

#[async_trait]
impl<L: Layout> ListKeys for PgState<L> {
    /// The token is the row id of the last key of the page before.
    async fn keys(&self, prefix: &str, limit: usize, token: Option<&str>) -> Result<KeyPage> {
        let limit = limit.clamp(1, LARGEST_PAGE);
        let after: i64 = match token {
            None => 0,
            Some(token) => {
                token.parse().map_err(|_| Error::invalid("the continuation token is not one of this store"))?
            }
        };
        if prefix.contains('\0') {
            return Ok(KeyPage::default());
        }
        let asked = i64::try_from(limit + 1).unwrap_or(i64::MAX);
        let params = [Param::Text(prefix), Param::Int(Some(after)), Param::Int(Some(asked))];
        let rows = self.client.read("list keys", &self.sql.list, &params).await?;
        let mut page = KeyPage::default();
        let mut last = after;
        for row in rows.iter() {
            if page.keys.len() == limit {
                page.next = Some(last.to_string());
                break;
            }
            page.keys.push(row.needed(0)?.to_owned());
            last = row.int(1)?.unwrap_or(last);
        }
        Ok(page)
    }
}

fn require_key(key: &str, operation: &str) -> Result<()> {
    if key.is_empty() {
        return Err(Error::invalid(format!("missing key in {operation} operation")));
    }
    if key.contains('\0') {
        return Err(Error::invalid("PostgreSQL cannot hold a key with the character NUL"));
    }
    Ok(())
}

fn mismatch() -> Error {
    Error::conflict("the ETag does not match, or the key exists already")
}
