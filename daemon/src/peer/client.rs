//! Calls to peers: streamed, or unary where the peer knows nothing else.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE, USER_AGENT};
use http::uri::{PathAndQuery, Scheme, Uri};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mecha_core::app::Body;
use mecha_core::invoke::{
    Endpoint, GrpcAnswer, Head, Peer, Reached, Transport, TransportError, full, grpc_code, headers,
};
use mecha_core::trace::TraceContext;

use super::chunks::{AnswerBody, Decoder, Encoder, Ending, broken};
use super::endpoint::Outside;
use super::framing::{PREFIX, put_prefix};
use super::pool::{Dialled, Lease, Place, Pool};
use super::wire::{self, ReadResponse};
use super::{CALL_LOCAL, CALL_LOCAL_STREAM, status};

const GRPC_TRACE_BIN: HeaderName = HeaderName::from_static("grpc-trace-bin");
const AGENT: HeaderValue = HeaderValue::from_static(concat!("mechad/", env!("CARGO_PKG_VERSION")));

/// The ways out of this process.
#[derive(Debug)]
pub struct Client {
    pool: Arc<Pool>,
    outside: Outside,
    max_body: usize,
}

impl Client {
    /// A client over `pool`. `max_body` limits messages, not streams.
    #[must_use]
    pub fn new(pool: Arc<Pool>, max_body: usize) -> Self {
        Self { pool, outside: Outside::default(), max_body }
    }

    async fn stream(&self, lease: Lease, head: &Head, body: Body) -> Result<Response<Body>, TransportError> {
        let mut encoded = BytesMut::new();
        wire::put_request(&mut encoded, head, &[], true);
        let body = Encoder::new(encoded, body, Ending::Request).boxed_unsync();
        let address = lease.address.clone();
        let (answer, place) = send(lease, self.pool.scheme(), CALL_LOCAL_STREAM, head, body).await?;
        let mut decoder = Decoder::of_chunks(answer.into_body(), self.max_body);
        let first = match decoder.message().await {
            Some(first) => first?,
            None => {
                let ended = status::from_trailers(decoder.trailers.as_ref());
                return Err(match ended {
                    Err(e) if e.code == grpc_code::UNIMPLEMENTED => {
                        address.unary_only.store(true, Ordering::Relaxed);
                        TransportError { reached: Reached::No, ..e }
                    }
                    Err(e) => e,
                    Ok(()) => broken("no response received from stream"),
                });
            }
        };
        let read = first.head.map(wire::read_response).transpose().map_err(|e| broken(e.0))?;
        let Some(read) = read.filter(|r| r.code.is_some()) else {
            return Err(broken("response does not contain the required fields in the leading chunk"));
        };
        let body = AnswerBody { decoder, first: first.data, ended: false, _guard: place };
        Ok(assemble(read, body.boxed_unsync()))
    }

    async fn unary(&self, lease: Lease, head: &Head, body: Body) -> Result<Response<Body>, TransportError> {
        let data = collect(body, self.max_body).await?;
        let mut message = BytesMut::new();
        wire::put_request(&mut message, head, &data, false);
        let mut framed = BytesMut::with_capacity(PREFIX + message.len());
        put_prefix(&mut framed, message.len());
        framed.extend_from_slice(&message);
        let (answer, _place) = send(lease, self.pool.scheme(), CALL_LOCAL, head, full(framed.freeze())).await?;
        let mut decoder = Decoder::new(answer.into_body(), self.max_body);
        let raw = match std::future::poll_fn(|cx| decoder.poll_raw(cx)).await {
            Some(raw) => raw?,
            None => {
                status::from_trailers(decoder.trailers.as_ref())?;
                return Err(broken("the answer has no message"));
            }
        };
        let mut read = wire::read_response(raw).map_err(|e| broken(e.0))?;
        if read.code.is_none() {
            return Err(broken("the answer has no status"));
        }
        let data = std::mem::take(&mut read.data);
        Ok(assemble(read, full(data)))
    }
}

