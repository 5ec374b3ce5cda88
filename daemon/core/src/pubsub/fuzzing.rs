//! Doors for the fuzz targets: what reads bytes of brokers, publishers and apps, as pure
//! functions. No API; nothing else may call it.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use mecha_components_api::{Delivery, Metadata};

use super::check;
use super::envelope::Draft;
use super::event::Event;
use super::members::Members;
use super::route::Routes;
use crate::app::{AppSubscription, RouteRule};

/// A message as it was read.
#[derive(Debug)]
pub struct Read {
    /// The attributes as one JSON object.
    pub event: Bytes,
    /// What an HTTP app gets.
    pub body: Bytes,
    /// Whether `body` is the data alone.
    pub bare: bool,
    /// Whether its time was over at the epoch.
    pub expired: bool,
}

/// Reads a broker's message.
#[must_use]
pub fn read(msg: &Delivery, raw: bool) -> Option<Read> {
    let event = Event::decode(msg, "bus", "topic", raw).ok()?;
    let expired = event.is_expired(SystemTime::UNIX_EPOCH);
    Some(Read { event: event.members.to_json(), body: event.body, bare: event.bare, expired })
}

/// Puts a payload into its envelope.
#[must_use]
pub fn seal(data: &Bytes, content_type: Option<&str>, metadata: &Metadata) -> Option<Bytes> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    let draft = Draft {
        pubsub: "bus",
        topic: "topic",
        app_id: "app",
        data,
        content_type,
        metadata,
        traceparent: "",
        tracestate: "",
        now,
        expires: None,
    };
    draft.seal().ok()
}

/// `rawPayload` and life time of request metadata.
#[must_use]
pub fn wishes(metadata: &Metadata) -> Option<(bool, Option<Duration>)> {
    check::wishes(metadata).ok().map(|w| (w.raw, w.ttl))
}

/// Whether an expression takes an event; `None` when it is no expression or the event no
/// event, `Err` when it cannot be decided.
#[must_use]
pub fn takes(expression: &str, event: &Bytes) -> Option<Result<bool, String>> {
    let sub = AppSubscription {
        pubsub: "bus".into(),
        topic: "topic".into(),
        metadata: Metadata::new(),
        rules: vec![RouteRule { matches: expression.to_owned(), path: "/rule".into() }],
        default_route: None,
        dead_letter_topic: None,
        bulk: None,
    };
    let routes = Routes::compile(&sub).ok()?;
    let members = Members::parse(event).ok()?;
    Some(routes.pick(&members).map(|path| path.is_some()))
}
