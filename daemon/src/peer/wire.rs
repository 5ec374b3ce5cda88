//! The messages of `internals.v1.ServiceInvocation`, read and written in place: headers go
//! from the header map to the wire and back without a map or a string in between, bodies
//! are slices of what came in. The generated types say the same; tests hold the two together.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use mecha_core::invoke::headers::{BAGGAGE, TRACEPARENT, TRACESTATE};
use mecha_core::invoke::{GrpcAnswer, Head, Method, Origin, StatusDetail, Verb};

/// A message that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed(pub(super) &'static str);

type Result<T> = std::result::Result<T, Malformed>;

const VARINT: u8 = 0;
const LEN: u8 = 2;

fn varint_len(mut v: u64) -> usize {
    let mut n = 1;
    while v > 0x7f {
        v >>= 7;
        n += 1;
    }
    n
}

fn put_varint(out: &mut BytesMut, mut v: u64) {
    while v > 0x7f {
        out.put_u8((v & 0x7f) as u8 | 0x80);
        v >>= 7;
    }
    out.put_u8(v as u8);
}

fn put_tag(out: &mut BytesMut, field: u8, kind: u8) {
    out.put_u8(field << 3 | kind);
}

/// Length of a length-delimited field with a one-byte tag.
fn len_field(length: usize) -> usize {
    1 + varint_len(length as u64) + length
}

fn put_len(out: &mut BytesMut, field: u8, length: usize) {
    put_tag(out, field, LEN);
    put_varint(out, length as u64);
}

fn put_bytes(out: &mut BytesMut, field: u8, data: &[u8]) {
    if !data.is_empty() {
        put_len(out, field, data.len());
        out.put_slice(data);
    }
}

fn bytes_len(data: &[u8]) -> usize {
    if data.is_empty() { 0 } else { len_field(data.len()) }
}

fn varint_field(v: u64) -> usize {
    if v == 0 { 0 } else { 1 + varint_len(v) }
}

fn put_varint_field(out: &mut BytesMut, field: u8, v: u64) {
    if v != 0 {
        put_tag(out, field, VARINT);
        put_varint(out, v);
    }
}

/// Negative codes are ten bytes long, as protobuf wants it.
fn int32(v: i32) -> u64 {
    i64::from(v) as u64
}

// Writing.

/// How names are spelled in the metadata map.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    /// `X-Forwarded-For`: HTTP headers, as other sidecars expect them.
    Canonical,
    /// As they are: gRPC metadata.
    Lower,
}

fn values_len(headers: &HeaderMap, name: &HeaderName) -> usize {
    let pad = name.as_str().ends_with("-bin");
    headers.get_all(name).iter().map(|v| 1 + delimited(v.len() + if pad { padding(v.len()) } else { 0 })).sum()
}

fn delimited(length: usize) -> usize {
    varint_len(length as u64) + length
}

fn padding(base64: usize) -> usize {
    (4 - base64 % 4) % 4
}

fn entry_len(headers: &HeaderMap, name: &HeaderName) -> usize {
    len_field(name.as_str().len()) + len_field(values_len(headers, name))
}

/// Length of a map field of all headers but those that `skip` names.
fn headers_len(headers: &HeaderMap, skip: fn(&HeaderName) -> bool) -> usize {
    headers.keys().filter(|n| !skip(n)).map(|n| len_field(entry_len(headers, n))).sum()
}

fn put_headers(out: &mut BytesMut, field: u8, headers: &HeaderMap, case: Case, skip: fn(&HeaderName) -> bool) {
    for name in headers.keys().filter(|n| !skip(n)) {
        put_len(out, field, entry_len(headers, name));
        put_len(out, 1, name.as_str().len());
        match case {
            Case::Lower => out.put_slice(name.as_str().as_bytes()),
            Case::Canonical => {
                let mut upper = true;
                for b in name.as_str().bytes() {
                    out.put_u8(if upper { b.to_ascii_uppercase() } else { b });
                    upper = b == b'-';
                }
            }
        }
        put_len(out, 2, values_len(headers, name));
        let pad = name.as_str().ends_with("-bin");
        for value in headers.get_all(name) {
            let extra = if pad { padding(value.len()) } else { 0 };
            put_tag(out, 1, LEN);
            put_varint(out, (value.len() + extra) as u64);
            out.put_slice(value.as_bytes());
            out.put_bytes(b'=', extra);
        }
    }
}

