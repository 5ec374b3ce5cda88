//! Distributed tracing: W3C trace context on the wire, sampling, and spans.
//!
//! A [`Tracer`] is a value with one of three [`Mode`]s. Spans go to a
//! [`SpanSink`]; which exporters stand behind it is the business of the program.
//! When tracing is off, starting a span touches no clock and allocates nothing.

mod baggage;
mod context;
mod ids;
mod sampler;
mod span;
mod tracer;

pub use baggage::{BaggageError, validate_baggage};
pub use context::{GRPC_TRACE_BIN_LEN, TRACEPARENT_LEN, TraceContext};
pub use ids::{SpanId, TraceId};
pub use sampler::{DEFAULT_SAMPLING_RATIO, Sampler};
pub use span::{AttributeValue, FinishedSpan, Span, SpanKind, SpanStatus, attribute};
pub use tracer::{Mode, SpanSink, Tracer};
