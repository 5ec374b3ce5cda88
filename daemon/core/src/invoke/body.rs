//! Bodies on their way: a request body that can be sent again, and bodies held to the
//! length they announced.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Empty, Full};
use parking_lot::Mutex;

use crate::app::{Body, BodyError};
use crate::error::ApiError;

/// A body without content.
#[must_use]
pub fn empty() -> Body {
    Empty::new().map_err(|never| match never {}).boxed_unsync()
}

/// A body that is complete.
#[must_use]
pub fn full(data: Bytes) -> Body {
    Full::new(data).map_err(|never| match never {}).boxed_unsync()
}

/// The caller's body. What was taken from it is kept, up to a limit, so that another try
/// can send it again.
#[derive(Debug)]
pub(super) struct Source {
    /// `None` when there is no body; sending nothing again is free.
    shared: Option<Arc<Mutex<Shared>>>,
    length: Option<u64>,
}

struct Shared {
    body: Option<Body>,
    kept: Vec<Bytes>,
    kept_bytes: usize,
    limit: usize,
    /// Something that is no longer kept has left.
    lost: bool,
    /// Which try may read. Bodies of given-up tries can live on inside a connection.
    turn: u32,
    failure: Option<BodyError>,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("kept_bytes", &self.kept_bytes).field("lost", &self.lost).finish_non_exhaustive()
    }
}

impl Source {
    /// Keeps up to `limit` bytes. A body of unknown length is never kept.
    pub(super) fn new(body: Body, limit: usize) -> Self {
        if body.is_end_stream() {
            return Self { shared: None, length: Some(0) };
        }
        let length = body.size_hint().exact();
        let shared = Shared {
            body: Some(body),
            kept: Vec::new(),
            kept_bytes: 0,
            limit: if length.is_some() { limit } else { 0 },
            lost: false,
            turn: 0,
            failure: None,
        };
        Self { shared: Some(Arc::new(Mutex::new(shared))), length }
    }

    /// The body from its start, for one try. The bodies of earlier tries fail from now on.
    pub(super) fn body(&self) -> Body {
        let Some(shared) = &self.shared else { return empty() };
        let turn = {
            let mut s = shared.lock();
            s.turn += 1;
            s.turn
        };
        SourceBody { shared: shared.clone(), turn, at: 0, left: self.length }.boxed_unsync()
    }

