use std::sync::Arc;

/// Which front a call came through; a few messages differ by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Front {
    /// The HTTP API.
    Http,
    /// The gRPC API.
    Grpc,
}

/// Trace context of a call as text, ready to be handed on. Absent members are not sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceHeaders {
    /// W3C `traceparent` of the span that does the call.
    pub traceparent: Option<Arc<str>>,
    /// W3C `tracestate`.
    pub tracestate: Option<Arc<str>>,
    /// W3C `baggage`, already validated.
    pub baggage: Option<Arc<str>>,
}

/// What a call carries through core besides its arguments.
#[derive(Clone, Debug)]
pub struct Cx {
    /// Where it came in.
    pub front: Front,
    /// Trace context to hand on.
    pub trace: TraceHeaders,
}

impl Cx {
    /// A call without trace context.
    #[must_use]
    pub fn new(front: Front) -> Self {
        Self { front, trace: TraceHeaders::default() }
    }
}
