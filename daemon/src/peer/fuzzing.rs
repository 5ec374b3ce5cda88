//! See [`crate::fuzzing`].

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use mecha_core::invoke::Head;

use super::framing::Deframer;
use super::wire;

/// The head and the body of a request.
#[must_use]
pub fn request(bytes: Bytes) -> Option<(Head, Bytes)> {
    wire::read_request(bytes).ok()
}

/// A request as it goes to a peer.
#[must_use]
pub fn written(head: &Head, data: &[u8]) -> Bytes {
    let mut out = BytesMut::new();
    wire::put_request(&mut out, head, data, false);
    out.freeze()
}

/// The code, the headers and the body of an answer.
#[must_use]
pub fn response(bytes: Bytes) -> Option<(Option<i32>, HeaderMap, Bytes)> {
    wire::read_response(bytes).ok().map(|r| (r.code, r.headers, r.data))
}

/// The number and the data of one part of a stream; a part without payload is number 0.
#[must_use]
pub fn part(bytes: Bytes) -> Option<(u64, Bytes)> {
    let (_, payload) = wire::read_stream(bytes).ok()?;
    Some(payload.map(|p| (p.seq, p.data)).unwrap_or_default())
}

/// How many details a status has.
#[must_use]
pub fn status(bytes: Bytes) -> Option<usize> {
    wire::read_status_details(bytes).ok().map(|details| details.len())
}

/// The messages in bytes that come in these chunks; `None` once one is refused.
#[must_use]
pub fn messages(chunks: &[Bytes], max: usize) -> Option<Vec<Bytes>> {
    let (mut deframer, mut out) = (Deframer::new(max), Vec::new());
    for chunk in chunks {
        deframer.push(chunk.clone());
        while let Some(message) = deframer.next().ok()? {
            out.push(message);
        }
    }
    Some(out)
}
