//! `state.redis`: a hash per key with the fields `data`, `version` (the ETag) and, after a
//! first-write, `first-write`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use mecha_components_api::{
    BuildCx, BulkState, Clock, Component, Concurrency, ConfigErrors, Consistency, DeleteState, Error, Field, FieldType,
    GetState, Item, KeyPage, ListKeys, Metadata, Prepared, Registration, Result, Retry, SetState, StateCaps,
    StateStore, TransactOp, TransactState, Ttl,
};
use redis::{Pipeline, Value};
use serde_json::value::RawValue;

use crate::client::{Client, Op, Outcome};
use crate::config::{Block, RedisConfig, redis_fields};
use crate::error::{Fault, is, is_unknown_command};
use crate::keyspace;
use crate::script::{Run, Script, forgotten, script};

static SET: Script = script!(include_str!("state/set.lua"));
static DELETE: Script = script!(include_str!("state/delete.lua"));
static TRANSACT: Script = script!(include_str!("state/transact.lua"));

/// Keys that one pipeline of a bulk read carries.
const BULK_CHUNK: usize = 256;
/// Reads at once where a pipeline cannot carry them.
const BULK_PARALLEL: usize = 16;
/// Longest wait for replicas to confirm a strong write.
const REPLICAS_LIMIT: Duration = Duration::from_secs(1);
/// Life times beyond this, thousands of years, overflow the server's clock.
const LONGEST_LIFE_MS: u64 = 1 << 48;

const FIELDS: &[Field] = redis_fields![min_retry: "2s";
    Field::new("ttlInSeconds", FieldType::Integer, "Life time of values saved without one, in seconds; none when not positive."),
    Field::new("queryIndexes", FieldType::Text, "Indexes of the query API; accepted without effect."),
];

/// How `register` makes it known.
pub(crate) fn registration() -> Registration<dyn StateStore> {
    Registration {
        kind: "state.redis",
        aliases: &[],
        versions: &["v1"],
        summary: "State in Redis, with ETags, life times and transactions",
        fields: FIELDS,
        prepare,
    }
}

struct RedisStateConfig {
    redis: RedisConfig,
    default_ttl: Option<Duration>,
}

/// The state store.
#[derive(Debug)]
struct RedisState {
    client: Arc<Client>,
    default_ttl: Option<Duration>,
    clock: Arc<dyn Clock>,
    /// The most replicas that were ever seen: a strong write needs as many.
    replicas: AtomicU64,
}

fn prepare(md: &Metadata, _version: &str) -> std::result::Result<Box<dyn Prepared<dyn StateStore>>, ConfigErrors> {
    let mut errors = ConfigErrors::new();
    let redis = RedisConfig::read(md, &mut errors, Block::State);
    let ttl = errors.int(md, "ttlInSeconds", 0);
    let default_ttl = u64::try_from(ttl).ok().filter(|s| *s > 0).map(Duration::from_secs);
    errors.finish(Box::new(RedisStateConfig { redis, default_ttl }) as Box<dyn Prepared<dyn StateStore>>)
}

#[async_trait]
impl Prepared<dyn StateStore> for RedisStateConfig {
    async fn build(self: Box<Self>, cx: &BuildCx) -> Result<Arc<dyn StateStore>> {
        let store = RedisState {
            client: Client::open(self.redis).await?,
            default_ttl: self.default_ttl,
            clock: Arc::clone(&cx.clock),
            replicas: AtomicU64::new(0),
        };
        if !store.client.is_cluster() {
            store.count_replicas("").await?;
        }
        Ok(Arc::new(store))
    }
}

/// One write, checked and in the words of the scripts.
struct Write<'a> {
    key: &'a str,
    set: bool,
    /// Expected version, or empty.
    version: String,
    first_write: bool,
    /// Milliseconds, or empty.
    life: String,
    value: Bytes,
    strong: bool,
}

