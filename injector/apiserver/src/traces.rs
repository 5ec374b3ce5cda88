//! The trace of a change, as bindings carry it from those who decide to those who deliver.

use kube::api::ObjectMeta;
use mecha_trace::TraceContext;

/// Annotation of a CapabilityBinding: W3C trace context of the decision that it was last written for.
pub const TRACEPARENT: &str = "mecha.dev/traceparent";

/// The context of the decision that an object was last written for, if that was traced.
#[must_use]
pub fn cause_of(object: &ObjectMeta) -> Option<TraceContext> {
    TraceContext::parse(object.annotations.as_ref()?.get(TRACEPARENT)?, None)
}
