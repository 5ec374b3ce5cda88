//! `/v1.0/publish`

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use http::StatusCode;
use mecha_components_api::ErrorKind;
use mecha_core::codes::Code;
use mecha_core::pubsub::{BulkPublishEntry, PublishRequest};
use mecha_core::{ApiError, Core, Cx, Detail};
use serde_json::json;
use serde_json::value::RawValue;

use super::decode::{Fields, metadata_of_query, slice_of, text};
use super::respond::{Answer, json_value, no_content};
use crate::plain;

/// What a bulk publish takes, as errors call it.
const ENTRIES: &str = "a JSON list of {entryId, event, contentType}";
const ENTRY: &str = "an object {entryId, event, contentType}";

pub(super) async fn publish(
    core: &Core,
    cx: &Cx,
    pubsub: &str,
    topic: &str,
    query: Option<&str>,
    content_type: Option<&str>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let req = PublishRequest {
        pubsub: pubsub.to_owned(),
        topic: topic.to_owned(),
        data: body,
        content_type: content_type.map(str::to_owned),
        metadata: metadata_of_query(query),
    };
    core.pubsub.publish(cx, req).await?;
    Ok(no_content())
}

pub(super) async fn publish_bulk(
    core: &Core,
    cx: &Cx,
    pubsub: &str,
    topic: &str,
    query: Option<&str>,
    body: Bytes,
) -> Result<Answer, ApiError> {
    let entries = decode(&body).map_err(|e| {
        let message = format!("error when unmarshaling the request for topic {topic} pubsub {pubsub}: {e}");
        ApiError::new(Code::PubSubEventsSer, ErrorKind::InvalidArgument, message.clone())
            .with_detail(Detail::ResourceInfo {
                resource_type: "pubsub",
                resource_name: pubsub.to_owned(),
                description: message,
            })
            .with_detail(Detail::ErrorInfo {
                reason: "DAPR_PUBSUB_UNMARSHAL_EVENTS".into(),
                metadata: Some([("appID".to_owned(), core.me.app_id.to_string())].into()),
            })
    })?;
    let failed = core.pubsub.publish_bulk(cx, pubsub, topic, entries, metadata_of_query(query)).await?;
    if failed.is_empty() {
        return Ok(no_content());
    }
    let list: Vec<_> = failed.iter().map(|f| json!({"entryId": f.entry_id, "error": f.error})).collect();
    Ok(json_value(
        StatusCode::INTERNAL_SERVER_ERROR,
        &json!({"failedEntries": list, "errorCode": Code::PubSubPublishMessage.as_str()}),
    ))
}

pub(super) fn decode(body: &Bytes) -> Result<Vec<BulkPublishEntry>, String> {
    let raw: Vec<&RawValue> = text(body).and_then(|t| plain::read(t, ENTRIES))?;
    raw.into_iter()
        .map(|entry| {
            let f = Fields::parse(entry.get(), ENTRY)?;
            let content_type: String = f.get("contentType")?;
            Ok(BulkPublishEntry {
                entry_id: f.get("entryId")?,
                event: event(body, f.raw("event"), &content_type)?,
                content_type,
                metadata: f.metadata("metadata")?,
            })
        })
        .collect()
}

/// The payload of one entry: JSON as it stands, text without its quotes, bytes without base64.
fn event(body: &Bytes, raw: Option<&RawValue>, content_type: &str) -> Result<Bytes, String> {
    let raw = raw.ok_or("member \"event\" is required")?;
    let base = content_type.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let string = || {
        serde_json::from_str::<String>(raw.get())
            .map_err(|_| format!("event must be a string for content type {content_type}"))
    };
    if base == "application/cloudevents+json" && !raw.get().starts_with('{') {
        return Err("event must be an object for content type application/cloudevents+json".into());
    }
    if base == "application/json" || (base.starts_with("application/") && base.ends_with("+json")) {
        return Ok(slice_of(body, raw));
    }
    if base.starts_with("text/") || base == "application/xml" {
        return Ok(string()?.into());
    }
    if base == "application/octet-stream" {
        return BASE64_STANDARD
            .decode(string()?)
            .map(Bytes::from)
            .map_err(|e| format!("event must be base64 for content type {content_type}: {e}"));
    }
    Err(format!("content type '{content_type}' is not known; use a JSON, text or octet-stream type"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_by_content_type() {
        let decode = |s: &'static str| decode(&Bytes::from_static(s.as_bytes()));
        let one = |s| decode(s).map(|v| v[0].event.clone());
        assert_eq!(
            one(r#"[{"entryId":"1","event":{"a":1.50},"contentType":"application/json"}]"#).unwrap(),
            r#"{"a":1.50}"#
        );
        assert_eq!(one(r#"[{"entryId":"1","event":"hi","contentType":"text/plain"}]"#).unwrap(), "hi");
        assert_eq!(one(r#"[{"entryId":"1","event":"aGk=","contentType":"application/octet-stream"}]"#).unwrap(), "hi");
        assert!(one(r#"[{"entryId":"1","event":1,"contentType":"text/plain"}]"#).is_err());
        assert!(one(r#"[{"entryId":"1","event":1,"contentType":""}]"#).is_err());
        assert!(one(r#"[{"entryId":"1","event":1,"contentType":"application/cloudevents+json"}]"#).is_err());
    }
}
