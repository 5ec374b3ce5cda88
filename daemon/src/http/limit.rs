//! The size limit on bodies that are passed on as they come.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use mecha_core::ApiError;
use mecha_core::app::{Body, BodyError};

use super::decode::discard;

/// Tells, once a call has failed, whether its body was the reason.
#[derive(Debug)]
pub(super) struct Overflow {
    limit: u64,
    /// `None` when the announced length fits: the connection holds the client to it.
    happened: Option<Arc<AtomicBool>>,
}

impl Overflow {
    /// The error to answer with instead of `other`, which is what the cut body made of the call.
    pub(super) fn or(&self, other: ApiError) -> ApiError {
        match &self.happened {
            Some(happened) if happened.load(Ordering::Relaxed) => ApiError::too_large(self.limit),
            _ => other,
        }
    }
}

/// The body, which fails after `limit` bytes.
///
/// # Errors
/// It says beforehand that it is longer.
pub(super) async fn streamed<B>(body: B, limit: u64) -> Result<(Body, Overflow), ApiError>
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let hint = body.size_hint();
    if hint.lower() > limit {
        discard(body).await;
        return Err(ApiError::too_large(limit));
    }
    if hint.exact().is_some() {
        return Ok((Body::new(body.map_err(Into::into)), Overflow { limit, happened: None }));
    }
    let happened = Arc::new(AtomicBool::new(false));
    let seen = happened.clone();
    let most = usize::try_from(limit).unwrap_or(usize::MAX);
    let body = Limited::new(body, most).map_err(move |e| {
        if e.is::<LengthLimitError>() {
            seen.store(true, Ordering::Relaxed);
        }
        e
    });
    Ok((Body::new(body), Overflow { limit, happened: Some(happened) }))
}

#[cfg(test)]
mod tests {
    use http_body_util::{Full, StreamBody};

    use super::*;

    fn other() -> ApiError {
        ApiError::malformed("other")
    }

    #[tokio::test]
    async fn an_announced_length_decides_at_once() {
        assert!(streamed(Full::new(Bytes::from_static(b"12345")), 4).await.is_err());
        let (_, overflow) = streamed(Full::new(Bytes::from_static(b"1234")), 4).await.unwrap();
        assert_eq!(overflow.or(other()).message(), "other");
    }

    #[tokio::test]
    async fn a_body_of_unknown_length_fails_when_it_is_too_long() {
        let chunks = |count: usize| {
            let chunk = || Ok::<_, BodyError>(http_body::Frame::data(Bytes::from_static(b"12")));
            StreamBody::new(futures_util::stream::iter((0..count).map(move |_| chunk())))
        };
        let (body, overflow) = streamed(chunks(2), 4).await.unwrap();
        assert_eq!(body.collect().await.unwrap().to_bytes(), "1212");
        assert_eq!(overflow.or(other()).message(), "other");
        let (body, overflow) = streamed(chunks(3), 4).await.unwrap();
        assert!(body.collect().await.is_err());
        assert_ne!(overflow.or(other()).message(), "other");
    }
}
