//! The trace of a change: from its decision over what the hub writes to those who deliver it.
//!
//! The binding carries the context of the decision that it was last written for. A move keeps the context of the
//! decision that began it, so that all its steps, however much later, are in one trace.

use mecha_apiserver::trace::{Span, SpanKind, TraceContext, Tracer};
use mecha_apiserver::{CapabilityBinding, TRACEPARENT};

/// The context that `text` names.
fn context(text: &str) -> Option<TraceContext> {
    TraceContext::parse(text, None)
}

/// Id of the trace of a context; empty where there is none.
pub(crate) fn trace_id(traceparent: Option<&str>) -> String {
    traceparent.and_then(context).map(|context| context.trace_id.to_string()).unwrap_or_default()
}

/// Notes in `binding` what it is written for.
pub(crate) fn mark(binding: &mut CapabilityBinding, traceparent: Option<&str>) {
    match traceparent {
        Some(traceparent) => {
            let annotations = binding.metadata.annotations.get_or_insert_default();
            annotations.insert(TRACEPARENT.to_owned(), traceparent.to_owned());
        }
        None => {
            let annotations = binding.metadata.annotations.as_mut();
            let _ = annotations.and_then(|annotations| annotations.remove(TRACEPARENT));
        }
    }
}

/// The span of a look at everything; it is forgotten when nothing new comes of it.
pub(crate) fn decision(tracer: &Tracer) -> Span {
    tracer.start(SpanKind::Internal, None, || "decide")
}

/// Says in its span what was decided.
pub(crate) fn decided(span: &mut Span, digest: &str, claims: usize, writes: usize) {
    if span.is_recording() {
        let number = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        span.set("mecha.decision", digest.to_owned());
        span.set("mecha.claims", number(claims));
        span.set("mecha.writes", number(writes));
    }
}

/// The context that a binding, as JSON, was marked with.
pub(crate) fn marked(binding: &serde_json::Value) -> Option<&str> {
    binding.pointer("/metadata/annotations/mecha.dev~1traceparent")?.as_str()
}

/// The span of writing a binding, in the trace that it is marked with.
pub(crate) fn write(tracer: &Tracer, binding: &serde_json::Value) -> Span {
    let Some(parent) = marked(binding).and_then(context) else { return Span::default() };
    let mut span = tracer.start(SpanKind::Producer, Some(&parent), || "write binding");
    if span.is_recording() {
        let spec = &binding["spec"];
        for (attribute, field) in [("mecha.environment", "environment"), ("mecha.cluster", "cluster")] {
            span.set(attribute, spec[field].as_str().unwrap_or_default().to_owned());
        }
        span.set("mecha.revision", spec["revision"].as_i64().unwrap_or_default());
        let entries = spec["entries"].as_array().map(Vec::as_slice).unwrap_or_default();
        let mut phases: Vec<_> = entries.iter().filter_map(|entry| entry["swap"]["phase"].as_str()).collect();
        span.set("mecha.moves", i64::try_from(phases.len()).unwrap_or(i64::MAX));
        phases.sort_unstable();
        phases.dedup();
        span.set("mecha.phases", phases.join(","));
    }
    span
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_context_has_a_trace() {
        let id = "0af7651916cd43dd8448eb211c80319c";
        assert_eq!(trace_id(Some(&format!("00-{id}-b7ad6b7169203331-01"))), id);
        assert_eq!((trace_id(None), trace_id(Some("nonsense"))), (String::new(), String::new()));
    }

    #[test]
    fn a_binding_without_a_trace_is_written_without_a_span() {
        let tracer = Tracer::on(mecha_apiserver::trace::Sampler::new(1.0), None);
        assert!(write(&tracer, &serde_json::json!({"metadata": {}})).context().is_none());
        let traced = serde_json::json!({"metadata": {"annotations": {
            (TRACEPARENT): "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}}, "spec": {}});
        let span = write(&tracer, &traced);
        assert_eq!(span.context().unwrap().trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
    }
}
