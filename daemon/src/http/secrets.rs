//! `/v1.0/secrets`

use std::collections::BTreeMap;

use http::StatusCode;
use mecha_components_api::SecretMap;
use mecha_core::{ApiError, Core, Cx};

use super::decode::metadata_of_query;
use super::respond::{Answer, json};

pub(super) async fn get(core: &Core, cx: &Cx, store: &str, key: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let secret = core.secrets.get(cx, store, key, &metadata_of_query(query)).await?;
    Ok(json(StatusCode::OK, encode(&plain(&secret))))
}

pub(super) async fn list(core: &Core, cx: &Cx, store: &str, query: Option<&str>) -> Result<Answer, ApiError> {
    let all = core.secrets.list(cx, store, &metadata_of_query(query)).await?;
    let all: BTreeMap<&str, _> = all.iter().map(|(name, secret)| (name.as_str(), plain(secret))).collect();
    Ok(json(StatusCode::OK, encode(&all)))
}

fn plain(secret: &SecretMap) -> BTreeMap<&str, &str> {
    secret.iter().map(|(k, v)| (k.as_str(), v.expose())).collect()
}

fn encode(value: &impl serde::Serialize) -> Vec<u8> {
    // Maps of text to text always have a JSON form.
    serde_json::to_vec(value).unwrap_or_default()
}
