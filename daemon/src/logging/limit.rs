//! Keeps a failure that repeats many times a second from filling the disk.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Identical failures written per window.
const PER_WINDOW: u32 = 10;
const WINDOW: Duration = Duration::from_secs(1);

/// Kinds of failure watched at a time. Two that fall into one slot push each
/// other out, which at worst writes more lines.
const SLOTS: usize = 128;

#[derive(Debug)]
pub(super) struct RateLimit {
    hasher: RandomState,
    slots: Mutex<Box<[Slot]>>,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    since: Option<Instant>,
    written: u32,
    suppressed: u64,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Verdict {
    Write,
    /// Write, and say how many like it were not written.
    WriteAfter(u64),
    Suppress,
}

impl RateLimit {
    pub(super) fn check(&self, scope: &str, component: &str, message: &str) -> Verdict {
        self.check_at(Instant::now(), scope, component, message)
    }

    fn check_at(&self, now: Instant, scope: &str, component: &str, message: &str) -> Verdict {
        let key = self.key(scope, component, message);
        let mut slots = self.slots.lock();
        let slot = &mut slots[key as usize % SLOTS];
        let running = slot.since.is_some_and(|since| now.saturating_duration_since(since) < WINDOW);
        if slot.key != key || !running {
            let suppressed = if slot.key == key { slot.suppressed } else { 0 };
            *slot = Slot { key, since: Some(now), written: 1, suppressed: 0 };
            return if suppressed == 0 { Verdict::Write } else { Verdict::WriteAfter(suppressed) };
        }
        if slot.written < PER_WINDOW {
            slot.written += 1;
            return Verdict::Write;
        }
        slot.suppressed += 1;
        Verdict::Suppress
    }

    /// Digits are left out: a failure that only counts up is the same failure.
    fn key(&self, scope: &str, component: &str, message: &str) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        hasher.write(scope.as_bytes());
        hasher.write_u8(0xff);
        hasher.write(component.as_bytes());
        hasher.write_u8(0xff);
        for part in message.as_bytes().split(u8::is_ascii_digit).filter(|part| !part.is_empty()) {
            hasher.write(part);
        }
        hasher.finish()
    }
}

impl Default for RateLimit {
    fn default() -> Self {
        let empty = Slot { key: 0, since: None, written: 0, suppressed: 0 };
        Self { hasher: RandomState::new(), slots: Mutex::new(vec![empty; SLOTS].into()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_a_second_and_then_a_count() {
        let limit = RateLimit::default();
        let start = Instant::now();
        let check = |after_ms: u64, n: u32| {
            let at = start + Duration::from_millis(after_ms);
            limit.check_at(at, "s", "c", &format!("connection {n} refused"))
        };
        let written = (0..1000).filter(|n| check(u64::from(*n) / 2, *n) == Verdict::Write).count();
        assert_eq!(written, 10);
        assert_eq!(check(1000, 1), Verdict::WriteAfter(990));
        assert_eq!(check(1001, 1), Verdict::Write);
        assert_eq!(check(9000, 1), Verdict::Write);
    }

    #[test]
    fn other_failures_and_components_have_their_own_count() {
        let limit = RateLimit::default();
        let now = Instant::now();
        let check = |component: &str, message: &str| limit.check_at(now, "s", component, message);
        for _ in 0..20 {
            check("a", "refused");
        }
        assert_eq!(check("a", "refused"), Verdict::Suppress);
        assert_eq!(check("b", "refused"), Verdict::Write);
        assert_eq!(check("a", "timed out"), Verdict::Write);
    }
}
