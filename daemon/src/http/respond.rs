//! Answers of the HTTP API.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use mecha_components_api::Metadata;
use mecha_core::{ApiError, Detail, Shape};
use serde_json::{Map, Value, json};

use crate::body::OutBody;
use crate::wire;

pub(super) const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// An answer of the HTTP API.
pub(super) type Answer = Response<OutBody>;

/// 204.
pub(super) fn no_content() -> Answer {
    let mut res = Response::new(OutBody::empty());
    *res.status_mut() = StatusCode::NO_CONTENT;
    res
}

/// A JSON answer.
pub(super) fn json(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut res = Response::new(OutBody::from(body.into()));
    *res.status_mut() = status;
    res.headers_mut().insert(CONTENT_TYPE, JSON);
    res
}

/// A JSON answer made of a value.
pub(super) fn json_value(status: StatusCode, value: &Value) -> Answer {
    json(status, value.to_string())
}

/// A plain-text answer.
pub(super) fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut res = Response::new(OutBody::from(body.into()));
    *res.status_mut() = status;
    res.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    res
}

/// Adds response metadata as `metadata.<k>` headers. What cannot be a header is left out:
/// a value with a line break must never become a header of its own.
pub(super) fn add_metadata<'a>(headers: &mut HeaderMap, metadata: impl Iterator<Item = (&'a str, &'a str)>) {
    for (k, v) in metadata {
        let name = HeaderName::try_from(format!("metadata.{k}"));
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(v)) {
            headers.insert(name, value);
        }
    }
}

/// The HTTP form of an error.
pub(super) fn error(e: &ApiError) -> Answer {
    let (status, _) = wire::statuses(e);
    let mut body = Map::new();
    body.insert("errorCode".to_owned(), e.code().as_str().into());
    body.insert("message".to_owned(), e.http_message().into());
    if e.shape() == Shape::Rich && !e.details().is_empty() {
        body.insert("details".to_owned(), Value::Array(e.details().iter().map(detail).collect()));
    }
    let mut res = json_value(status, &Value::Object(body));
    let md: Metadata = e.headers().iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    add_metadata(res.headers_mut(), md.iter());
    res.extensions_mut().insert(Failed { code: e.code() });
    res
}

/// Marks an answer as an API error, for metrics and logs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Failed {
    pub(crate) code: mecha_core::codes::Code,
}

fn detail(d: &Detail) -> Value {
    match d {
        Detail::ErrorInfo { reason, metadata } => json!({
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "domain": "dapr.io",
            "metadata": metadata,
            "reason": reason,
        }),
        Detail::ResourceInfo { resource_type, resource_name, description } => json!({
            "@type": "type.googleapis.com/google.rpc.ResourceInfo",
            "description": description,
            "owner": "",
            "resource_name": resource_name,
            "resource_type": resource_type,
        }),
        Detail::BadRequest { field, description } => json!({
            "@type": "type.googleapis.com/google.rpc.BadRequest",
            "field_violations": [{"field": field, "description": description}],
        }),
        Detail::Help { url, description } => json!({
            "@type": "type.googleapis.com/google.rpc.Help",
            "links": [{"url": url, "description": description}],
        }),
    }
}
