use std::cell::Cell;
use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};

/// 16 bytes, never all zero.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct TraceId([u8; 16]);

/// 8 bytes, never all zero.
#[derive(Clone, Copy, Eq, Hash, PartialEq)]
pub struct SpanId([u8; 8]);

thread_local! {
    /// Ids must be unlikely to collide, not hard to guess: a seed from the
    /// operating system per thread is enough and costs no call per id.
    static STATE: Cell<u64> = Cell::new(seed());
}

fn seed() -> u64 {
    let mut hasher = RandomState::new().build_hasher();
    hasher.write_u64(0);
    hasher.finish()
}

/// SplitMix64: passes the usual statistics and its low bits are uniform, which
/// ratio sampling needs.
fn random() -> u64 {
    STATE.with(|state| {
        let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        state.set(next);
        let mut z = next;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    })
}

impl TraceId {
    /// `None` for the all-zero id, which the protocol forbids.
    pub fn from_bytes(bytes: [u8; 16]) -> Option<Self> {
        (bytes != [0; 16]).then_some(Self(bytes))
    }

    /// The raw id.
    pub const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    pub(super) fn random() -> Self {
        loop {
            let mut bytes = [0; 16];
            bytes[..8].copy_from_slice(&random().to_be_bytes());
            bytes[8..].copy_from_slice(&random().to_be_bytes());
            if let Some(id) = Self::from_bytes(bytes) {
                return id;
            }
        }
    }

    /// The 63 bits ratio sampling looks at; every OpenTelemetry SDK takes the same.
    pub(super) fn sampling_bits(self) -> u64 {
        let mut low = [0; 8];
        low.copy_from_slice(&self.0[8..]);
        u64::from_be_bytes(low) >> 1
    }
}

impl SpanId {
    /// `None` for the all-zero id, which the protocol forbids.
    pub fn from_bytes(bytes: [u8; 8]) -> Option<Self> {
        (bytes != [0; 8]).then_some(Self(bytes))
    }

    /// The raw id.
    pub const fn to_bytes(self) -> [u8; 8] {
        self.0
    }

    pub(super) fn random() -> Self {
        loop {
            if let Some(id) = Self::from_bytes(random().to_be_bytes()) {
                return id;
            }
        }
    }
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn ids_of_several_threads_do_not_collide() {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                std::thread::spawn(|| (0..5_000).map(|_| (TraceId::random(), SpanId::random())).collect::<Vec<_>>())
            })
            .collect();
        let mut traces = HashSet::new();
        let mut spans = HashSet::new();
        for (trace, span) in threads.into_iter().flat_map(|thread| thread.join().unwrap()) {
            assert!(traces.insert(trace));
            assert!(spans.insert(span));
        }
    }
}
