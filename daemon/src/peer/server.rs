//! The peer port: calls to the own app, and everything else to the gRPC proxy.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::header::CONTENT_TYPE;
use http::{Request, Response};
use http_body_util::BodyExt;
use mecha_core::app::{Body, BodyError};
use mecha_core::invoke::{
    Call, Caller, GrpcAnswer, Head, Invoke, PeerIdentity, TransportError, Verb, code_name, full, grpc_code, headers,
};
use mecha_core::metrics::RpcExchange;
use mecha_core::trace::Tracer;
use tokio::time::{Instant, timeout};

use super::chunks::{Decoder, Encoder, Ending, RequestBody, malformed};
use super::client::collect;
use super::framing::{PREFIX, put_prefix};
use super::{CALL_LOCAL, CALL_LOCAL_STREAM, SERVICE, spans, status, wire};
use crate::proxy::{GrpcProxy, Side};

/// A peer that opens a call says within this time what it wants.
const HEAD_DEADLINE: Duration = Duration::from_secs(30);
/// How long a verb that usually has no body waits to learn that there is none.
const BODY_PROBE: Duration = Duration::from_millis(200);

/// Serves the peer port; one for the process.
#[derive(Debug)]
pub struct PeerServer {
    invoke: Arc<Invoke>,
    proxy: Option<Arc<GrpcProxy>>,
    tracer: Tracer,
    max_message: usize,
}

/// What is known of the one who connected.
#[derive(Clone, Debug, Default)]
pub struct Connected {
    /// Network address.
    pub from: Option<IpAddr>,
    /// Verified identity; `None` without mTLS.
    pub identity: Option<PeerIdentity>,
}

impl PeerServer {
    /// Serves `invoke`; unknown services go to `proxy`.
    #[must_use]
    pub fn new(invoke: Arc<Invoke>, proxy: Option<Arc<GrpcProxy>>, max_message: usize) -> Self {
        Self { invoke, proxy, tracer: Tracer::off(), max_message }
    }

    /// With spans for the calls of peers; without, trace headers go on as they came.
    #[must_use]
    pub fn with_tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Answers one request of the peer port. Always an answer: failures are gRPC statuses.
    pub async fn handle<B>(&self, connected: &Connected, req: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let path = req.uri().path();
        let answer = if path == CALL_LOCAL_STREAM {
            self.limited(connected, req, Self::call_local_stream).await
        } else if path == CALL_LOCAL {
            self.limited(connected, req, Self::call_local).await
        } else if path.starts_with(SERVICE) {
            Err(unbuilt(path))
        } else {
            match &self.proxy {
                Some(proxy) => {
                    let req = req.map(|b| b.map_err(Into::into).boxed_unsync());
                    return proxy.handle(Side::Peer, connected, req).await;
                }
                None => Err(TransportError::unsent(grpc_code::UNIMPLEMENTED, format!("unknown service {path}"))),
            }
        };
        answer.unwrap_or_else(|e| status::trailers_only(&e))
    }

