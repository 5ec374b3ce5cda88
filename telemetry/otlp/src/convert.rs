//! From our spans to the SDK's.

use std::borrow::Cow;
use std::sync::{Arc, OnceLock};

use mecha_trace::{AttributeValue, FinishedSpan, SpanKind, SpanSink, SpanStatus, TraceContext};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind as OtelKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, Key, KeyValue, Value};
use opentelemetry_sdk::trace::{BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor};

/// Gives every span to every exporter's queue.
#[derive(Debug)]
pub struct Sink {
    processors: Arc<[BatchSpanProcessor]>,
    /// One that starts later than the others.
    late: Arc<OnceLock<BatchSpanProcessor>>,
    scope: InstrumentationScope,
}

impl Sink {
    /// For the spans of `program`; `late` may follow later.
    pub fn new(
        program: &'static str,
        processors: Arc<[BatchSpanProcessor]>,
        late: Arc<OnceLock<BatchSpanProcessor>>,
    ) -> Self {
        let scope = InstrumentationScope::builder(program).with_version(env!("CARGO_PKG_VERSION")).build();
        Self { processors, late, scope }
    }
}

impl SpanSink for Sink {
    fn export(&self, span: FinishedSpan) {
        let mut processors = self.processors.iter().chain(self.late.get());
        let Some(mut processor) = processors.next() else { return };
        let data = convert(span, self.scope.clone());
        for next in processors {
            processor.on_end(data.clone());
            processor = next;
        }
        processor.on_end(data);
    }
}

/// One span as the SDK has it.
pub fn convert(span: FinishedSpan, scope: InstrumentationScope) -> SpanData {
    SpanData {
        span_context: context(&span.context),
        parent_span_id: span.parent.map_or(SpanId::INVALID, |id| SpanId::from_bytes(id.to_bytes())),
        parent_span_is_remote: span.parent_is_remote,
        span_kind: match span.kind {
            SpanKind::Internal => OtelKind::Internal,
            SpanKind::Server => OtelKind::Server,
            SpanKind::Client => OtelKind::Client,
            SpanKind::Producer => OtelKind::Producer,
            SpanKind::Consumer => OtelKind::Consumer,
        },
        name: span.name,
        start_time: span.start,
        end_time: span.start + span.elapsed,
        attributes: span.attributes.into_iter().map(attribute).collect(),
        dropped_attributes_count: span.dropped_attributes,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: match span.status {
            SpanStatus::Unset => Status::Unset,
            SpanStatus::Ok => Status::Ok,
            SpanStatus::Error(description) => Status::Error { description },
        },
        instrumentation_scope: scope,
    }
}

fn context(context: &TraceContext) -> SpanContext {
    let state = context.tracestate.as_deref().and_then(|text| text.parse::<TraceState>().ok()).unwrap_or_default();
    SpanContext::new(
        TraceId::from_bytes(context.trace_id.to_bytes()),
        SpanId::from_bytes(context.span_id.to_bytes()),
        TraceFlags::new(context.flags),
        false,
        state,
    )
}

fn attribute((key, value): (Cow<'static, str>, AttributeValue)) -> KeyValue {
    let value = match value {
        AttributeValue::Text(Cow::Borrowed(text)) => Value::from(text),
        AttributeValue::Text(Cow::Owned(text)) => Value::from(text),
        AttributeValue::Int(number) => Value::from(number),
        AttributeValue::Bool(truth) => Value::from(truth),
    };
    KeyValue::new(Key::from(key), value)
}