fn is_content_type(name: &HeaderName) -> bool {
    name == CONTENT_TYPE
}

fn nothing(_: &HeaderName) -> bool {
    false
}

/// Metadata entry that marks the caller as a gRPC one.
const GRPC_MARK: &[u8] = b"\x0a\x0ccontent-type\x12\x12\x0a\x10application/grpc";

fn any_len(type_url: &str, data: usize) -> usize {
    bytes_len(type_url.as_bytes()) + if data == 0 { 0 } else { len_field(data) }
}

/// `InternalInvokeRequest` as field 1 of the stream message, or alone. `data` is the body
/// when it travels inside; the last field written is the one that holds it.
pub(super) fn put_request(out: &mut BytesMut, head: &Head, data: &[u8], nested: bool) {
    let content_type = head.headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    // The content type of a gRPC caller's metadata is that of gRPC: it marks the caller.
    let (case, mark, skip): (_, _, fn(&HeaderName) -> bool) = match head.origin {
        Origin::Http => (Case::Canonical, 0, nothing),
        Origin::Grpc => (Case::Lower, len_field(GRPC_MARK.len()), is_content_type),
    };
    let verb = head.verb.number();
    let extension = verb.map(|v| varint_field(int32(v)) + bytes_len(head.query.as_bytes()));
    let any = any_len(&head.type_url, data.len());
    let with_any = any > 0;
    let message = bytes_len(head.method.as_str().as_bytes())
        + bytes_len(content_type)
        + extension.map_or(0, len_field)
        + if with_any { len_field(any) } else { 0 };
    let all = varint_field(1) + mark + headers_len(&head.headers, skip) + len_field(message);
    out.reserve(all + 16);
    if nested {
        put_len(out, 1, all);
    }
    put_varint_field(out, 1, 1);
    if mark > 0 {
        put_bytes(out, 2, GRPC_MARK);
    }
    put_headers(out, 2, &head.headers, case, skip);
    put_len(out, 3, message);
    put_bytes(out, 1, head.method.as_str().as_bytes());
    put_bytes(out, 3, content_type);
    if let (Some(verb), Some(length)) = (verb, extension) {
        put_len(out, 4, length);
        put_varint_field(out, 1, int32(verb));
        put_bytes(out, 2, head.query.as_bytes());
    }
    if with_any {
        put_len(out, 2, any);
        put_bytes(out, 1, head.type_url.as_bytes());
        put_bytes(out, 2, data);
    }
}

/// `InternalInvokeResponse`, likewise.
pub(super) fn put_response(
    out: &mut BytesMut,
    status: StatusCode,
    headers: &HeaderMap,
    grpc: Option<&GrpcAnswer>,
    data: &[u8],
    nested: bool,
) {
    let content_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    let case = if grpc.is_some() { Case::Lower } else { Case::Canonical };
    let code = grpc.map_or_else(|| i32::from(status.as_u16()), |g| g.code);
    let text = grpc.map_or("", |g| &g.message);
    let details = grpc.map_or(&[][..], |g| &g.details);
    let type_url = grpc.map_or("", |g| &g.type_url);
    let detail_len = |d: &StatusDetail| any_len(&d.type_url, d.value.len());
    let status_len = varint_field(int32(code))
        + bytes_len(text.as_bytes())
        + details.iter().map(|d| len_field(detail_len(d))).sum::<usize>();
    let any = any_len(type_url, data.len());
    let message = bytes_len(content_type) + if any > 0 { len_field(any) } else { 0 };
    let trailers = grpc.map_or(0, |g| headers_len(&g.trailers, nothing));
    let all = len_field(status_len) + headers_len(headers, is_content_type) + trailers + len_field(message);
    out.reserve(all + 16);
    if nested {
        put_len(out, 1, all);
    }
    put_len(out, 1, status_len);
    put_varint_field(out, 1, int32(code));
    put_bytes(out, 2, text.as_bytes());
    for d in details {
        put_len(out, 3, detail_len(d));
        put_bytes(out, 1, d.type_url.as_bytes());
        put_bytes(out, 2, &d.value);
    }
    put_headers(out, 2, headers, case, is_content_type);
    if let Some(g) = grpc {
        put_headers(out, 3, &g.trailers, Case::Lower, nothing);
    }
    put_len(out, 4, message);
    put_bytes(out, 2, content_type);
    if any > 0 {
        put_len(out, 1, any);
        put_bytes(out, 1, type_url.as_bytes());
        put_bytes(out, 2, data);
    }
}

