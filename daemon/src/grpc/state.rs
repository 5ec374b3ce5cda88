//! State: get, save, delete, bulk, transaction, query.

use std::time::SystemTime;

use bytes::Bytes;
use mecha_components_api::{Concurrency, Consistency, ErrorKind, Metadata, Value};
use mecha_core::codes::Code;
use mecha_core::state::{DeleteItem, SaveItem, TxOp, unknown_operation};
use mecha_core::{ApiError, Core, Cx, Detail, Shape};
use mecha_proto::common::{Etag, StateItem, StateOptions};
use mecha_proto::runtime::{
    BulkStateItem, DeleteBulkStateRequest, DeleteStateRequest, ExecuteStateTransactionRequest, GetBulkStateRequest,
    GetBulkStateResponse, GetStateRequest, GetStateResponse, QueryStateItem, QueryStateRequest, QueryStateResponse,
    SaveStateRequest,
};

use crate::plain;
use crate::timestamps::rfc3339;

type Map = std::collections::BTreeMap<String, String>;

pub(super) async fn get(core: &Core, cx: &Cx, req: GetStateRequest) -> Result<GetStateResponse, ApiError> {
    let metadata = req.metadata.into_iter().collect();
    let found = core.state.get(cx, &req.store_name, &req.key, consistency(req.consistency), &metadata).await?;
    Ok(found.map_or_else(GetStateResponse::default, |item| GetStateResponse {
        data: item.value,
        etag: item.etag.unwrap_or_default(),
        metadata: expiry(item.expires),
    }))
}

pub(super) async fn get_bulk(core: &Core, cx: &Cx, req: GetBulkStateRequest) -> Result<GetBulkStateResponse, ApiError> {
    let metadata = req.metadata.into_iter().collect();
    let found = core.state.get_bulk(cx, &req.store_name, req.keys, i64::from(req.parallelism), &metadata).await?;
    let items = found.into_iter().map(|item| match item.result {
        Ok(Some(found)) => BulkStateItem {
            key: item.key,
            data: found.value,
            etag: found.etag.unwrap_or_default(),
            metadata: expiry(found.expires),
            ..BulkStateItem::default()
        },
        Ok(None) => BulkStateItem { key: item.key, ..BulkStateItem::default() },
        Err(error) => BulkStateItem { key: item.key, error, ..BulkStateItem::default() },
    });
    Ok(GetBulkStateResponse { items: items.collect() })
}

pub(super) async fn save(core: &Core, cx: &Cx, req: SaveStateRequest) -> Result<(), ApiError> {
    let store = &req.store_name;
    let bad = |e: &str| failure(Code::StateSave, store, &format!("failed saving state in state store {store}: {e}"));
    let items = req.states.into_iter().map(|item| save_item(item).map_err(|e| bad(&e))).collect::<Result<_, _>>()?;
    core.state.save(cx, store, items).await
}

pub(super) async fn delete(core: &Core, cx: &Cx, req: DeleteStateRequest) -> Result<(), ApiError> {
    let item = delete_item(req.key, req.etag, req.options, req.metadata);
    core.state.delete(cx, &req.store_name, item).await
}

pub(super) async fn delete_bulk(core: &Core, cx: &Cx, req: DeleteBulkStateRequest) -> Result<(), ApiError> {
    let items = req.states.into_iter().map(|i| delete_item(i.key, i.etag, i.options, i.metadata)).collect();
    core.state.delete_bulk(cx, &req.store_name, items).await
}

pub(super) async fn transact(core: &Core, cx: &Cx, req: ExecuteStateTransactionRequest) -> Result<(), ApiError> {
    let store = &req.store_name;
    let bad =
        |e: &str| failure(Code::StateTransaction, store, &format!("error while executing state transaction: {e}"));
    let mut ops = Vec::with_capacity(req.operations.len());
    for op in req.operations {
        let item = op.request.unwrap_or_default();
        ops.push(match op.operation_type.as_str() {
            "upsert" => TxOp::Upsert(save_item(item).map_err(|e| bad(&e))?),
            "delete" => TxOp::Delete(delete_item(item.key, item.etag, item.options, item.metadata)),
            other => return Err(unknown_operation(other)),
        });
    }
    core.state.transact(cx, store, ops, &req.metadata.into_iter().collect()).await
}

