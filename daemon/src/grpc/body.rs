//! Bodies of the gRPC server: message limits on both ways, and what is known of a call when
//! its last byte is out.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Uri};
use http_body::{Body as HttpBody, Frame, SizeHint};
use hyper::body::Incoming;
use mecha_core::app::{Body as Streamed, BodyError};
use mecha_core::invoke::{code_name, grpc_code};
use mecha_core::metrics::{Metrics, RpcExchange};
use mecha_core::trace::Span;
use tonic::Status;

use super::frames::Frames;

/// Bytes of the request messages so far.
pub(super) type Received = Arc<AtomicU64>;

/// A request body. A message over the limit ends it with the status for the caller.
#[derive(Debug)]
pub(super) struct RequestBody {
    inner: Incoming,
    frames: Frames,
    limit: usize,
    received: Received,
}

impl RequestBody {
    pub(super) fn new(inner: Incoming, limit: usize, received: Received) -> Self {
        Self { inner, frames: Frames::new(limit), limit, received }
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        Poll::Ready(match ready!(Pin::new(&mut this.inner).poll_frame(cx)) {
            Some(Ok(frame)) => {
                if let Some(data) = frame.data_ref() {
                    if let Err(length) = this.frames.scan(data) {
                        let text = format!("grpc: received message larger than max ({length} vs. {})", this.limit);
                        return Poll::Ready(Some(Err(Status::resource_exhausted(text).into())));
                    }
                    this.received.store(this.frames.bytes(), Ordering::Relaxed);
                }
                Some(Ok(frame))
            }
            Some(Err(e)) => Some(Err(e.into())),
            None => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// What is counted and logged when a call is over. Dropped without a status, the call was
/// given up by the caller.
#[derive(Debug)]
pub(super) struct Report {
    pub(super) metrics: Arc<Metrics>,
    pub(super) uri: Uri,
    pub(super) began: Instant,
    pub(super) received: Received,
    pub(super) span: Span,
    /// Whether the call is logged.
    pub(super) log: bool,
    pub(super) user_agent: Option<HeaderValue>,
    /// gRPC code of the answer.
    pub(super) code: i32,
    /// Bytes of the response messages.
    pub(super) sent: u64,
}

impl Drop for Report {
    fn drop(&mut self) {
        let status = code_name(self.code);
        let elapsed = self.began.elapsed();
        self.span.grpc_status(self.code, status);
        self.metrics.grpc_served(RpcExchange {
            method: self.uri.path(),
            status,
            request_bytes: self.received.load(Ordering::Relaxed),
            response_bytes: self.sent,
            elapsed,
        });
        if self.log {
            tracing::info!(
                target: "dapr.runtime.grpc.api-info",
                method = self.uri.path(),
                code = self.code,
                duration = elapsed.as_millis() as u64,
                useragent = self.user_agent.as_ref().and_then(|v| v.to_str().ok()).unwrap_or_default(),
                "gRPC API Called"
            );
        }
    }
}

/// Where the bytes of an answer come from.
#[derive(Debug)]
pub(super) enum Source {
    /// Nothing follows the headers.
    Empty,
    /// A service of this daemon.
    Own(tonic::body::Body),
    /// A proxied call.
    Proxied(Streamed),
}

/// The body of an answer of the gRPC server.
#[derive(Debug)]
pub struct GrpcBody {
    source: Source,
    frames: Frames,
    limit: usize,
    trailers: Option<HeaderMap>,
    report: Option<Report>,
}

impl GrpcBody {
    pub(super) fn empty() -> Self {
        Self::new(Source::Empty, usize::MAX, None)
    }

    /// `trailers` are added to those of the source.
    pub(super) fn new(source: Source, limit: usize, trailers: Option<HeaderMap>) -> Self {
        Self { source, frames: Frames::new(limit), limit, trailers, report: None }
    }

    /// Reports the call when this body ends. `headers` are those of the answer, which hold the
    /// status already when there is nothing else to say.
    pub(super) fn report(&mut self, mut report: Report, headers: &HeaderMap) {
        report.code = code(headers).unwrap_or(grpc_code::CANCELLED);
        self.report = Some(report);
    }

    /// The call is over.
    fn end(&mut self, trailers: Option<&HeaderMap>) {
        self.source = Source::Empty;
        if let Some(mut report) = self.report.take() {
            report.code = trailers.and_then(code).unwrap_or(report.code);
            report.sent = self.frames.bytes();
        }
    }
}

fn code(headers: &HeaderMap) -> Option<i32> {
    headers.get(Status::GRPC_STATUS)?.to_str().ok()?.parse().ok()
}

impl HttpBody for GrpcBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = match &mut this.source {
            Source::Empty => None,
            Source::Own(body) => ready!(Pin::new(body).poll_frame(cx)).map(|r| r.map_err(BodyError::from)),
            Source::Proxied(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        let frame = match polled {
            Some(Ok(frame)) => frame,
            other => {
                this.end(None);
                return Poll::Ready(other);
            }
        };
        let frame = match frame.into_data() {
            Ok(data) => {
                if let Err(length) = this.frames.scan(&data) {
                    let text = format!("grpc: trying to send message larger than max ({length} vs. {})", this.limit);
                    let mut trailers = HeaderMap::new();
                    // A text of our own always makes a header.
                    let _ = Status::resource_exhausted(text).add_header(&mut trailers);
                    this.end(Some(&trailers));
                    return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                }
                if let Some(report) = &mut this.report {
                    report.sent = this.frames.bytes();
                }
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            Err(frame) => frame,
        };
        Poll::Ready(Some(Ok(match frame.into_trailers() {
            Ok(mut trailers) => {
                if let Some(more) = this.trailers.take() {
                    trailers.extend(more);
                }
                this.end(Some(&trailers));
                Frame::trailers(trailers)
            }
            Err(frame) => frame,
        })))
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Empty => true,
            Source::Own(body) => body.is_end_stream(),
            Source::Proxied(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Empty => SizeHint::with_exact(0),
            Source::Own(body) => body.size_hint(),
            Source::Proxied(body) => body.size_hint(),
        }
    }
}
