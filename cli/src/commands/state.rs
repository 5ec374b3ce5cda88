//! `mecha state get | set | delete`.

use super::target;
use crate::args::{StateAction, StateTarget};
use crate::client::{Answer, Call, segment};
use crate::error::{CliError, OK, Result};
use crate::output::{self, Format};
use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::io::IsTerminal as _;
use std::path::Path;
use std::time::Duration;

pub(crate) async fn run(action: StateAction) -> Result<u8> {
    match action {
        StateAction::Get { key, output, target } => get(&key, output, &target).await,
        StateAction::Set { key, value, data_file, etag, ttl, target } => {
            let value = match (value, data_file) {
                (Some(value), _) => value.into(),
                (None, Some(path)) => target::read(Path::new(&path))?,
                (None, None) => return Err(CliError::usage("value", "name the value to store")),
            };
            set(&key, &value, etag.as_deref(), ttl, &target).await
        }
        StateAction::Delete { key, etag, target } => delete(&key, etag.as_deref(), &target).await,
    }
}

async fn get(key: &str, format: Format, target: &StateTarget) -> Result<u8> {
    let answer = send(Call::new(Method::GET, path(target, Some(key))), target).await?;
    if answer.status == StatusCode::NO_CONTENT {
        return Err(CliError::new("no-value", format!("{} holds no value for {key:?}", target.store)));
    }
    if format == Format::Table {
        output::write(&answer.body)?;
        if std::io::stdout().is_terminal() && answer.body.last() != Some(&b'\n') {
            output::write(b"\n")?;
        }
        return Ok(OK);
    }
    let etag = answer.headers.get(header::ETAG).and_then(|etag| etag.to_str().ok());
    let value: Value = serde_json::from_slice(&answer.body)
        .unwrap_or_else(|_| Value::from(String::from_utf8_lossy(&answer.body).into_owned()));
    output::print(format, &json!({ "key": key, "value": value, "etag": etag }), String::new)?;
    Ok(OK)
}

#[derive(Serialize)]
struct Item<'a> {
    key: &'a str,
    value: &'a RawValue,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    metadata: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    options: Option<Value>,
}

async fn set(key: &str, value: &[u8], etag: Option<&str>, ttl: Option<Duration>, target: &StateTarget) -> Result<u8> {
    let body = item(key, value, etag, ttl)?;
    let call = Call::new(Method::POST, path(target, None))
        .header(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .body(body);
    send(call, target).await?;
    output::write(format!("stored {key}\n").as_bytes())?;
    Ok(OK)
}

/// The request body: JSON goes through byte for byte, other text becomes a JSON string.
fn item(key: &str, value: &[u8], etag: Option<&str>, ttl: Option<Duration>) -> Result<Bytes> {
    let text = std::str::from_utf8(value).map_err(|_| {
        CliError::usage("value", "the value is neither JSON nor text").hint("store bytes through an SDK, over gRPC")
    })?;
    let value = serde_json::from_str::<&RawValue>(text).map(ToOwned::to_owned);
    let value = value.or_else(|_| serde_json::value::to_raw_value(text));
    let write = |value: Box<RawValue>| {
        serde_json::to_vec(&[Item {
            key,
            value: &value,
            etag,
            // Less than a second would mean "at once".
            metadata: ttl.map(|ttl| json!({ "ttlInSeconds": ttl.as_secs().max(1).to_string() })),
            options: etag.map(|_| json!({ "concurrency": "first-write" })),
        }])
    };
    let body =
        value.and_then(write).map_err(|error| CliError::new("value", format!("cannot send the value: {error}")))?;
    Ok(body.into())
}

async fn delete(key: &str, etag: Option<&str>, target: &StateTarget) -> Result<u8> {
    let mut address = path(target, Some(key));
    let mut call_headers = None;
    if let Some(etag) = etag {
        address.push_str("?concurrency=first-write");
        let value =
            HeaderValue::try_from(etag).map_err(|_| CliError::usage("etag", format!("{etag:?} cannot be an ETag")))?;
        call_headers = Some(value);
    }
    let mut call = Call::new(Method::DELETE, address);
    if let Some(etag) = call_headers {
        call = call.header(header::IF_MATCH, etag);
    }
    send(call, target).await?;
    output::write(format!("deleted {key}\n").as_bytes())?;
    Ok(OK)
}

fn path(target: &StateTarget, key: Option<&str>) -> String {
    let mut path = format!("/v1.0/state/{}", segment(&target.store));
    if let Some(key) = key {
        path.push('/');
        path.push_str(&segment(key));
    }
    path
}

async fn send(call: Call, target: &StateTarget) -> Result<Answer> {
    let endpoint = target::endpoint(&target.through, target.app_id.as_deref())?;
    call.send(&endpoint, target.through.timeout).await?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(value: &[u8]) -> String {
        String::from_utf8(item("k", value, None, None).unwrap().to_vec()).unwrap()
    }

    #[test]
    fn json_goes_through_as_it_is_and_text_becomes_a_string() {
        assert_eq!(text(br#"{"a": 1.10}"#), r#"[{"key":"k","value":{"a": 1.10}}]"#);
        assert_eq!(text(b"hello \"you\""), r#"[{"key":"k","value":"hello \"you\""}]"#);
        assert!(item("k", b"\xff", None, None).is_err());
    }

    #[test]
    fn an_etag_asks_for_first_write() {
        let body = item("k", b"1", Some("7"), Some(Duration::from_secs(90))).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body[0]["etag"], "7");
        assert_eq!(body[0]["options"]["concurrency"], "first-write");
        assert_eq!(body[0]["metadata"]["ttlInSeconds"], "90");
    }
}
