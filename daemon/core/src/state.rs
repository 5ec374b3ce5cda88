//! The state API: the only place that knows what "get state" means.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesOrdered;
use mecha_components_api::{
    Concurrency, Consistency, DeleteState, Error, ErrorKind, GetState, Item, Metadata, SetState, TransactOp, Ttl, Value,
};

use crate::codes::Code;
use crate::cx::{Cx, Front};
use crate::error::{ApiError, Detail, Shape};
use crate::identity::Identity;
use crate::ops::Operation;
use crate::store::{Found, StateHandle, Store, degraded_error};

/// Calls of one bulk request that run at the same time when the caller names no number.
const DEFAULT_PARALLELISM: usize = 64;

/// One item to save.
#[derive(Clone, Debug)]
pub struct SaveItem {
    /// The app's key.
    pub key: String,
    /// The value.
    pub value: Value,
    /// Expected ETag; empty counts as none.
    pub etag: Option<String>,
    /// Requested concurrency.
    pub concurrency: Concurrency,
    /// Requested consistency.
    pub consistency: Consistency,
    /// Item metadata (`ttlInSeconds`, `contentType`…).
    pub metadata: Metadata,
}

/// One key to delete.
#[derive(Clone, Debug)]
pub struct DeleteItem {
    /// The app's key.
    pub key: String,
    /// Expected ETag; empty counts as none.
    pub etag: Option<String>,
    /// Requested concurrency.
    pub concurrency: Concurrency,
    /// Requested consistency.
    pub consistency: Consistency,
    /// Request metadata.
    pub metadata: Metadata,
}

/// One operation of a transaction.
#[derive(Clone, Debug)]
pub enum TxOp {
    /// Insert or replace.
    Upsert(SaveItem),
    /// Remove.
    Delete(DeleteItem),
}

/// One answer of a bulk get.
#[derive(Debug)]
pub struct BulkItem {
    /// The app's key.
    pub key: String,
    /// The item, nothing when absent, or why it could not be read.
    pub result: Result<Option<Item>, String>,
}

/// One hit of a query.
#[derive(Debug)]
pub struct QueryHit {
    /// The app's key.
    pub key: String,
    /// The item.
    pub item: Item,
}

/// Answer of a query.
#[derive(Debug)]
pub struct QueryReply {
    /// The hits.
    pub hits: Vec<QueryHit>,
    /// Token of the next page, empty on the last.
    pub token: String,
}

/// The state API.
#[derive(Debug)]
pub struct StateApi {
    store: Arc<Store>,
    me: Arc<Identity>,
}

impl StateApi {
    /// The API over the live snapshot.
    #[must_use]
    pub fn new(store: Arc<Store>, me: Arc<Identity>) -> Self {
        Self { store, me }
    }

