//! Topic events as gRPC messages: for apps that speak gRPC and for streaming subscribers.

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use mecha_components_api::Metadata;
use mecha_core::app::{BulkEventEntry, BulkTopicEvent, TopicEvent};
/// The sidecar protocol's status has the fields of `google.rpc.Status`.
pub(crate) use mecha_proto::internals::Status as RpcStatus;
use mecha_proto::runtime::topic_event_bulk_request_entry::Event;
use mecha_proto::runtime::{TopicEventBulkRequest, TopicEventBulkRequestEntry, TopicEventCeRequest, TopicEventRequest};
use prost_types::Struct;
use prost_types::value::Kind;
use serde_json::{Map, Value};

/// Attributes with a field of their own; every other one is an extension.
const OWN_FIELDS: [&str; 7] = ["id", "source", "type", "specversion", "datacontenttype", "data", "data_base64"];

/// `type` of a bulk delivery.
const BULK_TYPE: &str = "com.dapr.event.sent.bulk";

/// One event for a gRPC receiver; `None` when its data has no form for its content type: the
/// event is to be tried again.
pub(crate) fn topic_event_request(event: &TopicEvent) -> Option<TopicEventRequest> {
    let attributes = &event.event;
    Some(TopicEventRequest {
        id: text(attributes, "id"),
        source: text(attributes, "source"),
        r#type: text(attributes, "type"),
        spec_version: text(attributes, "specversion"),
        data_content_type: text(attributes, "datacontenttype"),
        data: data(attributes, event.data.as_ref())?,
        topic: event.topic.clone(),
        pubsub_name: event.pubsub.clone(),
        path: event.path.clone(),
        extensions: Some(extensions(attributes)),
    })
}

/// A bulk delivery for a gRPC receiver. Entries whose data has no form for its content type
/// are left out: an entry without answer is tried again.
pub(crate) fn topic_event_bulk_request(event: &BulkTopicEvent) -> TopicEventBulkRequest {
    TopicEventBulkRequest {
        id: event.id.clone(),
        entries: event.entries.iter().filter_map(bulk_entry).collect(),
        metadata: map(&event.metadata),
        topic: event.topic.clone(),
        pubsub_name: event.pubsub.clone(),
        r#type: BULK_TYPE.to_owned(),
        path: event.path.clone(),
    }
}

fn bulk_entry(entry: &BulkEventEntry) -> Option<TopicEventBulkRequestEntry> {
    let event = match &entry.event {
        Some(attributes) if !entry.raw => Event::CloudEvent(TopicEventCeRequest {
            id: text(attributes, "id"),
            source: text(attributes, "source"),
            r#type: text(attributes, "type"),
            spec_version: text(attributes, "specversion"),
            data_content_type: text(attributes, "datacontenttype"),
            data: data(attributes, entry.data.as_ref())?,
            extensions: Some(extensions(attributes)),
        }),
        _ => Event::Bytes(entry.body.clone()),
    };
    Some(TopicEventBulkRequestEntry {
        entry_id: entry.entry_id.clone(),
        content_type: entry.content_type.clone(),
        metadata: map(&entry.metadata),
        event: Some(event),
    })
}

