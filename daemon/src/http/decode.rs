//! Request decoding shared by the handlers.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use mecha_components_api::{Concurrency, Consistency, ErrorKind, Metadata};
use mecha_core::ApiError;
use mecha_core::codes::Code;
use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use serde_json::value::RawValue;

use super::path;
use crate::plain::{self, Named};

/// A body that is read as a whole has to be there within this time; a dripping client must not
/// hold a place for ever.
const BODY_READ_LIMIT: Duration = Duration::from_secs(60);

/// How much of a refused body is read away at most, and for how long.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Reads a whole body, `limit` bytes at most.
pub(super) async fn whole<B>(body: B, limit: u64) -> Result<Bytes, ApiError>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    if body.size_hint().lower() > limit {
        discard(body).await;
        return Err(ApiError::too_large(limit));
    }
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let read = tokio::time::timeout(BODY_READ_LIMIT, Limited::new(body, most).collect());
    let Ok(read) = read.await else {
        let text = format!("failed to read request body: it did not arrive within {BODY_READ_LIMIT:?}");
        return Err(ApiError::new(Code::BodyRead, ErrorKind::Timeout, text).with_status(408, 4));
    };
    match read {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(e) if e.downcast_ref::<LengthLimitError>().is_some() => Err(ApiError::too_large(limit)),
        Err(e) => {
            Err(ApiError::new(Code::BodyRead, ErrorKind::InvalidArgument, format!("failed to read request body: {e}")))
        }
    }
}

/// Reads a refused body away, within limits. A client that still writes when the connection closes
/// gets a broken pipe instead of the answer that says why.
pub(super) async fn discard<B>(body: B)
where
    B: http_body::Body<Data = Bytes>,
{
    let read = async {
        let mut body = std::pin::pin!(body);
        let mut left = DISCARD_BYTES;
        while let Some(Ok(frame)) = body.frame().await {
            left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            if left == 0 {
                return;
            }
        }
    };
    // Late or too much: the client learns it from the closed connection.
    let _ = tokio::time::timeout(DISCARD_TIME, read).await;
}

/// Request metadata of the query: `metadata.<k>=<v>`, the first value wins.
pub(super) fn metadata_of_query(query: Option<&str>) -> Metadata {
    let mut md = Metadata::new();
    for (k, v) in path::query(query) {
        if let Some(name) = k.strip_prefix("metadata.")
            && !md.contains(name)
        {
            md.insert(name, v);
        }
    }
    md
}

/// Merges query metadata over metadata of the body.
pub(super) fn merged(mut body: Metadata, query: &Metadata) -> Metadata {
    body.extend(query.iter());
    body
}

/// First value of a query parameter.
pub(super) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<std::borrow::Cow<'a, str>> {
    path::query(query).find(|(k, _)| k == name).map(|(_, v)| v)
}

/// Text that must be UTF-8, as JSON is.
pub(super) fn text(body: &Bytes) -> Result<&str, String> {
    std::str::from_utf8(body).map_err(|e| format!("the body is not valid UTF-8 at byte {}", e.valid_up_to()))
}

/// A JSON object with its members as raw text. Member names match in any case; of
/// names that differ only in case the later one wins.
#[derive(Debug, Default)]
pub(super) struct Fields<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Fields<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Vec<(String, &'de RawValue)>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut out = Vec::new();
                while let Some(entry) = map.next_entry::<String, &'de RawValue>()? {
                    out.push(entry);
                }
                Ok(out)
            }
        }
        deserializer.deserialize_map(Members).map(Fields)
    }
}

impl<'a> Fields<'a> {
    /// Parses the text of one object, which is expected to be such a one.
    pub(super) fn parse(text: &'a str, expected: &str) -> Result<Self, String> {
        plain::read(text, expected)
    }

    /// Raw text of a member; `null` counts as absent.
    pub(super) fn raw(&self, name: &str) -> Option<&'a RawValue> {
        let found = self.0.iter().rev().find(|(k, _)| k.eq_ignore_ascii_case(name))?.1;
        (found.get() != "null").then_some(found)
    }

    /// A member decoded as `T`; absent gives the default.
    pub(super) fn get<T: Named + Default>(&self, name: &str) -> Result<T, String> {
        match self.raw(name) {
            None => Ok(T::default()),
            Some(raw) => plain::read(raw.get(), T::NAME).map_err(|e| format!("member \"{name}\": {e}")),
        }
    }

    /// A member that is an object.
    pub(super) fn object(&self, name: &str) -> Result<Fields<'a>, String> {
        match self.raw(name) {
            None => Ok(Fields::default()),
            Some(raw) => Fields::parse(raw.get(), "an object").map_err(|e| format!("member \"{name}\": {e}")),
        }
    }

    /// A member that maps text to text.
    pub(super) fn metadata(&self, name: &str) -> Result<Metadata, String> {
        let map: std::collections::BTreeMap<String, String> = self.get(name)?;
        Ok(map.into_iter().collect())
    }
}

/// The part of `body` that `raw` was parsed from, without copying.
pub(super) fn slice_of(body: &Bytes, raw: &RawValue) -> Bytes {
    body.slice_ref(raw.get().as_bytes())
}

/// `first-write` or `last-write`; empty is the default.
pub(super) fn concurrency(text: &str) -> Result<Concurrency, String> {
    match text {
        "" | "last-write" => Ok(Concurrency::LastWrite),
        "first-write" => Ok(Concurrency::FirstWrite),
        other => Err(format!("unrecognized concurrency '{other}', use first-write or last-write")),
    }
}

/// `eventual` or `strong`; empty is the default.
pub(super) fn consistency(text: &str) -> Result<Consistency, String> {
    match text {
        "" | "eventual" => Ok(Consistency::Eventual),
        "strong" => Ok(Consistency::Strong),
        other => Err(format!("unrecognized consistency '{other}', use eventual or strong")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_names_match_in_any_case_and_values_stay_raw() {
        let text = r#"{"Key":"a","VALUE": 12345678901234567890.10 }"#;
        let f = Fields::parse(text, "an object").unwrap();
        assert_eq!(f.get::<String>("key").unwrap(), "a");
        assert_eq!(f.raw("value").unwrap().get(), "12345678901234567890.10");
    }

    #[test]
    fn the_first_query_value_wins() {
        let md = metadata_of_query(Some("metadata.a=1&metadata.a=2&x=3&metadata.b=%20"));
        assert_eq!(md.get("a"), Some("1"));
        assert_eq!(md.get("b"), Some(" "));
        assert_eq!(md.len(), 2);
    }
}
