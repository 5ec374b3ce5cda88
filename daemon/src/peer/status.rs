//! gRPC statuses as HTTP/2 headers and trailers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::BytesMut;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Response};
use mecha_core::app::{Body, BodyError};
use mecha_core::invoke::{Reached, TransportError, empty, grpc_code};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode, utf8_percent_encode};

use super::wire;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
const GRPC_DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
/// Says that the call was not handed on, so that it may be sent again.
const UNPROCESSED: HeaderName = HeaderName::from_static("mecha-unprocessed");

/// Media type of gRPC.
pub(crate) const GRPC: HeaderValue = HeaderValue::from_static("application/grpc");

/// What `grpc-message` may not hold as it is.
const MESSAGE: &AsciiSet = &CONTROLS.add(b'%');

/// Longest message sent; the rest of a status must fit beside it into the peer's header limit.
const MAX_MESSAGE: usize = 4096;

static BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Status OK.
pub(crate) fn ok() -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(1);
    headers.insert(GRPC_STATUS, HeaderValue::from_static("0"));
    headers
}

/// The status of an error.
pub(crate) fn headers(error: &TransportError) -> HeaderMap {
    let mut headers = HeaderMap::new();
    write(error, &mut headers);
    headers
}

fn write(error: &TransportError, headers: &mut HeaderMap) {
    headers.insert(GRPC_STATUS, HeaderValue::from(error.code));
    let mut message = error.message.as_str();
    if message.len() > MAX_MESSAGE {
        let end = (0..=MAX_MESSAGE).rev().find(|&i| message.is_char_boundary(i)).unwrap_or(0);
        message = &message[..end];
    }
    let encoded = utf8_percent_encode(message, MESSAGE).to_string();
    if let Ok(value) = HeaderValue::from_str(&encoded) {
        headers.insert(GRPC_MESSAGE, value);
    }
    if !error.details.is_empty() {
        let mut status = BytesMut::new();
        wire::put_status(&mut status, error.code, message, &error.details);
        if let Ok(value) = HeaderValue::from_str(&STANDARD_NO_PAD.encode(status)) {
            headers.insert(GRPC_DETAILS, value);
        }
    }
    if error.reached == Reached::No {
        headers.insert(UNPROCESSED, HeaderValue::from_static("1"));
    }
}

/// An answer that is only a status.
pub(crate) fn trailers_only(error: &TransportError) -> Response<Body> {
    let mut response = Response::new(empty());
    response.headers_mut().insert(CONTENT_TYPE, GRPC);
    write(error, response.headers_mut());
    response
}

/// Leaves out of an answer to an app what only sidecars tell each other.
pub(crate) fn for_apps(headers: &mut HeaderMap) {
    headers.remove(UNPROCESSED);
}

/// The status in headers or trailers; `None` when there is none.
pub(crate) fn read(headers: &HeaderMap) -> Option<Result<(), TransportError>> {
    let code = headers.get(GRPC_STATUS)?.to_str().ok().and_then(|c| c.parse().ok()).unwrap_or(grpc_code::UNKNOWN);
    if code == grpc_code::OK {
        return Some(Ok(()));
    }
    let message = headers.get(GRPC_MESSAGE).map(HeaderValue::as_bytes).unwrap_or_default();
    let details = headers
        .get(GRPC_DETAILS)
        .and_then(|v| BASE64.decode(v.as_bytes()).ok())
        .and_then(|b| wire::read_status_details(b.into()).ok())
        .unwrap_or_default();
    let reached = if headers.contains_key(UNPROCESSED) { Reached::No } else { Reached::Maybe };
    let message = percent_decode(message).decode_utf8_lossy().into_owned();
    Some(Err(TransportError { code, message, details, reached }))
}

/// The status at the end of a stream.
pub(crate) fn from_trailers(trailers: Option<&HeaderMap>) -> Result<(), TransportError> {
    trailers
        .and_then(read)
        .unwrap_or_else(|| Err(TransportError::new(grpc_code::UNKNOWN, "the stream ended without a status")))
}

/// The status of an HTTP answer that is not gRPC's (what a proxy between sidecars says).
pub(crate) fn from_http(status: http::StatusCode) -> TransportError {
    let code = match status.as_u16() {
        400 => grpc_code::INTERNAL,
        401 => grpc_code::UNAUTHENTICATED,
        403 => grpc_code::PERMISSION_DENIED,
        404 => grpc_code::UNIMPLEMENTED,
        429 | 502..=504 => grpc_code::UNAVAILABLE,
        _ => grpc_code::UNKNOWN,
    };
    TransportError::new(code, format!("unexpected HTTP status code received from server: {}", status.as_u16()))
}

/// The error of a stream that broke.
pub(crate) fn from_body_error(error: &BodyError) -> TransportError {
    match error.downcast_ref::<hyper::Error>() {
        Some(e) => from_hyper(e),
        None => TransportError::new(grpc_code::UNKNOWN, format!("error receiving message: {error}")),
    }
}

/// The error of a connection or stream. A stream that the peer refused, or that lies behind
/// its GOAWAY, was not processed.
pub(crate) fn from_hyper(error: &hyper::Error) -> TransportError {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = std::error::Error::source(error);
    while let Some(e) = cause {
        if let Some(h2) = e.downcast_ref::<h2::Error>() {
            return from_h2(h2);
        }
        cause = e.source();
    }
    if error.is_user() {
        return TransportError::new(grpc_code::CANCELLED, "context canceled");
    }
    TransportError::new(grpc_code::UNAVAILABLE, describe(error))
}

fn from_h2(error: &h2::Error) -> TransportError {
    let unprocessed = error.reason() == Some(h2::Reason::REFUSED_STREAM)
        || (error.is_go_away() && error.is_remote() && error.reason() == Some(h2::Reason::NO_ERROR));
    if unprocessed {
        return TransportError::unsent(grpc_code::UNAVAILABLE, "the peer is going away");
    }
    let code = match error.reason() {
        Some(h2::Reason::CANCEL) if error.is_reset() && error.is_remote() => grpc_code::CANCELLED,
        Some(h2::Reason::ENHANCE_YOUR_CALM) => grpc_code::RESOURCE_EXHAUSTED,
        Some(h2::Reason::INADEQUATE_SECURITY) => grpc_code::PERMISSION_DENIED,
        _ if error.is_reset() && error.is_remote() => grpc_code::INTERNAL,
        _ => grpc_code::UNAVAILABLE,
    };
    TransportError::new(code, error.to_string())
}

/// An error with its causes.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        text.push_str(": ");
        text.push_str(&e.to_string());
        cause = e.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use mecha_core::invoke::StatusDetail;

    use super::*;

    #[test]
    fn statuses_survive_the_trip() {
        let error = TransportError {
            code: 7,
            message: "100% denied: café\r\nX: y".into(),
            details: vec![StatusDetail { type_url: "t".into(), value: vec![1, 2, 3].into() }],
            reached: Reached::No,
        };
        let back = read(&headers(&error)).unwrap().unwrap_err();
        assert_eq!(
            (back.code, &back.message, &back.details, back.reached),
            (7, &error.message, &error.details, Reached::No)
        );
        assert!(read(&ok()).unwrap().is_ok());
        assert!(read(&HeaderMap::new()).is_none());
        assert!(from_trailers(None).is_err());
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let error = TransportError::new(2, "é".repeat(MAX_MESSAGE));
        let back = read(&headers(&error)).unwrap().unwrap_err();
        assert_eq!(back.message, "é".repeat(MAX_MESSAGE / 2));
    }
}
