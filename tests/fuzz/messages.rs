//! Events on their way through the broker, and what apps say of them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use mecha_components_api::{Delivery, Metadata};
use mecha_core::app::AppVerdict;
use mecha_core::pubsub::fuzzing as core;
use mechad::fuzzing::app;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::engine::{Checked, Target};

pub(crate) const TARGETS: &[Target] = &[
    Target {
        name: "event-read",
        words: &[
            "\n\n",
            "content-type: application/octet-stream",
            "ce_id: 1",
            "ce_type: t",
            "\"data\":",
            "\"data_base64\":",
            "\"expiration\":",
            "\"traceid\":1",
            "\"id\":",
            "null",
            "{",
            "}",
            "raw\n",
        ],
        check: event_read,
    },
    Target {
        name: "event-write",
        words: &[
            "application/json",
            "application/cloudevents+json",
            "application/octet-stream",
            "text/plain",
            "\n\n",
            "cloudevent.id: x",
            "cloudevent.traceid: 1",
            "rawPayload: true",
            "ttlInSeconds: 1",
            "{}",
            "null",
            "\"id\":",
        ],
        check: event_write,
    },
    Target {
        name: "app-answer",
        words: &[
            "{\"status\":",
            "\"SUCCESS\"",
            "\"RETRY\"",
            "\"DROP\"",
            "\"statuses\":[",
            "\"entryId\":\"1\"",
            "null",
            "}",
            "]",
        ],
        check: app_answer,
    },
    Target {
        name: "subscribe-answer",
        words: &[
            "\"pubsubname\":",
            "\"topic\":",
            "\"route\":",
            "\"routes\":{",
            "\"rules\":[",
            "\"match\":",
            "\"default\":",
            "\"bulkSubscribe\":{\"enabled\":true",
            "\"deadLetterTopic\":",
            "[",
            "{",
        ],
        check: subscribe_answer,
    },
    Target {
        name: "binding-answer",
        words: &["\"state\":[", "\"storeName\":", "\"to\":[", "\"concurrency\":", "\"data\":", "{", "}", "null"],
        check: binding_answer,
    },
    Target {
        name: "route-rule",
        words: &[
            "event.type",
            "event.data",
            "==",
            "&&",
            "||",
            "!",
            "(",
            ")",
            "[",
            "]",
            "has(",
            ".size()",
            ".matches(",
            "in",
            "\"a\"",
            "1.0",
            "?",
            ":",
            ".exists(x, ",
            "\n",
        ],
        check: route_rule,
    },
];

/// `key: value` lines, an empty one, then the payload.
fn parts(bytes: &[u8]) -> (Metadata, Bytes) {
    let at = bytes.windows(2).position(|w| w == b"\n\n");
    let (head, data) = at.map_or((&b""[..], bytes), |at| (&bytes[..at], &bytes[at + 2..]));
    let lines = head.split(|b| *b == b'\n').filter_map(|line| std::str::from_utf8(line).ok()?.split_once(": "));
    (lines.collect(), Bytes::copy_from_slice(data))
}

fn members(json: &[u8]) -> Result<BTreeMap<String, Box<RawValue>>, String> {
    serde_json::from_slice(json).map_err(|e| format!("the event is no JSON object: {e}"))
}

fn event_read(bytes: &[u8]) -> Checked {
    let (raw, rest) = match bytes.strip_prefix(b"raw\n") {
        Some(rest) => (true, rest),
        None => (false, bytes),
    };
    let (metadata, data) = parts(rest);
    let content_type = metadata.get("content-type").map(str::to_owned);
    let message = Delivery { topic: "topic".into(), data: data.clone(), metadata, content_type };
    let Some(read) = core::read(&message, raw) else {
        return if raw { Err("a raw message is refused".to_owned()) } else { Ok(false) };
    };
    let event = members(&read.event)?;
    if raw || read.bare {
        let text = event.get("data_base64").and_then(|v| serde_json::from_str::<String>(v.get()).ok());
        let decoded = text.and_then(|t| BASE64_STANDARD.decode(t).ok());
        if decoded.as_deref() != Some(&*data) {
            return Err("the payload of a message without envelope is lost".to_owned());
        }
    } else if read.body != data {
        return Err("an HTTP app gets other bytes than the broker gave".to_owned());
    }
    Ok(true)
}

