//! Message lengths in a stream of gRPC frames: five bytes of prefix, then the message.

/// Follows the frames of one direction of a call, whatever the chunks they come in.
#[derive(Debug)]
pub(crate) struct Frames {
    limit: usize,
    prefix: [u8; 5],
    have: usize,
    rest: usize,
    bytes: u64,
}

impl Frames {
    /// Messages may have `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, prefix: [0; 5], have: 0, rest: 0, bytes: 0 }
    }

    /// Reads on. The length of the first message over the limit is the error.
    pub(crate) fn scan(&mut self, mut data: &[u8]) -> Result<(), usize> {
        while !data.is_empty() {
            if self.rest > 0 {
                let n = self.rest.min(data.len());
                self.rest -= n;
                data = &data[n..];
                continue;
            }
            let n = (self.prefix.len() - self.have).min(data.len());
            self.prefix[self.have..self.have + n].copy_from_slice(&data[..n]);
            self.have += n;
            data = &data[n..];
            if self.have == self.prefix.len() {
                self.have = 0;
                let [_, a, b, c, d] = self.prefix;
                self.rest = u32::from_be_bytes([a, b, c, d]) as usize;
                if self.rest > self.limit {
                    return Err(self.rest);
                }
                self.bytes += self.rest as u64;
            }
        }
        Ok(())
    }

    /// Bytes of the messages so far, prefixes not counted.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn framed(lengths: &[usize]) -> Vec<u8> {
        let mut out = Vec::new();
        for length in lengths {
            out.push(0);
            out.extend_from_slice(&(*length as u32).to_be_bytes());
            out.extend(std::iter::repeat_n(0xff, *length));
        }
        out
    }

    #[test]
    fn the_limit_is_the_length_of_one_message() {
        assert!(Frames::new(4).scan(&framed(&[4, 4, 0])).is_ok());
        assert_eq!(Frames::new(4).scan(&framed(&[4, 5])), Err(5));
    }

    proptest! {
        #[test]
        fn chunks_do_not_matter(
            lengths in proptest::collection::vec(0usize..40, 0..6),
            cuts in proptest::collection::vec(1usize..12, 1..60),
        ) {
            let data = framed(&lengths);
            let mut frames = Frames::new(40);
            let mut rest = &data[..];
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (head, tail) = rest.split_at((*cut).min(rest.len()));
                prop_assert!(frames.scan(head).is_ok());
                rest = tail;
            }
            prop_assert_eq!(frames.bytes(), lengths.iter().sum::<usize>() as u64);
        }

        #[test]
        fn garbage_does_not_panic(data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Frames::new(16).scan(&data);
        }
    }
}
