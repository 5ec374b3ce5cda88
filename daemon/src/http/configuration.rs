//! `/v1.0/configuration`

use std::collections::BTreeMap;

use http::StatusCode;
use mecha_components_api::Changes;
use mecha_core::{ApiError, Core, Cx};
use serde_json::json;

use super::decode::metadata_of_query;
use super::path;
use super::respond::{Answer, json_value, no_content};

fn keys(query: Option<&str>) -> Vec<String> {
    path::query(query).filter(|(k, _)| k == "key").map(|(_, v)| v.into_owned()).collect()
}

pub(super) async fn get(core: &Core, cx: &Cx, store: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let keys = keys(query);
    let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
    let items = core.configuration.get(cx, store, &keys, &metadata_of_query(query)).await?;
    if items.is_empty() {
        return Ok(no_content());
    }
    Ok(json_value(StatusCode::OK, &json!(encode(&items))))
}

fn encode(items: &Changes) -> BTreeMap<&str, serde_json::Value> {
    let one = |i: &mecha_components_api::ConfigItem| {
        let mut out = serde_json::Map::new();
        out.insert("value".into(), i.value.as_str().into());
        if !i.version.is_empty() {
            out.insert("version".into(), i.version.as_str().into());
        }
        if !i.metadata.is_empty() {
            out.insert("metadata".into(), json!(i.metadata));
        }
        serde_json::Value::Object(out)
    };
    items.iter().map(|(k, i)| (k.as_str(), one(i))).collect()
}

pub(super) async fn subscribe(core: &Core, store: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let id = core.push_configuration(store, keys(query), metadata_of_query(query))?;
    Ok(json_value(StatusCode::OK, &json!({"id": id})))
}

pub(super) fn unsubscribe(core: &Core, store: &str, id: &str) -> Result<Answer, ApiError> {
    match core.configuration.unsubscribe(store, id) {
        Ok(()) => Ok(json_value(StatusCode::OK, &json!({"ok": true}))),
        Err(e) if e.code() == mecha_core::codes::Code::ConfigurationUnsubscribe => {
            // The incumbent's answer has no code.
            Ok(json_value(StatusCode::INTERNAL_SERVER_ERROR, &json!({"message": e.message()})))
        }
        Err(e) => Err(e),
    }
}