/// Metadata as a protobuf map.
pub(crate) fn map(metadata: &Metadata) -> std::collections::BTreeMap<String, String> {
    metadata.iter().map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

fn text(attributes: &Map<String, Value>, name: &str) -> String {
    attributes.get(name).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The payload: bytes as bytes, text as text, JSON as its text with the publisher's digits.
fn data(attributes: &Map<String, Value>, raw: Option<&Bytes>) -> Option<Bytes> {
    if let Some(encoded) = attributes.get("data_base64").and_then(Value::as_str) {
        return BASE64_STANDARD.decode(encoded).ok().map(Bytes::from);
    }
    let json = || match (raw, attributes.get("data")) {
        (Some(raw), _) => raw.clone(),
        (None, Some(value)) => value.to_string().into(),
        (None, None) => Bytes::new(),
    };
    let content_type = attributes.get("datacontenttype").and_then(Value::as_str).unwrap_or_default();
    let base = content_type.split(';').next().unwrap_or_default().trim();
    let is = |name: &str| base.eq_ignore_ascii_case(name);
    if is("application/json") || is("application/cloudevents+json") {
        return Some(json());
    }
    let must_be_text = is("application/xml") || base.get(..5).is_some_and(|start| start.eq_ignore_ascii_case("text/"));
    match attributes.get("data") {
        Some(Value::String(text)) => Some(Bytes::copy_from_slice(text.as_bytes())),
        Some(_) if must_be_text => None,
        _ => Some(json()),
    }
}

fn extensions(attributes: &Map<String, Value>) -> Struct {
    let fields = attributes.iter().filter(|(name, _)| !OWN_FIELDS.contains(&name.as_str()));
    Struct { fields: fields.map(|(name, value)| (name.clone(), proto_value(value))).collect() }
}

fn proto_value(value: &Value) -> prost_types::Value {
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        // Structs know no other number.
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(list) => {
            Kind::ListValue(prost_types::ListValue { values: list.iter().map(proto_value).collect() })
        }
        Value::Object(members) => Kind::StructValue(Struct {
            fields: members.iter().map(|(name, value)| (name.clone(), proto_value(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn event(attributes: Value, data: Option<&'static str>) -> TopicEvent {
        let Value::Object(event) = attributes else { panic!("an object") };
        TopicEvent {
            pubsub: "p".into(),
            topic: "orders".into(),
            path: "/orders".into(),
            event,
            data: data.map(|d| Bytes::from_static(d.as_bytes())),
            ..TopicEvent::default()
        }
    }

    fn data_of(content_type: &str, value: Value, raw: &'static str) -> Option<Bytes> {
        topic_event_request(&event(json!({"datacontenttype": content_type, "data": value}), Some(raw))).map(|r| r.data)
    }

    #[test]
    fn attributes_have_fields_and_the_rest_are_extensions() {
        let e = event(
            json!({"id": "1", "source": "shop", "type": "t", "specversion": "1.0", "datacontenttype": "text/plain",
                   "data": "hi", "traceparent": "00-x", "n": 1.5, "list": [true, null], "o": {"a": "b"}}),
            None,
        );
        let r = topic_event_request(&e).unwrap();
        assert_eq!((r.id.as_str(), r.source.as_str(), r.path.as_str()), ("1", "shop", "/orders"));
        assert_eq!((r.topic.as_str(), r.pubsub_name.as_str()), ("orders", "p"));
        let fields = r.extensions.unwrap().fields;
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["list", "n", "o", "traceparent"]);
        assert_eq!(fields["n"].kind, Some(Kind::NumberValue(1.5)));
    }

    #[test]
    fn data_follows_its_content_type() {
        assert_eq!(data_of("application/json", json!({"n": 1.5}), r#"{"n":1.50}"#).unwrap(), r#"{"n":1.50}"#);
        assert_eq!(data_of("application/json; charset=utf-8", json!("hi"), r#""hi""#).unwrap(), r#""hi""#);
        assert_eq!(data_of("text/plain", json!("hi"), r#""hi""#).unwrap(), "hi");
        assert_eq!(data_of("Application/XML", json!("<a/>"), r#""<a/>""#).unwrap(), "<a/>");
        assert!(data_of("text/plain", json!({"a": 1}), r#"{"a":1}"#).is_none());
        assert_eq!(data_of("application/vnd.x+json", json!("hi"), r#""hi""#).unwrap(), "hi");
        assert_eq!(data_of("", json!({"a": 1}), r#"{"a":1}"#).unwrap(), r#"{"a":1}"#);
        let none = topic_event_request(&event(json!({"datacontenttype": "text/plain"}), None)).unwrap();
        assert!(none.data.is_empty());
    }

    #[test]
    fn binary_data_is_decoded() {
        let e = event(json!({"data_base64": "AP8=", "datacontenttype": "application/octet-stream"}), None);
        assert_eq!(topic_event_request(&e).unwrap().data, &b"\x00\xff"[..]);
        assert!(topic_event_request(&event(json!({"data_base64": "!"}), None)).is_none());
    }

    #[test]
    fn raw_entries_go_as_bytes() {
        let entry = BulkEventEntry { entry_id: "1".into(), raw: true, body: "x".into(), ..BulkEventEntry::default() };
        assert_eq!(bulk_entry(&entry).unwrap().event, Some(Event::Bytes("x".into())));
    }
}
