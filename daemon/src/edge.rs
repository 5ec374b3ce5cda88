//! What both fronts do with the trace headers of an incoming call.

use std::borrow::Cow;
use std::sync::Arc;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use http::header::{HeaderMap, HeaderValue};
use mecha_core::trace::{Mode, Span, SpanKind, Tracer, validate_baggage};
use mecha_core::{Cx, Front, TraceHeaders};

/// A started call: the context core gets, and the span that ends with the answer.
#[derive(Debug)]
pub struct Started {
    /// For core.
    pub cx: Cx,
    /// Ends when dropped.
    pub span: Span,
}

/// Reads trace context and baggage and starts the span of the call.
///
/// # Errors
/// The message for the caller when the baggage is not valid.
pub fn start<N: Into<Cow<'static, str>>>(
    tracer: &Tracer,
    headers: &HeaderMap,
    front: Front,
    name: impl FnOnce() -> N,
) -> Result<Started, String> {
    if tracer.mode() == Mode::Off {
        return Ok(Started { cx: Cx::new(front), span: Span::default() });
    }
    let text = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let baggage = text("baggage").filter(|b| !b.is_empty());
    if let Some(baggage) = baggage {
        validate_baggage(baggage).map_err(|e| format!("invalid baggage header: {e}"))?;
    }
    let binary =
        headers.get("grpc-trace-bin").filter(|_| front == Front::Grpc).and_then(|v| BASE64_STANDARD.decode(v).ok());
    let parent = tracer.extract(text("traceparent"), text("tracestate"), binary.as_deref());
    let span = tracer.start(SpanKind::Client, parent.as_ref(), name);
    let trace = headers_of(&span, baggage.map(Arc::from));
    Ok(Started { cx: Cx { front, trace }, span })
}

/// The headers that hand a span on.
#[must_use]
pub fn headers_of(span: &Span, baggage: Option<Arc<str>>) -> TraceHeaders {
    TraceHeaders {
        traceparent: span.context().map(|c| c.traceparent().into()),
        tracestate: span.context().and_then(|c| c.tracestate.clone()),
        baggage,
    }
}

/// Writes trace headers into an answer or an outgoing call.
pub fn write(trace: &TraceHeaders, headers: &mut HeaderMap) {
    let all = [("traceparent", &trace.traceparent), ("tracestate", &trace.tracestate), ("baggage", &trace.baggage)];
    for (name, value) in all {
        if let Some(value) = value.as_deref().and_then(|v| HeaderValue::from_str(v).ok()) {
            headers.insert(name, value);
        }
    }
}
