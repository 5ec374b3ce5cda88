//! Bodies in chunks: the encoder for both directions, and the decoder.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut, Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};
use mecha_core::app::{Body, BodyError};
use mecha_core::invoke::{TransportError, grpc_code};

use super::framing::{Deframer, PREFIX, put_prefix};
use super::status;
use super::wire::{self, Malformed, Payload};

/// Bytes of body in one message at most. With its prefixes it fits one HTTP/2 frame of a sidecar
/// of ours, which takes it out of there without a copy; the copy it costs here is cheaper than a
/// second frame for the data. Each frame is a system call on both sides. A sidecar that limits its
/// messages to less than this, far below its default of 4 MiB, cannot read it unless it is ours.
const CHUNK: usize = 32 * 1024;
/// What a message of a stream may have where bodies are limited to less: a chunk and its head.
const LEAST_LIMIT: usize = 4 * CHUNK;

/// What the last frame of a stream is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// A request: the stream just ends.
    Request,
    /// An answer: trailers with the status.
    Answer,
}

/// A stream of messages: head first, then the body in chunks.
pub(super) struct Encoder {
    /// The encoded head field, until it was sent.
    head: Option<BytesMut>,
    body: Body,
    ending: Ending,
    seq: u64,
    /// Data that waits for its own message.
    rest: Bytes,
    trailers: Option<HeaderMap>,
    done: bool,
    ended: bool,
}

impl Encoder {
    /// `head` is the encoded head field of the first message.
    pub(super) fn new(head: BytesMut, body: Body, ending: Ending) -> Self {
        let done = body.is_end_stream();
        Self { head: Some(head), body, ending, seq: 0, rest: Bytes::new(), trailers: None, done, ended: false }
    }

    /// A message with what fits of `data`, and the head when it was not sent yet.
    fn message(&mut self, mut data: Bytes) -> Bytes {
        if data.len() > CHUNK {
            self.rest = data.split_off(CHUNK);
        }
        let head = self.head.take();
        let head_len = head.as_ref().map_or(0, BytesMut::len);
        let payload = if data.is_empty() { 0 } else { wire::payload_len(self.seq, data.len()) };
        let mut out = BytesMut::with_capacity(PREFIX + head_len + payload);
        put_prefix(&mut out, head_len + payload);
        if let Some(head) = head {
            out.put_slice(&head);
        }
        if !data.is_empty() {
            wire::put_payload_head(&mut out, self.seq, data.len());
            self.seq += 1;
            out.put_slice(&data);
        }
        out.freeze()
    }

    /// Trailers of the body, as a message of their own.
    fn trailer_message(&mut self) -> Option<Bytes> {
        let trailers = self.trailers.take().filter(|t| !t.is_empty())?;
        let mut message = BytesMut::new();
        wire::put_trailers(&mut message, &trailers);
        let mut out = BytesMut::with_capacity(PREFIX + message.len());
        put_prefix(&mut out, message.len());
        out.put_slice(&message);
        Some(out.freeze())
    }