#[async_trait]
impl Transport for Client {
    async fn call_peer(&self, peer: Peer<'_>, head: &Head, body: Body) -> Result<Response<Body>, TransportError> {
        let to = Dialled { address: peer.address, app_id: peer.app_id, namespace: peer.namespace };
        let lease = self.pool.lease(to).await?;
        if lease.address.unary_only.load(Ordering::Relaxed) {
            self.unary(lease, head, body).await
        } else {
            self.stream(lease, head, body).await
        }
    }

    async fn call_endpoint(&self, endpoint: &Endpoint, req: Request<Body>) -> Result<Response<Body>, TransportError> {
        self.outside.call(endpoint, req).await
    }

    fn drop_connections(&self, address: &str) {
        self.pool.forget(address);
    }
}

/// Sends a gRPC call and waits for the headers of its answer. An answer that is only a
/// status becomes an empty stream with trailers, whatever its form was.
async fn send(
    lease: Lease,
    scheme: Scheme,
    path: &'static str,
    head: &Head,
    body: Body,
) -> Result<(Response<Incoming>, Place), TransportError> {
    let authority = lease.authority();
    let Lease { mut send, place, address } = lease;
    let mut req = Request::new(body);
    *req.method_mut() = Method::POST;
    let mut uri = http::uri::Parts::default();
    uri.scheme = Some(scheme);
    uri.authority = Some(authority);
    uri.path_and_query = Some(PathAndQuery::from_static(path));
    *req.uri_mut() = Uri::from_parts(uri).map_err(|e| broken(&e.to_string()))?;
    let map = req.headers_mut();
    map.insert(CONTENT_TYPE, status::GRPC);
    map.insert(TE, HeaderValue::from_static("trailers"));
    map.insert(USER_AGENT, AGENT);
    wire::copy_trace(&head.headers, map);
    if let Some(binary) = trace_bin(&head.headers) {
        map.insert(GRPC_TRACE_BIN, binary);
    }
    let answer = match send.try_send_request(req).await {
        Ok(answer) => answer,
        Err(mut e) => {
            let unsent = e.take_message().is_some();
            let mut error = status::from_hyper(e.error());
            if unsent {
                error.reached = Reached::No;
                error.code = grpc_code::UNAVAILABLE;
            }
            return Err(error);
        }
    };
    if answer.status() != StatusCode::OK {
        return Err(status::from_http(answer.status()));
    }
    match status::read(answer.headers()) {
        Some(Err(e)) if e.code == grpc_code::UNIMPLEMENTED && path == CALL_LOCAL_STREAM => {
            address.unary_only.store(true, Ordering::Relaxed);
            Err(TransportError { reached: Reached::No, ..e })
        }
        Some(Err(e)) => Err(e),
        Some(Ok(())) => Err(broken("the answer has no message")),
        None => Ok((answer, place)),
    }
}

fn trace_bin(headers: &http::HeaderMap) -> Option<HeaderValue> {
    let parent = headers.get(headers::TRACEPARENT)?.to_str().ok()?;
    let context = TraceContext::parse(parent, None)?;
    HeaderValue::from_str(&STANDARD_NO_PAD.encode(context.to_binary())).ok()
}

/// The app's answer. Codes below 100 are gRPC's.
fn assemble(read: ReadResponse, body: Body) -> Response<Body> {
    let ReadResponse { code, headers, grpc, .. } = read;
    let mut answer = Response::new(body);
    *answer.headers_mut() = headers;
    match code.and_then(|c| u16::try_from(c).ok()).filter(|c| *c >= 100) {
        Some(code) => *answer.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::BAD_GATEWAY),
        None => {
            answer.extensions_mut().insert::<GrpcAnswer>(grpc);
        }
    }
    answer
}

/// Reads a body to its end, up to `max` bytes.
pub(super) async fn collect(mut body: Body, max: usize) -> Result<Bytes, TransportError> {
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let frame =
            frame.map_err(|e| TransportError::new(grpc_code::INTERNAL, format!("error reading the body: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        let size = first.len() + all.len() + data.len();
        if size > max {
            let text = format!("grpc: trying to send message larger than max ({size} vs. {max})");
            return Err(TransportError::unsent(grpc_code::RESOURCE_EXHAUSTED, text));
        }
        if first.is_empty() && all.is_empty() {
            first = data;
        } else {
            all.extend_from_slice(&std::mem::take(&mut first));
            all.extend_from_slice(&data);
        }
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}