    fn handle(&self, cx: &Cx, store: &str) -> Result<Arc<StateHandle>, ApiError> {
        let missing = |code, reason: &'static str, kind, message: String| {
            // The incumbent names the app only over HTTP.
            let metadata = (cx.front == Front::Http)
                .then(|| BTreeMap::from([("appID".to_owned(), self.me.app_id.as_ref().to_owned())]));
            ApiError::new(code, kind, message).with_detail(Detail::ErrorInfo { reason: reason.into(), metadata })
        };
        match self.store.state(store) {
            Found::Running(handle) => Ok(handle),
            Found::Degraded(cause) => {
                let e = degraded_error(store, &cause);
                let reason = Code::StateStoreNotConfigured.as_str().into();
                Err(ApiError::component(Code::StateStoreNotConfigured, &e, e.to_string())
                    .with_detail(Detail::ErrorInfo { reason, metadata: None })
                    .with_shape(Shape::PlainHttp))
            }
            Found::Unknown => Err(missing(
                Code::StateStoreNotFound,
                "DAPR_STATE_NOT_FOUND",
                ErrorKind::InvalidArgument,
                format!("state store {store} is not found"),
            )),
            Found::NoneConfigured => Err(missing(
                Code::StateStoreNotConfigured,
                "DAPR_STATE_NOT_CONFIGURED",
                ErrorKind::FailedPrecondition,
                format!("state store {store} is not configured"),
            )),
        }
    }

    /// Reads one key; `None` when absent.
    ///
    /// # Errors
    /// Unknown store, illegal key, or the store's failure.
    pub async fn get(
        &self,
        cx: &Cx,
        store: &str,
        key: &str,
        consistency: Consistency,
        metadata: &Metadata,
    ) -> Result<Option<Item>, ApiError> {
        let h = self.handle(cx, store)?;
        let full = encode(&h, store, key)?;
        let req = GetState { key: &full, consistency, metadata };
        let found = h.ops.run(cx, Operation::Get, true, || h.inner.get(req)).await.map_err(|e| {
            rich(
                ApiError::component(Code::StateGet, &e, format!("fail to get {key} from state store {store}: {e}")),
                store,
                "ERR_STATE_GET",
            )
        })?;
        Ok(found.map(|item| shown(&h, item)))
    }

    /// Reads several keys: one answer per key asked, in that order. `parallelism` ≤ 0 means
    /// the default.
    ///
    /// # Errors
    /// Unknown store, illegal key, or a failure that concerns the whole call.
    pub async fn get_bulk(
        &self,
        cx: &Cx,
        store: &str,
        keys: Vec<String>,
        parallelism: i64,
        metadata: &Metadata,
    ) -> Result<Vec<BulkItem>, ApiError> {
        let h = self.handle(cx, store)?;
        let full = keys.iter().map(|k| encode(&h, store, k)).collect::<Result<Vec<_>, _>>()?;
        let reqs: Vec<_> =
            full.iter().map(|key| GetState { key, consistency: Consistency::Eventual, metadata }).collect();
        let results = match h.inner.bulk() {
            Some(bulk) => h.ops.run(cx, Operation::BulkGet, true, || bulk.get_many(&reqs)).await.map_err(|e| {
                ApiError::component(
                    Code::StateBulkGet,
                    &e,
                    format!("failed to retrieve keys from state store {store}: {e}"),
                )
            })?,
            None => {
                let limit = usize::try_from(parallelism).ok().filter(|n| *n > 0).unwrap_or(DEFAULT_PARALLELISM);
                let calls = reqs.iter().map(|req| h.ops.run(cx, Operation::BulkGet, true, || h.inner.get(*req)));
                bounded(calls, limit).await
            }
        };
        let answers = keys.into_iter().zip(results);
        let shown = |found: Option<Item>| found.map(|item| shown(&h, item));
        Ok(answers.map(|(key, r)| BulkItem { key, result: r.map(shown).map_err(|e| e.to_string()) }).collect())
    }

    /// Saves items: one alone, or several independently of each other.
    ///
    /// # Errors
    /// Unknown store, bad item (then nothing was sent), or the joined failures; an ETag mismatch
    /// among them decides the status.
    pub async fn save(&self, cx: &Cx, store: &str, items: Vec<SaveItem>) -> Result<(), ApiError> {
        let h = self.handle(cx, store)?;
        let wrap = |e: &Error| {
            let text = format!("failed saving state in state store {store}: {}", etag_text(e));
            rich(ApiError::component(Code::StateSave, e, text), store, "ERR_STATE_SAVE")
        };
        let mut prepared = Vec::with_capacity(items.len());
        for item in &items {
            if item.key.is_empty() {
                return Err(no_key(cx));
            }
            let full = encode(&h, store, &item.key)?;
            let ttl = ttl(&item.metadata).map_err(|e| wrap(&e))?;
            prepared.push((full, ttl));
        }
        let calls = items.iter().zip(&prepared).map(|(item, (key, ttl))| {
            let req = set(&h, item, key, *ttl);
            let (inner, ops) = (&h.inner, &h.ops);
            async move {
                let req = req?;
                ops.run(cx, Operation::Set, req.etag.is_none(), || inner.set(req.clone())).await
            }
        });
        join(bounded(calls, DEFAULT_PARALLELISM).await).map_err(|e| wrap(&e))
    }

    /// Deletes one key.
    ///
    /// # Errors
    /// Unknown store, illegal key, ETag mismatch, or the store's failure.
    pub async fn delete(&self, cx: &Cx, store: &str, item: DeleteItem) -> Result<(), ApiError> {
        let h = self.handle(cx, store)?;
        let full = encode(&h, store, &item.key)?;
        let wrap = |e: Error| {
            let text = format!("failed deleting state with key {}: {}", item.key, etag_text(&e));
            rich(ApiError::component(Code::StateDelete, &e, text), store, "ERR_STATE_DELETE")
        };
        let req = del(&h, &item, &full).map_err(wrap)?;
        h.ops.run(cx, Operation::Delete, req.etag.is_none(), || h.inner.delete(req)).await.map_err(wrap)
    }

    /// Deletes several keys, independently of each other.
    ///
    /// # Errors
    /// Unknown store, illegal key, or the joined failures.
    pub async fn delete_bulk(&self, cx: &Cx, store: &str, items: Vec<DeleteItem>) -> Result<(), ApiError> {
        let h = self.handle(cx, store)?;
        let full = items.iter().map(|i| encode(&h, store, &i.key)).collect::<Result<Vec<_>, _>>()?;
        let calls = items.iter().zip(&full).map(|(item, key)| {
            let req = del(&h, item, key);
            let (inner, ops) = (&h.inner, &h.ops);
            async move {
                let req = req?;
                ops.run(cx, Operation::BulkDelete, req.etag.is_none(), || inner.delete(req)).await
            }
        });
        join(bounded(calls, DEFAULT_PARALLELISM).await).map_err(|e| {
            let text = format!("failed deleting state in state store {store}: {}", etag_text(&e));
            rich(ApiError::component(Code::StateBulkDelete, &e, text), store, "ERR_STATE_BULK_DELETE")
        })
    }

    /// Applies all operations, or none.
    ///
    /// # Errors
    /// Unknown store, a store without transactions, too many operations, an ETag mismatch, or
    /// the store's failure; nothing was written in any case but an unknown outcome.
    pub async fn transact(&self, cx: &Cx, store: &str, ops: Vec<TxOp>, metadata: &Metadata) -> Result<(), ApiError> {
        let h = self.handle(cx, store)?;
        let Some(tx) = h.inner.transact() else {
            return Err(rich(
                ApiError::new(
                    Code::StateStoreNotSupported,
                    ErrorKind::Unsupported,
                    format!("state store {store} doesn't support transactions"),
                )
                .with_detail(Detail::Help {
                    url: "https://docs.dapr.io/reference/components-reference/supported-state-stores/",
                    description: "Check the list of state stores and the features they support",
                }),
                store,
                "DAPR_STATE_TRANSACTIONS_NOT_SUPPORTED",
            )
            .with_shape(Shape::Rich));
        };
        if ops.is_empty() {
            return Ok(());
        }
        if let Some(max) = tx.max_ops().filter(|max| ops.len() > *max) {
            let facts = BTreeMap::from([
                ("currentOpsTransaction".to_owned(), ops.len().to_string()),
                ("maxOpsPerTransaction".to_owned(), max.to_string()),
            ]);
            let text = format!(
                "the transaction contains {} operations, which is more than what the state store supports: {max}",
                ops.len()
            );
            return Err(ApiError::new(Code::StateStoreTooManyTransactions, ErrorKind::InvalidArgument, text)
                .with_detail(resource(store, None))
                .with_detail(Detail::ErrorInfo {
                    reason: "DAPR_STATE_TOO_MANY_TRANSACTIONS".into(),
                    metadata: Some(facts),
                }));
        }
        let wrap = |e: &Error| {
            let text = format!("error while executing state transaction: {}", etag_text(e));
            rich(ApiError::component(Code::StateTransaction, e, text), store, "ERR_STATE_TRANSACTION")
        };
        let mut keys = Vec::with_capacity(ops.len());
        for op in &ops {
            let (key, ttl) = match op {
                TxOp::Upsert(item) => (&item.key, ttl(&item.metadata).map_err(|e| wrap(&e))?),
                TxOp::Delete(item) => (&item.key, None),
            };
            // The HTTP API names no field here, and clients know it so.
            let field = if cx.front == Front::Http { "" } else { key };
            keys.push((encode_field(&h, store, key, field)?, ttl));
        }
        let batch: Vec<TransactOp<'_>> = ops
            .iter()
            .zip(&keys)
            .map(|(op, (key, ttl))| match op {
                TxOp::Upsert(item) => set(&h, item, key, *ttl).map(TransactOp::Set),
                TxOp::Delete(item) => del(&h, item, key).map(TransactOp::Delete),
            })
            .collect::<Result<_, _>>()
            .map_err(|e| wrap(&e))?;
        let idempotent = batch.iter().all(|op| match op {
            TransactOp::Set(s) => s.etag.is_none(),
            TransactOp::Delete(d) => d.etag.is_none(),
        });
        h.ops
            .run(cx, Operation::Transaction, idempotent, || tx.transact(batch.clone(), metadata))
            .await
            .map_err(|e| wrap(&e))
    }

    /// Runs a query document.
    ///
    /// # Errors
    /// Unknown store, a store without queries, or the store's failure.
    pub async fn query(
        &self,
        cx: &Cx,
        store: &str,
        query: &serde_json::Value,
        metadata: &Metadata,
    ) -> Result<QueryReply, ApiError> {
        let h = self.handle(cx, store)?;
        let Some(q) = h.inner.query() else {
            let e = ApiError::new(
                Code::StateStoreNotSupported,
                ErrorKind::Internal,
                "state store does not support querying",
            );
            return Err(rich(e, store, "DAPR_STATE_QUERYING_NOT_SUPPORTED").with_shape(Shape::Rich));
        };
        let page = h.ops.run(cx, Operation::Query, true, || q.query(query, metadata)).await.map_err(|e| {
            let text = format!("state store {store} query failed: {e}");
            rich(ApiError::component(Code::StateQuery, &e, text), store, "DAPR_STATE_QUERY_FAILED")
                .with_shape(Shape::Rich)
        })?;
        let hit =
            |(key, item): (String, Item)| QueryHit { key: h.extra.keys.decode(&key).to_owned(), item: shown(&h, item) };
        let hits = page.items.into_iter().map(hit).collect();
        Ok(QueryReply { hits, token: page.token })
    }
}

