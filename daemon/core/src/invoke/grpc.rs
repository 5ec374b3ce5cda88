//! `InvokeService` of the gRPC API, and the two status tables.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use http_body_util::BodyExt;

use super::call::{GrpcAnswer, Head, Origin, StatusDetail, Verb, grpc_code};
use super::method::Method;
use super::{Invoke, fail, headers};
use crate::app::Body;
use crate::cx::Cx;
use crate::error::ApiError;

/// Response metadata with the HTTP status of the callee.
const HTTP_STATUS: HeaderName = HeaderName::from_static("dapr-http-status");
const ERROR_INFO: &str = "type.googleapis.com/google.rpc.ErrorInfo";
/// Limit of a metadata value in `ErrorInfo`.
const MAX_ERROR_TEXT: usize = 63;

/// A call of `InvokeService`.
#[derive(Debug)]
pub struct GrpcCall {
    /// Target id.
    pub id: String,
    /// Method; not percent-encoded.
    pub method: String,
    /// Payload.
    pub data: Bytes,
    /// Type of the payload; may be empty.
    pub type_url: String,
    /// Content type; may be empty.
    pub content_type: String,
    /// Verb of the HTTP extension.
    pub verb: Verb,
    /// Query string of the HTTP extension.
    pub query: String,
    /// Metadata of the caller; `-bin` values are base64.
    pub metadata: HeaderMap,
}

/// What `InvokeService` answers.
#[derive(Debug)]
pub struct GrpcReply {
    /// Payload; empty unless `status.code` is OK.
    pub data: Bytes,
    /// Type of the payload; may be empty.
    pub type_url: String,
    /// Content type; may be empty.
    pub content_type: String,
    /// Response metadata, sent with an error too.
    pub headers: HeaderMap,
    /// gRPC code, message, details and trailers.
    pub status: GrpcAnswer,
}

impl Invoke {
    /// Invokes a method for a gRPC caller. The whole answer is held, up to the body limit.
    ///
    /// # Errors
    /// Everything that keeps an answer of the callee from coming.
    pub async fn grpc_invoke(&self, cx: &Cx, call: GrpcCall) -> Result<GrpcReply, ApiError> {
        let GrpcCall { id, method, data, type_url, content_type, verb, query, metadata: mut headers } = call;
        let method = Method::new(&method).map_err(|e| fail(&id, e))?;
        headers::clean_request(&mut headers);
        headers.remove(http::header::CONTENT_LENGTH);
        match HeaderValue::from_str(&content_type) {
            Ok(value) if !content_type.is_empty() => headers.insert(CONTENT_TYPE, value),
            _ => headers.remove(CONTENT_TYPE),
        };
        let head = Head { verb, method, query, headers, type_url, origin: Origin::Grpc };
        let mut answer = self.call(cx, &id, head, super::full(data)).await?;
        headers::strip_hop_by_hop(answer.headers_mut());
        answer.headers_mut().remove(headers::API_TOKEN);
        let content_type = answer.headers_mut().remove(CONTENT_TYPE);
        let content_type = content_type.and_then(|v| v.to_str().ok().map(str::to_owned)).unwrap_or_default();
        let grpc = answer.extensions_mut().remove::<GrpcAnswer>();
        let (mut parts, body) = answer.into_parts();
        let data = self.collect(&id, body).await?;
        let status = match grpc {
            Some(mut status) => {
                headers::for_grpc(&mut parts.headers, false);
                let type_url = std::mem::take(&mut status.type_url);
                let ok = status.code == grpc_code::OK;
                let data = if ok { data } else { Bytes::new() };
                return Ok(GrpcReply { data, type_url, content_type, headers: parts.headers, status });
            }
            None => status_from_http(parts.status, &data),
        };
        headers::for_grpc(&mut parts.headers, true);
        parts.headers.insert(HTTP_STATUS, HeaderValue::from(parts.status.as_u16()));
        let data = if status.code == grpc_code::OK { data } else { Bytes::new() };
        Ok(GrpcReply { data, type_url: String::new(), content_type, headers: parts.headers, status })
    }

    async fn collect(&self, id: &str, mut body: Body) -> Result<Bytes, ApiError> {
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| fail(id, format_args!("the answer of the app broke off: {e}")))?;
            let Ok(data) = frame.into_data() else { continue };
            let size = first.len() + all.len() + data.len();
            if size > self.max_body {
                let text = format!("grpc: received message larger than max ({size} vs. {})", self.max_body);
                return Err(fail(id, &text).with_status(500, grpc_code::RESOURCE_EXHAUSTED));
            }
            // One chunk is the usual case, and is not copied.
            if first.is_empty() && all.is_empty() {
                first = data;
            } else {
                all.extend_from_slice(&std::mem::take(&mut first));
                all.extend_from_slice(&data);
            }
        }
        Ok(if all.is_empty() { first } else { all.freeze() })
    }
}

