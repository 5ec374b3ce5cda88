use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Component, Metadata, Result};

/// What a state store declares. The conformance manifest repeats it, and the
/// metadata API derives the capability names from it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StateCaps {
    /// Compare-and-swap by ETag (`ETAG`).
    pub etag: bool,
    /// Values can expire (`TTL`).
    pub ttl: bool,
    /// `DELETE_WITH_PREFIX`.
    pub delete_with_prefix: bool,
    /// `KEYS_LIKE`.
    pub keys_like: bool,
    /// Usable as the actor state store (`ACTOR`): ETag plus transactions.
    pub actor: bool,
}

/// Requested consistency of one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Consistency {
    /// The store's default.
    #[default]
    Eventual,
    /// The call fails when the store cannot promise it.
    Strong,
}

/// Requested concurrency of one write.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Concurrency {
    /// Overwrite, unless an ETag is given.
    #[default]
    LastWrite,
    /// Without an ETag: only if the key is absent.
    FirstWrite,
}

/// Life time asked for by one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ttl {
    /// Never expires; clears a former life time.
    Never,
    /// Expires after this time, measured by the store's clock. Never zero.
    After(Duration),
}

/// A value to store. Stores whose layout differs between the two forms (SQLite,
/// PostgreSQL v1, Redis JSON) need to know which one it is; all hand back the
/// same bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// JSON text, kept byte for byte.
    Json(Bytes),
    /// Opaque bytes.
    Binary(Bytes),
}

impl Value {
    /// The bytes, whatever the form.
    #[must_use]
    pub fn bytes(&self) -> &Bytes {
        match self {
            Self::Json(b) | Self::Binary(b) => b,
        }
    }
}

/// Arguments of [`StateStore::get`].
#[derive(Clone, Copy, Debug)]
pub struct GetState<'a> {
    /// Full key, prefix included.
    pub key: &'a str,
    /// Requested consistency.
    pub consistency: Consistency,
    /// Request metadata.
    pub metadata: &'a Metadata,
}

/// Arguments of [`StateStore::set`].
#[derive(Clone, Debug)]
pub struct SetState<'a> {
    /// Full key, prefix included.
    pub key: &'a str,
    /// The value.
    pub value: Value,
    /// Expected ETag; never empty.
    pub etag: Option<&'a str>,
    /// Requested concurrency.
    pub concurrency: Concurrency,
    /// Requested consistency.
    pub consistency: Consistency,
    /// Life time; `None` means not given: the store's default applies, a former
    /// life time does not survive.
    pub ttl: Option<Ttl>,
    /// Content type of the item, if one was named.
    pub content_type: Option<&'a str>,
    /// Request metadata.
    pub metadata: &'a Metadata,
}

/// Arguments of [`StateStore::delete`].
#[derive(Clone, Copy, Debug)]
pub struct DeleteState<'a> {
    /// Full key, prefix included.
    pub key: &'a str,
    /// Expected ETag; never empty.
    pub etag: Option<&'a str>,
    /// Requested concurrency.
    pub concurrency: Concurrency,
    /// Requested consistency.
    pub consistency: Consistency,
    /// Request metadata.
    pub metadata: &'a Metadata,
}

/// A stored value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Item {
    /// The bytes as they were given.
    pub value: Bytes,
    /// The ETag, when the store has them.
    pub etag: Option<String>,
    /// When it expires, when it does and the store can tell.
    pub expires: Option<SystemTime>,
    /// Content type, when the store keeps it.
    pub content_type: Option<String>,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub enum TransactOp<'a> {
    /// Insert or replace.
    Set(SetState<'a>),
    /// Remove.
    Delete(DeleteState<'a>),
}

/// A key-value store.
#[async_trait]
pub trait StateStore: Component {
    /// What the store can do; constant over its life.
    fn caps(&self) -> StateCaps;

    /// Reads one key. `Ok(None)` when absent or expired; never an error for that.
    async fn get(&self, req: GetState<'_>) -> Result<Option<Item>>;

    /// Writes one key: value, life time and ETag change together or not at all.
    ///
    /// Stale ETag, or first-write on an existing key ⇒ `Conflict`; malformed ETag ⇒
    /// `InvalidArgument`; nothing is written in both cases. `Ok` means stored as
    /// durably as the store's configuration promises.
    async fn set(&self, req: SetState<'_>) -> Result<()>;

    /// Removes one key. An absent key without ETag is success, with an ETag a `Conflict`.
    async fn delete(&self, req: DeleteState<'_>) -> Result<()>;

    /// Several keys in one round trip. Without it the runtime fans out, bounded.
    fn bulk(&self) -> Option<&dyn BulkState> {
        None
    }

    /// All-or-nothing groups of writes.
    fn transact(&self) -> Option<&dyn TransactState> {
        None
    }

    /// Queries over JSON values.
    fn query(&self) -> Option<&dyn QueryState> {
        None
    }

    /// Enumeration of keys.
    fn list(&self) -> Option<&dyn ListKeys> {
        None
    }
}

/// Several keys in one round trip.
#[async_trait]
pub trait BulkState: Send + Sync {
    /// One result per request, in the order of the requests.
    async fn get_many(&self, reqs: &[GetState<'_>]) -> Result<Vec<Result<Option<Item>>>>;
}

/// All-or-nothing groups of writes.
#[async_trait]
pub trait TransactState: Send + Sync {
    /// Applies all operations in order, or none. Any ETag conflict ⇒ `Conflict`, nothing written.
    async fn transact(&self, ops: Vec<TransactOp<'_>>, metadata: &Metadata) -> Result<()>;

    /// Largest number of operations in one transaction; `None` when unlimited.
    fn max_ops(&self) -> Option<usize> {
        None
    }
}

/// One page of a query's answer.
#[derive(Clone, Debug, Default)]
pub struct QueryPage {
    /// Key (with prefix) and value of each hit.
    pub items: Vec<(String, Item)>,
    /// Token of the next page, empty on the last.
    pub token: String,
}

/// Queries over JSON values.
#[async_trait]
pub trait QueryState: Send + Sync {
    /// Runs a query document of the state query API.
    async fn query(&self, query: &serde_json::Value, metadata: &Metadata) -> Result<QueryPage>;
}

/// One page of keys.
#[derive(Clone, Debug, Default)]
pub struct KeyPage {
    /// Full keys.
    pub keys: Vec<String>,
    /// Token of the next page; `None` on the last.
    pub next: Option<String>,
}

/// Enumeration of keys.
#[async_trait]
pub trait ListKeys: Send + Sync {
    /// Keys that begin with `prefix`, at most `limit` of them, from `token` on.
    async fn keys(&self, prefix: &str, limit: usize, token: Option<&str>) -> Result<KeyPage>;
}