    /// Length of the body, when it is known.
    pub(super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Whether everything that left can be sent again.
    pub(super) fn can_replay(&self) -> bool {
        self.length.is_some() && self.shared.as_ref().is_none_or(|s| !s.lock().lost)
    }

    /// Whether the caller's body ended early.
    pub(super) fn has_failed(&self) -> bool {
        self.shared.as_ref().is_some_and(|s| s.lock().failure.is_some())
    }

    /// Why the caller's body ended early, when it did. An error of our own (a limit) comes
    /// back as it was.
    pub(super) fn failure(&self) -> Option<Result<ApiError, String>> {
        let failure = self.shared.as_ref()?.lock().failure.take()?;
        Some(match failure.downcast::<ApiError>() {
            Ok(api) => Ok(*api),
            Err(other) => Err(other.to_string()),
        })
    }
}

struct SourceBody {
    shared: Arc<Mutex<Shared>>,
    turn: u32,
    at: usize,
    left: Option<u64>,
}

impl http_body::Body for SourceBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        let mut s = this.shared.lock();
        if s.turn != this.turn {
            return Poll::Ready(Some(Err("this try was given up".into())));
        }
        let data = if let Some(data) = s.kept.get(this.at) {
            data.clone()
        } else {
            loop {
                let Some(body) = s.body.as_mut() else { return Poll::Ready(None) };
                match std::task::ready!(Pin::new(body).poll_frame(cx)) {
                    None => {
                        s.body = None;
                        return Poll::Ready(None);
                    }
                    Some(Err(e)) => {
                        s.body = None;
                        s.lost = true;
                        s.failure = Some(e);
                        return Poll::Ready(Some(Err("the caller's body ended early".into())));
                    }
                    // Request trailers are not handed on: the peer protocol has no place for them.
                    Some(Ok(frame)) => {
                        if let Ok(data) = frame.into_data() {
                            s.keep(&data);
                            break data;
                        }
                    }
                }
            }
        };
        this.at += 1;
        if let Some(left) = &mut this.left {
            *left = left.saturating_sub(data.len() as u64);
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        let s = self.shared.lock();
        // At its length a body has ended, whether or not its source has noticed: the last chunk
        // then carries the end with it.
        s.turn == self.turn && self.left == Some(0) && self.at > 0
            || s.turn == self.turn
                && self.at >= s.kept.len()
                && s.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Shared {
    fn keep(&mut self, data: &Bytes) {
        if self.lost {
            return;
        }
        if self.kept_bytes + data.len() > self.limit {
            self.lost = true;
            // Only the try under way reads on, and it is past these.
            self.kept = Vec::new();
        } else {
            self.kept_bytes += data.len();
            self.kept.push(data.clone());
        }
    }
}

/// Holds a body to its announced length: more or less is an error, not a cut.
#[derive(Debug)]
pub struct Exact {
    body: Body,
    left: u64,
    held: Held,
}

/// What a body is asked for once its length is complete.
#[derive(Debug)]
enum Held {
    /// Nothing: the last data goes on at once.
    Nothing,
    /// Its end, before the last data goes on.
    Waiting { last: Option<Bytes>, trailers: Option<Frame<Bytes>> },
    /// The end came.
    Ended { last: Option<Bytes>, trailers: Option<Frame<Bytes>> },
}

impl Exact {
    /// `body` must have `length` bytes.
    #[must_use]
    pub fn new(body: Body, length: u64) -> Self {
        Self { body, left: length, held: Held::Nothing }
    }

    /// Like [`Exact::new`], for answers of a peer: the last data goes on when the end of the
    /// stream has come. Whoever sends the answer to a client stops at its length and drops the
    /// body; a stream that is dropped before its trailers is reset, and a connection that sees
    /// many late frames of reset streams is given up, with all calls on it. A status that says
    /// the answer failed comes in time to cut it, too.
    #[must_use]
    pub fn to_the_end(body: Body, length: u64) -> Self {
        Self { body, left: length, held: Held::Waiting { last: None, trailers: None } }
    }

    /// Takes what came off the length; `false` when it is too much.
    fn count(&mut self, data: &Bytes) -> bool {
        match self.left.checked_sub(data.len() as u64) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl http_body::Body for Exact {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        loop {
            if let Held::Ended { last, trailers } = &mut this.held {
                let next = last.take().map(Frame::data).or_else(|| trailers.take());
                return Poll::Ready(next.map(Ok));
            }
            match std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) {
                None if this.left > 0 => {
                    this.left = 0;
                    this.held = Held::Ended { last: None, trailers: None };
                    return Poll::Ready(Some(Err("the body is shorter than announced".into())));
                }
                None => {
                    this.held = match std::mem::replace(&mut this.held, Held::Nothing) {
                        Held::Waiting { last, trailers } => Held::Ended { last, trailers },
                        _ => Held::Ended { last: None, trailers: None },
                    };
                }
                Some(Err(e)) => {
                    this.held = Held::Ended { last: None, trailers: None };
                    return Poll::Ready(Some(Err(e)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        if !this.count(&data) {
                            this.held = Held::Ended { last: None, trailers: None };
                            return Poll::Ready(Some(Err("the body is longer than announced".into())));
                        }
                        match &mut this.held {
                            Held::Waiting { last, .. } if this.left == 0 => {
                                if !data.is_empty() {
                                    *last = Some(data);
                                }
                            }
                            _ => return Poll::Ready(Some(Ok(Frame::data(data)))),
                        }
                    }
                    Err(frame) => match &mut this.held {
                        Held::Waiting { trailers, .. } => *trailers = Some(frame),
                        _ => return Poll::Ready(Some(Ok(frame))),
                    },
                },
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.held {
            Held::Nothing => self.left == 0 && self.body.is_end_stream(),
            Held::Waiting { last, trailers } => {
                self.left == 0 && last.is_none() && trailers.is_none() && self.body.is_end_stream()
            }
            Held::Ended { last, trailers } => last.is_none() && trailers.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let held = match &self.held {
            Held::Nothing => None,
            Held::Waiting { last, .. } | Held::Ended { last, .. } => last.as_ref(),
        };
        SizeHint::with_exact(self.left + held.map_or(0, |last| last.len() as u64))
    }
}

/// A body whose first frames were taken already.
pub(super) struct Peeked {
    first: Option<Bytes>,
    rest: Option<Body>,
}

impl Peeked {
    /// Waits for the first data, or the end.
    ///
    /// # Errors
    /// What the body failed with before its first byte, or right after it.
    pub(super) async fn new(mut body: Body) -> Result<Self, BodyError> {
        loop {
            match body.frame().await {
                None => return Ok(Self { first: None, rest: None }),
                Some(Err(e)) => return Err(e),
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => return Ok(Self { first: Some(data), rest: Some(body) }),
                    Err(_trailers) => {}
                },
            }
        }
    }

    /// What came first.
    pub(super) fn first(&self) -> &[u8] {
        self.first.as_deref().unwrap_or_default()
    }

    /// Looks, without waiting, whether the body fails right after what came first.
    pub(super) async fn fails_now(&mut self) -> Option<BodyError> {
        let rest = self.rest.as_mut()?;
        if rest.is_end_stream() {
            self.rest = None;
            return None;
        }
        std::future::poll_fn(|cx| {
            Poll::Ready(match Pin::new(&mut *rest).poll_frame(cx) {
                Poll::Ready(Some(Err(e))) => Some(Err(e)),
                Poll::Ready(Some(Ok(frame))) => Some(Ok(Some(frame))),
                Poll::Ready(None) => Some(Ok(None)),
                Poll::Pending => None,
            })
        })
        .await
        .and_then(|frame| match frame {
            Err(e) => Some(e),
            Ok(None) => {
                self.rest = None;
                None
            }
            Ok(Some(frame)) => {
                // Keep the order: what came second goes out after what came first.
                if let Some(rest) = self.rest.take() {
                    self.rest = Some(Prefixed { frame: Some(frame), rest }.boxed_unsync());
                }
                None
            }
        })
    }

    pub(super) fn into_body(self) -> Body {
        match (self.first, self.rest) {
            (None, None) => empty(),
            (Some(first), None) => full(first),
            (first, Some(rest)) => Prefixed { frame: first.map(Frame::data), rest }.boxed_unsync(),
        }
    }
}

struct Prefixed {
    frame: Option<Frame<Bytes>>,
    rest: Body,
}

impl http_body::Body for Prefixed {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = self.get_mut();
        if let Some(frame) = this.frame.take() {
            return Poll::Ready(Some(Ok(frame)));
        }
        Pin::new(&mut this.rest).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.frame.is_none() && self.rest.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let ahead = self.frame.as_ref().and_then(Frame::data_ref).map_or(0, Bytes::len) as u64;
        let rest = self.rest.size_hint();
        let mut hint = SizeHint::new();
        if let Some(upper) = rest.upper() {
            hint.set_upper(upper + ahead);
        }
        hint.set_lower(rest.lower() + ahead);
        hint
    }
}

#[cfg(test)]
mod tests {
    use futures_util::{StreamExt as _, stream};
    use http_body_util::StreamBody;

    use super::*;

    fn chunks(parts: &'static [&'static str]) -> Body {
        let frames = parts.iter().map(|p| Ok::<_, BodyError>(Frame::data(Bytes::from_static(p.as_bytes()))));
        StreamBody::new(stream::iter(frames)).boxed_unsync()
    }

    fn known(parts: &'static [&'static str]) -> Body {
        let length = parts.iter().map(|p| p.len() as u64).sum();
        Exact::new(chunks(parts), length).boxed_unsync()
    }

    async fn read(body: Body) -> Result<Bytes, BodyError> {
        Ok(body.collect().await?.to_bytes())
    }

    #[tokio::test]
    async fn a_known_body_is_sent_again_from_its_start() {
        let source = Source::new(known(&["ab", "cd", "ef"]), 100);
        let mut first = source.body();
        assert_eq!(first.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        assert!(source.can_replay());
        let second = source.body();
        assert_eq!(second.size_hint().exact(), Some(6));
        assert_eq!(read(second).await.unwrap(), "abcdef");
        assert!(first.frame().await.unwrap().is_err(), "a given-up try must not steal from its successor");
        assert_eq!(read(source.body()).await.unwrap(), "abcdef");
    }

    #[tokio::test]
    async fn over_the_limit_and_of_unknown_length_there_is_no_second_try() {
        let source = Source::new(known(&["abcd", "efgh"]), 4);
        assert!(source.can_replay());
        assert_eq!(read(source.body()).await.unwrap(), "abcdefgh");
        assert!(!source.can_replay());
        assert!(!Source::new(chunks(&["a"]), 100).can_replay());
        assert!(Source::new(empty(), 0).can_replay());
    }

    #[tokio::test]
    async fn bodies_keep_their_word() {
        for (length, ok) in [(5, false), (6, true), (7, false)] {
            assert_eq!(read(Exact::new(chunks(&["abc", "def"]), length).boxed_unsync()).await.is_ok(), ok, "{length}");
        }
    }

    #[tokio::test]
    async fn the_last_data_of_an_answer_waits_for_its_end() {
        let (end, wait) = tokio::sync::oneshot::channel::<BodyError>();
        let data = |text: &'static str| Ok::<_, BodyError>(Frame::data(Bytes::from_static(text.as_bytes())));
        let tail = stream::once(wait).filter_map(|failed| std::future::ready(failed.ok().map(Err)));
        let frames = stream::iter([data("ab"), data("cd")]).chain(tail);
        let mut body = Exact::to_the_end(StreamBody::new(frames).boxed_unsync(), 4);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "ab");
        assert!(futures_util::poll!(std::pin::pin!(body.frame())).is_pending(), "the stream has not ended");
        assert_eq!(body.size_hint().exact(), Some(2));
        drop(end);
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap(), "cd");
        assert!(body.is_end_stream());
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn an_answer_that_fails_at_its_end_is_cut() {
        let data = Ok::<_, BodyError>(Frame::data(Bytes::from_static(b"ab")));
        let frames = stream::iter([data, Err("the status says so".into())]);
        let body = Exact::to_the_end(StreamBody::new(frames).boxed_unsync(), 2);
        assert!(read(body.boxed_unsync()).await.is_err());
    }

    #[tokio::test]
    async fn a_limit_of_our_own_comes_back_as_it_was() {
        let frames = stream::iter([Err::<Frame<Bytes>, BodyError>(ApiError::too_large(1).into())]);
        let source = Source::new(StreamBody::new(frames).boxed_unsync(), 0);
        assert!(read(source.body()).await.is_err());
        assert!(source.failure().unwrap().is_ok());
    }

    #[tokio::test]
    async fn peeking_loses_nothing() {
        for parts in [&[][..], &["ab"], &["ab", "cd"], &["ab", "cd", "ef"]] {
            let mut peeked = Peeked::new(chunks(parts)).await.unwrap();
            assert_eq!(peeked.first(), parts.first().copied().unwrap_or_default().as_bytes());
            assert!(peeked.fails_now().await.is_none());
            assert_eq!(read(peeked.into_body()).await.unwrap(), parts.concat());
        }
        let mut short = Peeked::new(Exact::new(chunks(&["ab"]), 9).boxed_unsync()).await.unwrap();
        assert!(short.fails_now().await.is_some());
    }
}
