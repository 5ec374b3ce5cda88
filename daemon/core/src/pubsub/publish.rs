//! Publishing: one event, or several in one request.

use std::borrow::Cow;
use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt, stream};
use mecha_components_api::{Metadata, Publish};
use tokio::time::Instant;

use super::check::{Wishes, is_pattern, wishes};
use super::envelope::Draft;
use super::errors::Place;
use super::{BulkPublishEntry, FailedEntry, PubSubApi, PublishRequest, time};
use crate::cx::{Cx, Front};
use crate::error::ApiError;
use crate::ops::Operation;
use crate::store::{Found, PubSubHandle};
use crate::trace::{Mode, Span, SpanKind, attribute};

/// Publishes of one bulk request that run at the same time where the broker takes no batches.
const PARALLEL_PUBLISHES: usize = 32;

/// One entry of a bulk, ready for the broker.
struct Sealed<'a> {
    data: Bytes,
    metadata: Cow<'a, Metadata>,
    span: Span,
}

impl PubSubApi {
    /// Publishes one event; `Ok` after the broker confirmed.
    ///
    /// # Errors
    /// Bad input, a scope that forbids it, or the broker's failure.
    pub async fn publish(&self, cx: &Cx, mut req: PublishRequest) -> Result<(), ApiError> {
        let place = Place { app_id: &self.me.app_id, pubsub: &req.pubsub, topic: &req.topic };
        let handle = self.find(place)?;
        let wishes = wishes(&req.metadata).map_err(|e| place.bad_metadata(&e))?;
        let metrics = self.metrics.publish(&req.pubsub, &req.topic);
        if !handle.extra.scopes.may_publish(&req.topic) {
            metrics.record(false, std::time::Duration::ZERO);
            return Err(place.forbidden());
        }
        let data = if wishes.raw {
            if cx.front == Front::Grpc {
                add_trace(cx, &mut req.metadata);
            }
            req.data
        } else {
            let trace = (cx.trace.traceparent.as_deref(), cx.trace.tracestate.as_deref());
            let (content_type, data) = (req.content_type.as_deref(), &req.data);
            self.seal(place, &handle, wishes, data, content_type, &req.metadata, trace)?
        };
        let topic = broker_topic(&handle, &req.topic);
        let call = || {
            handle.inner.publish(Publish {
                topic: &topic,
                data: data.clone(),
                content_type: None,
                metadata: &req.metadata,
            })
        };
        let started = Instant::now();
        // An event that may be there twice is better than one that may be missing.
        let result = handle.ops.run(cx, Operation::Publish, true, call).await;
        metrics.record(result.is_ok(), started.elapsed());
        result.map_err(|e| place.refused(&e))
    }

    /// Publishes several events, each with its own envelope. What is not in the answer is stored.
    ///
    /// # Errors
    /// Input that concerns the whole request.
    pub async fn publish_bulk(
        &self,
        cx: &Cx,
        pubsub: &str,
        topic: &str,
        entries: Vec<BulkPublishEntry>,
        metadata: Metadata,
    ) -> Result<Vec<FailedEntry>, ApiError> {
        let place = Place { app_id: &self.me.app_id, pubsub, topic };
        let handle = self.find(place)?;
        let whole = wishes(&metadata).map_err(|e| place.bad_metadata(&e))?;
        let mut ids = HashSet::with_capacity(entries.len());
        if !entries.iter().all(|e| !e.entry_id.is_empty() && ids.insert(e.entry_id.as_str())) {
            return Err(place.bad_entries("entryId is duplicated or not present for entry"));
        }
        if !handle.extra.scopes.may_publish(topic) {
            return Err(place.forbidden());
        }
        let mut sealed = Vec::with_capacity(entries.len());
        for entry in &entries {
            sealed.push(self.seal_entry(cx, place, &handle, whole, entry, &metadata)?);
        }
        if sealed.is_empty() {
            return Ok(Vec::new());
        }
        let started = Instant::now();
        let failed = send(cx, &handle, &broker_topic(&handle, topic), &sealed).await;
        let stored = (entries.len() - failed.len()) as u64;
        self.metrics.bulk_publish(pubsub, topic).record_bulk(failed.is_empty(), stored, started.elapsed());
        for (at, error) in &failed {
            if let Some(entry) = sealed.get_mut(*at) {
                entry.span.fail(error.clone());
            }
        }
        let answer = |(at, error): (usize, String)| {
            entries.get(at).map(|entry| FailedEntry { entry_id: entry.entry_id.clone(), error })
        };
        Ok(failed.into_iter().filter_map(answer).collect())
    }

    /// The component, if the name and the topic can be meant.
    pub(super) fn find(&self, place: Place<'_>) -> Result<Arc<PubSubHandle>, ApiError> {
        if place.pubsub.is_empty() {
            return Err(place.name_empty());
        }
        let handle = match self.store.pubsub(place.pubsub) {
            Found::Running(handle) => handle,
            Found::Degraded(cause) => return Err(place.degraded(&cause)),
            Found::Unknown | Found::NoneConfigured => return Err(place.not_found()),
        };
        if place.topic.is_empty() {
            return Err(place.topic_empty());
        }
        if handle.inner.caps().subscribe_wildcards && is_pattern(place.topic) {
            return Err(place.pattern());
        }
        Ok(handle)
    }