/// Length of the payload field of a stream message.
pub(super) fn payload_len(seq: u64, data: usize) -> usize {
    len_field(varint_field(seq) + if data == 0 { 0 } else { len_field(data) })
}

/// The payload field up to its data, which has to follow.
pub(super) fn put_payload_head(out: &mut BytesMut, seq: u64, data: usize) {
    put_len(out, 2, varint_field(seq) + if data == 0 { 0 } else { len_field(data) });
    put_varint_field(out, 2, seq);
    if data > 0 {
        put_len(out, 1, data);
    }
}

/// A last stream message that carries trailers only.
pub(super) fn put_trailers(out: &mut BytesMut, trailers: &HeaderMap) {
    put_len(out, 1, headers_len(trailers, nothing));
    put_headers(out, 3, trailers, Case::Lower, nothing);
}

// Reading.

fn varint(b: &mut Bytes) -> Result<u64> {
    let mut v = 0u64;
    for shift in 0..10 {
        if !b.has_remaining() {
            break;
        }
        let byte = b.get_u8();
        v |= u64::from(byte & 0x7f) << (shift * 7);
        if byte & 0x80 == 0 {
            return Ok(v);
        }
    }
    Err(Malformed("bad varint"))
}

fn delimited_bytes(b: &mut Bytes) -> Result<Bytes> {
    let length = usize::try_from(varint(b)?).map_err(|_| Malformed("bad length"))?;
    if length > b.len() {
        return Err(Malformed("unexpected end"));
    }
    Ok(b.split_to(length))
}

enum Value {
    Varint(u64),
    Bytes(Bytes),
    Other,
}

impl Value {
    fn bytes(self) -> Result<Bytes> {
        match self {
            Self::Bytes(b) => Ok(b),
            _ => Err(Malformed("wrong wire type")),
        }
    }

    fn number(self) -> Result<u64> {
        match self {
            Self::Varint(v) => Ok(v),
            _ => Err(Malformed("wrong wire type")),
        }
    }

    fn text(self) -> Result<String> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| Malformed("text is not valid UTF-8"))
    }
}

/// Calls `each` for every field of a message.
fn fields(mut b: Bytes, mut each: impl FnMut(u64, Value) -> Result<()>) -> Result<()> {
    while b.has_remaining() {
        let tag = varint(&mut b)?;
        let value = match tag & 7 {
            0 => Value::Varint(varint(&mut b)?),
            1 if b.len() >= 8 => {
                b.advance(8);
                Value::Other
            }
            2 => Value::Bytes(delimited_bytes(&mut b)?),
            5 if b.len() >= 4 => {
                b.advance(4);
                Value::Other
            }
            _ => return Err(Malformed("unknown wire type")),
        };
        each(tag >> 3, value)?;
    }
    Ok(())
}

/// Headers kept of one message; more than any HTTP server takes.
const MAX_HEADERS: usize = 4096;