/// Status of an answer of an HTTP app, for gRPC callers.
fn status_from_http(status: StatusCode, body: &[u8]) -> GrpcAnswer {
    let code = code_from_http(status.as_u16());
    if code == grpc_code::OK {
        return GrpcAnswer::default();
    }
    let text = status_text(status);
    let shown = String::from_utf8_lossy(&body[..body.len().min(MAX_ERROR_TEXT)]);
    let detail = error_info(text, &[("http.code", status.as_str()), ("http.error_message", &shown)]);
    GrpcAnswer { code, message: text.to_owned(), details: vec![detail], ..GrpcAnswer::default() }
}

/// `google.rpc.ErrorInfo` of domain `dapr.io`. Three string fields: not worth a dependency of
/// core on a protobuf library.
fn error_info(reason: &str, metadata: &[(&str, &str)]) -> StatusDetail {
    fn field(out: &mut BytesMut, number: u8, text: &[u8]) {
        out.put_u8(number << 3 | 2);
        // Lengths above 127 need a second byte; nothing here comes near 16384.
        let length = text.len().min(16_383);
        if length > 127 {
            out.put_u8((length & 0x7f) as u8 | 0x80);
            out.put_u8((length >> 7) as u8);
        } else {
            out.put_u8(length as u8);
        }
        out.put_slice(&text[..length]);
    }
    let mut out = BytesMut::new();
    field(&mut out, 1, reason.as_bytes());
    field(&mut out, 2, b"dapr.io");
    for (key, value) in metadata {
        let mut entry = BytesMut::new();
        field(&mut entry, 1, key.as_bytes());
        field(&mut entry, 2, value.as_bytes());
        field(&mut out, 3, &entry);
    }
    StatusDetail { type_url: ERROR_INFO.to_owned(), value: out.freeze() }
}

/// A gRPC app's answer as an HTTP client gets it.
pub(super) fn as_http(answer: Response<Body>, status: &GrpcAnswer) -> Response<Body> {
    let code = http_from_code(status.code);
    let (mut parts, body) = answer.into_parts();
    parts.status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    if status.code == grpc_code::OK {
        return Response::from_parts(parts, body);
    }
    let mut json = format!("{{\"code\":{}", status.code);
    if !status.message.is_empty() {
        json.push_str(",\"message\":");
        json.push_str(&serde_json::Value::from(status.message.as_str()).to_string());
    }
    if !status.details.is_empty() {
        json.push_str(",\"details\":");
        json.push_str(&status.details.iter().map(detail_json).collect::<serde_json::Value>().to_string());
    }
    json.push('}');
    parts.headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    parts.headers.remove(http::header::CONTENT_LENGTH);
    Response::from_parts(parts, super::full(json.into()))
}

/// A detail in the JSON form of its type when that is `ErrorInfo`, else as bytes.
fn detail_json(detail: &StatusDetail) -> serde_json::Value {
    use base64::Engine;
    if detail.type_url == ERROR_INFO
        && let Some(info) = read_error_info(&detail.value)
    {
        return info;
    }
    let value = base64::engine::general_purpose::STANDARD.encode(&detail.value);
    serde_json::json!({ "@type": detail.type_url, "value": value })
}

fn read_error_info(value: &[u8]) -> Option<serde_json::Value> {
    let mut info = serde_json::Map::new();
    info.insert("@type".to_owned(), ERROR_INFO.into());
    let mut metadata = serde_json::Map::new();
    for (number, text) in texts(value)? {
        match number {
            1 => drop(info.insert("reason".to_owned(), std::str::from_utf8(text).ok()?.into())),
            2 => drop(info.insert("domain".to_owned(), std::str::from_utf8(text).ok()?.into())),
            3 => {
                let (mut key, mut value) = ("", "");
                for (number, text) in texts(text)? {
                    match number {
                        1 => key = std::str::from_utf8(text).ok()?,
                        2 => value = std::str::from_utf8(text).ok()?,
                        _ => return None,
                    }
                }
                metadata.insert(key.to_owned(), value.into());
            }
            _ => return None,
        }
    }
    if !metadata.is_empty() {
        info.insert("metadata".to_owned(), metadata.into());
    }
    Some(info.into())
}

/// The fields of a message that has length-delimited fields only.
fn texts(mut rest: &[u8]) -> Option<Vec<(u8, &[u8])>> {
    let mut all = Vec::new();
    while let Some((tag, mut after)) = rest.split_first() {
        if tag & 7 != 2 {
            return None;
        }
        let mut length = 0usize;
        for shift in [0, 7, 14, 21] {
            let (byte, next) = after.split_first()?;
            after = next;
            length |= usize::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                break;
            }
        }
        let (text, next) = after.split_at_checked(length)?;
        all.push((tag >> 3, text));
        rest = next;
    }
    Some(all)
}

/// Reason phrases as gRPC callers of the incumbent know them.
fn status_text(status: StatusCode) -> &'static str {
    match status.as_u16() {
        413 => "Request Entity Too Large",
        414 => "Request URI Too Long",
        416 => "Requested Range Not Satisfiable",
        203 => "Non-Authoritative Information",
        _ => status.canonical_reason().unwrap_or_default(),
    }
}

