//! The span of a call that came from a peer.

use http::Response;
use mecha_core::app::Body;
use mecha_core::invoke::{GrpcAnswer, Head, TransportError, code_name};
use mecha_core::trace::{Mode, Span, SpanKind, Tracer, attribute};

use crate::edge;

/// Starts the span below the caller's, and makes it what the app sees.
pub(super) fn start(tracer: &Tracer, app_id: &str, head: &mut Head) -> Span {
    if tracer.mode() == Mode::Off {
        return Span::default();
    }
    let text = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let parent = tracer.extract(text("traceparent"), text("tracestate"), None);
    let method = head.method.as_str();
    let mut span = tracer.start(SpanKind::Server, parent.as_ref(), || format!("CallLocal/{app_id}/{method}"));
    if span.is_recording() {
        span.set(attribute::DAPR_INVOKE_METHOD, method.to_owned());
        span.set(attribute::DAPR_PROTOCOL, "grpc");
        span.set(attribute::RPC_SERVICE, attribute::RPC_SERVICE_INVOCATION);
    }
    edge::write(&edge::headers_of(&span, None), &mut head.headers);
    span
}

/// Takes the status of the answer; the span ends with its value.
pub(super) fn finish(mut span: Span, outcome: &Result<Response<Body>, TransportError>) {
    match outcome {
        Ok(answer) => match answer.extensions().get::<GrpcAnswer>() {
            Some(grpc) => span.grpc_status(grpc.code, code_name(grpc.code)),
            None => span.http_status(answer.status().as_u16()),
        },
        Err(e) => span.grpc_status(e.code, code_name(e.code)),
    }
}