    fn next_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        loop {
            if !self.rest.is_empty() {
                let rest = std::mem::take(&mut self.rest);
                return Poll::Ready(Some(Ok(self.message(rest))));
            }
            if self.done {
                if self.head.is_some() {
                    return Poll::Ready(Some(Ok(self.message(Bytes::new()))));
                }
                return Poll::Ready(self.trailer_message().map(Ok));
            }
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(None) => self.done = true,
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Some(Err(e))),
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.done = self.body.is_end_stream();
                        return Poll::Ready(Some(Ok(self.message(data))));
                    }
                    Err(frame) => {
                        if self.ending == Ending::Answer {
                            self.trailers = frame.into_trailers().ok();
                        }
                    }
                },
                // The head does not wait for a body that takes its time.
                Poll::Pending if self.head.is_some() => return Poll::Ready(Some(Ok(self.message(Bytes::new())))),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl http_body::Body for Encoder {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let next = ready!(this.next_data(cx));
        Poll::Ready(match (next, this.ending) {
            (Some(Ok(data)), _) => Some(Ok(Frame::data(data))),
            (Some(Err(e)), Ending::Request) => Some(Err(e)),
            (Some(Err(e)), Ending::Answer) => {
                this.ended = true;
                let error = TransportError::new(grpc_code::INTERNAL, format!("the answer of the app broke off: {e}"));
                Some(Ok(Frame::trailers(status::headers(&error))))
            }
            (None, Ending::Request) => None,
            (None, Ending::Answer) => {
                this.ended = true;
                Some(Ok(Frame::trailers(status::ok())))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        let sent = self.rest.is_empty() && self.head.is_none();
        match self.ending {
            Ending::Request => sent && self.done,
            Ending::Answer => sent && self.ended,
        }
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// Reads the messages of a stream.
pub(super) struct Decoder<B> {
    body: B,
    deframer: Deframer,
    expected: u64,
    /// Trailers of the HTTP/2 stream, once they came.
    pub(super) trailers: Option<HeaderMap>,
    ended: bool,
}

/// One message of a stream.
pub(super) struct Message {
    /// The head field, still encoded.
    pub(super) head: Option<Bytes>,
    /// The chunk of body, its sequence number checked.
    pub(super) data: Bytes,
}

impl<B> Decoder<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    /// Messages may have `max_message` bytes.
    pub(super) fn new(body: B, max_message: usize) -> Self {
        Self { body, deframer: Deframer::new(max_message), expected: 0, trailers: None, ended: false }
    }

    /// For bodies in chunks, which may be larger than `max_message`.
    pub(super) fn of_chunks(body: B, max_message: usize) -> Self {
        Self::new(body, max_message.max(LEAST_LIMIT))
    }

    /// The next message as bytes; `None` at the end of the stream.
    pub(super) fn poll_raw(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, TransportError>>> {
        loop {
            match self.deframer.next() {
                Ok(Some(message)) => return Poll::Ready(Some(Ok(message))),
                Ok(None) => {}
                Err(e) => return Poll::Ready(Some(Err(e))),
            }
            if self.ended {
                if self.deframer.is_clean() {
                    return Poll::Ready(None);
                }
                self.deframer = Deframer::new(0);
                return Poll::Ready(Some(Err(broken("the stream ended within a message"))));
            }
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => self.ended = true,
                Some(Err(e)) => {
                    self.ended = true;
                    return Poll::Ready(Some(Err(status::from_body_error(&e.into()))));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.deframer.push(data),
                    Err(frame) => self.trailers = frame.into_trailers().ok(),
                },
            }
        }
    }

    /// The next message of a stream call.
    pub(super) fn poll_message(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Message, TransportError>>> {
        let Some(raw) = ready!(self.poll_raw(cx)) else { return Poll::Ready(None) };
        Poll::Ready(Some(raw.and_then(|raw| {
            let (head, payload) = wire::read_stream(raw).map_err(malformed)?;
            let data = match payload {
                None => Bytes::new(),
                Some(payload) => self.check(payload)?,
            };
            Ok(Message { head, data })
        })))
    }

    fn check(&mut self, payload: Payload) -> Result<Bytes, TransportError> {
        if payload.seq != self.expected {
            let text = format!("invalid sequence number received: {} (expected: {})", payload.seq, self.expected);
            return Err(broken(&text));
        }
        self.expected += 1;
        Ok(payload.data)
    }

    /// The next message.
    pub(super) async fn message(&mut self) -> Option<Result<Message, TransportError>> {
        std::future::poll_fn(|cx| self.poll_message(cx)).await
    }

    /// Whether the stream has ended and everything was read.
    pub(super) fn is_done(&self) -> bool {
        (self.ended || self.body.is_end_stream()) && self.deframer.is_clean()
    }
}

pub(super) fn broken(text: &str) -> TransportError {
    TransportError::new(grpc_code::INTERNAL, text)
}

pub(super) fn malformed(e: Malformed) -> TransportError {
    TransportError::new(grpc_code::INVALID_ARGUMENT, format!("parsing InternalInvokeRequest error: {}", e.0))
}

/// The body of a call that comes in.
pub(super) struct RequestBody<B> {
    pub(super) decoder: Decoder<B>,
    /// What came with the head.
    pub(super) first: Bytes,
}

impl<B> http_body::Body for RequestBody<B>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.first)))));
        }
        loop {
            match ready!(this.decoder.poll_message(cx)) {
                None => return Poll::Ready(None),
                Some(Err(e)) => return Poll::Ready(Some(Err(e.into()))),
                Some(Ok(m)) if m.head.is_some() => {
                    return Poll::Ready(Some(Err("request metadata found in non-leading chunk".into())));
                }
                Some(Ok(m)) if m.data.is_empty() => {}
                Some(Ok(m)) => return Poll::Ready(Some(Ok(Frame::data(m.data)))),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.decoder.is_done()
    }
}

/// The body of an answer that comes back. It holds the place in the connection.
pub(super) struct AnswerBody<B, G> {
    pub(super) decoder: Decoder<B>,
    pub(super) first: Bytes,
    pub(super) ended: bool,
    pub(super) _guard: G,
}

impl<B, G: Unpin> http_body::Body for AnswerBody<B, G>
where
    B: http_body::Body<Data = Bytes> + Unpin,
    B::Error: Into<BodyError>,
{
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if !this.first.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(std::mem::take(&mut this.first)))));
        }
        if this.ended {
            return Poll::Ready(None);
        }
        loop {
            match ready!(this.decoder.poll_message(cx)) {
                None => {
                    this.ended = true;
                    return Poll::Ready(match status::from_trailers(this.decoder.trailers.as_ref()) {
                        Ok(()) => None,
                        Err(e) => Some(Err(e.into())),
                    });
                }
                Some(Err(e)) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(e.into())));
                }
                Some(Ok(m)) => {
                    if let Some(head) = m.head {
                        match wire::read_response(head) {
                            Ok(head) if head.code.is_none() && head.headers.is_empty() && !head.has_message => {
                                if !head.grpc.trailers.is_empty() {
                                    return Poll::Ready(Some(Ok(Frame::trailers(head.grpc.trailers))));
                                }
                            }
                            Ok(_) => {
                                this.ended = true;
                                let text = "response metadata found in non-leading chunk";
                                return Poll::Ready(Some(Err(text.into())));
                            }
                            Err(e) => {
                                this.ended = true;
                                return Poll::Ready(Some(Err(e.0.into())));
                            }
                        }
                    }
                    if !m.data.is_empty() {
                        return Poll::Ready(Some(Ok(Frame::data(m.data))));
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.first.is_empty() && self.ended
    }
}
