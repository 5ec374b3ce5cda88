//! What the app's JSON answers mean.

use std::time::Duration;

use bytes::Bytes;
use mecha_components_api::{Concurrency, Consistency, Metadata, Value as StateValue};
use mecha_core::app::{AppSubscription, AppVerdict, BindingReply, BulkOptions, RouteRule};
use mecha_core::state::SaveItem;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use crate::plain;

/// What the app answers when it is asked for its subscriptions.
const LIST: &str = "a JSON list of {pubsubname, topic, route}";
/// Bulk delivery without a number.
const DEFAULT_BULK_MESSAGES: u64 = 100;
/// Bulk delivery without a time, in milliseconds.
const DEFAULT_BULK_AWAIT_MS: u64 = 1000;
/// More than this in one batch only costs memory.
const MOST_BULK_MESSAGES: u64 = 10_000;

/// A member whatever the case of its name; the exact name wins.
fn member<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    object
        .get(name)
        .or_else(|| object.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v))
        .filter(|v| !v.is_null())
}

fn text(object: &Map<String, Value>, name: &str) -> String {
    member(object, name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The verdict in a 2xx answer to a topic event.
pub(super) fn verdict(body: &[u8]) -> AppVerdict {
    let Ok(Value::Object(answer)) = serde_json::from_slice(body) else { return AppVerdict::Success };
    member(&answer, "status").and_then(Value::as_str).map_or(AppVerdict::Success, status)
}

fn status(text: &str) -> AppVerdict {
    match text {
        "" | "SUCCESS" => AppVerdict::Success,
        "DROP" => AppVerdict::Drop,
        // Also texts nobody knows: better once too often than lost.
        _ => AppVerdict::Retry,
    }
}

/// The verdicts in a 2xx answer to a bulk event, in the order of `entries`.
pub(super) fn bulk_verdicts<'e>(body: &[u8], entries: impl Iterator<Item = &'e str>) -> Vec<AppVerdict> {
    let answer: Option<Map<String, Value>> = serde_json::from_slice(body).ok();
    let statuses = answer.as_ref().and_then(|a| member(a, "statuses")).and_then(Value::as_array);
    let of = |id: &str| {
        let found = statuses?.iter().filter_map(Value::as_object).find(|s| text(s, "entryId") == id)?;
        Some(match text(found, "status").as_str() {
            "SUCCESS" => AppVerdict::Success,
            "DROP" => AppVerdict::Drop,
            _ => AppVerdict::Retry,
        })
    };
    entries.map(|id| of(id).unwrap_or(AppVerdict::Retry)).collect()
}

/// The app's subscriptions. What cannot be used comes back as sentences for the log.
pub(super) fn subscriptions(body: &[u8]) -> Result<(Vec<AppSubscription>, Vec<String>), String> {
    let list: Vec<Map<String, Value>> = serde_json::from_slice(body)
        .map_err(|e| format!("the answer to /dapr/subscribe: {}", plain::told(body, LIST, &e)))?;
    let mut warnings = Vec::new();
    let mut out = Vec::with_capacity(list.len());
    for item in &list {
        let sub = subscription(item);
        if sub.default_route.is_none() && sub.rules.is_empty() {
            warnings.push(format!(
                "subscription to topic {} of pubsub {} has no route and is left out",
                sub.topic, sub.pubsub
            ));
        } else {
            out.push(sub);
        }
    }
    Ok((out, warnings))
}

fn subscription(item: &Map<String, Value>) -> AppSubscription {
    let routes = member(item, "routes").and_then(Value::as_object);
    let rules = routes.and_then(|r| member(r, "rules")).and_then(Value::as_array);
    let default = routes.map(|r| text(r, "default")).unwrap_or_default();
    let route = text(item, "route");
    let default = if default.is_empty() { route } else { default };
    let metadata: Metadata = member(item, "metadata")
        .and_then(Value::as_object)
        .into_iter()
        .flatten()
        .map(|(k, v)| (k.clone(), v.as_str().map_or_else(|| v.to_string(), str::to_owned)))
        .collect();
    let dead_letter = text(item, "deadLetterTopic");
    AppSubscription {
        pubsub: text(item, "pubsubname"),
        topic: text(item, "topic"),
        metadata,
        rules: rules
            .into_iter()
            .flatten()
            .filter_map(Value::as_object)
            .map(|r| RouteRule { matches: text(r, "match"), path: text(r, "path") })
            .collect(),
        default_route: (!default.is_empty()).then_some(default),
        dead_letter_topic: (!dead_letter.is_empty()).then_some(dead_letter),
        bulk: member(item, "bulkSubscribe").and_then(Value::as_object).and_then(bulk),
    }
}

fn bulk(options: &Map<String, Value>) -> Option<BulkOptions> {
    let enabled = member(options, "enabled").and_then(Value::as_bool).unwrap_or(false);
    let number = |name: &str| member(options, name).and_then(Value::as_u64).filter(|n| *n > 0);
    enabled.then(|| bulk_options(number("maxMessagesCount"), number("maxAwaitDurationMs")))
}

/// Bulk options with their defaults and bounds.
pub(super) fn bulk_options(messages: Option<u64>, await_ms: Option<u64>) -> BulkOptions {
    let messages = messages.unwrap_or(DEFAULT_BULK_MESSAGES).min(MOST_BULK_MESSAGES);
    BulkOptions {
        max_messages: usize::try_from(messages).unwrap_or(usize::MAX),
        max_await: Duration::from_millis(await_ms.unwrap_or(DEFAULT_BULK_AWAIT_MS)),
    }
}

/// The reply in a 2xx answer to a binding event: an object with any of its members, else nothing to do.
pub(super) fn binding_reply(body: &Bytes) -> BindingReply {
    let Ok(answer) = serde_json::from_slice::<Map<String, Value>>(body) else {
        return BindingReply { data: body.clone(), ..BindingReply::default() };
    };
    let raw: std::collections::BTreeMap<String, &RawValue> = serde_json::from_slice(body).unwrap_or_default();
    let states = member(&answer, "state").and_then(Value::as_array).map(|items| {
        let raw_items: Vec<std::collections::BTreeMap<String, &RawValue>> =
            raw.get("state").and_then(|r| serde_json::from_str(r.get()).ok()).unwrap_or_default();
        items
            .iter()
            .filter_map(Value::as_object)
            .enumerate()
            .map(|(i, item)| state_item(item, raw_items.get(i)))
            .collect()
    });
    let to = member(&answer, "to").and_then(Value::as_array);
    let data = raw.get("data").map(|r| body.slice_ref(r.get().as_bytes()));
    BindingReply {
        data: data.unwrap_or_default(),
        store_name: text(&answer, "storeName"),
        states: states.unwrap_or_default(),
        to: to.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect(),
        parallel: text(&answer, "concurrency").eq_ignore_ascii_case("parallel"),
    }
}

fn state_item(item: &Map<String, Value>, raw: Option<&std::collections::BTreeMap<String, &RawValue>>) -> SaveItem {
    let value = raw.and_then(|r| r.get("value")).map_or_else(
        || Bytes::from(member(item, "value").map_or_else(|| "null".to_owned(), Value::to_string)),
        |r| Bytes::copy_from_slice(r.get().as_bytes()),
    );
    let options = member(item, "options").and_then(Value::as_object);
    let option = |name: &str| options.map(|o| text(o, name)).unwrap_or_default();
    let etag = text(item, "etag");
    SaveItem {
        key: text(item, "key"),
        value: StateValue::Json(value),
        etag: (!etag.is_empty()).then_some(etag),
        concurrency: if option("concurrency") == "first-write" {
            Concurrency::FirstWrite
        } else {
            Concurrency::LastWrite
        },
        consistency: if option("consistency") == "strong" { Consistency::Strong } else { Consistency::Eventual },
        metadata: member(item, "metadata")
            .and_then(Value::as_object)
            .into_iter()
            .flatten()
            .filter_map(|(k, v)| Some((k.clone(), v.as_str()?.to_owned())))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verdicts_of_the_contract() {
        for (body, want) in [
            ("", AppVerdict::Success),
            ("ok", AppVerdict::Success),
            ("[]", AppVerdict::Success),
            ("{}", AppVerdict::Success),
            (r#"{"status":""}"#, AppVerdict::Success),
            (r#"{"status":1}"#, AppVerdict::Success),
            (r#"{"status":"SUCCESS"}"#, AppVerdict::Success),
            (r#"{"status":"RETRY"}"#, AppVerdict::Retry),
            (r#"{"status":"success"}"#, AppVerdict::Retry),
            (r#"{"status":"DROP"}"#, AppVerdict::Drop),
        ] {
            assert_eq!(verdict(body.as_bytes()), want, "{body}");
        }
    }

    #[test]
    fn bulk_verdicts_default_to_retry() {
        let body = br#"{"statuses":[{"entryId":"a","status":"SUCCESS"},{"entryId":"b","status":"?"}]}"#;
        assert_eq!(
            bulk_verdicts(body, ["a", "b", "c"].into_iter()),
            [AppVerdict::Success, AppVerdict::Retry, AppVerdict::Retry]
        );
        assert_eq!(bulk_verdicts(b"ok", ["a"].into_iter()), [AppVerdict::Retry]);
    }

    #[test]
    fn subscriptions_in_every_spelling() {
        let body = br#"[
            {"pubsubname":"p","topic":"t","route":"/r"},
            {"pubsubName":"p","topic":"u","routes":{"rules":[{"match":"event.type == 'x'","path":"/x"}],"default":"/d"},
             "deadLetterTopic":"dlq","metadata":{"rawPayload":"true"},"bulkSubscribe":{"enabled":true,"maxMessagesCount":5}},
            {"pubsubname":"p","topic":"nowhere"}]"#;
        let (subs, warnings) = subscriptions(body).unwrap();
        assert_eq!(subs.len(), 2);
        assert_eq!(warnings.len(), 1);
        assert_eq!(subs[0].default_route.as_deref(), Some("/r"));
        assert_eq!(subs[1].pubsub, "p");
        assert_eq!(subs[1].rules[0].path, "/x");
        assert_eq!(subs[1].bulk.unwrap().max_messages, 5);
        assert!(subscriptions(b"{}").is_err());
    }

    #[test]
    fn binding_replies_keep_their_values() {
        let body = Bytes::from_static(br#"{"storeName":"s","state":[{"key":"k","value":1.10}],"to":["b"],"data":{"n":12345678901234567890},"concurrency":"parallel"}"#);
        let r = binding_reply(&body);
        assert_eq!(r.data, r#"{"n":12345678901234567890}"#);
        assert_eq!(r.states[0].value.bytes(), "1.10");
        assert!(r.parallel && r.to == ["b"]);
        assert_eq!(binding_reply(&Bytes::from_static(b"plain")).data, "plain");
    }
}