impl<'a> Write<'a> {
    fn set(req: SetState<'a>, default_ttl: Option<Duration>) -> Result<Self> {
        require_key(req.key, "set")?;
        let value = req.value.bytes().clone();
        if req.content_type.is_some_and(is_json) && serde_json::from_slice::<&RawValue>(&value).is_err() {
            return Err(Error::invalid("the content type is application/json, but the value is no JSON text"));
        }
        let version = match req.etag {
            Some(etag) => version(etag)
                .ok_or_else(|| Error::invalid(format!("invalid etag value: '{etag}' is not an integer")))?,
            None => String::new(),
        };
        let life = match req.ttl {
            Some(Ttl::After(life)) => Some(life),
            Some(Ttl::Never) => None,
            None => default_ttl,
        };
        Ok(Self {
            key: req.key,
            set: true,
            version,
            first_write: req.concurrency == Concurrency::FirstWrite,
            life: life.map(millis).unwrap_or_default(),
            value,
            strong: req.consistency == Consistency::Strong,
        })
    }

    fn delete(req: DeleteState<'a>) -> Result<Self> {
        require_key(req.key, "delete")?;
        let version = match req.etag {
            Some(etag) => version(etag).ok_or_else(mismatch)?,
            None => String::new(),
        };
        Ok(Self {
            key: req.key,
            set: false,
            version,
            first_write: false,
            life: String::new(),
            value: Bytes::new(),
            strong: req.consistency == Consistency::Strong,
        })
    }

    /// The script for this write alone; it gives 1 for done.
    fn run(&self) -> Run<'_> {
        if self.set {
            SET.run().key(self.key).arg(&self.version).arg(self.first()).arg(&self.life).arg(&self.value)
        } else {
            DELETE.run().key(self.key).arg(&self.version)
        }
    }

    fn first(&self) -> &'static str {
        if self.first_write { "1" } else { "0" }
    }

    /// Adds this write to a transaction.
    fn join<'s>(&'s self, run: Run<'s>) -> Run<'s> {
        let kind = if self.set { "set" } else { "delete" };
        run.key(self.key).arg(kind).arg(&self.version).arg(self.first()).arg(&self.life).arg(&self.value)
    }
}

impl RedisState {
    /// Runs a script that writes `key`, and for strong consistency waits for the replicas.
    async fn apply(&self, what: &'static str, key: &str, run: Run<'_>, strong: bool) -> Result<i64> {
        let op = self.client.write(what);
        if !strong {
            let reply = run.on(&self.client, op).await.map_err(|f| self.client.error(op, f))?;
            return number(what, &reply);
        }
        let needed = self.count_replicas(key).await?;
        let wait = REPLICAS_LIMIT.min(op.limit / 2);
        let mut outcomes = self.write_and_wait(op, run.command(false), needed, wait).await?;
        if outcomes.first().is_some_and(forgotten) {
            outcomes = self.write_and_wait(op, run.command(true), needed, wait).await?;
        }
        let mut outcomes = outcomes.into_iter();
        let done = number(what, &self.taken(op, outcomes.next())?)?;
        let reached = number(what, &self.taken(op, outcomes.next())?)?;
        if u64::try_from(reached).unwrap_or(0) < needed {
            return Err(Error::unavailable(format!(
                "{what}: the primary has it, but only {reached} of {needed} replicas confirmed it within {wait:?}"
            ))
            .with_retry(Retry::IfIdempotent));
        }
        Ok(done)
    }

