//! `/v1.0/state`

use bytes::Bytes;
use http::header::{ETAG, HeaderMap, HeaderValue, IF_MATCH};
use http::{Response, StatusCode};
use mecha_components_api::{ErrorKind, Item, Metadata, Value};
use mecha_core::codes::Code;
use mecha_core::state::{BulkItem, DeleteItem, SaveItem, TxOp};
use mecha_core::{ApiError, Core, Cx};
use serde_json::value::RawValue;

use super::decode::{Fields, concurrency, consistency, merged, metadata_of_query, query_value, slice_of, text};
use super::respond::{Answer, JSON, add_metadata, json, no_content};
use crate::body::OutBody;
use crate::plain;
use crate::timestamps::rfc3339;

/// What a save takes, as errors call it.
const ITEMS: &str = "a JSON list of {key, value}";
const ITEM: &str = "an object {key, value}";

pub(super) async fn get(core: &Core, cx: &Cx, store: &str, key: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    // A get ignores an unknown consistency, as the incumbent does.
    let asked = consistency(&query_value(query, "consistency").unwrap_or_default()).unwrap_or_default();
    let found = core.state.get(cx, store, key, asked, &metadata_of_query(query)).await?;
    Ok(found.map_or_else(no_content, item_answer))
}

fn item_answer(item: Item) -> Answer {
    let mut res = Response::new(OutBody::from(item.value));
    let headers = res.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, JSON);
    if let Some(etag) = item.etag.as_deref().and_then(|e| HeaderValue::from_str(e).ok()) {
        headers.insert(ETAG, etag);
    }
    if let Some(expires) = item.expires {
        add_metadata(headers, std::iter::once(("ttlExpireTime", rfc3339(expires).as_str())));
    }
    res
}

pub(super) async fn save(
    core: &Core,
    cx: &Cx,
    store: &str,
    query: Option<&str>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let over = metadata_of_query(query);
    let raw: Vec<&RawValue> = text(&body).and_then(|t| plain::read(t, ITEMS)).map_err(ApiError::malformed)?;
    let items = raw
        .into_iter()
        .enumerate()
        .map(|(at, item)| {
            let f = Fields::parse(item.get(), ITEM)
                .map_err(|e| ApiError::malformed(format!("item {} of the list: {e}", at + 1)))?;
            save_item(&body, &f, &over, store)
        })
        .collect::<Result<Vec<_>, _>>()?;
    core.state.save(cx, store, items).await?;
    Ok(no_content())
}

fn save_item(body: &Bytes, f: &Fields<'_>, over: &Metadata, store: &str) -> Result<SaveItem, ApiError> {
    let bad = ApiError::malformed;
    let mut metadata = merged(f.metadata("metadata").map_err(bad)?, over);
    let content_type: String = f.get("contentType").map_err(bad)?;
    if !content_type.is_empty() {
        metadata.insert("contentType", content_type);
    }
    let options = f.object("options").map_err(bad)?;
    let option = |e: String| {
        ApiError::new(
            Code::StateSave,
            ErrorKind::InvalidArgument,
            format!("failed saving state in state store {store}: {e}"),
        )
    };
    Ok(SaveItem {
        key: f.get("key").map_err(bad)?,
        value: Value::Json(f.raw("value").map_or(Bytes::from_static(b"null"), |raw| slice_of(body, raw))),
        etag: f.get("etag").map_err(bad)?,
        concurrency: concurrency(&options.get::<String>("concurrency").map_err(bad)?).map_err(option)?,
        consistency: consistency(&options.get::<String>("consistency").map_err(bad)?).map_err(option)?,
        metadata,
    })
}

pub(super) async fn delete(
    core: &Core,
    cx: &Cx,
    store: &str,
    key: &str,
    query: Option<&str>,
    headers: &HeaderMap,
) -> Result<Answer, ApiError> {
    let option = |e: String| {
        let text = format!("failed deleting state with key {key}: {e}");
        ApiError::new(Code::StateDelete, ErrorKind::InvalidArgument, text)
    };
    let item = DeleteItem {
        key: key.to_owned(),
        etag: headers.get(IF_MATCH).and_then(|v| v.to_str().ok()).map(str::to_owned),
        concurrency: concurrency(&query_value(query, "concurrency").unwrap_or_default()).map_err(option)?,
        consistency: consistency(&query_value(query, "consistency").unwrap_or_default()).map_err(option)?,
        metadata: metadata_of_query(query),
    };
    core.state.delete(cx, store, item).await?;
    Ok(no_content())
}