/// Adds one map entry. Names and values that no header may have are left out: what a peer
/// sends must not become a second header or a second line.
fn read_header(entry: Bytes, headers: &mut HeaderMap, is_grpc: &mut bool) -> Result<()> {
    let mut key = Bytes::new();
    let mut list = Bytes::new();
    fields(entry, |field, value| {
        match field {
            1 => key = value.bytes()?,
            2 => list = value.bytes()?,
            _ => {}
        }
        Ok(())
    })?;
    let lower = key.first().is_some_and(u8::is_ascii_lowercase);
    let name = match key.strip_prefix(b":") {
        Some(pseudo) => HeaderName::from_bytes(&[b"dapr-", pseudo].concat()),
        None => HeaderName::from_bytes(&key),
    };
    let Ok(name) = name else { return Ok(()) };
    // Most names have one value, and the last value needs no copy of the name.
    let mut last = None;
    fields(list, |field, value| {
        if field == 1 && headers.len() < MAX_HEADERS {
            let value = value.bytes()?;
            if name == CONTENT_TYPE && lower && value.starts_with(b"application/grpc") {
                *is_grpc = true;
            }
            if let Ok(value) = HeaderValue::from_maybe_shared(value)
                && let Some(before) = last.replace(value)
            {
                headers.append(&name, before);
            }
        }
        Ok(())
    })?;
    if let Some(value) = last
        && headers.len() < MAX_HEADERS
    {
        headers.append(name, value);
    }
    Ok(())
}

/// A payload.
#[derive(Debug, Default)]
pub(super) struct Payload {
    pub(super) data: Bytes,
    pub(super) seq: u64,
}