    async fn write_and_wait(&self, op: Op, write: redis::Cmd, needed: u64, wait: Duration) -> Result<Vec<Outcome>> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.add_command(write).cmd("WAIT").arg(needed).arg(millis(wait));
        self.client.waiting_pipeline(op, &mut pipeline).await.map_err(|f| self.client.error(op, f))
    }

    /// How many replicas a strong write of `key` must reach: as many as this server ever had,
    /// and on a cluster, whose shards differ, as many as the shard has now.
    async fn count_replicas(&self, key: &str) -> Result<u64> {
        let op = self.client.read("count replicas");
        let mut pipeline = Pipeline::with_capacity(2);
        if !key.is_empty() {
            // Brings the question to the shard of the key.
            pipeline.cmd("EXISTS").arg(key);
        }
        pipeline.cmd("INFO").arg("replication");
        let outcomes = self.client.pipeline(op, &mut pipeline).await.map_err(|f| self.client.error(op, f))?;
        let connected = match self.taken(op, outcomes.into_iter().next_back()) {
            Ok(answer) => keyspace::connected_replicas(&answer).unwrap_or(0),
            // Not every server that speaks Redis has INFO, and not every user may ask.
            Err(e) if key.is_empty() => {
                tracing::debug!(target: "dapr.contrib", "cannot count the replicas: {e}");
                0
            }
            Err(e) => return Err(e),
        };
        if self.client.is_cluster() {
            return Ok(connected);
        }
        Ok(self.replicas.fetch_max(connected, Ordering::Relaxed).max(connected))
    }

    fn taken(&self, op: Op, outcome: Option<Outcome>) -> Result<Value> {
        match outcome {
            Some(Ok(value)) => Ok(value),
            Some(Err(e)) => Err(self.client.error(op, Fault::Sent(e))),
            None => Err(Error::internal(format!("{}: the server's answer is too short", op.what))),
        }
    }

    async fn get_one(&self, key: &str) -> Result<Option<Item>> {
        require_key(key, "get")?;
        let op = self.client.read("get");
        let mut pipeline = Pipeline::with_capacity(2);
        ask(&mut pipeline, key);
        let outcomes = self.client.pipeline(op, &mut pipeline).await.map_err(|f| self.client.error(op, f))?;
        let mut outcomes = outcomes.into_iter();
        self.item(op, key, outcomes.next(), outcomes.next()).await
    }

    /// Reads the two replies of [`ask`].
    async fn item(&self, op: Op, key: &str, hash: Option<Outcome>, life: Option<Outcome>) -> Result<Option<Item>> {
        let fields = match hash {
            Some(Err(e)) if is(&e, "WRONGTYPE") => return self.plain(op, key).await,
            hash => self.taken(op, hash)?,
        };
        let Value::Array(fields) = fields else { return Err(strange(op)) };
        let mut fields = fields.into_iter();
        let (value, etag) = match (fields.next().map(bytes), fields.next().map(bytes)) {
            (Some(Some(value)), Some(Some(version))) => (value, version),
            (Some(None), Some(None)) => return Ok(None),
            _ => return Err(Error::internal("get: the stored hash lacks one of the fields 'data' and 'version'")),
        };
        let etag = Some(String::from_utf8_lossy(&etag).into_owned());
        let life = number(op.what, &self.taken(op, life)?)?;
        Ok(Some(Item { value, etag, expires: self.expires(life), content_type: None }))
    }

    /// A key that is no hash: text that something else wrote, without a version, or a document
    /// that the incumbent wrote with the JSON module.
    async fn plain(&self, op: Op, key: &str) -> Result<Option<Item>> {
        let mut pipeline = Pipeline::with_capacity(2);
        pipeline.cmd("GET").arg(key).cmd("PTTL").arg(key);
        let outcomes = self.client.pipeline(op, &mut pipeline).await.map_err(|f| self.client.error(op, f))?;
        let mut outcomes = outcomes.into_iter();
        let (value, etag) = match outcomes.next() {
            Some(Err(e)) if is(&e, "WRONGTYPE") => match self.document(op, key).await? {
                Some((value, version)) => (value, version),
                None => return Err(self.client.error(op, Fault::Sent(e))),
            },
            text => match bytes(self.taken(op, text)?) {
                Some(value) => (value, None),
                None => return Ok(None),
            },
        };
        let life = number(op.what, &self.taken(op, outcomes.next())?)?;
        Ok(Some(Item { value, etag, expires: self.expires(life), content_type: None }))
    }

    /// Value and version of a document of the JSON module; `None` when it is none.
    async fn document(&self, op: Op, key: &str) -> Result<Option<(Bytes, Option<String>)>> {
        let mut cmd = redis::cmd("JSON.GET");
        cmd.arg(key);
        match self.client.try_call(op, &cmd).await {
            Ok(Value::BulkString(text)) => Ok(read_document(&text)),
            Ok(_) => Ok(None),
            Err(Fault::Sent(e)) if is(&e, "WRONGTYPE") || is_unknown_command(&e) => Ok(None),
            Err(fault) => Err(self.client.error(op, fault)),
        }
    }

    /// The time of expiry, from the milliseconds that are left; negative is never.
    fn expires(&self, left: i64) -> Option<std::time::SystemTime> {
        let left = u64::try_from(left).ok()?;
        self.clock.now().checked_add(Duration::from_millis(left))
    }

    async fn write(&self, what: &'static str, write: Write<'_>) -> Result<()> {
        if !write.set && write.version.is_empty() && !write.strong {
            let mut cmd = redis::cmd("DEL");
            cmd.arg(write.key);
            return self.client.call(self.client.repeatable_write(what), &cmd).await.map(drop);
        }
        match self.apply(what, write.key, write.run(), write.strong).await? {
            1 => Ok(()),
            _ => Err(mismatch()),
        }
    }
}

