//! Message limits of proxied calls. Nothing is decoded: only the lengths in front of the
//! messages are read.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use mecha_core::app::{Body, BodyError};
use mecha_core::invoke::{TransportError, grpc_code};

use crate::grpc::Frames;

/// Why a request was not passed on to its end. What sends a request sees a broken body and
/// nothing more, so the cause reaches the answer beside it.
pub(super) type Refusal = Arc<OnceLock<TransportError>>;

/// A request body that ends with an error at a message over the limit.
pub(super) struct Limited {
    inner: Body,
    frames: Frames,
    max: usize,
    refusal: Refusal,
}

impl Limited {
    pub(super) fn new(inner: Body, max: usize, refusal: Refusal) -> Self {
        Self { inner, frames: Frames::new(max), max, refusal }
    }
}

impl http_body::Body for Limited {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let polled = ready!(Pin::new(&mut this.inner).poll_frame(cx));
        if let Some(Ok(frame)) = &polled
            && let Some(data) = frame.data_ref()
            && let Err(length) = this.frames.scan(data)
        {
            let text = format!("grpc: received message larger than max ({length} vs. {})", this.max);
            let error = TransportError::new(grpc_code::RESOURCE_EXHAUSTED, text);
            let cause = BodyError::from(error.message.clone());
            // The first cause stands.
            let _ = this.refusal.set(error);
            return Poll::Ready(Some(Err(cause)));
        }
        Poll::Ready(polled)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

/// The status in place of an answer with a message over the limit.
pub(super) fn too_large_answer(length: usize, max: usize) -> TransportError {
    let text = format!("grpc: trying to send message larger than max ({length} vs. {max})");
    TransportError::new(grpc_code::RESOURCE_EXHAUSTED, text)
}
