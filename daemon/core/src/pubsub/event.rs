//! What a broker handed over, as an event.

use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use mecha_components_api::Delivery;

use super::members::Members;
use super::{content, time};
use crate::cx::TraceHeaders;
use crate::trace::{Span, TraceContext, Tracer, validate_baggage};

/// Metadata key prefix of attributes in binary mode.
const BINARY_PREFIX: &str = "ce_";

/// A received event.
#[derive(Debug)]
pub(super) struct Event {
    /// Its attributes.
    pub members: Members,
    /// What an HTTP app gets.
    pub body: Bytes,
    /// Whether `body` is the data alone, the attributes being elsewhere.
    pub bare: bool,
}

impl Event {
    /// Reads a message. `raw` is the subscription's `rawPayload`.
    ///
    /// # Errors
    /// The message is no event; the text names no payload.
    pub(super) fn decode(msg: &Delivery, pubsub: &str, topic: &str, raw: bool) -> Result<Self, String> {
        if raw {
            return Ok(Self::around(msg, pubsub, topic));
        }
        let content_type = msg.content_type.as_deref().or_else(|| msg.metadata.get("content-type"));
        let binary = content_type.filter(|t| content::is_binary(t));
        if let Some(content_type) = binary
            && has_attributes(msg)
        {
            return Ok(Self::binary(msg, content_type));
        }
        match (Members::parse(&msg.data), binary) {
            (Ok(mut members), _) => {
                add_trace(&mut members, msg);
                Ok(Self { members, body: msg.data.clone(), bare: false })
            }
            (Err(_), Some(content_type)) => Ok(Self::binary(msg, content_type)),
            // The parser's text shows a position, never the input.
            (Err(e), None) => Err(format!("the message is no CloudEvent in JSON: {e}")),
        }
    }

    /// Wraps bytes that nobody wrapped.
    fn around(msg: &Delivery, pubsub: &str, topic: &str) -> Self {
        let mut members = Members::default();
        members.set("id", &uuid::Uuid::new_v4().to_string());
        members.set("specversion", "1.0");
        members.set("datacontenttype", content::OCTET_STREAM);
        members.set("source", "Dapr");
        members.set("type", "com.dapr.event.sent");
        members.set("topic", topic);
        members.set("pubsubname", pubsub);
        members.set("data_base64", &BASE64_STANDARD.encode(&msg.data));
        add_trace(&mut members, msg);
        let body = members.to_json();
        Self { members, body, bare: false }
    }

    /// Attributes from metadata, data from the message.
    fn binary(msg: &Delivery, content_type: &str) -> Self {
        let mut members = Members::default();
        for (key, value) in msg.metadata.iter() {
            if let Some(name) = attribute(key) {
                members.set(&name, value);
            }
        }
        members.set("datacontenttype", content_type);
        members.set("data_base64", &BASE64_STANDARD.encode(&msg.data));
        Self { members, body: msg.data.clone(), bare: true }
    }

    /// Whether its time is over.
    pub(super) fn is_expired(&self, now: SystemTime) -> bool {
        self.members.text("expiration").and_then(|text| time::parse(&text)).is_some_and(|at| at < now)
    }

    /// The publisher's trace context. A trace id that is no text counts as none.
    pub(super) fn parent(&self, tracer: &Tracer) -> Option<TraceContext> {
        let m = &self.members;
        let traceparent = m.text("traceparent").or_else(|| m.text("traceid"))?;
        tracer.extract(Some(&traceparent), m.text("tracestate").as_deref(), None)
    }

    /// What goes to the app beside the event.
    pub(super) fn headers(&self, span: &Span) -> TraceHeaders {
        let baggage = self.members.text("baggage").filter(|b| !b.is_empty() && validate_baggage(b).is_ok());
        TraceHeaders {
            traceparent: span.context().map(|c| c.traceparent().into()),
            tracestate: span.context().and_then(|c| c.tracestate.clone()),
            baggage: baggage.map(Into::into),
        }
    }
}

fn has_attributes(msg: &Delivery) -> bool {
    msg.metadata.iter().any(|(key, _)| attribute(key).is_some())
}

fn attribute(key: &str) -> Option<String> {
    let start = key.get(..BINARY_PREFIX.len())?;
    let name = key.get(BINARY_PREFIX.len()..).filter(|name| !name.is_empty())?;
    start.eq_ignore_ascii_case(BINARY_PREFIX).then(|| name.to_ascii_lowercase())
}

/// Trace fields the event lacks come from the message; `traceparent` wins over `traceid`.
fn add_trace(members: &mut Members, msg: &Delivery) {
    if msg.metadata.is_empty() {
        return;
    }
    let absent = |members: &Members, name: &str| members.raw(name).is_none();
    let lacks_parent = absent(members, "traceparent");
    for name in ["traceid", "tracestate", "baggage"] {
        if absent(members, name)
            && let Some(text) = msg.metadata.get(name)
        {
            members.set(name, text);
        }
    }
    if lacks_parent && let Some(text) = msg.metadata.get("traceparent") {
        members.set("traceparent", text);
        members.set("traceid", text);
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
