//! See [`crate::fuzzing`].

use bytes::Bytes;
use http::Method;
use serde_json::value::RawValue;

use super::decode::{Fields, slice_of, text};
use super::routes::{self, Match};
use super::{path, pubsub};
use crate::plain;

/// A path as it is routed.
#[must_use]
pub fn clean(path: &str) -> String {
    path::clean(path).into_owned()
}

/// A path parameter as handlers get it.
#[must_use]
pub fn unescape(text: &str) -> Option<String> {
    path::unescape(text).map(std::borrow::Cow::into_owned)
}

/// The parameters of a query.
#[must_use]
pub fn query(text: &str) -> Vec<(String, String)> {
    path::query(Some(text)).map(|(k, v)| (k.into_owned(), v.into_owned())).collect()
}

/// The API, its version and the route of a cleaned path.
#[must_use]
pub fn route(method: &Method, path: &str) -> Option<(&'static str, &'static str, String)> {
    match routes::find(method, path) {
        Match::Known(found) => Some((found.api, found.version, format!("{:?}", found.route))),
        Match::OtherMethod | Match::None => None,
    }
}

/// Key and value text of each item of a list, as state bodies are read.
///
/// # Errors
/// What is wrong with the body.
pub fn items(body: &Bytes) -> Result<Vec<(String, Option<Bytes>)>, String> {
    let list: Vec<&RawValue> = text(body).and_then(|t| plain::read(t, "a list"))?;
    let item = |raw: &&RawValue| {
        let fields = Fields::parse(raw.get(), "an object")?;
        fields.metadata("metadata")?;
        fields.object("options")?.get::<String>("concurrency")?;
        Ok((fields.get("key")?, fields.raw("value").map(|raw| slice_of(body, raw))))
    };
    list.iter().map(item).collect()
}

/// Id, content type and payload of each entry of a bulk publish.
///
/// # Errors
/// What is wrong with the body.
pub fn entries(body: &Bytes) -> Result<Vec<(String, String, Bytes)>, String> {
    let entries = pubsub::decode(body)?;
    Ok(entries.into_iter().map(|e| (e.entry_id, e.content_type, e.event)).collect())
}
