//! gRPC messages in a stream of bytes: five bytes of prefix, then the message.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use mecha_core::invoke::{TransportError, grpc_code};

/// Length of the prefix.
pub(super) const PREFIX: usize = 5;

/// Puts the prefix of a message of `length` bytes.
pub(super) fn put_prefix(out: &mut BytesMut, length: usize) {
    out.put_u8(0);
    out.put_u32(length as u32);
}

/// Takes messages out of the bytes that came so far.
#[derive(Debug)]
pub(super) struct Deframer {
    /// What came last, when nothing is left of what came before: messages that lie within
    /// one chunk are not copied.
    chunk: Bytes,
    /// A message that is spread over chunks.
    spread: BytesMut,
    max: usize,
}

impl Deframer {
    /// Messages may have `max` bytes.
    pub(super) fn new(max: usize) -> Self {
        Self { chunk: Bytes::new(), spread: BytesMut::new(), max }
    }

    /// Adds what came.
    pub(super) fn push(&mut self, data: Bytes) {
        if self.spread.is_empty() && self.chunk.is_empty() {
            self.chunk = data;
            return;
        }
        if !self.chunk.is_empty() {
            self.spread.extend_from_slice(&std::mem::take(&mut self.chunk));
        }
        self.spread.extend_from_slice(&data);
    }

    /// The next complete message.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, TransportError> {
        let have = if self.spread.is_empty() { &self.chunk[..] } else { &self.spread[..] };
        let Some(prefix) = have.first_chunk::<PREFIX>() else { return Ok(None) };
        let [flag, a, b, c, d] = *prefix;
        if flag != 0 {
            return Err(TransportError::new(grpc_code::UNIMPLEMENTED, "compressed messages are not supported"));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > self.max {
            let text = format!("grpc: received message larger than max ({length} vs. {})", self.max);
            return Err(TransportError::new(grpc_code::RESOURCE_EXHAUSTED, text));
        }
        if have.len() < PREFIX + length {
            self.spread.reserve(if self.spread.is_empty() { 0 } else { PREFIX + length - have.len() });
            return Ok(None);
        }
        Ok(Some(if self.spread.is_empty() {
            self.chunk.advance(PREFIX);
            self.chunk.split_to(length)
        } else {
            self.spread.advance(PREFIX);
            self.spread.split_to(length).freeze()
        }))
    }

    /// Whether the bytes end between two messages.
    pub(super) fn is_clean(&self) -> bool {
        self.chunk.is_empty() && self.spread.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(messages: &[Vec<u8>]) -> Bytes {
        let mut out = BytesMut::new();
        for m in messages {
            put_prefix(&mut out, m.len());
            out.put_slice(m);
        }
        out.freeze()
    }

    #[test]
    fn a_message_in_one_chunk_is_not_copied() {
        let data = framed(&[b"hello".to_vec()]);
        let at = data[PREFIX..].as_ptr();
        let mut d = Deframer::new(100);
        d.push(data);
        assert_eq!(d.next().unwrap().unwrap().as_ptr(), at);
        assert!(d.is_clean());
    }

    #[test]
    fn limits() {
        let mut d = Deframer::new(4);
        d.push(framed(&[b"hello".to_vec()]));
        assert_eq!(d.next().unwrap_err().message, "grpc: received message larger than max (5 vs. 4)");
        let mut d = Deframer::new(4);
        d.push(Bytes::from_static(&[1, 0, 0, 0, 0]));
        assert_eq!(d.next().unwrap_err().code, grpc_code::UNIMPLEMENTED);
    }

    proptest! {
        #[test]
        fn messages_survive_any_cut(
            messages in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 0..8),
            cuts in proptest::collection::vec(1usize..20, 0..40),
        ) {
            let mut data = framed(&messages);
            let mut cuts = cuts.into_iter();
            let mut d = Deframer::new(100);
            let mut got = Vec::new();
            while !data.is_empty() {
                let n = cuts.next().unwrap_or(usize::MAX).min(data.len());
                d.push(data.split_to(n));
                while let Some(m) = d.next().unwrap() {
                    got.push(m.to_vec());
                }
            }
            prop_assert_eq!(got, messages);
            prop_assert!(d.is_clean());
        }

        #[test]
        fn garbage_does_not_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut d = Deframer::new(16);
            d.push(data.into());
            while let Ok(Some(_)) = d.next() {}
        }
    }
}
