//! Cases of [`StateStore`].

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mecha_components_api::{
    Concurrency, Consistency, DeleteState, GetState, Item, Metadata, Result, SetState, StateCaps, StateStore,
    TransactOp, TransactState, Ttl, Value,
};

use crate::case::{Case, Failure, fresh_name};

mod bulk;
mod etags;
mod keys;
mod lifetime;
mod races;
mod transactions;
mod values;

/// What a store declares, beyond its capabilities.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateProfile {
    /// Its capabilities.
    pub caps: StateCaps,
    /// Has [`StateStore::transact`].
    pub transactional: bool,
    /// Has [`StateStore::bulk`].
    pub bulk: bool,
    /// Has [`StateStore::list`].
    pub list: bool,
    /// Has [`StateStore::query`].
    pub query: bool,
    /// JSON text comes back byte for byte; without it only its values do.
    pub exact_json: bool,
    /// A write with an ETag to a key that does not exist is a conflict.
    pub absent_etag_conflicts: bool,
}

type StateCase = Case<dyn StateStore, StateProfile>;

/// All cases, a slice per theme.
pub const CASES: &[&[StateCase]] =
    &[values::CASES, keys::CASES, etags::CASES, lifetime::CASES, transactions::CASES, bulk::CASES, races::CASES];

impl StateProfile {
    /// What can be seen of `store`; the two fields that cannot be seen are taken from `declared`.
    #[must_use]
    pub fn observed(store: &dyn StateStore, declared: &Self) -> Self {
        Self {
            caps: store.caps(),
            transactional: store.transact().is_some(),
            bulk: store.bulk().is_some(),
            list: store.list().is_some(),
            query: store.query().is_some(),
            ..*declared
        }
    }
}

/// A store and a key space that nobody else uses.
#[derive(Clone)]
struct Space {
    store: Arc<dyn StateStore>,
    prefix: String,
    md: Arc<Metadata>,
}

/// A write in the making.
struct Put<'s> {
    space: &'s Space,
    key: String,
    value: Value,
    etag: Option<String>,
    concurrency: Concurrency,
    consistency: Consistency,
    ttl: Option<Ttl>,
}

impl Space {
    fn new(store: Arc<dyn StateStore>) -> Self {
        Self { store, prefix: format!("{}-", fresh_name()), md: Arc::default() }
    }

    /// The full key.
    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn put(&self, key: &str, json: &str) -> Put<'_> {
        self.put_value(key, Value::Json(Bytes::copy_from_slice(json.as_bytes())))
    }

    fn put_bytes(&self, key: &str, bytes: &[u8]) -> Put<'_> {
        self.put_value(key, Value::Binary(Bytes::copy_from_slice(bytes)))
    }

    fn put_value(&self, key: &str, value: Value) -> Put<'_> {
        Put {
            space: self,
            key: self.key(key),
            value,
            etag: None,
            concurrency: Concurrency::LastWrite,
            consistency: Consistency::Eventual,
            ttl: None,
        }
    }

    async fn get(&self, key: &str) -> Result<Option<Item>> {
        let key = self.key(key);
        self.store.get(GetState { key: &key, consistency: Consistency::Strong, metadata: &self.md }).await
    }

    /// The value as text; absent is `None`.
    async fn text(&self, key: &str) -> Result<Option<String>> {
        Ok(self.get(key).await?.map(|i| String::from_utf8_lossy(&i.value).into_owned()))
    }

    async fn etag(&self, key: &str) -> Result<String, Failure> {
        let item = self.get(key).await?.ok_or_else(|| Failure::new(format!("{key} is absent")))?;
        item.etag.filter(|e| !e.is_empty()).ok_or_else(|| Failure::new(format!("{key} has no ETag")))
    }

    async fn delete(&self, key: &str, etag: Option<&str>) -> Result<()> {
        let key = self.key(key);
        self.store.delete(self.removal(&key, etag)).await
    }

    fn removal<'a>(&'a self, key: &'a str, etag: Option<&'a str>) -> DeleteState<'a> {
        DeleteState {
            key,
            etag,
            concurrency: Concurrency::LastWrite,
            consistency: Consistency::Eventual,
            metadata: &self.md,
        }
    }

    fn transactions(&self) -> Result<&dyn TransactState, Failure> {
        self.store.transact().ok_or_else(|| Failure::new("the store has no transactions"))
    }

    /// Runs the operations as one transaction.
    async fn transact(&self, ops: &[Op<'_>]) -> Result<(), TransactFailure> {
        let ops = ops.iter().map(Op::build).collect();
        let transact = self.store.transact().ok_or(TransactFailure::Missing)?;
        transact.transact(ops, &self.md).await.map_err(TransactFailure::Refused)
    }
}

/// How [`Space::transact`] failed.
#[derive(Debug)]
enum TransactFailure {
    Missing,
    Refused(mecha_components_api::Error),
}

impl From<TransactFailure> for Failure {
    fn from(f: TransactFailure) -> Self {
        match f {
            TransactFailure::Missing => Self::new("the store has no transactions"),
            TransactFailure::Refused(e) => e.into(),
        }
    }
}

/// One operation of a transaction.
enum Op<'s> {
    Put(Put<'s>),
    Remove { space: &'s Space, key: String, etag: Option<String> },
}

impl Op<'_> {
    fn build(&self) -> TransactOp<'_> {
        match self {
            Self::Put(put) => TransactOp::Set(put.build()),
            Self::Remove { space, key, etag } => TransactOp::Delete(space.removal(key, etag.as_deref())),
        }
    }
}

impl<'s> From<Put<'s>> for Op<'s> {
    fn from(put: Put<'s>) -> Self {
        Self::Put(put)
    }
}

impl Space {
    fn remove_op(&self, key: &str, etag: Option<&str>) -> Op<'_> {
        Op::Remove { space: self, key: self.key(key), etag: etag.map(str::to_owned) }
    }
}

impl Put<'_> {
    fn etag(mut self, etag: &str) -> Self {
        self.etag = Some(etag.to_owned());
        self
    }

    fn first_write(mut self) -> Self {
        self.concurrency = Concurrency::FirstWrite;
        self
    }

    fn strong(mut self) -> Self {
        self.consistency = Consistency::Strong;
        self
    }

    fn ttl(mut self, seconds: u64) -> Self {
        self.ttl = Some(Ttl::After(Duration::from_secs(seconds)));
        self
    }

    fn for_ever(mut self) -> Self {
        self.ttl = Some(Ttl::Never);
        self
    }

    fn build(&self) -> SetState<'_> {
        SetState {
            key: &self.key,
            value: self.value.clone(),
            etag: self.etag.as_deref(),
            concurrency: self.concurrency,
            consistency: self.consistency,
            ttl: self.ttl,
            content_type: None,
            metadata: &self.space.md,
        }
    }

    async fn send(&self) -> Result<()> {
        self.space.store.set(self.build()).await
    }
}

/// Cases for every store.
fn any(_: &StateProfile) -> bool {
    true
}