    /// Runs `call` within the deadline the peer gave.
    async fn limited<'a, B, F>(
        &'a self,
        connected: &'a Connected,
        req: Request<B>,
        call: impl FnOnce(&'a Self, &'a Connected, Request<B>) -> F,
    ) -> Result<Response<Body>, TransportError>
    where
        F: Future<Output = Result<Response<Body>, TransportError>>,
    {
        let limit = req.headers().get("grpc-timeout").and_then(|v| v.to_str().ok()).and_then(grpc_timeout);
        let call = call(self, connected, req);
        match limit {
            None => call.await,
            Some(limit) => timeout(limit, call).await.unwrap_or_else(|_| {
                Err(TransportError::new(grpc_code::DEADLINE_EXCEEDED, "context deadline exceeded"))
            }),
        }
    }

    async fn call_local_stream<B>(
        &self,
        connected: &Connected,
        req: Request<B>,
    ) -> Result<Response<Body>, TransportError>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let (parts, body) = req.into_parts();
        let mut decoder = Decoder::of_chunks(body, self.max_message);
        let first = timeout(HEAD_DEADLINE, decoder.message())
            .await
            .map_err(|_| TransportError::unsent(grpc_code::DEADLINE_EXCEEDED, "no leading chunk came"))?;
        let first = first.ok_or_else(leading)??;
        let (mut head, _) = wire::read_request(first.head.ok_or_else(leading)?).map_err(malformed)?;
        wire::copy_trace(&parts.headers, &mut head.headers);
        if decoder.is_done() {
            // Short bodies come in one piece: the app is told their length.
            return self.answer(connected, head, full(first.data)).await;
        }
        let length = headers::content_length(&head.headers);
        let mut data = first.data;
        if length.is_none() && usually_empty(&head.verb) && data.is_empty() {
            // Without this a GET would reach the app with a chunked body of nothing.
            if let Ok(next) = timeout(BODY_PROBE, decoder.message()).await {
                match next {
                    None => return self.answer(connected, head, full(Bytes::new())).await,
                    Some(Ok(m)) if m.head.is_none() => data = m.data,
                    Some(Ok(_)) => return Err(leading()),
                    Some(Err(e)) => return Err(e),
                }
            }
        }
        let body = RequestBody { decoder, first: data };
        self.answer(connected, head, body.boxed_unsync()).await
    }

    async fn answer(&self, connected: &Connected, head: Head, body: Body) -> Result<Response<Body>, TransportError> {
        let mut answer = self.inbound(connected, Call { head, body }).await?;
        let grpc = answer.extensions_mut().remove::<GrpcAnswer>();
        let (parts, body) = answer.into_parts();
        let mut encoded = BytesMut::new();
        wire::put_response(&mut encoded, parts.status, &parts.headers, grpc.as_ref(), &[], true);
        Ok(grpc_response(Encoder::new(encoded, body, Ending::Answer).boxed_unsync()))
    }

    async fn inbound(&self, connected: &Connected, mut call: Call) -> Result<Response<Body>, TransportError> {
        let caller = Caller { identity: connected.identity.as_ref(), from: connected.from };
        let span = spans::start(&self.tracer, &self.invoke.identity().app_id, &mut call.head);
        let outcome = self.invoke.inbound(caller, call).await;
        spans::finish(span, &outcome);
        outcome
    }

    async fn call_local<B>(&self, connected: &Connected, req: Request<B>) -> Result<Response<Body>, TransportError>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let began = Instant::now();
        let mut sizes = (0, 0);
        let outcome = self.whole(connected, req, &mut sizes).await;
        let code = outcome.as_ref().err().map_or(grpc_code::OK, |e| e.code);
        self.invoke.metrics().grpc_served(RpcExchange {
            method: CALL_LOCAL,
            status: code_name(code),
            request_bytes: sizes.0,
            response_bytes: sizes.1,
            elapsed: began.elapsed(),
        });
        outcome
    }

    /// Answers a call whose request and answer are one message each; `sizes` gets theirs.
    async fn whole<B>(
        &self,
        connected: &Connected,
        req: Request<B>,
        sizes: &mut (u64, u64),
    ) -> Result<Response<Body>, TransportError>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin + 'static,
        B::Error: Into<BodyError>,
    {
        let (parts, body) = req.into_parts();
        let mut decoder = Decoder::new(body, self.max_message);
        let raw = timeout(HEAD_DEADLINE, std::future::poll_fn(|cx| decoder.poll_raw(cx)))
            .await
            .map_err(|_| TransportError::unsent(grpc_code::DEADLINE_EXCEEDED, "the request did not come"))?;
        let raw = raw.ok_or_else(leading)??;
        sizes.0 = raw.len() as u64;
        let (mut head, data) = wire::read_request(raw).map_err(malformed)?;
        wire::copy_trace(&parts.headers, &mut head.headers);
        let mut answer = self.inbound(connected, Call { head, body: full(data) }).await?;
        let grpc = answer.extensions_mut().remove::<GrpcAnswer>();
        let (parts, body) = answer.into_parts();
        let data = collect(body, self.max_message).await?;
        let mut message = BytesMut::new();
        wire::put_response(&mut message, parts.status, &parts.headers, grpc.as_ref(), &data, false);
        sizes.1 = message.len() as u64;
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        put_prefix(&mut framed, message.len());
        framed.extend_from_slice(&message);
        let trailers = std::future::ready(Some(Ok(status::ok())));
        Ok(grpc_response(full(framed.freeze()).with_trailers(trailers).boxed_unsync()))
    }
}

fn grpc_response(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, status::GRPC);
    response
}

fn leading() -> TransportError {
    TransportError::unsent(
        grpc_code::INVALID_ARGUMENT,
        "parsing InternalInvokeRequest error: request does not contain the required fields in the leading chunk",
    )
}

/// Actors come with their own issue; until then their calls answer what an API that is not
/// built answers everywhere.
fn unbuilt(path: &str) -> TransportError {
    let method = &path[SERVICE.len()..];
    let code = mecha_core::codes::Code::ApiUnimplemented.as_str();
    TransportError::unsent(grpc_code::UNIMPLEMENTED, format!("{code}: method {method} is currently not implemented"))
}

fn usually_empty(verb: &Verb) -> bool {
    use http::Method;
    matches!(verb, Verb::Http(m) if matches!(*m, Method::GET | Method::HEAD | Method::DELETE | Method::OPTIONS | Method::TRACE))
}

/// The value of `grpc-timeout`.
fn grpc_timeout(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if number.len() > 8 {
        return None;
    }
    let n: u64 = number.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_timeouts() {
        assert_eq!(grpc_timeout("10S"), Some(Duration::from_secs(10)));
        assert_eq!(grpc_timeout("99999999n"), Some(Duration::from_nanos(99_999_999)));
        for bad in ["", "S", "1", "-1S", "1x", "999999999S", "é"] {
            assert_eq!(grpc_timeout(bad), None, "{bad}");
        }
    }
}