/// gRPC code of an HTTP status.
#[must_use]
pub const fn code_from_http(status: u16) -> i32 {
    match status {
        200..300 => grpc_code::OK,
        400 => grpc_code::INTERNAL,
        401 => grpc_code::UNAUTHENTICATED,
        403 => grpc_code::PERMISSION_DENIED,
        404 => grpc_code::NOT_FOUND,
        408 => grpc_code::CANCELLED,
        409 => grpc_code::ALREADY_EXISTS,
        429 => grpc_code::RESOURCE_EXHAUSTED,
        501 => grpc_code::UNIMPLEMENTED,
        503 => grpc_code::UNAVAILABLE,
        504 => grpc_code::DEADLINE_EXCEEDED,
        _ => grpc_code::UNKNOWN,
    }
}

/// HTTP status of a gRPC code.
#[must_use]
pub const fn http_from_code(code: i32) -> u16 {
    match code {
        grpc_code::OK => 200,
        grpc_code::CANCELLED => 408,
        grpc_code::INVALID_ARGUMENT | grpc_code::FAILED_PRECONDITION | grpc_code::OUT_OF_RANGE => 400,
        grpc_code::DEADLINE_EXCEEDED => 504,
        grpc_code::NOT_FOUND => 404,
        grpc_code::ALREADY_EXISTS | grpc_code::ABORTED => 409,
        grpc_code::PERMISSION_DENIED => 403,
        grpc_code::UNAUTHENTICATED => 401,
        grpc_code::RESOURCE_EXHAUSTED => 429,
        grpc_code::UNIMPLEMENTED => 501,
        grpc_code::UNAVAILABLE => 503,
        _ => 500,
    }
}

/// The name of a gRPC code as Go spells it.
#[must_use]
pub const fn code_name(code: i32) -> &'static str {
    match code {
        grpc_code::OK => "OK",
        grpc_code::CANCELLED => "Canceled",
        grpc_code::INVALID_ARGUMENT => "InvalidArgument",
        grpc_code::DEADLINE_EXCEEDED => "DeadlineExceeded",
        grpc_code::NOT_FOUND => "NotFound",
        grpc_code::ALREADY_EXISTS => "AlreadyExists",
        grpc_code::PERMISSION_DENIED => "PermissionDenied",
        grpc_code::RESOURCE_EXHAUSTED => "ResourceExhausted",
        grpc_code::FAILED_PRECONDITION => "FailedPrecondition",
        grpc_code::ABORTED => "Aborted",
        grpc_code::OUT_OF_RANGE => "OutOfRange",
        grpc_code::UNIMPLEMENTED => "Unimplemented",
        grpc_code::INTERNAL => "Internal",
        grpc_code::UNAVAILABLE => "Unavailable",
        grpc_code::DATA_LOSS => "DataLoss",
        grpc_code::UNAUTHENTICATED => "Unauthenticated",
        _ => "Unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_tables() {
        for (http, grpc) in [
            (200, 0),
            (204, 0),
            (302, 2),
            (400, 13),
            (401, 16),
            (403, 7),
            (404, 5),
            (408, 1),
            (409, 6),
            (418, 2),
            (429, 8),
            (500, 2),
            (501, 12),
            (503, 14),
            (504, 4),
        ] {
            assert_eq!(code_from_http(http), grpc, "{http}");
        }
        let all: Vec<u16> = (0..=16).map(http_from_code).collect();
        assert_eq!(all, [200, 408, 500, 400, 504, 404, 409, 403, 429, 400, 409, 400, 501, 500, 503, 500, 401]);
    }

    #[test]
    fn details_are_shown_as_json() {
        let detail = error_info("R", &[("k", "v"), ("long", &"x".repeat(200))]);
        let json = detail_json(&detail);
        assert_eq!((&json["reason"], &json["domain"]), (&"R".into(), &"dapr.io".into()));
        assert_eq!(json["metadata"]["long"].as_str().map(str::len), Some(200));
        let other = StatusDetail { type_url: "t".into(), value: Bytes::from_static(b"v") };
        assert_eq!(detail_json(&other)["value"], "dg==");
        for broken in [&b"\x0a\xff"[..], b"\x08\x01", b"\x0a\x01\xff"] {
            assert_eq!(read_error_info(broken), None);
        }
    }

    #[test]
    fn http_errors_become_statuses() {
        let s = status_from_http(StatusCode::NOT_FOUND, b"no such order");
        assert_eq!((s.code, s.message.as_str()), (5, "Not Found"));
        let text = String::from_utf8_lossy(&s.details[0].value).into_owned();
        assert!(text.contains("dapr.io") && text.contains("404") && text.contains("no such order"));
        assert_eq!(status_from_http(StatusCode::CREATED, b"x"), GrpcAnswer::default());
    }
}
