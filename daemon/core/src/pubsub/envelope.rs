//! What the broker gets: the CloudEvent of a published payload.

use std::time::SystemTime;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use mecha_components_api::Metadata;

use super::content;
use super::members::{Members, json_text, json_value, push_text};
use super::time;

/// Default `type` of a published event.
const EVENT_TYPE: &str = "com.dapr.event.sent";
/// `source` of an event that came without one.
const FOREIGN_SOURCE: &str = "Dapr";
const SPEC_VERSION: &str = "1.0";
/// Prefix of the metadata keys that override attributes.
const OVERRIDE: &str = "cloudevent.";

/// A payload on its way into an envelope.
#[derive(Debug)]
pub(super) struct Draft<'a> {
    /// Pub/sub component.
    pub pubsub: &'a str,
    /// Topic without namespace prefix.
    pub topic: &'a str,
    /// App id of the publisher.
    pub app_id: &'a str,
    /// Payload.
    pub data: &'a Bytes,
    /// Its content type, when the publisher named one.
    pub content_type: Option<&'a str>,
    /// Request metadata.
    pub metadata: &'a Metadata,
    /// W3C trace parent, empty without trace context.
    pub traceparent: &'a str,
    /// W3C trace state, empty without one.
    pub tracestate: &'a str,
    /// Wall clock.
    pub now: SystemTime,
    /// When it expires, if the broker does not see to that itself.
    pub expires: Option<SystemTime>,
}

/// Input that claims to be a CloudEvent and is no JSON object.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoEvent;

impl Draft<'_> {
    /// The envelope.
    ///
    /// # Errors
    /// See [`NoEvent`].
    pub(super) fn seal(&self) -> Result<Bytes, NoEvent> {
        let content_type = self.content_type.filter(|t| !t.is_empty()).unwrap_or(content::TEXT);
        if content::is_cloud_event(content_type) { self.complete() } else { Ok(self.wrap(content_type)) }
    }

    /// A new event around the payload.
    fn wrap(&self, content_type: &str) -> Bytes {
        let over = |attribute: &str| self.metadata.get_non_empty(&format!("{OVERRIDE}{attribute}"));
        // Most requests override nothing.
        let any = self.metadata.iter().any(|(k, _)| starts_with_ignoring_case(k, OVERRIDE));
        let over = |attribute| if any { over(attribute) } else { None };

        let mut id = [0; uuid::fmt::Hyphenated::LENGTH];
        let id = over("id").unwrap_or_else(|| uuid::Uuid::new_v4().hyphenated().encode_lower(&mut id));
        let traceparent = over("traceparent").or_else(|| over("traceid")).unwrap_or(self.traceparent);
        let mut out = Vec::with_capacity(self.data.len() + 512);
        let mut put = |name: &str, text: &str| {
            out.extend_from_slice(name.as_bytes());
            push_text(&mut out, text);
        };
        put("{\"id\":", id);
        put(",\"specversion\":", SPEC_VERSION);
        put(",\"source\":", over("source").unwrap_or(self.app_id));
        put(",\"type\":", over("type").unwrap_or(EVENT_TYPE));
        put(",\"time\":", &time::format(self.now));
        put(",\"datacontenttype\":", content_type);
        if let Some(subject) = over("subject") {
            put(",\"subject\":", subject);
        }
        put(",\"topic\":", self.topic);
        put(",\"pubsubname\":", self.pubsub);
        put(",\"traceid\":", traceparent);
        put(",\"traceparent\":", traceparent);
        put(",\"tracestate\":", over("tracestate").unwrap_or(self.tracestate));
        if let Some(expires) = self.expires {
            put(",\"expiration\":", &time::format(expires));
        }
        if content::is_binary(content_type) {
            put(",\"data_base64\":", &BASE64_STANDARD.encode(self.data));
        } else {
            let json = if content::is_json(content_type) { json_value(self.data) } else { None };
            match json {
                Some(json) => {
                    out.extend_from_slice(b",\"data\":");
                    out.extend_from_slice(&json);
                }
                None => put(",\"data\":", &String::from_utf8_lossy(self.data)),
            }
        }
        out.push(b'}');
        out.into()
    }

    /// The publisher's own event with what it lacks.
    fn complete(&self) -> Result<Bytes, NoEvent> {
        let mut event = Members::parse(self.data).map_err(|_| NoEvent)?;
        let defaults = [("source", FOREIGN_SOURCE), ("type", EVENT_TYPE), ("specversion", SPEC_VERSION)];
        for (name, text) in defaults {
            if event.lacks(name) {
                event.set(name, text);
            }
        }
        if event.lacks("time") {
            event.set("time", &time::format(self.now));
        }
        // An event that carries its own trace keeps it, under both names.
        let own = ["traceparent", "traceid"].into_iter().find(|name| !event.lacks(name));
        let trace = own.and_then(|name| event.raw(name).cloned()).unwrap_or_else(|| json_text(self.traceparent));
        for name in ["traceparent", "traceid"] {
            if event.lacks(name) {
                event.set_raw(name, trace.clone());
            }
        }
        if event.lacks("tracestate") {
            event.set("tracestate", self.tracestate);
        }
        event.set("topic", self.topic);
        event.set("pubsubname", self.pubsub);
        if let Some(expires) = self.expires {
            event.set("expiration", &time::format(expires));
        }
        Ok(event.to_json())
    }
}

fn starts_with_ignoring_case(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}

#[cfg(test)]
#[path = "envelope_tests.rs"]
mod tests;