fn read_payload(b: Bytes) -> Result<Payload> {
    let mut payload = Payload::default();
    fields(b, |field, value| {
        match field {
            1 => payload.data = value.bytes()?,
            2 => payload.seq = value.number()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(payload)
}

fn read_any(b: Bytes) -> Result<(String, Bytes)> {
    let (mut type_url, mut data) = (String::new(), Bytes::new());
    fields(b, |field, value| {
        match field {
            1 => type_url = value.text()?,
            2 => data = value.bytes()?,
            _ => {}
        }
        Ok(())
    })?;
    Ok((type_url, data))
}

/// One message of a stream: its head field, still encoded, and its payload.
pub(super) fn read_stream(b: Bytes) -> Result<(Option<Bytes>, Option<Payload>)> {
    let (mut head, mut payload) = (None, None);
    fields(b, |field, value| {
        match field {
            1 => head = Some(value.bytes()?),
            2 => payload = Some(read_payload(value.bytes()?)?),
            _ => {}
        }
        Ok(())
    })?;
    Ok((head, payload))
}

/// An `InternalInvokeRequest`: the head of the call, and the body when it is inside.
pub(super) fn read_request(b: Bytes) -> Result<(Head, Bytes)> {
    let mut headers = HeaderMap::with_capacity(24);
    let mut is_grpc = false;
    let mut message = None;
    fields(b, |field, value| {
        match field {
            2 => read_header(value.bytes()?, &mut headers, &mut is_grpc)?,
            3 => message = Some(value.bytes()?),
            _ => {}
        }
        Ok(())
    })?;
    let message = message.ok_or(Malformed("field Message is nil"))?;
    let (mut method, mut type_url, mut query) = (Bytes::new(), String::new(), String::new());
    let (mut data, mut content_type, mut extension) = (Bytes::new(), Bytes::new(), None);
    fields(message, |field, value| {
        match field {
            1 => method = value.bytes()?,
            2 => (type_url, data) = read_any(value.bytes()?)?,
            3 => content_type = value.bytes()?,
            4 => extension = Some(value.bytes()?),
            _ => {}
        }
        Ok(())
    })?;
    let mut verb = Verb::Missing;
    if let Some(extension) = extension {
        let mut number = 0;
        fields(extension, |field, value| {
            match field {
                1 => number = value.number()?,
                2 => query = value.text()?,
                _ => {}
            }
            Ok(())
        })?;
        verb = Verb::from_number(i32::try_from(number).unwrap_or(0));
    }
    headers.remove(CONTENT_TYPE);
    if !content_type.is_empty()
        && let Ok(value) = HeaderValue::from_maybe_shared(content_type)
    {
        headers.insert(CONTENT_TYPE, value);
    }
    let text = std::str::from_utf8(&method).map_err(|_| Malformed("method is not valid UTF-8"))?;
    let method = Method::new(text).map_err(|_| Malformed("invalid method: it holds a character no method may have"))?;
    let origin = if is_grpc { Origin::Grpc } else { Origin::Http };
    Ok((Head { verb, method, query, headers, type_url, origin }, data))
}

/// What an `InternalInvokeResponse` says.
#[derive(Debug)]
pub(super) struct ReadResponse {
    /// `status.code`; `None` without a status.
    pub(super) code: Option<i32>,
    pub(super) headers: HeaderMap,
    /// Message, details, trailers and type of the data; they matter for gRPC apps.
    pub(super) grpc: GrpcAnswer,
    pub(super) data: Bytes,
    pub(super) has_message: bool,
}

pub(super) fn read_response(b: Bytes) -> Result<ReadResponse> {
    let mut out = ReadResponse {
        code: None,
        headers: HeaderMap::with_capacity(16),
        grpc: GrpcAnswer::default(),
        data: Bytes::new(),
        has_message: false,
    };
    let mut content_type = Bytes::new();
    let mut ignored = false;
    fields(b, |field, value| {
        match field {
            1 => {
                out.code.get_or_insert(0);
                fields(value.bytes()?, |field, value| {
                    match field {
                        1 => out.code = Some(value.number()? as i32),
                        2 => out.grpc.message = value.text()?,
                        3 => {
                            let (type_url, value) = read_any(value.bytes()?)?;
                            out.grpc.details.push(StatusDetail { type_url, value });
                        }
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            2 => read_header(value.bytes()?, &mut out.headers, &mut ignored)?,
            3 => read_header(value.bytes()?, &mut out.grpc.trailers, &mut ignored)?,
            4 => {
                out.has_message = true;
                fields(value.bytes()?, |field, value| {
                    match field {
                        1 => (out.grpc.type_url, out.data) = read_any(value.bytes()?)?,
                        2 => content_type = value.bytes()?,
                        _ => {}
                    }
                    Ok(())
                })?;
            }
            _ => {}
        }
        Ok(())
    })?;
    if out.has_message {
        out.headers.remove(CONTENT_TYPE);
    }
    if !content_type.is_empty()
        && let Ok(value) = HeaderValue::from_maybe_shared(content_type)
    {
        out.headers.insert(CONTENT_TYPE, value);
    }
    if let Some(code) = out.code {
        out.grpc.code = code;
    }
    Ok(out)
}

/// `google.rpc.Status`, for `grpc-status-details-bin`.
pub(super) fn put_status(out: &mut BytesMut, code: i32, message: &str, details: &[StatusDetail]) {
    put_varint_field(out, 1, int32(code));
    put_bytes(out, 2, message.as_bytes());
    for d in details {
        put_len(out, 3, any_len(&d.type_url, d.value.len()));
        put_bytes(out, 1, d.type_url.as_bytes());
        put_bytes(out, 2, &d.value);
    }
}

/// The details of a `google.rpc.Status`.
pub(super) fn read_status_details(b: Bytes) -> Result<Vec<StatusDetail>> {
    let mut details = Vec::new();
    fields(b, |field, value| {
        if field == 3 {
            let (type_url, value) = read_any(value.bytes()?)?;
            details.push(StatusDetail { type_url, value });
        }
        Ok(())
    })?;
    Ok(details)
}

/// The trace context as gRPC metadata.
pub(super) fn copy_trace(from: &HeaderMap, to: &mut HeaderMap) {
    for name in [TRACEPARENT, TRACESTATE, BAGGAGE] {
        if let Some(value) = from.get(&name) {
            to.insert(name, value.clone());
        }
    }
}