/// A transaction operation that is neither upsert nor delete.
#[must_use]
pub fn unknown_operation(name: &str) -> ApiError {
    ApiError::new(
        Code::NotSupportedStateOperation,
        ErrorKind::Unsupported,
        format!("operation type {name} not supported"),
    )
    .with_detail(Detail::ErrorInfo { reason: Code::NotSupportedStateOperation.as_str().into(), metadata: None })
    .with_shape(Shape::PlainHttp)
}

fn encode(h: &StateHandle, store: &str, key: &str) -> Result<String, ApiError> {
    encode_field(h, store, key, key)
}

/// As [`encode`]; `field` is what the error names.
fn encode_field(h: &StateHandle, store: &str, key: &str, field: &str) -> Result<String, ApiError> {
    h.extra.keys.encode(key).map_err(|message| {
        ApiError::malformed(message.clone())
            .with_http_message(format!("api error: code = InvalidArgument desc = {message}"))
            .with_detail(Detail::BadRequest { field: field.to_owned(), description: message })
            .with_detail(resource(store, None))
            .with_detail(Detail::ErrorInfo { reason: "DAPR_STATE_ILLEGAL_KEY".into(), metadata: None })
    })
}

fn set<'a>(h: &StateHandle, item: &'a SaveItem, key: &'a str, ttl: Option<Ttl>) -> Result<SetState<'a>, Error> {
    Ok(SetState {
        key,
        value: item.value.clone(),
        etag: given(h, item.etag.as_deref())?,
        concurrency: item.concurrency,
        consistency: item.consistency,
        ttl,
        content_type: item.metadata.get_non_empty("contentType"),
        metadata: &item.metadata,
    })
}