    fn seal_entry<'a>(
        &self,
        cx: &Cx,
        place: Place<'_>,
        handle: &PubSubHandle,
        whole: Wishes,
        entry: &BulkPublishEntry,
        metadata: &'a Metadata,
    ) -> Result<Sealed<'a>, ApiError> {
        let mut merged = Cow::Borrowed(metadata);
        let mut own = whole;
        if !entry.metadata.is_empty() {
            let all = merged.to_mut();
            all.extend(entry.metadata.iter());
            own = wishes(all).map_err(|e| place.bad_metadata(&e))?;
            own.raw = whole.raw;
        }
        if own.raw {
            if cx.front == Front::Grpc {
                add_trace(cx, merged.to_mut());
            }
            return Ok(Sealed { data: entry.event.clone(), metadata: merged, span: Span::default() });
        }
        let (mut traceparent, mut tracestate) = (cx.trace.traceparent.as_deref(), cx.trace.tracestate.as_deref());
        let mut span = Span::default();
        let own_parent;
        if self.tracer.mode() == Mode::On {
            let parent = self.tracer.extract(traceparent, tracestate, None);
            span = self.tracer.start(SpanKind::Producer, parent.as_ref(), || format!("pubsub/{}", place.topic));
            span.set(attribute::MESSAGING_SYSTEM, attribute::MESSAGING_PUBSUB);
            span.set(attribute::MESSAGING_DESTINATION_NAME, place.topic.to_owned());
            if let Some(context) = span.context() {
                own_parent = (context.traceparent(), context.tracestate.clone());
                (traceparent, tracestate) = (Some(own_parent.0.as_str()), own_parent.1.as_deref());
            }
        }
        let trace = (traceparent, tracestate);
        let data = self.seal(place, handle, own, &entry.event, Some(&entry.content_type), &merged, trace)?;
        Ok(Sealed { data, metadata: merged, span })
    }

    #[allow(clippy::too_many_arguments, reason = "private; the callers differ in where each comes from")]
    fn seal(
        &self,
        place: Place<'_>,
        handle: &PubSubHandle,
        wishes: Wishes,
        data: &Bytes,
        content_type: Option<&str>,
        metadata: &Metadata,
        (traceparent, tracestate): (Option<&str>, Option<&str>),
    ) -> Result<Bytes, ApiError> {
        let now = self.clock.now();
        let ttl = wishes.ttl.filter(|_| !handle.inner.caps().message_ttl);
        let draft = Draft {
            pubsub: place.pubsub,
            topic: place.topic,
            app_id: place.app_id,
            data,
            content_type,
            metadata,
            traceparent: traceparent.unwrap_or_default(),
            tracestate: tracestate.unwrap_or_default(),
            now,
            expires: ttl.map(|ttl| time::after(now, ttl)),
        };
        draft.seal().map_err(|_| place.no_cloud_event())
    }
}

/// The topic as the broker knows it.
pub(super) fn broker_topic<'t>(handle: &PubSubHandle, topic: &'t str) -> Cow<'t, str> {
    match &handle.extra.namespace_prefix {
        Some(prefix) => Cow::Owned(format!("{prefix}{topic}")),
        None => Cow::Borrowed(topic),
    }
}

/// Indexes and causes of what was not stored.
async fn send(cx: &Cx, handle: &PubSubHandle, topic: &str, sealed: &[Sealed<'_>]) -> Vec<(usize, String)> {
    if let Some(bulk) = handle.inner.bulk() {
        let batch: Vec<Publish<'_>> = sealed
            .iter()
            .map(|s| Publish { topic, data: s.data.clone(), content_type: None, metadata: &s.metadata })
            .collect();
        let call = || bulk.publish_many(batch.clone());
        return match handle.ops.run(cx, Operation::BulkPublish, true, call).await {
            Ok(failed) => failed.into_iter().map(|f| (f.index, f.error.to_string())).collect(),
            Err(e) => {
                let error = e.to_string();
                (0..sealed.len()).map(|at| (at, error.clone())).collect()
            }
        };
    }
    let mut calls = Vec::with_capacity(sealed.len());
    for entry in sealed {
        calls.push(send_one(cx, handle, topic, entry));
    }
    let results: Vec<_> = stream::iter(calls).buffered(PARALLEL_PUBLISHES).collect().await;
    results.into_iter().enumerate().filter_map(|(at, failed)| Some((at, failed?))).collect()
}

/// Publishes one entry alone; the cause when it was not stored. Boxed, because the compiler
/// cannot see that an unboxed one in a stream is `Send` for every lifetime.
fn send_one<'a>(
    cx: &'a Cx,
    handle: &'a PubSubHandle,
    topic: &'a str,
    entry: &'a Sealed<'_>,
) -> BoxFuture<'a, Option<String>> {
    let (data, metadata) = (&entry.data, &*entry.metadata);
    let call = move || handle.inner.publish(Publish { topic, data: data.clone(), content_type: None, metadata });
    async move { handle.ops.run(cx, Operation::Publish, true, call).await.err().map(|e| e.to_string()) }.boxed()
}

/// A raw message has no envelope for its trace context.
fn add_trace(cx: &Cx, metadata: &mut Metadata) {
    if let Some(traceparent) = &cx.trace.traceparent {
        metadata.insert("traceid", traceparent.as_ref());
    }
    if let Some(tracestate) = &cx.trace.tracestate {
        metadata.insert("tracestate", tracestate.as_ref());
    }
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