fn event_write(bytes: &[u8]) -> Checked {
    let (mut metadata, data) = parts(bytes);
    let Some((raw, _)) = core::wishes(&metadata) else { return Ok(false) };
    if metadata.iter().any(|(k, v)| k.contains(['\r', '\n']) || v.contains(['\r', '\n'])) {
        return Err("a line break in metadata is taken".to_owned());
    }
    let content_type = metadata.remove("content-type");
    if raw {
        return Ok(true);
    }
    let Some(sealed) = core::seal(&data, content_type.as_deref(), &metadata) else { return Ok(false) };
    let event = members(&sealed)?;
    for name in ["topic", "pubsubname", "source", "type", "specversion", "time", "traceid", "traceparent", "tracestate"]
    {
        if !event.contains_key(name) {
            return Err(format!("the event has no {name}"));
        }
    }
    let message =
        Delivery { topic: "topic".into(), data: sealed.clone(), metadata: Metadata::new(), content_type: None };
    if core::read(&message, false).is_none() {
        return Err("we do not read what we wrote".to_owned());
    }
    let base =
        content_type.as_deref().unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let text = |name: &str| event.get(name).and_then(|v| serde_json::from_str::<String>(v.get()).ok());
    let kept = match base.as_str() {
        "application/octet-stream" => {
            text("data_base64").and_then(|t| BASE64_STANDARD.decode(t).ok()).is_some_and(|d| d == data)
        }
        "text/plain" => text("data").is_some_and(|t| t == String::from_utf8_lossy(&data)),
        "application/json" => match serde_json::from_slice::<&RawValue>(&data) {
            Ok(json) => event.get("data").is_some_and(|v| v.get() == json.get()),
            Err(_) => text("data").is_some_and(|t| t == String::from_utf8_lossy(&data)),
        },
        _ => true,
    };
    if kept { Ok(true) } else { Err(format!("the payload of type {base} is changed in {event:?}")) }
}

fn app_answer(bytes: &[u8]) -> Checked {
    let ids = ["1", "2", "", "é"];
    let verdicts = app::bulk_verdicts(bytes, &ids);
    if verdicts.len() != ids.len() {
        return Err(format!("{} verdicts for {} events", verdicts.len(), ids.len()));
    }
    let document: Option<Value> = serde_json::from_slice(bytes).ok();
    // An entry counts as done only where the app says so.
    let said = document.as_ref().is_some_and(|d| d.to_string().contains("SUCCESS"));
    if verdicts.contains(&AppVerdict::Success) && !said {
        return Err("an entry counts as done without a word of it".to_owned());
    }
    let one = app::verdict(bytes);
    let asks = document.as_ref().and_then(Value::as_object).and_then(|o| o.get("status")).and_then(Value::as_str);
    if let Some(status) = asks
        && !matches!(status, "" | "SUCCESS")
        && one == AppVerdict::Success
    {
        return Err(format!("the status {status:?} counts as success"));
    }
    Ok(document.is_some())
}

fn subscribe_answer(bytes: &[u8]) -> Checked {
    let Ok(subs) = app::subscriptions(bytes) else { return Ok(false) };
    for sub in &subs {
        if sub.default_route.is_none() && sub.rules.is_empty() {
            return Err(format!("a subscription without a route: {}", sub.topic));
        }
        if sub.bulk.as_ref().is_some_and(|b| b.max_messages > 10_000) {
            return Err("a batch without an end".to_owned());
        }
    }
    Ok(!subs.is_empty())
}

fn binding_answer(bytes: &[u8]) -> Checked {
    let _ = app::binding_reply(&Bytes::copy_from_slice(bytes));
    Ok(serde_json::from_slice::<Value>(bytes).is_ok())
}

/// First line: the expression; the rest: the event.
fn route_rule(bytes: &[u8]) -> Checked {
    let Ok(text) = std::str::from_utf8(bytes) else { return Ok(false) };
    let (expression, event) = text.split_once('\n').unwrap_or((text, "{}"));
    let event = Bytes::copy_from_slice(event.as_bytes());
    let Some(first) = core::takes(expression, &event) else { return Ok(false) };
    if core::takes(expression, &event).as_ref().map(Result::is_ok) != Some(first.is_ok()) {
        return Err("the same rule decides differently".to_owned());
    }
    Ok(true)
}