fn del<'a>(h: &StateHandle, item: &'a DeleteItem, key: &'a str) -> Result<DeleteState<'a>, Error> {
    Ok(DeleteState {
        key,
        etag: given(h, item.etag.as_deref())?,
        concurrency: item.concurrency,
        consistency: item.consistency,
        metadata: &item.metadata,
    })
}

/// The store's own ETag of what the caller sent.
fn given<'e>(h: &StateHandle, etag: Option<&'e str>) -> Result<Option<&'e str>, Error> {
    etag.filter(|e| !e.is_empty()).map(|e| h.extra.etags.given(e)).transpose()
}

/// An item as the caller gets it.
fn shown(h: &StateHandle, mut item: Item) -> Item {
    item.etag = h.extra.etags.out(item.etag);
    item
}

/// Reads `ttlInSeconds`: positive expires, zero or negative never does, empty is not given.
fn ttl(metadata: &Metadata) -> Result<Option<Ttl>, Error> {
    let Some(text) = metadata.get_non_empty("ttlInSeconds") else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(seconds) => match u64::try_from(seconds) {
            Ok(seconds) if seconds > 0 => Ok(Some(Ttl::After(Duration::from_secs(seconds)))),
            _ => Ok(Some(Ttl::Never)),
        },
        Err(_) => Err(Error::invalid(format!("ttlInSeconds must be a whole number of seconds, not '{text}'"))),
    }
}