#[async_trait]
impl Component for RedisState {
    async fn ping(&self) -> Result<()> {
        self.client.ping().await
    }

    fn place(&self) -> Option<String> {
        Some(self.client.place())
    }

    async fn close(&self) {
        self.client.close();
    }
}

#[async_trait]
impl StateStore for RedisState {
    fn caps(&self) -> StateCaps {
        StateCaps { etag: true, ttl: true, delete_with_prefix: false, keys_like: true, actor: true }
    }

    async fn get(&self, req: GetState<'_>) -> Result<Option<Item>> {
        self.get_one(req.key).await
    }

    /// An ETag of a key that does not exist is accepted, and a first-write is refused only
    /// where the last write was one, too.
    async fn set(&self, req: SetState<'_>) -> Result<()> {
        self.write("set", Write::set(req, self.default_ttl)?).await
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

    /// A cluster has no order of keys over all its nodes that a token could mark.
    fn list(&self) -> Option<&dyn ListKeys> {
        (!self.client.is_cluster()).then_some(self)
    }
}

#[async_trait]
impl BulkState for RedisState {
    async fn get_many(&self, reqs: &[GetState<'_>]) -> Result<Vec<Result<Option<Item>>>> {
        if self.client.is_cluster() {
            // The keys lie on many nodes.
            let reads: Vec<_> = reqs.iter().map(|req| self.get_one(req.key)).collect();
            return Ok(stream::iter(reads).buffered(BULK_PARALLEL).collect().await);
        }
        let op = self.client.read("get");
        let mut items = Vec::with_capacity(reqs.len());
        for chunk in reqs.chunks(BULK_CHUNK) {
            let mut pipeline = Pipeline::with_capacity(chunk.len() * 2);
            for req in chunk {
                ask(&mut pipeline, req.key);
            }
            let outcomes = self.client.pipeline(op, &mut pipeline).await.map_err(|f| self.client.error(op, f))?;
            let mut outcomes = outcomes.into_iter();
            for req in chunk {
                let (hash, life) = (outcomes.next(), outcomes.next());
                items.push(match require_key(req.key, "get") {
                    Ok(()) => self.item(op, req.key, hash, life).await,
                    Err(e) => Err(e),
                });
            }
        }
        Ok(items)
    }
}

#[async_trait]
impl TransactState for RedisState {
    /// One script: it looks at every operation before it applies the first.
    async fn transact(&self, ops: Vec<TransactOp<'_>>, _metadata: &Metadata) -> Result<()> {
        let writes = ops.into_iter().map(|op| match op {
            TransactOp::Set(req) => Write::set(req, self.default_ttl),
            TransactOp::Delete(req) => Write::delete(req),
        });
        let writes: Vec<Write<'_>> = writes.collect::<Result<_>>()?;
        let Some(first) = writes.first() else { return Ok(()) };
        let strong = writes.iter().any(|w| w.strong);
        let run = writes.iter().fold(TRANSACT.run(), |run, write| write.join(run));
        match self.apply("transact", first.key, run, strong).await? {
            0 => Ok(()),
            at => {
                let key = usize::try_from(at).ok().and_then(|at| writes.get(at.wrapping_sub(1))).map_or("", |w| w.key);
                Err(Error::conflict(format!("the ETag of operation {at} does not match ({key}); nothing was written")))
            }
        }
    }
}

#[async_trait]
impl ListKeys for RedisState {
    async fn keys(&self, prefix: &str, limit: usize, token: Option<&str>) -> Result<KeyPage> {
        keyspace::page(&self.client, prefix, limit, token).await
    }
}

/// The members `data`, as it stands there, and `version`.
fn read_document(text: &[u8]) -> Option<(Bytes, Option<String>)> {
    let members: BTreeMap<&str, &RawValue> = serde_json::from_slice(text).ok()?;
    let data = Bytes::copy_from_slice(members.get("data")?.get().as_bytes());
    Some((data, members.get("version").map(|v| v.get().to_owned())))
}

/// Asks for value, version and the time that is left.
fn ask(pipeline: &mut Pipeline, key: &str) {
    pipeline.cmd("HMGET").arg(key).arg("data").arg("version").cmd("PTTL").arg(key);
}

fn bytes(value: Value) -> Option<Bytes> {
    match value {
        Value::BulkString(bytes) => Some(bytes.into()),
        Value::SimpleString(text) => Some(text.into_bytes().into()),
        Value::Int(n) => Some(n.to_string().into_bytes().into()),
        _ => None,
    }
}

fn number(what: &'static str, value: &Value) -> Result<i64> {
    match value {
        Value::Int(n) => Ok(*n),
        _ => Err(Error::internal(format!("{what}: the server's answer is no number"))),
    }
}

fn strange(op: Op) -> Error {
    Error::internal(format!("{}: the server's answer has another form than expected", op.what))
}

/// The version that an ETag means, in the one form the server writes it.
fn version(etag: &str) -> Option<String> {
    etag.parse::<i64>().ok().map(|n| n.to_string())
}

fn millis(time: Duration) -> String {
    // Rounded up: a value must not expire before its time.
    let ms = u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
    ms.clamp(1, LONGEST_LIFE_MS).to_string()
}

fn is_json(content_type: &str) -> bool {
    content_type.split(';').next().is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
}

fn require_key(key: &str, operation: &str) -> Result<()> {
    if key.is_empty() { Err(Error::invalid(format!("missing key in {operation} operation"))) } else { Ok(()) }
}

fn mismatch() -> Error {
    Error::conflict("the ETag does not match, or the last write was a first-write too")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn refused(pairs: &[(&str, &str)]) -> String {
        let md: Metadata = pairs.iter().copied().collect();
        prepare(&md, "v1").err().map(|e| e.to_string()).unwrap_or_default()
    }

    #[test]
    fn mistakes_are_told_together() {
        let text = refused(&[("ttlInSeconds", "soon")]);
        assert!(text.contains("redisHost") && text.contains("ttlInSeconds"), "{text}");
        assert_eq!(refused(&[("redisHost", "r"), ("ttlInSeconds", "-1")]), "");
    }

    #[test]
    fn etags_are_integers() {
        assert_eq!(version("7").as_deref(), Some("7"));
        assert_eq!(version("+07").as_deref(), Some("7"));
        for bad in ["", "x", "1.0", "0x1", "1 ", "99999999999999999999"] {
            assert_eq!(version(bad), None, "{bad}");
        }
    }

    #[test]
    fn documents_of_the_json_module_are_read() {
        let (data, version) = read_document(br#"{"data":{"b":9007199254740993,"a":0.10},"version":7}"#).unwrap();
        assert_eq!((&data[..], version.as_deref()), (&br#"{"b":9007199254740993,"a":0.10}"#[..], Some("7")));
        assert_eq!(read_document(br#"{"data":1}"#).unwrap(), (Bytes::from_static(b"1"), None));
        for other in [&b"[]"[..], b"{}", b"1", b"{\"data\":", b""] {
            assert_eq!(read_document(other), None);
        }
    }

    #[test]
    fn every_field_is_documented_once() {
        let mut names: Vec<&str> =
            FIELDS.iter().flat_map(|f| std::iter::once(f.name).chain(f.aliases.iter().copied())).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }

    proptest! {
        #[test]
        fn life_times_never_end_early(ns in 1_u64..u64::MAX) {
            let ms: u64 = millis(Duration::from_nanos(ns)).parse().unwrap();
            prop_assert!(u128::from(ms) * 1_000_000 >= u128::from(ns));
            prop_assert!(u128::from(ms) * 1_000_000 < u128::from(ns) + 1_000_000);
        }
    }
}