pub(super) async fn query(core: &Core, cx: &Cx, req: QueryStateRequest) -> Result<QueryStateResponse, ApiError> {
    let document = plain::read(&req.query, "a JSON object with the query")
        .map_err(|e| ApiError::malformed(format!("failed deserializing HTTP body: {e}")))?;
    let reply = core.state.query(cx, &req.store_name, &document, &req.metadata.into_iter().collect()).await?;
    let results = reply.hits.into_iter().map(|hit| QueryStateItem {
        key: hit.key,
        data: hit.item.value,
        etag: hit.item.etag.unwrap_or_default(),
        error: String::new(),
    });
    Ok(QueryStateResponse { results: results.collect(), token: reply.token, metadata: Map::new() })
}

fn save_item(item: StateItem) -> Result<SaveItem, String> {
    let options = item.options.unwrap_or_default();
    let metadata: Metadata = item.metadata.into_iter().collect();
    Ok(SaveItem {
        value: value(&item.key, item.value, &metadata)?,
        key: item.key,
        etag: item.etag.map(|e| e.value),
        concurrency: concurrency(options.concurrency),
        consistency: consistency(options.consistency),
        metadata,
    })
}

fn delete_item(key: String, etag: Option<Etag>, options: Option<StateOptions>, metadata: Map) -> DeleteItem {
    let options = options.unwrap_or_default();
    DeleteItem {
        key,
        etag: etag.map(|e| e.value),
        concurrency: concurrency(options.concurrency),
        consistency: consistency(options.consistency),
        metadata: metadata.into_iter().collect(),
    }
}

/// Bytes are bytes, unless the item says that they are JSON.
fn value(key: &str, bytes: Bytes, metadata: &Metadata) -> Result<Value, String> {
    let content_type = metadata.get("contentType").unwrap_or_default();
    let base = content_type.split(';').next().unwrap_or_default().trim();
    if !base.eq_ignore_ascii_case("application/json") {
        return Ok(Value::Binary(bytes));
    }
    match serde_json::from_slice::<&serde_json::value::RawValue>(&bytes) {
        Ok(_) => Ok(Value::Json(bytes)),
        Err(e) => Err(format!("the value of key {key} is not JSON, as its contentType says: {e}")),
    }
}

/// A failure that the caller can mend, with the details of core's own.
fn failure(code: Code, store: &str, message: &str) -> ApiError {
    ApiError::new(code, ErrorKind::InvalidArgument, message)
        .with_detail(Detail::ResourceInfo {
            resource_type: "state",
            resource_name: store.to_owned(),
            description: String::new(),
        })
        .with_detail(Detail::ErrorInfo { reason: code.as_str().into(), metadata: None })
        .with_shape(Shape::PlainHttp)
}

/// Numbers that the protocol does not know count as not given.
fn concurrency(number: i32) -> Concurrency {
    if number == 1 { Concurrency::FirstWrite } else { Concurrency::LastWrite }
}

fn consistency(number: i32) -> Consistency {
    if number == 2 { Consistency::Strong } else { Consistency::Eventual }
}

fn expiry(expires: Option<SystemTime>) -> Map {
    expires.map(|at| ("ttlExpireTime".to_owned(), rfc3339(at))).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_json_only_where_the_item_says_so() {
        let json = |ct: &str| [("contentType", ct)].into_iter().collect::<Metadata>();
        let text = Bytes::from_static(br#"{"n":1.50}"#);
        assert_eq!(value("k", text.clone(), &Metadata::new()).unwrap(), Value::Binary(text.clone()));
        assert_eq!(value("k", text.clone(), &json("text/plain")).unwrap(), Value::Binary(text.clone()));
        assert_eq!(value("k", text.clone(), &json("Application/JSON; charset=utf-8")).unwrap(), Value::Json(text));
        for bad in [&b"{"[..], b"", b"\"\xff\"", b"1 2"] {
            assert!(value("k", Bytes::from_static(bad), &json("application/json")).is_err());
        }
    }
}