fn no_key(cx: &Cx) -> ApiError {
    match cx.front {
        Front::Http => ApiError::malformed("\"key\" is a required field"),
        Front::Grpc => ApiError::malformed("state key cannot be empty")
            .with_detail(Detail::ErrorInfo { reason: Code::StateSave.as_str().into(), metadata: None })
            .with_shape(Shape::PlainHttp),
    }
}

/// The text clients match for ETag failures.
fn etag_text(e: &Error) -> String {
    let text = e.to_string();
    match e.kind() {
        ErrorKind::Conflict if !text.contains("possible etag mismatch") => {
            format!("possible etag mismatch. error from state store: {text}")
        }
        _ => text,
    }
}

/// Details of a state failure; HTTP shows them only where the incumbent does.
fn rich(e: ApiError, store: &str, reason: &'static str) -> ApiError {
    e.with_detail(resource(store, None))
        .with_detail(Detail::ErrorInfo { reason: reason.into(), metadata: None })
        .with_shape(Shape::PlainHttp)
}

fn resource(store: &str, description: Option<String>) -> Detail {
    Detail::ResourceInfo {
        resource_type: "state",
        resource_name: store.to_owned(),
        description: description.unwrap_or_default(),
    }
}

/// Runs calls in order of arrival, at most `limit` at the same time; results in order.
async fn bounded<T, Fut>(calls: impl Iterator<Item = Fut>, limit: usize) -> Vec<T>
where
    Fut: Future<Output = T>,
{
    let mut calls = calls;
    let mut running: FuturesOrdered<Fut> = calls.by_ref().take(limit).collect();
    let mut out = Vec::with_capacity(running.len());
    while let Some(result) = running.next().await {
        out.push(result);
        if let Some(next) = calls.next() {
            running.push_back(next);
        }
    }
    out
}

/// One error of many results: a conflict decides the kind, then bad input, then the first.
fn join(results: Vec<Result<(), Error>>) -> Result<(), Error> {
    let mut errors: Vec<Error> = results.into_iter().filter_map(Result::err).collect();
    if errors.len() <= 1 {
        return errors.pop().map_or(Ok(()), Err);
    }
    let kind = [ErrorKind::Conflict, ErrorKind::InvalidArgument]
        .into_iter()
        .find(|kind| errors.iter().any(|e| e.kind() == *kind))
        .unwrap_or(errors[0].kind());
    let text = errors.iter().map(etag_text).collect::<Vec<_>>().join("\n");
    Err(Error::new(kind, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ttl_rules() {
        let read = |text: &str| ttl(&[("ttlInSeconds", text)].into_iter().collect());
        assert_eq!(read("").unwrap(), None);
        assert_eq!(read("-1").unwrap(), Some(Ttl::Never));
        assert_eq!(read("0").unwrap(), Some(Ttl::Never));
        assert_eq!(read("5").unwrap(), Some(Ttl::After(Duration::from_secs(5))));
        assert_eq!(read("5s").unwrap_err().kind(), ErrorKind::InvalidArgument);
    }

    #[test]
    fn a_conflict_among_failures_decides() {
        let e = join(vec![Ok(()), Err(Error::unavailable("down")), Err(Error::conflict("stale"))]).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Conflict);
        assert!(e.to_string().contains("possible etag mismatch. error from state store: stale"));
    }
}