pub(super) async fn bulk_get(
    core: &Core,
    cx: &Cx,
    store: &str,
    query: Option<&str>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let bad = |e| ApiError::malformed(format!("failed deserializing HTTP body: {e}"));
    let f = text(&body).and_then(|t| Fields::parse(t, "a JSON object with a list of \"keys\"")).map_err(bad)?;
    let keys: Vec<String> = f.get("keys").map_err(bad)?;
    let parallelism: i64 = f.get("parallelism").map_err(bad)?;
    let metadata = merged(f.metadata("metadata").map_err(bad)?, &metadata_of_query(query));
    let items = core.state.get_bulk(cx, store, keys, parallelism, &metadata).await?;
    let mut out = Vec::with_capacity(2 + items.len() * 64);
    out.push(b'[');
    for (i, item) in items.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_bulk_item(&mut out, item);
    }
    out.push(b']');
    Ok(json(StatusCode::OK, out))
}

/// Writes one item by hand, because the stored JSON text must go out byte for byte.
fn write_bulk_item(out: &mut Vec<u8>, item: &BulkItem) {
    out.extend_from_slice(b"{\"key\":");
    push_text(out, &item.key);
    let mut error = None;
    match &item.result {
        Ok(Some(found)) => {
            match serde_json::from_slice::<&RawValue>(&found.value) {
                Ok(raw) => {
                    out.extend_from_slice(b",\"data\":");
                    out.extend_from_slice(raw.get().as_bytes());
                }
                Err(_) => error = Some("the stored value is not JSON; read it alone or over gRPC".to_owned()),
            }
            if let Some(etag) = &found.etag {
                out.extend_from_slice(b",\"etag\":");
                push_text(out, etag);
            }
            if let Some(expires) = found.expires {
                out.extend_from_slice(b",\"metadata\":{\"ttlExpireTime\":");
                push_text(out, &rfc3339(expires));
                out.push(b'}');
            }
        }
        Ok(None) => {}
        Err(e) => error = Some(e.clone()),
    }
    if let Some(e) = error {
        out.extend_from_slice(b",\"error\":");
        push_text(out, &e);
    }
    out.push(b'}');
}

pub(super) async fn transact(
    core: &Core,
    cx: &Cx,
    store: &str,
    query: Option<&str>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let bad = |e| ApiError::malformed(format!("failed deserializing HTTP body: {e}"));
    let over = metadata_of_query(query);
    let f = text(&body).and_then(|t| Fields::parse(t, "a JSON object with a list of \"operations\"")).map_err(bad)?;
    let metadata = merged(f.metadata("metadata").map_err(bad)?, &over);
    let raw: Vec<&RawValue> = match f.raw("operations") {
        Some(list) => plain::read(list.get(), "a list of {operation, request}")
            .map_err(|e| bad(format!("member \"operations\": {e}")))?,
        None => Vec::new(),
    };
    let mut ops = Vec::with_capacity(raw.len());
    for op in raw {
        let op = Fields::parse(op.get(), "an object {operation, request}").map_err(bad)?;
        let kind: String = op.get("operation").map_err(bad)?;
        let request = op.object("request").map_err(bad)?;
        let item = save_item(&body, &request, &Metadata::new(), store)?;
        ops.push(match kind.as_str() {
            "upsert" => TxOp::Upsert(item),
            "delete" => TxOp::Delete(DeleteItem {
                key: item.key,
                etag: item.etag,
                concurrency: item.concurrency,
                consistency: item.consistency,
                metadata: item.metadata,
            }),
            other => return Err(mecha_core::state::unknown_operation(other)),
        });
    }
    core.state.transact(cx, store, ops, &metadata).await?;
    Ok(no_content())
}

pub(super) async fn query(
    core: &Core,
    cx: &Cx,
    store: &str,
    query: Option<&str>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let bad = |e| ApiError::malformed(format!("failed deserializing HTTP body: {e}"));
    let document: serde_json::Value =
        text(&body).and_then(|t| plain::read(t, "a JSON object with the query")).map_err(bad)?;
    let reply = core.state.query(cx, store, &document, &metadata_of_query(query)).await?;
    if reply.hits.is_empty() {
        return Ok(no_content());
    }
    let mut out = Vec::with_capacity(64 + reply.hits.len() * 64);
    out.extend_from_slice(b"{\"metadata\":{},\"results\":[");
    for (i, hit) in reply.hits.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_hit(&mut out, &hit.key, &hit.item);
    }
    out.extend_from_slice(b"],\"token\":");
    push_text(&mut out, &reply.token);
    out.push(b'}');
    Ok(json(StatusCode::OK, out))
}

/// One item that a query found, its stored JSON text byte for byte.
fn write_hit(out: &mut Vec<u8>, key: &str, item: &Item) {
    out.extend_from_slice(b"{\"data\":");
    // What is no JSON cannot stand here.
    let data = serde_json::from_slice::<&RawValue>(&item.value).map_or("null", RawValue::get);
    out.extend_from_slice(data.as_bytes());
    out.extend_from_slice(b",\"etag\":");
    match &item.etag {
        Some(etag) => push_text(out, etag),
        None => out.extend_from_slice(b"null"),
    }
    out.extend_from_slice(b",\"key\":");
    push_text(out, key);
    out.push(b'}');
}

fn push_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(serde_json::Value::from(text).to_string().as_bytes());
}
